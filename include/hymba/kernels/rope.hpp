// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding of queries or keys.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// Rotates every head of x [T, heads * width] in place by its row's angles; cos and sin [T, width / 2]. "Rotate half"
/// convention: with (a, b) the first and second half of a head, `a' = a cos - b sin`, `b' = b cos + a sin`.
///
///     static void run(E& exec, Scratch scratch, MatrixView<float> x, int heads, int width, MatrixView<const float>
///     cos,
///                     MatrixView<const float> sin);
///
/// `width` is even. Source: Su et al., "RoFormer" (arXiv 2104.09864).
struct Rope {};
}  // namespace op

namespace reference {
/// op::Rope in plain loops.
template <class Real, class X, class In = float>
void rope(MatrixView<X> x, int heads, int width, MatrixView<const std::type_identity_t<In>> cos,
          MatrixView<const std::type_identity_t<In>> sin) {
  const std::int64_t half = width / 2;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      X* a = x.row(t) + h * width;
      X* b = a + half;
      for (std::int64_t i = 0; i < half; ++i) {
        const Real c = static_cast<Real>(cos(t, i)), s = static_cast<Real>(sin(t, i));
        const Real first = static_cast<Real>(a[i]), second = static_cast<Real>(b[i]);
        a[i] = static_cast<X>(first * c - second * s);
        b[i] = static_cast<X>(second * c + first * s);
      }
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::Rope, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, MatrixView<T> x, int heads, int width, MatrixView<const std::type_identity_t<T>> cos,
                  MatrixView<const std::type_identity_t<T>> sin) {
    reference::rope<T, T, T>(x, heads, width, cos, sin);
  }
};

template <class A>
struct kernel_for<op::Rope, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<float> x, int heads, int width, MatrixView<const float> cos,
                  MatrixView<const float> sin) {
    const std::int64_t half = width / 2;
    detail::for_parts(exec, x.rows, 1, 2 * static_cast<std::int64_t>(heads) * width,
                      [&](std::int64_t first, std::int64_t last, int) {
                        for (std::int64_t t = first; t < last; ++t) {
                          for (int h = 0; h < heads; ++h) {
                            head(x.row(t) + static_cast<std::int64_t>(h) * width, half, cos.row(t), sin.row(t));
                          }
                        }
                      });
  }

 private:
  static HYMBA_ALWAYS_INLINE void head(float* a, std::int64_t half, const float* cos, const float* sin) {
    constexpr std::int64_t L = simd::lanes<A>;
    float* b = a + half;
    std::int64_t i = 0;
    for (; i + L <= half; i += L) {
      const simd::floats<A> c = simd::load<A>(cos + i), s = simd::load<A>(sin + i);
      const simd::floats<A> first = simd::load<A>(a + i), second = simd::load<A>(b + i);
      simd::store<A>(a + i, simd::fma<A>(-second, s, first * c));
      simd::store<A>(b + i, simd::fma<A>(first, s, second * c));
    }
    if (i < half) {
      const std::int64_t rest = half - i;
      const simd::floats<A> c = simd::load_partial<A>(cos + i, rest), s = simd::load_partial<A>(sin + i, rest);
      const simd::floats<A> first = simd::load_partial<A>(a + i, rest), second = simd::load_partial<A>(b + i, rest);
      simd::store_partial<A>(a + i, simd::fma<A>(-second, s, first * c), rest);
      simd::store_partial<A>(b + i, simd::fma<A>(first, s, second * c), rest);
    }
  }
};

HYMBA_NAMESPACE_END
