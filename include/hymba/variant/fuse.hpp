// SPDX-License-Identifier: Apache-2.0
//
// How the outputs of parallel attention and SSM heads become one. Shapes only; the arithmetic is in heads/fuse.hpp.
//
// A fusion of one's own is a type with the same members as these (see `Fusion` in variant/architecture.hpp for the
// concept) and a function `fuse_forward` beside it, in its own namespace (see heads/fuse.hpp).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/tensor_spec.hpp>

HYMBA_NAMESPACE_BEGIN

namespace detail {
template <class Visit>
constexpr void fusion_norms(int width, Visit&& visit) {
  visit(vector_tensor("mamba.pre_avg_layernorm1.weight", width));
  visit(vector_tensor("mamba.pre_avg_layernorm2.weight", width));
}
template <class Visit>
constexpr void fusion_scalings(const char* matrix, Visit&& visit) {
  visit("mamba.pre_avg_layernorm1.weight", matrix);
  visit("mamba.pre_avg_layernorm2.weight", matrix);
}
}  // namespace detail

/// (rms1(attention) + rms2(ssm)) / 2: the published fusion. Equal widths. arXiv 2411.13676, equation 3.
struct MeanOfNorms {
  static constexpr const char* kind_name = "mean_of_norms";
  static constexpr bool accepts(int attention, int ssm) { return attention == ssm; }
  static constexpr int output_width(int attention, int) { return attention; }
  template <class Visit>
  static constexpr void tensors(int attention, int, Visit&& visit) {
    detail::fusion_norms(attention, visit);
  }
  /// See for_each_scaling (variant/tensors.hpp); `matrix` reads what is fused. A fusion of one's own may lack it.
  template <class Visit>
  static constexpr void scalings(const char* matrix, Visit&& visit) {
    detail::fusion_scalings(matrix, visit);
  }
};

/// attention + ssm, no norms. Equal widths.
struct SumOfHeads {
  static constexpr const char* kind_name = "sum";
  static constexpr bool accepts(int attention, int ssm) { return attention == ssm; }
  static constexpr int output_width(int attention, int) { return attention; }
  template <class Visit>
  static constexpr void tensors(int, int, Visit&&) {}
  template <class Visit>
  static constexpr void scalings(const char*, Visit&&) {}
};

/// [attention | ssm], no norms. Any widths; the output projection takes their sum.
struct ConcatHeads {
  static constexpr const char* kind_name = "concat";
  static constexpr bool accepts(int, int) { return true; }
  static constexpr int output_width(int attention, int ssm) { return attention + ssm; }
  template <class Visit>
  static constexpr void tensors(int, int, Visit&&) {}
  template <class Visit>
  static constexpr void scalings(const char*, Visit&&) {}
};

/// g * rms1(attention) + (1 - g) * rms2(ssm) with a learned gate g = sigmoid(w) per channel. Equal widths.
struct LearnedGate {
  static constexpr const char* kind_name = "learned_gate";
  static constexpr bool accepts(int attention, int ssm) { return attention == ssm; }
  static constexpr int output_width(int attention, int) { return attention; }
  template <class Visit>
  static constexpr void tensors(int attention, int, Visit&& visit) {
    detail::fusion_norms(attention, visit);
    visit(vector_tensor("mamba.fusion_gate.weight", attention));
  }
  template <class Visit>
  static constexpr void scalings(const char* matrix, Visit&& visit) {
    detail::fusion_scalings(matrix, visit);
  }
};

/// One of the fusions above, named by config.json.
struct RuntimeFusion {
  enum class Kind { mean_of_norms, sum, concat, learned_gate, unknown };
  static constexpr bool is_static = false;
  Kind kind = Kind::mean_of_norms;
  Name name = MeanOfNorms::kind_name;

  constexpr RuntimeFusion() = default;
  constexpr explicit RuntimeFusion(const Description& d) : name(d.fusion) {
    kind = name == Name(MeanOfNorms::kind_name)   ? Kind::mean_of_norms
           : name == Name(SumOfHeads::kind_name)  ? Kind::sum
           : name == Name(ConcatHeads::kind_name) ? Kind::concat
           : name == Name(LearnedGate::kind_name) ? Kind::learned_gate
           : name == Name("none")                 ? Kind::mean_of_norms
                                                  : Kind::unknown;
  }
  /// Calls `body` with the fusion type that `kind` names.
  template <class Body>
  constexpr decltype(auto) visit(Body&& body) const {
    switch (kind) {
      case Kind::sum: return body(SumOfHeads{});
      case Kind::concat: return body(ConcatHeads{});
      case Kind::learned_gate: return body(LearnedGate{});
      default: return body(MeanOfNorms{});
    }
  }
  constexpr void describe(Description& d) const { d.fusion = name; }
  constexpr bool accepts(int attention, int ssm) const {
    return visit([&](auto fusion) { return fusion.accepts(attention, ssm); });
  }
  constexpr int output_width(int attention, int ssm) const {
    return visit([&](auto fusion) { return fusion.output_width(attention, ssm); });
  }
  template <class Visit>
  constexpr void tensors(int attention, int ssm, Visit&& tensor) const {
    visit([&](auto fusion) { fusion.tensors(attention, ssm, tensor); });
  }
  template <class Visit>
  constexpr void scalings(const char* matrix, Visit&& pair) const {
    visit([&](auto fusion) { fusion.scalings(matrix, pair); });
  }
};

HYMBA_NAMESPACE_END
