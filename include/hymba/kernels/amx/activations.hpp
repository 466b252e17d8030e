// SPDX-License-Identifier: Apache-2.0
//
// Activations as the right operand of tiles, up to 32 tokens to a panel: bf16 pairs, or quads of signed bytes with a
// scale for each token and block of columns.
#pragma once

#include <hymba/kernels/amx/tiles.hpp>

#if defined(HYMBA_AMX)

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/core/view.hpp>
#include <hymba/kernels/block_grid.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

inline constexpr std::int64_t byte_depth = 64;                             ///< bytes along k in a tile
inline constexpr std::int64_t block_steps = quantised_block / byte_depth;  ///< tiles along k in a quantised block

/// Quantises `count` <= 256 numbers to multiples of their largest magnitude over 127 and returns that multiple; writes
/// whole tiles' depths, zeros behind the last number. A NaN or an infinity makes the result NaN or infinite, so that it
/// shows in what the row is multiplied to.
inline float quantise(const float* from, std::int64_t count, std::int8_t* to) {
  constexpr int most = static_cast<int>(quantised_block) / 16;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512 v[most];
  __m512i largest = _mm512_setzero_si512();
  const int vectors = static_cast<int>((count + 15) / 16), filled = static_cast<int>((count + 63) / 64 * 4);
  for (int i = 0; i < vectors; ++i) {
    v[i] = _mm512_maskz_loadu_ps(first_lanes(count - 16 * i), from + 16 * i);
    // As integers: the larger magnitude has the larger bits, and NaN the largest.
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(v[i]), magnitude));
  }
  const float peak = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(_mm512_reduce_max_epu32(largest)))));
  // What is so small counts as zero: its inverse would be infinite.
  const bool tiny = peak < least_quantised;
  const __m512 inverse = _mm512_set1_ps(tiny ? 0.0f : 127.0f / peak);
  for (int i = 0; i < filled; ++i) {
    const __m512i q = i < vectors ? _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse)) : _mm512_setzero_si512();
    _mm_store_si128(reinterpret_cast<__m128i*>(to + 16 * i), _mm512_cvtsepi32_epi8(q));
  }
  return tiny ? 0.0f : peak / 127.0f;
}

/// Tokens' rows as tiles of the right operand, panel by panel: [panel][step][2 tiles], for int8 with the scales
/// [panel][block][32] behind them. A panel has 32 tokens, those that do not exist being zero.
struct PackedTokens {
  static constexpr std::int64_t height = panel_rows;

  static constexpr std::int64_t panel_numbers_bf16(std::int64_t depth) {
    return units_of(depth, tile_depth) * panel_step;
  }
  static constexpr std::int64_t panel_bytes_int8(std::int64_t depth) {
    return units_of(depth, byte_depth) * 2 * 1024;
  }
  static constexpr std::int64_t panel_scales(std::int64_t depth) { return quantised_blocks(depth) * height; }

  /// 16 tokens, of which `tokens` exist, as one column of tiles, `2 * tile_size` numbers apart.
  static void pack_bf16(MatrixView<const float> x, std::int64_t first, std::int64_t tokens, bf16* to) {
    for (std::int64_t k = 0; k < x.cols; k += tile_depth, to += panel_step) {
      if (tokens >= tile_rows && x.cols - k >= tile_depth) {
        pack_tile<Depth::along, true, false>(x.row(first) + k, x.stride, tile_rows, tile_depth, to);
      } else {
        pack_tile<Depth::along, true, true>(x.row(first) + k, x.stride, tokens, x.cols - k, to);
      }
    }
  }

  /// The same as bytes, tiles 2048 bytes apart; scales [block][32], this tile's 16 of each.
  static void pack_int8(MatrixView<const float> x, std::int64_t first, std::int64_t tokens, std::int8_t* to,
                        float* scales) {
    alignas(64) std::int8_t rows[tile_rows][quantised_block];
    for (std::int64_t k = 0; k < x.cols; k += quantised_block, scales += height) {
      const std::int64_t deep = std::min(quantised_block, x.cols - k);
      for (std::int64_t r = 0; r < tile_rows; ++r) {
        scales[r] = r < tokens ? quantise(x.row(first + r) + k, deep, rows[r]) : 0.0f;
        if (r >= tokens) std::fill_n(rows[r], quantised_block, std::int8_t{0});
      }
      for (std::int64_t s = 0; s < deep; s += byte_depth, to += 2048) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) v[r] = _mm512_load_si512(rows[r] + s);
        transpose(v);
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) _mm512_store_si512(to + 64 * r, v[r]);
      }
    }
  }
};

}  // namespace detail::amx

HYMBA_NAMESPACE_END

#endif  // HYMBA_AMX
