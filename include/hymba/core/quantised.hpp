// SPDX-License-Identifier: Apache-2.0
//
// Quantised rows: how int8 and int4 weights lie in memory and in files. One order for every architecture: kernels read
// rows as they are, nothing is packed at load.
//
// A row is a number of values and, behind them, their scales; both parts are padded with zeros to whole cache lines.
//
//   int8   values  one signed byte each, rounded up to 64
//          scales  one float for each block of 256 columns
//          weight = scale * value
//
//   int4   values  64 bytes for each group of 128 columns: byte i holds column i in its low half and column 64 + i in
//                  its high half, each 8 above the signed value (-8 to 7)
//          scales  8 bytes for each block of 256 columns: a float, then eight multipliers of 4 bits, one for each 32
//                  columns, the first in the lowest bits
//          weight = scale * multiplier * value
//
// A multiplier times a value fits a signed byte: whoever multiplies int8 multiplies int4 too, with the same scales per
// block of 256.
#pragma once

#include <hymba/core/macros.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

HYMBA_NAMESPACE_BEGIN

/// Columns that share a scale, in every quantised format and in quantised activations.
inline constexpr std::int64_t quantised_block = 256;

namespace detail {

constexpr std::int64_t quantised_blocks(std::int64_t cols) { return (cols + quantised_block - 1) / quantised_block; }
constexpr std::size_t whole_lines(std::int64_t bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); }

/// Numbers smaller than this are stored as zero: the scale of a block of them would be subnormal, and its inverse
/// infinite.
inline constexpr float least_quantised = 0x1p-118f;

/// The largest magnitude of `count` numbers; NaN when one of them is NaN or infinite. A block of such numbers gets NaN
/// as its scale, so that they show in what the row is multiplied to.
inline float largest_magnitude(const float* from, std::int64_t count) {
  float largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(from[i])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::fabs(from[i]));
  }
  return largest;
}

inline float float_at(const std::byte* p) {
  float value = 0;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

}  // namespace detail

/// Rows of signed bytes with a scale for each 256 columns.
struct Int8Rows {
  static constexpr std::size_t value_bytes(std::int64_t cols) { return detail::whole_lines(cols); }
  static constexpr std::size_t scale_bytes = sizeof(float);  ///< per block
  static constexpr std::size_t row_bytes(std::int64_t cols) {
    return value_bytes(cols) + detail::whole_lines(detail::quantised_blocks(cols) * 4);
  }

  static float scale(const std::byte* row, std::int64_t cols, std::int64_t block) {
    return detail::float_at(row + value_bytes(cols) + static_cast<std::size_t>(block) * scale_bytes);
  }
  /// The integer that `scale` of the column's block multiplies.
  static int integer(const std::byte* row, std::int64_t, std::int64_t col) {
    return static_cast<std::int8_t>(std::to_integer<std::uint8_t>(row[col]));
  }

  /// Rounds to the nearest multiple of each block's largest magnitude over 127. `importance`, weights of the columns'
  /// errors, does not matter here.
  static void encode_row(const float* from, std::int64_t cols, void* to, const float* importance = nullptr);
};

/// Rows of four-bit values with a multiplier for each 32 columns and a scale for each 256.
struct Int4Rows {
  static constexpr std::int64_t group = 128;     ///< columns in a cache line of values
  static constexpr std::int64_t sub_block = 32;  ///< columns that share a multiplier
  static constexpr std::size_t value_bytes(std::int64_t cols) {
    return static_cast<std::size_t>((cols + group - 1) / group) * 64;
  }
  static constexpr std::size_t scale_bytes = 8;  ///< per block: the scale and the multipliers
  static constexpr std::size_t row_bytes(std::int64_t cols) {
    return value_bytes(cols) + detail::whole_lines(detail::quantised_blocks(cols) * 8);
  }

  static const std::byte* block_scales(const std::byte* row, std::int64_t cols, std::int64_t block) {
    return row + value_bytes(cols) + static_cast<std::size_t>(block) * scale_bytes;
  }
  static float scale(const std::byte* row, std::int64_t cols, std::int64_t block) {
    return detail::float_at(block_scales(row, cols, block));
  }
  /// The eight multipliers of a block, 4 bits each.
  static std::uint32_t multipliers(const std::byte* row, std::int64_t cols, std::int64_t block) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, block_scales(row, cols, block) + sizeof(float), sizeof(bits));
    return bits;
  }
  static int integer(const std::byte* row, std::int64_t cols, std::int64_t col) {
    const auto byte = std::to_integer<int>(row[col / group * 64 + col % 64]);
    const int value = (col % group < 64 ? byte & 15 : byte >> 4) - 8;
    const auto bits = multipliers(row, cols, col / quantised_block);
    return value * static_cast<int>(bits >> (col % quantised_block / sub_block * 4) & 15u);
  }

  /// Chooses, block by block, the scales of least squared error, each column's error weighted by `importance` [cols]
  /// unless that is null (the mean square of what the column multiplies makes it the error of the product).
  static void encode_row(const float* from, std::int64_t cols, void* to, const float* importance = nullptr);
};

