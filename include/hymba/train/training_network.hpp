// SPDX-License-Identifier: Apache-2.0
//
// The forward and backward pass of a whole model over a batch of sequences: what inference computes, by the same heads
// and kernels, then its gradient, layer by layer from the last to the first.
//
// What is kept from forward to backward: per layer its input, the rows of its input projection, what its heads made and
// the input of its MLP; per cache its keys and values. Everything else the parts compute again (gradient_context.hpp).
// With `recompute_layers` only the layers' inputs and the caches are kept, and a layer runs forward once more before it
// runs backward: about a third more arithmetic, and memory that hardly grows with depth.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/rope_table.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/rms_norm.hpp>
#include <hymba/model/forward.hpp>
#include <hymba/train/attention_heads_backward.hpp>
#include <hymba/train/fuse_backward.hpp>
#include <hymba/train/kernels/cross_entropy.hpp>
#include <hymba/train/mamba_heads_backward.hpp>
#include <hymba/train/mlp_backward.hpp>
#include <hymba/train/trainable.hpp>
#include <hymba/train/trained_parameters.hpp>
#include <hymba/train/training_batch.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// How large batches may be, and what is kept between the passes.
struct TrainingLimits {
  std::int64_t tokens = 0;     ///< most tokens of a batch, meta tokens not counted
  std::int64_t sequences = 0;  ///< most sequences of a batch
  bool recompute_layers = false;
};

/// Losses of a batch: the mean is nats / targets.
struct LossSum {
  double nats = 0;
  std::int64_t targets = 0;

  double mean() const { return targets > 0 ? nats / static_cast<double>(targets) : 0; }
  LossSum& operator+=(const LossSum& o) {
    nats += o.nats;
    targets += o.targets;
    return *this;
  }
};

/// A model of variant `V` in training under policy `P` (f32 weights and caches; f64 for checks). One block of memory,
/// carved once; passes allocate nothing.
template <class V, Policy P>
class TrainingNetwork {
 public:
  using Real = activation_t<P::weights>;
  using E = typename P::cache_element;
  static_assert((P::weights == Weights::f32 && P::cache == Cache::f32) || P::weights == Weights::f64,
                "hymba: training keeps master weights in f32 (Cpu<Weights::f32, Cache::f32, ...>); f64 is for checks");
  static_assert(check_trainable<V, P>());

  /// @throws ArgumentError when a limit is below 1 or the batch is beyond 2^31 rows; std::bad_alloc.
  TrainingNetwork(TrainedParameters<V, Real>& parameters, typename P::executor& executor, const TrainingLimits& limits)
      : parameters_(parameters), executor_(executor), limits_(limits), a_(parameters.architecture()) {
    if (limits.tokens < 1 || limits.tokens > most_rows || limits.sequences < 1 || limits.sequences > limits.tokens) {
      throw ArgumentError(detail::message("a batch of at most ", limits.tokens, " tokens in ", limits.sequences,
                                          " sequences, expected at least one token in each, and at most 2^31"));
    }
    max_rows_ = limits.tokens + limits.sequences * a_.meta_tokens();
    if (max_rows_ > most_rows) {
      throw ArgumentError(detail::message("a batch of ", max_rows_, " rows, expected at most 2^31"));
    }
    rope_ = RopeTable(a_.attention);
    layers_.resize(static_cast<std::size_t>(a_.layers));
    Arena measure;
    carve(measure);
    block_ = AlignedBuffer(measure.used());
    Arena place(block_);
    carve(place);
    loss_rows_.reserve(static_cast<std::size_t>(limits.tokens));
    loss_targets_.reserve(static_cast<std::size_t>(limits.tokens));
  }

  /// Bytes of activations and working memory; weights and gradients are not counted.
  std::size_t bytes() const { return block_.size(); }
  const TrainingLimits& limits() const { return limits_; }

  /// The losses of a batch; no gradients.
  /// @throws ArgumentError for a batch beyond the limits, or a token or target outside the vocabulary.
  LossSum loss(const TrainingBatch& batch) {
    forward(batch);
    return losses(false, Real(0));
  }

