// SPDX-License-Identifier: Apache-2.0
//
// The matrix products of training: the gradients of a linear layer (op::Gemm) by its input and by its weights.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/train/kernels/amx/products.hpp>
#include <hymba/train/kernels/packed_product.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {

/// The gradient of op::Gemm by its input: `dx = dy w` (Store::assign) or `dx += dy w` (Store::add), with dy [T, O],
/// w [O, I] in weight format `W`, dx [T, I]: dx[t, i] (+)= sum over o of dy[t, o] w[o, i].
///
///     template <Weights W, class Exec, class Real>
///     static void run(Exec& exec, Scratch scratch, MatrixView<const Real> dy, WeightMatrix<W> w, MatrixView<Real> dx,
///                     Store store);
///     static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out);
///
/// dx overlaps neither dy nor w. T may be 0. scratch_bytes grows with each argument. The order of every sum depends on
/// O and the architecture alone.
struct GemmInputGradient {};

/// The gradient of op::Gemm by its parameters: `dw += dy^T x` and `db[o] += sum over t of dy[t, o]`, with dy [T, O],
/// x [T, I], dw [O, I], db [O] or null.
///
///     template <class Exec, class Real>
///     static void run(Exec& exec, Scratch scratch, MatrixView<const Real> dy, MatrixView<const Real> x,
///                     MatrixView<Real> dw, Real* db);
///     static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out);
///
/// dw and db overlap neither each other nor dy nor x. T may be 0: nothing is added. scratch_bytes grows with each
/// argument. The order of every sum depends on T and the architecture alone.
struct GemmWeightGradient {};

}  // namespace op

namespace reference {

/// op::GemmInputGradient in plain loops.
template <class Real, Weights W>
void gemm_input_gradient(MatrixView<const Real> dy, WeightMatrix<W> w, MatrixView<Real> dx, Store store) {
  using Element = typename weight_format<W>::element;
  for (std::int64_t t = 0; t < dy.rows; ++t) {
    Real* to = dx.row(t);
    if (store == Store::assign) {
      for (std::int64_t i = 0; i < w.cols; ++i) to[i] = Real(0);
    }
    for (std::int64_t o = 0; o < w.rows; ++o) {
      const auto* row = reinterpret_cast<const Element*>(w.row(o));
      for (std::int64_t i = 0; i < w.cols; ++i) to[i] += dy(t, o) * hymba::detail::number<Real>(row[i]);
    }
  }
}

/// op::GemmWeightGradient in plain loops.
template <class Real>
void gemm_weight_gradient(MatrixView<const Real> dy, MatrixView<const Real> x, MatrixView<Real> dw, Real* db) {
  for (std::int64_t o = 0; o < dy.cols; ++o) {
    for (std::int64_t t = 0; t < dy.rows; ++t) {
      for (std::int64_t i = 0; i < x.cols; ++i) dw(o, i) += dy(t, o) * x(t, i);
      if (db != nullptr) db[o] += dy(t, o);
    }
  }
}

}  // namespace reference

template <>
struct kernel_for<op::GemmInputGradient, arch::scalar> {
  static constexpr std::size_t scratch_bytes(std::int64_t, std::int64_t, std::int64_t) { return 0; }

  template <Weights W, class Exec, class Real>
  static void run(Exec& exec, Scratch, MatrixView<const std::type_identity_t<Real>> dy, WeightMatrix<W> w,
                  MatrixView<Real> dx, Store store) {
    detail::for_parts(exec, dy.rows, 1, w.rows * w.cols, [&](std::int64_t first, std::int64_t last, int) {
      reference::gemm_input_gradient<Real>(dy.row_range(first, last - first), w, dx.row_range(first, last - first),
                                           store);
    });
  }
};

template <>
struct kernel_for<op::GemmWeightGradient, arch::scalar> {
  static constexpr std::size_t scratch_bytes(std::int64_t, std::int64_t, std::int64_t) { return 0; }

  template <class Exec, class Real>
  static void run(Exec& exec, Scratch, MatrixView<const std::type_identity_t<Real>> dy,
                  MatrixView<const std::type_identity_t<Real>> x, MatrixView<Real> dw, std::type_identity_t<Real>* db) {
    detail::for_parts(exec, dy.cols, 1, dy.rows * x.cols, [&](std::int64_t first, std::int64_t last, int) {
      reference::gemm_weight_gradient<Real>(dy.columns(first, last - first), x, dw.row_range(first, last - first),
                                            db != nullptr ? db + first : nullptr);
    });
  }
};

template <class A>
struct kernel_for<op::GemmInputGradient, arch::simd<A>> {
  using Impl = detail::PackedProduct<A>;

  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return Impl::scratch_bytes(rows, in, out);
  }

  template <Weights W, class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> dy, WeightMatrix<W> w, MatrixView<float> dx,
                  Store store) {
    using Element = typename weight_format<W>::element;
    if (dy.rows == 0) return;
    Impl::template run<detail::LeftOrder::rows>(exec, scratch, dy.rows, w.cols, w.rows, dy.data, dy.stride,
                                                reinterpret_cast<const Element*>(w.data), w.cols, dx.data, dx.stride,
                                                store == Store::add);
  }
};

template <class A>
struct kernel_for<op::GemmWeightGradient, arch::simd<A>> {
  using Impl = detail::PackedProduct<A>;

  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return Impl::scratch_bytes(out, in, rows);
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> dy, MatrixView<const float> x,
                  MatrixView<float> dw, float* db) {
    if (dy.rows == 0) return;
    Impl::template run<detail::LeftOrder::columns>(exec, scratch, dy.cols, x.cols, dy.rows, dy.data, dy.stride, x.data,
                                                   x.stride, dw.data, dw.stride, true, db);
  }
};

HYMBA_NAMESPACE_END
