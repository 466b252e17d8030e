// SPDX-License-Identifier: Apache-2.0
//
// op::Gemm and op::GatedGemm on AMX tiles, and what arch::amx<Base> means for operations without tiles: Base. Includes
// every operation that has them, so that arch::amx means the same wherever it is named.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/amx/attention.hpp>
#include <hymba/kernels/amx/sinks.hpp>
#include <hymba/kernels/amx/tile_gemm.hpp>
#include <hymba/kernels/amx/weight_panels.hpp>
#include <hymba/kernels/dot/gemm.hpp>
#include <hymba/kernels/gated_gemm.hpp>
#include <hymba/kernels/gemm.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

#if defined(HYMBA_AMX)

namespace detail::amx {

/// One token or many. Of bytes always several: one goes to dot products (see dots_are_faster).
template <Weights W, class Exec, class Panels, class Sink>
void product(Exec& exec, Scratch scratch, MatrixView<const float> x, const Panels& w, const Sink& sink) {
  if constexpr (!TileGemm<W>::bytes) {
    if (x.rows == 1) return TileGemm<W>::one(exec, scratch, x, w, sink);
  }
  TileGemm<W>::many(exec, scratch, x, w, sink);
}

}  // namespace detail::amx

/// Operations that arch::amx does not specialise run on its base.
template <class Op, class Base>
struct kernel_for<Op, arch::amx<Base>> : kernel_for<Op, Base> {};

/// op::Gemm with f32 and bf16 weights: both operands rounded to bf16 (nearest even; subnormals become zero) and sums in
/// single precision, as the tiles form them. With int8 and int4 weights: activations rounded to signed bytes, with a
/// scale for each token and 256 columns; sums of a block exact. f16 weights run on the base. As on every architecture a
/// row's bits do not depend on the rows it is computed with. Where few tokens leave tiles nearly empty and dot products
/// of bytes are faster, those are used: their bits are the same.
template <class Base>
struct kernel_for<op::Gemm, arch::amx<Base>> {
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    using namespace detail::amx;
    return std::max({TileGemm<Weights::bf16>::scratch_bytes(rows, in), TileGemm<Weights::int8>::scratch_bytes(rows, in),
                     Dot<Weights::int8>::scratch_bytes(rows, in),
                     kernel_for<op::Gemm, Base>::scratch_bytes(rows, in, out)});
  }
  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in, std::int64_t) {
    using namespace detail::amx;
    return std::max({TileGemm<Weights::bf16>::shared_bytes(rows, in), TileGemm<Weights::int8>::shared_bytes(rows, in),
                     Dot<Weights::int8>::shared_bytes(rows, in)});
  }

  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    if (x.rows == 0) return;
    if constexpr (W == Weights::f16) {
      kernel_for<op::Gemm, Base>::run(exec, scratch, x, w, bias, y, store);
    } else if (dots_are_faster<W>(x.rows)) {
      if constexpr (weight_format<W>::quantised) Dot<W>::run(exec, scratch, x, w, bias, y, store);
    } else {
      detail::amx::product<W>(exec, scratch, x, detail::amx::RowPanels<W>(w), detail::amx::SumsToRows{bias, y, store});
    }
  }

  /// As measured (bench_gemm): a few tokens go past rows of bytes faster than tiles are loaded, and copied where they do
  /// not lie as tiles.
  template <Weights W>
  static constexpr bool dots_are_faster(std::int64_t tokens) {
    return weight_format<W>::quantised && tokens <= 4;
  }

 private:
  template <Weights W>
  using Dot = detail::dot::DotGemm<detail::dot::Best, W>;
};

/// op::GatedGemm: 16 rows of either matrix side by side, so that gate and up of a token meet in registers.
template <class A>
struct kernel_for<op::GatedGemm, arch::amx<arch::simd<A>>> {
  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> gate, WeightMatrix<W> up,
                  MatrixView<float> y, MatrixView<float> spare) {
    static_assert(simd::lanes<A> == 16, "hymba: arch::amx stands on an architecture of 512-bit vectors");
    if (x.rows == 0) return;
    using Gemm = kernel_for<op::Gemm, arch::amx<arch::simd<A>>>;
    if (W == Weights::f16 || gate.rotated != up.rotated || Gemm::template dots_are_faster<W>(x.rows)) {
      gated_gemm_in_parts<arch::amx<arch::simd<A>>>::run(exec, scratch, x, gate, up, y, spare);
    } else if constexpr (W != Weights::f16) {
      detail::amx::product<W>(exec, scratch, x, detail::amx::PairPanels<W>(gate, up), detail::amx::GatedSums<A>{y});
    }
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
