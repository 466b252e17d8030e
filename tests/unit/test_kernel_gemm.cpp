// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/gemm.hpp>

#include <doctest/doctest.h>

#include "test_executor.hpp"
#include "tolerance.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

using namespace hymba;

namespace {

constexpr float canary = -12345.5f;

using hymba_test::TestExecutor;

/// One random problem; arrays are exactly as large as the views say, so that a sanitizer sees any step outside.
template <Weights W>
struct Problem {
  using Format = weight_format<W>;
  std::int64_t rows, in, out, x_stride, y_stride;
  std::vector<float> x, bias, y0;
  std::vector<std::byte> w;
  bool rotated = false;

  Problem(std::int64_t t, std::int64_t i, std::int64_t o, std::int64_t x_pad, std::int64_t y_pad, unsigned seed)
      : rows(t), in(i), out(o), x_stride(i + x_pad), y_stride(o + y_pad) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    x.resize(static_cast<std::size_t>(t > 0 ? (t - 1) * x_stride + i : 0));
    y0.assign(static_cast<std::size_t>(t > 0 ? (t - 1) * y_stride + o : 0), canary);
    for (auto& v : x) v = normal(random);
    for (std::int64_t r = 0; r < t; ++r) {
      for (std::int64_t c = 0; c < o; ++c) y0[static_cast<std::size_t>(r * y_stride + c)] = normal(random);
    }
    bias.resize(static_cast<std::size_t>(o));
    for (auto& v : bias) v = normal(random);
    w.resize(static_cast<std::size_t>(o) * Format::row_bytes(i));
    std::vector<float> row(static_cast<std::size_t>(i));
    for (std::int64_t r = 0; r < o; ++r) {
      for (auto& v : row) v = normal(random);
      Format::encode_row(row.data(), i, w.data() + static_cast<std::size_t>(r) * Format::row_bytes(i));
    }
  }
  MatrixView<const float> x_view() const { return {x.data(), rows, in, x_stride}; }
  WeightMatrix<W> w_view() const { return {w.data(), out, in, rotated}; }

  /// Rows [first, first + count).
  template <class Arch>
  std::vector<float> run(int threads, bool with_bias, Store store, std::int64_t first, std::int64_t count) const {
    using Kernel = kernel_for<op::Gemm, Arch>;
    TestExecutor exec(threads);
    const std::size_t per_thread = Kernel::scratch_bytes(count, in, out);
    REQUIRE(per_thread % 64 == 0);
    AlignedBuffer memory(per_thread * static_cast<std::size_t>(threads));
    AlignedBuffer shared(gemm_shared_bytes<Arch>(count, in, out, rotated));
    // NaN: scratch must not be assumed to be zero.
    if (memory.size() > 0) std::memset(memory.data(), 0xff, memory.size());
    if (shared.size() > 0) std::memset(shared.data(), 0xff, shared.size());
    std::vector<float> y;
    if (count > 0) y.assign(y0.begin() + first * y_stride, y0.begin() + (first + count - 1) * y_stride + out);
    Kernel::run(exec, Scratch{memory.data(), per_thread, shared.data()}, x_view().row_range(first, count), w_view(),
                with_bias ? bias.data() : nullptr, MatrixView<float>(y.data(), count, out, y_stride), store);
    return y;
  }
  template <class Arch>
  std::vector<float> run(int threads, bool with_bias, Store store) const {
    return run<Arch>(threads, with_bias, store, 0, rows);
  }

  void check(const std::vector<float>& y, bool with_bias, Store store) const {
    std::vector<double> want(y0.begin(), y0.end());
    reference::gemm<double>(x_view(), w_view(), with_bias ? bias.data() : nullptr,
                            MatrixView<double>(want.data(), rows, out, y_stride), store);
    std::vector<double> weights;
    for (std::int64_t c = 0; c < out; ++c) {
      for (std::int64_t i = 0; i < in; ++i) weights.push_back(Format::template number<double>(w_view().row(c), in, i));
    }
    hymba_test::Worst worst;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < out; ++c) {
        const auto at = static_cast<std::size_t>(r * y_stride + c);
        // A sum of n products in any order: gamma_n times the sum of magnitudes, plus one rounding each for the bias,
        // the old value and the additions of the blocks, and for a quantised weight that of scale times integer.
        double magnitude = (with_bias ? std::fabs(bias[static_cast<std::size_t>(c)]) : 0.0) +
                           (store == Store::add ? std::fabs(y0[at]) : 0.0);
        for (std::int64_t i = 0; i < in; ++i) {
          magnitude += std::fabs(static_cast<double>(x[static_cast<std::size_t>(r * x_stride + i)]) *
                                 weights[static_cast<std::size_t>(c * in + i)]);
        }
        const double roundings = static_cast<double>(in) + (Format::quantised ? 3.0 : 2.0);
        worst.add(y[at], want[at], hymba_test::gamma(roundings) * magnitude, r, c);
      }
      for (std::int64_t c = out; r + 1 < rows && c < y_stride; ++c) {
        REQUIRE(y[static_cast<std::size_t>(r * y_stride + c)] == canary);
      }
    }
    INFO("T=", rows, " I=", in, " O=", out, ": ", worst.text());
    CHECK(worst.ok());
  }
};

