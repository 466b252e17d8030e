// SPDX-License-Identifier: Apache-2.0
//
// One step of a model: a ragged batch of sequences, each with any number of new tokens, through all layers at once.
// Prefill (one sequence, many rows), decoding (one row) and batches (many sequences) are the same code.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/rms_norm.hpp>
#include <hymba/model/model_data.hpp>
#include <hymba/state/session_state.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Floats of working memory the MLP wants for `rows` rows; an MLP of one's own may overload it.
template <class M>
constexpr std::int64_t mlp_workspace_floats(const M& mlp, std::int64_t rows) {
  return 2 * rows * mlp.hidden();
}

/// Working memory for steps of up to `max_rows` rows in up to `max_sequences` sequences. One block, carved once.
template <class V, Policy P>
class Workspace {
 public:
  using E = typename P::cache_element;

  Workspace(const ModelData<V, P>& model, std::int64_t max_rows, std::int64_t max_sequences, int threads)
      : max_rows_(max_rows), max_sequences_(max_sequences) {
    Arena measure;
    carve(model, measure, threads);
    block_ = AlignedBuffer(measure.used());
    Arena place(block_);
    carve(model, place, threads);
  }
  Workspace(Workspace&&) = default;
  Workspace& operator=(Workspace&&) = default;

  std::int64_t max_rows() const { return max_rows_; }
  std::int64_t max_sequences() const { return max_sequences_; }
  std::size_t bytes() const { return block_.size(); }

  float* x = nullptr;          ///< [R, D] residual stream
  float* projected = nullptr;  ///< [R, widest input projection]
  float* recurred = nullptr;   ///< [R, E] what the SSM heads put out
  float* attended = nullptr;   ///< [R, H*dv], for layers where it does not fit over the SSM heads' inputs; else null
  float* mlp_part = nullptr;   ///< working memory of the MLP: over the three above, which are the heads'
  // One place, used in turns: the input is read before the SSM heads run, and they are done before heads are mixed.
  float* u = nullptr;          ///< [R, D] normalised input of heads or MLP
  float* ssm_part = nullptr;   ///< working memory of the SSM heads
  float* mixed = nullptr;      ///< [R, widest mixed of a hybrid layer]
  float* cosines = nullptr;    ///< [R, key_width / 2]
  float* sines = nullptr;
  CacheSequence<E>* cache_sequences = nullptr;
  AttentionSequence<E>* attention_sequences = nullptr;
  SsmSequence* ssm_sequences = nullptr;
  std::byte* ssm_sequence_workspace = nullptr;
  Scratch scratch;

  const StagedRows<E>& staged(int slot) const { return staged_[static_cast<std::size_t>(slot)]; }

  /// Whether what the attention heads of layer `i` put out lies over the inputs of its SSM heads, which run first.
  static bool attended_over_inputs(const Architecture<V>& a, int i) {
    return a.plan[i].has_attention() && a.attention_width() <= a.ssm_input_rows(i);
  }

