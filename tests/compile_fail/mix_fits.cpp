// SPDX-License-Identifier: Apache-2.0
// expect: the mix of layer kinds names a layer that does not exist
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using mix = AttentionAt<0, 7>::otherwise<LayerKind::ssm>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
