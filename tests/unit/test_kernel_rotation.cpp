// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/rotation.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba;
using hymba_test::Random;

namespace {

std::vector<float> normal(std::int64_t count, std::uint32_t seed) {
  Random random(seed);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& v : out) v = random.normal();
  return out;
}

/// The pieces of a row of `cols` numbers: 256 as often as that goes, then its binary digits.
std::vector<std::int64_t> pieces(std::int64_t cols) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(cols / 256), 256);
  for (std::int64_t n = 128; n > 0; n /= 2) {
    if ((cols & n) != 0) out.push_back(n);
  }
  return out;
}

/// By definition: element (i, j) of a Hadamard matrix of n rows is 1, or -1 where i and j share an odd number of bits.
std::vector<double> by_definition(const std::vector<float>& row) {
  std::vector<double> out(row.size());
  std::size_t first = 0;
  for (const std::int64_t n : pieces(static_cast<std::int64_t>(row.size()))) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < count; ++j) {
        sum += std::popcount(i & j) % 2 == 0 ? static_cast<double>(row[first + j]) : -static_cast<double>(row[first + j]);
      }
      out[first + i] = sum / std::sqrt(static_cast<double>(n));
    }
    first += count;
  }
  REQUIRE(first == row.size());
  return out;
}

double largest(const std::vector<float>& row) {
  double most = 0;
  for (const float v : row) most = std::max(most, std::fabs(static_cast<double>(v)));
  return most;
}

const std::vector<std::int64_t> sizes = [] {
  std::vector<std::int64_t> out(300);
  std::iota(out.begin(), out.end(), 1);
  out.insert(out.end(), {511, 512, 513, 576, 767, 1023, 1600, 3200, 5504});
  return out;
}();

}  // namespace

TEST_CASE("rotation: blocks of a Hadamard matrix, in double and in single precision") {
  for (const std::int64_t cols : sizes) {
    const std::vector<float> row = normal(cols, static_cast<std::uint32_t>(cols));
    const std::vector<double> want = by_definition(row);
    std::vector<double> wide(row.begin(), row.end());
    reference::rotate(wide.data(), cols);
    std::vector<float> single = row;
    reference::rotate(single.data(), cols);
    hymba_test::Worst in_double, in_single;
    for (std::int64_t i = 0; i < cols; ++i) {
      const auto at = static_cast<std::size_t>(i);
      // Eight additions and a product behind each number, of terms whose magnitudes sum to 256 / 16 times the largest.
      const double magnitude = 16 * largest(row);
      in_double.add(wide[at], want[at], 600 * 0x1p-53 * magnitude, 0, i);
      in_single.add(static_cast<double>(single[at]), want[at], hymba_test::gamma(10) * magnitude, 0, i);
    }
    INFO(cols, " columns: ", in_double.text(), "; ", in_single.text());
    CHECK(in_double.ok());
    CHECK(in_single.ok());
  }
}

TEST_CASE("rotation: vectors give the bits of the plain loops, and leave what is behind alone") {
  for (const std::int64_t cols : sizes) {
    std::vector<float> want = normal(cols + 1, 7), got = want;
    reference::rotate(want.data(), cols);
    detail::rotate(got.data(), cols);
    CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("rotation: its own inverse, and lengths stay") {
  for (const std::int64_t cols : sizes) {
    const std::vector<float> row = normal(cols, 3);
    std::vector<double> turned(row.begin(), row.end());
    reference::rotate(turned.data(), cols);
    double before = 0, after = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      before += static_cast<double>(row[i]) * static_cast<double>(row[i]);
      after += turned[i] * turned[i];
    }
    CHECK(std::fabs(after - before) <= 1e-13 * before);
    reference::rotate(turned.data(), cols);
    double off = 0;
    for (std::size_t i = 0; i < row.size(); ++i) off = std::max(off, std::fabs(turned[i] - static_cast<double>(row[i])));
    CHECK(off <= 1e-13 * largest(row));
  }
}

TEST_CASE("rotation: one large number becomes many small ones") {
  for (const std::int64_t at : {0, 1, 17, 255}) {
    std::vector<float> row(256);
    row[static_cast<std::size_t>(at)] = 1600.0f;
    detail::rotate(row.data(), 256);
    for (const float v : row) CHECK(std::fabs(v) == 100.0f);
  }
}

TEST_CASE("rotation: what is not finite shows in all of its piece, and only there") {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> row = normal(600, 1);
    row[300] = bad;
    detail::rotate(row.data(), 600);
    for (std::size_t i = 0; i < row.size(); ++i) CHECK(std::isfinite(row[i]) == (i < 256 || i >= 512));
  }
}
