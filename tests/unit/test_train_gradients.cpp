// SPDX-License-Identifier: Apache-2.0
//
// Gradients of whole models: against PyTorch's autograd (goldens), against central differences in double, and the ways
// of computing them (vector and scalar kernels, layers kept or recomputed, batches whole or in parts) against each
// other.
#include <hymba/model/random_weights.hpp>

#include "random_description.hpp"
#include "train_support.hpp"

using namespace hymba;
using namespace train_test;

namespace {

/// Checks loss and every gradient of one golden; returns the worst relative error.
template <class P>
double golden_error(const std::string& name, bool recompute, int threads) {
  const auto folder = golden_root() / name;
  Checkpoint checkpoint = open_checkpoint(folder);
  const auto a = architecture_from<DynamicHymba>(checkpoint.description);
  const Json golden = read_json(folder / "batch.json");
  Gradients<DynamicHymba, P> g(a, checkpoint.tensors, batch_of(golden["sequences"]), recompute, threads);
  const TensorTable wanted = read_safetensors(folder / "gradients.safetensors");
  double worst = std::abs(g.loss / golden["loss"].get<double>() - 1);
  for (const TrainedTensor& t : g.parameters.tensors()) {
    CAPTURE(t.name);
    const TensorRef* ref = wanted.find(t.name);
    REQUIRE(ref != nullptr);
    std::vector<float> expected(static_cast<std::size_t>(t.count()));
    hymba::detail::to_float(*ref, 0, t.count(), expected.data());
    const double error =
        relative_difference(std::span(g.parameters.gradient(t), expected.size()), std::span<const float>(expected));
    CHECK_MESSAGE(error < (std::is_same_v<P, Double> ? 1e-6 : 1e-3), t.name, ": relative error ", error);
    worst = std::max(worst, error);
  }
  return worst;
}

}  // namespace

TEST_CASE("gradients equal PyTorch's: vector kernels") {
  CHECK(gradient_goldens().size() >= 12);
  double worst = 0;
  for (const std::string& name : gradient_goldens()) {
    CAPTURE(name);
    worst = std::max(worst, golden_error<Vector>(name, false, 2));
    worst = std::max(worst, golden_error<Vector>(name, true, 1));
  }
  MESSAGE("worst relative error in single precision: ", worst);
  CHECK(worst < 1e-3);
}

TEST_CASE("gradients equal PyTorch's: scalar kernels, single and double precision") {
  double worst = 0, worst_double = 0;
  for (const std::string& name : gradient_goldens()) {
    CAPTURE(name);
    worst = std::max(worst, golden_error<Plain>(name, false, 1));
    worst_double = std::max(worst_double, golden_error<Double>(name, false, 1));
  }
  MESSAGE("worst relative error, single: ", worst, ", double (goldens are stored in single): ", worst_double);
  CHECK(worst < 1e-3);
  CHECK(worst_double < 1e-6);
}

TEST_CASE("gradients of random variants equal central differences in double") {
  std::mt19937 rng(20261123);
  double worst = 0;
  for (int round = 0; round < 14; ++round) {
    const Description d = test::random_description(rng);
    const auto a = architecture_from<DynamicHymba>(d);
    const TrainingBatch batch = random_batch(rng, d.vocabulary, 3, 14);
    if (targets_of(batch) == 0) continue;
    const TensorTable table = random_tensors(a, rng(), DType::f32);
    Gradients<DynamicHymba, Double> g(a, table, batch);
    CAPTURE(round);
    for (const TrainedTensor& t : g.parameters.tensors()) {
      CAPTURE(t.name);
      // Along a random direction of the whole tensor: every element counts.
      std::vector<double> direction(static_cast<std::size_t>(t.count())), start(direction.size());
      double along = 0, squares = 0;
      double* w = g.parameters.weight(t);
      for (std::size_t i = 0; i < direction.size(); ++i) {
        direction[i] = rng() % 2 == 0 ? 1.0 : -1.0;
        start[i] = w[i];
        along += direction[i] * g.parameters.gradient(t)[i];
        squares += g.parameters.gradient(t)[i] * g.parameters.gradient(t)[i];
      }
      const auto loss_at = [&](double h) {
        for (std::size_t i = 0; i < direction.size(); ++i) w[i] = start[i] + h * direction[i];
        return g.network.loss(batch).mean();
      };
      // Fourth-order differences: the truncation error falls with h^4, rounding stays near 1e-16 * loss / h.
      const double h = 2e-4 / std::sqrt(static_cast<double>(t.count()));
      const double numeric = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
      loss_at(0);
      // Relative to the gradient's length: a direction at right angles to it has a derivative of zero.
      const double scale = std::max(std::abs(along), std::sqrt(squares));
      const double noise = 1e-15 * g.loss / h;
      const double error = std::abs(numeric - along);
      CHECK_MESSAGE(error <= 1e-5 * scale + noise, t.name, " analytic ", along, " numeric ", numeric);
      if (scale > 1e3 * noise) worst = std::max(worst, error / scale);
    }
  }
  MESSAGE("worst error relative to the gradient's length: ", worst);
}

