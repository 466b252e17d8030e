// SPDX-License-Identifier: Apache-2.0
//
// The element-wise functions between the projections of an MLP.
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
/// `y = silu(gate) * up` element by element, silu(x) = x / (1 + e^-x); gate, up, y [T, F].
///
///     static void run(E& exec, Scratch scratch, MatrixView<const float> gate, MatrixView<const float> up,
///                     MatrixView<float> y);
///
/// y may be gate or up. Finite for every finite gate whose product is. Source: Shazeer, "GLU Variants Improve
/// Transformer" (arXiv 2002.05202).
struct SwiGlu {};

/// `y = max(u, 0)^2` element by element; u, y [T, F].
///
///     static void run(E& exec, Scratch scratch, MatrixView<const float> u, MatrixView<float> y);
///
/// y may be u. Source: So et al., "Primer" (arXiv 2109.08668).
struct Relu2 {};
}  // namespace op

namespace reference {
/// op::SwiGlu in plain loops.
template <class Real, class Out, class In = float>
void swiglu(MatrixView<const std::type_identity_t<In>> gate, MatrixView<const std::type_identity_t<In>> up,
            MatrixView<Out> y) {
  for (std::int64_t t = 0; t < gate.rows; ++t) {
    for (std::int64_t i = 0; i < gate.cols; ++i) {
      y(t, i) = static_cast<Out>(silu(static_cast<Real>(gate(t, i))) * static_cast<Real>(up(t, i)));
    }
  }
}
/// op::Relu2 in plain loops.
template <class Real, class Out, class In = float>
void relu2(MatrixView<const std::type_identity_t<In>> u, MatrixView<Out> y) {
  for (std::int64_t t = 0; t < u.rows; ++t) {
    for (std::int64_t i = 0; i < u.cols; ++i) {
      const Real x = std::max(static_cast<Real>(u(t, i)), Real(0));
      y(t, i) = static_cast<Out>(x * x);
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::SwiGlu, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<T>> gate,
                  MatrixView<const std::type_identity_t<T>> up, MatrixView<T> y) {
    reference::swiglu<T, T, T>(gate, up, y);
  }
};

template <>
struct kernel_for<op::Relu2, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<T>> u, MatrixView<T> y) {
    reference::relu2<T, T, T>(u, y);
  }
};

template <class A>
struct kernel_for<op::SwiGlu, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<const float> gate, MatrixView<const float> up, MatrixView<float> y) {
    constexpr std::int64_t L = simd::lanes<A>;
    const std::int64_t n = gate.cols;
    detail::for_parts(exec, gate.rows, 1, 8 * n, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        const float* g = gate.row(t);
        const float* u = up.row(t);
        float* to = y.row(t);
        std::int64_t i = 0;
        for (; i + L <= n; i += L) {
          simd::store<A>(to + i, simd::silu<A>(simd::load<A>(g + i)) * simd::load<A>(u + i));
        }
        if (i < n) {
          const simd::floats<A> s = simd::silu<A>(simd::load_partial<A>(g + i, n - i));
          simd::store_partial<A>(to + i, s * simd::load_partial<A>(u + i, n - i), n - i);
        }
      }
    });
  }
};

template <class A>
struct kernel_for<op::Relu2, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<const float> u, MatrixView<float> y) {
    constexpr std::int64_t L = simd::lanes<A>;
    const std::int64_t n = u.cols;
    const auto square = [](const simd::floats<A>& v) {
      const simd::floats<A> x = simd::max<A>(simd::zero<A>(), v);
      return x * x;
    };
    detail::for_parts(exec, u.rows, 1, n, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        const float* from = u.row(t);
        float* to = y.row(t);
        std::int64_t i = 0;
        for (; i + L <= n; i += L) simd::store<A>(to + i, square(simd::load<A>(from + i)));
        if (i < n) simd::store_partial<A>(to + i, square(simd::load_partial<A>(from + i, n - i)), n - i);
      }
    });
  }
};

HYMBA_NAMESPACE_END
