// SPDX-License-Identifier: Apache-2.0
//
// How far the attention of each layer sees, and which heads each layer holds.
//
// A rule of one's own is any type with `static constexpr int window(int layer)` (0: global), or
// `static constexpr LayerKind kind(int layer)` for a mix; `static constexpr bool fits(int layers)` is optional and says
// whether the rule names only layers that exist.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/plan.hpp>

#include <array>

HYMBA_NAMESPACE_BEGIN

/// A window: a position sees itself, the `W` before it, and the meta tokens.
template <int W>
struct Window {
  static_assert(W >= 1, "hymba: a window must be at least 1");
  static constexpr int span = W;
  static constexpr int window(int) { return W; }
};
/// Plain causal attention.
struct Global {
  static constexpr int span = 0;
  static constexpr int window(int) { return 0; }
};

/// The listed layers are global: `GlobalAt<0, 15, 31>::otherwise<Window<1024>>`.
template <int... Layers>
struct GlobalAt {
  template <class Other>
  struct otherwise {
    static constexpr int window(int layer) { return ((layer == Layers) || ...) ? 0 : Other::window(layer); }
    static constexpr bool fits(int layers) { return ((Layers >= 0 && Layers < layers) && ...); }
  };
};

/// One span per layer, in order: `SpanList<Global, Window<8>, Window<8>>`.
template <class... Spans>
struct SpanList {
  static constexpr int window(int layer) {
    constexpr std::array<int, sizeof...(Spans)> spans{Spans::span...};
    return spans[static_cast<std::size_t>(layer)];
  }
  static constexpr bool fits(int layers) { return layers == static_cast<int>(sizeof...(Spans)); }
};

/// Every layer holds the same kinds of heads.
template <LayerKind Kind>
struct EveryLayer {
  static constexpr LayerKind kind(int) { return Kind; }
};

/// The listed kinds, repeated down the stack: `Cycle<LayerKind::ssm, LayerKind::attention>` is a sequential hybrid.
template <LayerKind... Kinds>
struct Cycle {
  static constexpr LayerKind kind(int layer) {
    constexpr std::array<LayerKind, sizeof...(Kinds)> kinds{Kinds...};
    return kinds[static_cast<std::size_t>(layer) % sizeof...(Kinds)];
  }
};

/// The listed layers hold attention heads only, the others what `Other` says.
template <int... Layers>
struct AttentionAt {
  template <LayerKind Other>
  struct otherwise {
    static constexpr LayerKind kind(int layer) { return ((layer == Layers) || ...) ? LayerKind::attention : Other; }
    static constexpr bool fits(int layers) { return ((Layers >= 0 && Layers < layers) && ...); }
  };
};

HYMBA_NAMESPACE_END
