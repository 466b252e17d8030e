// SPDX-License-Identifier: Apache-2.0
//
// The loss of a language model, and its gradient over the logits in their place.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// Cross-entropy of rows of logits [T, V] against one target token each, and its gradient:
///
///     losses[t]     = ln(sum_j e^logits[t, j]) - logits[t, targets[t]]               (nats)
///     logits[t, j] <- scale * (e^logits[t, j] / sum_k e^logits[t, k] - [j == targets[t]])
///
///     template <class Real, Executor E>
///     static void run(E& exec, Scratch scratch, MatrixView<Real> logits, std::span<const Token> targets, Real scale,
///                     double* losses);
///
/// Logits go in, the gradient comes out in their place. A negative target (-1) ignores its row: loss 0, gradient row
/// zero, whatever the logits. Other targets are below V. No finite logits overflow; a row with a NaN has the loss NaN.
/// Real is float; double too on arch::scalar. A row's bits depend on the row and the architecture only.
struct CrossEntropy {};
}  // namespace op

namespace reference {
/// op::CrossEntropy in plain loops.
template <class Real>
void cross_entropy(MatrixView<Real> logits, std::span<const Token> targets, Real scale, double* losses) {
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    Real* const row = logits.row(t);
    const std::int64_t target = targets[static_cast<std::size_t>(t)];
    losses[t] = 0;
    if (target < 0) {
      std::fill_n(row, logits.cols, Real(0));
      continue;
    }
    const Real largest = *std::max_element(row, row + logits.cols), wanted = row[target];
    double sum = 0;
    for (std::int64_t j = 0; j < logits.cols; ++j) {
      row[j] = std::exp(row[j] - largest);
      sum += static_cast<double>(row[j]);
    }
    losses[t] = (static_cast<double>(largest) - static_cast<double>(wanted)) + std::log(sum);
    const Real factor = static_cast<Real>(static_cast<double>(scale) / sum);
    for (std::int64_t j = 0; j < logits.cols; ++j) row[j] *= factor;
    row[target] -= scale;
  }
}
}  // namespace reference

template <>
struct kernel_for<op::CrossEntropy, arch::scalar> {
  template <class Exec, class Real>
  static void run(Exec& exec, Scratch, MatrixView<Real> logits, std::span<const Token> targets,
                  std::type_identity_t<Real> scale, double* losses) {
    detail::for_parts(exec, logits.rows, 1, 32 * logits.cols, [&](std::int64_t first, std::int64_t last, int) {
      reference::cross_entropy<Real>(logits.row_range(first, last - first),
                                     targets.subspan(static_cast<std::size_t>(first)), scale, losses + first);
    });
  }
};

template <class A>
struct kernel_for<op::CrossEntropy, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<float> logits, std::span<const Token> targets, float scale,
                  double* losses) {
    const std::int64_t n = logits.cols;
    detail::for_parts(exec, logits.rows, 1, 12 * n, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        losses[t] = row(logits.row(t), n, targets[static_cast<std::size_t>(t)], scale);
      }
    });
  }

 private:
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  /// Elements summed in single precision; their sums are added in double, so that the loss keeps its accuracy for any
  /// vocabulary.
  static constexpr std::int64_t block = 64 * L;

  /// The loss of one row, which becomes the gradient.
  static double row(float* x, std::int64_t n, std::int64_t target, float scale) {
    if (target < 0) {
      std::fill_n(x, n, 0.0f);
      return 0;
    }
    const float most = largest(x, n), wanted = x[target];
    const double sum = exponentials(x, n, most);
    const float factor = static_cast<float>(static_cast<double>(scale) / sum);
    std::int64_t i = 0;
    for (; i + L <= n; i += L) simd::store<A>(x + i, simd::load<A>(x + i) * V(factor));
    for (; i < n; ++i) x[i] *= factor;
    x[target] -= scale;
    return (static_cast<double>(most) - static_cast<double>(wanted)) + std::log(sum);
  }

  /// Some element when there is a NaN: the sum of the exponentials will be NaN then, whatever they are relative to.
  static float largest(const float* x, std::int64_t n) {
    V most[4];
    detail::unrolled<4>([&](auto k) { most[k] = V(-std::numeric_limits<float>::infinity()); });
    std::int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
      detail::unrolled<4>([&](auto k) { most[k] = simd::max<A>(most[k], simd::load<A>(x + i + k * L)); });
    }
    for (; i + L <= n; i += L) most[0] = simd::max<A>(most[0], simd::load<A>(x + i));
    float all = simd::max_lane<A>(simd::max<A>(simd::max<A>(most[0], most[1]), simd::max<A>(most[2], most[3])));
    for (; i < n; ++i) all = std::max(all, x[i]);
    return all;
  }

  /// x becomes e^(x - most); the sum.
  static double exponentials(float* x, std::int64_t n, float most) {
    const V shift(most);
    double total = 0;
    for (std::int64_t start = 0; start < n; start += block) {
      const std::int64_t end = std::min(n, start + block);
      V sums[2] = {simd::zero<A>(), simd::zero<A>()};
      const auto step = [&](int k, std::int64_t i) {
        const V e = simd::exp_nonpositive<A>(simd::load<A>(x + i) - shift);
        simd::store<A>(x + i, e);
        sums[k] = sums[k] + e;
      };
      std::int64_t i = start;
      for (; i + 2 * L <= end; i += 2 * L) {
        step(0, i);
        step(1, i + L);
      }
      for (; i + L <= end; i += L) step(0, i);
      if (i < end) {
        const V e = simd::exp_nonpositive<A>(simd::load_partial<A>(x + i, end - i) - shift);
        simd::store_partial<A>(x + i, e, end - i);
        sums[1] = sums[1] + simd::load_partial<A>(x + i, end - i);
      }
      total += static_cast<double>(simd::sum<A>(sums[0] + sums[1]));
    }
    return total;
  }
};

HYMBA_NAMESPACE_END
