// SPDX-License-Identifier: Apache-2.0
// expect: SSM heads need inner width, d_state, conv_taps and dt_rank of at least 1
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 16, 4, 0>;
  using mlp = SwiGlu<24>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
