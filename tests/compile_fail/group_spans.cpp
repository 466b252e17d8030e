// SPDX-License-Identifier: Apache-2.0
// expect: layers that share a cache must have the same span: no mixing of global and window layers
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using spans = GlobalAt<0>::otherwise<Window<8>>;
  using sharing = Groups<Group<0, 1>>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
