// SPDX-License-Identifier: Apache-2.0
//
// Gradients of the MLPs of variant/mlp.hpp.
//
// An MLP of one's own supplies, in its own namespace,
//
//   template <class Context, class Real>
//   void mlp_backward(const MyMlp&, const Context&, MatrixView<const Real> in, MatrixView<const Real> d_out,
//                     MatrixView<Real> d_in, Real* work);
//
// in [T, D] is what mlp_forward got, d_out [T, D] the gradient of what it added to; d_in [T, D] is assigned. `work` has
// mlp_backward_floats(mlp, T) numbers (default: 4 * T * hidden()).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/mlp.hpp>
#include <hymba/train/gradient_context.hpp>
#include <hymba/train/kernels/activations_backward.hpp>
#include <hymba/train/kernels/products.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// Numbers of working memory the MLP's backward pass wants for `rows` rows; an MLP of one's own may overload it.
template <class M>
constexpr std::int64_t mlp_backward_floats(const M& mlp, std::int64_t rows) {
  return 4 * rows * mlp.hidden();
}

template <int F, class C, class Real>
void mlp_backward(const SwiGlu<F>& mlp, const C& c, MatrixView<const Real> in, MatrixView<const Real> d_out,
                  MatrixView<Real> d_in, Real* work) {
  const std::int64_t rows = in.rows, hidden = mlp.hidden();
  const MatrixView<Real> gate(work, rows, hidden), up(gate.data + rows * hidden, rows, hidden);
  const MatrixView<Real> y(up.data + rows * hidden, rows, hidden), d_y(y.data + rows * hidden, rows, hidden);
  const Real* no_bias = nullptr;
  run<op::Gemm>(c, in, c.matrix(0), no_bias, gate, Store::assign);
  run<op::Gemm>(c, in, c.matrix(1), no_bias, up, Store::assign);
  run<op::SwiGlu>(c, gate, up, y);
  run<op::GemmWeightGradient>(c, d_out, y, c.matrix_gradient(2), static_cast<Real*>(nullptr));
  run<op::GemmInputGradient>(c, d_out, c.matrix(2), d_y, Store::assign);
  run<op::SwiGluBackward>(c, gate, up, d_y, gate, up);
  run<op::GemmWeightGradient>(c, gate, in, c.matrix_gradient(0), static_cast<Real*>(nullptr));
  run<op::GemmWeightGradient>(c, up, in, c.matrix_gradient(1), static_cast<Real*>(nullptr));
  run<op::GemmInputGradient>(c, gate, c.matrix(0), d_in, Store::assign);
  run<op::GemmInputGradient>(c, up, c.matrix(1), d_in, Store::add);
}

template <int F, class C, class Real>
void mlp_backward(const Relu2<F>& mlp, const C& c, MatrixView<const Real> in, MatrixView<const Real> d_out,
                  MatrixView<Real> d_in, Real* work) {
  const std::int64_t rows = in.rows, hidden = mlp.hidden();
  const MatrixView<Real> up(work, rows, hidden), y(up.data + rows * hidden, rows, hidden);
  const MatrixView<Real> d_y(y.data + rows * hidden, rows, hidden);
  run<op::Gemm>(c, in, c.matrix(0), static_cast<const Real*>(nullptr), up, Store::assign);
  run<op::Relu2>(c, up, y);
  run<op::GemmWeightGradient>(c, d_out, y, c.matrix_gradient(1), static_cast<Real*>(nullptr));
  run<op::GemmInputGradient>(c, d_out, c.matrix(1), d_y, Store::assign);
  run<op::Relu2Backward>(c, up, d_y, d_y);
  run<op::GemmWeightGradient>(c, d_y, in, c.matrix_gradient(0), static_cast<Real*>(nullptr));
  run<op::GemmInputGradient>(c, d_y, c.matrix(0), d_in, Store::assign);
}

template <class C, class Real>
void mlp_backward(const NoMlp&, const C&, MatrixView<const Real>, MatrixView<const Real>, MatrixView<Real>, Real*) {}

template <class C, class Real>
void mlp_backward(const RuntimeMlp& mlp, const C& c, MatrixView<const Real> in, MatrixView<const Real> d_out,
                  MatrixView<Real> d_in, Real* work) {
  mlp.visit([&](const auto& m) { mlp_backward(m, c, in, d_out, d_in, work); });
}

HYMBA_NAMESPACE_END
