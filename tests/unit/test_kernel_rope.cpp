// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/rope.hpp>

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
  for (const std::int64_t rows : {0, 1, 3, 100}) {
    for (const std::int64_t half : interesting_sizes()) {
      for (const int heads : {1, 3}) {
        const int width = static_cast<int>(2 * half);
        const auto x = random.matrix(rows, heads * width, 5);
        Matrix<float> cos(rows, half, 1), sin(rows, half, 2);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < half; ++c) {
            const double angle = static_cast<double>(random.uniform(0.0f, 1000.0f));
            cos(r, c) = static_cast<float>(std::cos(angle));
            sin(r, c) = static_cast<float>(std::sin(angle));
          }
        }
        Matrix<double> want(rows, heads * width);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < heads * width; ++c) want(r, c) = static_cast<double>(x(r, c));
        }
        hymba::reference::rope<double>(want.view(), heads, width, cos.view(), sin.view());
        for (int threads = 1; threads <= max_threads; ++threads) {
          Threads exec(threads);
          auto y = x;
          hymba::kernel_for<op::Rope, Arch>::run(exec, Scratch{}, y.view(), heads, width, cos.view(), sin.view());
          CHECK(y.gaps_untouched());
          Worst worst;
          for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t c = 0; c < heads * width; ++c) {
              const std::int64_t i = c % width % half, a = c - c % width + i;
              // Two products and a sum of at most the length of the rotated pair.
              const double size = std::hypot(static_cast<double>(x(r, a)), static_cast<double>(x(r, a + half)));
              worst.add(static_cast<double>(y(r, c)), want(r, c), hymba_test::gamma(2) * 1.5 * size, r, c);
            }
          }
          CHECK_MESSAGE(worst.ok(), worst);
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("Rope against the double reference") {
  check<hymba::arch::scalar>(1);
  check<hymba::arch::best>(2);
}

TEST_CASE("Rope pairs the first half with the second") {
  Threads exec(1);
  Matrix<float> x(1, 4), cos(1, 2), sin(1, 2);
  for (int i = 0; i < 4; ++i) x(0, i) = static_cast<float>(i + 1);
  cos(0, 0) = 0.0f, sin(0, 0) = 1.0f;  // a quarter turn: (1, 3) -> (-3, 1)
  cos(0, 1) = 1.0f, sin(0, 1) = 0.0f;
  hymba::kernel_for<op::Rope, hymba::arch::best>::run(exec, Scratch{}, x.view(), 1, 4, cos.view(), sin.view());
  CHECK(x(0, 0) == -3.0f);
  CHECK(x(0, 1) == 2.0f);
  CHECK(x(0, 2) == 1.0f);
  CHECK(x(0, 3) == 4.0f);
}
