// SPDX-License-Identifier: Apache-2.0
//
// What attention works on: sizes of the heads, who sees whom, keys and values as they lie in caches, sequences.
#pragma once

#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// Sizes of the heads and who sees whom: position j is seen from position i when `j <= i` and (`window == 0` or
/// `i - j <= window` or `j < pinned`).
struct AttentionShape {
  int query_heads = 0;  ///< a multiple of kv_heads; query head h reads key/value head h * kv_heads / query_heads
  int kv_heads = 0;
  int key_width = 0;
  int value_width = 0;
  std::int64_t window = 0;  ///< 0: global
  std::int64_t pinned = 0;
  float scale = 1.0f;  ///< of the scores

  constexpr bool sees(std::int64_t i, std::int64_t j) const {
    return j <= i && (window == 0 || i - j <= window || j < pinned);
  }
};

/// Keys and values of positions [first_position, first_position + count). The rows of one head are contiguous: keys of
/// head g are [count, key_width] at `keys + g * key_head_stride`.
template <class E>
struct KeyValueSegment {
  const E* keys = nullptr;
  const E* values = nullptr;
  std::int64_t key_head_stride = 0, value_head_stride = 0;  ///< in elements
  std::int64_t first_position = 0;
  std::int64_t count = 0;
  // Where rows of E have scales: [count] of head g at `key_scales + g * scale_head_stride`.
  const RowScale* key_scales = nullptr;
  const RowScale* value_scales = nullptr;
  std::int64_t scale_head_stride = 0;

  /// What the numbers of a row of head `head` are multiplied by: 1 where rows have no scales.
  template <class Real>
  Real key_scale(std::int64_t head, std::int64_t row) const {
    return scale<Real>(key_scales, head, row);
  }
  template <class Real>
  Real value_scale(std::int64_t head, std::int64_t row) const {
    return scale<Real>(value_scales, head, row);
  }

 private:
  template <class Real>
  Real scale([[maybe_unused]] const RowScale* scales, std::int64_t head, std::int64_t row) const {
    if constexpr (scaled_rows<E>) {
      return static_cast<Real>(static_cast<float>(scales[head * scale_head_stride + row]));
    } else {
      return Real(1);
    }
  }
};

/// Rows [first_row, first_row + rows) of the matrices are one sequence; the first stands at position first_position.
/// Its segments, in any order and without overlap, cover every position that one of its rows sees.
template <class E>
struct AttentionSequence {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t first_position = 0;
  KeyValueSegment<E> segments[4];
  int segment_count = 0;

  /// The segment that holds all of [from, from + count), or null.
  const KeyValueSegment<E>* holder(std::int64_t from, std::int64_t count) const {
    for (int i = 0; i < segment_count; ++i) {
      const KeyValueSegment<E>& s = segments[i];
      if (from >= s.first_position && from + count <= s.first_position + s.count) return &s;
    }
    return nullptr;
  }
};
HYMBA_NAMESPACE_END
