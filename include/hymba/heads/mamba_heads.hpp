// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of Mamba-1 heads: convolution, input-dependent B, C and time step, selective scan, gate.
//
// Recurrent heads of one's own supply, in their own namespace,
//
//   template <class Context> void ssm_forward(const MyHeads&, const Context&, const SsmStep&);
//
// and describe themselves as variant/architecture.hpp's RecurrentShapeLike asks.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/context.hpp>
#include <hymba/kernels/conv1d.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/rms_norm.hpp>
#include <hymba/kernels/selective_scan.hpp>
#include <hymba/variant/mamba_heads.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

HYMBA_NAMESPACE_BEGIN

/// One sequence of a step: rows [first_row, first_row + rows) of the step's matrices, and its recurrent state.
template <class Real>
struct BasicSsmSequence {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  Real* state = nullptr;  ///< state_floats() numbers; read and updated
};
using SsmSequence = BasicSsmSequence<float>;

/// Bytes per sequence that recurrent heads may use to list the sequences for their kernels.
inline constexpr std::size_t sequence_workspace_bytes = 64;

/// Inputs and outputs of recurrent heads for one layer and step.
template <class Real>
struct BasicSsmStep {
  MatrixView<const Real> input;             ///< [T, input_rows()]: the heads' rows of the input projection; overwritten
                                            ///< once the heads are done
  std::span<const BasicSsmSequence<Real>> sequences;  ///< they cover the T rows in order
  Real* workspace = nullptr;                ///< workspace_floats(T) numbers
  void* sequence_workspace = nullptr;       ///< sequence_workspace_bytes for each sequence, aligned to 64
  MatrixView<Real> output;                  ///< [T, output_width()]; what it holds on the way is the heads' affair
};
using SsmStep = BasicSsmStep<float>;

namespace detail {
static_assert(sizeof(ConvSequence) <= sequence_workspace_bytes && sizeof(ScanSequence) <= sequence_workspace_bytes);

// Derived: A = -exp(A_log) transposed to [N, E], then the convolution taps transposed to [K, E]: both are read across
// channels.
template <class Heads, class C>
void derive_mamba(const Heads& h, const C& c, typename C::real* out) {
  const std::int64_t inner = h.inner, states = h.d_state, taps = h.conv_taps;
  const int a_log = (h.options.conv_bias ? 2 : 1) + 3;
  const auto* conv = c.vector(0);
  const auto* log_a = c.vector(a_log);
  for (std::int64_t e = 0; e < inner; ++e) {
    for (std::int64_t n = 0; n < states; ++n) out[n * inner + e] = -std::exp(log_a[e * states + n]);
    for (std::int64_t k = 0; k < taps; ++k) out[(states + k) * inner + e] = conv[e * taps + k];
  }
}

template <class Heads, class C>
void mamba_forward(const Heads& h, const C& c, const BasicSsmStep<typename C::real>& step) {
  using Real = typename C::real;
  const std::int64_t rows = step.input.rows, inner = h.inner, states = h.d_state, rank = h.dt_rank;
  // Tensors in the order of MambaSizes::tensors_as.
  int k = 1;
  const Real* conv_bias = h.options.conv_bias ? c.vector(k++) : nullptr;
  const auto x_proj = c.fine_matrix(k++);
  const auto dt_proj = c.fine_matrix(k++);
  const Real* dt_bias = c.vector(k++);
  ++k;  // A_log: only its derived form is used
  const Real* skip = c.vector(k++);
  const Real* a = c.derived;
  const Real* taps = c.derived + states * inner;

  const MatrixView<const Real> x = step.input.columns(0, inner), z = step.input.columns(inner, inner);
  const MatrixView<Real> conv(step.workspace, rows, inner);
  const MatrixView<Real> parameters(conv.data + rows * inner, rows, rank + 2 * states);
  const MatrixView<Real> dt_rank = parameters.columns(0, rank);
  const MatrixView<Real> b = parameters.columns(rank, states), state_out = parameters.columns(rank + states, states);
  const MatrixView<Real> dt = step.output;  // the scan writes over what it has read

  const std::size_t count = step.sequences.size();
  const std::int64_t tail = static_cast<std::int64_t>(h.conv_taps - 1) * inner;
  auto* conv_sequences = static_cast<BasicConvSequence<Real>*>(step.sequence_workspace);
  for (std::size_t s = 0; s < count; ++s) {
    const BasicSsmSequence<Real>& q = step.sequences[s];
    conv_sequences[s] = BasicConvSequence<Real>{q.first_row, q.rows, q.state};
  }
  run<op::Conv1d>(c, x, taps, conv_bias, static_cast<int>(h.conv_taps), std::span<const BasicConvSequence<Real>>(conv_sequences, count),
                  conv);
  run<op::Gemm>(c, conv, x_proj, static_cast<const Real*>(nullptr), parameters, Store::assign);
  if (h.options.inner_norms) {
    run<op::RmsNorm>(c, dt_rank, c.vector(k), c.eps, dt_rank);
    run<op::RmsNorm>(c, b, c.vector(k + 1), c.eps, b);
    run<op::RmsNorm>(c, state_out, c.vector(k + 2), c.eps, state_out);
  }
  run<op::Gemm>(c, dt_rank, dt_proj, dt_bias, dt, Store::assign);

  auto* scan_sequences = static_cast<BasicScanSequence<Real>*>(step.sequence_workspace);
  for (std::size_t s = 0; s < count; ++s) {
    const BasicSsmSequence<Real>& q = step.sequences[s];
    scan_sequences[s] = BasicScanSequence<Real>{q.first_row, q.rows, q.state + tail};
  }
  run<op::SelectiveScan>(c, BasicScanInputs<Real>{conv, dt, z, b, state_out, a, skip},
                         std::span<const BasicScanSequence<Real>>(scan_sequences, count), step.output);
}
}  // namespace detail

template <int E, int N, int K, int R, MambaOptions O>
constexpr std::int64_t derived_floats(const MambaHeads<E, N, K, R, O>& h) {
  return static_cast<std::int64_t>(h.d_state + h.conv_taps) * h.inner;
}
constexpr std::int64_t derived_floats(const RuntimeMambaHeads& h) {
  return static_cast<std::int64_t>(h.d_state + h.conv_taps) * h.inner;
}
template <int E, int N, int K, int R, MambaOptions O, class C>
void derive(const MambaHeads<E, N, K, R, O>& h, const C& c, typename C::real* out) {
  detail::derive_mamba(h, c, out);
}
template <class C>
void derive(const RuntimeMambaHeads& h, const C& c, typename C::real* out) {
  detail::derive_mamba(h, c, out);
}
template <int E, int N, int K, int R, MambaOptions O, class C>
void ssm_forward(const MambaHeads<E, N, K, R, O>& h, const C& c, const BasicSsmStep<typename C::real>& step) {
  detail::mamba_forward(h, c, step);
}
template <class C>
void ssm_forward(const RuntimeMambaHeads& h, const C& c, const BasicSsmStep<typename C::real>& step) {
  detail::mamba_forward(h, c, step);
}

HYMBA_NAMESPACE_END
