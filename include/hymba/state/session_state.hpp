// SPDX-License-Identifier: Apache-2.0
//
// Everything a session remembers of what it has read: caches, convolution tails, SSM states, and how far it is.
// One block of memory, carved once.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/state/kv_cache.hpp>
#include <hymba/variant/architecture.hpp>

#include <cstdint>
#include <cstring>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// The state of one sequence. `E` is the storage type of keys and values. Movable.
template <class E>
class SessionState {
 public:
  SessionState() = default;
  /// Room for `context` tokens behind the meta tokens; position 0, SSM states zero.
  template <class V>
  SessionState(const Architecture<V>& a, std::int64_t context) : context_(context), meta_(a.meta_tokens()) {
    caches_.resize(static_cast<std::size_t>(a.layers));
    ssm_.resize(static_cast<std::size_t>(a.layers), nullptr);
    ssm_floats_ = a.ssm_state_floats();
    Arena measure;
    carve(a, measure);
    block_ = AlignedBuffer(measure.used());
    Arena place(block_);
    carve(a, place);
  }

  /// Positions read so far, meta tokens included.
  std::int64_t position() const { return position_; }
  void advance(std::int64_t count) { position_ += count; }
  void set_position(std::int64_t position) { position_ = position; }
  /// Tokens there is room for, meta tokens not counted.
  std::int64_t context() const { return context_; }
  std::int64_t meta() const { return meta_; }
  int layers() const { return static_cast<int>(caches_.size()); }

  /// The cache of layer `i`; `keys` is null when the layer stores none.
  const LayerCache<E>& cache(int i) const { return caches_[static_cast<std::size_t>(i)]; }
  /// The recurrent state of layer `i`, `ssm_floats()` floats; null when the layer has none.
  float* ssm(int i) const { return ssm_[static_cast<std::size_t>(i)]; }
  std::int64_t ssm_floats() const { return ssm_floats_; }
  std::size_t bytes() const { return block_.size(); }

  /// Becomes a copy of `from`, which is of the same architecture; keeps its own room.
  /// @pre from.position() fits this state: at most meta() + context().
  void copy_from(const SessionState& from) {
    position_ = from.position_;
    for (int i = 0; i < layers(); ++i) {
      if (ssm(i) != nullptr) std::memcpy(ssm(i), from.ssm(i), static_cast<std::size_t>(ssm_floats_) * sizeof(float));
      const LayerCache<E>& to = cache(i);
      if (to.keys == nullptr) continue;
      const LayerCache<E>& source = from.cache(i);
      copy_positions(source, to, 0, std::min(position_, to.meta));
      copy_positions(source, to, std::max(source.oldest(position_), to.oldest(position_)), position_);
    }
  }

 private:
  template <class V>
  void carve(const Architecture<V>& a, Arena& arena) {
    for (int i = 0; i < a.layers; ++i) {
      if constexpr (Architecture<V>::has_attention) {
        if (a.plan[i].has_attention() && a.plan.produces(i)) {
          LayerCache<E>& c = caches_[static_cast<std::size_t>(i)];
          c.meta = meta_;
          c.window = a.plan[i].window;
          c.capacity = cached_positions(c.window, a.meta_tokens(), context_);
          c.kv_heads = a.attention.kv_heads;
          c.key_width = a.attention.key_width;
          c.value_width = a.attention.value_width;
          c.carve(arena);
        }
      }
      if (a.plan[i].has_ssm()) ssm_[static_cast<std::size_t>(i)] = arena.take<float>(static_cast<std::size_t>(ssm_floats_));
    }
  }
  /// Copies positions [first, last) from one layer cache to another of the same widths.
  static void copy_positions(const LayerCache<E>& from, const LayerCache<E>& to, std::int64_t first, std::int64_t last) {
    while (first < last) {
      const std::int64_t a = from.row_of(first), b = to.row_of(first);
      // A run ends where either side leaves its pinned rows or wraps around.
      const std::int64_t end_a = a < from.meta ? from.meta : from.capacity;
      const std::int64_t end_b = b < to.meta ? to.meta : to.capacity;
      const std::int64_t run = std::min({last - first, end_a - a, end_b - b});
      copy_rows<E>(from, a, to, b, run);
      first += run;
    }
  }

  std::int64_t context_ = 0, meta_ = 0, position_ = 0, ssm_floats_ = 0;
  std::vector<LayerCache<E>> caches_;
  std::vector<float*> ssm_;
  AlignedBuffer block_;
};

HYMBA_NAMESPACE_END
