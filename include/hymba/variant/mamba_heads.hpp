// SPDX-License-Identifier: Apache-2.0
//
// The shape of Mamba-1 heads (selective state space, arXiv 2312.00752; with Hymba's inner norms). No arithmetic.
#pragma once

#include <hymba/core/extent.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/tensor_spec.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// Switches of Mamba heads.
struct MambaOptions {
  bool inner_norms = true;  ///< RMS-normalise dt, B and C
  bool conv_bias = true;    ///< the convolution has a bias
};

namespace detail {
/// Sizes and tensors shared by the static and the run-time flavour of Mamba heads.
template <int Inner, int State, int Taps, int DtRank>
struct MambaSizes {
  static constexpr const char* kind_name = "mamba";
  /// Every size is part of the type.
  static constexpr bool is_static = Inner != dynamic && State != dynamic && Taps != dynamic && DtRank != dynamic;
  [[no_unique_address]] Extent<Inner> inner;
  [[no_unique_address]] Extent<State> d_state;
  [[no_unique_address]] Extent<Taps> conv_taps;
  [[no_unique_address]] Extent<DtRank> dt_rank;

  constexpr MambaSizes() = default;
  constexpr explicit MambaSizes(const Description& d)
      : inner(d.inner), d_state(d.d_state), conv_taps(d.conv_taps), dt_rank(d.dt_rank) {}

  /// Channels the heads hand to the fusion or output projection.
  constexpr int output_width() const { return inner; }
  /// Rows these heads take of the layer's input projection: x | z.
  constexpr int input_rows() const { return 2 * inner; }
  /// Floats of recurrent state per layer and session: the convolution tail [K-1, E] and the SSM state [N, E].
  constexpr std::int64_t state_floats() const {
    return static_cast<std::int64_t>(conv_taps - 1) * inner + static_cast<std::int64_t>(d_state) * inner;
  }
  /// Floats of working memory a forward pass over `rows` rows needs: conv output and x_proj's rows.
  constexpr std::int64_t workspace_floats(std::int64_t rows) const {
    return rows * (static_cast<std::int64_t>(inner) + dt_rank + 2 * static_cast<std::int64_t>(d_state));
  }

 protected:
  constexpr void describe_as(Description& d, MambaOptions options) const {
    d.ssm = kind_name;
    d.inner = inner;
    d.d_state = d_state;
    d.conv_taps = conv_taps;
    d.dt_rank = dt_rank;
    d.conv_bias = options.conv_bias;
    d.inner_norms = options.inner_norms;
  }
  template <class Visit>
  constexpr void tensors_as(MambaOptions options, Visit&& visit) const {
    visit(vector_tensor("mamba.conv1d.weight", inner, 1, conv_taps));
    if (options.conv_bias) visit(vector_tensor("mamba.conv1d.bias", inner));
    visit(fine_matrix_tensor("mamba.x_proj.0.weight", dt_rank + 2 * d_state, inner));
    visit(fine_matrix_tensor("mamba.dt_proj.0.weight", inner, dt_rank));
    visit(vector_tensor("mamba.dt_proj.0.bias", inner));
    visit(vector_tensor("mamba.A_log.0", inner, d_state));
    visit(vector_tensor("mamba.D.0", inner));
    if (options.inner_norms) {
      visit(vector_tensor("mamba.dt_layernorm.weight", dt_rank));
      visit(vector_tensor("mamba.B_layernorm.weight", d_state));
      visit(vector_tensor("mamba.C_layernorm.weight", d_state));
    }
  }
};
}  // namespace detail

/// Mamba-1 heads: causal depthwise convolution, input-dependent discretisation, diagonal state per channel.
/// @tparam Inner E, channels; @tparam State N, state per channel; @tparam Taps K, convolution length including the
/// current token; @tparam DtRank R, rank of the time step. Any may be `dynamic`.
template <int Inner, int State, int Taps, int DtRank, MambaOptions Options = MambaOptions{}>
struct MambaHeads : detail::MambaSizes<Inner, State, Taps, DtRank> {
  static constexpr MambaOptions options = Options;
  constexpr MambaHeads() = default;
  constexpr explicit MambaHeads(const Description& d) : detail::MambaSizes<Inner, State, Taps, DtRank>(d) {}
  constexpr void describe(Description& d) const { this->describe_as(d, options); }
  template <class Visit>
  constexpr void tensors(Visit&& visit) const {
    this->tensors_as(options, visit);
  }
};

/// Mamba heads whose every size and switch comes from config.json.
struct RuntimeMambaHeads : detail::MambaSizes<dynamic, dynamic, dynamic, dynamic> {
  MambaOptions options;
  constexpr RuntimeMambaHeads() = default;
  constexpr explicit RuntimeMambaHeads(const Description& d)
      : MambaSizes(d), options{.inner_norms = d.inner_norms, .conv_bias = d.conv_bias} {}
  constexpr void describe(Description& d) const { describe_as(d, options); }
  template <class Visit>
  constexpr void tensors(Visit&& visit) const {
    tensors_as(options, visit);
  }
};

HYMBA_NAMESPACE_END
