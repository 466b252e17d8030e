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

/// `d` without what has no effect: numbers of heads that no layer holds, positions that the rotary embedding does not look
/// at, the fusion of a stack without hybrid layers. Two descriptions of one model have one canonical form.
constexpr Description canonical(Description d) {
  const Description none{};
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
    d.attention = none.attention;
    d.query_heads = d.kv_heads = d.key_width = d.value_width = 0;
    d.qk_norm = QkNorm::none;
    d.rope = RopeKind::none;
  }
  if (d.rope == RopeKind::none) d.rope_base = 0;
  if (d.rope != RopeKind::ntk) d.max_positions = 0;
  if (d.rope != RopeKind::ntk && d.rope != RopeKind::dynamic_ntk) d.original_positions = 0;
  if (!ssm) {
    d.ssm = none.ssm;
    d.inner = d.d_state = d.conv_taps = d.dt_rank = 0;
    d.conv_bias = d.inner_norms = false;
  }
  if (!hybrid) d.fusion = none.fusion;
  if (d.mlp == none.mlp) d.mlp_width = 0;
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
}  // namespace detail

/// Empty when a checkpoint of `file` fits a variant described by `variant`; else one line that names the first key that
/// differs and both values. Special tokens, and what has no effect, are not compared.
inline std::string description_difference(const Description& file, const Description& variant) {
  const Description a = canonical(file), b = canonical(variant);
  std::string out;
  auto differ = [&](std::string_view key, const auto& x, const auto& y) {
    if (out.empty() && x != y) out = detail::message(key, " is ", x, ", the variant has ", y);
  };
  auto named = [&](std::string_view key, const Name& x, const Name& y) {
    differ(key, detail::quoted(x.view()), detail::quoted(y.view()));
  };
  auto real = [&](std::string_view key, double x, double y) {
    if (x != y) differ(key, detail::number_text(x), detail::number_text(y));
  };
  auto flag = [&](std::string_view key, bool x, bool y) {
    differ(key, std::string_view(x ? "true" : "false"), std::string_view(y ? "true" : "false"));
  };
  differ("hidden_size", a.width, b.width);
  differ("num_hidden_layers", a.layers, b.layers);
  differ("vocab_size", a.vocabulary, b.vocabulary);
  for (int i = 0; i < a.layers && i < b.layers && i < max_layers; ++i) {
    const std::string at = " of layer " + std::to_string(i);
    differ("layer_type" + at, std::string_view(layer_kind_name(a.plan[i].kind)),
           std::string_view(layer_kind_name(b.plan[i].kind)));
    differ("the window (0: global)" + at, a.plan[i].window, b.plan[i].window);
    differ("the layer whose cache is read" + at, a.plan[i].source, b.plan[i].source);
  }
  named("hymba_attention", a.attention, b.attention);
  differ("num_attention_heads", a.query_heads, b.query_heads);
  differ("num_key_value_heads", a.kv_heads, b.kv_heads);
  differ("kq_head_dim", a.key_width, b.key_width);
  differ("v_head_dim", a.value_width, b.value_width);
  differ("kq_norm", std::string_view(qk_norm_name(a.qk_norm)), std::string_view(qk_norm_name(b.qk_norm)));
  differ("rope_type", std::string_view(rope_name(a.rope)), std::string_view(rope_name(b.rope)));
  real("rope_theta", a.rope_base, b.rope_base);
  differ("max_position_embeddings", a.max_positions, b.max_positions);
  differ("orig_max_position_embeddings", a.original_positions, b.original_positions);
  named("hymba_ssm", a.ssm, b.ssm);
  differ("the SSM's inner width (mamba_expand * hidden_size)", a.inner, b.inner);
  differ("mamba_d_state", a.d_state, b.d_state);
  differ("mamba_d_conv", a.conv_taps, b.conv_taps);
  differ("mamba_dt_rank", a.dt_rank, b.dt_rank);
  flag("mamba_conv_bias", a.conv_bias, b.conv_bias);
  flag("mamba_inner_layernorms", a.inner_norms, b.inner_norms);
  named("hymba_fusion", a.fusion, b.fusion);
  named("mlp_hidden_act", a.mlp, b.mlp);
  differ("intermediate_size", a.mlp_width, b.mlp_width);
  differ("num_memory_tokens", a.meta_tokens, b.meta_tokens);
  flag("mamba_proj_bias", a.projection_bias, b.projection_bias);
  flag("tie_word_embeddings", a.tied_embeddings, b.tied_embeddings);
  real("rms_norm_eps", a.rms_eps, b.rms_eps);
  return out;
}

HYMBA_NAMESPACE_END
