// SPDX-License-Identifier: Apache-2.0
//
// The exceptions the library throws. It never prints and never exits.
//
// Every message is one line that names the thing, the value it had and what was expected.
#pragma once

#include <hymba/core/macros.hpp>

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

HYMBA_NAMESPACE_BEGIN

/// Base of everything the library throws on purpose. `what()` is one line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A file cannot be opened, read, mapped or written.
class IoError : public Error {
 public:
  using Error::Error;
};

/// The content of a file or blob is malformed, damaged or does not match its own header.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A configuration breaks a rule of the architecture or names something the library does not provide.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A tensor is missing, unexpected, misshaped or of the wrong type.
class TensorError : public Error {
 public:
  using Error::Error;
};

/// An argument of a call is out of its documented range (a token id, an option, a batch with one session twice).
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// A session has no room left for the tokens asked for. The session is unchanged and stays usable.
class ContextError : public Error {
 public:
  using Error::Error;
};

/// A snapshot belongs to another model, another format version, or is damaged.
class SnapshotError : public Error {
 public:
  using Error::Error;
};

namespace detail {
/// Concatenates its arguments with `<<`; for error messages only, never on a hot path.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  out.exceptions(std::ios::badbit);  // else running out of memory would pass for a shorter text
  (out << ... << parts);
  return std::move(out).str();
}
}  // namespace detail

HYMBA_NAMESPACE_END
