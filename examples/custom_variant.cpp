// SPDX-License-Identifier: Apache-2.0
//
// A model of one's own is a type. Its costs are known to the compiler; so are its mistakes.
#include <hymba/hymba.hpp>
#include <hymba/model/random_weights.hpp>

#include <cmath>
#include <cstdio>

using namespace hymba;

struct Tiny {
  using attention = AttentionHeads<8 /*query*/, 2 /*kv*/, 32 /*key width*/, 64 /*value width*/, Rope<10000>>;
  using ssm = MambaHeads<512 /*inner*/, 16 /*state*/, 4 /*conv*/, 16 /*dt rank*/>;
  using fuse = MeanOfNorms;
  using mlp = SwiGlu<704>;
  using meta = MetaTokens<16>;
  using spans = GlobalAt<0, 5>::otherwise<Window<128>>;
  using sharing = ShareAdjacentWindows<2>;
  static constexpr int width = 256, layers = 6, vocabulary = 4096;
};
static_assert(ValidVariant<Tiny>);
static_assert(parameters<Tiny>() < 10'000'000);
static_assert(cache_bytes<Tiny, Cpu<Weights::bf16, Cache::f16>>(8192) < 7_MiB);  // an equal transformer: 18 MiB
static_assert(state_bytes<Tiny>() == 6 * (3 + 16) * 512 * sizeof(float));

int main() {
  const Model<Tiny, Cpu<Weights::f32>> model(architecture<Tiny>, random_tensors(architecture<Tiny>, 1));
  auto session = model.session({.max_context = 64});
  session.prefill({1, 17, 42});
  int count = 0;
  for (const Token token : session.generate({.max_new_tokens = 16}))
    std::printf("%d%c", token, ++count < 16 ? ' ' : '\n');
  return count == 16 && std::isfinite(session.logits()[0]) ? 0 : 1;
}
