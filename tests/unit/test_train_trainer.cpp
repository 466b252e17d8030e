// SPDX-License-Identifier: Apache-2.0
//
// The trainer: AdamW against PyTorch's, overfitting, accumulation, divergence, the model that comes out.
#include <hymba/model/random_weights.hpp>

#include <limits>

#include "random_description.hpp"
#include "train_support.hpp"

using namespace hymba;
using namespace train_test;

namespace {

/// A hybrid with everything in it: windows, a shared cache, meta tokens, an MLP.
struct Small {
  using attention = AttentionHeads<4, 2, 8, 12>;
  using ssm = MambaHeads<48, 5, 4, 3>;
  using mlp = SwiGlu<40>;
  using meta = MetaTokens<3>;
  using spans = GlobalAt<0>::otherwise<Window<5>>;
  using sharing = ShareAdjacentWindows<2>;
  static constexpr int width = 24, layers = 3, vocabulary = 31;
};

TrainerOptions options_for(const TrainingBatch& batch, std::int64_t steps, double rate, int threads = 1) {
  TrainerOptions o;
  o.limits = limits_of(batch);
  o.schedule = {
      .kind = Schedule::Kind::wsd, .peak = rate, .floor = rate / 100, .warmup = 0.05, .decay = 0.3, .steps = steps};
  o.threads = threads;
  return o;
}

/// The mean loss of a batch by sessions, one for each of its sequences and with no row of working memory to spare.
template <class Model>
double mean_nats(const Model& model, const TrainingBatch& batch) {
  const auto vocabulary = static_cast<std::size_t>(model.architecture().vocabulary);
  double nats = 0;
  std::int64_t targets = 0;
  std::size_t at = 0;
  for (const std::int64_t length : batch.lengths) {
    auto session = model.session({.max_context = std::max<std::int64_t>(length, 1), .threads = 1});
    const auto n = static_cast<std::size_t>(length);
    std::vector<float> logits(n * vocabulary);
    session.evaluate(std::span(batch.tokens).subspan(at, n), logits);
    for (std::size_t t = 0; t < n; ++t) {
      if (batch.targets[at + t] == no_target) continue;
      const float* row = logits.data() + t * vocabulary;
      double sum = 0;
      for (std::size_t v = 0; v < vocabulary; ++v) sum += std::exp(static_cast<double>(row[v]));
      nats += std::log(sum) - static_cast<double>(row[batch.targets[at + t]]);
      ++targets;
    }
    at += n;
  }
  CHECK(targets == targets_of(batch));
  return nats / static_cast<double>(targets);
}

}  // namespace