 private:
  void carve(const ModelData<V, P>& model, Arena& arena, int threads) {
    const Architecture<V>& a = model.architecture();
    const auto rows = static_cast<std::size_t>(max_rows_);
    std::size_t widest_input = 0, widest_mixed = 0, attended_width = 0;
    for (int i = 0; i < a.layers; ++i) {
      widest_input = std::max(widest_input, static_cast<std::size_t>(a.input_rows(i)));
      if (a.plan[i].kind == LayerKind::hybrid) {
        widest_mixed = std::max(widest_mixed, static_cast<std::size_t>(a.mixed_width(i)));
      }
      if (a.plan[i].has_attention() && !attended_over_inputs(a, i)) {
        attended_width = static_cast<std::size_t>(a.attention_width());
      }
    }
    x = arena.take<float>(rows * static_cast<std::size_t>(a.width));
    std::size_t ssm_floats = 0;
    if constexpr (Architecture<V>::has_ssm) ssm_floats = static_cast<std::size_t>(a.ssm.workspace_floats(max_rows_));
    // Each on a cache line of its own, as if taken one by one.
    const auto lines = [](std::size_t floats) { return aligned_size(floats * sizeof(float)) / sizeof(float); };
    const std::size_t input_floats = lines(rows * widest_input);
    const std::size_t recurred_floats = lines(rows * static_cast<std::size_t>(a.ssm_width()));
    const std::size_t attended_floats = lines(rows * attended_width);
    const std::size_t heads_floats = input_floats + recurred_floats + attended_floats;
    const auto mlp_floats = static_cast<std::size_t>(mlp_workspace_floats(a.mlp, max_rows_));
    projected = mlp_part = arena.take<float>(std::max(heads_floats, mlp_floats));
    if (projected != nullptr) {
      recurred = projected + input_floats;
      if (attended_width > 0) attended = recurred + recurred_floats;
    }
    u = ssm_part = mixed =
        arena.take<float>(std::max({rows * static_cast<std::size_t>(a.width), ssm_floats, rows * widest_mixed}));
    cosines = arena.take<float>(rows * static_cast<std::size_t>(model.rope().half()));
    sines = arena.take<float>(rows * static_cast<std::size_t>(model.rope().half()));
    const auto sequences = static_cast<std::size_t>(max_sequences_);
    cache_sequences = arena.take<CacheSequence<E>>(sequences);
    attention_sequences = arena.take<AttentionSequence<E>>(sequences);
    ssm_sequences = arena.take<SsmSequence>(sequences);
    ssm_sequence_workspace = arena.take<std::byte>(sequences * sequence_workspace_bytes);
    staged_.resize(static_cast<std::size_t>(model.staging_slots()));
    if constexpr (Architecture<V>::has_attention) {
      for (StagedRows<E>& s : staged_) {
        s.capacity = max_rows_;
        s.kv_heads = a.attention.kv_heads;
        s.key_width = a.attention.key_width;
        s.value_width = a.attention.value_width;
        s.carve(arena);
      }
    }
    scratch.per_thread = scratch_bytes(model);
    scratch.base = arena.take<std::byte>(scratch.per_thread * static_cast<std::size_t>(threads));
    scratch.shared = arena.take<std::byte>(shared_bytes(model));
  }

  /// The most scratch that the threads of one matrix product share.
  std::size_t shared_bytes(const ModelData<V, P>& model) const {
    std::size_t most = 0;
    for (const BoundTensor& t : model.tensors()) {
      if (t.spec.role == TensorRole::vector) continue;
      most = std::max(most, gemm_shared_bytes<typename P::arch>(max_rows_, t.parameter.cols, t.parameter.rows,
                                                             t.parameter.rotated));
    }
    return most;
  }

  /// The most any kernel of this model wants for each thread.
  std::size_t scratch_bytes(const ModelData<V, P>& model) const {
    using Gemm = kernel_for<op::Gemm, typename P::arch>;
    const Architecture<V>& a = model.architecture();
    std::size_t most = 0;
    for (const BoundTensor& t : model.tensors()) {
      if (t.spec.role != TensorRole::vector) {
        most = std::max(most, Gemm::scratch_bytes(max_rows_, t.parameter.cols, t.parameter.rows));
      }
    }
    if constexpr (Architecture<V>::has_attention) {
      for (int i = 0; i < a.layers; ++i) {
        if (!a.plan[i].has_attention()) continue;
        most = std::max(most, attention_scratch_bytes<typename P::arch>(a.attention, a.plan[i].window, a.meta_tokens(),
                                                                        max_rows_));
      }
    }
    return aligned_size(most);
  }

  std::int64_t max_rows_ = 0, max_sequences_ = 0;
  std::vector<StagedRows<E>> staged_;
  AlignedBuffer block_;
};

