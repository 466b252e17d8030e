// SPDX-License-Identifier: Apache-2.0
//
// Attention over cached keys and values: prefill and decode, global and window layers, grouped queries.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// Sizes of the heads and who sees whom: position j is seen from position i when `j <= i` and (`window == 0` or
/// `i - j <= window` or `j < pinned`).
struct AttentionShape {
  int query_heads = 0;  ///< a multiple of kv_heads; query head h reads key/value head h * kv_heads / query_heads
  int kv_heads = 0;
  int key_width = 0;
  int value_width = 0;
  std::int64_t window = 0;  ///< 0: global
  std::int64_t pinned = 0;
  float scale = 1.0f;  ///< of the scores

  constexpr bool sees(std::int64_t i, std::int64_t j) const {
    return j <= i && (window == 0 || i - j <= window || j < pinned);
  }
};

/// Keys and values of positions [first_position, first_position + count). The rows of one head are contiguous: keys of
/// head g are [count, key_width] at `keys + g * key_head_stride`.
template <class E>
struct KeyValueSegment {
  const E* keys = nullptr;
  const E* values = nullptr;
  std::int64_t key_head_stride = 0, value_head_stride = 0;  ///< in elements
  std::int64_t first_position = 0;
  std::int64_t count = 0;
};

/// Rows [first_row, first_row + rows) of the matrices are one sequence; the first stands at position first_position.
/// Its segments, in any order and without overlap, cover every position that one of its rows sees.
template <class E>
struct AttentionSequence {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t first_position = 0;
  KeyValueSegment<E> segments[4];
  int segment_count = 0;
};

namespace op {
/// `out = softmax(scale * q k^T + mask) v`, head by head; q [T, H * dk] already rotated, out [T, H * dv]. E is the type
/// of keys and values: float, f16 or bf16. Softmax and sums are in float.
///
///     template <class E, Executor Exec>
///     static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
///                     std::span<const AttentionSequence<E>> sequences, MatrixView<float> out);
///     static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t max_rows);
///
/// q and out do not overlap. Keys and values inside the segments are finite: a position hidden from a row has weight
/// zero, but may be multiplied. Blocks of positions that no row sees are not read: a window costs what it holds.
/// `scratch_bytes` is per thread and grows with max_rows.
///
/// A row's bits depend on its query and the keys and values it sees, not on the number of threads, nor on the other
/// rows of the call, nor on how positions are spread over segments: a prompt fed in pieces gives the bits of the whole,
/// and a batch those of its sequences alone.
/// Source: Hymba (arXiv 2411.13676), section 2; the blocking is that of Dao, "FlashAttention-2" (arXiv 2307.08691).
struct Attention {};
}  // namespace op

