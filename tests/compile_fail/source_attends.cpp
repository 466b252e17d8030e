// SPDX-License-Identifier: Apache-2.0
// expect: the source of a shared cache must hold attention heads
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct FromFirst {
  static constexpr int source(int, const Plan&) { return 0; }
};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using mix = Cycle<LayerKind::ssm, LayerKind::attention>;
  using sharing = FromFirst;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
