// SPDX-License-Identifier: Apache-2.0
// expect: the span list names a layer that does not exist, or has not one span per layer
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using spans = GlobalAt<0, 4>::otherwise<Window<8>>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
