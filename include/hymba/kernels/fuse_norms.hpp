// SPDX-License-Identifier: Apache-2.0
//
// The fusion of the attention heads' and the SSM heads' outputs: each normalised, then weighted per channel and added.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/rms_norm.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// `y = ca * rmsn(a) + cs * rmsn(s)` for every row of a, s [T, E], with `rmsn(v) = v / sqrt(mean(v^2) + eps)`; ca, cs
/// [E], y [T, E].
///
///     static void run(E& exec, Scratch scratch, MatrixView<const float> a, MatrixView<const float> s, const float* ca,
///                     const float* cs, float eps, MatrixView<float> y);
///
/// The coefficients hold whatever multiplies a normalised channel: half of the norm's weight for the mean of norms,
/// gate times weight for a learned gate. y may be a or s. A row's bits depend on the row and the architecture only.
/// Source: Hymba (arXiv 2411.13676), section 2.1.
struct FuseNorms {};
}  // namespace op

namespace reference {
/// op::FuseNorms in plain loops.
template <class Real, class Out, class In = float>
void fuse_norms(MatrixView<const std::type_identity_t<In>> a, MatrixView<const std::type_identity_t<In>> s,
                const std::type_identity_t<In>* ca, const std::type_identity_t<In>* cs, float eps, MatrixView<Out> y) {
  for (std::int64_t t = 0; t < a.rows; ++t) {
    const Real ia = inverse_rms<Real>(a.row(t), a.cols, eps), is = inverse_rms<Real>(s.row(t), s.cols, eps);
    for (std::int64_t i = 0; i < a.cols; ++i) {
      y(t, i) = static_cast<Out>(static_cast<Real>(ca[i]) * (static_cast<Real>(a(t, i)) * ia) +
                                 static_cast<Real>(cs[i]) * (static_cast<Real>(s(t, i)) * is));
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::FuseNorms, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<T>> a,
                  MatrixView<const std::type_identity_t<T>> s, const std::type_identity_t<T>* ca,
                  const std::type_identity_t<T>* cs, float eps, MatrixView<T> y) {
    reference::fuse_norms<T, T, T>(a, s, ca, cs, eps, y);
  }
};

template <class A>
struct kernel_for<op::FuseNorms, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<const float> a, MatrixView<const float> s, const float* ca,
                  const float* cs, float eps, MatrixView<float> y) {
    detail::for_parts(exec, a.rows, 1, 4 * a.cols, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) row(a.row(t), s.row(t), ca, cs, a.cols, eps, y.row(t));
    });
  }

 private:
  static void row(const float* a, const float* s, const float* ca, const float* cs, std::int64_t n, float eps,
                  float* y) {
    constexpr std::int64_t L = simd::lanes<A>;
    const simd::floats<A> ia(detail::inverse_rms<A>(a, n, eps)), is(detail::inverse_rms<A>(s, n, eps));
    std::int64_t i = 0;
    for (; i + L <= n; i += L) {
      const simd::floats<A> left = simd::load<A>(ca + i) * (simd::load<A>(a + i) * ia);
      simd::store<A>(y + i, simd::fma<A>(simd::load<A>(cs + i), simd::load<A>(s + i) * is, left));
    }
    if (i < n) {
      const std::int64_t rest = n - i;
      const simd::floats<A> left = simd::load_partial<A>(ca + i, rest) * (simd::load_partial<A>(a + i, rest) * ia);
      simd::store_partial<A>(
          y + i, simd::fma<A>(simd::load_partial<A>(cs + i, rest), simd::load_partial<A>(s + i, rest) * is, left),
          rest);
    }
  }
};

HYMBA_NAMESPACE_END
