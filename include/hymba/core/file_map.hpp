// SPDX-License-Identifier: Apache-2.0
//
// A file mapped read-only into memory: the pages are the file's own, shared between processes.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <utility>

#if defined(_WIN32)
#include <fstream>
#include <vector>
#else
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

HYMBA_NAMESPACE_BEGIN

/// Owns a read-only mapping of a whole file. Movable, not copyable.
///
/// The mapping reflects the file: another process that truncates it while it is mapped makes later reads fault, as
/// with every mapped file.
class FileMap {
 public:
  FileMap() = default;
  /// @throws IoError when the file cannot be opened, is not a regular file, or cannot be mapped.
  explicit FileMap(const std::filesystem::path& path) {
#if defined(_WIN32)
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in) throw IoError(detail::message("cannot open ", path.string()));
    copy_.resize(static_cast<std::size_t>(in.tellg()));
    in.seekg(0);
    if (!in.read(reinterpret_cast<char*>(copy_.data()), static_cast<std::streamsize>(copy_.size()))) {
      throw IoError(detail::message("cannot read ", path.string()));
    }
    data_ = copy_.data();
    size_ = copy_.size();
#else
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw IoError(detail::message("cannot open ", path.string(), ": ", std::strerror(errno)));
    struct stat info {};
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
      ::close(fd);
      throw IoError(detail::message("cannot map ", path.string(), ": not a regular file"));
    }
    size_ = static_cast<std::size_t>(info.st_size);
    if (size_ > 0) {
      void* p = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
      const int why = errno;
      ::close(fd);
      if (p == MAP_FAILED) throw IoError(detail::message("cannot map ", path.string(), ": ", std::strerror(why)));
      data_ = static_cast<const std::byte*>(p);
    } else {
      ::close(fd);
    }
#endif
  }
  FileMap(FileMap&& o) noexcept
      : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {
#if defined(_WIN32)
    copy_ = std::move(o.copy_);
#endif
  }
  FileMap& operator=(FileMap&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
#if defined(_WIN32)
    std::swap(copy_, o.copy_);
#endif
    return *this;
  }
  ~FileMap() {
#if !defined(_WIN32)
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
#endif
  }

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
#if defined(_WIN32)
  std::vector<std::byte> copy_;
#endif
};

HYMBA_NAMESPACE_END
