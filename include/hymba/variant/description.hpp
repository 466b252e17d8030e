// SPDX-License-Identifier: Apache-2.0
//
// A model's architecture as plain numbers: what a config.json says, what a variant type boils down to. Both sides meet
// here: a checkpoint fits a variant when their descriptions are equal.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/variant/plan.hpp>

#include <cstddef>
#include <string_view>

HYMBA_NAMESPACE_BEGIN

/// A short name with value semantics that constant expressions can hold. Longer text is cut at 47 characters.
struct Name {
  char text[48] = {};
  constexpr Name() = default;
  constexpr Name(const char* s) : Name(std::string_view(s)) {}
  constexpr Name(std::string_view s) {
    for (std::size_t i = 0; i < s.size() && i + 1 < sizeof(text); ++i) text[i] = s[i];
  }
  constexpr std::string_view view() const {
    std::size_t n = 0;
    while (n < sizeof(text) && text[n] != 0) ++n;
    return {text, n};
  }
  friend constexpr bool operator==(const Name& a, const Name& b) { return a.view() == b.view(); }
};

/// Rotary embedding of queries and keys.
enum class RopeKind {
  none,         ///< no positional encoding
  standard,     ///< base as given
  ntk,          ///< base * (2 * max_positions / original_positions - 1) ^ (key_width / (key_width - 2))
  dynamic_ntk,  ///< as ntk, with the length so far in place of max_positions, once that exceeds original_positions
};

/// Normalisation of queries and keys before the rotary embedding.
enum class QkNorm { none, rms, per_head_rms };

/// The architecture of a model as plain numbers. Widths count float channels; windows and positions count tokens.
struct Description {
  int width = 0;       ///< D, hidden width
  int layers = 0;      ///< number of layers
  int vocabulary = 0;  ///< V, rows of the embedding

  Name attention = "none";  ///< kind of attention heads ("attention"), or "none"
  int query_heads = 0;      ///< H
  int kv_heads = 0;         ///< G
  int key_width = 0;        ///< dk
  int value_width = 0;      ///< dv
  QkNorm qk_norm = QkNorm::none;
  RopeKind rope = RopeKind::none;
  double rope_base = 0;        ///< theta
  int max_positions = 0;       ///< max_position_embeddings: a scale of the rotary base, not a limit
  int original_positions = 0;  ///< orig_max_position_embeddings

  Name ssm = "none";  ///< kind of SSM heads ("mamba"), or "none"
  int inner = 0;      ///< E
  int d_state = 0;    ///< N
  int conv_taps = 0;  ///< K
  int dt_rank = 0;    ///< R
  bool conv_bias = false;
  bool inner_norms = false;

  Name fusion = "none";  ///< "mean_of_norms", "sum", "concat", "learned_gate", a user's own name, or "none"
  Name mlp = "none";     ///< "silu" (gated), "relu2", a user's own name, or "none"
  int mlp_width = 0;     ///< F

  int meta_tokens = 0;  ///< M
  bool projection_bias = false;
  bool tied_embeddings = true;
  double rms_eps = 1e-6;

  Plan plan;  ///< kind, window and cache source of every layer

  Token bos = 1, eos = 2, pad = 0;  ///< ids of the special tokens; they do not take part in comparisons of shape
};

HYMBA_NAMESPACE_END
