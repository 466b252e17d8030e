// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/quantised.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/kernels/quantised_rows.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba;
using hymba_test::Random;

namespace {

using Int8 = weight_format<Weights::int8>;
using Int4 = weight_format<Weights::int4>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Exactly the bytes of one row, so that a sanitizer sees any step outside; full of ones before it is encoded.
template <class Format>
std::vector<std::byte> encoded(const std::vector<float>& from, const float* importance = nullptr) {
  const auto cols = static_cast<std::int64_t>(from.size());
  std::vector<std::byte> row(Format::row_bytes(cols), std::byte{0xff});
  Format::encode_row(from.data(), cols, row.data(), importance);
  return row;
}
template <class Format>
double stored(const std::vector<std::byte>& row, std::int64_t cols, std::int64_t col) {
  return Format::template number<double>(row.data(), cols, col);
}
template <class Format>
double squared_error(const std::vector<float>& from, const std::vector<std::byte>& row, const float* importance) {
  const auto cols = static_cast<std::int64_t>(from.size());
  double sum = 0;
  for (std::int64_t i = 0; i < cols; ++i) {
    const double e = stored<Format>(row, cols, i) - static_cast<double>(from[at(i)]);
    sum += (importance != nullptr ? static_cast<double>(importance[i]) : 1.0) * e * e;
  }
  return sum;
}
double largest(const std::vector<float>& from, std::int64_t first, std::int64_t count) {
  double most = 0;
  const std::int64_t last = std::min<std::int64_t>(static_cast<std::int64_t>(from.size()), first + count);
  for (std::int64_t i = first; i < last; ++i) most = std::max(most, std::fabs(static_cast<double>(from[at(i)])));
  return most;
}

/// Rows of every kind that a format must take, of every length.
template <class Body>
void for_every_row(Body&& body) {
  Random random(7);
  for (std::int64_t cols = 1; cols <= 600; ++cols) {
    std::vector<float> row = random.vector(cols, std::exp2(random.uniform(-20, 20)));
    switch (cols % 5) {
      case 0:
        break;
      case 1:
        std::fill(row.begin(), row.end(), row[0]);
        break;  // all the same
      case 2:
        row[at(random.integer(0, cols - 1))] *= 1000.0f;
        break;  // one outlier
      case 3:
        std::fill_n(row.begin(), std::min<std::int64_t>(cols, 300), 0.0f);
        break;  // a block of zeros
      default:
        for (float& v : row) v = static_cast<float>(random.integer(-8, 7));
        break;  // few values
    }
    body(row, cols);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("quantised: rows are whole cache lines", Format, Int8, Int4) {
  std::size_t before = 0;
  for (std::int64_t cols = 1; cols <= 6000; ++cols) {
    const std::size_t bytes = Format::row_bytes(cols);
    CHECK(bytes % 64 == 0);
    CHECK(bytes >= before);
    before = bytes;
  }
  CHECK(Int8::row_bytes(1600) == 1600 + 64);
  CHECK(Int4::row_bytes(1600) == 832 + 64);
}

TEST_CASE("quantised: an int8 number is off by half its scale at most") {
  for_every_row([](const std::vector<float>& from, std::int64_t cols) {
    const std::vector<std::byte> row = encoded<Int8>(from);
    hymba_test::Worst worst;
    for (std::int64_t i = 0; i < cols; ++i) {
      const std::int64_t block = i / quantised_block;
      const double scale = static_cast<double>(Int8::scale(row.data(), cols, block));
      const double most = largest(from, block * quantised_block, quantised_block);
      CHECK(std::fabs(scale - most / 127.0) <= hymba_test::unit_roundoff * most / 127.0);
      // Half a step; and the roundings of the scale, of its inverse and of the product with it, each of which may move
      // what is rounded by 127 units of roundoff.
      worst.add(stored<Int8>(row, cols, i), static_cast<double>(from[at(i)]),
                scale * (0.5 + 4 * 127 * hymba_test::unit_roundoff), cols, i);
    }
    const std::string text = worst.text();
    INFO(text);
    CHECK(worst.ok());
  });
}

TEST_CASE("quantised: the levels of every int4 code") {
  for (int code = 0; code < Int4Levels::codes; ++code) {
    const double largest = 127.0 * (code / 16 + 1) / 16, step = static_cast<double>(Int4Levels::step(code));
    int most = 0;
    for (int v = 0; v < 16; ++v) {
      const int level = Int4Levels::level(code, v);
      most = std::max(most, std::abs(level));
      CHECK(std::fabs(level - step * (v - 7.5 + 0.25 * (code % 16 - 8))) <= 0.5001);
      CHECK(int4_table<0>.at[code][v] == level);
      CHECK(static_cast<std::uint8_t>(int4_table<128>.at[code][v]) == level + 128);
    }
    CHECK(std::fabs(most - largest) <= 0.5001);
  }
  CHECK(Int4Levels::level(Int4Levels::zero_code, 7) == 0);
}

TEST_CASE("quantised: an int4 number is the nearest that its code permits, and the codes are good ones") {
  for_every_row([](const std::vector<float>& from, std::int64_t cols) {
    const std::vector<std::byte> row = encoded<Int4>(from);
    const double scale = static_cast<double>(Int4::scale(row.data(), cols, 0));
    for (std::int64_t first = 0; first < cols; first += Int4::sub_block) {
      const std::int64_t last = std::min(cols, first + Int4::sub_block);
      const int code = Int4::code(row.data(), cols, first);
      double squares = 0;
      for (std::int64_t i = first; i < last; ++i) {
        const double w = static_cast<double>(from[at(i)]), e = stored<Int4>(row, cols, i) - w;
        squares += e * e;
        double nearest = std::fabs(e);
        for (int v = 0; v < 16; ++v) nearest = std::min(nearest, std::fabs(scale * Int4Levels::level(code, v) - w));
        // The number is rounded to evenly spaced places, whose levels are within half a byte of them.
        CHECK(std::fabs(e) <= nearest + scale * 1.001);
      }
      // Levels that reach the largest magnitude on both sides are among those tried (rounded up to a sixteenth of the
      // row's, and to bytes): half a step of them is the most that a number is off then, and more than the root of the
      // mean square with the code chosen. A row whose scale is finer clips: what that costs, others gain at least.
      const double most = largest(from, first, Int4::sub_block), row_most = largest(from, 0, cols);
      const double bound = (most + row_most / 16.0) / 15.0 + scale;
      INFO("cols ", cols, " sub-block at ", first);
      if (scale >= row_most / 127.0 * 0.999) {
        CHECK(squares <= static_cast<double>(last - first) * bound * bound * (1 + 1e-4));
      }
    }
  });
}

TEST_CASE("quantised: int4 beats rounding to the largest magnitude, by columns that count") {
  Random random(3);
  double ours = 0, plain = 0;
  for (int round = 0; round < 20; ++round) {
    const std::vector<float> from = random.vector(512);
    ours += squared_error<Int4>(from, encoded<Int4>(from), nullptr);
    for (std::int64_t first = 0; first < 512; first += Int4::sub_block) {
      const double step = largest(from, first, Int4::sub_block) / 7.0;
      for (std::int64_t i = first; i < first + Int4::sub_block; ++i) {
        const double w = static_cast<double>(from[at(i)]), e = w - step * std::nearbyint(w / step);
        plain += e * e;
      }
    }
  }
  CHECK(ours < plain);

  // A row's scale and its codes are chosen one after the other: now and then a row turns out a little worse.
  double sum = 0;
  constexpr int rounds = 50;
  for (int round = 0; round < rounds; ++round) {
    const std::int64_t cols = random.integer(1, 600);
    const std::vector<float> from = random.vector(cols);
    std::vector<float> importance(from.size());
    for (float& v : importance) v = std::exp(3.0f * random.normal());
    const double weighted = squared_error<Int4>(from, encoded<Int4>(from, importance.data()), importance.data());
    const double unweighted = squared_error<Int4>(from, encoded<Int4>(from), importance.data());
    sum += unweighted > 0 ? weighted / unweighted : 1.0;
    // Importance does not matter to int8, and columns that all count alike, or not at all, are as without it.
    CHECK(encoded<Int8>(from, importance.data()) == encoded<Int8>(from));
    for (const float all : {1.0f, 0.0f}) {
      std::fill(importance.begin(), importance.end(), all);
      CHECK(encoded<Int4>(from, importance.data()) == encoded<Int4>(from));
    }
  }
  CHECK(sum < 0.8 * rounds);
}

TEST_CASE_TEMPLATE("quantised: zeros are zeros, and so is what is smaller than any scale", Format, Int8, Int4) {
  for (const std::int64_t cols : {1, 63, 64, 100, 256, 257, 600}) {
    for (const float tiny : {0.0f, -0.0f, 1e-45f, -1e-38f, 2e-36f}) {
      std::vector<float> from(at(cols), tiny);
      from[0] = 0.0f;
      const std::vector<std::byte> row = encoded<Format>(from);
      CHECK(row == encoded<Format>(std::vector<float>(at(cols), 0.0f)));
      for (std::int64_t i = 0; i < cols; ++i) CHECK(stored<Format>(row, cols, i) == 0.0);
    }
  }
}

TEST_CASE_TEMPLATE("quantised: the extremes of floats", Format, Int8, Int4) {
  for (const float size : {1e-35f, 1e-30f, 1e-20f, 1e20f, 3e38f}) {
    std::vector<float> from(300);
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = size * (static_cast<float>(i % 15) / 14.0f);
    const std::vector<std::byte> row = encoded<Format>(from);
    for (std::int64_t i = 0; i < 300; ++i) {
      const double e = stored<Format>(row, 300, i) - static_cast<double>(from[at(i)]);
      CHECK(std::fabs(e) <= static_cast<double>(size) * (std::is_same_v<Format, Int8> ? 0.5 / 126.0 : 0.2));
    }
  }
}

TEST_CASE_TEMPLATE("quantised: what is not finite shows in all that shares its scale, and nowhere else", Format, Int8,
                   Int4) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -INFINITY}) {
    std::vector<float> from(600, 1.0f);
    from[300] = bad;
    const std::vector<std::byte> row = encoded<Format>(from);
    for (std::int64_t i = 0; i < 600; ++i) {
      const bool shares = std::is_same_v<Format, Int4> || (i >= 256 && i < 512);
      CHECK(std::isnan(stored<Format>(row, 600, i)) == shares);
    }
  }
}

