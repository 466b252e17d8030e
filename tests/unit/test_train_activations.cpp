// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/activations.hpp>
#include <hymba/train/kernels/activations_backward.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::Scratch;
namespace op = hymba::op;
namespace simd = hymba::simd;

namespace {

constexpr double smallest_normal = 0x1p-126;

Matrix<double> widened(const Matrix<float>& m) {
  Matrix<double> d(m.rows(), m.cols());
  for (std::int64_t r = 0; r < m.rows(); ++r) {
    for (std::int64_t c = 0; c < m.cols(); ++c) d(r, c) = static_cast<double>(m(r, c));
  }
  return d;
}

template <class Arch>
void check_swiglu(std::uint32_t seed) {
  Random random(seed);
  for (const std::int64_t rows : {0, 1, 3, 200}) {
    for (const std::int64_t cols : interesting_sizes()) {
      auto gate = random.matrix(rows, cols, 3, 4.0f);
      if (rows == 3) {  // far outside of where the sigmoid is anything but 0 or 1
        gate(0, 0) = 1e30f, gate(1, 0) = -1e30f, gate(2, 0) = -95.0f;
      }
      const auto up = random.matrix(rows, cols, 1), dy = random.matrix(rows, cols, 2);
      const auto g = widened(gate), u = widened(up), d = widened(dy);
      Matrix<double> want_gate(rows, cols), want_up(rows, cols);
      hymba::reference::swiglu_backward<double>(g.view(), u.view(), d.view(), want_gate.view(), want_up.view());
      for (int threads = 1; threads <= std::min(3, max_threads); ++threads) {
        Threads exec(threads);
        for (int alias = 0; alias < 3; ++alias) {
          auto gates = gate, ups = up, dys = dy;
          Matrix<float> dgate(rows, cols, 4), dup(rows, cols, 1);
          Matrix<float>& to_gate = alias == 1 ? gates : dgate;
          Matrix<float>& to_up = alias == 1 ? ups : alias == 2 ? dys : dup;
          hymba::kernel_for<op::SwiGluBackward, Arch>::run(exec, Scratch{}, gates.view(), ups.view(), dys.view(),
                                                           to_gate.view(), to_up.view());
          Worst worst;
          for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t c = 0; c < cols; ++c) {
              // Two sigmoids, the sum and the product they are in, two products; zero where the exponential underflows.
              const double s = hymba::reference::sigmoid(g(r, c)), rest = hymba::reference::sigmoid(-g(r, c));
              const double size = std::fabs(d(r, c) * u(r, c)) * s * (1 + std::fabs(g(r, c)) * rest);
              const double none = smallest_normal * (1 + std::fabs(d(r, c)) + std::fabs(d(r, c) * u(r, c)));
              const double tiny = none * (1 + std::min(100.0, std::fabs(g(r, c))));
              worst.add(static_cast<double>(to_gate(r, c)), want_gate(r, c),
                        (2 * simd::sigmoid_error + 5) * unit_roundoff * size + tiny, r, c);
              worst.add(static_cast<double>(to_up(r, c)), want_up(r, c),
                        (simd::sigmoid_error + 2) * unit_roundoff * std::fabs(want_up(r, c)) + tiny, r, c);
            }
          }
          CHECK_MESSAGE(worst.ok(), worst);
          CHECK(to_gate.gaps_untouched());
          CHECK(to_up.gaps_untouched());
        }
      }
    }
  }
}

template <class Arch>
void check_relu2(std::uint32_t seed) {
  Random random(seed);
  for (const std::int64_t rows : {0, 1, 3, 300}) {
    for (const std::int64_t cols : interesting_sizes()) {
      const auto u = random.matrix(rows, cols, 3), dy = random.matrix(rows, cols, 1);
      for (int threads = 1; threads <= std::min(3, max_threads); ++threads) {
        Threads exec(threads);
        Matrix<float> du(rows, cols, 2);
        auto over_u = u, over_dy = dy;
        using Kernel = hymba::kernel_for<op::Relu2Backward, Arch>;
        Kernel::run(exec, Scratch{}, u.view(), dy.view(), du.view());
        Kernel::run(exec, Scratch{}, over_u.view(), dy.view(), over_u.view());
        Kernel::run(exec, Scratch{}, u.view(), over_dy.view(), over_dy.view());
        CHECK(over_u == du);
        CHECK(over_dy == du);
        CHECK(du.gaps_untouched());
        bool exact = true;  // one correctly rounded product
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < cols; ++c) exact = exact && du(r, c) == 2 * std::max(u(r, c), 0.0f) * dy(r, c);
        }
        CHECK(exact);
      }
    }
  }
}

/// The largest difference between `gradient` and the differences of sum(dy * forward(x)), over the largest gradient.
template <class Forward>
double mismatch(Matrix<double>& x, const Matrix<double>& dy, const Matrix<double>& gradient, Forward forward) {
  const auto loss = [&] {
    Matrix<double> y(x.rows(), x.cols());
    forward(y);
    double sum = 0;
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      for (std::int64_t c = 0; c < x.cols(); ++c) sum += dy(r, c) * y(r, c);
    }
    return sum;
  };
  double largest = 0, worst = 0;
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    for (std::int64_t c = 0; c < x.cols(); ++c) {
      const double step = 1e-5, value = x(r, c);
      x(r, c) = value + step;
      const double above = loss();
      x(r, c) = value - step;
      const double below = loss();
      x(r, c) = value;
      largest = std::max(largest, std::fabs(gradient(r, c)));
      worst = std::max(worst, std::fabs((above - below) / (2 * step) - gradient(r, c)));
    }
  }
  return worst / largest;
}

}  // namespace

TEST_CASE("SwiGluBackward in double against differences of SwiGlu") {
  Random random(1);
  auto gate = widened(random.matrix(3, 19, 0, 2.0f)), up = widened(random.matrix(3, 19));
  const auto dy = widened(random.matrix(3, 19));
  Matrix<double> dgate(3, 19, 1), dup(3, 19);
  Threads exec(1);
  hymba::kernel_for<op::SwiGluBackward, hymba::arch::scalar>::run(exec, Scratch{}, gate.view(), up.view(), dy.view(),
                                                                  dgate.view(), dup.view());
  const auto forward = [&](Matrix<double>& y) {
    hymba::reference::swiglu<double, double, double>(gate.view(), up.view(), y.view());
  };
  CHECK(mismatch(gate, dy, dgate, forward) < 1e-7);
  CHECK(mismatch(up, dy, dup, forward) < 1e-7);
}

TEST_CASE("Relu2Backward in double against differences of Relu2") {
  Random random(2);
  auto u = widened(random.matrix(3, 19));
  const auto dy = widened(random.matrix(3, 19));
  Matrix<double> du(3, 19, 1);
  Threads exec(1);
  hymba::kernel_for<op::Relu2Backward, hymba::arch::scalar>::run(exec, Scratch{}, u.view(), dy.view(), du.view());
  CHECK(mismatch(u, dy, du, [&](Matrix<double>& y) {
          hymba::reference::relu2<double, double, double>(u.view(), y.view());
        }) < 1e-7);
}

TEST_CASE("SwiGluBackward against the double reference") {
  check_swiglu<hymba::arch::scalar>(1);
  check_swiglu<hymba::arch::best>(2);
}

TEST_CASE("Relu2Backward against its formula") {
  check_relu2<hymba::arch::scalar>(3);
  check_relu2<hymba::arch::best>(4);
}
