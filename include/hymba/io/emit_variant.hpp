// SPDX-License-Identifier: Apache-2.0
//
// The C++ type of a configuration: what to paste into a program that is to be compiled for one model.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/description_diff.hpp>
#include <hymba/variant/costs.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/plan.hpp>
#include <hymba/variant/presets.hpp>
#include <hymba/variant/sharing.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// "1,522,797,824".
inline std::string grouped_digits(std::int64_t n) {
  std::string out = std::to_string(n);
  for (auto at = static_cast<std::ptrdiff_t>(out.size()) - 3; at > 0; at -= 3) {
    out.insert(static_cast<std::size_t>(at), 1, ',');
  }
  return out;
}

/// `head<a, b, c>`, in lines of at most about 110 columns.
inline std::string template_text(std::string_view head, const std::vector<std::string>& arguments) {
  std::string out = std::string(head) + "<";
  std::size_t column = out.size() + 20;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (i > 0) {
      const bool full = column + arguments[i].size() > 108;
      out += full ? ",\n      " : ", ";
      column = full ? 6 : column + 2;
    }
    out += arguments[i];
    column += arguments[i].size();
  }
  return out + ">";
}

inline std::string rope_text(const Description& d) {
  if (d.rope == RopeKind::none) return "hymba::NoRope";
  if (d.rope_base != std::floor(d.rope_base) || d.rope_base > 2147483647.0) {
    throw ConfigError(message("cannot emit a variant: rope_theta is ", number_text(d.rope_base),
                              ", expected a whole number below 2^31, which is what a type can hold"));
  }
  std::vector<std::string> numbers{std::to_string(static_cast<int>(d.rope_base))};
  if (d.rope == RopeKind::ntk) numbers.push_back(std::to_string(d.max_positions));
  if (d.rope != RopeKind::standard) numbers.push_back(std::to_string(d.original_positions));
  return template_text(d.rope == RopeKind::standard ? "hymba::Rope"
                       : d.rope == RopeKind::ntk    ? "hymba::NtkRope"
                                                    : "hymba::DynamicNtkRope",
                       numbers);
}

inline std::string attention_text(const Description& d) {
  std::vector<std::string> arguments{std::to_string(d.query_heads), std::to_string(d.kv_heads),
                                     std::to_string(d.key_width), std::to_string(d.value_width)};
  const std::string rope = rope_text(d);
  const bool norm = d.qk_norm != QkNorm::none;
  if (norm || rope != "hymba::Rope<10000>") {
    arguments.push_back(rope);
  } else if (d.value_width == d.key_width) {
    arguments.pop_back();
  }
  if (norm) arguments.push_back(d.qk_norm == QkNorm::rms ? "hymba::QkNorm::rms" : "hymba::QkNorm::per_head_rms");
  return template_text("hymba::AttentionHeads", arguments);
}

inline std::string ssm_text(const Description& d) {
  std::vector<std::string> arguments{std::to_string(d.inner), std::to_string(d.d_state), std::to_string(d.conv_taps),
                                     std::to_string(d.dt_rank)};
  if (!d.inner_norms || !d.conv_bias) {
    arguments.push_back(message("hymba::MambaOptions{.inner_norms = ", d.inner_norms ? "true" : "false",
                                ", .conv_bias = ", d.conv_bias ? "true" : "false", "}"));
  }
  return template_text("hymba::MambaHeads", arguments);
}

/// Empty when every layer that holds attention heads is global.
inline std::string spans_text(const Description& d) {
  std::vector<std::string> global, all;
  int window = 0;
  bool one_window = true;
  for (int i = 0; i < d.layers; ++i) {
    const LayerPlan& row = d.plan[i];
    all.push_back(row.window == 0 ? "hymba::Global" : message("hymba::Window<", row.window, ">"));
    if (!row.has_attention()) continue;
    if (row.window == 0) global.push_back(std::to_string(i));
    one_window = one_window && (row.window == 0 || window == 0 || row.window == window);
    if (row.window != 0) window = row.window;
  }
  if (window == 0) return {};
  if (!one_window) return template_text("hymba::SpanList", all);
  const std::string other = message("hymba::Window<", window, ">");
  return global.empty() ? other : template_text("hymba::GlobalAt", global) + "::otherwise<" + other + ">";
}

/// Empty when every layer stores its own cache.
inline std::string sharing_text(const Plan& plan) {
  auto follows = [&](auto rule) {
    for (int i = 0; i < plan.layers; ++i) {
      if (plan[i].has_attention() && plan[i].source != rule(i)) return false;
    }
    return true;
  };
  if (follows([](int i) { return i; })) return {};
  for (int n = 2; n <= plan.layers; ++n) {
    if (follows([&](int i) { return adjacent_window_source(n, i, plan); })) {
      return message("hymba::ShareAdjacentWindows<", n, ">");
    }
  }
  std::vector<std::string> groups;
  for (int producer = 0; producer < plan.layers; ++producer) {
    std::vector<std::string> members;
    for (int i = 0; i < plan.layers; ++i) {
      if (plan[i].has_attention() && plan[i].source == producer) members.push_back(std::to_string(i));
    }
    if (members.size() > 1) groups.push_back(template_text("hymba::Group", members));
  }
  return template_text("hymba::Groups", groups);
}