TEST_CASE("ten steps of AdamW equal PyTorch's: losses, norms and weights") {
  const auto folder = golden_root() / "train-steps";
  const Json golden = read_json(folder / "batch.json");
  Checkpoint checkpoint = open_checkpoint(folder);
  const auto a = architecture_from<DynamicHymba>(checkpoint.description);
  TrainerOptions o;
  o.beta1 = golden["betas"][0].get<double>();
  o.beta2 = golden["betas"][1].get<double>();
  o.eps = golden["eps"].get<double>();
  o.weight_decay = golden["weight_decay"].get<double>();
  o.clip = golden["clip"].get<double>();
  o.threads = 2;
  o.schedule = {.kind = Schedule::Kind::constant, .peak = 1, .floor = 0, .warmup = 0, .decay = 0, .steps = 1};
  std::vector<TrainingBatch> batches;
  for (const auto& step : golden["steps"]) {
    batches.push_back(batch_of(step.contains("sequences") ? step["sequences"] : step));
    o.limits.tokens = std::max(o.limits.tokens, batches.back().rows());
    o.limits.sequences = std::max(o.limits.sequences, static_cast<std::int64_t>(batches.back().lengths.size()));
  }
  REQUIRE(batches.size() == 10);
  // The golden's rates follow no schedule of ours: one trainer per step would lose the moments, so the rate is set by a
  // schedule that is constant at that step's rate, and moments and count are handed on.
  TensorTable table = checkpoint.tensors;
  std::vector<float> first, second;
  double worst_loss = 0, worst_norm = 0, worst_weight = 0;
  for (std::size_t i = 0; i < batches.size(); ++i) {
    o.schedule.peak = golden["learning_rates"][i].get<double>();
    Trainer<DynamicHymba> trainer(a, table, o, "golden");
    if (i > 0) {
      std::copy(first.begin(), first.end(), trainer.first_moments().begin());
      std::copy(second.begin(), second.end(), trainer.second_moments().begin());
      trainer.resume_at(static_cast<std::int64_t>(i));
    }
    const StepReport report = trainer.step(batches[i]);
    CHECK(report.learning_rate == o.schedule.peak);
    worst_loss = std::max(worst_loss, std::abs(report.loss / golden["losses"][i].get<double>() - 1));
    worst_norm = std::max(worst_norm, std::abs(report.gradient_norm / golden["gradient_norms"][i].get<double>() - 1));
    first.assign(trainer.first_moments().begin(), trainer.first_moments().end());
    second.assign(trainer.second_moments().begin(), trainer.second_moments().end());
    table = trainer.parameters().table();
  }
  const TensorTable wanted = read_safetensors(folder / "final.safetensors");
  for (const auto& named : wanted.tensors) {
    const std::string& name = named.first;  // clang 14 lets no lambda capture a structured binding
    const TensorRef& ref = named.second;
    const TensorRef* got = table.find(name);
    REQUIRE(got != nullptr);
    const auto count = static_cast<std::int64_t>(ref.bytes.size() / dtype_bytes(ref.dtype));
    std::vector<float> x(static_cast<std::size_t>(count)), y(x.size());
    hymba::detail::to_float(*got, 0, count, x.data());
    hymba::detail::to_float(ref, 0, count, y.data());
    const double error = relative_difference(std::span<const float>(x), std::span<const float>(y));
    CHECK_MESSAGE(error < 1e-4, name, ": ", error);
    worst_weight = std::max(worst_weight, error);
  }
  MESSAGE("worst relative errors: loss ", worst_loss, ", norm ", worst_norm, ", final weights ", worst_weight);
  CHECK(worst_loss < 1e-4);
  CHECK(worst_norm < 1e-4);
}

TEST_CASE("one batch is overfitted to almost nothing, and the model that comes out knows it") {
  std::mt19937 rng(5);
  const TrainingBatch batch = random_batch(rng, Small::vocabulary, 3, 24);
  Trainer<Small> trainer(architecture<Small>, random_tensors(architecture<Small>, 1), options_for(batch, 150, 1e-2, 2));
  const double before = trainer.loss(batch).mean();
  CHECK(before > 2.5);
  double after = 0;
  for (int i = 0; i < 150; ++i) after = trainer.step(batch).loss;
  MESSAGE("loss ", before, " -> ", after);
  CHECK(after < 0.05);
  CHECK(trainer.steps() == 150);

  // Inference with the trained weights gives the training loss: same heads, same kernels.
  const auto model = trainer.model();
  CHECK(mean_nats(model, batch) == doctest::Approx(trainer.loss(batch).mean()).epsilon(1e-4));
}

