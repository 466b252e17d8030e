// SPDX-License-Identifier: Apache-2.0
//
// Gradients of Mamba-1 heads.
//
// Recurrent heads of one's own supply, in their own namespace,
//
//   template <class Context, class Real> void ssm_backward(const MyHeads&, const Context&, const
//   SsmBackwardStep<Real>&); std::int64_t ssm_backward_floats(const MyHeads&, std::int64_t rows);
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/mamba_heads.hpp>
#include <hymba/train/gradient_context.hpp>
#include <hymba/train/kernels/conv1d_backward.hpp>
#include <hymba/train/kernels/products.hpp>
#include <hymba/train/kernels/rms_norm_backward.hpp>
#include <hymba/train/kernels/row_range.hpp>
#include <hymba/train/kernels/selective_scan_backward.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

HYMBA_NAMESPACE_BEGIN

/// Inputs and outputs of the backward pass of recurrent heads for one layer.
template <class Real>
struct SsmBackwardStep {
  MatrixView<const Real> input;                       ///< [T, input_rows()]: what ssm_forward got
  std::span<const BasicSsmSequence<Real>> sequences;  ///< whole sequences; their states are zero, and may be written
  std::span<const RowRange> ranges;                   ///< the same sequences' rows
  MatrixView<const Real> d_output;                    ///< [T, output_width()]
  MatrixView<Real> d_input;                           ///< [T, input_rows()], assigned
  Real* workspace = nullptr;                          ///< ssm_backward_floats(heads, T) numbers
  void* sequence_workspace = nullptr;                 ///< sequence_workspace_bytes for each sequence, aligned to 64
};

