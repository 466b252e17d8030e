// SPDX-License-Identifier: Apache-2.0
//
// A variant (a user's type with aliases and constants) turned into an object whose parts answer questions, and the check
// that it is valid.
//
// A variant is a struct; only `width`, `layers`, `vocabulary` and one kind of heads are required:
//
//   using attention = AttentionHeads<...>;   // None
//   using ssm       = MambaHeads<...>;       // None
//   using fuse      = MeanOfNorms;           // default
//   using mlp       = SwiGlu<...>;           // NoMlp
//   using meta      = MetaTokens<128>;       // MetaTokens<0>
//   using spans     = GlobalAt<0>::otherwise<Window<64>>;   // Global
//   using sharing   = ShareAdjacentWindows<2>;              // NoSharing
//   using mix       = Cycle<LayerKind::ssm, LayerKind::attention>;  // hybrid where both kinds of heads are defined
//   static constexpr int width, layers, vocabulary;
//   static constexpr double rms_eps = 1e-6;
//   static constexpr bool projection_bias = false, tied_embeddings = true;
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/attention_heads.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/fuse.hpp>
#include <hymba/variant/mamba_heads.hpp>
#include <hymba/variant/meta_tokens.hpp>
#include <hymba/variant/mlp.hpp>
#include <hymba/variant/plan.hpp>
#include <hymba/variant/rules.hpp>
#include <hymba/variant/sharing.hpp>
#include <hymba/variant/spans.hpp>
#include <hymba/variant/tensor_spec.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// As `spans` of a variant: kinds, windows and sharing of the layers all come from config.json.
struct PlanFromConfig {};

namespace detail {
template <class V> struct AttentionOf { using type = None; };
template <class V> requires requires { typename V::attention; } struct AttentionOf<V> { using type = typename V::attention; };
template <class V> struct SsmOf { using type = None; };
template <class V> requires requires { typename V::ssm; } struct SsmOf<V> { using type = typename V::ssm; };
template <class V> struct FuseOf { using type = MeanOfNorms; };
template <class V> requires requires { typename V::fuse; } struct FuseOf<V> { using type = typename V::fuse; };
template <class V> struct MlpOf { using type = NoMlp; };
template <class V> requires requires { typename V::mlp; } struct MlpOf<V> { using type = typename V::mlp; };
template <class V> struct MetaOf { using type = MetaTokens<0>; };
template <class V> requires requires { typename V::meta; } struct MetaOf<V> { using type = typename V::meta; };
template <class V> struct SpansOf { using type = Global; };
template <class V> requires requires { typename V::spans; } struct SpansOf<V> { using type = typename V::spans; };
template <class V> struct SharingOf { using type = NoSharing; };
template <class V> requires requires { typename V::sharing; } struct SharingOf<V> { using type = typename V::sharing; };
template <class V> struct MixOf {
  using type = EveryLayer<std::is_same_v<typename SsmOf<V>::type, None>         ? LayerKind::attention
                          : std::is_same_v<typename AttentionOf<V>::type, None> ? LayerKind::ssm
                                                                                : LayerKind::hybrid>;
};
template <class V> requires requires { typename V::mix; } struct MixOf<V> { using type = typename V::mix; };

/// `Rule::fits(layers)` where the rule has one.
template <class Rule>
constexpr bool fits(int layers) {
  if constexpr (requires { Rule::fits(layers); }) {
    return Rule::fits(layers);
  } else {
    return true;
  }
}

/// Builds a part from a description, or by default where the part has nothing to learn from one.
template <class Part>
constexpr Part part_from(const Description& d) {
  if constexpr (std::is_constructible_v<Part, const Description&>) {
    return Part(d);
  } else {
    return Part{};
  }
}
}  // namespace detail

