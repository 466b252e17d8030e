// SPDX-License-Identifier: Apache-2.0
// expect: a sharing group names a layer that does not exist, or a layer is in two groups
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using spans = Window<8>;
  using sharing = Groups<Group<1, 2>, Group<2, 3>>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
