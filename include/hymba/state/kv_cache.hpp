// SPDX-License-Identifier: Apache-2.0
//
// Where the keys and values of a session lie, and how positions map to rows.
//
// A layer that produces a cache owns one block of keys [kv_heads, capacity, key_width] and one of values. Rows of one
// head are contiguous, so that decoding streams them. The first M rows hold the meta tokens and are never evicted. A
// global layer's other rows are positions in order; a window layer's are a ring of W + 1, position p in row
// M + (p - M) mod (W + 1): exactly what the window of the newest position can see, and nothing more, however long the
// context. Layers of a sharing group have no block of their own.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/costs.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// The keys and values of one producing layer of one session. `E` is the storage type; non-owning.
template <class E>
struct LayerCache {
  E* keys = nullptr;    ///< [kv_heads, capacity, key_width]
  E* values = nullptr;  ///< [kv_heads, capacity, value_width]
  std::int64_t capacity = 0;
  std::int64_t meta = 0;  ///< M: pinned rows
  int window = 0;         ///< 0: global
  int kv_heads = 0, key_width = 0, value_width = 0;

  std::int64_t key_head_stride() const { return capacity * key_width; }
  std::int64_t value_head_stride() const { return capacity * value_width; }
  /// Rows that are reused in turn; for a global layer all rows behind the meta tokens.
  std::int64_t ring() const { return capacity - meta; }
  /// The row of position `p` (p < meta, or the ring is not empty).
  std::int64_t row_of(std::int64_t p) const { return p < meta ? p : meta + (p - meta) % ring(); }
  /// The oldest position behind the meta tokens that is still held once `length` positions have been stored.
  std::int64_t oldest(std::int64_t length) const { return std::max(meta, length - ring()); }
};

HYMBA_NAMESPACE_END
