// SPDX-License-Identifier: Apache-2.0
//
// The whole model against the independent PyTorch oracle (tests/oracle), for every golden checkpoint.
#include "model_support.hpp"

#include <unistd.h>

using namespace hymba;
using namespace model_test;

TEST_CASE("there are goldens for every switch") { CHECK(golden_names().size() >= 30); }

TEST_CASE("logits equal the oracle's: f32 weights, vector and scalar kernels") {
  for (const std::string& name : golden_names()) {
    CAPTURE(name);
    const Golden golden = read_golden(golden_root() / name);
    const auto fast = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / name);
    const double error = relative_error(full_pass(fast, golden.ids, room_for(golden.ids.size())), golden.logits);
    CHECK(error < 2e-5);
    const auto plain = Model<DynamicHymba, Cpu<Weights::f32, Cache::f32, arch::scalar, Serial>>::open(golden_root() / name);
    const double plain_error = relative_error(full_pass(plain, golden.ids, room_for(golden.ids.size())), golden.logits);
    CHECK(plain_error < 2e-5);
  }
}

TEST_CASE("bf16 weights: the error is that of rounding the weights, and nothing else") {
  // A model with bf16 weights, written out, is a checkpoint of the rounded numbers. Read back with f32 weights it must
  // give the same logits as the bf16 model: to rounding of sums (2e-5), not to rounding of weights (some 1e-2).
  const auto folder = std::filesystem::temp_directory_path() / ("hymba_rounded_" + std::to_string(::getpid()));
  for (const std::string& name : golden_names()) {
    CAPTURE(name);
    const Golden golden = read_golden(golden_root() / name);
    const auto options = room_for(golden.ids.size());
    const auto narrow = Model<DynamicHymba, Cpu<Weights::bf16>>::open(golden_root() / name);
    narrow.save(folder);
    const auto rounded = Model<DynamicHymba, Cpu<Weights::f32>>::open(folder);
    const auto logits = full_pass(narrow, golden.ids, options);
    CHECK(relative_error(logits, full_pass(rounded, golden.ids, options)) < 2e-5);
    CHECK(relative_error(logits, golden.logits) < 0.25);  // still the same model
    if (name == "bf16_checkpoint") CHECK(relative_error(logits, golden.logits) < 2e-5);  // nothing to round
    std::filesystem::remove_all(folder);
  }
}

TEST_CASE("a model written back loads and gives the same bits") {
  const auto folder = std::filesystem::temp_directory_path() / ("hymba_saved_" + std::to_string(::getpid()));
  for (const std::string& name : golden_names()) {
    CAPTURE(name);
    const Golden golden = read_golden(golden_root() / name);
    const auto options = room_for(golden.ids.size());
    const auto model = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / name);
    model.save(folder);
    const auto again = Model<DynamicHymba, Cpu<Weights::f32>>::open(folder);
    CHECK(full_pass(again, golden.ids, options) == full_pass(model, golden.ids, options));
    CHECK(again.parameters() == model.parameters());
    std::filesystem::remove_all(folder);
  }
}

TEST_CASE("a checkpoint in the policy's format is used where it is mapped") {
  const auto mapped = Model<DynamicHymba, Cpu<Weights::bf16>>::open(golden_root() / "bf16_checkpoint");
  const auto widened = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "bf16_checkpoint");
  std::size_t matrices = 0;
  for (const BoundTensor& t : mapped.tensors()) {
    if (t.spec.role == TensorRole::matrix) matrices += static_cast<std::size_t>(t.spec.elements());
  }
  CHECK(widened.owned_bytes() >= mapped.owned_bytes() + matrices * sizeof(float));
}
