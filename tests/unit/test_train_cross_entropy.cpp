// SPDX-License-Identifier: Apache-2.0
#include <hymba/train/kernels/cross_entropy.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::Scratch;
using hymba::Token;
namespace op = hymba::op;
namespace simd = hymba::simd;

namespace {

Matrix<double> widened(const Matrix<float>& m) {
  Matrix<double> d(m.rows(), m.cols());
  for (std::int64_t r = 0; r < m.rows(); ++r) {
    for (std::int64_t c = 0; c < m.cols(); ++c) d(r, c) = static_cast<double>(m(r, c));
  }
  return d;
}

template <class Arch, class Real>
std::vector<double> run(int threads, Matrix<Real>& logits, const std::vector<Token>& targets, Real scale) {
  Threads exec(threads);
  std::vector<double> losses(static_cast<std::size_t>(logits.rows()), -1.0);
  hymba::kernel_for<op::CrossEntropy, Arch>::run(exec, Scratch{}, logits.view(), targets, scale, losses.data());
  return losses;
}

/// Compares a result in float with the reference in double.
template <class Arch>
void compare(const Matrix<float>& logits, const std::vector<Token>& targets, float scale, int threads) {
  auto gradient = logits;
  const auto losses = run<Arch>(threads, gradient, targets, scale);
  CHECK(gradient.gaps_untouched());
  auto want = widened(logits);
  std::vector<double> want_losses(losses.size());
  hymba::reference::cross_entropy<double>(want.view(), targets, static_cast<double>(scale), want_losses.data());
  Worst worst, worst_loss;
  for (std::int64_t r = 0; r < logits.rows(); ++r) {
    const Token target = targets[static_cast<std::size_t>(r)];
    const double got = losses[static_cast<std::size_t>(r)], expected = want_losses[static_cast<std::size_t>(r)];
    if (target < 0) {
      worst_loss.add(got, 0, 0, r);
      for (std::int64_t c = 0; c < logits.cols(); ++c) worst.add(static_cast<double>(gradient(r, c)), 0, 0, r, c);
      continue;
    }
    const float* row = logits.view().row(r);
    const double largest = static_cast<double>(*std::max_element(row, row + logits.cols()));
    // Of an exponential: the difference in it, itself; of their sum: blocks of 64 vectors, one sum across lanes,
    // then double.
    double sum = 0, error = 0;
    const auto relative = [&](std::int64_t c) {
      return (std::min(200.0, largest - static_cast<double>(row[c])) + simd::exp_error) * unit_roundoff;
    };
    for (std::int64_t c = 0; c < logits.cols(); ++c) {
      const double e = std::exp(static_cast<double>(row[c]) - largest);
      sum += e;
      error += e * relative(c) + 0x1p-126;
    }
    const double of_sum = error / sum + hymba_test::gamma(80);
    worst_loss.add(got, expected, of_sum + 1e-15 * std::fabs(expected), r);
    for (std::int64_t c = 0; c < logits.cols(); ++c) {
      const double p = std::exp(static_cast<double>(row[c]) - largest) / sum,
                   size = std::fabs(static_cast<double>(scale));
      const double bound = size * (p * (relative(c) + of_sum + hymba_test::gamma(3)) + 0x1p-125) +
                           (c == target ? unit_roundoff * std::fabs(want(r, c)) : 0.0);
      worst.add(static_cast<double>(gradient(r, c)), want(r, c), bound, r, c);
    }
  }
  CHECK_MESSAGE(worst.ok(), worst);
  CHECK_MESSAGE(worst_loss.ok(), worst_loss);
}

template <class Arch>
void check(std::uint32_t seed) {
  Random random(seed);
  auto sizes = interesting_sizes();
  sizes.push_back(5003);
  for (const std::int64_t rows : {0, 1, 7}) {
    for (const std::int64_t cols : sizes) {
      CAPTURE(rows);
      CAPTURE(cols);
      const auto logits = random.matrix(rows, cols, 3, 4.0f);
      std::vector<Token> targets;
      for (std::int64_t r = 0; r < rows; ++r) {
        targets.push_back(r == 3 ? Token(-1) : static_cast<Token>(r == 4 ? cols - 1 : random.integer(0, cols - 1)));
      }
      for (int threads = 1; threads <= std::min(3, max_threads); ++threads)
        compare<Arch>(logits, targets, 0.37f, threads);
      auto one = logits, three = logits;
      CHECK(run<Arch>(1, one, targets, -2.0f) == run<Arch>(max_threads, three, targets, -2.0f));
      CHECK(one == three);
    }
  }
}

template <class Arch>
void check_extremes() {
  const float most = std::numeric_limits<float>::max(), nan = std::numeric_limits<float>::quiet_NaN();
  Random random(9);
  for (const float offset : {1e4f, -1e4f, 3e38f, -3e38f}) {
    auto logits = random.matrix(2, 77, 1);
    for (std::int64_t c = 0; c < 77; ++c) logits(0, c) += offset, logits(1, c) *= offset / 10;
    compare<Arch>(logits, {5, 76}, 1.0f, 1);
  }
  for (const std::int64_t cols : {2, 77}) {
    Matrix<float> logits(2, cols);
    for (std::int64_t c = 0; c < cols; ++c) logits(0, c) = logits(1, c) = -most;
    logits(0, 1) = logits(1, 1) = most;
    const auto losses = run<Arch>(1, logits, {1, 0}, 1.0f);
    CHECK(losses[0] == 0.0);
    CHECK(losses[1] == 2 * static_cast<double>(most));
    CHECK(logits(0, 0) == 0.0f);
    CHECK(logits(0, 1) == 0.0f);
    CHECK(logits(1, 0) == -1.0f);
    CHECK(logits(1, 1) == 1.0f);
  }
  // A NaN anywhere is a NaN in the loss of its row, and of no other; an ignored row does not see it.
  for (std::int64_t at = 0; at < 77; ++at) {
    auto logits = random.matrix(3, 77);
    logits(1, at) = logits(2, at) = nan;
    const auto losses = run<Arch>(1, logits, {3, 4, -1}, 1.0f);
    CHECK(std::isfinite(losses[0]));
    CHECK(std::isnan(losses[1]));
    CHECK(losses[2] == 0.0);
    for (std::int64_t c = 0; c < 77; ++c) CHECK(logits(2, c) == 0.0f);
  }
}

}  // namespace

