// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/convert.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

using namespace hymba;

namespace {

float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }

/// Floats where rounding to `kept` mantissa bits can go wrong: for every exponent and sign, mantissas around each kind
/// of tie, and the ends.
std::vector<float> edge_patterns(int dropped) {
  std::vector<float> out;
  const std::uint32_t half = 1u << (dropped - 1);
  const std::uint32_t unit = 1u << dropped;
  std::vector<std::uint32_t> mantissas;
  for (const std::uint32_t base : {0u, unit, 2u * unit, 3u * unit, 0x7fffffu - 2u * unit + 1u, 0x7fffffu - unit + 1u}) {
    for (const std::uint32_t low : {0u, 1u, half - 1u, half, half + 1u, unit - 1u}) mantissas.push_back(base + low);
  }
  for (std::uint32_t bit = 0; bit < 23; ++bit) {  // ties of subnormal results lie at any bit
    for (const std::uint32_t top : {0u, 0x400000u, 0x7fffffu & ~((1u << bit) - 1u)}) {
      for (const std::uint32_t low : {(1u << bit) - 1u, 1u << bit, (1u << bit) + 1u}) {
        mantissas.push_back((top | low) & 0x7fffffu);
      }
    }
  }
  for (std::uint32_t sign = 0; sign < 2; ++sign) {
    for (std::uint32_t exponent = 0; exponent < 256; ++exponent) {
      for (const std::uint32_t m : mantissas) out.push_back(from_bits(sign << 31 | exponent << 23 | (m & 0x7fffffu)));
    }
  }
  return out;
}

template <class Arch, class To>
std::vector<To> convert(const std::vector<float>& from) {
  std::vector<To> to(from.size());
  kernel_for<op::Convert, Arch>::template run<To>(from.data(), static_cast<std::int64_t>(from.size()), to.data());
  return to;
}

template <class Arch, class To>
void check_bits(const std::vector<float>& from) {
  const std::vector<To> got = convert<Arch, To>(from);
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (got[i].bits != To(from[i]).bits && ++wrong == 1) {
      INFO("float bits ", std::bit_cast<std::uint32_t>(from[i]), ": got ", got[i].bits, ", expected ",
           To(from[i]).bits);
      CHECK(false);
    }
  }
  CHECK(wrong == 0);
}

template <class To>
void all_halves() {
  std::vector<float> values;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    values.push_back(static_cast<float>(To::from_bits(static_cast<std::uint16_t>(bits))));
  }
  for (const auto& got : {convert<arch::best, To>(values), convert<arch::scalar, To>(values)}) {
    std::int64_t wrong = 0;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      if (std::isnan(values[bits])) {
        if (got[bits].bits != To(values[bits]).bits) ++wrong;
      } else if (got[bits].bits != bits) {
        ++wrong;
      }
    }
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("convert: every 16-bit pattern survives the round trip", To, bf16, f16) { all_halves<To>(); }

TEST_CASE("convert: float patterns around ties and limits have the bits of the scalar conversion") {
  SUBCASE("bf16") { check_bits<arch::best, bf16>(edge_patterns(16)); }
  SUBCASE("f16") { check_bits<arch::best, f16>(edge_patterns(13)); }
  SUBCASE("a walk over all floats, bf16 and f16") {
    std::vector<float> some;
    for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4093) {  // prime: visits every low pattern
      some.push_back(from_bits(static_cast<std::uint32_t>(bits)));
    }
    check_bits<arch::best, bf16>(some);
    check_bits<arch::best, f16>(some);
  }
}

TEST_CASE("convert: the scalar conversion itself rounds to the nearest, ties to even") {
  // The bracket of each value by its two neighbours, in double.
  for (const float v : edge_patterns(13)) {
    if (!std::isfinite(v)) continue;
    const f16 got(v);
    const double value = v;
    const double mine = static_cast<float>(got);
    if (std::isinf(mine)) {
      CHECK(std::fabs(value) >= 65520.0);
      continue;
    }
    for (const int step : {-1, 1}) {
      const auto near = static_cast<std::uint16_t>(got.bits + step);
      if ((near & 0x8000) != (got.bits & 0x8000)) continue;
      const double other = static_cast<float>(f16::from_bits(near));
      if (std::isinf(other) || std::isnan(other)) continue;
      const double d = std::fabs(value - mine), e = std::fabs(value - other);
      if (!(d < e || (d == e && (got.bits & 1) == 0))) {
        INFO("value ", value, " became ", mine, " though ", other, " is nearer or even");
        REQUIRE(false);
      }
    }
  }
}

TEST_CASE("convert: any length, nothing written outside") {
  for (std::int64_t n = 0; n < 70; ++n) {
    std::vector<float> from(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = 0.1f * static_cast<float>(i) - 1.7f;
    std::vector<bf16> b(from.size() + 1, bf16(99.0f));
    std::vector<f16> h(from.size() + 1, f16(99.0f));
    std::vector<float> f(from.size() + 1, 99.0f);
    kernel_for<op::Convert, arch::best>::run(from.data(), n, b.data());
    kernel_for<op::Convert, arch::best>::run(from.data(), n, h.data());
    kernel_for<op::Convert, arch::best>::run(from.data(), n, f.data());
    bool same = b.back() == bf16(99.0f) && h.back() == f16(99.0f) && f.back() == 99.0f;
    for (std::size_t i = 0; i < from.size(); ++i) {
      same = same && b[i] == bf16(from[i]) && h[i] == f16(from[i]) && f[i] == from[i];
    }
    CHECK(same);
  }
}
