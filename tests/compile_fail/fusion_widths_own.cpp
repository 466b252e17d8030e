// SPDX-License-Identifier: Apache-2.0
// expect: the fusion does not accept heads of these widths: mean_of_norms, sum and learned_gate need query_heads * value_width equal to the SSM's inner width
#include <hymba/variant/architecture.hpp>

using namespace hymba;

// Takes the larger of the two, channel by channel.
struct MaxOfHeads {
  static constexpr const char* kind_name = "max";
  static constexpr bool accepts(int attention, int ssm) { return attention == ssm; }
  static constexpr int output_width(int attention, int) { return attention; }
  template <class Visit>
  static constexpr void tensors(int, int, Visit&&) {}
};

struct Variant {
  using attention = AttentionHeads<4, 2, 8>;
  using ssm = MambaHeads<48, 4, 4, 2>;
  using mlp = SwiGlu<24>;
  using fuse = MaxOfHeads;
  static constexpr int width = 16, layers = 4, vocabulary = 32;
};
static_assert(ValidVariant<Variant>);
