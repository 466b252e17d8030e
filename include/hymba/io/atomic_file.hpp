// SPDX-License-Identifier: Apache-2.0
//
// A file that appears under its name only when it is complete.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

#if defined(_WIN32)
#include <fstream>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

HYMBA_NAMESPACE_BEGIN

namespace detail {
/// Brings the names in a folder to the disk, where the system can; one that cannot is no reason to fail.
inline void sync_folder([[maybe_unused]] const std::filesystem::path& folder) {
#if !defined(_WIN32)
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  (void)::fsync(fd);
  ::close(fd);
#endif
}
}  // namespace detail

/// Writes beside the target and takes its name at `commit()`: a reader sees the old file or the whole new one. A
/// mapping of the old file stays what it was. Without a commit the part written is removed.
class AtomicFile {
 public:
  /// @throws IoError when no file can be made in the target's folder, or when the target exists and is no regular file:
  /// taking its name would replace a device or a folder.
  explicit AtomicFile(const std::filesystem::path& target) : target_(target) {
    std::error_code unknown;
    const auto status = std::filesystem::status(target_, unknown);
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
      throw IoError(detail::message("cannot write ", target_.string(), ": it exists and is not a regular file"));
    }
    static std::atomic<std::uint64_t> serial{0};
#if defined(_WIN32)
    part_ = target_;
    part_ += ".tmp" + std::to_string(serial++);
    out_.open(part_, std::ios::binary | std::ios::trunc);
    if (!out_) throw IoError(detail::message("cannot create ", part_.string()));
#else
    for (int attempt = 0; fd_ < 0; ++attempt) {
      part_ = target_;
      part_ += ".tmp" + std::to_string(::getpid()) + "-" + std::to_string(serial++);
      fd_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (fd_ < 0 && (errno != EEXIST || attempt > 100)) fail("create", part_);
    }
#endif
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
#if defined(_WIN32)
    out_.close();
#else
    if (fd_ >= 0) ::close(fd_);
#endif
    if (!committed_) {
      std::error_code ignored;
      std::filesystem::remove(part_, ignored);
    }
  }

  /// @throws IoError, for example when the disk is full.
  void write(std::span<const std::byte> bytes) {
#if defined(_WIN32)
    if (!out_.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
      throw IoError(detail::message("cannot write ", part_.string()));
    }
#else
    constexpr std::size_t most = std::size_t{1} << 30;  // one call writes no more than 2 GiB
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size() < most ? bytes.size() : most);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write", part_);
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
#endif
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Brings the bytes to the disk and the file under its name.
  /// @throws IoError; the target is then as it was.
  void commit() {
#if defined(_WIN32)
    out_.close();
    if (!out_) throw IoError(detail::message("cannot write ", part_.string()));
    std::error_code error;
    std::filesystem::rename(part_, target_, error);
    if (error) throw IoError(detail::message("cannot rename ", part_.string(), " to ", target_.string()));
    committed_ = true;
#else
    if (::fsync(fd_) != 0) fail("write", part_);
    const int fd = fd_;
    fd_ = -1;
    if (::close(fd) != 0) fail("write", part_);
    if (::rename(part_.c_str(), target_.c_str()) != 0) fail("rename to", target_);
    committed_ = true;
    detail::sync_folder(target_.parent_path());  // the name reaches the disk with its folder
#endif
  }

 private:
  [[noreturn]] static void fail(const char* what, const std::filesystem::path& path) {
    const int why = errno;
    throw IoError(detail::message("cannot ", what, " ", path.string(), ": ", std::strerror(why)));
  }

  std::filesystem::path target_, part_;
  bool committed_ = false;
#if defined(_WIN32)
  std::ofstream out_;
#else
  int fd_ = -1;
#endif
};

HYMBA_NAMESPACE_END
