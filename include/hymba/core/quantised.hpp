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
//                  its high half, each a number v from 0 to 15
//          scales  a float for the row, then a code of 8 bits for each 32 columns: how large its largest number is in
//                  the upper half, m, and where its zero lies in the lower half, z
//          weight = scale * Int4Levels::level(code, v)
//
// A row may hold what kernels/rotation.hpp makes of the weights; that is said of the matrix, not here.
//
// The sixteen levels of a code are evenly spaced and rounded to signed bytes: whoever multiplies int8 multiplies int4
// too, after looking 16 bytes up in a table of 4 KB.
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
  /// Divides all numbers of a row by a power of two.
  static void divide_row(std::byte* row, std::int64_t cols, float by) {
    for (std::int64_t block = 0; block < detail::quantised_blocks(cols); ++block) {
      const float divided = scale(row, cols, block) / by;
      std::memcpy(row + value_bytes(cols) + static_cast<std::size_t>(block) * scale_bytes, &divided, sizeof(divided));
    }
  }
  /// The integer that `scale` of the column's block multiplies.
  static int integer(const std::byte* row, std::int64_t, std::int64_t col) {
    return static_cast<std::int8_t>(std::to_integer<std::uint8_t>(row[col]));
  }

  class Encoder;
  /// Rounds to the nearest multiple of each block's largest magnitude over 127. `importance`, weights of the columns'
  /// errors, does not matter here.
  static void encode_row(const float* from, std::int64_t cols, void* to, const float* importance = nullptr);
};

/// The numbers that four bits stand for, 16 for each code.
struct Int4Levels {
  static constexpr int codes = 256;
  static constexpr int zero_code = 0x0a;  ///< smallest levels, of which number 7 is zero

  /// Code c = 16 m + z spans 127 (m + 1) / 16 to the side where it reaches farther; its levels are centred z - 8
  /// quarters of a step from zero.
  static constexpr float largest(int code) { return 127.0f / 16.0f * static_cast<float>(code / 16 + 1); }
  static constexpr float centre(int code) { return 0.25f * static_cast<float>(code % 16 - 8); }  ///< in steps
  static constexpr float step(int code) {
    const float c = centre(code);
    return largest(code) / (7.5f + (c < 0 ? -c : c));
  }
  /// From -127 to 127.
  static constexpr int level(int code, int v) {
    const float at = step(code) * (static_cast<float>(v) - 7.5f + centre(code));
    return static_cast<int>(at < 0 ? at - 0.5f : at + 0.5f);
  }
};

/// at[code][v]: the level, and `Offset` more, as a byte.
template <int Offset>
struct Int4Table {
  alignas(64) std::int8_t at[Int4Levels::codes][16] = {};
  constexpr Int4Table() {
    for (int code = 0; code < Int4Levels::codes; ++code) {
      for (int v = 0; v < 16; ++v) {
        at[code][v] = static_cast<std::int8_t>(static_cast<std::uint8_t>(Int4Levels::level(code, v) + Offset));
      }
    }
  }
};
template <int Offset>
inline constexpr Int4Table<Offset> int4_table{};

/// Rows of four-bit values with a code for each 32 columns and a scale.
struct Int4Rows {
  static constexpr std::int64_t group = 128;     ///< columns in a cache line of values
  static constexpr std::int64_t sub_block = 32;  ///< columns that share a code
  static constexpr std::size_t value_bytes(std::int64_t cols) {
    return static_cast<std::size_t>((cols + group - 1) / group) * 64;
  }
  static constexpr std::size_t scale_bytes = 0;  ///< per block: the row's scale serves all
  static constexpr std::size_t row_bytes(std::int64_t cols) {
    return value_bytes(cols) +
           detail::whole_lines(static_cast<std::int64_t>(sizeof(float)) + 8 * detail::quantised_blocks(cols));
  }

  static float scale(const std::byte* row, std::int64_t cols, std::int64_t) {
    return detail::float_at(row + value_bytes(cols));
  }
  /// The codes of a block, one for each 32 columns.
  static const std::byte* codes(const std::byte* row, std::int64_t cols, std::int64_t block) {
    return row + value_bytes(cols) + sizeof(float) + static_cast<std::size_t>(block) * (quantised_block / sub_block);
  }
  static int code(const std::byte* row, std::int64_t cols, std::int64_t col) {
    return std::to_integer<int>(codes(row, cols, 0)[col / sub_block]);
  }
  /// The four bits of a column.
  static int half(const std::byte* row, std::int64_t col) {
    const auto byte = std::to_integer<int>(row[col / group * 64 + col % 64]);
    return col % group < 64 ? byte & 15 : byte >> 4;
  }
  static int integer(const std::byte* row, std::int64_t cols, std::int64_t col) {
    return int4_table<0>.at[code(row, cols, col)][half(row, col)];
  }

