// SPDX-License-Identifier: Apache-2.0
//
// What a variant costs: parameters, bytes of cache, bytes of recurrent state. Constant expressions for static variants.
#pragma once

#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/tensors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// Number of parameters, meta tokens included.
template <class V>
constexpr std::int64_t parameters(const Architecture<V>& a) {
  std::int64_t total = 0;
  for_each_model_tensor(a, [&](const TensorSpec& t) { total += t.elements(); });
  for (int i = 0; i < a.layers; ++i) {
    for_each_layer_tensor(a, i, [&](Part, const TensorSpec& t) { total += t.elements(); });
  }
  return total;
}
template <class V>
constexpr std::int64_t parameters() {
  return parameters(architecture<V>);
}

/// Positions the cache of a layer with window `window` (0: global) holds for `context` tokens behind `meta` meta tokens.
constexpr std::int64_t cached_positions(int window, int meta, std::int64_t context) {
  return meta + (window == 0 ? context : std::min<std::int64_t>(context, std::int64_t{window} + 1));
}

/// Bytes of the keys and values of one position in one layer's cache.
template <class V>
constexpr std::size_t position_bytes(const Architecture<V>& a, CacheElementBytes bytes) {
  if constexpr (Architecture<V>::has_attention) {
    return static_cast<std::size_t>(a.attention.keys_width() + a.attention.values_width()) * bytes.element +
           2 * static_cast<std::size_t>(a.attention.kv_heads) * bytes.row;
  } else {
    return 0;
  }
}

/// Bytes of keys and values of one session with room for `context` tokens (meta tokens come on top and are counted).
/// `bytes`: those of a number, or `cache_element_bytes<E>` for a cache of E.
template <class V>
constexpr std::size_t cache_bytes(const Architecture<V>& a, CacheElementBytes bytes, std::int64_t context) {
  std::int64_t positions = 0;
  for (int i = 0; i < a.layers; ++i) {
    if (a.plan[i].has_attention() && a.plan.produces(i)) {
      positions += cached_positions(a.plan[i].window, a.meta_tokens(), context);
    }
  }
  return static_cast<std::size_t>(positions) * position_bytes(a, bytes);
}
/// The same for a static variant under a policy: `cache_bytes<Tiny, Cpu<>>(8192)`.
template <class V, class Policy>
constexpr std::size_t cache_bytes(std::int64_t context) {
  return cache_bytes(architecture<V>, cache_element_bytes<typename Policy::cache_element>, context);
}

/// What a plain transformer of the same depth, heads and widths would cache: every layer global, nothing shared.
template <class V>
constexpr std::size_t transformer_cache_bytes(const Architecture<V>& a, CacheElementBytes bytes, std::int64_t context) {
  return static_cast<std::size_t>(context * a.layers) * position_bytes(a, bytes);
}

/// Bytes of recurrent state (convolution tails and SSM states, single precision) of one session.
template <class V>
constexpr std::size_t state_bytes(const Architecture<V>& a) {
  std::int64_t floats = 0;
  for (int i = 0; i < a.layers; ++i) {
    if (a.plan[i].has_ssm()) floats += a.ssm_state_floats();
  }
  return static_cast<std::size_t>(floats) * sizeof(float);
}
template <class V>
constexpr std::size_t state_bytes() {
  return state_bytes(architecture<V>);
}

HYMBA_NAMESPACE_END
