// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of attention heads: q/k norms, rotary embedding, the rotation of what has scales, storing keys and
// values, attention over the cache.
//
// Attention heads of one's own supply, in their own namespace,
//
//   template <class Context, class E> void attention_forward(const MyHeads&, const Context&, const AttentionStep<E>&);
//
// and describe themselves as variant/architecture.hpp's AttentionShapeLike asks.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/context.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/convert.hpp>
#include <hymba/kernels/quantise_row.hpp>
#include <hymba/kernels/rms_norm.hpp>
#include <hymba/kernels/rope.hpp>
#include <hymba/kernels/rotate_heads.hpp>
#include <hymba/state/kv_cache.hpp>
#include <hymba/variant/attention_heads.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

HYMBA_NAMESPACE_BEGIN

/// One sequence of a step: rows [first_row, first_row + rows) stand at positions first_position, ...; `cache` is the one
/// this layer reads, its own or another layer's.
template <class E>
struct CacheSequence {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t first_position = 0;
  const LayerCache<E>* cache = nullptr;
};

/// Keys and values of a step's own tokens for a window layer, kept beside the ring until every layer that shares the
/// cache has read them: writing them into the ring at once would overwrite what the step's earlier tokens still see.
template <class E>
using StagedRows = CacheRows<E>;

/// Inputs and outputs of attention heads for one layer and step.
template <class E>
struct AttentionStep {
  using Real = activation_beside_t<E>;
  MatrixView<Real> input;                           ///< [T, input_rows(produces)]: q | k | v, or q; changed in place
  bool produces = true;                             ///< stores keys and values
  int window = 0;                                   ///< 0: global
  std::int64_t meta = 0;                            ///< pinned positions
  std::span<const CacheSequence<E>> sequences;      ///< they cover the T rows in order
  MatrixView<const Real> cosines, sines;            ///< [T, key_width / 2]; empty without a rotary embedding
  StagedRows<E> staged;                             ///< window layers: where this step's keys and values are
  AttentionSequence<E>* kernel_sequences = nullptr; ///< workspace, one per sequence
  MatrixView<Real> output;                          ///< [T, output_width()]; perhaps beside `input`, in the same rows
};

