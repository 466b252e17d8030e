// SPDX-License-Identifier: Apache-2.0
// expect: the producer of a shared cache must come before its readers
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct FromLast {
  static constexpr int source(int, const Plan& plan) { return plan.layers - 1; }
};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using sharing = FromLast;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
