// SPDX-License-Identifier: Apache-2.0
//
// Which layers share one key/value cache (arXiv 2411.13676, section 2.2, "cross-layer KV cache sharing").
//
// A rule of one's own is any type with `static constexpr int source(int layer, const Plan& plan)`: the layer whose cache
// `layer` reads, or `layer` itself when it stores its own. The plan already holds kinds and windows of all layers, and
// the sources of the layers before. `static constexpr bool fits(int layers)` is optional.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/plan.hpp>

#include <initializer_list>

HYMBA_NAMESPACE_BEGIN

/// Every layer stores its own keys and values.
struct NoSharing {
  static constexpr int source(int layer, const Plan&) { return layer; }
};

namespace detail {
/// What `ShareAdjacentWindows<n>` says, for an `n` known at run time.
constexpr int adjacent_window_source(int n, int layer, const Plan& plan) {
  auto shares = [&](int i) { return plan[i].has_attention() && plan[i].window > 0; };
  if (!shares(layer)) return layer;
  int first = layer, last = layer;
  while (first > 0 && shares(first - 1) && plan[first - 1].window == plan[layer].window) --first;
  while (last + 1 < plan.layers && shares(last + 1) && plan[last + 1].window == plan[layer].window) ++last;
  const int head = (last - first + 1) % n + n;  // length of the first group
  const int at = layer - first;
  return at < head ? first : first + head + (at - head) / n * n;
}
}  // namespace detail

/// Each run of consecutive window layers is cut into groups of `N`; what does not divide evenly joins the run's first
/// group (so that a run of 15 in pairs is 3 + 2 + ... + 2, as published). The first layer of a group stores.
template <int N>
struct ShareAdjacentWindows {
  static_assert(N >= 1, "hymba: ShareAdjacentWindows<N> shares one cache among N >= 1 layers");
  static constexpr int source(int layer, const Plan& plan) {
    return detail::adjacent_window_source(N > 0 ? N : 1, layer, plan);
  }
};

/// The layers of one group; the smallest index stores for all.
template <int... Layers>
struct Group {
  static constexpr bool contains(int layer) { return ((layer == Layers) || ...); }
  static constexpr int producer() {
    int least = max_layers;
    for (int layer : {Layers...}) least = layer < least ? layer : least;
    return least;
  }
  static constexpr bool fits(int layers) { return ((Layers >= 0 && Layers < layers) && ...); }
};

/// Explicit groups: `Groups<Group<1, 2>, Group<3, 4>>`. Layers in none store their own.
template <class... Gs>
struct Groups {
  static constexpr int source(int layer, const Plan&) {
    int from = layer;
    ((Gs::contains(layer) ? void(from = Gs::producer()) : void()), ...);
    return from;
  }
  /// Every named layer exists, and none is in two groups.
  static constexpr bool fits(int layers) {
    if (!(Gs::fits(layers) && ...)) return false;
    for (int i = 0; i < layers; ++i) {
      if ((0 + ... + (Gs::contains(i) ? 1 : 0)) > 1) return false;
    }
    return true;
  }
};

HYMBA_NAMESPACE_END
