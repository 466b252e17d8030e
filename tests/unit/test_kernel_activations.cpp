// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/activations.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::MatrixView;
using hymba::Scratch;
namespace op = hymba::op;
namespace simd = hymba::simd;

namespace {

using A = xsimd::default_arch;
constexpr double smallest_normal = 0x1p-126;

/// A vector function applied to one number, in every lane.
template <class F>
float apply(F f, float x) {
  std::array<float, 64> out{};
  simd::store<A>(out.data(), f(simd::floats<A>(x)));
  for (std::int64_t i = 1; i < simd::lanes<A>; ++i)
    CHECK(std::bit_cast<std::uint32_t>(out[0]) == std::bit_cast<std::uint32_t>(out[static_cast<std::size_t>(i)]));
  return out[0];
}

/// Every 97th float of [0, limit], both signs: about 20 million numbers, in vectors.
template <class F, class G>
void sample(F vector, G reference, double error, float limit, bool positive, bool negative, double absolute) {
  Worst worst;
  std::array<float, 64> x{}, y{};
  std::size_t n = 0;
  const auto flush = [&] {
    simd::store<A>(y.data(), vector(simd::load<A>(x.data())));
    for (std::size_t i = 0; i < n; ++i) {
      const double want = reference(static_cast<double>(x[i]));
      worst.add(static_cast<double>(y[i]), want, error * unit_roundoff * std::fabs(want) + absolute, 0);
      if (!worst.ok()) FAIL("at " << x[i]);
    }
    n = 0;
  };
  for (std::uint32_t bits = 0; bits <= std::bit_cast<std::uint32_t>(limit); bits += 1997) {
    for (const float sign : {1.0f, -1.0f}) {
      if (sign > 0 ? !positive : !negative) continue;
      x[n++] = sign * std::bit_cast<float>(bits);
      if (n == static_cast<std::size_t>(simd::lanes<A>)) flush();
    }
  }
  flush();
  MESSAGE("worst ratio to the bound: " << worst.ratio());
  CHECK_MESSAGE(worst.ok(), worst);
}

template <class Arch>
void check_swiglu(std::uint32_t seed) {
  Random random(seed);
  for (const std::int64_t rows : {0, 1, 3, 40}) {
    for (const std::int64_t cols : interesting_sizes()) {
      const auto gate = random.matrix(rows, cols, 3, 4.0f), up = random.matrix(rows, cols, 1);
      Matrix<double> want(rows, cols);
      hymba::reference::swiglu<double>(gate.view(), up.view(), want.view());
      for (int threads = 1; threads <= max_threads; ++threads) {
        Threads exec(threads);
        for (int alias = 0; alias < 3; ++alias) {
          auto g = gate, u = up;
          Matrix<float> y(rows, cols, 2);
          Matrix<float>& to = alias == 1 ? g : alias == 2 ? u : y;
          hymba::kernel_for<op::SwiGlu, Arch>::run(exec, Scratch{}, g.view(), u.view(), to.view());
          Worst worst;
          for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t c = 0; c < cols; ++c) {
              const double bound = (simd::silu_error + 1) * unit_roundoff * std::fabs(want(r, c)) + smallest_normal;
              worst.add(static_cast<double>(to(r, c)), want(r, c), bound, r, c);
            }
          }
          CHECK_MESSAGE(worst.ok(), worst);
          CHECK(to.gaps_untouched());
        }
      }
    }
  }
}

