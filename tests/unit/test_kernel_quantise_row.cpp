// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/quantise_row.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

using namespace hymba;

namespace {

struct Row {
  RowScale scale;
  std::vector<std::int8_t> bytes;
};

/// The row as both paths give it, which is the same; a byte behind the last one is left alone.
Row quantised(const std::vector<float>& from) {
  const auto n = static_cast<std::int64_t>(from.size());
  Row plain{{}, std::vector<std::int8_t>(from.size() + 1, 99)}, fast = plain;
  plain.scale = kernel_for<op::QuantiseRow, arch::scalar>::run(from.data(), n, plain.bytes.data());
  fast.scale = kernel_for<op::QuantiseRow, arch::best>::run(from.data(), n, fast.bytes.data());
  CHECK(plain.scale.bits == fast.scale.bits);
  CHECK(plain.bytes == fast.bytes);
  CHECK(plain.bytes.back() == 99);
  plain.bytes.pop_back();
  return plain;
}

double number(const Row& row, std::size_t i) {
  return static_cast<double>(static_cast<float>(row.scale)) * static_cast<double>(row.bytes[i]);
}

}  // namespace

TEST_CASE("quantise row: no number is off by more than half a scale, whatever the width and the magnitude") {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (std::size_t n = 0; n < 140; ++n) {
    for (const float magnitude : {1.0f, 3e-30f, 4e37f, 0x1p-116f}) {
      std::vector<float> from(n);
      for (float& x : from) x = magnitude * std::fmin(4.0f, std::fmax(-4.0f, normal(random)));
      const Row row = quantised(from);
      const double scale = static_cast<double>(static_cast<float>(row.scale));
      bool near = true;
      double largest = 0;
      for (std::size_t i = 0; i < n; ++i) {
        // The product with the inverse is rounded twice: a tie may go to the other side.
        near = near && std::fabs(number(row, i) - static_cast<double>(from[i])) <= scale * (0.5 + 256 * 0x1p-24);
        near = near && row.bytes[i] >= -127;
        largest = std::fmax(largest, std::fabs(static_cast<double>(from[i])));
      }
      CAPTURE(n);
      CAPTURE(magnitude);
      if (largest < 0x1p-118) continue;  // zeros
      CHECK(near);
      CHECK(std::fabs(scale * 127 / largest - 1) <= 0x1.1p-8);
    }
  }
}

TEST_CASE("quantise row: every mantissa of the largest number keeps it within half a scale") {
  for (std::uint32_t i = 0; i < 1u << 23; i += 127) {
    const float largest = 1.0f + static_cast<float>(i) * 0x1p-23f;
    const Row row = quantised({largest, -largest, largest / 2});
    CHECK(row.bytes[0] >= 126);
    CHECK(row.bytes[1] == -row.bytes[0]);
    CHECK(std::fabs(number(row, 0) - static_cast<double>(largest)) <=
          static_cast<double>(static_cast<float>(row.scale)) * (0.5 + 256 * 0x1p-24));
  }
}

TEST_CASE("quantise row: numbers that bytes can hold come back as they are") {
  std::vector<float> from;
  for (int i = -127; i <= 127; ++i) from.push_back(0.375f * static_cast<float>(i));
  const Row row = quantised(from);
  CHECK(row.scale == RowScale(0.375f));
  for (std::size_t i = 0; i < from.size(); ++i) REQUIRE(number(row, i) == static_cast<double>(from[i]));
}

TEST_CASE("quantise row: zeros, what is nearly zero, and what is no number") {
  for (const std::size_t n : {std::size_t{1}, std::size_t{5}, std::size_t{16}, std::size_t{33}, std::size_t{64}}) {
    for (const float tiny : {0.0f, -0.0f, 0x1p-119f, std::numeric_limits<float>::denorm_min()}) {
      const Row row = quantised(std::vector<float>(n, tiny));
      CHECK(row.scale == RowScale());
      CHECK(row.bytes == std::vector<std::int8_t>(n, 0));
    }
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
      for (std::size_t at = 0; at < n; ++at) {
        std::vector<float> from(n, 2.0f);
        from[at] = bad;
        const Row row = quantised(from);
        CHECK(std::isnan(static_cast<float>(row.scale)));
        CHECK(row.bytes == std::vector<std::int8_t>(n, 0));
      }
    }
  }
}