  class Encoder;
  /// Chooses scale and codes of least squared error, each column's error weighted by `importance` [cols] unless that is
  /// null (the mean square of what the column multiplies makes it the error of the product).
  static void encode_row(const float* from, std::int64_t cols, void* to, const float* importance = nullptr);
};

/// Writes one row from left to right, block by block; whoever wants to may choose each number by what the ones before
/// became.
class Int8Rows::Encoder {
 public:
  static constexpr std::int64_t group = quantised_block;  ///< columns that are begun together

  /// `from` [cols] is what the row will be, nearly; `to` has row_bytes(cols).
  Encoder(const float* /*from*/, std::int64_t cols, void* to, const float* /*importance*/ = nullptr)
      : row_(static_cast<std::byte*>(to)), cols_(cols) {
    std::memset(row_, 0, row_bytes(cols));
  }
  /// Chooses the scale of the columns from `first`, a multiple of 256, for these numbers.
  void begin(std::int64_t first, const float* from) {
    const float largest = detail::largest_magnitude(from, std::min(quantised_block, cols_ - first));
    scale_ = largest < detail::least_quantised ? 0.0f : largest / 127.0f;
    inverse_ = scale_ > 0 ? 127.0f / largest : 0.0f;
    std::memcpy(row_ + value_bytes(cols_) + static_cast<std::size_t>(first / quantised_block) * scale_bytes, &scale_,
                sizeof(scale_));
  }
  /// Goes back to the columns from `first`, to change some of them under the scale that they have.
  void resume(std::int64_t first) {
    scale_ = scale(row_, cols_, first / quantised_block);
    inverse_ = scale_ > 0 ? 1.0f / scale_ : 0.0f;
  }
  /// Writes column `col` of what was begun; returns the number that it became.
  float put(std::int64_t col, float value) {
    if (!(inverse_ > 0)) return scale_;  // zero, or NaN
    const float nearest = std::clamp(std::nearbyint(value * inverse_), -127.0f, 127.0f);
    row_[col] = static_cast<std::byte>(static_cast<std::uint8_t>(static_cast<int>(nearest)));
    return nearest * scale_;
  }

 private:
  std::byte* row_;
  std::int64_t cols_;
  float scale_ = 0, inverse_ = 0;
};

namespace detail {

/// 32 weights over the scale of their row, and how much the error of each counts.
struct Int4Fit {
  static constexpr std::size_t count = Int4Rows::sub_block;
  std::array<float, count> weight{}, importance{};

  static float position(float weight, int code) {
    return std::clamp(std::nearbyint(weight / Int4Levels::step(code) + (7.5f - Int4Levels::centre(code))), 0.0f, 15.0f);
  }
  /// The weighted squared error of rounding to the levels of a code.
  float error(int code) const {
    const float step = Int4Levels::step(code), inverse = 1.0f / step, zero = 7.5f - Int4Levels::centre(code);
    std::array<float, 16> sums{};  // several sums: compilers then use vectors
    for (std::size_t i = 0; i < count; i += sums.size()) {
      for (std::size_t j = 0; j < sums.size(); ++j) {
        const float w = weight[i + j];
        const float v = std::min(std::max(std::nearbyint(w * inverse + zero), 0.0f), 15.0f);
        const float e = w - std::nearbyint(step * (v - zero));
        sums[j] += importance[i + j] * e * e;
      }
    }
    float sum = 0;
    for (const float s : sums) sum += s;
    return sum;
  }
  struct Choice {
    int code;
    float error;
  };
  /// The code of least error among those that may be: for every zero, the steps that reach the farthest weight or clip
  /// it a little; zeros for which that takes steps a third wider than the best one's are left out.
  Choice best() const {
    float low = 0, high = 0;
    for (const float w : weight) low = std::min(low, w), high = std::max(high, w);
    if (low == 0 && high == 0) return {Int4Levels::zero_code, 0.0f};
    std::array<float, 16> steps{};  // that reach the farthest weight
    float narrowest = std::numeric_limits<float>::max();
    for (int z = 0; z < 16; ++z) {
      const float c = Int4Levels::centre(z);
      const float step = std::max(high / (7.5f + c), -low / (7.5f - c));
      steps[static_cast<std::size_t>(z)] = step;
      narrowest = std::min(narrowest, step);
    }
    Choice chosen{-1, 0.0f};
    for (int z = 0; z < 16; ++z) {
      const float step = steps[static_cast<std::size_t>(z)];
      if (step > narrowest * (4.0f / 3.0f)) continue;
      const int reach = std::clamp(static_cast<int>(std::ceil(step / Int4Levels::step(z))) - 1, 0, 15);
      for (int m = std::max(0, reach - 2 - reach / 4); m <= reach; ++m) {
        const float e = error(16 * m + z);
        if (chosen.code < 0 || e < chosen.error) chosen = {16 * m + z, e};
      }
    }
    return chosen;
  }
};

}  // namespace detail

