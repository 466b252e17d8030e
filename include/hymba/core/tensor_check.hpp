// SPDX-License-Identifier: Apache-2.0
//
// Compares the tensors a checkpoint holds with the tensors a model needs.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/core/tensor_table.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// A tensor that a model needs; its scalar type is free.
struct ExpectedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
};

/// "[32, 16]".
inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

/// Product of the sizes, or -1 when one is negative or the product exceeds 2^62.
constexpr std::int64_t element_count(std::span<const std::int64_t> shape) {
  constexpr std::int64_t most = std::int64_t{1} << 62;
  std::int64_t count = 1;
  for (const std::int64_t n : shape) {
    if (n < 0 || (n > 0 && count > most / n)) return -1;
    count *= n;
  }
  return count;
}

namespace detail {
/// "3 tensors <what>: a, b, c", at most five names.
inline std::string listed(std::string_view source, std::string_view what, const std::vector<std::string_view>& names) {
  constexpr std::size_t most = 5;
  std::string out =
      message(source, ": ", names.size(), names.size() == 1 ? " tensor is " : " tensors are ", what, ": ");
  for (std::size_t i = 0; i < names.size() && i < most; ++i) out += (i == 0 ? "" : ", ") + printable(names[i]);
  if (names.size() > most) out += ", ...";
  return out;
}
}  // namespace detail

namespace detail {
/// Whether a tensor's bytes are what its shape takes.
inline bool holds_whole_rows(const TensorRef& t) {
  const std::int64_t count = element_count(t.shape);
  // Quantised rows never take less than half a byte for a number.
  if (count < 0 || static_cast<std::uint64_t>(count) / 2 > t.bytes.size()) return false;
  if (count == 0 || t.shape.empty()) return !is_quantised(t.dtype) && t.bytes.size() == static_cast<std::size_t>(count) * dtype_bytes(t.dtype);
  if (is_quantised(t.dtype) && t.shape.size() != 2) return false;
  const std::int64_t cols = t.shape.back();
  return static_cast<std::size_t>(count / cols) * dtype_row_bytes(t.dtype, cols) == t.bytes.size();
}
}  // namespace detail

/// Checks that `table` holds exactly the tensors of `expected`, each with its shape and as many bytes as that takes.
/// @param source named in the error: the folder or file the table came from.
/// @throws TensorError naming up to five missing tensors, else up to five unexpected ones, else the first tensor of a
/// wrong shape with what was found and what was expected.
inline void check_tensors(std::span<const ExpectedTensor> expected, const TensorTable& table, std::string_view source) {
  std::set<std::string_view> known;
  std::vector<std::string_view> missing, unexpected;
  for (const ExpectedTensor& e : expected) {
    known.insert(e.name);
    if (table.find(e.name) == nullptr) missing.push_back(e.name);
  }
  if (!missing.empty()) throw TensorError(detail::listed(source, "missing", missing));
  for (const auto& [name, tensor] : table.tensors) {
    if (!known.contains(name)) unexpected.push_back(name);
  }
  if (!unexpected.empty()) throw TensorError(detail::listed(source, "unexpected", unexpected));
  for (const ExpectedTensor& e : expected) {
    const TensorRef& found = *table.find(e.name);
    if (found.shape != e.shape) {
      throw TensorError(detail::message(source, ": tensor ", detail::quote(e.name), " has shape ",
                                        shape_text(found.shape), ", expected ", shape_text(e.shape)));
    }
    if (!detail::holds_whole_rows(found)) {
      throw TensorError(detail::message(source, ": tensor ", detail::quote(e.name), " has ", found.bytes.size(),
                                        " bytes, which is not what ", dtype_name(found.dtype), " ",
                                        shape_text(found.shape), " takes"));
    }
  }
}

HYMBA_NAMESPACE_END