/// One sequence of a step. The rows of all sequences of a step follow each other.
template <class E>
struct StepSequence {
  SessionState<E>* state = nullptr;
  std::int64_t rows = 0;
};

namespace detail {

template <class V, Policy P>
struct Forward {
  using E = typename P::cache_element;
  const ModelData<V, P>& model;
  Workspace<V, P>& w;
  typename P::executor& executor;
  const Architecture<V>& a = model.architecture();
  std::span<const StepSequence<E>> sequences;
  std::int64_t rows = 0;

  Context<P> context(int i, Part part) const {
    const LayerWeights& layer = model.layer(i);
    return {executor, w.scratch, static_cast<float>(a.rms_eps), layer.of(part), layer.derived_of(part)};
  }

  void rope_angles() const {
    if (!model.rope().active()) return;
    const int half = model.rope().half();
    std::int64_t r = 0;
    for (const StepSequence<E>& s : sequences) {
      for (std::int64_t t = 0; t < s.rows; ++t, ++r) {
        model.rope().fill(s.state->position() + t, w.cosines + r * half, w.sines + r * half);
      }
    }
  }

  void attention(int i, MatrixView<float> input, MatrixView<float> output) const {
    if constexpr (Architecture<V>::has_attention) {
      const LayerPlan& row = a.plan[i];
      std::int64_t first_row = 0;
      for (std::size_t s = 0; s < sequences.size(); ++s) {
        w.cache_sequences[s] = {first_row, sequences[s].rows, sequences[s].state->position(),
                                &sequences[s].state->cache(row.source)};
        first_row += sequences[s].rows;
      }
      AttentionStep<E> step;
      step.input = input;
      step.produces = a.plan.produces(i);
      step.window = row.window;
      step.meta = a.meta_tokens();
      step.sequences = {w.cache_sequences, sequences.size()};
      if (model.rope().active()) {
        step.cosines = MatrixView<const float>(w.cosines, rows, model.rope().half());
        step.sines = MatrixView<const float>(w.sines, rows, model.rope().half());
      }
      if (row.window > 0) step.staged = w.staged(model.staging_slot(i));
      step.kernel_sequences = w.attention_sequences;
      step.output = output;
      attention_forward(a.attention, context(i, Part::attention), step);
      if (row.window > 0 && model.last_reader(row.source) == i) {
        for (const CacheSequence<E>& s : step.sequences) commit_staged(s, step.staged);
      }
    }
  }

  void ssm(int i, MatrixView<float> input, MatrixView<float> output) const {
    if constexpr (Architecture<V>::has_ssm) {
      std::int64_t first_row = 0;
      for (std::size_t s = 0; s < sequences.size(); ++s) {
        w.ssm_sequences[s] = {first_row, sequences[s].rows, sequences[s].state->ssm(i)};
        first_row += sequences[s].rows;
      }
      SsmStep step;
      step.input = input;
      step.sequences = {w.ssm_sequences, sequences.size()};
      step.workspace = w.ssm_part;
      step.sequence_workspace = w.ssm_sequence_workspace;
      step.output = output;
      ssm_forward(a.ssm, context(i, Part::ssm), step);
    }
  }

