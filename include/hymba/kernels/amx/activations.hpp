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
#include <hymba/kernels/quantised_activations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

inline constexpr std::int64_t byte_depth = 64;                             ///< bytes along k in a tile
inline constexpr std::int64_t block_steps = quantised_block / byte_depth;  ///< tiles along k in a quantised block

/// Tokens' rows as tiles of the right operand, panel by panel: [panel][step][2 tiles], for int8 with the scales
/// [panel][block][32] behind them. A panel has 32 tokens, those that do not exist being zero.
struct PackedTokens {
  static constexpr std::int64_t height = panel_rows;

  static constexpr std::int64_t panel_numbers_bf16(std::int64_t depth) {
    return units_of(depth, tile_depth) * panel_step;
  }
  static constexpr std::int64_t panel_bytes_int8(std::int64_t depth) { return units_of(depth, byte_depth) * 2 * 1024; }
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

  /// The same as bytes, of rotated rows or not, tiles 2048 bytes apart; scales [block][32], this tile's 16 of each.
  static void pack_int8(MatrixView<const float> x, bool rotated, std::int64_t first, std::int64_t tokens,
                        std::int8_t* to, float* scales) {
    alignas(64) std::int8_t rows[tile_rows][quantised_block];
    for (std::int64_t k = 0; k < x.cols; k += quantised_block, scales += height) {
      const std::int64_t deep = std::min(quantised_block, x.cols - k);
      for (std::int64_t r = 0; r < tile_rows; ++r) {
        scales[r] = r < tokens ? quantise_activations(x.row(first + r) + k, deep, rows[r], rotated) : 0.0f;
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
