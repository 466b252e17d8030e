// SPDX-License-Identifier: Apache-2.0
//
// Two descriptions of a model compared, by the names that config.json has for things.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/plan.hpp>

#include <charconv>
#include <string>
#include <string_view>

HYMBA_NAMESPACE_BEGIN

/// `d` without what has no effect: numbers of heads that no layer holds, positions that the rotary embedding does not
/// look at, the fusion of a stack without hybrid layers. Two descriptions of one model have one canonical form.
constexpr Description canonical(Description d) {
  bool attention = false, ssm = false, hybrid = false;
  d.plan.layers = d.layers;
  for (int i = 0; i < max_layers; ++i) {
    LayerPlan& row = d.plan[i];
    if (i >= d.layers) {
      row = LayerPlan{};
      continue;
    }
    attention = attention || row.has_attention();
    ssm = ssm || row.has_ssm();
    hybrid = hybrid || row.kind == LayerKind::hybrid;
    if (!row.has_attention()) row = {LayerKind::ssm, 0, -1};
  }
  if (!attention) {
    d.attention = "none";
    d.query_heads = d.kv_heads = d.key_width = d.value_width = 0;
    d.qk_norm = QkNorm::none;
    d.rope = RopeKind::none;
  }
  if (d.rope == RopeKind::none) d.rope_base = 0;
  if (d.rope != RopeKind::ntk) d.max_positions = 0;
  if (d.rope != RopeKind::ntk && d.rope != RopeKind::dynamic_ntk) d.original_positions = 0;
  if (!ssm) {
    d.ssm = "none";
    d.inner = d.d_state = d.conv_taps = d.dt_rank = 0;
    d.conv_bias = d.inner_norms = false;
  }
  if (!hybrid) d.fusion = "none";
  if (d.mlp == Name("none")) d.mlp_width = 0;
  return d;
}

constexpr const char* rope_name(RopeKind kind) {
  constexpr const char* names[] = {"none", "default", "ntk", "dynamic_ntk"};
  return names[static_cast<int>(kind)];
}
constexpr const char* qk_norm_name(QkNorm norm) {
  constexpr const char* names[] = {"none", "rms", "perhead-rms"};
  return names[static_cast<int>(norm)];
}
constexpr const char* layer_kind_name(LayerKind kind) {
  return kind == LayerKind::hybrid ? "h" : kind == LayerKind::attention ? "a" : "m";
}

namespace detail {

/// The shortest text that reads back as the same number.
inline std::string number_text(double value) {
  char text[40];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

inline std::string value_text(int value) { return std::to_string(value); }
inline std::string value_text(bool value) { return value ? "true" : "false"; }
inline std::string value_text(double value) { return number_text(value); }
inline std::string value_text(const Name& value) { return quote(value.view()); }
inline std::string value_text(RopeKind value) { return quote(rope_name(value)); }
inline std::string value_text(QkNorm value) { return quote(qk_norm_name(value)); }
inline std::string value_text(LayerKind value) { return quote(layer_kind_name(value)); }

/// Visits every field that two canonical descriptions must agree in: `visit(key, layer or -1, x, y)`.
template <class Visit>
constexpr void for_each_field(const Description& a, const Description& b, Visit&& visit) {
  auto field = [&](const char* key, const auto& x, const auto& y) { visit(key, -1, x, y); };
  field("hidden_size", a.width, b.width);
  field("num_hidden_layers", a.layers, b.layers);
  field("vocab_size", a.vocabulary, b.vocabulary);
  for (int i = 0; i < a.layers && i < b.layers && i < max_layers; ++i) {
    visit("layer_type", i, a.plan[i].kind, b.plan[i].kind);
    visit("the window (0: global)", i, a.plan[i].window, b.plan[i].window);
    visit("the source of the cache", i, a.plan[i].source, b.plan[i].source);
  }
  field("hymba_attention", a.attention, b.attention);
  field("num_attention_heads", a.query_heads, b.query_heads);
  field("num_key_value_heads", a.kv_heads, b.kv_heads);
  field("kq_head_dim", a.key_width, b.key_width);
  field("v_head_dim", a.value_width, b.value_width);
  field("kq_norm", a.qk_norm, b.qk_norm);
  field("rope_type", a.rope, b.rope);
  field("rope_theta", a.rope_base, b.rope_base);
  field("max_position_embeddings", a.max_positions, b.max_positions);
  field("orig_max_position_embeddings", a.original_positions, b.original_positions);
  field("hymba_ssm", a.ssm, b.ssm);
  field("the SSM's inner width (mamba_expand * hidden_size)", a.inner, b.inner);
  field("mamba_d_state", a.d_state, b.d_state);
  field("mamba_d_conv", a.conv_taps, b.conv_taps);
  field("mamba_dt_rank", a.dt_rank, b.dt_rank);
  field("mamba_conv_bias", a.conv_bias, b.conv_bias);
  field("mamba_inner_layernorms", a.inner_norms, b.inner_norms);
  field("hymba_fusion", a.fusion, b.fusion);
  field("the MLP (mlp_hidden_act)", a.mlp, b.mlp);
  field("intermediate_size", a.mlp_width, b.mlp_width);
  field("num_memory_tokens", a.meta_tokens, b.meta_tokens);
  field("mamba_proj_bias", a.projection_bias, b.projection_bias);
  field("tie_word_embeddings", a.tied_embeddings, b.tied_embeddings);
  field("rms_norm_eps", a.rms_eps, b.rms_eps);
}
}  // namespace detail

/// True when two descriptions are of one architecture. Special tokens, and what has no effect, are not compared.
constexpr bool same_architecture(const Description& a, const Description& b) {
  bool same = true;
  detail::for_each_field(canonical(a), canonical(b),
                         [&](const char*, int, const auto& x, const auto& y) { same = same && x == y; });
  return same;
}

/// Empty when a checkpoint described by `file` fits a variant described by `variant`; else one line that names the
/// first key that differs and both values. Compares what `same_architecture` does.
inline std::string description_difference(const Description& file, const Description& variant) {
  std::string out;
  detail::for_each_field(canonical(file), canonical(variant),
                         [&](const char* key, int layer, const auto& x, const auto& y) {
                           if (!out.empty() || x == y) return;
                           out = key;
                           if (layer >= 0) out += " of layer " + std::to_string(layer);
                           out += " is " + detail::value_text(x) + ", the variant has " + detail::value_text(y);
                         });
  return out;
}

HYMBA_NAMESPACE_END