TEST_CASE("CrossEntropy in double: the gradient is that of the losses") {
  Random random(1);
  for (const std::int64_t cols : {1, 2, 13}) {
    const auto logits = widened(random.matrix(3, cols, 0, 2.0f));
    const std::vector<Token> targets = {0, -1, static_cast<Token>(cols - 1)};
    const double scale = 0.3;
    auto gradient = logits;
    run<hymba::arch::scalar>(1, gradient, targets, scale);
    const auto loss = [&](Matrix<double> x) {
      double sum = 0;
      for (const double one : run<hymba::arch::scalar>(1, x, targets, 1.0)) sum += one;
      return scale * sum;
    };
    for (std::int64_t r = 0; r < 3; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        auto above = logits, below = logits;
        const double step = 1e-5;
        above(r, c) += step, below(r, c) -= step;
        CHECK(std::fabs((loss(above) - loss(below)) / (2 * step) - gradient(r, c)) < 1e-9);
      }
    }
    // What the loss is: the logarithm of a probability.
    double sum = 0;
    for (std::int64_t c = 0; c < cols; ++c) sum += std::exp(logits(0, c));
    auto copy = logits;
    CHECK(run<hymba::arch::scalar>(1, copy, targets, 1.0)[0] ==
          doctest::Approx(-std::log(std::exp(logits(0, 0)) / sum)).epsilon(1e-12));
  }
}

TEST_CASE("CrossEntropy against the double reference") {
  check<hymba::arch::scalar>(1);
  check<hymba::arch::best>(2);
}

TEST_CASE("CrossEntropy of huge logits, of NaN") {
  check_extremes<hymba::arch::scalar>();
  check_extremes<hymba::arch::best>();
}