/// Empty when every layer holds all the kinds of heads there are.
inline std::string mix_text(const Plan& plan) {
  auto kind_text = [](LayerKind kind) {
    return std::string(kind == LayerKind::hybrid      ? "hymba::LayerKind::hybrid"
                       : kind == LayerKind::attention ? "hymba::LayerKind::attention"
                                                      : "hymba::LayerKind::ssm");
  };
  int period = 1;
  auto repeats = [&] {
    for (int i = period; i < plan.layers; ++i) {
      if (plan[i].kind != plan[i % period].kind) return false;
    }
    return true;
  };
  while (!repeats()) ++period;
  // One kind throughout needs no mix: the heads that the variant defines say it.
  if (period == 1) return {};
  LayerKind other = LayerKind::attention;
  bool two_kinds = true;
  std::vector<std::string> attention, kinds;
  for (int i = 0; i < plan.layers; ++i) {
    const LayerKind kind = plan[i].kind;
    if (i < period) kinds.push_back(kind_text(kind));
    if (kind == LayerKind::attention) {
      attention.push_back(std::to_string(i));
    } else {
      two_kinds = two_kinds && (other == LayerKind::attention || other == kind);
      other = kind;
    }
  }
  if (period > 4 && two_kinds && !attention.empty()) {
    return template_text("hymba::AttentionAt", attention) + "::otherwise<" + kind_text(other) + ">";
  }
  return template_text("hymba::Cycle", kinds);
}

/// The type that stands for a name, where this library has one.
struct NamedType {
  std::string_view name;
  std::string_view type;
};
inline std::string type_of(std::string_view part, const Name& name, std::initializer_list<NamedType> types) {
  for (const NamedType& t : types) {
    if (t.name == name.view()) return std::string(t.type);
  }
  throw ConfigError(
      message("cannot emit a variant: the ", part, " ", quote(name.view()), " is none of this library's"));
}
}  // namespace detail

/// A struct `name` whose architecture is the one `description` describes: members that differ from their defaults, a
/// comment with the number of parameters, and the static assertion that the variant is valid.
/// Needs <hymba/variant/architecture.hpp> where it is pasted.
/// @throws ArgumentError when `name` is not an identifier; ConfigError when the description breaks a rule, names a
/// user's own part, or has a rotary base that is not a whole number.
inline std::string emit_variant(const Description& description, std::string_view name) {
  auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  if (name.empty() || !letter(name.front()) ||
      !std::all_of(name.begin(), name.end(), [&](char c) { return letter(c) || (c >= '0' && c <= '9'); })) {
    throw ArgumentError(
        detail::message("the name of the variant is ", detail::quote(name), ", expected a C++ identifier"));
  }
  const Description d = canonical(description);
  const std::string fuse = detail::type_of("fusion", d.fusion,
                                           {{"none", ""},
                                            {"mean_of_norms", ""},
                                            {"sum", "hymba::SumOfHeads"},
                                            {"concat", "hymba::ConcatHeads"},
                                            {"learned_gate", "hymba::LearnedGate"}});
  const std::string mlp =
      detail::type_of("MLP", d.mlp, {{"none", ""}, {"silu", "hymba::SwiGlu"}, {"relu2", "hymba::Relu2"}});
  detail::type_of("kind of attention heads", d.attention, {{"none", ""}, {"attention", ""}});
  detail::type_of("kind of SSM heads", d.ssm, {{"none", ""}, {"mamba", ""}});
  const Architecture<DynamicHymba> a = architecture_from<DynamicHymba>(d, "cannot emit a variant");

  std::string out =
      detail::message("// ", detail::grouped_digits(parameters(a)), " parameters.\nstruct ", name, " {\n");
  auto member = [&](const char* what, const std::string& type) {
    if (!type.empty()) out += detail::message("  using ", what, " = ", type, ";\n");
  };
  if (d.attention != Name("none")) member("attention", detail::attention_text(d));
  if (d.ssm != Name("none")) member("ssm", detail::ssm_text(d));
  member("fuse", fuse);
  if (!mlp.empty()) member("mlp", detail::message(mlp, "<", d.mlp_width, ">"));
  if (d.meta_tokens > 0) member("meta", detail::message("hymba::MetaTokens<", d.meta_tokens, ">"));
  member("mix", detail::mix_text(d.plan));
  member("spans", detail::spans_text(d));
  member("sharing", detail::sharing_text(d.plan));
  out += detail::message("  static constexpr int width = ", d.width, ", layers = ", d.layers,
                         ", vocabulary = ", d.vocabulary, ";\n");
  if (d.rms_eps != 1e-6) out += "  static constexpr double rms_eps = " + detail::number_text(d.rms_eps) + ";\n";
  if (d.projection_bias) out += "  static constexpr bool projection_bias = true;\n";
  if (!d.tied_embeddings) out += "  static constexpr bool tied_embeddings = false;\n";
  return out + detail::message("};\nstatic_assert(hymba::ValidVariant<", name, ">);\n");
}

HYMBA_NAMESPACE_END
