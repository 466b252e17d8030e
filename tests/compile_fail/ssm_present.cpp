// SPDX-License-Identifier: Apache-2.0
// expect: a layer is to hold SSM heads but the variant defines none
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using mlp = SwiGlu<24>;
  using mix = EveryLayer<LayerKind::hybrid>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