/// Heads with a key/value cache [kv_heads, position, key_width] and [.., value_width], as a variant's `attention`.
template <class H>
concept AttentionShapeLike = requires(const H& h, Description& d) {
  { h.kv_heads } -> std::convertible_to<int>;
  { h.key_width } -> std::convertible_to<int>;
  { h.value_width } -> std::convertible_to<int>;
  { h.query_width() } -> std::convertible_to<int>;
  { h.keys_width() } -> std::convertible_to<int>;
  { h.values_width() } -> std::convertible_to<int>;
  { h.output_width() } -> std::convertible_to<int>;
  { h.input_rows(true) } -> std::convertible_to<int>;
  h.tensors(true, [](const TensorSpec&) {});
  h.describe(d);
};

/// Heads with a fixed number of floats of state per session, as a variant's `ssm`.
template <class H>
concept RecurrentShapeLike = requires(const H& h, Description& d) {
  { h.output_width() } -> std::convertible_to<int>;
  { h.input_rows() } -> std::convertible_to<int>;
  { h.state_floats() } -> std::convertible_to<std::int64_t>;
  { h.workspace_floats(std::int64_t{1}) } -> std::convertible_to<std::int64_t>;
  h.tensors([](const TensorSpec&) {});
  h.describe(d);
};

/// A way to join parallel heads.
template <class F>
concept Fusion = requires(const F& f) {
  { f.accepts(1, 1) } -> std::convertible_to<bool>;
  { f.output_width(1, 1) } -> std::convertible_to<int>;
  f.tensors(1, 1, [](const TensorSpec&) {});
};

/// The MLP of a layer.
template <class M>
concept MlpShapeLike = requires(const M& m) {
  { m.hidden() } -> std::convertible_to<int>;
  m.tensors(1, [](const TensorSpec&) {});
};

/// A variant as an object: parts, sizes and the per-layer plan. A constant expression for a static variant.
template <class V>
struct Architecture {
  using variant = V;
  using attention_type = typename detail::AttentionOf<V>::type;
  using ssm_type = typename detail::SsmOf<V>::type;
  using fuse_type = typename detail::FuseOf<V>::type;
  using mlp_type = typename detail::MlpOf<V>::type;
  using meta_type = typename detail::MetaOf<V>::type;
  static constexpr bool has_attention = !std::is_same_v<attention_type, None>;
  static constexpr bool has_ssm = !std::is_same_v<ssm_type, None>;

  // An alias by another name would silently not count.
  static_assert(!requires { typename V::fusion; }, "hymba: a variant calls its fusion `fuse`, not `fusion`");
  static_assert(!requires { typename V::span; }, "hymba: a variant calls its spans `spans`, not `span`");
  static_assert(!requires { typename V::share; }, "hymba: a variant calls its sharing rule `sharing`, not `share`");
  static_assert(!requires { typename V::meta_tokens; }, "hymba: a variant calls its meta tokens `meta`");
  static_assert(!has_attention || AttentionShapeLike<attention_type>,
                "hymba: the variant's `attention` lacks members of hymba::AttentionShapeLike");
  static_assert(!has_ssm || RecurrentShapeLike<ssm_type>,
                "hymba: the variant's `ssm` lacks members of hymba::RecurrentShapeLike");
  static_assert(Fusion<fuse_type>, "hymba: the variant's `fuse` lacks members of hymba::Fusion");
  static_assert(MlpShapeLike<mlp_type>, "hymba: the variant's `mlp` lacks members of hymba::MlpShapeLike");

  attention_type attention;
  ssm_type ssm;
  fuse_type fuse;
  mlp_type mlp;
  meta_type meta;
  int width = 0;
  int layers = 0;
  int vocabulary = 0;
  double rms_eps = 1e-6;
  bool projection_bias = false;
  bool tied_embeddings = true;
  Plan plan;

