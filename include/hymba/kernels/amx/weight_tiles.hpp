// SPDX-License-Identifier: Apache-2.0
//
// Weights as the left operand of tiles: rows of a weight matrix are rows of a tile, so that bf16 and int8 need no
// packing but a copy that stays near, and int4 is unpacked to bytes on the way.
#pragma once

#include <hymba/kernels/amx/tiles.hpp>

#if defined(HYMBA_AMX)

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/kernels/amx/activations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

/// What tiles make of weights stored as `W`: `Element` bf16 or signed bytes, `depth` of them along k in a tile.
template <Weights W>
struct TileWeights {
  static constexpr bool bytes = weight_format<W>::quantised;
  using Element = std::conditional_t<bytes, std::int8_t, bf16>;
  static constexpr std::int64_t depth = bytes ? byte_depth : tile_depth;
  static constexpr std::int64_t tile = tile_rows * depth;  ///< elements

  /// Columns [step * depth, (step + count) * depth) of 16 rows, of which `rows` exist, as tiles `stride` elements
  /// apart. What does not exist is zero.
  static void load(const WeightMatrix<W>& w, std::int64_t row, std::int64_t rows, std::int64_t step, std::int64_t count,
                   Element* to, std::int64_t stride) {
    if constexpr (W == Weights::int4) {
      if (rows >= tile_rows) {
        for (std::int64_t s = 0; s < count; ++s) unpack(w, row, tile_rows, step + s, to + s * stride);
        return;
      }
    }
    for (std::int64_t r = 0; r < tile_rows; ++r) {
      Element* out = to + r * depth;
      if (r >= rows) {
        for (std::int64_t s = 0; s < count; ++s) _mm512_store_si512(out + s * stride, _mm512_setzero_si512());
      } else if constexpr (W == Weights::int8) {
        const std::byte* from = w.row(row + r) + step * depth;
        for (std::int64_t s = 0; s < count; ++s) {
          _mm512_store_si512(out + s * stride, _mm512_loadu_si512(from + s * depth));
        }
      } else if constexpr (W == Weights::int4) {
        for (std::int64_t s = 0; s < count; ++s) unpack(w, row + r, 1, step + s, out + s * stride);
      } else {
        using Stored = typename weight_format<W>::element;
        const auto* from = reinterpret_cast<const Stored*>(w.row(row + r)) + step * depth;
        const std::int64_t whole = std::min(count, w.cols / depth - step);
        for (std::int64_t s = 0; s < whole; ++s) {
          _mm512_store_si512(out + s * stride, load_row<false>(from + s * depth, depth));
        }
        if (whole < count) {
          _mm512_store_si512(out + whole * stride,
                             load_row<true>(from + whole * depth, w.cols - (step + whole) * depth));
        }
      }
    }
  }

  /// Scales of block `block` for 16 rows, of which `rows` exist.
  static __m512 scales(const WeightMatrix<W>& w, std::int64_t row, std::int64_t rows,
                       std::int64_t block) requires bytes {
    using Format = weight_format<W>;
    // Rows are whole cache lines: the distances are multiples of 4, and 16 of them fit the index.
    const __m512i line = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_mullo_epi32(line, _mm512_set1_epi32(static_cast<int>(Format::row_bytes(w.cols) / 4)));
    const std::byte* from =
        w.row(row) + Format::value_bytes(w.cols) + static_cast<std::size_t>(block) * Format::scale_bytes;
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), first_lanes(rows), index, from, 4);
  }

 private:
  /// One step of `rows` int4 rows as signed bytes, 64 apart. A line of values holds two steps, one in the low halves of
  /// its bytes and one in the high halves; the lower 32 columns of a step have one code and the upper 32 the
  /// next, and a shuffle looks up the levels of either.
  static HYMBA_ALWAYS_INLINE void unpack(const WeightMatrix<W>& w, std::int64_t row, std::int64_t rows,
                                         std::int64_t step, std::int8_t* to) {
    const auto row_bytes = static_cast<std::int64_t>(Int4Rows::row_bytes(w.cols));
    const std::byte* line = w.row(row) + step / 2 * 64;
    const std::byte* codes = Int4Rows::codes(w.row(row), w.cols, 0) + 2 * step;
    const auto table = [](std::byte code) {
      return _mm_load_si128(reinterpret_cast<const __m128i*>(int4_table<0>.at[std::to_integer<unsigned>(code)]));
    };
    const auto all = [&](auto half) {
      const __m512i low = _mm512_set1_epi8(15);
      for (std::int64_t r = 0; r < rows; ++r, line += row_bytes, codes += row_bytes, to += depth) {
        __m512i values = _mm512_loadu_si512(line);
        if constexpr (half()) values = _mm512_srli_epi16(values, 4);
        const __m512i tables =
            _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(table(codes[0])), 0xff00, table(codes[1]));
        _mm512_store_si512(to, _mm512_shuffle_epi8(tables, _mm512_and_si512(values, low)));
      }
    };
    step % 2 == 0 ? all(std::false_type{}) : all(std::true_type{});
  }
};

}  // namespace detail::amx

HYMBA_NAMESPACE_END

#endif  // HYMBA_AMX
