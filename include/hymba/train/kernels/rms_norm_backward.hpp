// SPDX-License-Identifier: Apache-2.0
//
// Gradients of the root-mean-square normalisation of rows.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// Gradients of op::RmsNorm, `y = weight * x * r` with `r = 1 / sqrt(mean(x^2) + eps)` per row. For x, dy and dx [T, D]
/// and weight and dweight [D]:
///
///     dx_i      = r * (weight_i dy_i - x_i r^2 / D * sum_j weight_j dy_j x_j)
///     dweight_i += sum over rows of dy_i x_i r
///
///     template <class Real, Executor E>
///     static void run(E& exec, Scratch scratch, MatrixView<const Real> x, const Real* weight, float eps,
///                     MatrixView<const Real> dy, MatrixView<Real> dx, Real* dweight, Store store);
///     static constexpr std::size_t scratch_bytes(std::int64_t cols);
///
/// x is the input of the forward pass. `store` says whether dx is assigned or added to; dweight is always added to, and
/// left out when null. dx may be dy when it is assigned; nothing else overlaps. Real is float; double too on
/// arch::scalar. The sums over rows depend on the number of threads, and on nothing else but the operands.
/// Source: the derivative of Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467).
struct RmsNormBackward {};
}  // namespace op

namespace reference {
/// op::RmsNormBackward in plain loops.
template <class Real>
void rms_norm_backward(MatrixView<const Real> x, const Real* weight, float eps, MatrixView<const Real> dy,
                       MatrixView<Real> dx, Real* dweight, Store store) {
  const auto n = static_cast<Real>(x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    Real squares = 0, products = 0;
    for (std::int64_t i = 0; i < x.cols; ++i) {
      squares += x(t, i) * x(t, i);
      products += weight[i] * dy(t, i) * x(t, i);
    }
    const Real inverse = Real(1) / std::sqrt(squares / n + static_cast<Real>(eps));
    const Real pull = inverse * inverse * inverse / n * products;
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const Real g = dy(t, i), v = x(t, i);
      const Real d = inverse * (weight[i] * g) - v * pull;
      dx(t, i) = store == Store::add ? dx(t, i) + d : d;
      if (dweight != nullptr) dweight[i] += g * (v * inverse);
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::RmsNormBackward, arch::scalar> {
  static constexpr std::size_t scratch_bytes(std::int64_t) { return 0; }

  template <class Exec, class Real>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<Real>> x,
                  const std::type_identity_t<Real>* weight, float eps, MatrixView<const std::type_identity_t<Real>> dy,
                  MatrixView<Real> dx, std::type_identity_t<Real>* dweight, Store store) {
    reference::rms_norm_backward<Real>(x, weight, eps, dy, dx, dweight, store);
  }
};

/// Four rows at a time: their sums first, then one pass over the columns for dx and for what they add to dweight. Each
/// part of the rows sums dweight in scratch of its own; the caller adds the parts in order.
template <class A>
struct kernel_for<op::RmsNormBackward, arch::simd<A>> {
  static constexpr std::size_t scratch_bytes(std::int64_t cols) {
    return aligned_size(static_cast<std::size_t>(cols) * sizeof(float));
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, const float* weight, float eps,
                  MatrixView<const float> dy, MatrixView<float> dx, float* dweight, Store store) {
    if (x.rows == 0) return;
    const std::int64_t n = x.cols, worth = std::max<std::int64_t>(1, x.rows * 6 * n / detail::task_work);
    const std::int64_t parts = std::min({x.rows, worth, static_cast<std::int64_t>(exec.threads())});
    exec.parallel_for(parts, [&](std::int64_t part, int) noexcept {
      const std::int64_t first = x.rows * part / parts, last = x.rows * (part + 1) / parts;
      float* const sums = dweight != nullptr ? scratch.of<float>(static_cast<int>(part)) : nullptr;
      if (sums != nullptr) std::fill_n(sums, n, 0.0f);
      std::int64_t t = first;
      for (; t + 4 <= last; t += 4) rows<4>(x, weight, eps, dy, dx, sums, store, t);
      for (; t < last; ++t) rows<1>(x, weight, eps, dy, dx, sums, store, t);
    });
    if (dweight == nullptr) return;
    float* const total = scratch.of<float>(0);
    for (int part = 1; part < parts; ++part) add(scratch.of<float>(part), n, total);
    add(total, n, dweight);
  }

 private:
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;

  static void add(const float* from, std::int64_t n, float* to) {
    std::int64_t i = 0;
    for (; i + L <= n; i += L) simd::store<A>(to + i, simd::load<A>(to + i) + simd::load<A>(from + i));
    for (; i < n; ++i) to[i] += from[i];
  }

  /// r of a row, and r^3 / n * sum(weight dy x).
  static HYMBA_ALWAYS_INLINE void row_sums(const float* x, const float* weight, const float* dy, std::int64_t n,
                                           float eps, float& inverse, float& pull) {
    V squares[4], products[4];
    detail::unrolled<4>([&](auto k) { squares[k] = products[k] = simd::zero<A>(); });
    const auto step = [&](int k, const V& v, const V& w, const V& g) {
      squares[k] = simd::fma<A>(v, v, squares[k]);
      products[k] = simd::fma<A>(w * g, v, products[k]);
    };
    std::int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
      detail::unrolled<4>([&](auto k) {
        const std::int64_t at = i + k * L;
        step(k, simd::load<A>(x + at), simd::load<A>(weight + at), simd::load<A>(dy + at));
      });
    }
    for (; i + L <= n; i += L) step(0, simd::load<A>(x + i), simd::load<A>(weight + i), simd::load<A>(dy + i));
    if (i < n) {
      const std::int64_t rest = n - i;
      step(0, simd::load_partial<A>(x + i, rest), simd::load_partial<A>(weight + i, rest),
           simd::load_partial<A>(dy + i, rest));
    }
    const float size = static_cast<float>(n);
    const float square = simd::sum<A>((squares[0] + squares[1]) + (squares[2] + squares[3]));
    const float product = simd::sum<A>((products[0] + products[1]) + (products[2] + products[3]));
    inverse = 1.0f / std::sqrt(square / size + eps);
    pull = inverse * inverse * inverse / size * product;
  }

  template <int R>
  static void rows(MatrixView<const float> x, const float* weight, float eps, MatrixView<const float> dy,
                   MatrixView<float> dx, float* sums, Store store, std::int64_t t) {
    if (store == Store::add) {
      rows<R, true>(x, weight, eps, dy, dx, sums, t);
    } else {
      rows<R, false>(x, weight, eps, dy, dx, sums, t);
    }
  }
  /// dx of rows [t, t + R), and their part of dweight when there is one.
  template <int R, bool Add>
  static void rows(MatrixView<const float> x, const float* weight, float eps, MatrixView<const float> dy,
                   MatrixView<float> dx, float* sums, std::int64_t t) {
    const std::int64_t n = x.cols;
    const float *xs[R], *dys[R];
    float* dxs[R];
    V inverses[R], pulls[R];
    for (int r = 0; r < R; ++r) {
      xs[r] = x.row(t + r);
      dys[r] = dy.row(t + r);
      dxs[r] = dx.row(t + r);
      float inverse = 0, pull = 0;
      row_sums(xs[r], weight, dys[r], n, eps, inverse, pull);
      inverses[r] = V(inverse);
      pulls[r] = V(pull);
    }
    std::int64_t i = 0;
    for (; i + L <= n; i += L) {
      const V w = simd::load<A>(weight + i);
      V sum = simd::zero<A>();
      detail::unrolled<R>([&](auto r) {
        const V v = simd::load<A>(xs[r] + i), g = simd::load<A>(dys[r] + i);
        V d = simd::fma<A>(w * g, inverses[r], -(v * pulls[r]));
        if constexpr (Add) d = d + simd::load<A>(dxs[r] + i);
        sum = simd::fma<A>(v * inverses[r], g, sum);
        simd::store<A>(dxs[r] + i, d);
      });
      if (sums != nullptr) simd::store<A>(sums + i, simd::load<A>(sums + i) + sum);
    }
    if (i == n) return;
    const std::int64_t rest = n - i;
    const V w = simd::load_partial<A>(weight + i, rest);
    V sum = simd::zero<A>();
    detail::unrolled<R>([&](auto r) {
      const V v = simd::load_partial<A>(xs[r] + i, rest), g = simd::load_partial<A>(dys[r] + i, rest);
      V d = simd::fma<A>(w * g, inverses[r], -(v * pulls[r]));
      if constexpr (Add) d = d + simd::load_partial<A>(dxs[r] + i, rest);
      sum = simd::fma<A>(v * inverses[r], g, sum);
      simd::store_partial<A>(dxs[r] + i, d, rest);
    });
    if (sums != nullptr) simd::store_partial<A>(sums + i, simd::load_partial<A>(sums + i, rest) + sum, rest);
  }
};

HYMBA_NAMESPACE_END
