// SPDX-License-Identifier: Apache-2.0
//
// What a part of a layer gets in the backward pass, besides what it got in the forward pass.
//
// A part that can be trained has, beside its forward function, one that turns the gradient of its output into gradients
// of its input and of its tensors, found by argument-dependent lookup:
//
//   attention: attention_backward(heads, context, AttentionBackwardStep<E>&) attention_heads_backward.hpp ssm:
//   ssm_backward(heads, context, SsmBackwardStep<Real>&)                             mamba_heads_backward.hpp fusion:
//   fuse_backward(fusion, context, attention, ssm, d_out, d_attention, d_ssm, work)  fuse_backward.hpp mlp:
//   mlp_backward(mlp, context, in, d_out, d_in, work)                                mlp_backward.hpp
//
// A backward function gets what its forward function got and nothing else: what lies between (activations, norms,
// states) it computes again. That bounds what a layer must keep to its inputs, for the library's parts as for the
// user's. Gradients of tensors are added to what is there; gradients of inputs are assigned.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/context.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// A part's Context, and where the gradients of its tensors go.
template <Policy P>
struct GradientContext : Context<P> {
  using real = typename Context<P>::real;
  real* const* gradients = nullptr;  ///< in the order of `parameters`; each of its tensor's shape

  /// The gradient of the k-th tensor, to be added to.
  real* gradient(int k) const { return gradients[k]; }
  /// The gradient of the k-th tensor as a matrix [out, in].
  MatrixView<real> matrix_gradient(int k) const {
    return {gradients[k], this->parameters[k].rows, this->parameters[k].cols};
  }
};

HYMBA_NAMESPACE_END
