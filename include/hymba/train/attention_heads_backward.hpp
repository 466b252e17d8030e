// SPDX-License-Identifier: Apache-2.0
//
// Gradients of attention heads.
//
// Attention heads of one's own supply, in their own namespace,
//
//   template <class Context, class E>
//   void attention_backward(const MyHeads&, const Context&, const AttentionBackwardStep<E>&);
//
// and, when rows * query_width() numbers of working memory are not enough, attention_backward_floats(heads, rows).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/attention_heads.hpp>
#include <hymba/train/gradient_context.hpp>
#include <hymba/train/kernels/attention_backward.hpp>
#include <hymba/train/kernels/rms_norm_backward.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

HYMBA_NAMESPACE_BEGIN

/// Inputs and outputs of the backward pass of attention heads for one layer. A cache that several layers share has one
/// gradient: every reader adds its own, from the last layer to the first, and the layer that produces the keys and
/// values comes last and passes the sum on to its input.
template <class E>
struct AttentionBackwardStep {
  using Real = activation_beside_t<E>;
  MatrixView<const Real> input;  ///< [T, input_rows(produces)]: what attention_forward got
  bool produces = true;
  int window = 0;
  std::int64_t meta = 0;
  std::span<const AttentionGradientSequence<Real>> sequences;  ///< the cache's keys and values, and their gradients
  MatrixView<const Real> cosines, sines, negative_sines;       ///< [T, key_width / 2]; empty without rotary embedding
  MatrixView<const Real> output;                               ///< [T, output_width()]: what attention_forward made
  MatrixView<const Real> d_output;
  MatrixView<Real> d_input;   ///< [T, input_rows(produces)], assigned
  Real* workspace = nullptr;  ///< attention_backward_floats(heads, T) numbers
};

/// Numbers of working memory for `rows` rows.
template <class Heads>
constexpr std::int64_t attention_backward_floats(const Heads& h, std::int64_t rows) {
  return rows * h.query_width();
}

namespace detail {

template <class Heads, class C, class E>
void dot_product_attention_backward(const Heads& h, const C& c, const AttentionBackwardStep<E>& step) {
  using Real = typename C::real;
  const std::int64_t rows = step.input.rows;
  const int heads = h.query_heads, groups = h.kv_heads, dk = h.key_width, dv = h.value_width;
  const bool rotary = step.cosines.cols > 0;
  const MatrixView<const Real> q = step.input.columns(0, h.query_width());
  const MatrixView<Real> d_q = step.d_input.columns(0, h.query_width());

  // For each head the norm's weight: shared by all heads, or one row each.
  const auto norm_row = [&](int head) { return h.qk_norm == QkNorm::per_head_rms ? head * dk : 0; };
  const MatrixView<Real> rotated(step.workspace, rows, h.query_width());
  for (std::int64_t t = 0; t < rows; ++t) std::copy_n(q.row(t), h.query_width(), rotated.row(t));
  if (h.qk_norm != QkNorm::none) {
    for (int i = 0; i < heads; ++i) {
      const MatrixView<Real> head = rotated.columns(static_cast<std::int64_t>(i) * dk, dk);
      run<op::RmsNorm>(c, head, c.vector(0) + norm_row(i), c.eps, head);
    }
  }
  if (rotary) run<op::Rope>(c, rotated, heads, dk, step.cosines, step.sines);

  const AttentionShape shape{heads, groups, dk, dv, step.window, step.meta, 1.0f / std::sqrt(static_cast<float>(dk))};
  run<op::AttentionBackward>(c, shape, rotated, step.output, step.d_output, step.sequences, d_q);

  // The gradient of a rotation is the rotation back.
  const auto unrotate = [&](MatrixView<Real> d, int count) {
    if (rotary) run<op::Rope>(c, d, count, dk, step.cosines, step.negative_sines);
  };
  const auto norms_backward = [&](MatrixView<const Real> from, MatrixView<Real> d, int count, int tensor) {
    if (h.qk_norm == QkNorm::none) return;
    for (int i = 0; i < count; ++i) {
      const std::int64_t at = static_cast<std::int64_t>(i) * dk;
      run<op::RmsNormBackward>(c, from.columns(at, dk), c.vector(tensor) + norm_row(i), c.eps, d.columns(at, dk),
                               d.columns(at, dk), c.gradient(tensor) + norm_row(i), Store::assign);
    }
  };
  unrotate(d_q, heads);
  norms_backward(q, d_q, heads, 0);
  if (!step.produces) return;

  const MatrixView<Real> d_k = step.d_input.columns(h.query_width(), h.keys_width());
  const MatrixView<Real> d_v = step.d_input.columns(h.query_width() + h.keys_width(), h.values_width());
  for (const AttentionGradientSequence<Real>& s : step.sequences) {
    for (std::int64_t t = 0; t < s.rows; ++t) {
      for (int g = 0; g < groups; ++g) {
        std::copy_n(s.d_keys + g * s.key_head_stride + t * dk, dk, d_k.row(s.first_row + t) + g * dk);
        std::copy_n(s.d_values + g * s.value_head_stride + t * dv, dv, d_v.row(s.first_row + t) + g * dv);
      }
    }
  }
  unrotate(d_k, groups);
  norms_backward(step.input.columns(h.query_width(), h.keys_width()), d_k, groups, 1);
}
}  // namespace detail

template <int H, int G, int K, int W, class Position, QkNorm N, class C, class E>
void attention_backward(const AttentionHeads<H, G, K, W, Position, N>& h, const C& c,
                        const AttentionBackwardStep<E>& step) {
  detail::dot_product_attention_backward(h, c, step);
}
template <class C, class E>
void attention_backward(const RuntimeAttentionHeads& h, const C& c, const AttentionBackwardStep<E>& step) {
  detail::dot_product_attention_backward(h, c, step);
}

HYMBA_NAMESPACE_END
