// SPDX-License-Identifier: Apache-2.0
// expect: a rotary base must be positive, and NTK scaling needs a key width above 2 and max_positions >= original_positions >= 1
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 2, 8, DynamicNtkRope<10000, 64>>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
