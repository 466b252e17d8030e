// SPDX-License-Identifier: Apache-2.0
// expect: query_heads must be a multiple of kv_heads
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Variant {
  using attention = AttentionHeads<4, 3, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
template <ValidVariant V>
struct Uses {};
Uses<Variant> uses;