TEST_CASE("inference gives the loss of training, which keeps everything in memory of its own") {
  std::mt19937 rng(8);
  int wide = 0, exact = 0;
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    Description d = test::random_description(rng);
    d.vocabulary = std::max(d.vocabulary, 8);
    // What attention puts out lies over the inputs of the SSM heads, if these are as wide.
    const int attended = d.query_heads * d.value_width;
    if (round % 3 != 0 && d.fusion != Name("none")) {
      d.fusion = "concat";
      d.inner = round % 3 == 1 ? std::max(1, attended / 3) : (attended + 1) / 2;
    }
    const auto a = architecture_from<DynamicHymba>(d);
    for (int i = 0; i < d.layers; ++i) {
      if (d.plan[i].kind != LayerKind::hybrid) continue;
      wide += attended > 2 * d.inner ? 1 : 0;
      exact += attended == 2 * d.inner ? 1 : 0;
    }
    const TrainingBatch batch = random_batch(rng, d.vocabulary, 2, 20);
    if (targets_of(batch) == 0) continue;
    Trainer<DynamicHymba> trainer(a, random_tensors(a, static_cast<std::uint64_t>(round)), options_for(batch, 1, 1e-3));
    CHECK(mean_nats(trainer.model(), batch) == doctest::Approx(trainer.loss(batch).mean()).epsilon(1e-5));
  }
  CHECK(wide > 5);
  CHECK(exact > 5);
}

TEST_CASE("every kind of variant learns by the same code") {
  std::mt19937 rng(12);
  for (int round = 0; round < 6; ++round) {
    Description d = test::random_description(rng);
    d.width = std::max(d.width, 12);
    d.vocabulary = std::max(d.vocabulary, 8);
    for (int i = 0; i < d.layers; ++i) {  // all attention, all SSM, alternating, then whatever was drawn
      LayerPlan& row = d.plan[i];
      if (round > 2) break;
      row.kind = round == 0 || (round == 2 && i % 2 == 0) ? LayerKind::attention : LayerKind::ssm;
      row.source = row.has_attention() ? i : -1;
      row.window = 0;
    }
    const auto a = architecture_from<DynamicHymba>(d);
    const TrainingBatch batch = random_batch(rng, d.vocabulary, 2, 10);
    if (targets_of(batch) == 0) continue;
    Trainer<DynamicHymba> trainer(a, random_tensors(a, 3), options_for(batch, 80, 1e-2));
    const double before = trainer.loss(batch).mean();
    for (int i = 0; i < 80; ++i) trainer.step(batch);
    CAPTURE(round);
    CHECK(trainer.loss(batch).mean() < 0.6 * before);
  }
}

TEST_CASE("a step over several batches is the step over all of them at once") {
  std::mt19937 rng(21);
  const TrainingBatch whole = random_batch(rng, Small::vocabulary, 4, 12);
  std::vector<TrainingBatch> parts;
  std::size_t at = 0;
  for (const std::int64_t n : whole.lengths) {
    const auto first = static_cast<std::ptrdiff_t>(at), last = first + static_cast<std::ptrdiff_t>(n);
    parts.push_back({{whole.tokens.begin() + first, whole.tokens.begin() + last},
                     {whole.targets.begin() + first, whole.targets.begin() + last},
                     {n}});
    at += static_cast<std::size_t>(n);
  }
  const TensorTable table = random_tensors(architecture<Small>, 9);
  Trainer<Small> one(architecture<Small>, table, options_for(whole, 5, 1e-3));
  Trainer<Small> many(architecture<Small>, table, options_for(whole, 5, 1e-3));
  for (int i = 0; i < 5; ++i) {
    const StepReport a = one.step(whole), b = many.step(parts);
    CHECK(a.loss == doctest::Approx(b.loss).epsilon(1e-6));
    CHECK(a.gradient_norm == doctest::Approx(b.gradient_norm).epsilon(1e-5));
    CHECK(a.tokens == b.tokens);
  }
}

TEST_CASE("the same run gives the same bits, on one thread and on two") {
  std::mt19937 rng(33);
  const TrainingBatch batch = random_batch(rng, Small::vocabulary, 4, 60);
  for (const int threads : {1, 2}) {
    const TensorTable table = random_tensors(architecture<Small>, 9);
    Trainer<Small> a(architecture<Small>, table, options_for(batch, 6, 3e-3, threads));
    Trainer<Small> b(architecture<Small>, table, options_for(batch, 6, 3e-3, threads));
    for (int i = 0; i < 6; ++i) CHECK(a.step(batch).loss == b.step(batch).loss);
    CHECK(
        std::equal(a.parameters().weights().begin(), a.parameters().weights().end(), b.parameters().weights().begin()));
  }
}