inline void Int8Rows::encode_row(const float* from, std::int64_t cols, void* to, const float*) {
  auto* row = static_cast<std::byte*>(to);
  std::memset(row, 0, row_bytes(cols));
  for (std::int64_t block = 0; block < detail::quantised_blocks(cols); ++block) {
    const std::int64_t first = block * quantised_block, last = std::min(cols, first + quantised_block);
    const float largest = detail::largest_magnitude(from + first, last - first);
    float scale = largest / 127.0f;
    if (largest < detail::least_quantised) scale = 0;
    const float inverse = 127.0f / largest;
    for (std::int64_t i = first; i < last && scale > 0; ++i) {
      const float value = std::clamp(std::nearbyint(from[i] * inverse), -127.0f, 127.0f);
      row[i] = static_cast<std::byte>(static_cast<std::uint8_t>(static_cast<int>(value)));
    }
    std::memcpy(row + value_bytes(cols) + static_cast<std::size_t>(block) * scale_bytes, &scale, sizeof(scale));
  }
}

/// at[m][v]: the integer that the half byte v stands for under multiplier m, and `Offset` more, as a byte.
template <int Offset>
struct Int4Products {
  alignas(64) std::int8_t at[16][16] = {};
  constexpr Int4Products() {
    for (int m = 0; m < 16; ++m) {
      for (int v = 0; v < 16; ++v) at[m][v] = static_cast<std::int8_t>(static_cast<std::uint8_t>(m * (v - 8) + Offset));
    }
  }
};

namespace detail {

/// 32 weights and how much the error of each counts.
struct Int4Fit {
  std::array<float, Int4Rows::sub_block> weight{}, importance{};

  static float rounded(float w, float inverse) { return std::clamp(std::nearbyint(w * inverse), -8.0f, 7.0f); }

  /// The weighted squared error of rounding to multiples of `step`.
  float error(float step) const {
    const float inverse = step > 0 ? 1.0f / step : 0.0f;
    float sum = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const float e = weight[i] - step * rounded(weight[i], inverse);
      sum += importance[i] * e * e;
    }
    return sum;
  }
  /// A step of nearly the least error: the best of several divisions of the largest magnitude, then the step that fits
  /// its integers best.
  float step() const {
    float largest = 0;
    for (const float w : weight) largest = std::max(largest, std::fabs(w));
    if (largest < least_quantised) return 0;
    float best = 0, least = 0;
    for (int i = 0; i < 14; ++i) {
      const float candidate = largest / (5.5f + 0.25f * static_cast<float>(i));
      const float e = error(candidate);
      if (i == 0 || e < least) best = candidate, least = e;
    }
    float along = 0, square = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const float q = rounded(weight[i], 1.0f / best);
      along += importance[i] * weight[i] * q;
      square += importance[i] * q * q;
    }
    const float refined = square > 0 ? along / square : best;
    return refined > 0 && error(refined) < least ? refined : best;
  }
};

}  // namespace detail

inline void Int4Rows::encode_row(const float* from, std::int64_t cols, void* to, const float* importance) {
  constexpr std::size_t subs = quantised_block / sub_block;
  auto* row = static_cast<std::byte*>(to);
  std::memset(row, 0, row_bytes(cols));
  std::fill_n(row, value_bytes(cols), std::byte{0x88});  // padding: zero
  for (std::int64_t block = 0; block < detail::quantised_blocks(cols); ++block) {
    const std::int64_t first = block * quantised_block, last = std::min(cols, first + quantised_block);
    std::array<detail::Int4Fit, subs> fits{};
    std::array<float, subs> steps{};
    const bool finite = std::isfinite(detail::largest_magnitude(from + first, last - first));
    float largest = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    for (std::size_t s = 0; s < subs && finite; ++s) {
      detail::Int4Fit& fit = fits[s];
      float total = 0;
      for (std::int64_t i = 0; i < sub_block; ++i) {
        const std::int64_t col = first + static_cast<std::int64_t>(s) * sub_block + i;
        if (col >= last) continue;
        fit.weight[static_cast<std::size_t>(i)] = from[col];
        fit.importance[static_cast<std::size_t>(i)] = importance != nullptr ? importance[col] : 1.0f;
        total += fit.importance[static_cast<std::size_t>(i)];
      }
      if (!(total > 0)) fit.importance.fill(1.0f);
      steps[s] = fit.step();
      largest = std::max(largest, steps[s]);
    }
    const float scale = largest / 15.0f;
    std::uint32_t multipliers = 0;
    for (std::size_t s = 0; s < subs && scale > 0; ++s) {
      if (steps[s] == 0) continue;
      const int near = static_cast<int>(steps[s] / scale);
      int chosen = 0;
      float least = 0;
      for (int m = std::max(1, near - 1); m <= std::min(15, near + 2); ++m) {
        const float e = fits[s].error(scale * static_cast<float>(m));
        if (chosen == 0 || e < least) chosen = m, least = e;
      }
      multipliers |= static_cast<std::uint32_t>(chosen) << (4 * s);
      const float inverse = 1.0f / (scale * static_cast<float>(chosen));
      for (std::int64_t i = 0; i < sub_block; ++i) {
        const std::int64_t col = first + static_cast<std::int64_t>(s) * sub_block + i;
        if (col >= last) break;
        const int value = static_cast<int>(detail::Int4Fit::rounded(from[col], inverse)) + 8;
        std::byte& at = row[col / group * 64 + col % 64];
        at = col % group < 64 ? (at & std::byte{0xf0}) | static_cast<std::byte>(value)
                              : (at & std::byte{0x0f}) | static_cast<std::byte>(value << 4);
      }
    }
    std::byte* scales = row + value_bytes(cols) + static_cast<std::size_t>(block) * scale_bytes;
    std::memcpy(scales, &scale, sizeof(scale));
    std::memcpy(scales + sizeof(scale), &multipliers, sizeof(multipliers));
  }
}

HYMBA_NAMESPACE_END
