// SPDX-License-Identifier: Apache-2.0
//
// The two input products of a gated MLP and what joins them (Shazeer, "GLU variants", arXiv 2002.05202).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/activations.hpp>
#include <hymba/kernels/gemm.hpp>

#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// `y = silu(x gate^T) * (x up^T)`, with x [T, I], gate and up [F, I] in weight format `W`, y [T, F].
///
///     template <Weights W, Executor E>
///     static void run(E& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> gate, WeightMatrix<W> up,
///                     MatrixView<float> y, MatrixView<float> spare);
///
/// gate and up may be rotated, one or both. spare [T, F] is memory that may be overwritten. y, spare, x and the weights
/// do not overlap. T may be 0. Scratch is that of op::Gemm with all these rows. The bits of an element depend on its row alone, as op::Gemm's do.
struct GatedGemm {};
}  // namespace op

/// op::GatedGemm as two op::Gemm and an op::SwiGlu of `Arch`. What an architecture without a kernel of its own derives
/// its specialisation from.
template <class Arch>
struct gated_gemm_in_parts {
  template <class Exec, Weights W, class T>
  static void run(Exec& exec, Scratch scratch, MatrixView<const std::type_identity_t<T>> x, WeightMatrix<W> gate,
                  WeightMatrix<W> up, MatrixView<T> y, MatrixView<T> spare) {
    constexpr const T* no_bias = nullptr;
    kernel_for<op::Gemm, Arch>::run(exec, scratch, x, gate, no_bias, y, Store::assign);
    kernel_for<op::Gemm, Arch>::run(exec, scratch, x, up, no_bias, spare, Store::assign);
    kernel_for<op::SwiGlu, Arch>::run(exec, scratch, y, spare, y);
  }
};

template <>
struct kernel_for<op::GatedGemm, arch::scalar> : gated_gemm_in_parts<arch::scalar> {};
template <class A>
struct kernel_for<op::GatedGemm, arch::simd<A>> : gated_gemm_in_parts<arch::simd<A>> {};

HYMBA_NAMESPACE_END
