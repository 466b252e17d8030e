// SPDX-License-Identifier: Apache-2.0
//
// Published configurations as types, and the variant that leaves everything to config.json.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/architecture.hpp>

HYMBA_NAMESPACE_BEGIN

namespace presets {

/// nvidia/Hymba-1.5B-Base and -Instruct: 1,522,797,824 parameters.
struct Hymba1_5B {
  using attention = AttentionHeads<25, 5, 64, 128, NtkRope<10000, 8192, 2048>>;
  using ssm = MambaHeads<3200, 16, 4, 100>;
  using fuse = MeanOfNorms;
  using mlp = SwiGlu<5504>;
  using meta = MetaTokens<128>;
  using spans = GlobalAt<0, 15, 31>::otherwise<Window<1024>>;
  using sharing = ShareAdjacentWindows<2>;
  static constexpr int width = 1600, layers = 32, vocabulary = 32001;
};

/// Hymba-350M of the paper's table 11.
struct Hymba350M {
  using attention = AttentionHeads<12, 4, 64, 128, NtkRope<10000, 8192, 2048>>;
  using ssm = MambaHeads<1536, 16, 4, 48>;
  using fuse = MeanOfNorms;
  using mlp = SwiGlu<2432>;
  using meta = MetaTokens<128>;
  using spans = GlobalAt<0, 15, 31>::otherwise<Window<1024>>;
  using sharing = ShareAdjacentWindows<2>;
  static constexpr int width = 768, layers = 32, vocabulary = 32001;
};

/// Hymba-125M of the paper's table 11.
struct Hymba125M {
  using attention = AttentionHeads<8, 4, 64, 128, NtkRope<10000, 8192, 2048>>;
  using ssm = MambaHeads<1024, 16, 4, 32>;
  using fuse = MeanOfNorms;
  using mlp = SwiGlu<1664>;
  using meta = MetaTokens<128>;
  using spans = GlobalAt<0, 11, 23>::otherwise<Window<1024>>;
  using sharing = ShareAdjacentWindows<2>;
  static constexpr int width = 512, layers = 24, vocabulary = 32001;
};

/// The authors' minimal example: no sharing, equal key and value widths, biases in both projections.
struct Barebones {
  using attention = AttentionHeads<12, 2, 256, 256, Rope<10000>>;
  using ssm = MambaHeads<3072, 16, 3, 8>;
  using fuse = MeanOfNorms;
  using mlp = SwiGlu<4608>;
  using meta = MetaTokens<256>;
  using spans = GlobalAt<5, 11, 18, 25, 31>::otherwise<Window<2048>>;
  static constexpr int width = 1536, layers = 32, vocabulary = 151936;
  static constexpr bool projection_bias = true;
};

/// The shape of Llama-3.2-3B, to compare with: 3,212,749,824 parameters, 114,688 bytes of cache per token in 16 bits.
/// Its own scaling of the rotary frequencies is none of those here, so this is for measuring, not for its weights.
struct Llama3_2_3B {
  using attention = AttentionHeads<24, 8, 128, 128, Rope<500000>>;
  using mlp = SwiGlu<8192>;
  static constexpr int width = 3072, layers = 28, vocabulary = 128256;
  static constexpr double rms_eps = 1e-5;
};

}  // namespace presets

/// Any model in the published layout: every size and switch comes from its config.json.
struct DynamicHymba {
  using attention = RuntimeAttentionHeads;
  using ssm = RuntimeMambaHeads;
  using fuse = RuntimeFusion;
  using mlp = RuntimeMlp;
  using meta = MetaTokens<dynamic>;
  using spans = PlanFromConfig;
  static constexpr int width = dynamic, layers = dynamic, vocabulary = dynamic;
};

HYMBA_NAMESPACE_END
