// SPDX-License-Identifier: Apache-2.0
//
// The matrix products of training on AMX tiles: both operands rounded to bf16 (nearest even; subnormals become zero),
// sums in single precision. Included by train/kernels/products.hpp, which has the operations.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/amx/gemm.hpp>
#include <hymba/kernels/gemm.hpp>

#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace op {
struct GemmInputGradient;
struct GemmWeightGradient;
}  // namespace op

#if defined(HYMBA_AMX)

template <class Base>
struct kernel_for<op::GemmInputGradient, arch::amx<Base>> {
  using Impl = detail::amx::Product<detail::amx::Depth::along, detail::amx::Depth::across>;

  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return Impl::scratch_bytes(rows, in, out);
  }

  template <Weights W, class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> dy, WeightMatrix<W> w, MatrixView<float> dx,
                  Store store) {
    using Element = typename weight_format<W>::element;
    if (dy.rows == 0) return;
    Impl::run(exec, scratch, dy.rows, w.cols, w.rows, dy.data, dy.stride, reinterpret_cast<const Element*>(w.data),
              w.cols, nullptr, dx.data, dx.stride, store == Store::add);
  }
};

/// The gradient of the bias is summed in single precision from dy as it is, not rounded.
template <class Base>
struct kernel_for<op::GemmWeightGradient, arch::amx<Base>> {
  using Impl = detail::amx::Product<detail::amx::Depth::across, detail::amx::Depth::across>;

  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return Impl::scratch_bytes(out, in, rows);
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> dy, MatrixView<const float> x,
                  MatrixView<float> dw, float* db) {
    if (dy.rows == 0) return;
    Impl::run(exec, scratch, dy.cols, x.cols, dy.rows, dy.data, dy.stride, x.data, x.stride, nullptr, dw.data,
              dw.stride, true, db);
  }
};

#endif  // HYMBA_AMX

HYMBA_NAMESPACE_END
