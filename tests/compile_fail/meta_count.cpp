// SPDX-License-Identifier: Apache-2.0
// expect: the number of meta tokens must be 0 or more
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct LessThanNone {
  int count = -3;
};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using meta = LessThanNone;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
