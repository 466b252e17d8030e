// SPDX-License-Identifier: Apache-2.0
// expect: the fusion does not accept heads of these widths: mean_of_norms, sum and learned_gate need query_heads * value_width equal to the SSM's inner width
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8, 16>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