  /// The losses of a batch, and `scale` times the gradient of their sum is added to the parameters' gradients. With
  /// scale = 1 / targets it is the gradient of the mean.
  /// @throws as `loss`.
  LossSum accumulate(const TrainingBatch& batch, Real scale) {
    forward(batch);
    std::fill_n(d_x_, rows_ * a_.width, Real(0));
    const LossSum sum = losses(true, scale);
    for (int i = a_.layers - 1; i >= 0; --i) {
      if (limits_.recompute_layers) layer_forward(i);
      layer_backward(i);
    }
    embedding_backward(batch);
    return sum;
  }

 private:
  using View = MatrixView<Real>;
  using ConstView = MatrixView<const Real>;
  using Ctx = GradientContext<P>;
  static constexpr bool has_attention = Architecture<V>::has_attention, has_ssm = Architecture<V>::has_ssm;
  static constexpr std::int64_t most_rows = std::int64_t{1} << 31;
  static constexpr std::int64_t loss_chunk = 256;  ///< rows whose logits are held at a time

  /// What is kept of a layer from forward to backward.
  struct Layer {
    Real* x = nullptr;          ///< [R, D] its input
    Real* projected = nullptr;  ///< [R, input_rows]
    Real* attended = nullptr;   ///< [R, H*dv]
    Real* recurred = nullptr;   ///< [R, E]
    Real* middle = nullptr;     ///< [R, D] the input of the second norm
    E* keys = nullptr;          ///< [G, R, dk], of layers that produce a cache
    E* values = nullptr;        ///< [G, R, dv]
    Real* d_keys = nullptr;
    Real* d_values = nullptr;
    std::array<Real*, part_count> derived{};
  };

  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  Layer& at(int i) { return layers_[size(i)]; }

  void carve(Arena& arena) {
    const std::int64_t rows = max_rows_, width = a_.width;
    const auto take = [&](std::int64_t n) { return arena.template take<Real>(size(n)); };
    std::int64_t widest_input = 0, widest_mixed = 0;
    for (int i = 0; i < a_.layers; ++i) {
      widest_input = std::max<std::int64_t>(widest_input, a_.input_rows(i));
      widest_mixed = std::max<std::int64_t>(widest_mixed, a_.mixed_width(i));
    }
    const auto keep = [&](Layer& l, std::int64_t input_rows) {
      l.projected = take(rows * input_rows);
      l.attended = take(rows * a_.attention_width());
      l.recurred = take(rows * a_.ssm_width());
      l.middle = take(rows * width);
    };
    Layer shared;
    if (limits_.recompute_layers) keep(shared, widest_input);
    for (int i = 0; i < a_.layers; ++i) {
      Layer& l = at(i);
      l.x = take(rows * width);
      if (limits_.recompute_layers) {
        l.projected = shared.projected, l.attended = shared.attended, l.recurred = shared.recurred;
        l.middle = shared.middle;
      } else {
        keep(l, a_.input_rows(i));
      }
      if constexpr (has_attention) {
        if (a_.plan[i].has_attention() && a_.plan.produces(i)) {
          l.keys = arena.template take<E>(size(rows * a_.attention.keys_width()));
          l.values = arena.template take<E>(size(rows * a_.attention.values_width()));
          l.d_keys = take(rows * a_.attention.keys_width());
          l.d_values = take(rows * a_.attention.values_width());
        }
      }
      for_each_layer_part(a_, i, [&](Part part, const auto& shape, auto... sizes) {
        if constexpr (requires { derived_floats(shape, sizes...); }) {
          l.derived[size(static_cast<int>(part))] = take(derived_floats(shape, sizes...));
        }
      });
    }
    last_x_ = take(rows * width);
    u_ = take(rows * width);
    mixed_ = take(rows * widest_mixed);
    d_x_ = take(rows * width);
    d_u_ = take(rows * width);
    d_projected_ = take(rows * widest_input);
    d_mixed_ = take(rows * widest_mixed);
    d_attended_ = take(rows * a_.attention_width());
    d_recurred_ = take(rows * a_.ssm_width());
    std::int64_t part = std::max(mlp_workspace_floats(a_.mlp, rows), mlp_backward_floats(a_.mlp, rows));
    part = std::max<std::int64_t>(part, a_.attention_width() + a_.ssm_width());
    std::int64_t states = 0;
    if constexpr (has_ssm) {
      part = std::max({part, a_.ssm.workspace_floats(rows), ssm_backward_floats(a_.ssm, rows)});
      states = limits_.sequences * a_.ssm.state_floats();
    }
    if constexpr (has_attention) {
      part = std::max({part, rows * a_.attention.input_rows(true), attention_backward_floats(a_.attention, rows)});
    }
    part_ = take(part);
    states_ = take(states);
    const std::int64_t half = rope_.half();
    cosines_ = take(rows * half);
    sines_ = take(rows * half);
    negative_sines_ = take(rows * half);
    const std::int64_t chunk = std::min(loss_chunk, limits_.tokens);
    loss_x_ = take(chunk * width);
    loss_u_ = take(chunk * width);
    loss_d_ = take(chunk * width);
    logits_ = take(chunk * a_.vocabulary);
    losses_ = arena.template take<double>(size(chunk));

    const std::size_t sequences = size(limits_.sequences);
    ranges_ = arena.template take<RowRange>(sequences);
    caches_ = arena.template take<LayerCache<E>>(sequences);
    cache_sequences_ = arena.template take<CacheSequence<E>>(sequences);
    attention_sequences_ = arena.template take<AttentionSequence<E>>(sequences);
    gradient_sequences_ = arena.template take<AttentionGradientSequence<Real>>(sequences);
    ssm_sequences_ = arena.template take<BasicSsmSequence<Real>>(sequences);
    sequence_workspace_ = arena.template take<std::byte>(sequences * sequence_workspace_bytes);
    scratch_.per_thread = scratch_bytes();
    scratch_.base = arena.template take<std::byte>(scratch_.per_thread * size(executor_.threads()));
    std::size_t shared_bytes = 0;
    for (const TrainedTensor& t : parameters_.tensors()) {
      if (t.spec.role == TensorRole::vector) continue;
      shared_bytes = std::max(shared_bytes, gemm_shared_bytes<typename P::arch>(max_rows_, t.cols(), t.rows(), false));
    }
    scratch_.shared = arena.template take<std::byte>(shared_bytes);
  }

