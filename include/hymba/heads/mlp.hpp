// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of the MLPs of variant/mlp.hpp.
//
// An MLP of one's own supplies, in its own namespace,
//
//   template <class Context>
//   void mlp_forward(const MyMlp&, const Context&, MatrixView<const float> in, MatrixView<float> out, float* workspace);
//
// in [T, D] normalised, out [T, D] to be added to, workspace of mlp_workspace_floats(mlp, T) floats (default:
// 2 * T * hidden()).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/context.hpp>
#include <hymba/kernels/activations.hpp>
#include <hymba/kernels/gated_gemm.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/variant/mlp.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

template <int F, class C>
void mlp_forward(const SwiGlu<F>& mlp, const C& c, MatrixView<const typename C::real> in,
                 MatrixView<typename C::real> out, typename C::real* workspace) {
  using Real = typename C::real;
  const std::int64_t rows = in.rows, hidden = mlp.hidden();
  MatrixView<Real> gated(workspace, rows, hidden), spare(workspace + rows * hidden, rows, hidden);
  run<op::GatedGemm>(c, in, c.matrix(0), c.matrix(1), gated, spare);
  run<op::Gemm>(c, gated, c.matrix(2), static_cast<const Real*>(nullptr), out, Store::add);
}

template <int F, class C>
void mlp_forward(const Relu2<F>& mlp, const C& c, MatrixView<const typename C::real> in,
                 MatrixView<typename C::real> out, typename C::real* workspace) {
  using Real = typename C::real;
  MatrixView<Real> up(workspace, in.rows, mlp.hidden());
  run<op::Gemm>(c, in, c.matrix(0), static_cast<const Real*>(nullptr), up, Store::assign);
  run<op::Relu2>(c, up, up);
  run<op::Gemm>(c, up, c.matrix(1), static_cast<const Real*>(nullptr), out, Store::add);
}

template <class C>
void mlp_forward(const NoMlp&, const C&, MatrixView<const typename C::real>, MatrixView<typename C::real>,
                 typename C::real*) {}

template <class C>
void mlp_forward(const RuntimeMlp& mlp, const C& c, MatrixView<const typename C::real> in,
                 MatrixView<typename C::real> out, typename C::real* workspace) {
  mlp.visit([&](const auto& m) { mlp_forward(m, c, in, out, workspace); });
}

HYMBA_NAMESPACE_END
