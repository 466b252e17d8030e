// SPDX-License-Identifier: Apache-2.0
//
// The whole model against the independent PyTorch oracle (tests/oracle), for every golden checkpoint.
#include "model_support.hpp"

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