  /// A variant whose sizes are all part of its type.
  constexpr Architecture() : Architecture(Description{}) {}
  /// Sizes that the type leaves `dynamic` are taken from `d`, the others from the type.
  constexpr explicit Architecture(const Description& d)
      : attention(detail::part_from<attention_type>(d)),
        ssm(detail::part_from<ssm_type>(d)),
        fuse(detail::part_from<fuse_type>(d)),
        mlp(detail::part_from<mlp_type>(d)),
        meta(detail::part_from<meta_type>(d)),
        width(V::width == dynamic ? d.width : V::width),
        layers(V::layers == dynamic ? d.layers : V::layers),
        vocabulary(V::vocabulary == dynamic ? d.vocabulary : V::vocabulary),
        rms_eps(d.rms_eps),
        projection_bias(d.projection_bias),
        tied_embeddings(d.tied_embeddings) {
    using spans = typename detail::SpansOf<V>::type;
    constexpr bool runtime_plan = std::is_same_v<spans, PlanFromConfig>;
    if constexpr (requires { V::rms_eps; }) {
      rms_eps = V::rms_eps;
    } else if constexpr (!runtime_plan) {
      rms_eps = 1e-6;
    }
    if constexpr (requires { V::projection_bias; }) {
      projection_bias = V::projection_bias;
    } else if constexpr (!runtime_plan) {
      projection_bias = false;
    }
    if constexpr (requires { V::tied_embeddings; }) {
      tied_embeddings = V::tied_embeddings;
    } else if constexpr (!runtime_plan) {
      tied_embeddings = true;
    }
    if constexpr (runtime_plan) {
      plan = d.plan;
    } else {
      make_plan();
    }
    has_mlp_ = describe().mlp != Name("none");
  }

  constexpr int meta_tokens() const { return meta.count; }
  constexpr bool has_mlp() const { return has_mlp_; }
  /// Rows of the input projection of layer `i`: attention's, then the SSM's.
  constexpr int input_rows(int i) const { return attention_input_rows(i) + ssm_input_rows(i); }
  constexpr int attention_input_rows(int i) const {
    if constexpr (has_attention) {
      if (plan[i].has_attention()) return attention.input_rows(plan.produces(i));
    }
    return 0;
  }
  constexpr int ssm_input_rows(int i) const {
    if constexpr (has_ssm) {
      if (plan[i].has_ssm()) return ssm.input_rows();
    }
    return 0;
  }
  constexpr int attention_width() const {
    if constexpr (has_attention) return attention.output_width();
    return 0;
  }
  constexpr int ssm_width() const {
    if constexpr (has_ssm) return ssm.output_width();
    return 0;
  }
  /// Width of what enters the output projection of layer `i`.
  constexpr int mixed_width(int i) const {
    switch (plan[i].kind) {
      case LayerKind::attention: return attention_width();
      case LayerKind::ssm: return ssm_width();
      default: return fuse.output_width(attention_width(), ssm_width());
    }
  }
  /// The SSM state of one layer and session, in floats.
  constexpr std::int64_t ssm_state_floats() const {
    if constexpr (has_ssm) return ssm.state_floats();
    return 0;
  }

  constexpr Description describe() const {
    Description d;
    d.width = width;
    d.layers = layers;
    d.vocabulary = vocabulary;
    d.rms_eps = rms_eps;
    d.projection_bias = projection_bias;
    d.tied_embeddings = tied_embeddings;
    d.meta_tokens = meta.count;
    d.plan = plan;
    if constexpr (has_attention) attention.describe(d);
    if constexpr (has_ssm) ssm.describe(d);
    if constexpr (has_attention && has_ssm) describe_named(fuse, d.fusion, d);
    describe_named(mlp, d.mlp, d);
    d.mlp_width = mlp.hidden();
    return d;
  }