  void layer(int i) const {
    const LayerPlan& plan = a.plan[i];
    const Context<P> c = context(i, Part::layer);
    const MatrixView<float> x(w.x, rows, a.width), u(w.u, rows, a.width);
    // Tensors in the order of for_each_layer_tensor.
    int k = 0;
    const float* input_norm = c.vector(k++);
    const auto in_proj = c.matrix(k++);
    const float* in_bias = a.projection_bias ? c.vector(k++) : nullptr;
    const auto out_proj = c.matrix(k++);
    const float* out_bias = a.projection_bias ? c.vector(k++) : nullptr;

    run<op::RmsNorm>(c, x, input_norm, c.eps, u);
    const MatrixView<float> projected(w.projected, rows, in_proj.rows);
    run<op::Gemm>(c, u, in_proj, in_bias, projected, Store::assign);

    const MatrixView<float> recurred(w.recurred, rows, a.ssm_width());
    const int attention_rows = a.attention_input_rows(i);
    const MatrixView<float> attended = Workspace<V, P>::attended_over_inputs(a, i)
                                           ? projected.columns(attention_rows, a.attention_width())
                                           : MatrixView<float>(w.attended, rows, a.attention_width());
    // In this order: memory of the SSM heads is used again.
    if (plan.has_ssm()) ssm(i, projected.columns(attention_rows, a.ssm_input_rows(i)), recurred);
    if (plan.has_attention()) attention(i, projected.columns(0, attention_rows), attended);
    MatrixView<float> mixed = plan.has_attention() ? attended : recurred;
    if constexpr (Architecture<V>::has_attention && Architecture<V>::has_ssm) {
      if (plan.kind == LayerKind::hybrid) {
        mixed = MatrixView<float>(w.mixed, rows, a.mixed_width(i));
        fuse_forward(a.fuse, context(i, Part::fusion), MatrixView<const float>(attended),
                     MatrixView<const float>(recurred), mixed);
      }
    }
    run<op::Gemm>(c, mixed, out_proj, out_bias, x, Store::add);

    if (a.has_mlp()) {
      run<op::RmsNorm>(c, x, c.vector(k), c.eps, u);
      mlp_forward(a.mlp, context(i, Part::mlp), MatrixView<const float>(u), x, w.mlp_part);
    }
  }
};

}  // namespace detail

/// Runs the rows already in `w.x` (embeddings, or meta tokens) through all layers and advances the sequences' states.
/// On return `w.x` [rows, D] holds the residual stream after the last layer.
/// @pre the rows of `sequences` sum to at most w.max_rows(), there are at most w.max_sequences(), every state has room.
template <class V, Policy P>
void forward(const ModelData<V, P>& model, Workspace<V, P>& w, typename P::executor& executor,
             std::span<const StepSequence<typename P::cache_element>> sequences) {
  detail::Forward<V, P> f{.model = model, .w = w, .executor = executor, .sequences = sequences};
  for (const auto& s : sequences) f.rows += s.rows;
  if (f.rows == 0) return;
  f.rope_angles();
  for (int i = 0; i < f.a.layers; ++i) f.layer(i);
  for (const auto& s : sequences) s.state->advance(s.rows);
}

/// Embeds tokens into rows of `w.x`, the first of them row `first_row`.
/// @pre every token is in [0, vocabulary).
template <class V, Policy P>
void embed(const ModelData<V, P>& model, Workspace<V, P>& w, std::int64_t first_row, std::span<const Token> tokens) {
  const auto table = model.embedding();
  for (const Token token : tokens) {
    weight_format<fine_weights(P::weights)>::decode_row(table.row(token), table.cols, w.x + first_row++ * table.cols);
  }
}

/// Logits [hidden.rows, V] of rows of the residual stream, which are normalised in place.
template <class V, Policy P>
void project_logits(const ModelData<V, P>& model, Workspace<V, P>& w, typename P::executor& executor,
                    MatrixView<float> hidden, MatrixView<float> logits) {
  const Context<P> c{executor, w.scratch, static_cast<float>(model.architecture().rms_eps), nullptr, nullptr};
  run<op::RmsNorm>(c, hidden, model.final_norm(), c.eps, hidden);
  // Rounding activations to bytes costs more accuracy here than in any other product (docs/numerics.md), and there are
  // few rows: beside quantised weights they stay as they are.
  constexpr bool quantised = weight_format<fine_weights(P::weights)>::quantised;
  using Arch = std::conditional_t<quantised, arch::unrounded_t<typename P::arch>, typename P::arch>;
  kernel_for<op::Gemm, Arch>::run(executor, w.scratch, hidden, model.output(), static_cast<const float*>(nullptr),
                                  logits, Store::assign);
}

HYMBA_NAMESPACE_END
