// SPDX-License-Identifier: Apache-2.0
//
// The shape of attention heads: how many, how wide, which positions they encode. No arithmetic.
#pragma once

#include <hymba/core/extent.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/tensor_spec.hpp>

#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// Rotary embedding with a fixed base.
template <int Base = 10000>
struct Rope {
  static constexpr RopeKind kind = RopeKind::standard;
  static constexpr double base = Base;
  static constexpr int max_positions = 0, original_positions = 0;
};
/// NTK-scaled rotary embedding: the base grows with MaxPositions / OriginalPositions.
template <int Base, int MaxPositions, int OriginalPositions>
struct NtkRope {
  static constexpr RopeKind kind = RopeKind::ntk;
  static constexpr double base = Base;
  static constexpr int max_positions = MaxPositions, original_positions = OriginalPositions;
};
/// NTK scaling that sets in past OriginalPositions and grows with the length so far. The token at position p is rotated
/// with the base for length p + 1, its key stays so: the same in one pass, in chunks and token by token.
template <int Base, int OriginalPositions>
struct DynamicNtkRope {
  static constexpr RopeKind kind = RopeKind::dynamic_ntk;
  static constexpr double base = Base;
  static constexpr int max_positions = 0, original_positions = OriginalPositions;
};
/// No positional encoding.
struct NoRope {
  static constexpr RopeKind kind = RopeKind::none;
  static constexpr double base = 0;
  static constexpr int max_positions = 0, original_positions = 0;
};
/// Rotary embedding that config.json decides.
struct RuntimeRope {
  RopeKind kind = RopeKind::none;
  double base = 0;
  int max_positions = 0, original_positions = 0;
};

/// Scaled dot-product attention heads with grouped queries: MHA (kv_heads == query_heads), GQA, MQA (kv_heads == 1).
///
/// Keys and values have widths of their own. Query head h reads key/value head h * kv_heads / query_heads.
/// Any size may be `dynamic`. Reference: arXiv 2411.13676, section 2.1.
template <int QueryHeads, int KvHeads, int KeyWidth, int ValueWidth = KeyWidth, class Position = Rope<>,
          QkNorm Norm = QkNorm::none>
struct AttentionHeads {
  static constexpr const char* kind_name = "attention";
  /// Every size is part of the type.
  static constexpr bool is_static = QueryHeads != dynamic && KvHeads != dynamic && KeyWidth != dynamic &&
                                    ValueWidth != dynamic && !std::is_same_v<Position, RuntimeRope>;
  [[no_unique_address]] Extent<QueryHeads> query_heads;
  [[no_unique_address]] Extent<KvHeads> kv_heads;
  [[no_unique_address]] Extent<KeyWidth> key_width;
  [[no_unique_address]] Extent<ValueWidth> value_width;
  [[no_unique_address]] Position rope;
  static constexpr QkNorm qk_norm = Norm;

  constexpr AttentionHeads() = default;
  constexpr explicit AttentionHeads(const Description& d)
      : query_heads(d.query_heads), kv_heads(d.kv_heads), key_width(d.key_width), value_width(d.value_width) {
    if constexpr (requires(Position p) { p.kind = d.rope; }) {
      rope.kind = d.rope;
      rope.base = d.rope_base;
      rope.max_positions = d.max_positions;
      rope.original_positions = d.original_positions;
    }
  }
  constexpr void describe(Description& d) const { describe_as(d, qk_norm); }

  constexpr int query_width() const { return query_heads * key_width; }
  constexpr int keys_width() const { return kv_heads * key_width; }
  constexpr int values_width() const { return kv_heads * value_width; }
  /// Channels the heads hand to the fusion or output projection.
  constexpr int output_width() const { return query_heads * value_width; }
  /// Rows these heads take of the layer's input projection: q | k | v, or q alone when the cache is another layer's.
  constexpr int input_rows(bool produces) const {
    return query_width() + (produces ? keys_width() + values_width() : 0);
  }
  template <class Visit>
  constexpr void tensors(bool produces, Visit&& visit) const {
    tensors_as(qk_norm, produces, visit);
  }

 protected:
  constexpr void describe_as(Description& d, QkNorm norm) const {
    d.attention = kind_name;
    d.query_heads = query_heads;
    d.kv_heads = kv_heads;
    d.key_width = key_width;
    d.value_width = value_width;
    d.qk_norm = norm;
    d.rope = rope.kind;
    d.rope_base = rope.base;
    d.max_positions = rope.max_positions;
    d.original_positions = rope.original_positions;
  }
  template <class Visit>
  constexpr void tensors_as(QkNorm norm, bool produces, Visit&& visit) const {
    if (norm == QkNorm::rms) {
      visit(vector_tensor("mamba.self_attn.q_norm.weight", key_width));
      if (produces) visit(vector_tensor("mamba.self_attn.k_norm.weight", key_width));
    } else if (norm == QkNorm::per_head_rms) {
      visit(vector_tensor("mamba.self_attn.q_norm.weight", query_heads, key_width));
      if (produces) visit(vector_tensor("mamba.self_attn.k_norm.weight", kv_heads, key_width));
    }
  }
};

/// Attention heads whose every size and switch comes from config.json.
struct RuntimeAttentionHeads : AttentionHeads<dynamic, dynamic, dynamic, dynamic, RuntimeRope> {
  QkNorm qk_norm = QkNorm::none;

  constexpr RuntimeAttentionHeads() = default;
  constexpr explicit RuntimeAttentionHeads(const Description& d) : AttentionHeads(d), qk_norm(d.qk_norm) {}
  constexpr void describe(Description& d) const { describe_as(d, qk_norm); }
  template <class Visit>
  constexpr void tensors(bool produces, Visit&& visit) const {
    tensors_as(qk_norm, produces, visit);
  }
};

HYMBA_NAMESPACE_END
