// SPDX-License-Identifier: Apache-2.0
//
// Root-mean-square normalisation of rows.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// `y = weight * x / sqrt(mean(x^2) + eps)` for every row of x [T, D]; weight [D], y [T, D].
///
///     static void run(E& exec, Scratch scratch, MatrixView<const float> x, const float* weight, float eps,
///                     MatrixView<float> y);
///
/// x and y may be the same. The statistics are in float. A row's bits depend on the row and the architecture only.
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467).
struct RmsNorm {};
}  // namespace op

namespace reference {
/// 1 / sqrt(mean(x^2) + eps).
template <class Real, class In>
Real inverse_rms(const In* x, std::int64_t n, float eps) {
  Real sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<Real>(x[i]) * static_cast<Real>(x[i]);
  return Real(1) / std::sqrt(sum / static_cast<Real>(n) + static_cast<Real>(eps));
}
/// op::RmsNorm in plain loops.
template <class Real, class Out, class In = float>
void rms_norm(MatrixView<const std::type_identity_t<In>> x, const std::type_identity_t<In>* weight, float eps,
              MatrixView<Out> y) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const Real inverse = inverse_rms<Real>(x.row(t), x.cols, eps);
    for (std::int64_t i = 0; i < x.cols; ++i) {
      y(t, i) = static_cast<Out>(static_cast<Real>(weight[i]) * (static_cast<Real>(x(t, i)) * inverse));
    }
  }
}
}  // namespace reference

namespace detail {
/// 1 / sqrt(mean(x^2) + eps) with four vectors of partial sums.
template <class A>
HYMBA_ALWAYS_INLINE float inverse_rms(const float* x, std::int64_t n, float eps) {
  constexpr std::int64_t L = simd::lanes<A>;
  simd::floats<A> sums[4] = {simd::zero<A>(), simd::zero<A>(), simd::zero<A>(), simd::zero<A>()};
  std::int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    unrolled<4>([&](auto k) {
      const simd::floats<A> v = simd::load<A>(x + i + k * L);
      sums[k] = simd::fma<A>(v, v, sums[k]);
    });
  }
  for (; i + L <= n; i += L) {
    const simd::floats<A> v = simd::load<A>(x + i);
    sums[0] = simd::fma<A>(v, v, sums[0]);
  }
  if (i < n) {
    const simd::floats<A> v = simd::load_partial<A>(x + i, n - i);
    sums[0] = simd::fma<A>(v, v, sums[0]);
  }
  const float sum = simd::sum<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}
}  // namespace detail

template <>
struct kernel_for<op::RmsNorm, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<T>> x, const std::type_identity_t<T>* weight,
                  float eps, MatrixView<T> y) {
    reference::rms_norm<T, T, T>(x, weight, eps, y);
  }
};

template <class A>
struct kernel_for<op::RmsNorm, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<const float> x, const float* weight, float eps, MatrixView<float> y) {
    detail::for_parts(exec, x.rows, 1, 2 * x.cols, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) row(x.row(t), weight, x.cols, eps, y.row(t));
    });
  }

 private:
  static void row(const float* x, const float* weight, std::int64_t n, float eps, float* y) {
    constexpr std::int64_t L = simd::lanes<A>;
    const simd::floats<A> inverse(detail::inverse_rms<A>(x, n, eps));
    std::int64_t i = 0;
    for (; i + L <= n; i += L) simd::store<A>(y + i, simd::load<A>(weight + i) * (simd::load<A>(x + i) * inverse));
    if (i < n) {
      const std::int64_t rest = n - i;
      simd::store_partial<A>(
          y + i, simd::load_partial<A>(weight + i, rest) * (simd::load_partial<A>(x + i, rest) * inverse), rest);
    }
  }
};

HYMBA_NAMESPACE_END
