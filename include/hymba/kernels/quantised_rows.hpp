// SPDX-License-Identifier: Apache-2.0
//
// Quantised rows as floats: scale times integer, rounded once. Whoever multiplies weights in single precision reads
// them through here, so that every path multiplies the same numbers; weight_format<W>::number says which.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/simd.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Columns that are decoded together, from a multiple of as many: in every format they have one scale, and rows are
/// stored in whole lines of them.
inline constexpr std::int64_t quantised_line = 64;
static_assert(quantised_block % quantised_line == 0 && Int4Rows::group % quantised_line == 0);

/// One line of a row: 64 signed bytes and the scale that multiplies them. Behind the row's last column are any bytes of
/// the format (zeros in int8), for the other operand is zero there.
struct QuantisedLine {
  const std::int8_t* values;
  float scale;
};

/// The line of `row`, of `cols` columns, that begins at column `col`, a multiple of 64. What is stored in half bytes is
/// unpacked to `buffer`.
template <Weights W>
requires(weight_format<W>::quantised) HYMBA_ALWAYS_INLINE QuantisedLine
    quantised_line_at(const std::byte* row, std::int64_t cols, std::int64_t col, [[maybe_unused]] std::int8_t* buffer) {
  static_assert(W == Weights::int8 || W == Weights::int4);
  const std::int64_t block = col / quantised_block;
  const float scale = weight_format<W>::scale(row, cols, block);
  if constexpr (W == Weights::int8) {
    return {reinterpret_cast<const std::int8_t*>(row + col), scale};
  } else {
    const std::byte* from = row + col / Int4Rows::group * quantised_line;
    const auto table = [&](std::int64_t k) { return int4_table<0>.at[Int4Rows::code(row, cols, k)]; };
    if (col % Int4Rows::group == 0) {
      simd::look_up_halves<false>(from, table(col), table(col + Int4Rows::sub_block), buffer);
    } else {
      simd::look_up_halves<true>(from, table(col), table(col + Int4Rows::sub_block), buffer);
    }
    return {buffer, scale};
  }
}

/// Where the bytes of column `col`, a multiple of 64, begin in a row.
template <Weights W>
constexpr std::int64_t quantised_byte(std::int64_t col) {
  return W == Weights::int4 ? col / Int4Rows::group * quantised_line : col;
}

/// Decodes columns [first, first + count) of a row to whole vectors, `stride` floats apart; `first` is a multiple
/// of 64. In the last vector, columns behind the row's last are as finite as the scale.
template <class A, Weights W>
HYMBA_ALWAYS_INLINE void decode_columns(const std::byte* row, std::int64_t cols, std::int64_t first, std::int64_t count,
                                        float* to, std::int64_t stride = simd::lanes<A>) {
  alignas(64) std::int8_t buffer[quantised_line];
  for (std::int64_t k = 0; k < count; k += quantised_line) {
    const QuantisedLine line = quantised_line_at<W>(row, cols, first + k, buffer);
    const simd::floats<A> scale = simd::broadcast<A>(line.scale);
    const std::int64_t here = std::min(quantised_line, count - k);
    for (std::int64_t i = 0; i < here; i += simd::lanes<A>, to += stride) {
      simd::store<A>(to, simd::load<A>(line.values + i) * scale);
    }
  }
}

}  // namespace detail

HYMBA_NAMESPACE_END
