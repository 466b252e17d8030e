// SPDX-License-Identifier: Apache-2.0
//
// The per-layer plan: which heads a layer holds, how far its attention sees and whose cache it reads. A layer's type
// does not contain its index; everything that differs from layer to layer is a row of this table.
#pragma once

#include <hymba/core/macros.hpp>

#include <array>
#include <cstddef>

HYMBA_NAMESPACE_BEGIN

/// The deepest stack the plan can describe.
inline constexpr int max_layers = 256;

/// Which heads a layer holds.
enum class LayerKind : signed char {
  hybrid,     ///< attention heads beside SSM heads
  attention,  ///< attention heads only
  ssm,        ///< SSM heads only
};

/// One row of the plan.
struct LayerPlan {
  LayerKind kind = LayerKind::hybrid;
  int window = 0;   ///< W of a window layer (a position sees itself, the W before it and the meta tokens); 0: global
  int source = -1;  ///< the layer whose cache this one reads; its own index: it produces one; -1: no attention heads

  constexpr bool has_attention() const { return kind != LayerKind::ssm; }
  constexpr bool has_ssm() const { return kind != LayerKind::attention; }
  friend constexpr bool operator==(const LayerPlan&, const LayerPlan&) = default;
};

/// The rows of all layers.
struct Plan {
  int layers = 0;
  std::array<LayerPlan, max_layers> rows{};

  /// The row of `layer`; past either end the nearest one: a plan that nobody has checked yet is no way out of bounds.
  constexpr const LayerPlan& operator[](int layer) const { return rows[index(layer)]; }
  constexpr LayerPlan& operator[](int layer) { return rows[index(layer)]; }
  /// True when the layer computes and stores its own keys and values.
  constexpr bool produces(int layer) const { return (*this)[layer].source == layer; }
  /// The last layer that reads the cache of `layer`; itself when none does.
  constexpr int last_reader(int layer) const {
    int last = layer;
    for (int i = layer + 1; i < layers; ++i) {
      if ((*this)[i].has_attention() && (*this)[i].source == layer) last = i;
    }
    return last;
  }
  friend constexpr bool operator==(const Plan& a, const Plan& b) {
    if (a.layers != b.layers) return false;
    for (int i = 0; i < a.layers; ++i) {
      if (!(a[i] == b[i])) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t index(int layer) {
    return static_cast<std::size_t>(layer < 0 ? 0 : layer < max_layers ? layer : max_layers - 1);
  }
};

HYMBA_NAMESPACE_END
