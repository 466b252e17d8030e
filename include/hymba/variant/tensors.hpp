// SPDX-License-Identifier: Apache-2.0
//
// Every tensor of a model, in a fixed order, with the names of the published layout.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/tensor_spec.hpp>

#include <string>

HYMBA_NAMESPACE_BEGIN

/// Which part of a layer a tensor belongs to.
enum class Part { layer, attention, ssm, fusion, mlp };
inline constexpr int part_count = 5;

/// What the full names of layer `i`'s tensors begin with.
inline std::string layer_prefix(int i) { return "model.layers." + std::to_string(i) + '.'; }

/// Visits the tensors of layer `i`: `visit(Part, TensorSpec)`. Names are relative to layer_prefix(i).
template <class V, class Visit>
constexpr void for_each_layer_tensor(const Architecture<V>& a, int i, Visit&& visit) {
  const LayerPlan& row = a.plan[i];
  visit(Part::layer, vector_tensor("input_layernorm.weight", a.width));
  visit(Part::layer, matrix_tensor("mamba.in_proj.weight", a.input_rows(i), a.width));
  if (a.projection_bias) visit(Part::layer, vector_tensor("mamba.in_proj.bias", a.input_rows(i)));
  visit(Part::layer, matrix_tensor("mamba.out_proj.weight", a.width, a.mixed_width(i)));
  if (a.projection_bias) visit(Part::layer, vector_tensor("mamba.out_proj.bias", a.width));
  if (a.has_mlp()) visit(Part::layer, vector_tensor("pre_moe_layernorm.weight", a.width));
  if constexpr (Architecture<V>::has_attention) {
    if (row.has_attention()) {
      a.attention.tensors(a.plan.produces(i), [&](const TensorSpec& t) { visit(Part::attention, t); });
    }
  }
  if constexpr (Architecture<V>::has_ssm) {
    if (row.has_ssm()) a.ssm.tensors([&](const TensorSpec& t) { visit(Part::ssm, t); });
  }
  if (row.kind == LayerKind::hybrid) {
    a.fuse.tensors(a.attention_width(), a.ssm_width(), [&](const TensorSpec& t) { visit(Part::fusion, t); });
  }
  if (a.has_mlp()) a.mlp.tensors(a.width, [&](const TensorSpec& t) { visit(Part::mlp, t); });
}

/// Visits what layer `i` can be scaled by without a change: `visit(maker, reader)`, names relative to layer_prefix(i).
/// Element or row j of the tensor `maker` is a factor of column j of what the matrix `reader` is multiplied with, and of
/// nothing else. A reader may have several makers, which are then all its makers, and a maker several readers. Parts of
/// one's own take part if they have `scalings`, as the library's have.
template <class V, class Visit>
constexpr void for_each_scaling(const Architecture<V>& a, int i, Visit&& visit) {
  visit("input_layernorm.weight", "mamba.in_proj.weight");
  if (a.plan[i].kind == LayerKind::hybrid) {
    if constexpr (requires { a.fuse.scalings("", visit); }) a.fuse.scalings("mamba.out_proj.weight", visit);
  }
  if (a.has_mlp()) {
    if constexpr (requires { a.mlp.scalings("", visit); }) a.mlp.scalings("pre_moe_layernorm.weight", visit);
  }
}

/// Visits the parts of layer `i` that have arithmetic of their own: `visit(Part, part, sizes...)`; a fusion comes with the
/// widths of what it joins.
template <class V, class Visit>
constexpr void for_each_layer_part(const Architecture<V>& a, int i, Visit&& visit) {
  if constexpr (Architecture<V>::has_attention) {
    if (a.plan[i].has_attention()) visit(Part::attention, a.attention);
  }
  if constexpr (Architecture<V>::has_ssm) {
    if (a.plan[i].has_ssm()) visit(Part::ssm, a.ssm);
  }
  if constexpr (Architecture<V>::has_attention && Architecture<V>::has_ssm) {
    if (a.plan[i].kind == LayerKind::hybrid) visit(Part::fusion, a.fuse, a.attention_width(), a.ssm_width());
  }
  if (a.has_mlp()) visit(Part::mlp, a.mlp);
}

/// Visits the tensors that belong to no layer: `visit(TensorSpec)`. Full names.
template <class V, class Visit>
constexpr void for_each_model_tensor(const Architecture<V>& a, Visit&& visit) {
  visit(fine_matrix_tensor("model.embed_tokens.weight", a.vocabulary, a.width));
  if (a.meta_tokens() > 0) visit(vector_tensor("model.memory_tokens", a.meta_tokens(), a.width));
  visit(vector_tensor("model.final_layernorm.weight", a.width));
  if (!a.tied_embeddings) visit(fine_matrix_tensor("lm_head.weight", a.vocabulary, a.width));
}

HYMBA_NAMESPACE_END
