// SPDX-License-Identifier: Apache-2.0
//
// The shapes of the MLP that follows the heads of a layer. The arithmetic is in heads/mlp.hpp; an MLP of one's own has
// the same members and an `mlp_forward` beside it.
#pragma once

#include <hymba/core/extent.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/tensor_spec.hpp>

HYMBA_NAMESPACE_BEGIN

/// down(silu(gate(v)) * up(v)).
template <int Width>
struct SwiGlu {
  static constexpr const char* kind_name = "silu";
  static constexpr bool is_static = Width != dynamic;
  [[no_unique_address]] Extent<Width> width;
  constexpr SwiGlu() = default;
  constexpr explicit SwiGlu(const Description& d) : width(d.mlp_width) {}
  constexpr int hidden() const { return width; }
  template <class Visit>
  constexpr void tensors(int model_width, Visit&& visit) const {
    visit(matrix_tensor("moe.experts.0.gate_proj.weight", width, model_width));
    visit(matrix_tensor("moe.experts.0.up_proj.weight", width, model_width));
    visit(matrix_tensor("moe.experts.0.down_proj.weight", model_width, width));
  }
  /// See for_each_scaling (variant/tensors.hpp); `norm` makes the MLP's input. An MLP of one's own may lack it.
  template <class Visit>
  static constexpr void scalings(const char* norm, Visit&& visit) {
    visit(norm, "moe.experts.0.gate_proj.weight");
    visit(norm, "moe.experts.0.up_proj.weight");
    visit("moe.experts.0.up_proj.weight", "moe.experts.0.down_proj.weight");
  }
};

/// down(relu(up(v))^2).
template <int Width>
struct Relu2 {
  static constexpr const char* kind_name = "relu2";
  static constexpr bool is_static = Width != dynamic;
  [[no_unique_address]] Extent<Width> width;
  constexpr Relu2() = default;
  constexpr explicit Relu2(const Description& d) : width(d.mlp_width) {}
  constexpr int hidden() const { return width; }
  template <class Visit>
  constexpr void tensors(int model_width, Visit&& visit) const {
    visit(matrix_tensor("moe.experts.0.up_proj.weight", width, model_width));
    visit(matrix_tensor("moe.experts.0.down_proj.weight", model_width, width));
  }
  template <class Visit>
  static constexpr void scalings(const char* norm, Visit&& visit) {
    visit(norm, "moe.experts.0.up_proj.weight");
  }
};

/// No MLP: the layer ends with its heads, and has no second norm.
struct NoMlp {
  static constexpr const char* kind_name = "none";
  static constexpr int hidden() { return 0; }
  template <class Visit>
  static constexpr void tensors(int, Visit&&) {}
  template <class Visit>
  static constexpr void scalings(const char*, Visit&&) {}
};

/// One of the MLPs above, named by config.json.
struct RuntimeMlp {
  enum class Kind { swiglu, relu2, none, unknown };
  static constexpr bool is_static = false;
  Kind kind = Kind::none;
  Name name = NoMlp::kind_name;
  int width = 0;

  constexpr RuntimeMlp() = default;
  constexpr explicit RuntimeMlp(const Description& d) : name(d.mlp), width(d.mlp_width) {
    kind = name == Name("silu")    ? Kind::swiglu
           : name == Name("relu2") ? Kind::relu2
           : name == Name("none")  ? Kind::none
                                   : Kind::unknown;
  }
  /// Calls `body` with the MLP that `kind` names.
  template <class Body>
  constexpr decltype(auto) visit(Body&& body) const {
    Description d;
    d.mlp_width = width;
    switch (kind) {
      case Kind::swiglu: return body(SwiGlu<dynamic>(d));
      case Kind::relu2: return body(Relu2<dynamic>(d));
      default: return body(NoMlp{});
    }
  }
  constexpr int hidden() const { return kind == Kind::none ? 0 : width; }
  constexpr void describe(Description& d) const {
    d.mlp = name;
    d.mlp_width = hidden();
  }
  template <class Visit>
  constexpr void tensors(int model_width, Visit&& tensor) const {
    visit([&](auto mlp) { mlp.tensors(model_width, tensor); });
  }
  template <class Visit>
  constexpr void scalings(const char* norm, Visit&& pair) const {
    visit([&](auto mlp) { mlp.scalings(norm, pair); });
  }
};

HYMBA_NAMESPACE_END