  constexpr Broken first_broken_rule() const {
    PartAnswers answers;
    using spans = typename detail::SpansOf<V>::type;
    if constexpr (!std::is_same_v<spans, PlanFromConfig>) {
      answers.spans_fit = detail::fits<spans>(layers);
      answers.mix_fits = detail::fits<typename detail::MixOf<V>::type>(layers);
      answers.sharing_fits = detail::fits<typename detail::SharingOf<V>::type>(layers);
    }
    if constexpr (requires { fuse.kind == fuse_type::Kind::unknown; }) {
      answers.fusion_known = fuse.kind != fuse_type::Kind::unknown;
    }
    if constexpr (requires { mlp.kind == mlp_type::Kind::unknown; }) {
      answers.mlp_known = mlp.kind != mlp_type::Kind::unknown;
    }
    const Description d = describe();
    // Widths that are out of range are another rule's, and their products may not fit an int.
    if (detail::broken_sizes(d).rule == Rule::none && d.query_heads >= 0 && d.value_width >= 0) {
      answers.fusion_accepts = fuse.accepts(attention_width(), ssm_width());
    }
    return hymba::first_broken_rule(d, answers);
  }

 private:
  /// A part that describes itself does so; any other leaves its name.
  template <class Part>
  static constexpr void describe_named(const Part& part, Name& name, Description& d) {
    if constexpr (requires { part.describe(d); }) {
      part.describe(d);
    } else if constexpr (requires { Part::kind_name; }) {
      name = Part::kind_name;
    } else {
      name = "custom";
    }
  }
  constexpr void make_plan() {
    using spans = typename detail::SpansOf<V>::type;
    using mix = typename detail::MixOf<V>::type;
    using sharing = typename detail::SharingOf<V>::type;
    // A list that does not fit the stack would be read past its end; the rules report it.
    if (layers < 1 || layers > max_layers || !detail::fits<spans>(layers) || !detail::fits<mix>(layers) ||
        !detail::fits<sharing>(layers)) {
      return;
    }
    plan.layers = layers;
    for (int i = 0; i < layers; ++i) {
      plan[i].kind = mix::kind(i);
      plan[i].window = plan[i].has_attention() ? spans::window(i) : 0;
    }
    for (int i = 0; i < layers; ++i) plan[i].source = plan[i].has_attention() ? sharing::source(i, plan) : -1;
  }

  bool has_mlp_ = false;
};

namespace detail {
/// A part that leaves a size to run time says so with `is_static`; one without that member has no such size.
template <class Part>
constexpr bool part_is_static() {
  if constexpr (requires { Part::is_static; }) {
    return Part::is_static;
  } else {
    return true;
  }
}
}  // namespace detail

/// True when every size of the variant is part of its type.
template <class V>
inline constexpr bool is_static_variant =
    !std::is_same_v<typename detail::SpansOf<V>::type, PlanFromConfig> && V::width != dynamic && V::layers != dynamic &&
    V::vocabulary != dynamic && detail::part_is_static<typename detail::AttentionOf<V>::type>() &&
    detail::part_is_static<typename detail::SsmOf<V>::type>() && detail::part_is_static<typename detail::FuseOf<V>::type>() &&
    detail::part_is_static<typename detail::MlpOf<V>::type>() && detail::part_is_static<typename detail::MetaOf<V>::type>();

namespace detail {
/// One static assertion per rule; at most one of them fails, with the rule's sentence.
template <class V>
struct VariantCheck {
  static constexpr Rule broken = Architecture<V>{}.first_broken_rule().rule;
#define HYMBA_RULE_ASSERT(name, text) static_assert(broken != Rule::name, "hymba: " text);
  HYMBA_RULES(HYMBA_RULE_ASSERT)
#undef HYMBA_RULE_ASSERT
  // A broken variant has failed above, with its sentence; `false` would only add errors without one.
  static constexpr bool value = true;
};
}  // namespace detail
#undef HYMBA_RULES

/// A variant all of whose sizes are known and which breaks no rule. A broken one is a compile-time error with one
/// sentence that names the rule, not merely `false`.
template <class V>
concept ValidVariant = detail::VariantCheck<V>::value;

/// The architecture of a static variant, checked.
template <class V>
  requires ValidVariant<V>
inline constexpr Architecture<V> architecture{};

HYMBA_NAMESPACE_END
