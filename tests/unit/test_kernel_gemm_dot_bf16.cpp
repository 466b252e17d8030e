// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/dot.hpp>
#include <hymba/kernels/dot/gemm.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "rounded_gemm_test.hpp"

#if HYMBA_DOT_BF16

using namespace hymba;
using hymba_test::Problem;

namespace {

using Dot = arch::dot<arch::best>;

bool dots_to_test() {
  if (dot_available()) return true;
  MESSAGE("this machine has no ", detail::dot::Bf16Unit::name, ": the dot products of bf16 are not tested");
  return false;
}

/// One column: x times w, with zeros beside.
float product(float x, bf16 w, std::int64_t in, std::int64_t column, std::int64_t rows) {
  Problem<Dot, Weights::bf16> p(rows, in, 5, 1);
  for (std::int64_t t = 0; t < rows; ++t) std::fill_n(&p.x(t, 0), in, 0.0f);
  p.x(rows - 1, column) = x;
  for (std::int64_t o = 0; o < p.out; ++o) {
    std::memcpy(p.w.data() + static_cast<std::size_t>(o * in + column) * sizeof(w), &w, sizeof(w));
  }
  const hymba_test::Matrix<float> y = p.run(1, false, Store::assign);
  for (std::int64_t o = 1; o < p.out; ++o) CHECK(std::memcmp(&y(rows - 1, o), &y(rows - 1, 0), sizeof(float)) == 0);
  return y(rows - 1, 0);
}

}  // namespace

TEST_CASE("bf16 dot gemm: every size class against the products of rounded operands") {
  if (!dots_to_test()) return;
  hymba_test::all_sizes<Dot, Weights::bf16>();
}

TEST_CASE("bf16 dot gemm: rows read one by one or side by side, the same bits") {
  if (!dots_to_test()) return;
  const auto run = [](const Problem<Dot, Weights::bf16>& p, auto gemm, bool with_bias, Store store) {
    std::vector<bf16> x(static_cast<std::size_t>(p.in));
    for (std::int64_t i = 0; i < p.in; ++i) x[static_cast<std::size_t>(i)] = bf16(p.x(0, i));
    const auto same = [&](int) { return MatrixView<const bf16>(x.data(), 1, p.in, p.in); };
    hymba_test::Matrix<float> y = p.y0;
    hymba_test::TestExecutor exec(2);
    decltype(gemm)::run_direct(exec, 1, same, p.weights(), with_bias ? p.bias.data() : nullptr, y.view(), store);
    return y;
  };
  for (const std::int64_t in : {1, 31, 32, 33, 1600, 1664, 1665, 5504}) {
    for (const std::int64_t out : {1, 7, 8, 37}) {
      const Problem<Dot, Weights::bf16> p(1, in, out, static_cast<std::uint32_t>(in + out));
      for (const bool with_bias : {false, true}) {
        const Store store = with_bias ? Store::add : Store::assign;
        using Unit = detail::dot::Bf16Unit;
        CHECK(run(p, detail::GemmAlongColumns<Unit, 8, true>{}, with_bias, store) ==
              run(p, detail::GemmAlongColumns<Unit, 8, false>{}, with_bias, store));
      }
    }
  }
}

TEST_CASE("bf16 dot gemm: several blocks; the same bits whatever the number of threads") {
  if (!dots_to_test()) return;
  hymba_test::large<Dot, Weights::bf16>();
  for (const std::int64_t rows : {1, 2, 24, 25, 300}) {
    const Problem<Dot, Weights::bf16> p(rows, 1700, 67, 8);
    const hymba_test::Matrix<float> one = p.run(1, true, Store::assign);
    for (int threads = 2; threads <= 8; ++threads) CHECK(p.run(threads, true, Store::assign) == one);
  }
}

TEST_CASE("bf16 dot gemm: a row's bits do not depend on the rows it is computed with") {
  if (!dots_to_test()) return;
  hymba_test::independent_of_rows<Dot, Weights::bf16>();
}

TEST_CASE("bf16 dot gemm: what is not finite shows, in its row") {
  if (!dots_to_test()) return;
  hymba_test::not_finite<Dot, Weights::bf16>();
}

TEST_CASE("bf16 dot gemm: the extremes of floats; zeros") {
  if (!dots_to_test()) return;
  hymba_test::extremes<Dot, Weights::bf16>();
}

TEST_CASE("bf16 dot gemm: what one number becomes") {
  if (!dots_to_test()) return;
  constexpr float least = std::numeric_limits<float>::min(), infinity = std::numeric_limits<float>::infinity();
  const bf16 one(1.0f), subnormal = bf16::from_bits(0x007f);
  for (const std::int64_t rows : {1, 3, 30}) {
    for (const std::int64_t in : {1, 40, 71}) {
      for (const std::int64_t column : {std::int64_t{0}, in - 1}) {
        const auto times = [&](float x, bf16 w) { return product(x, w, in, column, rows); };
        CHECK(times(3.0f, one) == 3.0f);
        CHECK(times(-least, one) == -least);
        // To nearest, ties to even.
        CHECK(times(0x1.01p0f, one) == 1.0f);
        CHECK(times(0x1.03p0f, one) == 0x1.04p0f);
        CHECK(times(0x1.010002p0f, one) == 0x1.02p0f);
        // Subnormals are zeros, even one whose nearest bf16 is normal; so is a product that would be subnormal.
        CHECK(times(0x1.fffffcp-127f, one) == 0.0f);
        CHECK(times(1e-40f, bf16(0x1p100f)) == 0.0f);
        CHECK(times(0x1p100f, subnormal) == 0.0f);
        CHECK(times(least, bf16(0.5f)) == 0.0f);
        // Too large for a bf16 is infinite; so is a product too large for a float.
        CHECK(times(std::numeric_limits<float>::max(), one) == infinity);
        CHECK(times(0x1p100f, bf16(-0x1p100f)) == -infinity);
        CHECK(std::isnan(times(infinity, bf16(0.0f))));
        CHECK(std::isnan(times(std::numeric_limits<float>::quiet_NaN(), one)));
        CHECK(std::isnan(times(1.0f, bf16(std::numeric_limits<float>::quiet_NaN()))));
        CHECK(times(1.0f, bf16(infinity)) == infinity);
      }
    }
  }
}

TEST_CASE("bf16 dot gemm: no rows, no work") {
  if (!dots_to_test()) return;
  CHECK(Problem<Dot, Weights::bf16>(0, 5, 7, 1).run(2, true, Store::assign).rows() == 0);
}

#else

TEST_CASE("bf16 dot gemm: not compiled for it") {
  MESSAGE("bf16 weights run on the base: the dot products of bf16 are not tested");
}

#endif  // HYMBA_DOT_BF16