/// As Int8Rows::Encoder.
class Int4Rows::Encoder {
 public:
  static constexpr std::int64_t group = sub_block;

  Encoder(const float* from, std::int64_t cols, void* to, const float* importance = nullptr)
      : row_(static_cast<std::byte*>(to)), cols_(cols), importance_(importance) {
    std::memset(row_, 0, row_bytes(cols));
    std::fill_n(row_, value_bytes(cols), std::byte{0x77});  // padding: zero
    std::fill_n(row_ + value_bytes(cols) + sizeof(scale_), 8 * detail::quantised_blocks(cols),
                std::byte{Int4Levels::zero_code});
    const float largest = detail::largest_magnitude(from, cols);
    scale_ = largest < detail::least_quantised ? 0.0f : largest / 127.0f;
    if (scale_ > 0) {
      // A finer scale clips the largest weights, which pays where most sub-blocks have none as large.
      const float whole = scale_;
      double least = 0;
      for (const float part : {1.0f, 0.93f, 0.87f}) {
        double error = 0;
        for (std::int64_t first = 0; first < cols; first += sub_block) {
          error += static_cast<double>(fit(first, from + first, whole * part).best().error);
        }
        error *= static_cast<double>(part) * static_cast<double>(part);
        if (part == 1.0f || error < least) scale_ = whole * part, least = error;
      }
    }
    std::memcpy(row_ + value_bytes(cols), &scale_, sizeof(scale_));
  }
  /// Chooses the code of the columns from `first`, a multiple of 32, for these numbers.
  void begin(std::int64_t first, const float* from) {
    if (!(scale_ > 0)) return;
    code_ = fit(first, from, scale_).best().code;
    row_[value_bytes(cols_) + sizeof(scale_) + static_cast<std::size_t>(first / sub_block)] =
        static_cast<std::byte>(code_);
  }
  void resume(std::int64_t first) { code_ = code(row_, cols_, first); }
  float put(std::int64_t col, float value) {
    if (!(scale_ > 0)) return scale_;
    const auto v = static_cast<int>(detail::Int4Fit::position(value / scale_, code_));
    std::byte& at = row_[col / Int4Rows::group * 64 + col % 64];
    at = col % Int4Rows::group < 64 ? (at & std::byte{0xf0}) | static_cast<std::byte>(v)
                                    : (at & std::byte{0x0f}) | static_cast<std::byte>(v << 4);
    return static_cast<float>(int4_table<0>.at[code_][v]) * scale_;
  }

 private:
  detail::Int4Fit fit(std::int64_t first, const float* from, float scale) const {
    detail::Int4Fit out;
    const float inverse = 1.0f / scale;
    float total = 0;
    const auto count = static_cast<std::size_t>(std::min(sub_block, cols_ - first));
    for (std::size_t at = 0; at < count; ++at) {
      out.weight[at] = from[at] * inverse;
      out.importance[at] = importance_ != nullptr ? importance_[static_cast<std::size_t>(first) + at] : 1.0f;
      total += out.importance[at];
    }
    if (!(total > 0)) std::fill_n(out.importance.begin(), count, 1.0f);
    return out;
  }

  std::byte* row_;
  std::int64_t cols_;
  const float* importance_;
  float scale_ = 0;
  int code_ = Int4Levels::zero_code;
};

namespace detail {
template <class Rows>
void encode_row(const float* from, std::int64_t cols, void* to, const float* importance) {
  using Encoder = typename Rows::Encoder;
  Encoder encoder(from, cols, to, importance);
  for (std::int64_t first = 0; first < cols; first += Encoder::group) {
    encoder.begin(first, from + first);
    for (std::int64_t i = first; i < std::min(cols, first + Encoder::group); ++i) encoder.put(i, from[i]);
  }
}
}  // namespace detail

inline void Int8Rows::encode_row(const float* from, std::int64_t cols, void* to, const float* importance) {
  detail::encode_row<Int8Rows>(from, cols, to, importance);
}
inline void Int4Rows::encode_row(const float* from, std::int64_t cols, void* to, const float* importance) {
  detail::encode_row<Int4Rows>(from, cols, to, importance);
}

HYMBA_NAMESPACE_END
