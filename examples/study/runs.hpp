// SPDX-License-Identifier: Apache-2.0
//
// What is measured: a language model's perplexity, recall, and the speed of decoding behind a long text.
#pragma once

#include <hymba/exec/policy.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/model/model.hpp>
#include <hymba/model/random_weights.hpp>
#include <hymba/train/token_file.hpp>
#include <hymba/train/trainer.hpp>
#include <hymba/train/training_run.hpp>
#include <hymba/train/windows.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "recall.hpp"
#include "variants.hpp"

namespace study {

/// How models are trained on one task: the same for every variant and seed.
struct TrainingSettings {
  Size size;
  std::int64_t steps = 0;
  std::int64_t tokens = 0;   ///< of a step
  std::int64_t context = 0;  ///< tokens of the longest sequence
  double learning_rate = 0;

  std::string text() const {
    return hymba::detail::message("width ", size.width, ", ", size.layers, " layers, window ", size.window, ", ", steps,
                                  " steps of ", tokens, " tokens, sequences of at most ", context,
                                  ", peak learning rate ", learning_rate);
  }
};

/// Every run has one thread; several go side by side.
template <class Arch>
using Training = hymba::Cpu<hymba::Weights::f32, hymba::Cache::f32, Arch, hymba::Serial>;
using Inference = hymba::Cpu<hymba::Weights::bf16, hymba::Cache::bf16, hymba::arch::best, hymba::Serial>;

inline hymba::Architecture<hymba::DynamicHymba> architecture(const Variant& v, const Size& size) {
  return hymba::architecture_from<hymba::DynamicHymba>(describe(v, size), v.name);
}

/// A trainer that starts, where the output has weights of its own, from embeddings of unit variance, those of the meta
/// tokens too. random_tensors makes smaller ones, for the sake of logits that share them; with the larger ones a token
/// stays recognisable beside what the layers add: recall is learned several times sooner.
template <class Arch>
class Learner : public hymba::Trainer<hymba::DynamicHymba, Training<Arch>> {
 public:
  Learner(const Variant& v, const TrainingSettings& s, const hymba::TrainingLimits& limits, std::uint64_t seed)
      : Learner(architecture(v, s.size), options(s, limits), v.name, seed) {}

 private:
  using Base = hymba::Trainer<hymba::DynamicHymba, Training<Arch>>;

  Learner(const hymba::Architecture<hymba::DynamicHymba>& a, const hymba::TrainerOptions& o, const std::string& name,
          std::uint64_t seed)
      : Base(a, hymba::random_tensors(a, seed), o, name) {
    if (a.tied_embeddings) return;
    enlarge(this->parameters().embedding());
    if (a.meta_tokens() > 0) enlarge(this->parameters().meta_tokens());
  }

  void enlarge(const hymba::TrainedTensor& embedding) {
    float* weights = this->parameters().weight(embedding);
    for (std::int64_t i = 0; i < embedding.count(); ++i) weights[i] *= std::sqrt(static_cast<float>(embedding.cols()));
  }

