// SPDX-License-Identifier: Apache-2.0
//
// A fusion and a sharing rule of one's own, added from outside the library, run and trained.
#include <hymba/hymba.hpp>
#include <hymba/model/random_weights.hpp>
#include <hymba/train/trainer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <span>
#include <utility>
#include <vector>

namespace mine {

/// attention + tanh(w) * ssm, with one learned weight per channel.
struct TanhGate {
  static constexpr const char* kind_name = "tanh_gate";
  static constexpr bool accepts(int attention, int ssm) { return attention == ssm; }
  static constexpr int output_width(int attention, int) { return attention; }
  template <class Visit>
  static constexpr void tensors(int attention, int, Visit&& visit) {
    visit(hymba::vector_tensor("mamba.tanh_gate.weight", attention));
  }
};

/// Its numbers derived from the weights, computed once when a model is made: tanh(w).
constexpr std::int64_t derived_floats(const TanhGate&, int attention, int) { return attention; }
template <class Context>
void derive(const TanhGate&, const Context& context, int attention, int, float* out) {
  for (int i = 0; i < attention; ++i) out[i] = std::tanh(context.vector(0)[i]);
}

/// Its arithmetic: one row per token. Found by argument-dependent lookup.
template <class Context>
void fuse_forward(const TanhGate&, const Context& context, hymba::MatrixView<const float> attention,
                  hymba::MatrixView<const float> ssm, hymba::MatrixView<float> out) {
  for (std::int64_t t = 0; t < out.rows; ++t) {
    for (std::int64_t i = 0; i < out.cols; ++i) out(t, i) = attention(t, i) + context.derived[i] * ssm(t, i);
  }
}

/// And its gradient, for training: those of the inputs are assigned, that of the weight is added to.
template <class Context, class Real>
void fuse_backward(const TanhGate&, const Context& context, hymba::MatrixView<const Real>,
                   hymba::MatrixView<const Real> ssm, hymba::MatrixView<const Real> d_out,
                   hymba::MatrixView<Real> d_attention, hymba::MatrixView<Real> d_ssm, Real*) {
  for (std::int64_t t = 0; t < d_out.rows; ++t) {
    for (std::int64_t i = 0; i < d_out.cols; ++i) {
      const Real gate = context.derived[i], d = d_out(t, i);
      d_attention(t, i) = d;
      d_ssm(t, i) = gate * d;
      context.gradient(0)[i] += (1 - gate * gate) * ssm(t, i) * d;
    }
  }
}

/// Every window layer reads the cache of the first window layer behind the last global one.
struct ShareUntilGlobal {
  static constexpr int source(int layer, const hymba::Plan& plan) {
    int first = layer;
    while (plan[layer].window > 0 && first > 0 && plan[first - 1].window == plan[layer].window) --first;
    return first;
  }
};

struct Variant {
  using attention = hymba::AttentionHeads<4, 2, 8, 16>;
  using ssm = hymba::MambaHeads<64, 8, 4, 4>;
  using fuse = TanhGate;
  using mlp = hymba::Relu2<64>;
  using meta = hymba::MetaTokens<4>;
  using spans = hymba::GlobalAt<0, 4>::otherwise<hymba::Window<6>>;
  using sharing = ShareUntilGlobal;
  static constexpr int width = 32, layers = 6, vocabulary = 64;
};
static_assert(hymba::ValidVariant<Variant>);
static_assert(hymba::architecture<Variant>.plan[3].source == 1 && hymba::architecture<Variant>.plan[5].source == 5);

}  // namespace mine

int main() {
  using Model = hymba::Model<mine::Variant, hymba::Cpu<hymba::Weights::f32>>;
  constexpr auto& variant = hymba::architecture<mine::Variant>;
  const std::vector<hymba::Token> ids{1, 2, 3, 5, 8, 13, 21, 34, 55, 25, 16, 41, 57, 34, 27, 61};
  const auto logits = [&](hymba::TensorTable tensors, std::int64_t chunk) {
    const Model model(variant, std::move(tensors));
    auto session = model.session({.max_context = 32, .threads = 1, .prefill_chunk = chunk});
    session.prefill(ids);
    return std::vector<float>(session.logits().begin(), session.logits().end());
  };
  const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
    float most = 0;
    for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
    return most;
  };

  // The shared caches and the fusion give the same in one chunk and token by token ...
  const std::vector<float> whole = logits(hymba::random_tensors(variant, 1), 512);
  const float stepwise = distance(whole, logits(hymba::random_tensors(variant, 1), 1));
  // ... and the fusion's own weight matters.
  hymba::TensorTable closed = hymba::random_tensors(variant, 1);
  const std::vector<float> zeros(64);
  closed.tensors.at("model.layers.3.mamba.tanh_gate.weight").bytes = std::as_bytes(std::span(zeros));
  const float moved = distance(whole, logits(closed, 512));
  std::printf("token by token differs by %.1e, a closed gate by %.1e\n", static_cast<double>(stepwise),
              static_cast<double>(moved));

  // Trained on one sequence, it learns it by heart.
  hymba::TrainerOptions options;
  options.limits = {.tokens = 15, .sequences = 1};
  options.schedule = {.peak = 1e-2, .steps = 60};
  options.threads = 1;
  hymba::Trainer<mine::Variant> trainer(variant, hymba::random_tensors(variant, 1), options);
  const hymba::TrainingBatch batch{{ids.begin(), ids.end() - 1}, {ids.begin() + 1, ids.end()}, {15}};
  const double before = trainer.loss(batch).mean();
  for (int i = 0; i < 60; ++i) trainer.step(batch);
  const double after = trainer.loss(batch).mean();
  std::printf("trained: loss %.2f -> %.4f\n", before, after);
  return stepwise < 1e-4f && moved > 1e-3f && after < 0.1 * before ? 0 : 1;
}