namespace reference {
/// op::Attention in plain loops for one sequence: largest score, then weights and weighted sum.
template <class Real, class E, class Out, class In = float>
void attention(const AttentionShape& shape, MatrixView<const std::type_identity_t<In>> q,
               const AttentionSequence<E>& sequence, MatrixView<Out> out) {
  const std::int64_t dk = shape.key_width, dv = shape.value_width;
  for (std::int64_t row = 0; row < sequence.rows; ++row) {
    for (std::int64_t h = 0; h < shape.query_heads; ++h) {
      const std::int64_t g = h * shape.kv_heads / shape.query_heads;
      const In* query = q.row(sequence.first_row + row) + h * dk;
      Out* to = out.row(sequence.first_row + row) + h * dv;
      const auto for_visible = [&](auto&& use) {
        for (int i = 0; i < sequence.segment_count; ++i) {
          const KeyValueSegment<E>& s = sequence.segments[i];
          for (std::int64_t j = 0; j < s.count; ++j) {
            if (!shape.sees(sequence.first_position + row, s.first_position + j)) continue;
            const E* key = s.keys + g * s.key_head_stride + j * dk;
            Real score = 0;
            for (std::int64_t d = 0; d < dk; ++d) {
              score += static_cast<Real>(query[d]) * hymba::detail::number<Real>(key[d]);
            }
            use(score * static_cast<Real>(shape.scale), s.values + g * s.value_head_stride + j * dv);
          }
        }
      };
      Real largest = -std::numeric_limits<Real>::infinity(), sum = 0;
      for_visible([&](Real score, const E*) { largest = std::max(largest, score); });
      for (std::int64_t d = 0; d < dv; ++d) to[d] = Out(0);
      for_visible([&](Real score, const E* value) {
        const Real weight = std::exp(score - largest);
        sum += weight;
        for (std::int64_t d = 0; d < dv; ++d) {
          to[d] = static_cast<Out>(static_cast<Real>(to[d]) + weight * hymba::detail::number<Real>(value[d]));
        }
      });
      for (std::int64_t d = 0; d < dv; ++d) to[d] = static_cast<Out>(static_cast<Real>(to[d]) / sum);
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::Attention, arch::scalar> {
  static constexpr std::size_t scratch_bytes(const AttentionShape&, std::int64_t) { return 0; }

  template <class E, class Exec, class T>
  static void run(Exec&, Scratch, const AttentionShape& shape, MatrixView<const std::type_identity_t<T>> q,
                  std::span<const AttentionSequence<E>> sequences, MatrixView<T> out) {
    for (const AttentionSequence<E>& s : sequences) reference::attention<T, E, T, T>(shape, q, s, out);
  }
};

namespace detail {

/// The vector version of op::Attention on xsimd architecture `A`.
///
/// A task has a few tokens of one sequence and all query heads of one key/value head: its rows, token by token. Lanes
/// run over rows for scores and softmax, over the value's columns for the weighted sum. With the queries transposed
/// once per task, both products broadcast their left operand from rows as they lie in the cache, nothing else is
/// transposed, and largest scores and sums need no operation across lanes.
///
/// Positions are cut in blocks and in spans of blocks, at multiples of their sizes. A span is summed on its own,
/// relative to its own largest score, and spans are then merged in order: decoding can hand spans to different threads
/// and still add the same numbers in the same order as a prefill that takes them one after the other. Hidden positions
/// weigh exactly zero, so what other rows of a task see does not matter either.
template <class A>
struct AttentionSimd {
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  static constexpr bool wide = simd::registers<A> >= 32;

  static constexpr std::int64_t block = 64;  ///< positions per block
  static constexpr std::int64_t span = 512;  ///< positions per span
  static constexpr std::int64_t panel = 48;  ///< rows whose scores are held at a time
  static constexpr std::int64_t task_rows = 4 * panel;
  static constexpr std::int64_t slots = 64;  ///< span results per thread
  // Register tiles. Scores: keys x vectors of rows. Weighted sum: rows x vectors of value columns.
  static constexpr int score_keys = wide ? 8 : 4, score_vectors = 3;
  static constexpr int value_rows = 6, value_vectors = wide ? 4 : 2;
  static_assert(panel % (L * score_vectors) == 0 && panel % value_rows == 0 && span % block == 0);

  static constexpr float lowest = std::numeric_limits<float>::lowest();

  static constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }
  static constexpr std::int64_t group(const AttentionShape& s) { return s.query_heads / s.kv_heads; }
  static constexpr std::int64_t value_stride(const AttentionShape& s) { return round_up(s.value_width, 16); }
  static constexpr std::int64_t max_tokens(const AttentionShape& s) {
    return std::max<std::int64_t>(1, task_rows / group(s));
  }

  /// Sums over some positions for the rows of a task, relative to the largest score: enough to merge them with others.
  struct Partial {
    float* largest = nullptr;  ///< [rows]
    float* sum = nullptr;      ///< [rows]
    float* values = nullptr;   ///< [rows, value_stride]
  };

  /// A thread's scratch. Carved the same way to measure and to use.
  struct Workspace {
    float* queries;   ///< [panels][key_width][panel], scaled
    float* weights;   ///< [block][panel] scores, then weights
    float* keys;      ///< [block][key_width], when they cannot be used in place
    float* values;    ///< [block][value_stride], the same
    float* position;  ///< [rows] relative to the task's first
    float* factor;    ///< [2][rows]
    Partial running, next;
    float* slot;  ///< [slots] partials of `group` rows

    static constexpr std::int64_t round(std::int64_t n) { return round_up(n, 16); }
    static constexpr std::int64_t partial_floats(std::int64_t rows, std::int64_t stride) {
      return 2 * round(rows) + rows * stride;
    }
    static Partial partial(float* at, std::int64_t rows) {
      return {at, at + round(rows), at + 2 * round(rows)};
    }
    static constexpr std::int64_t floats(const AttentionShape& s, std::int64_t rows) {
      return rows * s.key_width + block * panel + round(block * s.key_width) + block * value_stride(s) + 3 * rows +
             2 * partial_floats(rows, value_stride(s)) + slots * partial_floats(group(s), value_stride(s));
    }
    Workspace(const AttentionShape& s, std::int64_t rows, float* at) {
      const auto take = [&](std::int64_t n) {
        float* const p = at;
        at += n;
        return p;
      };
      const std::int64_t stride = value_stride(s);
      queries = take(rows * s.key_width);
      weights = take(block * panel);
      keys = take(round(block * s.key_width));
      values = take(block * stride);
      position = take(rows);
      factor = take(2 * rows);
      running = partial(take(partial_floats(rows, stride)), rows);
      next = partial(take(partial_floats(rows, stride)), rows);
      slot = take(slots * partial_floats(group(s), stride));
    }
  };

  /// Rows a workspace for steps of at most `max_rows` tokens has room for.
  static constexpr std::int64_t workspace_rows(const AttentionShape& s, std::int64_t max_rows) {
    return round_up(std::min(std::max<std::int64_t>(max_rows, 1), max_tokens(s)) * group(s), panel);
  }
  static constexpr std::size_t scratch_bytes(const AttentionShape& s, std::int64_t max_rows) {
    return aligned_size(static_cast<std::size_t>(Workspace::floats(s, workspace_rows(s, max_rows))) * sizeof(float));
  }

  // --- Which positions -----------------------------------------------------------------------------------------------

  /// What the tokens at positions [first, last] see together: [0, pinned) and [low, last].
  struct Visible {
    std::int64_t first, last, low, pinned;
    std::int64_t pinned_spans, window_span;

    Visible(const AttentionShape& s, std::int64_t first_, std::int64_t last_)
        : first(first_),
          last(last_),
          low(s.window > 0 ? std::max<std::int64_t>(0, first_ - s.window) : 0),
          pinned(std::min(s.pinned, last_ + 1)),
          pinned_spans((pinned + span - 1) / span),
          window_span(std::max(pinned_spans, low / span)) {}
    /// Spans with something visible, in order.
    std::int64_t spans() const { return pinned_spans + std::max<std::int64_t>(0, last / span - window_span + 1); }
    std::int64_t span_start(std::int64_t i) const {
      return (i < pinned_spans ? i : window_span + i - pinned_spans) * span;
    }
    /// Shrinks [a, c) to the positions between the first and the last visible one.
    void clip(std::int64_t& a, std::int64_t& c) const {
      c = std::min(c, last + 1);
      if (c <= low) {
        c = std::min(c, pinned);
      } else if (a < low && a >= pinned) {
        a = low;
      }
    }
  };

  /// Some tokens of one sequence and all query heads of one key/value head.
  template <class E>
  struct Task {
    const AttentionShape& shape;
    const AttentionSequence<E>& sequence;
    std::int64_t head, token, tokens;

    std::int64_t rows() const { return tokens * group(shape); }
    Visible visible() const {
      const std::int64_t first = sequence.first_position + token;
      return Visible(shape, first, first + tokens - 1);
    }
  };

  /// Memory that the next block will read, fetched a little with every step of this one: a block is too short for the
  /// processor to see the stream by itself. Keys and the first half of the values' bytes with the scores, the other
  /// half with the weighted sum, so that memory is busy all the time.
  struct Ahead {
    const char* keys = nullptr;
    const char* values = nullptr;
    std::int64_t key_bytes = 0, value_bytes = 0;  ///< of a row
    std::int64_t split = 0;                       ///< bytes of a row of values that are fetched with the scores

    /// Into the second-level cache: a block fills the first one.
    static HYMBA_ALWAYS_INLINE void fetch([[maybe_unused]] const char* p) {
#if defined(__GNUC__) || defined(__clang__)
      __builtin_prefetch(p, 0, 2);
#endif
    }
    static HYMBA_ALWAYS_INLINE void fetch(const char* p, std::int64_t first, std::int64_t last) {
      for (std::int64_t line = first; line < last; line += 64) fetch(p + line);
    }
    HYMBA_ALWAYS_INLINE void with_scores(std::int64_t row) const {
      if (keys == nullptr) return;
      for (std::int64_t i = row; i < row + score_keys; ++i) {
        fetch(keys + i * key_bytes, 0, key_bytes);
        fetch(values + i * value_bytes, 0, split);
      }
    }
    HYMBA_ALWAYS_INLINE void with_values(std::int64_t row) const {
      fetch(values + row * value_bytes, split, value_bytes);
    }
  };

  // --- Register tiles ------------------------------------------------------------------------------------------------

  /// Scores of `score_keys` keys against N vectors of rows: one fused multiply-add per element and d, in order.
  template <int N>
  static HYMBA_ALWAYS_INLINE void score_tile(const float* const (&keys)[score_keys], std::int64_t width,
                                             const float* queries, float* scores) {
    V sum[score_keys][N];
    unrolled<score_keys>([&](auto i) { unrolled<N>([&](auto j) { sum[i][j] = simd::zero<A>(); }); });
    for (std::int64_t d = 0; d < width; ++d) {
      V q[N];
      unrolled<N>([&](auto j) { q[j] = simd::load<A>(queries + d * panel + j * L); });
      unrolled<score_keys>([&](auto i) {
        const V k(keys[i][d]);
        unrolled<N>([&](auto j) { sum[i][j] = simd::fma<A>(k, q[j], sum[i][j]); });
      });
    }
    unrolled<score_keys>(
        [&](auto i) { unrolled<N>([&](auto j) { simd::store<A>(scores + i * panel + j * L, sum[i][j]); }); });
  }

  /// `out = out * factor + weights^T values` for R rows and N vectors of columns.
  template <int R, int N, bool Fetch, class E>
  static HYMBA_ALWAYS_INLINE void value_tile(const float* weights, std::int64_t count, const E* values,
                                             std::int64_t value_row, const float* factor, float* out,
                                             std::int64_t out_row, const Ahead& ahead) {
    V sum[R][N];
    unrolled<R>([&](auto i) {
      const V f(factor[i]);
      unrolled<N>([&](auto j) { sum[i][j] = simd::load<A>(out + i * out_row + j * L) * f; });
    });
    for (std::int64_t k = 0; k < count; ++k) {
      if constexpr (Fetch) ahead.with_values(k);
      V v[N];
      unrolled<N>([&](auto j) { v[j] = simd::load<A>(values + k * value_row + j * L); });
      unrolled<R>([&](auto i) {
        const V w(weights[k * panel + i]);
        unrolled<N>([&](auto j) { sum[i][j] = simd::fma<A>(w, v[j], sum[i][j]); });
      });
    }
    unrolled<R>([&](auto i) { unrolled<N>([&](auto j) { simd::store<A>(out + i * out_row + j * L, sum[i][j]); }); });
  }

  // --- One panel of rows against one block of positions --------------------------------------------------------------

  /// weights[k][r] = score of key k and row r, for `vectors` vectors of rows.
  static void scores(const float* keys, std::int64_t count, std::int64_t width, const float* queries,
                     std::int64_t vectors, float* weights, const Ahead& ahead) {
    for (std::int64_t v = 0; v < vectors; v += score_vectors) {
      for (std::int64_t k = 0; k < count; k += score_keys) {
        ahead.with_scores(k);
        const float* rows[score_keys];
        // Keys past the end repeat the last one; nobody reads their scores.
        for (int i = 0; i < score_keys; ++i) rows[i] = keys + std::min(k + i, count - 1) * width;
        const float* const q = queries + v * L;
        float* const to = weights + k * panel + v * L;
        switch (vectors - v) {
          case 1:
            score_tile<1>(rows, width, q, to);
            break;
          case 2:
            score_tile<2>(rows, width, q, to);
            break;
          default:
            score_tile<3>(rows, width, q, to);
            break;
        }
      }
    }
  }

  /// Hides positions [first, first + count), relative to the task's first token, from the rows that do not see them.
  static void mask(const AttentionShape& shape, std::int64_t task_position, std::int64_t first, std::int64_t count,
                   const float* position, std::int64_t vectors, float* weights) {
    const V hidden(-std::numeric_limits<float>::infinity()), window(static_cast<float>(shape.window));
    for (std::int64_t k = 0; k < count; ++k) {
      const V j(static_cast<float>(first + k - task_position));
      const bool always = shape.window == 0 || first + k < shape.pinned;
      for (std::int64_t v = 0; v < vectors; ++v) {
        float* const at = weights + k * panel + v * L;
        const V distance = simd::load<A>(position + v * L) - j;
        V s = xsimd::select(distance >= simd::zero<A>(), simd::load<A>(at), hidden);
        if (!always) s = xsimd::select(distance <= window, s, hidden);
        simd::store<A>(at, s);
      }
    }
  }

  /// Scores to weights 2^(score - largest); updates `largest` and `sum`, and says by what earlier sums shrink.
  static void softmax(std::int64_t count, std::int64_t vectors, float* weights, float* largest, float* sum,
                      float* factor) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      float* const at = weights + v * L;
      const V before = simd::load<A>(largest + v * L);
      V most = before;
      for (std::int64_t k = 0; k < count; ++k) most = simd::max<A>(most, simd::load<A>(at + k * panel));
      V total = simd::zero<A>();
      for (std::int64_t k = 0; k < count; ++k) {
        const V w = simd::exp2_nonpositive<A>(simd::load<A>(at + k * panel) - most);
        simd::store<A>(at + k * panel, w);
        total = total + w;
      }
      const V shrink = simd::exp2_nonpositive<A>(before - most);
      simd::store<A>(largest + v * L, most);
      simd::store<A>(sum + v * L, simd::fma<A>(simd::load<A>(sum + v * L), shrink, total));
      simd::store<A>(factor + v * L, shrink);
    }
  }

  template <int N, bool Fetch, class E>
  static void weighted_sum_columns(const float* weights, std::int64_t count, std::int64_t rows, const E* values,
                                   std::int64_t value_row, const float* factor, float* out, std::int64_t out_row,
                                   const Ahead& ahead) {
    std::int64_t r = 0;
    for (; r + value_rows <= rows; r += value_rows) {
      value_tile<value_rows, N, Fetch>(weights + r, count, values, value_row, factor + r, out + r * out_row, out_row,
                                       ahead);
    }
    with_static<1, 2, 3, 4, 5>(rows - r, [&](auto rest) {
      if constexpr (rest() > 0) {
        value_tile<rest(), N, Fetch>(weights + r, count, values, value_row, factor + r, out + r * out_row, out_row,
                                     ahead);
      }
    });
  }
  /// out = out * factor + weights^T values, for `rows` rows.
  template <class E>
  static void weighted_sum(const float* weights, std::int64_t count, std::int64_t rows, const E* values,
                           std::int64_t value_row, std::int64_t vectors, const float* factor, float* out,
                           std::int64_t out_row, const Ahead& ahead) {
    std::int64_t v = 0;
    if (ahead.split < ahead.value_bytes && vectors >= value_vectors) {
      weighted_sum_columns<value_vectors, true>(weights, count, rows, values, value_row, factor, out, out_row, ahead);
      v += value_vectors;
    }
    for (; v + value_vectors <= vectors; v += value_vectors) {
      weighted_sum_columns<value_vectors, false>(weights, count, rows, values + v * L, value_row, factor, out + v * L,
                                                 out_row, ahead);
    }
    if constexpr (value_vectors > 2) {
      if (v + 2 <= vectors) {
        weighted_sum_columns<2, false>(weights, count, rows, values + v * L, value_row, factor, out + v * L, out_row,
                                       ahead);
        v += 2;
      }
    }
    if (v < vectors) {
      weighted_sum_columns<1, false>(weights, count, rows, values + v * L, value_row, factor, out + v * L, out_row,
                                     ahead);
    }
  }

  // --- Parts of a task -----------------------------------------------------------------------------------------------

  /// Queries transposed and scaled, in units of log2, and the rows' positions.
  template <class E>
  static void prepare(const Task<E>& t, MatrixView<const float> q, const Workspace& w) {
    const std::int64_t width = t.shape.key_width, r = group(t.shape), rows = t.rows();
    const float scale = t.shape.scale * 1.44269504f;
    for (std::int64_t row = 0; row < round_up(rows, L); ++row) {
      float* const to = w.queries + row / panel * panel * width + row % panel;
      if (row < rows) {
        const float* const from = q.row(t.sequence.first_row + t.token + row / r) + (t.head * r + row % r) * width;
        for (std::int64_t d = 0; d < width; ++d) to[d * panel] = from[d] * scale;
      } else {
        for (std::int64_t d = 0; d < width; ++d) to[d * panel] = 0.0f;
      }
      w.position[row] = static_cast<float>(std::min(row, rows - 1) / r);
    }
  }

  /// The segment that holds all of [first, first + count), or null.
  template <class E>
  static const KeyValueSegment<E>* holder(const AttentionSequence<E>& sequence, std::int64_t first,
                                          std::int64_t count) {
    for (int i = 0; i < sequence.segment_count; ++i) {
      const KeyValueSegment<E>& s = sequence.segments[i];
      if (first >= s.first_position && first + count <= s.first_position + s.count) return &s;
    }
    return nullptr;
  }

  /// Copies rows [first, first + count) in position order as floats, `stride` apart, padded with zeros.
  template <class E, class Rows>
  static const float* gather(const AttentionSequence<E>& sequence, std::int64_t first, std::int64_t count,
                             std::int64_t width, std::int64_t stride, Rows&& rows, float* to) {
    std::int64_t covered = 0;
    for (int i = 0; i < sequence.segment_count; ++i) {
      const KeyValueSegment<E>& s = sequence.segments[i];
      const std::int64_t a = std::max(first, s.first_position), c = std::min(first + count, s.first_position + s.count);
      if (a >= c) continue;
      covered += c - a;
      const E* from = rows(s) + (a - s.first_position) * width;
      float* out = to + (a - first) * stride;
      for (std::int64_t j = a; j < c; ++j, from += width, out += stride) {
        std::int64_t d = 0;
        for (; d + L <= width; d += L) simd::store<A>(out + d, simd::load<A>(from + d));
        // The padding of a row of `to` is written too: it is multiplied, though its products are dropped.
        if (d < width) {
          const V rest = simd::load_partial<A>(from + d, width - d);
          simd::store_partial<A>(out + d, rest, std::min(L, stride - d));
        }
      }
    }
    if (covered < count) clear_uncovered(sequence, first, count, stride, to);
    return to;
  }
  /// Positions in no segment are hidden from all rows, yet lie between visible ones: their weight of zero needs a
  /// number to be multiplied with.
  template <class E>
  static void clear_uncovered(const AttentionSequence<E>& sequence, std::int64_t first, std::int64_t count,
                              std::int64_t stride, float* to) {
    for (std::int64_t j = first; j < first + count; ++j) {
      bool held = false;
      for (int i = 0; i < sequence.segment_count; ++i) {
        const std::int64_t at = j - sequence.segments[i].first_position;
        held = held || (at >= 0 && at < sequence.segments[i].count);
      }
      if (!held) std::fill_n(to + (j - first) * stride, stride, 0.0f);
    }
  }

  /// The block behind that at `first`, when one segment holds all of it.
  template <class E>
  static Ahead next_block(const Task<E>& t, std::int64_t first) {
    Ahead ahead;
    for (int i = 0; i < t.sequence.segment_count; ++i) {
      const KeyValueSegment<E>& s = t.sequence.segments[i];
      const std::int64_t row = first + block - s.first_position;
      if (row < 0 || row + block > s.count) continue;
      const E* const keys = s.keys + t.head * s.key_head_stride + row * t.shape.key_width;
      const E* const values = s.values + t.head * s.value_head_stride + row * t.shape.value_width;
      ahead.keys = reinterpret_cast<const char*>(keys);
      ahead.values = reinterpret_cast<const char*>(values);
      ahead.key_bytes = t.shape.key_width * static_cast<std::int64_t>(sizeof(E));
      ahead.value_bytes = t.shape.value_width * static_cast<std::int64_t>(sizeof(E));
      ahead.split = t.rows() <= value_rows ? ahead.value_bytes / 128 * 64 : ahead.value_bytes;
    }
    return ahead;
  }

  /// The sums over what the task's rows see of the span that starts at `start`.
  template <class E>
  static void attend(const Task<E>& t, const Workspace& w, const Visible& visible, std::int64_t start,
                     const Partial& to) {
    const AttentionShape& shape = t.shape;
    const std::int64_t rows = t.rows(), r = group(shape), stride = value_stride(shape);
    const std::int64_t columns = (shape.value_width + L - 1) / L;
    std::fill_n(to.largest, round_up(rows, L), lowest);
    std::fill_n(to.sum, round_up(rows, L), 0.0f);
    std::fill_n(to.values, rows * stride, 0.0f);
    for (std::int64_t b = start; b < start + span && b <= visible.last; b += block) {
      std::int64_t a = b, c = b + block;
      visible.clip(a, c);
      if (a >= c) continue;
      const auto key_rows = [&](const KeyValueSegment<E>& s) { return s.keys + t.head * s.key_head_stride; };
      const auto value_rows_of = [&](const KeyValueSegment<E>& s) { return s.values + t.head * s.value_head_stride; };
      // A few rows read a block once: straight from the cache where it lies in one piece. More rows read it often: from
      // a copy that stays near.
      const KeyValueSegment<E>* const in_place = rows <= value_rows ? holder(t.sequence, a, c - a) : nullptr;
      const float* keys = nullptr;
      if constexpr (std::is_same_v<E, float>) {
        if (in_place != nullptr) keys = key_rows(*in_place) + (a - in_place->first_position) * shape.key_width;
      }
      if (keys == nullptr) {
        keys = gather(t.sequence, a, c - a, shape.key_width, shape.key_width, key_rows, w.keys);
      }
      const E* direct = nullptr;
      const float* values = nullptr;
      if (in_place != nullptr && shape.value_width % L == 0) {
        direct = value_rows_of(*in_place) + (a - in_place->first_position) * shape.value_width;
      } else {
        values = gather(t.sequence, a, c - a, shape.value_width, stride, value_rows_of, w.values);
      }
      Ahead ahead = next_block(t, b);
      for (std::int64_t p = 0; p < rows; p += panel) {
        const std::int64_t here = std::min(panel, rows - p), vectors = (here + L - 1) / L;
        const std::int64_t first = visible.first + p / r, last = visible.first + (p + here - 1) / r;
        const std::int64_t count = std::min(c, last + 1) - a;
        const bool in_window = shape.window == 0 || c - 1 >= first - shape.window || a < shape.pinned;
        if (count <= 0 || !in_window) continue;
        scores(keys, count, shape.key_width, w.queries + p * shape.key_width, vectors, w.weights, ahead);
        const bool all_old = a + count - 1 <= first;
        const bool all_near = shape.window == 0 || a >= last - shape.window || a + count <= shape.pinned;
        if (!all_old || !all_near) mask(shape, visible.first, a, count, w.position + p, vectors, w.weights);
        softmax(count, vectors, w.weights, to.largest + p, to.sum + p, w.factor + p);
        float* const sums = to.values + p * stride;
        if (direct != nullptr) {
          weighted_sum(w.weights, count, here, direct, shape.value_width, columns, w.factor + p, sums, stride, ahead);
        } else {
          weighted_sum(w.weights, count, here, values, stride, columns, w.factor + p, sums, stride, ahead);
        }
        ahead = Ahead{};
      }
    }
  }

  /// Adds `next` to `running`.
  static void merge(std::int64_t rows, std::int64_t stride, const Partial& running, const Partial& next,
                    float* factor) {
    float* const keep = factor;
    float* const add = factor + round_up(rows, L);
    for (std::int64_t v = 0; v < rows; v += L) {
      const V a = load_rows(running.largest, v, rows), b = load_rows(next.largest, v, rows);
      const V most = simd::max<A>(a, b);
      const V shrink_a = simd::exp2_nonpositive<A>(a - most), shrink_b = simd::exp2_nonpositive<A>(b - most);
      const V sum = simd::fma<A>(load_rows(next.sum, v, rows), shrink_b, load_rows(running.sum, v, rows) * shrink_a);
      const std::int64_t here = std::min(L, rows - v);
      simd::store_partial<A>(running.largest + v, most, here);
      simd::store_partial<A>(running.sum + v, sum, here);
      simd::store<A>(keep + v, shrink_a);
      simd::store<A>(add + v, shrink_b);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const V ka(keep[row]), kb(add[row]);
      float* const to = running.values + row * stride;
      const float* const from = next.values + row * stride;
      for (std::int64_t d = 0; d < stride; d += L) {
        simd::store<A>(to + d, simd::fma<A>(simd::load<A>(from + d), kb, simd::load<A>(to + d) * ka));
      }
    }
  }
  static HYMBA_ALWAYS_INLINE V load_rows(const float* p, std::int64_t v, std::int64_t rows) {
    return simd::load_partial<A>(p + v, std::min(L, rows - v));
  }

  /// Divides by the sums and writes the task's rows of the output.
  template <class E>
  static void finish(const Task<E>& t, const Partial& from, MatrixView<float> out) {
    const std::int64_t r = group(t.shape), width = t.shape.value_width, stride = value_stride(t.shape);
    for (std::int64_t row = 0; row < t.rows(); ++row) {
      const V inverse(1.0f / from.sum[row]);
      const float* const values = from.values + row * stride;
      float* const to = out.row(t.sequence.first_row + t.token + row / r) + (t.head * r + row % r) * width;
      std::int64_t d = 0;
      for (; d + L <= width; d += L) simd::store<A>(to + d, simd::load<A>(values + d) * inverse);
      if (d < width) simd::store_partial<A>(to + d, simd::load<A>(values + d) * inverse, width - d);
    }
  }

  /// A whole task, span after span.
  template <class E>
  static void run_task(const Task<E>& t, const Workspace& w, MatrixView<const float> q, MatrixView<float> out) {
    prepare(t, q, w);
    const Visible visible = t.visible();
    attend(t, w, visible, visible.span_start(0), w.running);
    for (std::int64_t i = 1; i < visible.spans(); ++i) {
      attend(t, w, visible, visible.span_start(i), w.next);
      merge(t.rows(), value_stride(t.shape), w.running, w.next, w.factor);
    }
    finish(t, w.running, out);
  }

  // --- Distribution --------------------------------------------------------------------------------------------------

  /// The task with number `index` when every task has up to `tokens` tokens; sequences with `skip_rows` rows have none.
  template <class E>
  static Task<E> task_at(const AttentionShape& shape, std::span<const AttentionSequence<E>> sequences,
                         std::int64_t tokens, std::int64_t skip_rows, std::int64_t index) {
    for (const AttentionSequence<E>& s : sequences) {
      if (s.rows == skip_rows) continue;
      const std::int64_t blocks = (s.rows + tokens - 1) / tokens;
      if (index >= blocks * shape.kv_heads) {
        index -= blocks * shape.kv_heads;
        continue;
      }
      // Early tokens see less than late ones: one from each end in turn gives all parts of the list the same work.
      const std::int64_t i = index % blocks, b = i % 2 == 0 ? i / 2 : blocks - 1 - i / 2;
      return {shape, s, index / blocks, b * tokens, std::min(tokens, s.rows - b * tokens)};
    }
    return {shape, sequences[0], 0, 0, 0};  // not reached: `index` is below the number of tasks
  }

  template <class E, class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  std::span<const AttentionSequence<E>> sequences, MatrixView<float> out) {
    const std::int64_t threads = exec.threads(), r = group(shape), heads = shape.kv_heads;
    // Work: rows times what they see, and how many spans the sequences of one row have together.
    std::int64_t work = 0, single = 0, items = 0, most_rows = 0;
    for (const AttentionSequence<E>& s : sequences) {
      if (s.rows == 0) continue;
      const Visible v(shape, s.first_position, s.first_position + s.rows - 1);
      work += s.rows * (v.last + 1 - v.low + v.pinned) * shape.query_heads * (shape.key_width + shape.value_width);
      most_rows = std::max(most_rows, s.rows);
      if (s.rows == 1) {
        single += heads;
        items += heads * v.spans();
      }
    }
    if (work == 0) return;
    const bool small = work < 8 * task_work;
    const bool split = !small && threads > 1 && items > single && single < 8 * threads;
    const std::int64_t skip_rows = split ? 1 : 0;

    const auto count_tasks = [&](std::int64_t tokens) {
      std::int64_t n = 0;
      for (const AttentionSequence<E>& s : sequences) {
        if (s.rows != skip_rows) n += (s.rows + tokens - 1) / tokens * heads;
      }
      return n;
    };
    std::int64_t tokens = std::min(most_rows, max_tokens(shape));
    while (tokens > 1 && tokens * r > panel && count_tasks(tokens) < 3 * threads) tokens = (tokens + 1) / 2;
    const std::int64_t tasks = count_tasks(tokens);
    const std::int64_t room = round_up(tokens * r, panel);

    const auto run_one = [&](std::int64_t i, int thread) {
      run_task(task_at(shape, sequences, tokens, skip_rows, i), Workspace(shape, room, scratch.of<float>(thread)), q,
               out);
    };
    if (small) {
      exec.parallel_for(1, [&](std::int64_t, int thread) noexcept {
        for (std::int64_t i = 0; i < tasks; ++i) run_one(i, thread);
      });
    } else if (tasks > 0) {
      exec.parallel_for(tasks, [&](std::int64_t i, int thread) noexcept { run_one(i, thread); });
    }
    if (split) run_split(exec, scratch, shape, q, sequences, room, items, out);
  }

  /// Sequences of one row, span by span on all threads, merged by the caller in waves as large as the slots.
  template <class E, class Exec>
  static void run_split(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                        std::span<const AttentionSequence<E>> sequences, std::int64_t room, std::int64_t items,
                        MatrixView<float> out) {
    struct Item {
      Task<E> task;
      std::int64_t span, spans;
    };
    const auto item_at = [&](std::int64_t index) -> Item {
      for (const AttentionSequence<E>& s : sequences) {
        if (s.rows != 1) continue;
        const std::int64_t spans = Visible(shape, s.first_position, s.first_position).spans();
        if (index < spans * shape.kv_heads) return {{shape, s, index / spans, 0, 1}, index % spans, spans};
        index -= spans * shape.kv_heads;
      }
      return {{shape, sequences[0], 0, 0, 0}, 0, 0};  // not reached: `index` is below `items`
    };
    const std::int64_t r = group(shape), stride = value_stride(shape);
    const auto slot = [&](std::int64_t i) {
      const Workspace w(shape, room, scratch.of<float>(static_cast<int>(i / slots)));
      return Workspace::partial(w.slot + i % slots * Workspace::partial_floats(r, stride), r);
    };
    const Workspace mine(shape, room, scratch.of<float>(0));
    const std::int64_t wave = slots * exec.threads();
    for (std::int64_t base = 0; base < items; base += wave) {
      const std::int64_t count = std::min(wave, items - base);
      exec.parallel_for(count, [&](std::int64_t i, int thread) noexcept {
        const Item item = item_at(base + i);
        const Workspace w(shape, room, scratch.of<float>(thread));
        prepare(item.task, q, w);
        const Visible visible = item.task.visible();
        attend(item.task, w, visible, visible.span_start(item.span), w.next);
        copy(w.next, r, stride, slot(i));
      });
      for (std::int64_t i = 0; i < count; ++i) {
        const Item item = item_at(base + i);
        if (item.span == 0) {
          copy(slot(i), r, stride, mine.running);
        } else {
          merge(r, stride, mine.running, slot(i), mine.factor);
        }
        if (item.span + 1 == item.spans) finish(item.task, mine.running, out);
      }
    }
  }
  static void copy(const Partial& from, std::int64_t rows, std::int64_t stride, const Partial& to) {
    std::copy_n(from.largest, rows, to.largest);
    std::copy_n(from.sum, rows, to.sum);
    std::copy_n(from.values, rows * stride, to.values);
  }
};

}  // namespace detail

template <class A>
struct kernel_for<op::Attention, arch::simd<A>> {
  static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t max_rows) {
    return detail::AttentionSimd<A>::scratch_bytes(shape, max_rows);
  }

  template <class E, class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  std::span<const AttentionSequence<E>> sequences, MatrixView<float> out) {
    detail::AttentionSimd<A>::template run<E>(exec, scratch, shape, q, sequences, out);
  }
};

HYMBA_NAMESPACE_END