template <Weights W>
void all_sizes() {
  const std::int64_t L = simd::lanes<xsimd::default_arch>;
  unsigned seed = 1;
  for (const std::int64_t t : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 25, 26, 40}) {
    // Around a vector, around the lines and blocks of quantised rows, and beyond a block of columns.
    for (const std::int64_t i : std::initializer_list<std::int64_t>{1, L - 1, L, L + 1, 2 * L, 33, 65, 100, 129, 257, 450,
                                                                    837}) {
      for (const std::int64_t o : {1, 3, 4, 5, 8, 9, 67}) {
        ++seed;
        const Problem<W> p(t, i, o, seed % 3, seed % 5, seed);
        const bool with_bias = seed % 2 == 0;
        const Store store = seed % 4 < 2 ? Store::assign : Store::add;
        p.check(p.template run<arch::best>(static_cast<int>(1 + seed % 4), with_bias, store), with_bias, store);
        if (seed % 7 == 0) p.check(p.template run<arch::scalar>(2, with_bias, store), with_bias, store);
      }
    }
  }
}

template <Weights W>
void large() {
  for (const std::int64_t t : {1, 4, 9, 300}) {
    // The second is cut where a line of int4 values begins its high halves.
    for (const std::int64_t i : {1733, 1300}) {
      const Problem<W> p(t, i, 131, 5, 3, 77);
      const std::vector<float> one = p.template run<arch::best>(1, true, Store::add);
      p.check(one, true, Store::add);
      for (int threads = 2; threads <= 4; ++threads) {
        CHECK(p.template run<arch::best>(threads, true, Store::add) == one);
      }
    }
  }
}

template <Weights W>
void independent_of_rows() {
  for (const std::int64_t in : {7, 100, 1300, 1600, 2500}) {
    const Problem<W> all(290, in, 37, 1, 0, 5);
    const std::vector<float> want = all.template run<arch::best>(2, true, Store::add);
    for (const std::int64_t chunk : {1, 2, 3, 4, 5, 6, 7, 12, 13, 24, 25, 64}) {
      for (std::int64_t t = 0; t < 290; t += chunk * 3) {
        const std::int64_t count = std::min<std::int64_t>(chunk, 290 - t);
        const std::vector<float> got = all.template run<arch::best>(1, true, Store::add, t, count);
        CHECK(std::memcmp(got.data(), want.data() + t * 37, got.size() * sizeof(float)) == 0);
      }
    }
  }
}

template <Weights W>
void either_order() {
  const auto run = [](const Problem<W>& p, auto gemm, bool with_bias, Store store) {
    std::vector<float> y = p.y0;
    const auto same = [&](int) { return p.x_view(); };
    TestExecutor exec(2);
    decltype(gemm)::run_direct(exec, 1, same, p.w_view(), with_bias ? p.bias.data() : nullptr,
                               MatrixView<float>(y.data(), 1, p.out, p.y_stride), store);
    return y;
  };
  using Unit = detail::FloatUnit<xsimd::default_arch>;
  for (const std::int64_t in : {1, 7, 16, 17, 831, 832, 833, 1600, 2500}) {
    for (const std::int64_t out : {1, 3, 4, 37}) {
      const Problem<W> p(1, in, out, 0, 0, static_cast<unsigned>(in + out));
      for (const bool with_bias : {false, true}) {
        const Store store = with_bias ? Store::add : Store::assign;
        CHECK(run(p, detail::GemmAlongColumns<Unit, 4, true>{}, with_bias, store) ==
              run(p, detail::GemmAlongColumns<Unit, 4, false>{}, with_bias, store));
      }
    }
  }
}