TEST_CASE("a loss that is not a number stops before the weights change, and says the step") {
  std::mt19937 rng(2);
  const TrainingBatch batch = random_batch(rng, Small::vocabulary, 2, 10);
  Trainer<Small> trainer(architecture<Small>, random_tensors(architecture<Small>, 9), options_for(batch, 9, 1e-3));
  trainer.step(batch);
  trainer.parameters().weight(trainer.parameters().final_norm())[3] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> before(trainer.parameters().weights().begin(), trainer.parameters().weights().end());
  std::string message;
  try {
    trainer.step(batch);
  } catch (const DivergedError& e) {
    message = e.what();
  }
  CHECK(message.find("step 2: the loss is") != std::string::npos);
  CHECK(trainer.steps() == 1);
  CHECK(std::memcmp(before.data(), trainer.parameters().weights().data(), before.size() * sizeof(float)) == 0);

  TrainingBatch none = batch;
  std::fill(none.targets.begin(), none.targets.end(), no_target);
  CHECK_THROWS_AS(trainer.step(none), ArgumentError);
}

TEST_CASE("weight decay reaches matrices and nothing else") {
  std::mt19937 rng(2);
  const TrainingBatch batch = random_batch(rng, Small::vocabulary, 2, 10);
  TrainerOptions o = options_for(batch, 1, 1e-2), none = o;
  o.weight_decay = 0.5;
  none.weight_decay = 0;
  const TensorTable table = random_tensors(architecture<Small>, 9);
  Trainer<Small> decayed(architecture<Small>, table, o), plain(architecture<Small>, table, none);
  decayed.step(batch);
  plain.step(batch);
  for (const TrainedTensor& t : plain.parameters().tensors()) {
    const bool same = std::equal(plain.parameters().weight(t), plain.parameters().weight(t) + t.count(),
                                 decayed.parameters().weight(t));
    CAPTURE(t.name);
    const bool exempt = t.name.ends_with("norm.weight") || t.name.find("layernorm") != std::string::npos ||
                        t.name.ends_with(".bias") || t.name.ends_with("A_log.0") || t.name.ends_with(".D.0") ||
                        t.name.ends_with("conv1d.weight") || t.name == "model.memory_tokens";
    CHECK(same == exempt);
  }
}

TEST_CASE("schedules") {
  Schedule s{.kind = Schedule::Kind::wsd, .peak = 1, .floor = 0.1, .warmup = 0.1, .decay = 0.2, .steps = 100};
  CHECK(s.at(0) == doctest::Approx(0.1));
  CHECK(s.at(9) == doctest::Approx(1));
  CHECK(s.at(50) == 1);
  CHECK(s.at(79) == 1);
  CHECK(s.at(80) < 1);
  CHECK(s.at(99) == doctest::Approx(0.1));
  CHECK(s.at(1000) == s.at(99));
  for (int i = 81; i < 100; ++i) CHECK(s.at(i) < s.at(i - 1));
  s.kind = Schedule::Kind::cosine;
  CHECK(s.at(10) == doctest::Approx(1));
  CHECK(s.at(99) == doctest::Approx(0.1));
  CHECK(s.at(54) == doctest::Approx(0.55).epsilon(0.02));
  s.kind = Schedule::Kind::constant;
  CHECK(s.at(99) == 1);
  for (const Schedule bad : {Schedule{.steps = 0}, Schedule{.peak = -1, .steps = 1}, Schedule{.floor = 1, .steps = 1},
                             Schedule{.warmup = 2, .steps = 1}, Schedule{.decay = -1, .steps = 1}}) {
    CHECK_THROWS_AS(bad.check(), ArgumentError);
  }
}
