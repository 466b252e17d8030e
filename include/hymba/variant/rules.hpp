// SPDX-License-Identifier: Apache-2.0
//
// What makes a variant valid. One list of rules, checked by the compiler for a variant type and at run time for a
// config.json; one sentence per rule, the same in both.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/plan.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

HYMBA_NAMESPACE_BEGIN

// static_assert takes literals only, and the run-time table needs the same text: hence a list macro, local to this file
// and variant/architecture.hpp (which undefines it).
#define HYMBA_RULES(X)                                                                                                 \
  X(sizes_positive, "width, layers and vocabulary must be at least 1")                                                 \
  X(layers_in_plan, "a stack has at most 256 layers")                                                                  \
  X(sizes_sane, "no width or head count may exceed 2^20, no vocabulary 2^23")                                                \
  X(spans_fit, "the span list names a layer that does not exist, or has not one span per layer")                       \
  X(mix_fits, "the mix of layer kinds names a layer that does not exist")                                              \
  X(sharing_fits, "a sharing group names a layer that does not exist, or a layer is in two groups")                    \
  X(attention_present, "a layer is to hold attention heads but the variant defines none")                              \
  X(ssm_present, "a layer is to hold SSM heads but the variant defines none")                                          \
  X(attention_sizes, "attention heads need at least one query head, one kv head, and widths of at least 1")            \
  X(query_heads_multiple, "query_heads must be a multiple of kv_heads")                                                \
  X(key_width_even, "the key width must be even under a rotary embedding")                                             \
  X(rope_positions, "a rotary base must be positive, and NTK scaling needs a key width above 2 and "                   \
                    "max_positions >= original_positions >= 1")                                                        \
  X(ssm_sizes, "SSM heads need inner width, d_state, conv_taps and dt_rank of at least 1")                             \
  X(fusion_known, "the fusion is none of mean_of_norms, sum, concat, learned_gate")                                    \
  X(fusion_widths, "the fusion does not accept heads of these widths: mean_of_norms, sum and learned_gate need "       \
                    "query_heads * value_width equal to the SSM's inner width")                                                                 \
  X(mlp_known, "the MLP is none of silu, relu2, none")                                                                 \
  X(mlp_width, "the MLP width must be at least 1")                                                                     \
  X(meta_count, "the number of meta tokens must be 0 or more")                                                         \
  X(window_size, "a window must be at least 1, and at most 2^30")                                                      \
  X(source_exists, "a sharing rule must name an existing layer as the source of a cache")                              \
  X(source_attends, "the source of a shared cache must hold attention heads")                                          \
  X(source_early, "the producer of a shared cache must come before its readers")                                       \
  X(source_produces, "the source of a shared cache must store it itself, not read another's")                          \
  X(group_spans, "layers that share a cache must have the same span: no mixing of global and window layers")           \
  X(eps_positive, "the epsilon of the norms must be positive")

/// A rule a variant can break; `Rule::none` when it breaks none.
enum class Rule {
#define HYMBA_RULE_NAME(name, sentence) name,
  HYMBA_RULES(HYMBA_RULE_NAME)
#undef HYMBA_RULE_NAME
      none
};

/// The sentence of a rule, without a prefix.
constexpr const char* sentence(Rule rule) {
  constexpr std::array<const char*, static_cast<std::size_t>(Rule::none) + 1> sentences{
#define HYMBA_RULE_SENTENCE(name, text) text,
      HYMBA_RULES(HYMBA_RULE_SENTENCE)
#undef HYMBA_RULE_SENTENCE
          "valid"};
  return sentences[static_cast<std::size_t>(rule)];
}

/// The first rule a description breaks, and where.
struct Broken {
  Rule rule = Rule::none;
  int layer = -1;          ///< the layer at fault, or -1
  std::int64_t value = 0;  ///< the offending number, where there is one
};

/// A broken rule as an error says it: "<sentence> (layer 3, value 7)".
inline std::string broken_text(const Broken& broken) {
  std::string out = sentence(broken.rule);
  if (broken.layer < 0 && broken.value == 0) return out;
  out += " (";
  if (broken.layer >= 0) out += "layer " + std::to_string(broken.layer);
  if (broken.layer >= 0 && broken.value != 0) out += ", ";
  if (broken.value != 0) out += "value " + std::to_string(broken.value);
  return out + ")";
}

/// What only the variant's own rules and fusion can answer.
struct PartAnswers {
  bool spans_fit = true;
  bool mix_fits = true;
  bool sharing_fits = true;
  bool fusion_known = true;
  bool fusion_accepts = true;
  bool mlp_known = true;
};