  /// The most any kernel wants for each thread.
  std::size_t scratch_bytes() const {
    using Arch = typename P::arch;
    std::size_t most = 0;
    const auto want = [&](std::size_t bytes) { most = std::max(most, bytes); };
    for (const TrainedTensor& t : parameters_.tensors()) {
      if (t.spec.role == TensorRole::vector) {
        want(kernel_for<op::RmsNormBackward, Arch>::scratch_bytes(t.cols()));
        continue;
      }
      want(kernel_for<op::Gemm, Arch>::scratch_bytes(max_rows_, t.cols(), t.rows()));
      want(kernel_for<op::GemmInputGradient, Arch>::scratch_bytes(max_rows_, t.cols(), t.rows()));
      want(kernel_for<op::GemmWeightGradient, Arch>::scratch_bytes(max_rows_, t.cols(), t.rows()));
    }
    if constexpr (has_attention) {
      if constexpr (requires { a_.attention.query_heads; }) {
        for (int i = 0; i < a_.layers; ++i) {
          if (!a_.plan[i].has_attention()) continue;
          const AttentionShape shape{a_.attention.query_heads,
                                     a_.attention.kv_heads,
                                     a_.attention.key_width,
                                     a_.attention.value_width,
                                     a_.plan[i].window,
                                     a_.meta_tokens(),
                                     1.0f};
          want(kernel_for<op::Attention, Arch>::scratch_bytes(shape, max_rows_));
          want(kernel_for<op::AttentionBackward, Arch>::scratch_bytes(shape, max_rows_));
        }
      }
    }
    if constexpr (has_ssm) {
      bool any = false;  // sizes from a config.json without recurrent heads are zero
      for (int i = 0; i < a_.layers; ++i) any = any || a_.plan[i].has_ssm();
      if constexpr (requires { a_.ssm.d_state; }) {
        if (any)
          want(kernel_for<op::SelectiveScanBackward, Arch>::scratch_bytes(limits_.tokens + a_.meta_tokens(), max_rows_,
                                                                          a_.ssm.d_state));
        if (any) want(kernel_for<op::Conv1dBackward, Arch>::scratch_bytes(a_.ssm.conv_taps));
      }
    }
    return aligned_size(most);
  }

