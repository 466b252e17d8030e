// SPDX-License-Identifier: Apache-2.0
//
// What the parts of a variant need to be trained: a backward function beside the forward one. One readable error names
// the function that is missing.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/train/attention_heads_backward.hpp>
#include <hymba/train/fuse_backward.hpp>
#include <hymba/train/mamba_heads_backward.hpp>
#include <hymba/train/mlp_backward.hpp>
#include <hymba/variant/architecture.hpp>

#include <concepts>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// Attention heads with a backward pass: see attention_heads_backward.hpp.
template <class H, class P>
concept TrainableAttention = requires(const H& h, const GradientContext<P>& c,
                                      const AttentionBackwardStep<typename P::cache_element>& step) {
  attention_backward(h, c, step);
  { attention_backward_floats(h, std::int64_t{1}) } -> std::convertible_to<std::int64_t>;
};

/// Recurrent heads with a backward pass: see mamba_heads_backward.hpp.
template <class H, class P>
concept TrainableRecurrence = requires(const H& h, const GradientContext<P>& c,
                                       const SsmBackwardStep<activation_t<P::weights>>& step) {
  ssm_backward(h, c, step);
  { ssm_backward_floats(h, std::int64_t{1}) } -> std::convertible_to<std::int64_t>;
};

/// A fusion with a backward pass: see fuse_backward.hpp.
template <class F, class P>
concept TrainableFusion = requires(const F& f, const GradientContext<P>& c,
                                   MatrixView<const activation_t<P::weights>> in,
                                   MatrixView<activation_t<P::weights>> out, activation_t<P::weights>* work) {
  fuse_backward(f, c, in, in, in, out, out, work);
};

/// An MLP with a backward pass: see mlp_backward.hpp.
template <class M, class P>
concept TrainableMlp = requires(const M& m, const GradientContext<P>& c, MatrixView<const activation_t<P::weights>> in,
                                MatrixView<activation_t<P::weights>> out, activation_t<P::weights>* work) {
  mlp_backward(m, c, in, in, out, work);
  { mlp_backward_floats(m, std::int64_t{1}) } -> std::convertible_to<std::int64_t>;
};

/// Whether every part of `V` can be trained; if not, a compile-time error with a sentence.
template <class V, class P>
consteval bool check_trainable() {
  using A = Architecture<V>;
  if constexpr (A::has_attention) {
    static_assert(
        TrainableAttention<typename A::attention_type, P>,
        "hymba: to train this variant its attention heads need attention_backward(heads, context, step) beside "
        "them: see hymba/train/attention_heads_backward.hpp");
  }
  if constexpr (A::has_ssm) {
    static_assert(TrainableRecurrence<typename A::ssm_type, P>,
                  "hymba: to train this variant its recurrent heads need ssm_backward(heads, context, step) and "
                  "ssm_backward_floats(heads, rows) beside them: see hymba/train/mamba_heads_backward.hpp");
  }
  if constexpr (A::has_attention && A::has_ssm) {
    static_assert(TrainableFusion<typename A::fuse_type, P>,
                  "hymba: to train this variant its fusion needs fuse_backward(fusion, context, attention, ssm, d_out, "
                  "d_attention, d_ssm, work) beside it: see hymba/train/fuse_backward.hpp");
  }
  static_assert(
      TrainableMlp<typename A::mlp_type, P>,
      "hymba: to train this variant its MLP needs mlp_backward(mlp, context, in, d_out, d_in, work) beside it: "
      "see hymba/train/mlp_backward.hpp");
  return true;
}

HYMBA_NAMESPACE_END
