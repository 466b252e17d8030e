// SPDX-License-Identifier: Apache-2.0
//
// What a part of a layer (heads, fusion, MLP) gets besides its inputs: its tensors, its derived numbers, who runs it.
//
// A part of one's own is a shape type (see variant/) with a function beside it, found by argument-dependent lookup:
//
//   attention: attention_forward(heads, context, AttentionStep<E>&)         heads/attention_heads.hpp
//   ssm:       ssm_forward(heads, context, SsmStep&)                        heads/mamba_heads.hpp
//   fusion:    fuse_forward(fusion, context, attention, ssm, out)           heads/fuse.hpp
//   mlp:       mlp_forward(mlp, context, in, out, workspace)                heads/mlp.hpp
//
// and optionally `derived_floats(part)` / `derive(part, context, out)` for numbers computed from the tensors once, at
// load (a fusion's take both widths behind the part; `derive` runs no kernels: its context has no scratch). The
// library's own parts use the same functions.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/policy.hpp>

#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// One tensor as a model holds it: a vector of activation_t, or a matrix in the policy's weight format.
struct Parameter {
  const std::byte* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  bool rotated = false;  ///< see WeightMatrix
};

/// Passed to every part. Cheap to copy.
template <Policy P>
struct Context {
  using policy = P;
  using arch = typename P::arch;
  using real = activation_t<P::weights>;  ///< of activations and vectors: float, but for Weights::f64
  typename P::executor& executor;
  Scratch scratch;
  float eps = 0;                          ///< of the norms
  const Parameter* parameters = nullptr;  ///< in the order in which the part's `tensors` visits them
  const real* derived = nullptr;          ///< what `derive` wrote for this layer's part

  /// The k-th tensor of this part as numbers; the part declared it with vector_tensor.
  const real* vector(int k) const { return reinterpret_cast<const real*>(parameters[k].data); }
  /// The k-th tensor of this part as a weight matrix; the part declared it with matrix_tensor.
  WeightMatrix<P::weights> matrix(int k) const { return as<P::weights>(k); }
  /// The same where the part declared it with fine_matrix_tensor.
  WeightMatrix<fine_weights(P::weights)> fine_matrix(int k) const { return as<fine_weights(P::weights)>(k); }

 private:
  template <Weights W>
  WeightMatrix<W> as(int k) const {
    return {parameters[k].data, parameters[k].rows, parameters[k].cols, parameters[k].rotated};
  }
};

/// Runs operation `Op` on the context's architecture: `run<op::RmsNorm>(context, x, weight, eps, y)`.
template <class Op, class C, class... Args>
void run(const C& context, Args&&... args) {
  kernel_for<Op, typename C::arch>::run(context.executor, context.scratch, static_cast<Args&&>(args)...);
}

HYMBA_NAMESPACE_END