  Ctx context(int i, Part part) {
    Ctx c{{executor_, scratch_, static_cast<float>(a_.rms_eps), parameters_.of(i, part),
           at(i).derived[size(static_cast<int>(part))]},
          parameters_.gradients_of(i, part)};
    return c;
  }
  Ctx model_context() { return {{executor_, scratch_, static_cast<float>(a_.rms_eps), nullptr, nullptr}, nullptr}; }
  WeightMatrix<P::weights> matrix(const TrainedTensor& t) {
    return {reinterpret_cast<const std::byte*>(parameters_.weight(t)), t.rows(), t.cols()};
  }

  View view(Real* data, std::int64_t cols) const { return {data, rows_, cols}; }
  Real* after(int i) { return i + 1 < a_.layers ? at(i + 1).x : last_x_; }
  /// The input of the second norm; without an MLP it is the layer's output.
  Real* middle(int i) { return a_.has_mlp() ? at(i).middle : after(i); }

  void check(const TrainingBatch& batch) const {
    const auto fail = [](const auto&... what) { throw ArgumentError(detail::message("training batch: ", what...)); };
    const auto tokens = static_cast<std::int64_t>(batch.tokens.size());
    const auto sequences = static_cast<std::int64_t>(batch.lengths.size());
    if (tokens < 1 || tokens > limits_.tokens) {
      fail(tokens, " tokens, expected 1 to ", limits_.tokens);
    }
    if (sequences > limits_.sequences) fail(sequences, " sequences, expected at most ", limits_.sequences);
    if (batch.targets.size() != batch.tokens.size()) {
      fail(batch.targets.size(), " targets, expected one for each of ", tokens, " tokens");
    }
    std::int64_t sum = 0;
    for (const std::int64_t length : batch.lengths) {
      if (length < 1 || length > tokens) fail("a sequence of ", length, " tokens, expected 1 to ", tokens);
      sum += length;
    }
    if (sum != tokens) fail("lengths that sum to ", sum, ", expected ", tokens, ", the number of tokens");
    for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
      if (batch.tokens[i] < 0 || batch.tokens[i] >= a_.vocabulary) {
        fail("token ", i, " is ", batch.tokens[i], ", expected 0 to ", a_.vocabulary - 1);
      }
      if (batch.targets[i] < no_target || batch.targets[i] >= a_.vocabulary) {
        fail("target ", i, " is ", batch.targets[i], ", expected -1 (none) to ", a_.vocabulary - 1);
      }
    }
  }

  /// Lays the batch out in rows (meta tokens, then tokens, sequence by sequence), embeds it and runs all layers.
  void forward(const TrainingBatch& batch) {
    check(batch);
    const std::int64_t meta = a_.meta_tokens(), width = a_.width;
    const Real* table = parameters_.weight(parameters_.embedding());
    const Real* memory = meta > 0 ? parameters_.weight(parameters_.meta_tokens()) : nullptr;
    sequences_ = batch.lengths.size();
    rows_ = 0;
    loss_rows_.clear();
    loss_targets_.clear();
    Real* x = a_.layers > 0 ? at(0).x : last_x_;
    std::size_t token = 0;
    const std::int64_t half = rope_.half();
    for (std::size_t s = 0; s < sequences_; ++s) {
      ranges_[s] = {rows_, meta + batch.lengths[s]};
      for (std::int64_t p = 0; p < ranges_[s].rows; ++p, ++rows_) {
        if (rope_.active()) {
          rope_.fill(p, cosines_ + rows_ * half, sines_ + rows_ * half);
          for (std::int64_t i = rows_ * half; i < (rows_ + 1) * half; ++i) negative_sines_[i] = -sines_[i];
        }
        if (p < meta) {
          std::copy_n(memory + p * width, width, x + rows_ * width);
          continue;
        }
        std::copy_n(table + batch.tokens[token] * width, width, x + rows_ * width);
        if (batch.targets[token] != no_target) {
          loss_rows_.push_back(rows_);
          loss_targets_.push_back(batch.targets[token]);
        }
        ++token;
      }
    }
    for (int i = 0; i < a_.layers; ++i) {
      derive_layer(i);
      layer_forward(i);
    }
  }

  void derive_layer(int i) {
    for_each_layer_part(a_, i, [&](Part part, const auto& shape, auto... sizes) {
      Real* out = at(i).derived[size(static_cast<int>(part))];
      if constexpr (requires(const Context<P>& c) { derive(shape, c, sizes..., out); }) {
        const Context<P> c = context(i, part);
        derive(shape, c, sizes..., out);
      }
    });
  }

  void layer_forward(int i) {
    const LayerPlan& plan = a_.plan[i];
    Layer& l = at(i);
    const Ctx c = context(i, Part::layer);
    const View x = view(l.x, a_.width), u = view(u_, a_.width), mid = view(middle(i), a_.width);
    const Tensors t = tensors();
    run<op::RmsNorm>(c, x, c.vector(t.input_norm), c.eps, u);
    const View projected = view(l.projected, a_.input_rows(i));
    run<op::Gemm>(c, u, c.matrix(t.in_proj), bias(c, t.in_bias), projected, Store::assign);
    const std::int64_t attention_rows = a_.attention_input_rows(i);
    if constexpr (has_attention) {
      if (plan.has_attention()) attention(i, projected.columns(0, attention_rows));
    }
    if constexpr (has_ssm) {
      if (plan.has_ssm()) ssm(i, projected.columns(attention_rows, a_.ssm_input_rows(i)));
    }
    const View mixed = mix(i);
    std::copy_n(x.data, rows_ * a_.width, mid.data);
    run<op::Gemm>(c, mixed, c.matrix(t.out_proj), bias(c, t.out_bias), mid, Store::add);
    if (a_.has_mlp()) {
      const View out = view(after(i), a_.width);
      run<op::RmsNorm>(c, mid, c.vector(t.mlp_norm), c.eps, u);
      std::copy_n(mid.data, rows_ * a_.width, out.data);
      const Context<P> mlp = context(i, Part::mlp);
      mlp_forward(a_.mlp, mlp, ConstView(u), out, part_);
    }
  }

  /// Where a layer's own tensors are, in the order of for_each_layer_tensor.
  struct Tensors {
    int input_norm = 0, in_proj = 0, in_bias = -1, out_proj = 0, out_bias = -1, mlp_norm = 0;
  };
  Tensors tensors() const {
    Tensors t;
    int k = 0;
    t.input_norm = k++;
    t.in_proj = k++;
    if (a_.projection_bias) t.in_bias = k++;
    t.out_proj = k++;
    if (a_.projection_bias) t.out_bias = k++;
    t.mlp_norm = k;
    return t;
  }
  static const Real* bias(const Ctx& c, int tensor) { return tensor >= 0 ? c.vector(tensor) : nullptr; }
  static Real* bias_gradient(const Ctx& c, int tensor) { return tensor >= 0 ? c.gradient(tensor) : nullptr; }

  /// What enters the output projection of layer `i`.
  View mix(int i) {
    Layer& l = at(i);
    if constexpr (has_attention && has_ssm) {
      if (a_.plan[i].kind == LayerKind::hybrid) {
        const View mixed = view(mixed_, a_.mixed_width(i));
        const Context<P> c = context(i, Part::fusion);
        fuse_forward(a_.fuse, c, ConstView(view(l.attended, a_.attention_width())),
                     ConstView(view(l.recurred, a_.ssm_width())), mixed);
        return mixed;
      }
    }
    return a_.plan[i].has_attention() ? view(l.attended, a_.attention_width()) : view(l.recurred, a_.ssm_width());
  }

  void attention(int i, View projected) requires has_attention {
    Layer& l = at(i);
    const Layer& source = at(a_.plan[i].source);
    const int dk = a_.attention.key_width, dv = a_.attention.value_width;
    // Heads may change their input in place, and the backward pass wants it as it was.
    const View input(part_, rows_, projected.cols);
    for (std::int64_t t = 0; t < rows_; ++t) std::copy_n(projected.row(t), projected.cols, input.row(t));
    CacheRows<E> all;
    all.keys = source.keys;
    all.values = source.values;
    all.capacity = max_rows_;
    all.kv_heads = a_.attention.kv_heads;
    all.key_width = dk;
    all.value_width = dv;
    for (std::size_t s = 0; s < sequences_; ++s) {
      LayerCache<E>& cache = caches_[s];
      static_cast<CacheRows<E>&>(cache) = all;
      cache.keys += ranges_[s].first_row * dk;
      cache.values += ranges_[s].first_row * dv;
      cache.meta = a_.meta_tokens();
      cache.window = a_.plan[i].window;
      cache_sequences_[s] = {ranges_[s].first_row, ranges_[s].rows, 0, &cache};
    }
    AttentionStep<E> step;
    step.input = input;
    step.produces = a_.plan.produces(i);
    step.window = a_.plan[i].window;
    step.meta = a_.meta_tokens();
    step.sequences = {cache_sequences_, sequences_};
    if (rope_.active()) {
      step.cosines = ConstView(view(cosines_, rope_.half()));
      step.sines = ConstView(view(sines_, rope_.half()));
    }
    // A window layer finds a step's own keys and values staged: here all of them, in the same place.
    step.staged = all;
    step.kernel_sequences = attention_sequences_;
    step.output = view(l.attended, a_.attention_width());
    const Context<P> c = context(i, Part::attention);
    attention_forward(a_.attention, c, step);
  }

  void list_ssm_sequences() requires has_ssm {
    const std::int64_t floats = a_.ssm.state_floats();
    std::fill_n(states_, static_cast<std::int64_t>(sequences_) * floats, Real(0));
    for (std::size_t s = 0; s < sequences_; ++s) {
      ssm_sequences_[s] = {ranges_[s].first_row, ranges_[s].rows, states_ + static_cast<std::int64_t>(s) * floats};
    }
  }

  void ssm(int i, View projected) requires has_ssm {
    list_ssm_sequences();
    BasicSsmStep<Real> step;
    step.input = projected;
    step.sequences = {ssm_sequences_, sequences_};
    step.workspace = part_;
    step.sequence_workspace = sequence_workspace_;
    step.output = view(at(i).recurred, a_.ssm_width());
    const Context<P> c = context(i, Part::ssm);
    ssm_forward(a_.ssm, c, step);
  }

  /// The losses at `loss_rows_`; with `backward`, gradients of the output matrix and the final norm are added to, and
  /// those of the rows written to d_x.
  LossSum losses(bool backward, Real scale) {
    const Ctx c = model_context();
    const std::int64_t width = a_.width, count = static_cast<std::int64_t>(loss_rows_.size());
    const TrainedTensor& norm = parameters_.final_norm();
    const TrainedTensor& output = parameters_.output();
    LossSum sum;
    sum.targets = count;
    for (std::int64_t first = 0; first < count; first += loss_chunk) {
      const std::int64_t n = std::min(loss_chunk, count - first);
      const View x(loss_x_, n, width), u(loss_u_, n, width), d(loss_d_, n, width), logits(logits_, n, a_.vocabulary);
      const std::int64_t* row = loss_rows_.data() + first;
      for (std::int64_t r = 0; r < n; ++r) std::copy_n(last_x_ + row[r] * width, width, x.row(r));
      run<op::RmsNorm>(c, x, parameters_.weight(norm), c.eps, u);
      run<op::Gemm>(c, u, matrix(output), static_cast<const Real*>(nullptr), logits, Store::assign);
      run<op::CrossEntropy>(c, logits, std::span<const Token>(loss_targets_.data() + first, size(n)), scale, losses_);
      for (std::int64_t r = 0; r < n; ++r) sum.nats += losses_[r];
      if (!backward) continue;
      run<op::GemmWeightGradient>(c, logits, u, View(parameters_.gradient(output), output.rows(), output.cols()),
                                  static_cast<Real*>(nullptr));
      run<op::GemmInputGradient>(c, logits, matrix(output), d, Store::assign);
      run<op::RmsNormBackward>(c, x, parameters_.weight(norm), c.eps, d, d, parameters_.gradient(norm), Store::assign);
      for (std::int64_t r = 0; r < n; ++r) std::copy_n(d.row(r), width, d_x_ + row[r] * width);
    }
    return sum;
  }

  /// On entry d_x is the gradient of the layer's output, on return that of its input.
  void layer_backward(int i) {
    const LayerPlan& plan = a_.plan[i];
    Layer& l = at(i);
    const Ctx c = context(i, Part::layer);
    const Tensors t = tensors();
    const View u = view(u_, a_.width), d_x = view(d_x_, a_.width), d_u = view(d_u_, a_.width);
    if (a_.has_mlp()) {
      const View mid = view(l.middle, a_.width);
      run<op::RmsNorm>(c, mid, c.vector(t.mlp_norm), c.eps, u);
      const Ctx mlp = context(i, Part::mlp);
      mlp_backward(a_.mlp, mlp, ConstView(u), ConstView(d_x), d_u, part_);
      run<op::RmsNormBackward>(c, mid, c.vector(t.mlp_norm), c.eps, d_u, d_x, c.gradient(t.mlp_norm), Store::add);
    }
    const View mixed = mix(i), d_mixed = view(d_mixed_, mixed.cols);
    run<op::GemmWeightGradient>(c, d_x, mixed, c.matrix_gradient(t.out_proj), bias_gradient(c, t.out_bias));
    run<op::GemmInputGradient>(c, d_x, c.matrix(t.out_proj), d_mixed, Store::assign);

    View d_attended = d_mixed, d_recurred = d_mixed;
    if constexpr (has_attention && has_ssm) {
      if (plan.kind == LayerKind::hybrid) {
        d_attended = view(d_attended_, a_.attention_width());
        d_recurred = view(d_recurred_, a_.ssm_width());
        const Ctx fusion = context(i, Part::fusion);
        fuse_backward(a_.fuse, fusion, ConstView(view(l.attended, a_.attention_width())),
                      ConstView(view(l.recurred, a_.ssm_width())), ConstView(d_mixed), d_attended, d_recurred, part_);
      }
    }
    const View projected = view(l.projected, a_.input_rows(i)), d_projected = view(d_projected_, a_.input_rows(i));
    const std::int64_t attention_rows = a_.attention_input_rows(i);
    if constexpr (has_attention) {
      if (plan.has_attention()) {
        backward_attention(i, projected.columns(0, attention_rows), d_attended, d_projected.columns(0, attention_rows));
      }
    }
    if constexpr (has_ssm) {
      if (plan.has_ssm()) {
        const std::int64_t ssm_rows = a_.ssm_input_rows(i);
        backward_ssm(i, projected.columns(attention_rows, ssm_rows), d_recurred,
                     d_projected.columns(attention_rows, ssm_rows));
      }
    }
    const View x = view(l.x, a_.width);
    run<op::RmsNorm>(c, x, c.vector(t.input_norm), c.eps, u);
    run<op::GemmWeightGradient>(c, d_projected, u, c.matrix_gradient(t.in_proj), bias_gradient(c, t.in_bias));
    run<op::GemmInputGradient>(c, d_projected, c.matrix(t.in_proj), d_u, Store::assign);
    run<op::RmsNormBackward>(c, x, c.vector(t.input_norm), c.eps, d_u, d_x, c.gradient(t.input_norm), Store::add);
  }

  void backward_attention(int i, View projected, View d_output, View d_input) requires has_attention {
    const Layer& source = at(a_.plan[i].source);
    const int dk = a_.attention.key_width, dv = a_.attention.value_width;
    if (a_.plan.last_reader(a_.plan[i].source) == i) {
      std::fill_n(source.d_keys, max_rows_ * a_.attention.keys_width(), Real(0));
      std::fill_n(source.d_values, max_rows_ * a_.attention.values_width(), Real(0));
    }
    for (std::size_t s = 0; s < sequences_; ++s) {
      const std::int64_t first = ranges_[s].first_row;
      gradient_sequences_[s] = {first,
                                ranges_[s].rows,
                                source.keys + first * dk,
                                source.values + first * dv,
                                source.d_keys + first * dk,
                                source.d_values + first * dv,
                                max_rows_ * dk,
                                max_rows_ * dv};
    }
    AttentionBackwardStep<E> step;
    step.input = projected;
    step.produces = a_.plan.produces(i);
    step.window = a_.plan[i].window;
    step.meta = a_.meta_tokens();
    step.sequences = {gradient_sequences_, sequences_};
    if (rope_.active()) {
      step.cosines = ConstView(view(cosines_, rope_.half()));
      step.sines = ConstView(view(sines_, rope_.half()));
      step.negative_sines = ConstView(view(negative_sines_, rope_.half()));
    }
    step.output = view(at(i).attended, a_.attention_width());
    step.d_output = d_output;
    step.d_input = d_input;
    step.workspace = part_;
    const Ctx c = context(i, Part::attention);
    attention_backward(a_.attention, c, step);
  }

  void backward_ssm(int i, View projected, View d_output, View d_input) requires has_ssm {
    list_ssm_sequences();
    SsmBackwardStep<Real> step;
    step.input = projected;
    step.sequences = {ssm_sequences_, sequences_};
    step.ranges = {ranges_, sequences_};
    step.d_output = d_output;
    step.d_input = d_input;
    step.workspace = part_;
    step.sequence_workspace = sequence_workspace_;
    const Ctx c = context(i, Part::ssm);
    ssm_backward(a_.ssm, c, step);
  }

  void embedding_backward(const TrainingBatch& batch) {
    const std::int64_t meta = a_.meta_tokens(), width = a_.width;
    Real* table = parameters_.gradient(parameters_.embedding());
    std::size_t token = 0;
    for (std::size_t s = 0; s < sequences_; ++s) {
      for (std::int64_t p = 0; p < ranges_[s].rows; ++p) {
        Real* to = p < meta ? parameters_.gradient(parameters_.meta_tokens()) + p * width
                            : table + batch.tokens[token++] * width;
        const Real* from = d_x_ + (ranges_[s].first_row + p) * width;
        for (std::int64_t j = 0; j < width; ++j) to[j] += from[j];
      }
    }
  }

  TrainedParameters<V, Real>& parameters_;
  typename P::executor& executor_;
  TrainingLimits limits_;
  const Architecture<V>& a_;
  RopeTable rope_;
  std::int64_t max_rows_ = 0, rows_ = 0;
  std::size_t sequences_ = 0;
  std::vector<Layer> layers_;
  std::vector<std::int64_t> loss_rows_;
  std::vector<Token> loss_targets_;
  Real *last_x_ = nullptr, *u_ = nullptr, *mixed_ = nullptr, *part_ = nullptr, *states_ = nullptr;
  Real *d_x_ = nullptr, *d_u_ = nullptr, *d_projected_ = nullptr, *d_mixed_ = nullptr;
  Real *d_attended_ = nullptr, *d_recurred_ = nullptr;
  Real *cosines_ = nullptr, *sines_ = nullptr, *negative_sines_ = nullptr;
  Real *loss_x_ = nullptr, *loss_u_ = nullptr, *loss_d_ = nullptr, *logits_ = nullptr;
  double* losses_ = nullptr;
  RowRange* ranges_ = nullptr;
  LayerCache<E>* caches_ = nullptr;
  CacheSequence<E>* cache_sequences_ = nullptr;
  AttentionSequence<E>* attention_sequences_ = nullptr;
  AttentionGradientSequence<Real>* gradient_sequences_ = nullptr;
  BasicSsmSequence<Real>* ssm_sequences_ = nullptr;
  std::byte* sequence_workspace_ = nullptr;
  Scratch scratch_;
  AlignedBuffer block_;
};

HYMBA_NAMESPACE_END
