// SPDX-License-Identifier: Apache-2.0
// expect: no width or head count may exceed 2^20, no vocabulary 2^23
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<65536, 2, 65536>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
