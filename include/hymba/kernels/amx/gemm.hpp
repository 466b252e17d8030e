// SPDX-License-Identifier: Apache-2.0
//
// op::Gemm on AMX tiles, and what arch::amx<Base> means for every other operation: Base.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/amx/tiles.hpp>
#include <hymba/kernels/gemm.hpp>

#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

#if defined(HYMBA_AMX)

/// Operations that arch::amx does not specialise run on its base.
template <class Op, class Base>
struct kernel_for<Op, arch::amx<Base>> : kernel_for<Op, Base> {};

/// op::Gemm with x and w rounded to bf16 (nearest even; subnormals become zero) and sums in single precision, as the
/// tiles form them. As on every architecture a row's bits do not depend on the rows it is computed with.
template <class Base>
struct kernel_for<op::Gemm, arch::amx<Base>> {
  using Impl = detail::amx::Product<detail::amx::Depth::along, detail::amx::Depth::along>;

  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return Impl::scratch_bytes(rows, out, in);
  }

  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    using Element = typename weight_format<W>::element;
    if (x.rows == 0) return;
    Impl::run(exec, scratch, x.rows, w.rows, w.cols, x.data, x.stride, reinterpret_cast<const Element*>(w.data), w.cols,
              bias, y.data, y.stride, store == Store::add);
  }
};

#else

template <class Op, class Base>
struct kernel_for<Op, arch::amx<Base>> {
  static_assert(
      detail::always_false<Op, Base>,
      "hymba: arch::amx needs a translation unit compiled for AMX with bf16 and AVX-512 (-march=sapphirerapids, "
      "or -march=native on a processor that has them)");
};

#endif  // HYMBA_AMX

HYMBA_NAMESPACE_END
