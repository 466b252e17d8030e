// SPDX-License-Identifier: Apache-2.0
//
// The update of AdamW, number by number, and the sum of squares that clipping needs.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// What one update of a tensor depends on besides its numbers.
struct AdamWUpdate {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0;    ///< decoupled; 0 for tensors that do not decay
  double gradient_scale = 1;  ///< of clipping
  std::int64_t step = 1;      ///< counted from 1
};

namespace op {
/// With g = gradient_scale * gradient, in this order:
///
///     w -= learning_rate * weight_decay * w
///     m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
///     w -= learning_rate / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps)
///
///     static void run(E& exec, Scratch scratch, const AdamWUpdate& update, std::int64_t n, Real* w,
///                     const Real* gradient, Real* m, Real* v);
///
/// Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101), algorithm 2.
struct AdamW {};

/// The sum of the squares of n numbers, in double; the same bits for any number of threads.
///
///     static double run(const Real* x, std::int64_t n);
struct SumOfSquares {};
}  // namespace op

namespace detail {
/// The factors of an update in the type of its arithmetic.
template <class Real>
struct AdamWFactors {
  Real keep, beta1, rest1, beta2, rest2, step, root, eps, scale;
  explicit AdamWFactors(const AdamWUpdate& u)
      : keep(static_cast<Real>(1 - u.learning_rate * u.weight_decay)),
        beta1(static_cast<Real>(u.beta1)),
        rest1(static_cast<Real>(1 - u.beta1)),
        beta2(static_cast<Real>(u.beta2)),
        rest2(static_cast<Real>(1 - u.beta2)),
        step(static_cast<Real>(u.learning_rate / (1 - std::pow(u.beta1, static_cast<double>(u.step))))),
        root(static_cast<Real>(1 / std::sqrt(1 - std::pow(u.beta2, static_cast<double>(u.step))))),
        eps(static_cast<Real>(u.eps)),
        scale(static_cast<Real>(u.gradient_scale)) {}
};
}  // namespace detail

namespace reference {
/// op::AdamW in plain loops.
template <class Real>
void adamw(const AdamWUpdate& update, std::int64_t n, Real* w, const Real* gradient, Real* m, Real* v) {
  const hymba::detail::AdamWFactors<Real> f(update);
  for (std::int64_t i = 0; i < n; ++i) {
    const Real g = f.scale * gradient[i];
    m[i] = f.beta1 * m[i] + f.rest1 * g;
    v[i] = f.beta2 * v[i] + f.rest2 * g * g;
    w[i] = f.keep * w[i] - f.step * m[i] / (f.root * std::sqrt(v[i]) + f.eps);
  }
}
}  // namespace reference

template <>
struct kernel_for<op::AdamW, arch::scalar> {
  template <class Exec, class Real>
  static void run(Exec&, Scratch, const AdamWUpdate& update, std::int64_t n, Real* w,
                  const std::type_identity_t<Real>* gradient, std::type_identity_t<Real>* m,
                  std::type_identity_t<Real>* v) {
    reference::adamw<Real>(update, n, w, gradient, m, v);
  }
};

template <>
struct kernel_for<op::SumOfSquares, arch::scalar> {
  template <class Real>
  static double run(const Real* x, std::int64_t n) {
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return sum;
  }
};

template <class A>
struct kernel_for<op::AdamW, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, const AdamWUpdate& update, std::int64_t n, float* w, const float* gradient,
                  float* m, float* v) {
    const detail::AdamWFactors<float> f(update);
    detail::for_parts(exec, n, L, 16, [&](std::int64_t first, std::int64_t last, int) {
      std::int64_t i = first;
      for (; i + L <= last; i += L) {
        V wi = simd::load<A>(w + i), mi = simd::load<A>(m + i), vi = simd::load<A>(v + i);
        vector(f, simd::load<A>(gradient + i), wi, mi, vi);
        simd::store<A>(w + i, wi);
        simd::store<A>(m + i, mi);
        simd::store<A>(v + i, vi);
      }
      if (i < last) {
        const std::int64_t rest = last - i;
        V wi = simd::load_partial<A>(w + i, rest), mi = simd::load_partial<A>(m + i, rest);
        V vi = simd::load_partial<A>(v + i, rest);
        vector(f, simd::load_partial<A>(gradient + i, rest), wi, mi, vi);
        simd::store_partial<A>(w + i, wi, rest);
        simd::store_partial<A>(m + i, mi, rest);
        simd::store_partial<A>(v + i, vi, rest);
      }
    });
  }

 private:
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  static HYMBA_ALWAYS_INLINE void vector(const detail::AdamWFactors<float>& f, const V& gradient, V& w, V& m, V& v) {
    const V g = V(f.scale) * gradient;
    m = simd::fma<A>(V(f.beta1), m, V(f.rest1) * g);
    v = simd::fma<A>(V(f.beta2), v, V(f.rest2) * g * g);
    w = V(f.keep) * w - V(f.step) * m / simd::fma<A>(V(f.root), xsimd::sqrt(v), V(f.eps));
  }
};

template <class A>
struct kernel_for<op::SumOfSquares, arch::simd<A>> {
  static double run(const float* x, std::int64_t n) {
    // Short sums in float, vector by vector, then in double: as exact as it needs to be at the speed of memory.
    constexpr std::int64_t L = simd::lanes<A>, block = 64 * L;
    double sum = 0;
    for (std::int64_t i = 0; i < n; i += block) {
      const std::int64_t end = std::min(n, i + block);
      simd::floats<A> s = simd::zero<A>();
      std::int64_t j = i;
      for (; j + L <= end; j += L) {
        const simd::floats<A> v = simd::load<A>(x + j);
        s = simd::fma<A>(v, v, s);
      }
      if (j < end) {
        const simd::floats<A> v = simd::load_partial<A>(x + j, end - j);
        s = simd::fma<A>(v, v, s);
      }
      sum += static_cast<double>(simd::sum<A>(s));
    }
    return sum;
  }
};

HYMBA_NAMESPACE_END