namespace detail {
constexpr Broken broken_sizes(const Description& d) {
  constexpr int widest = 1 << 20, most = 1 << 23;
  if (d.width < 1 || d.layers < 1 || d.vocabulary < 1) return {Rule::sizes_positive, -1, 0};
  if (d.layers > max_layers) return {Rule::layers_in_plan, -1, d.layers};
  for (const int n : {d.width, d.query_heads, d.kv_heads, d.key_width, d.value_width, d.inner, d.d_state, d.conv_taps,
                      d.dt_rank, d.mlp_width, d.meta_tokens}) {
    if (n > widest) return {Rule::sizes_sane, -1, n};
  }
  if (d.vocabulary > most) return {Rule::sizes_sane, -1, d.vocabulary};
  if (std::int64_t{d.query_heads} * d.value_width > widest || std::int64_t{d.query_heads} * d.key_width > widest) {
    return {Rule::sizes_sane, -1, std::int64_t{d.query_heads} * d.value_width};
  }
  if (d.meta_tokens < 0) return {Rule::meta_count, -1, d.meta_tokens};
  if (!(d.rms_eps > 0)) return {Rule::eps_positive, -1, 0};
  return {};
}

constexpr Broken broken_attention(const Description& d) {
  if (d.query_heads < 1 || d.kv_heads < 1 || d.key_width < 1 || d.value_width < 1) return {Rule::attention_sizes, -1, 0};
  if (d.query_heads % d.kv_heads != 0) return {Rule::query_heads_multiple, -1, d.query_heads};
  if (d.rope == RopeKind::none) return {};
  if (d.key_width % 2 != 0) return {Rule::key_width_even, -1, d.key_width};
  const bool scaled = d.rope == RopeKind::ntk || d.rope == RopeKind::dynamic_ntk;
  if (!(d.rope_base > 0) || (scaled && (d.original_positions < 1 || d.key_width < 3)) ||
      (d.rope == RopeKind::ntk && d.max_positions < d.original_positions)) {
    return {Rule::rope_positions, -1, d.original_positions};
  }
  return {};
}

constexpr Broken broken_sharing(const Plan& plan, int i) {
  const LayerPlan& row = plan[i];
  if (!row.has_attention()) return {};
  if (row.window < 0 || row.window > (1 << 30)) return {Rule::window_size, i, row.window};
  if (row.source < 0 || row.source >= plan.layers) return {Rule::source_exists, i, row.source};
  if (row.source > i) return {Rule::source_early, i, row.source};
  if (!plan[row.source].has_attention()) return {Rule::source_attends, i, row.source};
  if (!plan.produces(row.source)) return {Rule::source_produces, i, row.source};
  if (plan[row.source].window != row.window) return {Rule::group_spans, i, row.source};
  return {};
}
}  // namespace detail

/// Checks every rule, in an order that lets later ones rely on earlier ones.
constexpr Broken first_broken_rule(const Description& d, const PartAnswers& answers) {
  if (const Broken b = detail::broken_sizes(d); b.rule != Rule::none) return b;
  if (!answers.spans_fit) return {Rule::spans_fit, -1, 0};
  if (!answers.mix_fits) return {Rule::mix_fits, -1, 0};
  if (!answers.sharing_fits) return {Rule::sharing_fits, -1, 0};
  bool attention = false, ssm = false, hybrid = false;
  for (int i = 0; i < d.layers; ++i) {
    const LayerPlan& row = d.plan[i];
    attention = attention || row.has_attention();
    ssm = ssm || row.has_ssm();
    hybrid = hybrid || row.kind == LayerKind::hybrid;
    if (row.has_attention() && d.attention == Name("none")) return {Rule::attention_present, i, 0};
    if (row.has_ssm() && d.ssm == Name("none")) return {Rule::ssm_present, i, 0};
  }
  // Heads of one's own have sizes of their own: only the library's kinds are held to these.
  if (attention && d.attention == Name("attention")) {
    if (const Broken b = detail::broken_attention(d); b.rule != Rule::none) return b;
  }
  if (ssm && d.ssm == Name("mamba") && (d.inner < 1 || d.d_state < 1 || d.conv_taps < 1 || d.dt_rank < 1)) return {Rule::ssm_sizes, -1, 0};
  if (hybrid && !answers.fusion_known) return {Rule::fusion_known, -1, 0};
  if (hybrid && !answers.fusion_accepts) return {Rule::fusion_widths, -1, 0};
  if (!answers.mlp_known) return {Rule::mlp_known, -1, 0};
  if (d.mlp != Name("none") && d.mlp_width < 1) return {Rule::mlp_width, -1, d.mlp_width};
  for (int i = 0; i < d.layers; ++i) {
    if (const Broken b = detail::broken_sharing(d.plan, i); b.rule != Rule::none) return b;
  }
  return {};
}

HYMBA_NAMESPACE_END
