// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/fuse_norms.hpp>

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
      const auto a = random.matrix(rows, cols, 3), s = random.matrix(rows, cols, 1, 30.0f);
      const auto ca = random.vector(cols), cs = random.vector(cols);
      const float eps = 1e-6f;
      Matrix<double> want(rows, cols);
      hymba::reference::fuse_norms<double>(a.view(), s.view(), ca.data(), cs.data(), eps, want.view());
      const double relative = hymba_test::gamma(0.5 * static_cast<double>(cols + 3) + 5);  // RmsNorm's, and the sum
      Matrix<float> first(rows, cols);
      for (int threads = 1; threads <= max_threads; ++threads) {
        Threads exec(threads);
        Matrix<float> y(rows, cols, 2);
        auto a2 = a, s2 = s;
        using Kernel = hymba::kernel_for<op::FuseNorms, Arch>;
        Kernel::run(exec, Scratch{}, a.view(), s.view(), ca.data(), cs.data(), eps, y.view());
        Kernel::run(exec, Scratch{}, a2.view(), s.view(), ca.data(), cs.data(), eps, a2.view());
        Kernel::run(exec, Scratch{}, a.view(), s2.view(), ca.data(), cs.data(), eps, s2.view());
        CHECK(a2 == y);
        CHECK(s2 == y);
        CHECK(y.gaps_untouched());
        if (threads == 1) first = y;
        CHECK(first == y);
        Worst worst;
        for (std::int64_t r = 0; r < rows; ++r) {
          const double ia = hymba::reference::inverse_rms<double>(a.view().row(r), cols, eps);
          const double is = hymba::reference::inverse_rms<double>(s.view().row(r), cols, eps);
          for (std::int64_t c = 0; c < cols; ++c) {
            const auto i = static_cast<std::size_t>(c);
            const double size = std::fabs(static_cast<double>(ca[i]) * static_cast<double>(a(r, c)) * ia) +
                                std::fabs(static_cast<double>(cs[i]) * static_cast<double>(s(r, c)) * is);
            worst.add(static_cast<double>(y(r, c)), want(r, c), relative * size, r, c);
          }
        }
        CHECK_MESSAGE(worst.ok(), worst);
      }
    }
  }
}

}  // namespace

TEST_CASE("FuseNorms against the double reference") {
  check<hymba::arch::scalar>(1);
  check<hymba::arch::best>(2);
}
