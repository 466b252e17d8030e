// SPDX-License-Identifier: Apache-2.0
//
// Standard output and error, progress, interruption, and numbers made readable.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace cli {

/// A mistake of whoever called the program; `what()` is the sentence.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Its arguments one after the other, as `<<` writes them.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}
/// The text in quotation marks, cut after `most` bytes.
inline std::string quoted(std::string_view text, std::size_t most = 100) {
  return '"' + std::string(text.substr(0, most)) + (text.size() > most ? "...\"" : "\"");
}

/// The reader of standard output has gone, as in `hymba ... | head`.
struct OutputClosed {};

/// Closed standard streams are replaced, so that no file is opened in their place; a broken pipe is an error, no
/// signal.
void prepare_streams();

/// Lets GNU OpenMP's waiting threads sleep after some 0.1 ms instead of some 10 ms: on a machine with other work to do,
/// long spinning takes the very time from the threads that are waited for (decoding slows down up to fortyfold). The
/// runtime reads its settings before main(), so the program starts itself again, once, unless the user has chosen.
void spin_briefly(char** argv);

/// Writes to standard output and flushes.
/// @throws OutputClosed; @throws UsageError when it cannot be written for another reason.
void put(std::string_view text);

/// Writes one line to standard error. Control characters become spaces, so that it stays one.
void note(std::string_view line);

bool stdin_is_terminal();
bool stderr_is_terminal();

/// While one lives, the first Ctrl-C sets `interrupted()` and a second one ends the program.
class CatchInterrupt {
 public:
  CatchInterrupt();
  ~CatchInterrupt();
  CatchInterrupt(const CatchInterrupt&) = delete;
  CatchInterrupt& operator=(const CatchInterrupt&) = delete;
};
bool interrupted();

/// A bar on standard error, redrawn a few times a second.
class Progress {
 public:
  Progress(std::string label, std::int64_t total, bool shown);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void at(std::int64_t done, std::string_view remark = {});

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  std::int64_t total_;
  bool shown_;
  bool drawn_ = false;
  Clock::time_point begin_, last_;
};

/// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// 1522797824 -> "1,522,797,824".
std::string grouped(std::int64_t n);
/// 79000000 -> "79.0 MB" (powers of ten).
std::string bytes_text(std::size_t bytes);
/// With `digits` digits behind the point.
std::string fixed(double value, int digits);
/// `count / seconds`, 0 when no time was taken.
double rate(std::int64_t count, double seconds);

}  // namespace cli
