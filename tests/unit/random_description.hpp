// SPDX-License-Identifier: Apache-2.0
//
// Descriptions of random models: odd sizes, any mix of kinds, windows and sharing.
#pragma once

#include <hymba/core/types.hpp>
#include <hymba/variant/description.hpp>

#include <cstddef>
#include <random>
#include <vector>

namespace test {

using Rng = std::mt19937;

inline int pick(Rng& rng, int low, int high) { return low + static_cast<int>(rng() % static_cast<unsigned>(high - low + 1)); }
inline bool coin(Rng& rng) { return rng() % 2 == 0; }

inline std::vector<hymba::Token> random_tokens(Rng& rng, int vocabulary, std::size_t count) {
  std::vector<hymba::Token> ids(count);
  for (hymba::Token& t : ids) t = pick(rng, 0, vocabulary - 1);
  return ids;
}

/// A valid description with random sizes, switches, kinds, windows and sharing.
inline hymba::Description random_description(Rng& rng) {
  using namespace hymba;
  Description d;
  d.width = pick(rng, 1, 40);
  d.layers = pick(rng, 1, 7);
  d.vocabulary = pick(rng, 2, 60);
  d.meta_tokens = coin(rng) ? 0 : pick(rng, 1, 11);
  d.projection_bias = coin(rng);
  d.tied_embeddings = coin(rng);
  d.rms_eps = coin(rng) ? 1e-6 : 1e-5;

  d.attention = "attention";
  d.kv_heads = pick(rng, 1, 3);
  d.query_heads = d.kv_heads * pick(rng, 1, 4);
  d.key_width = 2 * pick(rng, 2, 10);
  d.value_width = pick(rng, 1, 20);
  d.qk_norm = static_cast<QkNorm>(pick(rng, 0, 2));
  d.rope = static_cast<RopeKind>(pick(rng, 0, 3));
  d.rope_base = d.rope == RopeKind::none ? 0 : 10000;
  d.max_positions = 64;
  d.original_positions = pick(rng, 8, 64);

  d.ssm = "mamba";
  d.inner = d.query_heads * d.value_width;
  d.d_state = pick(rng, 1, 20);
  d.conv_taps = pick(rng, 1, 5);
  d.dt_rank = pick(rng, 1, 9);
  d.conv_bias = coin(rng);
  d.inner_norms = coin(rng);
  const char* fusions[] = {"mean_of_norms", "sum", "concat", "learned_gate"};
  d.fusion = fusions[pick(rng, 0, 3)];
  if (d.fusion == Name("concat") && coin(rng)) d.inner = pick(rng, 1, 50);
  const char* mlps[] = {"silu", "relu2", "none"};
  d.mlp = mlps[pick(rng, 0, 2)];
  d.mlp_width = d.mlp == Name("none") ? 0 : pick(rng, 1, 50);

  d.plan.layers = d.layers;
  const int window = pick(rng, 1, 9);
  for (int i = 0; i < d.layers; ++i) {
    LayerPlan& row = d.plan[i];
    row.kind = static_cast<LayerKind>(pick(rng, 0, 2));
    row.window = row.has_attention() && pick(rng, 0, 3) > 0 ? window : 0;
    row.source = row.has_attention() ? i : -1;
    if (!row.has_attention() || coin(rng)) continue;
    // Any earlier producer with the same span will do, adjacent or not.
    for (int j = i - 1; j >= 0; --j) {
      if (d.plan[j].source == j && d.plan[j].window == row.window && coin(rng)) {
        row.source = j;
        break;
      }
    }
  }
  return d;
}

}  // namespace test
