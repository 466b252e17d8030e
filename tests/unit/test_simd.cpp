// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/simd.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "tolerance.hpp"

using namespace hymba;

namespace {

using A = xsimd::default_arch;
constexpr std::int64_t L = simd::lanes<A>;

std::vector<float> values(const simd::floats<A>& v) {
  std::vector<float> out(static_cast<std::size_t>(L));
  simd::store<A>(out.data(), v);
  return out;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

simd::floats<A> random_vector(std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> v(static_cast<std::size_t>(L));
  for (auto& x : v) x = normal(random);
  return simd::load<A>(v.data());
}

template <class Half>
void widening() {
  std::int64_t wrong = 0;
  for (std::uint32_t first = 0; first < 65536; first += static_cast<std::uint32_t>(L)) {
    std::vector<Half> in;
    for (std::int64_t i = 0; i < L; ++i) {
      in.push_back(Half::from_bits(static_cast<std::uint16_t>(first + static_cast<std::uint32_t>(i))));
    }
    const std::vector<float> got = values(simd::load<A>(in.data()));
    for (std::size_t i = 0; i < in.size(); ++i) wrong += same(got[i], static_cast<float>(in[i])) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

template <class T>
void partial() {
  for (std::int64_t count = 0; count <= L; ++count) {
    // Exactly `count` elements on the heap, so that a sanitizer sees a step outside.
    const std::unique_ptr<T[]> in(new T[static_cast<std::size_t>(count)]);
    const std::unique_ptr<T[]> out(new T[static_cast<std::size_t>(count)]);
    for (std::int64_t i = 0; i < count; ++i) in[static_cast<std::size_t>(i)] = T(static_cast<float>(i) + 0.5f);
    const simd::floats<A> v = simd::load_partial<A>(in.get(), count);
    const std::vector<float> got = values(v);
    for (std::int64_t i = 0; i < L; ++i) {
      CHECK(same(got[static_cast<std::size_t>(i)], i < count ? static_cast<float>(i) + 0.5f : 0.0f));
    }
    simd::store_partial<A>(out.get(), v, count);
    if (count > 0) CHECK(std::memcmp(in.get(), out.get(), static_cast<std::size_t>(count) * sizeof(T)) == 0);
  }
}

template <int R>
void sums_of() {
  std::mt19937 random(R);
  simd::floats<A> v[R];
  for (auto& x : v) x = random_vector(random);
  float out[R];
  simd::sums<A>(v, out);
  for (int r = 0; r < R; ++r) {
    std::vector<float> fold = values(v[r]);
    double exact = 0.0, magnitude = 0.0;
    for (const float x : fold) {
      exact += static_cast<double>(x);
      magnitude += std::fabs(static_cast<double>(x));
    }
    for (auto half = fold.size() / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) fold[i] += fold[i + half];
    }
    CHECK(same(out[r], fold[0]));
    hymba_test::Worst worst;
    worst.add(static_cast<double>(out[r]), exact, hymba_test::gamma(static_cast<double>(L)) * magnitude, r);
    worst.add(static_cast<double>(simd::sum<A>(v[r])), exact, hymba_test::gamma(static_cast<double>(L)) * magnitude, r);
    INFO(worst.text());
    CHECK(worst.ok());
  }
}

}  // namespace

TEST_CASE_TEMPLATE("simd: every 16-bit pattern widens exactly", Half, bf16, f16) { widening<Half>(); }

TEST_CASE_TEMPLATE("simd: partial loads and stores touch only what they name", T, float, bf16, f16) { partial<T>(); }

TEST_CASE("simd: every signed byte widens exactly; partial loads touch only what they name") {
  std::vector<std::int8_t> bytes;
  for (int v = -128; v < 128; ++v) bytes.push_back(static_cast<std::int8_t>(v));
  for (std::int64_t first = 0; first + L <= 256; ++first) {
    const std::vector<float> got = values(simd::load<A>(bytes.data() + first));
    for (std::int64_t i = 0; i < L; ++i) {
      CHECK(same(got[static_cast<std::size_t>(i)], static_cast<float>(first + i - 128)));
    }
  }
  for (std::int64_t count = 0; count <= L; ++count) {
    // Exactly `count` bytes on the heap, so that a sanitizer sees a step outside.
    const std::unique_ptr<std::int8_t[]> in(new std::int8_t[static_cast<std::size_t>(count)]);
    std::copy_n(bytes.data(), count, in.get());
    const std::vector<float> got = values(simd::load_partial<A>(in.get(), count));
    for (std::int64_t i = 0; i < L; ++i) {
      CHECK(same(got[static_cast<std::size_t>(i)], i < count ? static_cast<float>(i - 128) : 0.0f));
    }
  }
}

TEST_CASE("simd: signed bytes are the nearest integers, even ones in the middle, and saturate") {
  std::vector<float> in(static_cast<std::size_t>(L));
  const std::unique_ptr<std::int8_t[]> out(new std::int8_t[static_cast<std::size_t>(L)]);
  for (int quarter = -4 * 300; quarter < 4 * 300; quarter += static_cast<int>(L)) {
    for (std::int64_t i = 0; i < L; ++i) {
      in[static_cast<std::size_t>(i)] = 0.25f * static_cast<float>(quarter + static_cast<int>(i));
    }
    simd::store<A>(out.get(), simd::load<A>(in.data()));
    for (std::int64_t i = 0; i < L; ++i) {
      const float want = std::clamp(std::nearbyint(in[static_cast<std::size_t>(i)]), -128.0f, 127.0f);
      CHECK(static_cast<float>(out[static_cast<std::size_t>(i)]) == want);
    }
  }
}

TEST_CASE("simd: halves of bytes looked up in two tables") {
  // Every byte, in four lines; tables of every sign.
  std::vector<std::byte> bytes(256);
  for (std::size_t i = 0; i < 256; ++i) bytes[i] = static_cast<std::byte>(i * 37 % 256);
  alignas(16) std::int8_t tables[2][16];
  for (int v = 0; v < 16; ++v) {
    tables[0][v] = static_cast<std::int8_t>(17 * v - 128);
    tables[1][v] = static_cast<std::int8_t>(91 - 9 * v);
  }
  std::vector<std::int8_t> low(64), high(64);
  for (std::size_t line = 0; line < 256; line += 64) {
    simd::look_up_halves<false>(bytes.data() + line, tables[0], tables[1], low.data());
    simd::look_up_halves<true>(bytes.data() + line, tables[0], tables[1], high.data());
    for (std::size_t i = 0; i < 64; ++i) {
      const int byte = std::to_integer<int>(bytes[line + i]);
      CHECK(low[i] == tables[i / 32][byte & 15]);
      CHECK(high[i] == tables[i / 32][byte >> 4]);
    }
  }
}

TEST_CASE("simd: sums of several vectors have the bits of folding each by halves") {
  sums_of<1>();
  sums_of<3>();
  sums_of<4>();
  sums_of<8>();
}

TEST_CASE("simd: fma, min, max, max_lane") {
  std::mt19937 random(9);
  for (int round = 0; round < 100; ++round) {
    const simd::floats<A> a = random_vector(random), b = random_vector(random), c = random_vector(random);
    const std::vector<float> as = values(a), bs = values(b), cs = values(c);
    const std::vector<float> f = values(simd::fma<A>(a, b, c)), hi = values(simd::max<A>(a, b)),
                             lo = values(simd::min<A>(a, b));
    float largest = as[0];
    for (std::size_t i = 0; i < as.size(); ++i) {
      largest = std::max(largest, as[i]);
      CHECK(hi[i] == std::max(as[i], bs[i]));
      CHECK(lo[i] == std::min(as[i], bs[i]));
#if defined(__FMA__) || defined(__aarch64__)
      CHECK(f[i] == std::fma(as[i], bs[i], cs[i]));
#endif
      const double product = static_cast<double>(as[i]) * static_cast<double>(bs[i]);
      const double sum = product + static_cast<double>(cs[i]);
      CHECK(std::fabs(static_cast<double>(f[i]) - sum) <=
            hymba_test::gamma(2) * (std::fabs(product) + std::fabs(static_cast<double>(cs[i]))));
    }
    CHECK(simd::max_lane<A>(a) == largest);
  }
}