template <class Arch>
void check_relu2(std::uint32_t seed) {
  Random random(seed);
  for (const std::int64_t rows : {0, 1, 3, 40}) {
    for (const std::int64_t cols : interesting_sizes()) {
      const auto u = random.matrix(rows, cols, 3);
      Matrix<float> y(rows, cols, 1);
      auto same = u;
      Threads exec(max_threads);
      hymba::kernel_for<op::Relu2, Arch>::run(exec, Scratch{}, u.view(), y.view());
      hymba::kernel_for<op::Relu2, Arch>::run(exec, Scratch{}, same.view(), same.view());
      CHECK(same == y);
      CHECK(y.gaps_untouched());
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < cols; ++c) {
          const float x = u(r, c) > 0 ? u(r, c) : 0.0f;
          REQUIRE(y(r, c) == x * x);  // one correctly rounded product
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("vector functions stay within their bounds over the whole range") {
  const auto np = [](auto f) { return f; };
  SUBCASE("exp2") {
    sample(
        np([](const simd::floats<A>& x) { return simd::exp2_nonpositive<A>(x); }),
        [](double x) { return std::exp2(x); }, simd::exp2_error, 3e38f, false, true, smallest_normal);
  }
  SUBCASE("exp") {
    sample(
        np([](const simd::floats<A>& x) { return simd::exp_nonpositive<A>(x); }), [](double x) { return std::exp(x); },
        simd::exp_error, 3e38f, false, true, smallest_normal);
  }
  SUBCASE("sigmoid") {
    sample(
        np([](const simd::floats<A>& x) { return simd::sigmoid<A>(x); }),
        [](double x) { return hymba::reference::sigmoid(x); }, simd::sigmoid_error, 3e38f, true, true, smallest_normal);
  }
  SUBCASE("softplus") {
    sample(
        np([](const simd::floats<A>& x) { return simd::softplus<A>(x); }),
        [](double x) { return hymba::reference::softplus(x); }, simd::softplus_error, 3e38f, true, true,
        smallest_normal);
  }
  SUBCASE("silu") {
    // Where sigmoid is zero instead of subnormal, silu is off by |x| times the smallest normal number at most.
    sample(
        np([](const simd::floats<A>& x) { return simd::silu<A>(x); }),
        [](double x) { return hymba::reference::silu(x); }, simd::silu_error, 3e38f, true, true, 128 * smallest_normal);
  }
}

TEST_CASE("vector functions at the edges") {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto exp2 = [](const simd::floats<A>& x) { return simd::exp2_nonpositive<A>(x); };
  const auto exp = [](const simd::floats<A>& x) { return simd::exp_nonpositive<A>(x); };
  const auto sigmoid = [](const simd::floats<A>& x) { return simd::sigmoid<A>(x); };
  const auto silu = [](const simd::floats<A>& x) { return simd::silu<A>(x); };
  const auto softplus = [](const simd::floats<A>& x) { return simd::softplus<A>(x); };
  CHECK(apply(exp2, 0.0f) == 1.0f);
  CHECK(apply(exp2, -infinity) == 0.0f);
  for (int k = 0; k <= 126; ++k) CHECK(apply(exp2, static_cast<float>(-k)) == std::ldexp(1.0f, -k));
  CHECK(apply(exp, 0.0f) == 1.0f);
  CHECK(apply(exp, -infinity) == 0.0f);
  CHECK(apply(sigmoid, infinity) == 1.0f);
  CHECK(apply(sigmoid, -infinity) == 0.0f);
  CHECK(apply(sigmoid, 0.0f) == 0.5f);
  CHECK(apply(silu, infinity) == infinity);
  CHECK(apply(silu, -infinity) == 0.0f);
  CHECK(apply(softplus, infinity) == infinity);
  CHECK(apply(softplus, -infinity) == 0.0f);
  for (const auto& value :
       {apply(exp2, nan), apply(exp, nan), apply(sigmoid, nan), apply(silu, nan), apply(softplus, nan)}) {
    CHECK(std::isnan(value));
  }
}

TEST_CASE("SwiGlu") {
  check_swiglu<hymba::arch::scalar>(1);
  check_swiglu<hymba::arch::best>(2);
}

TEST_CASE("Relu2") {
  check_relu2<hymba::arch::scalar>(3);
  check_relu2<hymba::arch::best>(4);
}
