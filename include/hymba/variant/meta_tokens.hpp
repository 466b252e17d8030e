// SPDX-License-Identifier: Apache-2.0
//
// Learned meta tokens in front of every prompt (arXiv 2411.13676, section 2.3).
#pragma once

#include <hymba/core/extent.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/variant/description.hpp>

HYMBA_NAMESPACE_BEGIN

/// `Count` learned vectors at positions 0 .. Count-1. Their state is computed once per model and copied into each new
/// session; they are never evicted from a window.
template <int Count>
struct MetaTokens {
  static constexpr bool is_static = Count != dynamic;
  [[no_unique_address]] Extent<Count> count;
  constexpr MetaTokens() = default;
  constexpr explicit MetaTokens(const Description& d) : count(d.meta_tokens) {}
};

HYMBA_NAMESPACE_END
