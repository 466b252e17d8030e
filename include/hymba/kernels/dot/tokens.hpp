// SPDX-License-Identifier: Apache-2.0
//
// Activations as dot products of bytes take them: token by token, or packed so that lanes are tokens.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/dot/units.hpp>
#include <hymba/kernels/quantised_activations.hpp>
#include <hymba/kernels/transpose.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#if defined(HYMBA_DOT)

HYMBA_NAMESPACE_BEGIN

namespace detail::dot {

inline constexpr std::int64_t line = 64;  ///< columns in a line, in every format
inline constexpr std::int64_t block_lines = quantised_block / line;

/// Tokens as signed bytes, [block][token][256], zeros behind the last column in its line; and for each block of a
/// token, [block][token], the scale and `offset` times the sum of the bytes, by which products with shifted weights are
/// too large.
template <class Unit>
struct Tokens {
  std::int8_t* bytes;
  float* scales;
  std::int32_t* excess;
  std::int64_t count, blocks;

  static constexpr std::int64_t value_bytes(std::int64_t tokens, std::int64_t cols) {
    return quantised_blocks(cols) * tokens * quantised_block;
  }
  static constexpr std::int64_t scale_bytes(std::int64_t tokens, std::int64_t cols) {
    return round_up(quantised_blocks(cols) * tokens * 4, line);
  }
  static constexpr std::size_t memory_bytes(std::int64_t tokens, std::int64_t cols) {
    return static_cast<std::size_t>(value_bytes(tokens, cols) + 2 * scale_bytes(tokens, cols));
  }
  Tokens(std::byte* memory, std::int64_t tokens, std::int64_t cols)
      : bytes(reinterpret_cast<std::int8_t*>(memory)),
        scales(reinterpret_cast<float*>(memory + value_bytes(tokens, cols))),
        excess(reinterpret_cast<std::int32_t*>(memory + value_bytes(tokens, cols) + scale_bytes(tokens, cols))),
        count(tokens),
        blocks(quantised_blocks(cols)) {}

  /// Where block `block` of a token is in scales and excess, and, times 256, in bytes.
  std::int64_t at(std::int64_t token, std::int64_t block) const { return block * count + token; }

  void quantise(std::int64_t token, const float* x, std::int64_t cols, bool rotated) const {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t here = std::min(quantised_block, cols - b * quantised_block);
      std::int8_t* const to = bytes + at(token, b) * quantised_block;
      scales[at(token, b)] = quantise_activations(x + b * quantised_block, here, to, rotated);
      std::int32_t sum = 0;
      if constexpr (Unit::offset != 0) {
        for (std::int64_t i = 0; i < round_up(here, line); ++i) sum += to[i];
      }
      excess[at(token, b)] = Unit::offset * sum;
    }
  }
};

/// Up to 4 Q tokens, in fours: where a register of weights has columns [4 j, 4 j + 4) of each 16 of a row, j from 0 to
/// 3, one of these has the same columns of four tokens. Lane j of each 128 bits of weights, spread over them
/// (Unit::spread), then meets four tokens at once, and nothing is summed across lanes until a block is complete.
template <class Unit, int Q>
struct TokenQuads {
  static constexpr std::int64_t L = Unit::lanes;
  static constexpr std::int64_t block_bytes = 4 * Q * quantised_block;
  /// Registers of sums, one lane for each token.
  static constexpr int sums = static_cast<int>(units_of(4 * Q, L));
  static constexpr std::int64_t tokens = sums * L;

  std::int8_t* bytes;    ///< [block][register of weights][j][q][128 bits][token of the four][4]
  float* scales;         ///< [block][tokens]; zeros for those that do not exist
  std::int32_t* excess;  ///< likewise
  std::int64_t blocks;

  static constexpr std::size_t memory_bytes(std::int64_t cols) {
    return static_cast<std::size_t>(quantised_blocks(cols) * block_bytes +
                                    round_up(quantised_blocks(cols) * tokens * 8, line));
  }
  TokenQuads(std::byte* memory, std::int64_t number_of_blocks)
      : bytes(reinterpret_cast<std::int8_t*>(memory)),
        scales(reinterpret_cast<float*>(memory + number_of_blocks * block_bytes)),
        excess(reinterpret_cast<std::int32_t*>(scales + number_of_blocks * tokens)),
        blocks(number_of_blocks) {}

  /// Packs tokens of `cols` columns, 4 Q at most, and zeros behind them.
  void pack(const Tokens<Unit>& from, std::int64_t cols) const {
    for (std::int64_t b = 0; b < blocks; ++b) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        const bool exists = t < from.count;
        scales[b * tokens + t] = exists ? from.scales[from.at(t, b)] : 0.0f;
        excess[b * tokens + t] = exists ? from.excess[from.at(t, b)] : 0;
      }
      const std::int64_t bytes_of_token = round_up(std::min(quantised_block, cols - b * quantised_block), line);
      std::int8_t* to = bytes + b * block_bytes;
      for (std::int64_t i = 0; i < bytes_of_token; i += 4 * L, to += 4 * Q * 4 * L) {
        for (std::int64_t q = 0; q < Q; ++q) {
          typename Unit::Ints square[4];
          for (std::int64_t t = 0; t < 4; ++t) {
            const bool exists = 4 * q + t < from.count;
            square[t] = exists ? Unit::words(Unit::load(from.bytes + from.at(4 * q + t, b) * quantised_block + i))
                               : Unit::same(0);
          }
          transpose_quads(square);
          for (std::int64_t j = 0; j < 4; ++j) Unit::store(to + (j * Q + q) * 4 * L, Unit::bytes(square[j]));
        }
      }
    }
  }
};

}  // namespace detail::dot

HYMBA_NAMESPACE_END

#endif  // HYMBA_DOT
