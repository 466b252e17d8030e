// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/rms_norm.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::Scratch;
namespace op = hymba::op;

namespace {

template <class Arch>
void check(std::uint32_t seed) {
  Random random(seed);
  for (const std::int64_t rows : {0, 1, 5, 200}) {
    for (const std::int64_t cols : interesting_sizes()) {
      const auto x = random.matrix(rows, cols, 3, 2.0f);
      const auto weight = random.vector(cols);
      const float eps = 1e-6f;
      Matrix<double> want(rows, cols);
      hymba::reference::rms_norm<double>(x.view(), weight.data(), eps, want.view());
      // Squares and their sum (n + 1), mean, eps, root, reciprocal (half of the sum's error survives the root), and two
      // products.
      const double relative = hymba_test::gamma(0.5 * static_cast<double>(cols + 3) + 4);
      Matrix<float> first(rows, cols);
      for (int threads = 1; threads <= max_threads; ++threads) {
        Threads exec(threads);
        Matrix<float> y(rows, cols, 2);
        auto same = x;
        hymba::kernel_for<op::RmsNorm, Arch>::run(exec, Scratch{}, x.view(), weight.data(), eps, y.view());
        hymba::kernel_for<op::RmsNorm, Arch>::run(exec, Scratch{}, same.view(), weight.data(), eps, same.view());
        CHECK(same == y);
        CHECK(y.gaps_untouched());
        CHECK(same.gaps_untouched());
        if (threads == 1) first = y;
        CHECK(first == y);
        Worst worst;
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < cols; ++c) {
            worst.add(static_cast<double>(y(r, c)), want(r, c), relative * std::fabs(want(r, c)), r, c);
          }
        }
        CHECK_MESSAGE(worst.ok(), worst);
      }
    }
  }
}

}  // namespace

TEST_CASE("RmsNorm against the double reference") {
  check<hymba::arch::scalar>(1);
  check<hymba::arch::best>(2);
}

TEST_CASE("RmsNorm of a zero row is zero") {
  Threads exec(1);
  Matrix<float> x(1, 37);
  for (int i = 0; i < 37; ++i) x(0, i) = 0.0f;
  const auto weight = Random(1).vector(37);
  hymba::kernel_for<op::RmsNorm, hymba::arch::best>::run(exec, Scratch{}, x.view(), weight.data(), 1e-6f, x.view());
  for (int i = 0; i < 37; ++i) CHECK(x(0, i) == 0.0f);
}