TEST_CASE_TEMPLATE("quantised: padding is always the same", Format, Int8, Int4) {
  for_every_row([](const std::vector<float>& from, std::int64_t cols) {
    const std::vector<std::byte> row = encoded<Format>(from);
    // Columns behind the last, up to where the values end, by what the format says of a row so long.
    const std::int64_t blocks = (cols + quantised_block - 1) / quantised_block;
    const auto values = static_cast<std::int64_t>(Format::value_bytes(cols));
    std::int64_t used = values;
    if constexpr (std::is_same_v<Format, Int8>) {
      for (std::int64_t i = cols; i < values; ++i) CHECK(row[at(i)] == std::byte{0});
      used += blocks * 4;
    } else {
      for (std::int64_t i = cols; i < values * 2; ++i) CHECK(Int4::half(row.data(), i) == 7);
      const std::int64_t codes = (cols + Int4::sub_block - 1) / Int4::sub_block;
      for (std::int64_t i = codes; i < blocks * 8; ++i) {
        CHECK(std::to_integer<int>(row[at(values + 4 + i)]) == Int4Levels::zero_code);
      }
      used += 4 + blocks * 8;
    }
    for (std::int64_t i = used; i < static_cast<std::int64_t>(row.size()); ++i) CHECK(row[at(i)] == std::byte{0});
  });
}