/// Rotated weights give the bits of the same rows with rotated activations, and nearly the products of the weights that
/// were rotated.
template <Weights W>
void rotated_weights() {
  for (const std::int64_t rows : {1, 2, 6, 7, 40}) {
    for (const std::int64_t in : {1, 5, 16, 100, 255, 256, 320, 1600}) {
      Problem<W> p(rows, in, 37, 2, 1, static_cast<unsigned>(in));
      p.rotated = true;
      const std::vector<float> got = p.template run<arch::best>(2, true, Store::add);
      const std::vector<float> plain = p.template run<arch::scalar>(2, true, Store::add);
      std::vector<double> want(p.y0.begin(), p.y0.end());
      reference::gemm<double>(p.x_view(), p.w_view(), p.bias.data(), MatrixView<double>(want.data(), rows, 37, p.y_stride),
                              Store::add);
      hymba_test::Worst worst;
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* const x = p.x_view().row(r);
        double square = 0;
        for (std::int64_t i = 0; i < in; ++i) square += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        for (std::int64_t c = 0; c < 37; ++c) {
          const auto at = static_cast<std::size_t>(r * p.y_stride + c);
          double weights = 0;
          for (std::int64_t i = 0; i < in; ++i) {
            const double w = weight_format<W>::template number<double>(p.w_view().row(c), in, i);
            weights += w * w;
          }
          // Rotated numbers are off by gamma_10 of 16 times what their piece has as its length, at most; the lengths
          // of both sides bound the sums of magnitudes.
          const double magnitude = std::sqrt(square * weights);
          const double bound = hymba_test::gamma(160.0) * magnitude * 16 +
                               hymba_test::gamma(static_cast<double>(in) + 3.0) *
                                   (magnitude + std::fabs(p.y0[at]) + std::fabs(p.bias[static_cast<std::size_t>(c)]));
          worst.add(got[at], want[at], bound, r, c);
          worst.add(plain[at], want[at], bound, r, c);
        }
      }
      INFO("T=", rows, " I=", in, ": ", worst.text());
      CHECK(worst.ok());
      p.rotated = false;
      for (std::int64_t r = 0; r < rows; ++r) reference::rotate(p.x.data() + r * p.x_stride, in);
      CHECK(got == p.template run<arch::best>(2, true, Store::add));
      CHECK(plain == p.template run<arch::scalar>(2, true, Store::add));
    }
  }
}

}  // namespace

TEST_CASE("gemm: rotated weights meet rotated activations") {
  SUBCASE("int8") { rotated_weights<Weights::int8>(); }
  SUBCASE("int4") { rotated_weights<Weights::int4>(); }
}

TEST_CASE("gemm: rows read one by one or side by side, the same bits") {
  SUBCASE("f32") { either_order<Weights::f32>(); }
  SUBCASE("bf16") { either_order<Weights::bf16>(); }
  SUBCASE("f16") { either_order<Weights::f16>(); }
}

TEST_CASE("gemm: every size class against the double reference") {
  SUBCASE("f32") { all_sizes<Weights::f32>(); }
  SUBCASE("bf16") { all_sizes<Weights::bf16>(); }
  SUBCASE("f16") { all_sizes<Weights::f16>(); }
  SUBCASE("int8") { all_sizes<Weights::int8>(); }
  SUBCASE("int4") { all_sizes<Weights::int4>(); }
}

TEST_CASE("gemm: several blocks; the same bits whatever the number of threads") {
  SUBCASE("f32") { large<Weights::f32>(); }
  SUBCASE("bf16") { large<Weights::bf16>(); }
  SUBCASE("f16") { large<Weights::f16>(); }
  SUBCASE("int8") { large<Weights::int8>(); }
  SUBCASE("int4") { large<Weights::int4>(); }
}

TEST_CASE("gemm: a row's bits do not depend on the rows it is computed with") {
  SUBCASE("f32") { independent_of_rows<Weights::f32>(); }
  SUBCASE("bf16") { independent_of_rows<Weights::bf16>(); }
  SUBCASE("f16") { independent_of_rows<Weights::f16>(); }
  SUBCASE("int8") { independent_of_rows<Weights::int8>(); }
  SUBCASE("int4") { independent_of_rows<Weights::int4>(); }
}

TEST_CASE("gemm: no rows, no work") {
  const Problem<Weights::f32> p(0, 5, 7, 0, 0, 1);
  CHECK(p.run<arch::best>(2, true, Store::assign).empty());
  CHECK(p.run<arch::scalar>(2, true, Store::assign).empty());
}

TEST_CASE("gemm: scratch of the largest sizes serves smaller ones") {
  using Kernel = kernel_for<op::Gemm, arch::best>;
  static_assert(Kernel::scratch_bytes(1, 5504, 32001) == 0, "decode needs no scratch");
  std::size_t before = 0;
  for (std::int64_t in = 1; in < 4000; in += 13) {
    const std::size_t now = Kernel::scratch_bytes(512, in, 100);
    CHECK(now >= before);
    before = now;
  }
  before = 0;
  for (std::int64_t rows = 1; rows < 600; ++rows) {
    const std::size_t now = Kernel::scratch_bytes(rows, 1600, 100);
    CHECK(now >= before);
    before = now;
  }
}
