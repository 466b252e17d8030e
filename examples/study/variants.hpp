// SPDX-License-Identifier: Apache-2.0
//
// The variants of the study as descriptions. All hold the same number of parameters: what a variant saves in its heads
// goes to its MLPs.
#pragma once

#include <hymba/io/architecture_from.hpp>
#include <hymba/variant/costs.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/presets.hpp>
#include <hymba/variant/sharing.hpp>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace study {

/// The sizes that all variants share on one task.
struct Size {
  int width = 0;   ///< a multiple of 64
  int layers = 0;  ///< 4 or 7: the window layers between the global ones are then pairs
  int vocabulary = 0;
  int window = 0;    ///< of window layers, in tokens
  bool tied = true;  ///< the output shares the embedding's weights
};

/// What a variant is made of, whatever its size.
struct Variant {
  enum class Stack { attention, mamba, alternating, parallel };

  std::string name, title;
  Stack stack = Stack::parallel;
  bool windows = false;  ///< global attention in every third layer alone, from first to last; windows elsewhere
  bool sharing = false;  ///< pairs of adjacent window layers share a key/value cache
  int meta_tokens = 0;
  int attention_eighths = 4;  ///< of the channels of parallel heads; 4: as many as Mamba's, as published
  const char* fusion = "mean_of_norms";
};

/// Of the variant with all of Hymba's parts.
inline constexpr int hymba_meta_tokens = 16;

/// The design roadmap of the paper (arXiv 2411.13676, table 1): each variant adds one thing to the one before.
inline std::vector<Variant> roadmap() {
  using enum Variant::Stack;
  return {
      {.name = "attention", .title = "attention only", .stack = attention},
      {.name = "mamba", .title = "Mamba only", .stack = mamba},
      {.name = "sequential", .title = "sequential hybrid", .stack = alternating},
      {.name = "parallel", .title = "parallel heads"},
      {.name = "windows", .title = "+ local/global", .windows = true},
      {.name = "sharing", .title = "+ KV sharing", .windows = true, .sharing = true},
      {.name = "hymba", .title = "+ meta tokens", .windows = true, .sharing = true, .meta_tokens = hymba_meta_tokens}};
}

/// How many meta tokens? Those with none and with `hymba_meta_tokens` are the roadmap's last two.
inline std::vector<Variant> meta_sweep() {
  std::vector<Variant> out;
  for (const int count : {0, 4, hymba_meta_tokens, 64, 128}) {
    Variant v = roadmap().back();
    v.meta_tokens = count;
    v.title = std::to_string(count) + " meta tokens";
    if (count == 0) {
      v.name = "sharing";
    } else if (count != hymba_meta_tokens) {
      v.name = "meta" + std::to_string(count);
    }
    out.push_back(std::move(v));
  }
  return out;
}

/// How many attention heads to each SSM head? The heads are concatenated, for the other fusions need equal widths.
inline std::vector<Variant> ratio_sweep() {
  std::vector<Variant> out;
  for (const int eighths : {1, 2, 4, 6, 7}) {
    Variant v = roadmap().back();
    v.name = "ratio" + std::to_string(eighths);
    v.title = std::to_string(eighths) + " : " + std::to_string(8 - eighths);
    v.attention_eighths = eighths;
    v.fusion = "concat";
    out.push_back(std::move(v));
  }
  return out;
}

/// Every variant once.
inline std::vector<Variant> all_variants() {
  std::vector<Variant> out = roadmap();
  for (const auto& sweep : {meta_sweep(), ratio_sweep()}) {
    for (const Variant& v : sweep) {
      if (v.name != "sharing" && v.name != "hymba") out.push_back(v);
    }
  }
  return out;
}

/// All but the width of the MLP.
///
/// Heads are 16 wide in queries and keys and 32 in values (as published, values are twice as wide), four query heads
/// to a key/value head. Parallel heads have 4 x width channels together. Layers of attention alone are Llama's: as many
/// key/value heads as query heads, values as wide as keys, width channels together. Layers of Mamba alone have
/// 2 x width channels, as Mamba's authors chose.
inline hymba::Description heads(const Variant& v, const Size& size) {
  using Stack = Variant::Stack;
  constexpr int key_width = 16, value_width = 2 * key_width;
  hymba::Description d;
  d.width = size.width;
  d.layers = d.plan.layers = size.layers;
  d.vocabulary = size.vocabulary;
  d.meta_tokens = v.meta_tokens;
  d.mlp = "silu";
  d.tied_embeddings = size.tied;
  const int channels = 4 * size.width;
  if (v.stack != Stack::mamba) {
    d.attention = "attention";
    d.key_width = key_width;
    d.rope = hymba::RopeKind::standard;
    d.rope_base = 10000;
    if (v.stack == Stack::parallel) {
      d.query_heads = channels * v.attention_eighths / 8 / value_width;
      d.kv_heads = size.width / 64;
      d.value_width = value_width;
    } else {
      d.query_heads = d.kv_heads = size.width / key_width;
      d.value_width = key_width;
    }
  }
  if (v.stack != Stack::attention) {
    d.ssm = "mamba";
    d.inner = v.stack == Stack::parallel ? channels - d.query_heads * d.value_width : 2 * size.width;
    d.d_state = 16;
    d.conv_taps = 4;
    d.dt_rank = size.width / 16;
    d.conv_bias = d.inner_norms = true;
  }
  if (v.stack == Stack::parallel) d.fusion = v.fusion;
  for (int i = 0; i < d.layers; ++i) {
    hymba::LayerPlan& row = d.plan[i];
    if (v.stack == Stack::attention || (v.stack == Stack::alternating && i % 2 == 1)) {
      row.kind = hymba::LayerKind::attention;
    } else if (v.stack != Stack::parallel) {
      row.kind = hymba::LayerKind::ssm;
    }
    const bool global = i % 3 == 0;
    row.window = row.has_attention() && v.windows && !global ? size.window : 0;
  }
  for (int i = 0; i < d.layers; ++i) {
    if (d.plan[i].has_attention())
      d.plan[i].source = v.sharing ? hymba::detail::adjacent_window_source(2, i, d.plan) : i;
  }
  return d;
}

inline std::int64_t parameters(const hymba::Description& d) {
  return hymba::parameters(hymba::architecture_from<hymba::DynamicHymba>(d, "study"));
}

/// The whole description: the MLP is as wide as makes the parameters those of the parallel heads with MLPs of
/// 2 x width, to the nearest multiple of 8.
inline hymba::Description describe(const Variant& v, const Size& size) {
  const auto with_mlp = [](hymba::Description d, int width) {
    d.mlp_width = width;
    return d;
  };
  const std::int64_t wanted = parameters(with_mlp(heads({}, size), 2 * size.width));
  const hymba::Description d = heads(v, size);
  const std::int64_t least = parameters(with_mlp(d, 8)), step = parameters(with_mlp(d, 16)) - least;
  return with_mlp(d, 8 + 8 * static_cast<int>((wanted - least + step / 2) / step));
}

}  // namespace study