  static hymba::TrainerOptions options(const TrainingSettings& s, const hymba::TrainingLimits& limits) {
    hymba::TrainerOptions o;
    o.limits = limits;
    o.schedule.kind = hymba::Schedule::Kind::cosine;
    o.schedule.peak = s.learning_rate;
    o.schedule.floor = s.learning_rate / 100;
    o.schedule.warmup = 0.1;
    o.schedule.steps = s.steps;
    o.threads = 1;
    return o;
  }
};

/// The perplexity of the held-out text after training.
template <class Arch>
double train_language_model(const Variant& v, const TrainingSettings& s, const hymba::TokenFile& train,
                            const hymba::TokenFile& held_out, std::uint64_t seed) {
  hymba::RunOptions run;
  run.context = s.context;
  run.sequences = s.tokens / s.context;
  Learner<Arch> learner(v, s, hymba::run_limits(run, train, &held_out), seed);
  hymba::WindowSampler windows(train, run.context, run.sequences, seed);
  hymba::TrainingBatch batch;
  for (std::int64_t step = 0; step < s.steps; ++step) {
    windows.next(batch);
    learner.step(batch);
  }
  return std::exp(hymba::validate<hymba::DynamicHymba>(learner, held_out, run).loss);
}

/// The share of queries answered rightly, of `sequences` new ones for each number of pairs.
inline std::vector<double> recall_accuracy(const hymba::Model<hymba::DynamicHymba, Inference>& model, int sequences) {
  Recall data(0);  // runs are seeded from 1
  auto session = model.session({.max_context = Recall::longest, .threads = 1});
  std::vector<float> logits;
  std::vector<double> out;
  hymba::TrainingBatch batch;
  for (const int pairs : Recall::pairs) {
    std::int64_t right = 0;
    for (int i = 0; i < sequences; ++i) {
      batch.clear();
      data.append(pairs, batch);
      session.reset();
      logits.resize(batch.tokens.size() * Recall::vocabulary);
      session.evaluate(batch.tokens, logits);
      for (std::size_t t = 0; t < batch.targets.size(); ++t) {
        if (batch.targets[t] == hymba::no_target) continue;
        const auto row = std::span(logits).subspan(t * Recall::vocabulary, Recall::vocabulary);
        right += std::max_element(row.begin(), row.end()) - row.begin() == batch.targets[t] ? 1 : 0;
      }
    }
    out.push_back(static_cast<double>(right) / static_cast<double>(sequences * Recall::queries(pairs)));
  }
  return out;
}

/// The accuracy of recall after training, for each number of pairs.
template <class Arch>
std::vector<double> train_recall(const Variant& v, const TrainingSettings& s, int test_sequences, std::uint64_t seed) {
  Recall data(seed);
  hymba::TrainingBatch batch;
  data.next(s.tokens, batch);  // every batch has the same shape
  Learner<Arch> learner(v, s, {batch.rows(), static_cast<std::int64_t>(batch.lengths.size())}, seed);
  for (std::int64_t step = 0; step < s.steps; ++step) {
    learner.step(batch);
    data.next(s.tokens, batch);
  }
  return recall_accuracy(learner.template model<Inference>(), test_sequences);
}

/// Tokens per second of each variant's decoding behind `depth` tokens, on one thread. The variants take turns, so that
/// whatever else the machine does hits all alike; the fastest of many turns counts. Weights do not matter to speed and
/// are random.
inline std::vector<double> decoding_speeds(const std::vector<Variant>& variants, const Size& size, std::int64_t depth) {
  using Clock = std::chrono::steady_clock;
  constexpr int turns = 16, tokens = 16;
  std::vector<hymba::Token> text(static_cast<std::size_t>(depth));
  std::mt19937 random(1);
  for (hymba::Token& t : text) t = static_cast<hymba::Token>(random() % static_cast<unsigned>(size.vocabulary));
  std::vector<hymba::Session<hymba::DynamicHymba, Inference>> sessions;
  for (const Variant& v : variants) {
    const auto a = architecture(v, size);
    const hymba::Model<hymba::DynamicHymba, Inference> model(a, hymba::random_tensors(a, 1), v.name);
    sessions.push_back(model.session({.max_context = depth + turns * tokens, .threads = 1}));
    sessions.back().prefill(text);
  }
  std::vector<double> best(variants.size(), std::numeric_limits<double>::infinity());
  for (int turn = 0; turn < turns; ++turn) {
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      const auto begin = Clock::now();
      for (int t = 0; t < tokens; ++t) sessions[i].decode(text[static_cast<std::size_t>(t)]);
      best[i] = std::min(best[i], std::chrono::duration<double>(Clock::now() - begin).count() / tokens);
    }
  }
  for (double& seconds : best) seconds = 1 / seconds;
  return best;
}

}  // namespace study
