// SPDX-License-Identifier: Apache-2.0
// expect: a stack has at most 256 layers
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  static constexpr int width = 16, layers = 257, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
