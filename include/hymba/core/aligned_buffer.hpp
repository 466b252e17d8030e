// SPDX-License-Identifier: Apache-2.0
//
// The owners: one aligned block of memory, and an arena that carves one block into arrays.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>

#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

HYMBA_NAMESPACE_BEGIN

/// Alignment of every array the library owns, in bytes: one cache line, one AVX-512 register.
inline constexpr std::size_t alignment = 64;

/// `size` rounded up to a multiple of `alignment`.
constexpr std::size_t aligned_size(std::size_t size) { return (size + alignment - 1) / alignment * alignment; }

/// Asks for memory that is not cleared first: for blocks whose every byte is written before it is read.
struct Uninitialised {};

/// Size of the pages that large blocks ask for, in bytes: a matrix product touches more small pages than a processor
/// remembers the addresses of.
inline constexpr std::size_t large_page = std::size_t{2} << 20;

/// Owns zero-initialised bytes aligned to `alignment`; a block of several large pages starts at one and asks the system
/// for them. Movable, not copyable.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// @throws std::bad_alloc when the system has no such block.
  explicit AlignedBuffer(std::size_t bytes) : AlignedBuffer(bytes, Uninitialised{}) {
    if (bytes != 0) std::memset(data_, 0, aligned_size(bytes));
  }
  AlignedBuffer(std::size_t bytes, Uninitialised) : size_(bytes) {
    if (bytes == 0) return;
    if (aligned_size(bytes) < bytes) throw std::bad_alloc();  // rounding up wrapped around
    data_ = static_cast<std::byte*>(::operator new(aligned_size(bytes), alignment_of(bytes)));
#if defined(__linux__)
    // A wish: the system may have none, and then small pages do.
    if (bytes >= large_from) ::madvise(data_, aligned_size(bytes), MADV_HUGEPAGE);
#endif
  }
  AlignedBuffer(AlignedBuffer&& o) noexcept : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    return *this;
  }
  ~AlignedBuffer() { ::operator delete(data_, alignment_of(size_)); }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t large_from = 2 * large_page;
  static constexpr std::align_val_t alignment_of(std::size_t bytes) {
    return std::align_val_t{bytes >= large_from ? large_page : alignment};
  }

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Carves aligned arrays out of one block. Run it twice over the same code: first without a block, to measure; then with
/// a block of `used()` bytes, to place. Nothing is freed one by one.
class Arena {
 public:
  /// Measures only: `take` returns null pointers.
  Arena() = default;
  explicit Arena(AlignedBuffer& block) : base_(block.data()), capacity_(block.size()), measuring_(false) {}

  /// An array of `count` elements, zero-initialised when the block is fresh.
  /// @throws Error when the block is smaller than what the measuring pass asked for.
  template <class T>
  T* take(std::size_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= alignment);
    if (count > (std::numeric_limits<std::size_t>::max() - used_ - alignment) / sizeof(T)) {
      throw Error(detail::message("arena: an array of ", count, " elements of ", sizeof(T), " bytes is out of range"));
    }
    const std::size_t at = used_;
    used_ += aligned_size(count * sizeof(T));
    if (measuring_) return nullptr;
    if (used_ > capacity_) throw Error(detail::message("arena: ", used_, " bytes asked of a block of ", capacity_));
    return reinterpret_cast<T*>(base_ + at);
  }
  std::size_t used() const { return used_; }
  bool measuring() const { return measuring_; }

 private:
  std::byte* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  bool measuring_ = true;
};

HYMBA_NAMESPACE_END
