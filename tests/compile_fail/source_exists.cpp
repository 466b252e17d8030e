// SPDX-License-Identifier: Apache-2.0
// expect: a sharing rule must name an existing layer as the source of a cache
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Next {
  static constexpr int source(int layer, const Plan&) { return layer + 1; }
};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using sharing = Next;
  static constexpr int width = 16, layers = 1, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