namespace detail {

/// Rows [T, heads * width] in float to [heads][row][width] in the cache's format, with scales [heads][row] where it has
/// them; `capacity` rows from head to head.
template <class C, class E>
void store_rows(const C& c, MatrixView<const typename C::real> rows, int heads, int width, E* to,
                [[maybe_unused]] RowScale* scales, std::int64_t capacity) {
  // A task converts one row of all heads: little work, so a few rows are not worth waking threads.
  const auto store = [&](std::int64_t r) {
    for (int g = 0; g < heads; ++g) {
      const auto* const from = rows.row(r) + static_cast<std::int64_t>(g) * width;
      E* const row = to + (g * capacity + r) * width;
      if constexpr (scaled_rows<E>) {
        scales[g * capacity + r] = kernel_for<op::QuantiseRow, typename C::arch>::run(from, width, row);
      } else {
        kernel_for<op::Convert, typename C::arch>::run(from, width, row);
      }
    }
  };
  if (rows.rows * rows.cols < 65536) {
    for (std::int64_t r = 0; r < rows.rows; ++r) store(r);
  } else {
    c.executor.parallel_for(rows.rows, [&](std::int64_t r, int) noexcept { store(r); });
  }
}

/// The scale of row `row`; null where rows have none.
inline RowScale* scales_at(RowScale* scales, std::int64_t row) { return scales != nullptr ? scales + row : nullptr; }

/// Rows [row, row + count) of `rows`, which hold positions from `first` on, as a segment.
template <class E>
KeyValueSegment<E> segment_of(const CacheRows<E>& rows, std::int64_t row, std::int64_t first, std::int64_t count) {
  KeyValueSegment<E> s{rows.keys + row * rows.key_width,
                       rows.values + row * rows.value_width,
                       rows.key_head_stride(),
                       rows.value_head_stride(),
                       first,
                       count};
  if constexpr (scaled_rows<E>) {
    s.key_scales = rows.key_scales + row;
    s.value_scales = rows.value_scales + row;
    s.scale_head_stride = rows.capacity;
  }
  return s;
}

/// What a window layer's sequence sees: pinned rows, the ring in one or two runs, and the step's own staged rows.
template <class E>
void add_window_segments(const CacheSequence<E>& s, const StagedRows<E>& staged, AttentionSequence<E>& out) {
  const LayerCache<E>& cache = *s.cache;
  const auto add = [&](const CacheRows<E>& rows, std::int64_t row, std::int64_t first, std::int64_t count) {
    if (count <= 0) return;
    out.segments[out.segment_count++] = segment_of(rows, row, first, count);
  };
  const auto add_cached = [&](std::int64_t first, std::int64_t count) {
    add(cache, count > 0 ? cache.row_of(first) : 0, first, count);
  };
  add_cached(0, std::min(s.first_position, cache.meta));
  const std::int64_t first = cache.oldest(s.first_position), held = std::max<std::int64_t>(s.first_position - first, 0);
  const std::int64_t before_wrap = held > 0 ? std::min(held, cache.capacity - cache.row_of(first)) : 0;
  add_cached(first, before_wrap);
  add_cached(first + before_wrap, held - before_wrap);
  add(staged, s.first_row, s.first_position, s.rows);
}

template <class Heads, class C, class E>
void dot_product_attention(const Heads& h, const C& c, const AttentionStep<E>& step) {
  const int heads = h.query_heads, groups = h.kv_heads, dk = h.key_width, dv = h.value_width;
  using Real = typename C::real;
  const MatrixView<Real> q = step.input.columns(0, h.query_width());
  const MatrixView<Real> k = step.input.columns(h.query_width(), h.keys_width());
  const MatrixView<Real> v = step.input.columns(h.query_width() + h.keys_width(), h.values_width());

  if (h.qk_norm != QkNorm::none) {
    const auto normalise = [&](MatrixView<Real> x, int count, const Real* weight) {
      for (int i = 0; i < count; ++i) {
        const MatrixView<Real> head = x.columns(static_cast<std::int64_t>(i) * dk, dk);
        run<op::RmsNorm>(c, head, weight + (h.qk_norm == QkNorm::per_head_rms ? i * dk : 0), c.eps, head);
      }
    };
    normalise(q, heads, c.vector(0));
    if (step.produces) normalise(k, groups, c.vector(1));
  }
  if (step.cosines.cols > 0) {
    run<op::Rope>(c, q, heads, dk, step.cosines, step.sines);
    if (step.produces) run<op::Rope>(c, k, groups, dk, step.cosines, step.sines);
  }
  if constexpr (scaled_rows<E>) {
    // Some columns of keys are much larger than others in every position; rotated, they share a scale at less cost.
    run<op::RotateHeads>(c, q, heads, dk);
    if (step.produces) run<op::RotateHeads>(c, k, groups, dk);
  }

  for (std::size_t s = 0; s < step.sequences.size(); ++s) {
    const CacheSequence<E>& sequence = step.sequences[s];
    const LayerCache<E>& cache = *sequence.cache;
    AttentionSequence<E>& out = step.kernel_sequences[s];
    out.first_row = sequence.first_row;
    out.rows = sequence.rows;
    out.first_position = sequence.first_position;
    out.segment_count = 0;
    const bool global = step.window == 0;
    if (step.produces) {
      // A global layer's row is its position: it goes to its final place at once. A window layer's is staged.
      const CacheRows<E>& to = global ? static_cast<const CacheRows<E>&>(cache) : step.staged;
      const std::int64_t row = global ? sequence.first_position : sequence.first_row;
      store_rows(c, MatrixView<const Real>(k.row_range(sequence.first_row, sequence.rows)), groups, dk,
                 to.keys + row * dk, scales_at(to.key_scales, row), to.capacity);
      store_rows(c, MatrixView<const Real>(v.row_range(sequence.first_row, sequence.rows)), groups, dv,
                 to.values + row * dv, scales_at(to.value_scales, row), to.capacity);
    }
    if (global) {
      out.segments[out.segment_count++] = segment_of<E>(cache, 0, 0, sequence.first_position + sequence.rows);
    } else {
      add_window_segments(sequence, step.staged, out);
    }
  }
  const AttentionShape shape{heads, groups, dk, dv, step.window, step.meta, 1.0f / std::sqrt(static_cast<float>(dk))};
  kernel_for<op::Attention, typename C::arch>::template run<E>(
      c.executor, c.scratch, shape, q, std::span<const AttentionSequence<E>>(step.kernel_sequences, step.sequences.size()),
      step.output);
}

}  // namespace detail

/// Moves a step's staged keys and values into the ring, once every reader of the cache has run.
template <class E>
void commit_staged(const CacheSequence<E>& s, const StagedRows<E>& staged) {
  const LayerCache<E>& cache = *s.cache;
  // Rows that the step itself has pushed out of the window again are skipped.
  const std::int64_t end = s.first_position + s.rows;
  std::int64_t p = s.first_position;
  while (p < end) {
    if (p >= cache.meta) p = std::max(p, cache.oldest(end));
    const std::int64_t row = cache.row_of(p);
    const std::int64_t run = std::min(end - p, (row < cache.meta ? cache.meta : cache.capacity) - row);
    const std::int64_t from = s.first_row + (p - s.first_position);
    copy_rows<E>(staged, from, cache, row, run);
    p += run;
  }
}

template <int H, int G, int K, int W, class Position, QkNorm N, class C, class E>
void attention_forward(const AttentionHeads<H, G, K, W, Position, N>& h, const C& c, const AttentionStep<E>& step) {
  detail::dot_product_attention(h, c, step);
}
template <class C, class E>
void attention_forward(const RuntimeAttentionHeads& h, const C& c, const AttentionStep<E>& step) {
  detail::dot_product_attention(h, c, step);
}

/// Per-thread scratch the attention kernel wants for steps of at most `rows` rows. Not needed by heads of one's own.
template <class Arch, class Heads>
std::size_t attention_scratch_bytes(const Heads& h, int window, std::int64_t meta, std::int64_t rows) {
  if constexpr (requires { h.query_heads; h.kv_heads; h.key_width; h.value_width; }) {
    const AttentionShape shape{h.query_heads, h.kv_heads, h.key_width, h.value_width, window, meta, 1.0f};
    return kernel_for<op::Attention, Arch>::scratch_bytes(shape, rows);
  } else {
    return 0;
  }
}

HYMBA_NAMESPACE_END