namespace detail {

template <class Heads>
constexpr std::int64_t mamba_backward_floats(const Heads& h, std::int64_t rows) {
  const std::int64_t inner = h.inner, parameters = h.dt_rank + 2 * static_cast<std::int64_t>(h.d_state);
  return rows * (4 * inner + 3 * parameters) + (h.d_state + h.conv_taps) * inner;
}

template <class Heads, class C, class Real>
void mamba_backward(const Heads& h, const C& c, const SsmBackwardStep<Real>& step) {
  const std::int64_t rows = step.input.rows, inner = h.inner, states = h.d_state, rank = h.dt_rank;
  const std::int64_t taps_count = h.conv_taps, width = rank + 2 * states;
  // Tensors in the order of MambaSizes::tensors_as.
  int k = 1;
  const int conv_bias = h.options.conv_bias ? k++ : -1;
  const int x_proj = k++, dt_proj = k++, dt_bias = k++, a_log = k++, skip = k++, norms = k;
  const Real* a = c.derived;
  const Real* taps = c.derived + states * inner;

  Real* next = step.workspace;
  const auto take = [&](std::int64_t n, std::int64_t cols) {
    const MatrixView<Real> view(next, n, cols);
    next += n * cols;
    return view;
  };
  const MatrixView<Real> conv = take(rows, inner), dt = take(rows, inner), d_conv = take(rows, inner);
  const MatrixView<Real> d_dt = take(rows, inner), raw = take(rows, width), normed = take(rows, width);
  const MatrixView<Real> d_normed = take(rows, width), d_a = take(states, inner), d_taps = take(taps_count, inner);
  const MatrixView<const Real> x = step.input.columns(0, inner), z = step.input.columns(inner, inner);
  const auto rank_of = [&](MatrixView<Real> m) { return m.columns(0, rank); };
  const auto b_of = [&](MatrixView<Real> m) { return m.columns(rank, states); };
  const auto c_of = [&](MatrixView<Real> m) { return m.columns(rank + states, states); };

  // What the forward pass had between its input and the scan.
  auto* conv_sequences = static_cast<BasicConvSequence<Real>*>(step.sequence_workspace);
  for (std::size_t s = 0; s < step.sequences.size(); ++s) {
    const BasicSsmSequence<Real>& q = step.sequences[s];
    conv_sequences[s] = BasicConvSequence<Real>{q.first_row, q.rows, q.state};
  }
  const Real* bias = conv_bias >= 0 ? c.vector(conv_bias) : nullptr;
  run<op::Conv1d>(c, x, taps, bias, static_cast<int>(taps_count),
                  std::span<const BasicConvSequence<Real>>(conv_sequences, step.sequences.size()), conv);
  run<op::Gemm>(c, conv, c.matrix(x_proj), static_cast<const Real*>(nullptr), raw, Store::assign);
  MatrixView<Real> used = raw;
  if (h.options.inner_norms) {
    used = normed;
    run<op::RmsNorm>(c, rank_of(raw), c.vector(norms), c.eps, rank_of(normed));
    run<op::RmsNorm>(c, b_of(raw), c.vector(norms + 1), c.eps, b_of(normed));
    run<op::RmsNorm>(c, c_of(raw), c.vector(norms + 2), c.eps, c_of(normed));
  }
  run<op::Gemm>(c, rank_of(used), c.matrix(dt_proj), c.vector(dt_bias), dt, Store::assign);

  std::fill_n(d_a.data, states * inner, Real(0));
  const ScanOperands<Real> operands{conv, dt, z, b_of(used), c_of(used), a, c.vector(skip)};
  const ScanGradients<Real> gradients{
      d_conv, d_dt, step.d_input.columns(inner, inner), b_of(d_normed), c_of(d_normed), d_a.data, c.gradient(skip)};
  run<op::SelectiveScanBackward>(c, operands, step.ranges, step.d_output, gradients);
  // A = -exp(A_log), transposed: its derivative is A itself.
  for (std::int64_t e = 0; e < inner; ++e) {
    for (std::int64_t n = 0; n < states; ++n) c.gradient(a_log)[e * states + n] += d_a(n, e) * a[n * inner + e];
  }

  run<op::GemmWeightGradient>(c, d_dt, rank_of(used), c.matrix_gradient(dt_proj), c.gradient(dt_bias));
  run<op::GemmInputGradient>(c, d_dt, c.matrix(dt_proj), rank_of(d_normed), Store::assign);
  if (h.options.inner_norms) {
    const auto norm_backward = [&](int at, MatrixView<Real> from, MatrixView<Real> d) {
      run<op::RmsNormBackward>(c, from, c.vector(norms + at), c.eps, d, d, c.gradient(norms + at), Store::assign);
    };
    norm_backward(0, rank_of(raw), rank_of(d_normed));
    norm_backward(1, b_of(raw), b_of(d_normed));
    norm_backward(2, c_of(raw), c_of(d_normed));
  }
  run<op::GemmWeightGradient>(c, d_normed, conv, c.matrix_gradient(x_proj), static_cast<Real*>(nullptr));
  run<op::GemmInputGradient>(c, d_normed, c.matrix(x_proj), d_conv, Store::add);

  std::fill_n(d_taps.data, taps_count * inner, Real(0));
  run<op::Conv1dBackward>(c, x, taps, bias, static_cast<int>(taps_count), step.ranges, d_conv,
                          step.d_input.columns(0, inner), d_taps.data,
                          conv_bias >= 0 ? c.gradient(conv_bias) : static_cast<Real*>(nullptr));
  for (std::int64_t e = 0; e < inner; ++e) {
    for (std::int64_t i = 0; i < taps_count; ++i) c.gradient(0)[e * taps_count + i] += d_taps(i, e);
  }
}
}  // namespace detail

template <int E, int N, int K, int R, MambaOptions O>
constexpr std::int64_t ssm_backward_floats(const MambaHeads<E, N, K, R, O>& h, std::int64_t rows) {
  return detail::mamba_backward_floats(h, rows);
}
constexpr std::int64_t ssm_backward_floats(const RuntimeMambaHeads& h, std::int64_t rows) {
  return detail::mamba_backward_floats(h, rows);
}
template <int E, int N, int K, int R, MambaOptions O, class C, class Real>
void ssm_backward(const MambaHeads<E, N, K, R, O>& h, const C& c, const SsmBackwardStep<Real>& step) {
  detail::mamba_backward(h, c, step);
}
template <class C, class Real>
void ssm_backward(const RuntimeMambaHeads& h, const C& c, const SsmBackwardStep<Real>& step) {
  detail::mamba_backward(h, c, step);
}

HYMBA_NAMESPACE_END
