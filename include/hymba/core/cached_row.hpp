// SPDX-License-Identifier: Apache-2.0
//
// How a row of keys or values lies in a cache, as the type of the cache's elements says.
//
// A row is the key or the value of one head at one position. In a cache of float, f16 or bf16 it is its numbers. In one
// of signed bytes it has a scale besides: number = scale * byte; and of keys the numbers are those of the rotated key
// (kernels/rotate_heads.hpp), which meets rotated queries.
//
// One scale for the whole row, not for blocks of it: attention then multiplies the bytes as they are, and a key's scale
// meets one score, a value's one weight. A scale is bf16: bytes are chosen for the scale as it is stored, so that its
// own rounding widens a step by 1/256 at most (f16 would have no room for the scales of small rows). Scales lie beside
// the rows and not in them: rows of the usual widths stay whole cache lines, and the scales of positions that follow
// each other are a vector.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// Whether the rows of a cache of `E` have scales.
template <class E>
inline constexpr bool scaled_rows = std::is_same_v<E, std::int8_t>;

/// What a row of signed bytes is multiplied by.
using RowScale = bf16;

/// Bytes that a cache takes: `element` for each number and `row` more for each row.
struct CacheElementBytes {
  std::size_t element;
  std::size_t row = 0;
  constexpr CacheElementBytes(std::size_t element_, std::size_t row_ = 0) : element(element_), row(row_) {}
};
template <class E>
inline constexpr CacheElementBytes cache_element_bytes{sizeof(E), scaled_rows<E> ? sizeof(RowScale) : 0};

HYMBA_NAMESPACE_END
