// SPDX-License-Identifier: Apache-2.0
// expect: the variant's `fuse` lacks members of hymba::Fusion
#include <hymba/variant/architecture.hpp>

using namespace hymba;

struct Nothing {};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using fuse = Nothing;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
Architecture<Variant>* never;
using Kind = Architecture<Variant>::fuse_type;