TEST_CASE("kept and recomputed layers give the same bits; vector kernels agree with double") {
  std::mt19937 rng(7);
  for (int round = 0; round < 10; ++round) {
    const Description d = test::random_description(rng);
    const auto a = architecture_from<DynamicHymba>(d);
    const TrainingBatch batch = random_batch(rng, d.vocabulary, 4, 40);
    if (targets_of(batch) == 0) continue;
    const TensorTable table = random_tensors(a, rng(), DType::f32);
    Gradients<DynamicHymba, Vector> kept(a, table, batch, false, 2), again(a, table, batch, true, 2);
    Gradients<DynamicHymba, Double> exact(a, table, batch);
    CHECK(kept.loss == again.loss);
    CHECK(std::equal(kept.parameters.gradients().begin(), kept.parameters.gradients().end(),
                     again.parameters.gradients().begin()));
    CHECK(again.network.bytes() <= kept.network.bytes());
    CAPTURE(round);
    double largest = 0;
    for (const double x : exact.parameters.gradients()) largest = std::max(largest, std::abs(x));
    for (std::size_t k = 0; k < exact.parameters.tensors().size(); ++k) {
      const TrainedTensor& t = exact.parameters.tensors()[k];
      const float* single = kept.parameters.gradient(kept.parameters.tensors()[k]);
      double most = 0, error = 0;
      for (std::int64_t i = 0; i < t.count(); ++i) {
        most = std::max(most, std::abs(exact.parameters.gradient(t)[i]));
        error = std::max(error, std::abs(exact.parameters.gradient(t)[i] - static_cast<double>(single[i])));
      }
      // A gradient that is a difference of much larger ones cannot be relatively exact in single precision.
      CHECK_MESSAGE(error <= 1e-3 * most + 1e-6 * largest, t.name, ": ", error, " of ", most);
    }
  }
}

TEST_CASE("a batch is its sequences, one by one; gradients of several batches add up") {
  std::mt19937 rng(11);
  for (int round = 0; round < 4; ++round) {
    const Description d = test::random_description(rng);
    const auto a = architecture_from<DynamicHymba>(d);
    const TrainingBatch batch = random_batch(rng, d.vocabulary, 4, 20);
    const TensorTable table = random_tensors(a, rng(), DType::f32);
    Serial executor;
    TrainedParameters<DynamicHymba, double> whole(a, table, "test"), parts(a, table, "test");
    TrainingNetwork<DynamicHymba, Double> all(whole, executor, limits_of(batch)),
        one(parts, executor, limits_of(batch));
    LossSum sum;
    std::size_t at = 0;
    for (const std::int64_t n : batch.lengths) {
      const auto first = static_cast<std::ptrdiff_t>(at), last = first + static_cast<std::ptrdiff_t>(n);
      sum += one.accumulate({{batch.tokens.begin() + first, batch.tokens.begin() + last},
                             {batch.targets.begin() + first, batch.targets.begin() + last},
                             {n}},
                            0.25);
      at += static_cast<std::size_t>(n);
    }
    const LossSum together = all.accumulate(batch, 0.25);
    CHECK(together.targets == sum.targets);
    CHECK(together.nats == doctest::Approx(sum.nats).epsilon(1e-12));
    CHECK(relative_difference(std::span<const double>(whole.gradients()), std::span<const double>(parts.gradients())) <
          1e-11);
  }
}

TEST_CASE("bad batches are refused with one sentence that names the value") {
  std::mt19937 rng(3);
  const Description d = test::random_description(rng);
  const auto a = architecture_from<DynamicHymba>(d);
  const TensorTable table = random_tensors(a, 1, DType::f32);
  Serial executor;
  TrainedParameters<DynamicHymba, float> parameters(a, table, "test");
  TrainingNetwork<DynamicHymba, Plain> network(parameters, executor, {4, 2, false});
  const auto error_of = [&](TrainingBatch batch) -> std::string {
    try {
      network.loss(batch);
    } catch (const ArgumentError& e) {
      return e.what();
    }
    return "";
  };
  CHECK(error_of({{0, 1}, {1, 0}, {2}}).empty());
  CHECK(error_of({{}, {}, {}}).find("0 tokens") != std::string::npos);
  CHECK(error_of({{0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}, {5}}).find("5 tokens, expected 1 to 4") != std::string::npos);
  CHECK(error_of({{0, 0, 0}, {0, 0, 0}, {1, 1, 1}}).find("3 sequences") != std::string::npos);
  CHECK(error_of({{0, 0}, {0, 0}, {1}}).find("sum to 1") != std::string::npos);
  CHECK(error_of({{0, 0}, {0, 0}, {2, 0}}).find("a sequence of 0") != std::string::npos);
  CHECK(error_of({{0, 0}, {0}, {2}}).find("1 targets") != std::string::npos);
  CHECK(error_of({{0, d.vocabulary}, {0, 0}, {2}}).find("token 1 is " + std::to_string(d.vocabulary)) !=
        std::string::npos);
  CHECK(error_of({{0, -1}, {0, 0}, {2}}).find("token 1 is -1") != std::string::npos);
  CHECK(error_of({{0, 0}, {0, -2}, {2}}).find("target 1 is -2") != std::string::npos);
}
