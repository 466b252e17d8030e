// SPDX-License-Identifier: Apache-2.0
//
// Where the keys and values of a session lie, and how positions map to rows.
//
// A layer that produces a cache owns one block of keys [kv_heads, capacity, key_width] and one of values; rows of signed
// bytes have their scales in two blocks more. Rows of one head are contiguous, so that decoding streams them. The first
// M rows hold the meta tokens and are never evicted. A global layer's other rows are positions in order; a window
// layer's are a ring of W + 1, position p in row M + (p - M) mod (W + 1): exactly what the window of the newest position
// can see, and nothing more, however long the context. Layers of a sharing group have no block of their own.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/variant/costs.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

HYMBA_NAMESPACE_BEGIN

/// Keys and values of some positions, head by head. `E` is the storage type; non-owning.
template <class E>
struct CacheRows {
  E* keys = nullptr;    ///< [kv_heads, capacity, key_width]
  E* values = nullptr;  ///< [kv_heads, capacity, value_width]
  std::int64_t capacity = 0;
  RowScale* key_scales = nullptr;    ///< [kv_heads, capacity] where rows of E have scales, else null
  RowScale* value_scales = nullptr;  ///< the same
  int kv_heads = 0, key_width = 0, value_width = 0;

  std::int64_t key_head_stride() const { return capacity * key_width; }
  std::int64_t value_head_stride() const { return capacity * value_width; }

  /// Takes memory for `capacity` positions.
  void carve(Arena& arena) {
    const auto rows = static_cast<std::size_t>(capacity * kv_heads);
    keys = arena.take<E>(rows * static_cast<std::size_t>(key_width));
    values = arena.take<E>(rows * static_cast<std::size_t>(value_width));
    if constexpr (scaled_rows<E>) {
      key_scales = arena.take<RowScale>(rows);
      value_scales = arena.take<RowScale>(rows);
    }
  }
  /// Visits what is held of one position, head by head: `visit(pointer, bytes)`.
  template <class Visit>
  void visit_row(std::int64_t row, Visit&& visit) const {
    for (std::int64_t g = 0; g < kv_heads; ++g) {
      visit(keys + g * key_head_stride() + row * key_width, static_cast<std::size_t>(key_width) * sizeof(E));
      visit(values + g * value_head_stride() + row * value_width, static_cast<std::size_t>(value_width) * sizeof(E));
      if constexpr (scaled_rows<E>) {
        visit(key_scales + g * capacity + row, sizeof(RowScale));
        visit(value_scales + g * capacity + row, sizeof(RowScale));
      }
    }
  }
};

/// Copies `count` rows of every head, from `first` on, to `at` and behind. Both sides have the same heads and widths.
template <class E>
void copy_rows(const CacheRows<E>& from, std::int64_t first, const CacheRows<E>& to, std::int64_t at,
               std::int64_t count) {
  const auto copy = [&](auto* target, std::int64_t target_stride, const auto* source, std::int64_t source_stride,
                        std::int64_t width) {
    for (std::int64_t g = 0; g < to.kv_heads; ++g) {
      std::memcpy(target + g * target_stride + at * width, source + g * source_stride + first * width,
                  static_cast<std::size_t>(count * width) * sizeof(*target));
    }
  };
  copy(to.keys, to.key_head_stride(), from.keys, from.key_head_stride(), to.key_width);
  copy(to.values, to.value_head_stride(), from.values, from.value_head_stride(), to.value_width);
  if constexpr (scaled_rows<E>) {
    copy(to.key_scales, to.capacity, from.key_scales, from.capacity, 1);
    copy(to.value_scales, to.capacity, from.value_scales, from.capacity, 1);
  }
}

/// The keys and values of one producing layer of one session.
template <class E>
struct LayerCache : CacheRows<E> {
  std::int64_t meta = 0;  ///< M: pinned rows
  int window = 0;         ///< 0: global

  /// Rows that are reused in turn; for a global layer all rows behind the meta tokens.
  std::int64_t ring() const { return this->capacity - meta; }
  /// The row of position `p` (p < meta, or the ring is not empty).
  std::int64_t row_of(std::int64_t p) const { return p < meta ? p : meta + (p - meta) % ring(); }
  /// The oldest position behind the meta tokens that is still held once `length` positions have been stored.
  std::int64_t oldest(std::int64_t length) const { return std::max(meta, length - ring()); }
};

HYMBA_NAMESPACE_END
