// SPDX-License-Identifier: Apache-2.0
#include "terminal.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#if defined(_WIN32)
#include <io.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace cli {

namespace {
volatile std::sig_atomic_t interrupt_seen = 0;

extern "C" void on_interrupt(int signal) {
  interrupt_seen = 1;
  std::signal(signal, SIG_DFL);
}
}  // namespace

void prepare_streams() {
#if !defined(_WIN32)
  for (int fd = 0; fd < 3; ++fd) {
    // Opened for reading only: writing to a stream that was closed stays an error.
    if (::fcntl(fd, F_GETFD) == -1 && errno == EBADF && ::open("/dev/null", O_RDONLY) != fd) return;
  }
  std::signal(SIGPIPE, SIG_IGN);
#endif
}

void spin_briefly([[maybe_unused]] char** argv) {
#if defined(__linux__)
  for (const char* name : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}) {
    if (std::getenv(name) != nullptr) return;
  }
  // By its path, so that it keeps its name. Where the loader was called with a program (ld.so hymba ...), that path is the
  // loader's, which would not find the program again.
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error || self.filename().string().starts_with("ld")) return;
  ::setenv("GOMP_SPINCOUNT", "2000", 1);
  ::execv(self.c_str(), argv);  // returns only when it failed; then all is as it was
#endif
}

void put(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw OutputClosed{};
  throw UsageError(std::string("cannot write to standard output: ") + std::strerror(errno != 0 ? errno : EIO));
}

void note(std::string_view line) {
  std::string text(line);
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  text += '\n';
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

#if defined(_WIN32)
bool stdin_is_terminal() { return _isatty(0) != 0; }
bool stderr_is_terminal() { return _isatty(2) != 0; }
#else
bool stdin_is_terminal() { return ::isatty(0) != 0; }
bool stderr_is_terminal() { return ::isatty(2) != 0; }
#endif

CatchInterrupt::CatchInterrupt() {
  interrupt_seen = 0;
  std::signal(SIGINT, on_interrupt);
}
CatchInterrupt::~CatchInterrupt() { std::signal(SIGINT, SIG_DFL); }
bool interrupted() { return interrupt_seen != 0; }

Progress::Progress(std::string label, std::int64_t total, bool shown)
    : label_(std::move(label)),
      total_(std::max<std::int64_t>(total, 1)),
      shown_(shown),
      begin_(Clock::now()),
      last_(begin_) {}

Progress::~Progress() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void Progress::at(std::int64_t done, std::string_view remark) {
  const auto now = Clock::now();
  if (!shown_ || (now - last_ < std::chrono::milliseconds(200) && done < total_)) return;
  last_ = now;
  constexpr std::int64_t width = 30;
  const std::int64_t filled = std::min(width, done * width / total_);
  const double spent = std::chrono::duration<double>(now - begin_).count();
  std::string line = "\r" + label_ + " [" + std::string(static_cast<std::size_t>(filled), '#') +
                     std::string(static_cast<std::size_t>(width - filled), '.') + "] " + grouped(done) + " / " +
                     grouped(total_) + ", " + fixed(rate(done, spent), 0) + "/s";
  if (!remark.empty()) line.append(", ").append(remark);
  line += "\x1b[K";
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  drawn_ = true;
}

std::string grouped(std::int64_t n) {
  std::string text = std::to_string(n);
  for (std::size_t at = text.size(); at > 3 + (n < 0 ? 1u : 0u);) text.insert(at -= 3, 1, ',');
  return text;
}

std::string bytes_text(std::size_t bytes) {
  constexpr std::array<const char*, 5> units{"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 999.95 && unit + 1 < units.size()) {
    value /= 1000;
    ++unit;
  }
  return fixed(value, unit == 0 ? 0 : value < 9.995 ? 2 : 1) + ' ' + units[unit];
}

std::string fixed(double value, int digits) {
  std::array<char, 64> buffer{};
  const int length = std::snprintf(buffer.data(), buffer.size(), "%.*f", digits, value);
  return length > 0 && length < static_cast<int>(buffer.size()) ? std::string(buffer.data()) : std::to_string(value);
}

double rate(std::int64_t count, double seconds) { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }

}  // namespace cli
