// SPDX-License-Identifier: Apache-2.0
// expect: a layer is to hold attention heads but the variant defines none
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using mix = Cycle<LayerKind::ssm, LayerKind::attention>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
