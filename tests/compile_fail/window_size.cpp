// SPDX-License-Identifier: Apache-2.0
// expect: a window must be at least 1
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Shrinking {
  static constexpr int window(int layer) { return 2 - layer; }
};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using spans = Shrinking;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