namespace {
/// Every way to read numbers agrees: the plain one, whole rows, and vectors of part of a row.
template <Weights W>
void reads_alike() {
  using A = xsimd::default_arch;
  using Format = weight_format<W>;
  constexpr std::int64_t L = simd::lanes<A>;
  for_every_row([](const std::vector<float>& from, std::int64_t cols) {
    const std::vector<std::byte> row = encoded<Format>(from);
    std::vector<float> whole(from.size());
    Format::decode_row(row.data(), cols, whole.data());
    for (std::int64_t i = 0; i < cols; ++i) {
      const float exact = static_cast<float>(stored<Format>(row, cols, i));  // one rounding: the product is exact
      CHECK(whole[at(i)] == exact);
    }
    for (std::int64_t first = 0; first < cols; first += detail::quantised_line * (1 + cols % 3)) {
      for (const std::int64_t count : {cols - first, std::min<std::int64_t>(cols - first, 129), std::int64_t{1}}) {
        for (const std::int64_t gap : {0, 3}) {
          const std::int64_t vectors = (count + L - 1) / L, stride = L + gap;
          std::vector<float> got(at((vectors - 1) * stride + L), 777.0f);
          detail::decode_columns<A, W>(row.data(), cols, first, count, got.data(), stride);
          std::int64_t wrong = 0;
          for (std::int64_t i = 0; i < count; ++i) wrong += got[at(i / L * stride + i % L)] != whole[at(first + i)];
          for (std::int64_t v = 0; v + 1 < vectors; ++v) {
            for (std::int64_t i = 0; i < gap; ++i) wrong += got[at(v * stride + L + i)] != 777.0f;
          }
          CHECK(wrong == 0);
        }
      }
    }
  });
}
}  // namespace

TEST_CASE("quantised: rows decoded by vectors are the numbers of the format") {
  SUBCASE("int8") { reads_alike<Weights::int8>(); }
  SUBCASE("int4") { reads_alike<Weights::int4>(); }
}
