// SPDX-License-Identifier: Apache-2.0
// expect: the source of a shared cache must store it itself, not read another's
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct FromBefore {
  static constexpr int source(int layer, const Plan&) { return layer == 0 ? 0 : layer - 1; }
};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using sharing = FromBefore;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
