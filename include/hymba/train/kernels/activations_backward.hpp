// SPDX-License-Identifier: Apache-2.0
//
// Gradients of the element-wise functions between the projections of an MLP.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// Gradients of op::SwiGlu, `y = silu(gate) * up`, with s = 1 / (1 + e^-gate):
///
///     dgate = dy * up * s * (1 + gate * (1 - s))
///     dup   = dy * gate * s
///
///     template <class Real, Executor E>
///     static void run(E& exec, Scratch scratch, MatrixView<const Real> gate, MatrixView<const Real> up,
///                     MatrixView<const Real> dy, MatrixView<Real> dgate, MatrixView<Real> dup);
///
/// All [T, F]; both results are assigned. dgate and dup do not overlap each other; either may be gate, up or dy. Finite
/// for every finite gate whose products are. Real is float; double too on arch::scalar.
/// Source: the derivative of Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202).
struct SwiGluBackward {};

/// Gradient of op::Relu2, `y = max(u, 0)^2`: `du = 2 max(u, 0) dy`.
///
///     template <class Real, Executor E>
///     static void run(E& exec, Scratch scratch, MatrixView<const Real> u, MatrixView<const Real> dy,
///                     MatrixView<Real> du);
///
/// All [T, F]; du is assigned and may be u or dy. Real is float; double too on arch::scalar.
/// Source: the derivative of So et al., "Primer" (arXiv 2109.08668).
struct Relu2Backward {};
}  // namespace op

namespace reference {
/// op::SwiGluBackward in plain loops.
template <class Real>
void swiglu_backward(MatrixView<const Real> gate, MatrixView<const Real> up, MatrixView<const Real> dy,
                     MatrixView<Real> dgate, MatrixView<Real> dup) {
  for (std::int64_t t = 0; t < gate.rows; ++t) {
    for (std::int64_t i = 0; i < gate.cols; ++i) {
      const Real g = gate(t, i), u = up(t, i), d = dy(t, i);
      // 1 - s as a sigmoid of its own: no cancellation for large gates.
      const Real s = sigmoid(g), rest = sigmoid(-g);
      dgate(t, i) = d * u * (s * (Real(1) + g * rest));
      dup(t, i) = d * (g * s);
    }
  }
}
/// op::Relu2Backward in plain loops.
template <class Real>
void relu2_backward(MatrixView<const Real> u, MatrixView<const Real> dy, MatrixView<Real> du) {
  for (std::int64_t t = 0; t < u.rows; ++t) {
    for (std::int64_t i = 0; i < u.cols; ++i) du(t, i) = Real(2) * std::max(u(t, i), Real(0)) * dy(t, i);
  }
}
}  // namespace reference

template <>
struct kernel_for<op::SwiGluBackward, arch::scalar> {
  template <class Exec, class Real>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<Real>> gate,
                  MatrixView<const std::type_identity_t<Real>> up, MatrixView<const std::type_identity_t<Real>> dy,
                  MatrixView<Real> dgate, MatrixView<std::type_identity_t<Real>> dup) {
    reference::swiglu_backward<Real>(gate, up, dy, dgate, dup);
  }
};

template <>
struct kernel_for<op::Relu2Backward, arch::scalar> {
  template <class Exec, class Real>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<Real>> u,
                  MatrixView<const std::type_identity_t<Real>> dy, MatrixView<Real> du) {
    reference::relu2_backward<Real>(u, dy, du);
  }
};

template <class A>
struct kernel_for<op::SwiGluBackward, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<const float> gate, MatrixView<const float> up,
                  MatrixView<const float> dy, MatrixView<float> dgate, MatrixView<float> dup) {
    constexpr std::int64_t L = simd::lanes<A>;
    using V = simd::floats<A>;
    const auto gradients = [](const V& g, const V& u, const V& d, V& for_gate, V& for_up) {
      // Both sigmoids, of g and of -g, from one exponential.
      const V one(1.0f), e = simd::exp_nonpositive<A>(-xsimd::abs(g)), large = one / (one + e), small = e * large;
      const auto positive = g >= simd::zero<A>();
      const V s = xsimd::select(positive, large, small), rest = xsimd::select(positive, small, large);
      for_gate = d * u * (s * simd::fma<A>(g, rest, one));
      for_up = d * (g * s);
    };
    const std::int64_t n = gate.cols;
    detail::for_parts(exec, gate.rows, 1, 10 * n, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        const float *g = gate.row(t), *u = up.row(t), *d = dy.row(t);
        float *dg = dgate.row(t), *du = dup.row(t);
        V for_gate, for_up;
        std::int64_t i = 0;
        for (; i + L <= n; i += L) {
          gradients(simd::load<A>(g + i), simd::load<A>(u + i), simd::load<A>(d + i), for_gate, for_up);
          simd::store<A>(dg + i, for_gate);
          simd::store<A>(du + i, for_up);
        }
        if (i < n) {
          const std::int64_t rest = n - i;
          gradients(simd::load_partial<A>(g + i, rest), simd::load_partial<A>(u + i, rest),
                    simd::load_partial<A>(d + i, rest), for_gate, for_up);
          simd::store_partial<A>(dg + i, for_gate, rest);
          simd::store_partial<A>(du + i, for_up, rest);
        }
      }
    });
  }
};

template <class A>
struct kernel_for<op::Relu2Backward, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<const float> u, MatrixView<const float> dy, MatrixView<float> du) {
    constexpr std::int64_t L = simd::lanes<A>;
    using V = simd::floats<A>;
    const auto gradient = [](const V& v, const V& d) {
      const V x = simd::max<A>(simd::zero<A>(), v);  // in this order NaN stays NaN on x86
      return (x + x) * d;
    };
    const std::int64_t n = u.cols;
    detail::for_parts(exec, u.rows, 1, 2 * n, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        const float *from = u.row(t), *d = dy.row(t);
        float* to = du.row(t);
        std::int64_t i = 0;
        for (; i + L <= n; i += L) simd::store<A>(to + i, gradient(simd::load<A>(from + i), simd::load<A>(d + i)));
        if (i < n) {
          const std::int64_t rest = n - i;
          simd::store_partial<A>(
              to + i, gradient(simd::load_partial<A>(from + i, rest), simd::load_partial<A>(d + i, rest)), rest);
        }
      }
    });
  }
};

HYMBA_NAMESPACE_END
