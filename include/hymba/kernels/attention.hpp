// SPDX-License-Identifier: Apache-2.0
//
// Attention over cached keys and values: prefill and decode, global and window layers, grouped queries.
#pragma once

#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/attention_engine.hpp>
#include <hymba/kernels/attention_shape.hpp>
#include <hymba/kernels/exact_attention.hpp>
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

namespace op {
/// `out = softmax(scale * q k^T + mask) v`, head by head; q [T, H * dk] already rotated, out [T, H * dv]. E is the type
/// of keys and values: float, f16, bf16, or signed bytes with a scale for each row. Softmax and sums are in float.
///
///     template <class E, Executor Exec>
///     static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
///                     std::span<const AttentionSequence<E>> sequences, MatrixView<float> out);
///     static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t max_rows);
///
/// q and out do not overlap. Keys and values inside the segments are finite, scales too: a position hidden from a row
/// has weight zero, but may be multiplied. Blocks of positions that no row sees are not read: a window costs what it
/// holds.
/// `scratch_bytes` is per thread and grows with max_rows.
///
/// Signed bytes are multiplied as they are: a key's scale multiplies its scores, a value's its weights in the sum above
/// the line.
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
            use(score * s.template key_scale<Real>(g, j) * static_cast<Real>(shape.scale),
                s.values + g * s.value_head_stride + j * dv, s.template value_scale<Real>(g, j));
          }
        }
      };
      Real largest = -std::numeric_limits<Real>::infinity(), sum = 0;
      for_visible([&](Real score, const E*, Real) { largest = std::max(largest, score); });
      for (std::int64_t d = 0; d < dv; ++d) to[d] = Out(0);
      for_visible([&](Real score, const E* value, Real value_scale) {
        const Real weight = std::exp(score - largest), scaled = weight * value_scale;
        sum += weight;
        for (std::int64_t d = 0; d < dv; ++d) {
          to[d] = static_cast<Out>(static_cast<Real>(to[d]) + scaled * hymba::detail::number<Real>(value[d]));
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

/// Multiply-adds of floats in the vectors of xsimd architecture `Arch`. AttentionInVectors works on any such unit:
///
///   A                       the xsimd architecture of scores, softmax and sums
///   Number, step            what is multiplied, and how many of them a lane takes at once: neighbours in the rows of
///                           queries and keys, neighbouring positions of weights and values
///   Operand                 a register of `step` numbers in every lane
///   Sums, no_sums()         a register of sums of products, of nothing
///   exact                   whether these are integers: the order of sums does not matter then. Queries and weights are
///                           rounded to integers with a scale for each row
///   floats(s)               sums as vectors of floats
///   load, store             such a register; floats may load any type that rows have
///   same(p)                 the `step` numbers at p, in every lane
///   pinned(v)               as simd::pinned
///   multiply_add(a, b, s)   s and the products of a and b
///   row(p, n)               as many numbers of a row as a register has, of any type; zeros from the n-th on
///   columns(rows, d, n)     columns [d, d + lanes) of `step` rows, each lane those of one column; likewise
///   together(v)             the operand of `step` vectors of floats, rounded
///
/// and where it is exact
///
///   largest(width)          the largest integers that so many products with numbers of a row leave room for
///   rounded(p, n, by)       as row(p, n) of floats, times `by` to the nearest integers
///   integers(v)             a vector of floats to the nearest integers, as Sums; add(s, t) and total(s), of all lanes
template <class Arch>
struct AttentionFloats {
  using A = Arch;
  using Number = float;
  using Operand = simd::floats<A>;
  using Sums = simd::floats<A>;
  static constexpr int step = 1;
  static constexpr bool exact = false;
  static HYMBA_ALWAYS_INLINE Sums no_sums() { return simd::zero<A>(); }
  static HYMBA_ALWAYS_INLINE Sums floats(const Sums& sums) { return sums; }

  template <class T>
  static HYMBA_ALWAYS_INLINE Operand load(const T* from) {
    return simd::load<A>(from);
  }
  static HYMBA_ALWAYS_INLINE void store(float* to, const Operand& v) { simd::store<A>(to, v); }
  static HYMBA_ALWAYS_INLINE Operand same(const float* from) { return Operand(*from); }
  static HYMBA_ALWAYS_INLINE Operand pinned(const Operand& v) { return simd::pinned<A>(v); }
  static HYMBA_ALWAYS_INLINE Operand multiply_add(const Operand& a, const Operand& b, const Operand& sums) {
    return simd::fma<A>(a, b, sums);
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Operand row(const T* from, std::int64_t count) {
    return count >= simd::lanes<A> ? load(from) : simd::load_partial<A>(from, count);
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Operand columns(const T* const* rows, std::int64_t d, std::int64_t count) {
    return row(rows[0] + d, count);
  }
  static HYMBA_ALWAYS_INLINE Operand together(const Operand (&v)[1]) { return v[0]; }
};

/// The sums of a span in vector registers, by `Unit`.
///
/// Lanes run over rows for scores and softmax, over the value's columns for the weighted sum. With the queries
/// transposed once per task, both products broadcast their left operand from rows as they lie in the cache, nothing
/// else is transposed, and largest scores and sums need no operation across lanes. A span is cut in blocks, at
/// multiples of their size.
template <class Unit>
struct AttentionInVectors {
  using A = typename Unit::A;
  using Number = typename Unit::Number;
  using Operand = typename Unit::Operand;
  using Sums = typename Unit::Sums;
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  static constexpr bool wide = simd::registers<A> >= 32;

  static constexpr int step = Unit::step;
  static constexpr std::int64_t block = 64;  ///< positions per block
  static constexpr std::int64_t panel = 48;  ///< rows whose scores are held at a time
  static constexpr std::int64_t task_rows = 4 * panel;
  // Register tiles. Scores: keys x vectors of rows. Weighted sum: rows x vectors of value columns.
  static constexpr int score_keys = wide ? 8 : 4, score_vectors = 3;
  static constexpr int value_rows = 6, value_vectors = wide ? 4 : 2;
  static_assert(panel % (L * score_vectors) == 0 && panel % value_rows == 0 && attention_span % block == 0);
  static_assert(block % step == 0);
  using Exact = ExactAttention<Unit, block, panel>;

  static constexpr std::int64_t depth(const AttentionShape& s) { return round_up(s.key_width, step); }
  static constexpr std::int64_t key_stride(const AttentionShape& s) { return round_up(s.key_width, L * step); }

  struct Workspace {
    Number* queries;      ///< [panels][depth / step][panel][step]
    float* weights;       ///< [block][panel] scores, then weights: Number [block / step][panel][step]
    Number* keys;         ///< [block][key stride], when they cannot be used in place
    Number* values;       ///< [block / step][value stride][step], the same
    std::byte* zeros;     ///< a row of them, in any format
    float* key_scales;    ///< [block] where rows have scales, of a span where sums are exact
    float* value_scales;  ///< the same
    float* position;      ///< [rows] relative to the task's first
    float* factor;        ///< [rows]
    float* query_scales;  ///< [rows] where sums are exact
    float* weight_scales; ///< [rows], the same
    float* scores;        ///< the same: of one token, [value_rows][span], and a block's weights, Number [value_rows][block]

    constexpr Workspace(const AttentionShape& s, std::int64_t rows, AttentionMemory& memory)
        : queries(memory.take<Number>(rows * depth(s))),
          weights(memory.take<float>(block * panel)),
          keys(memory.take<Number>(block * key_stride(s))),
          values(memory.take<Number>(block * attention_value_stride(s))),
          zeros(memory.take<std::byte>(zero_bytes(s))),
          key_scales(memory.take<float>(Unit::exact ? attention_span : block)),
          value_scales(memory.take<float>(Unit::exact ? attention_span : block)),
          position(memory.take<float>(rows)),
          factor(memory.take<float>(rows)),
          query_scales(memory.take<float>(Unit::exact ? rows : 0)),
          weight_scales(memory.take<float>(Unit::exact ? rows : 0)),
          scores(memory.take<float>(Unit::exact ? value_rows * (attention_span + block) : 0)) {}
    static constexpr std::int64_t zero_bytes(const AttentionShape& s) {
      return std::max(s.key_width, s.value_width) * static_cast<std::int64_t>(sizeof(float));
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
    static HYMBA_ALWAYS_INLINE void fetch(const char* p, std::int64_t first, std::int64_t last) {
      for (std::int64_t line = first; line < last; line += 64) simd::prefetch<2>(p + line);
    }
    HYMBA_ALWAYS_INLINE void with_scores(std::int64_t row) const {
      if (keys == nullptr) return;
      for (std::int64_t i = row; i < row + score_keys; ++i) {
        fetch(keys + i * key_bytes, 0, key_bytes);
        fetch(values + i * value_bytes, 0, split);
      }
    }
    bool with_first_columns() const { return split < value_bytes; }
    HYMBA_ALWAYS_INLINE void with_values(std::int64_t row) const {
      fetch(values + row * value_bytes, split, value_bytes);
    }
  };

  // --- Register tiles ------------------------------------------------------------------------------------------------

  /// Scores of `score_keys` keys against N vectors of rows: one multiply-add per element and step of d, in order, then
  /// the scale, those of the keys where they are Scaled, and those of the rows where they have some.
  template <int N, bool Scaled>
  static HYMBA_ALWAYS_INLINE void score_tile(const Number* const (&keys)[score_keys], float scale,
                                             [[maybe_unused]] const float* scales, std::int64_t width,
                                             const Number* queries, [[maybe_unused]] const float* query_scales,
                                             float* scores) {
    Sums sum[score_keys][N];
    unrolled<score_keys>([&](auto i) { unrolled<N>([&](auto j) { sum[i][j] = Unit::no_sums(); }); });
    for (std::int64_t d = 0; d < width; d += step) {
      Operand q[N];
      unrolled<N>([&](auto j) { q[j] = Unit::pinned(Unit::load(queries + d * panel + j * L * step)); });
      unrolled<score_keys>([&](auto i) {
        const Operand k = Unit::same(keys[i] + d);
        unrolled<N>([&](auto j) { sum[i][j] = Unit::multiply_add(k, q[j], sum[i][j]); });
      });
    }
    unrolled<score_keys>([&](auto i) {
      const V by(Scaled ? scale * scales[i] : scale);
      unrolled<N>([&](auto j) {
        V score = Unit::floats(sum[i][j]) * by;
        if constexpr (Unit::exact) score = score * simd::load<A>(query_scales + j * L);
        simd::store<A>(scores + i * panel + j * L, score);
      });
    });
  }

  /// Values by position and column: copied as operands, or as they lie.
  template <class E>
  struct Copied {
    const E* from;
    std::int64_t stride;
    HYMBA_ALWAYS_INLINE Operand operator()(std::int64_t position, std::int64_t column) const {
      return Unit::load(from + position * stride + column * step);
    }
  };
  template <class E>
  struct Lying {
    const E* const* rows;
    HYMBA_ALWAYS_INLINE Operand operator()(std::int64_t position, std::int64_t column) const {
      return Unit::columns(rows + position, column, L);
    }
  };
  /// Weights of some rows: number `step` of position k and row r at from + k * position + r * row; and their scales,
  /// where sums are exact.
  struct Weights {
    const Number* from;
    std::int64_t position, row;
    const float* scales;
    Weights rows_from(std::int64_t r) const { return {from + r * row, position, row, scales + r}; }
  };

  /// `out = out * factor + weights^T values` for R rows and N vectors of columns from `column`.
  template <int R, int N, bool Fetch, class Values, class Fetched>
  static HYMBA_ALWAYS_INLINE void value_tile(const Weights& weights, std::int64_t count, const Values& values,
                                             std::int64_t column, const float* factor, float* out,
                                             std::int64_t out_row, const Fetched& ahead) {
    Sums sum[R][N];
    unrolled<R>([&](auto i) {
      [[maybe_unused]] const V f(factor[i]);
      unrolled<N>([&](auto j) {
        if constexpr (Unit::exact) {
          sum[i][j] = Unit::no_sums();
        } else {
          sum[i][j] = simd::load<A>(out + i * out_row + column + j * L) * f;
        }
      });
    });
    for (std::int64_t k = 0; k < count; k += step) {
      if constexpr (Fetch) unrolled<step>([&](auto i) { ahead.with_values(k + i); });
      Operand v[N];
      unrolled<N>([&](auto j) { v[j] = Unit::pinned(values(k, column + j * L)); });
      unrolled<R>([&](auto i) {
        const Operand w = Unit::same(weights.from + k * weights.position + i * weights.row);
        unrolled<N>([&](auto j) { sum[i][j] = Unit::multiply_add(w, v[j], sum[i][j]); });
      });
    }
    unrolled<R>([&](auto i) {
      unrolled<N>([&](auto j) {
        float* const to = out + i * out_row + column + j * L;
        if constexpr (Unit::exact) {
          simd::store<A>(to, simd::fma<A>(Unit::floats(sum[i][j]), V(weights.scales[i]),
                                          simd::load<A>(to) * V(factor[i])));
        } else {
          simd::store<A>(to, sum[i][j]);
        }
      });
    });
  }

  // --- One panel of rows against one block of positions --------------------------------------------------------------

  /// weights[k][r] = score of key k and row r, for `vectors` vectors of rows.
  template <bool Scaled>
  static void scores(const Number* keys, std::int64_t stride, float scale, const float* scales, std::int64_t count,
                     std::int64_t width, const Number* queries, const float* query_scales, std::int64_t vectors,
                     float* weights, const Ahead& ahead) {
    for (std::int64_t v = 0; v < vectors; v += score_vectors) {
      for (std::int64_t k = 0; k < count; k += score_keys) {
        ahead.with_scores(k);
        const Number* rows[score_keys];
        // Keys past the end repeat the last one; nobody reads their scores.
        for (int i = 0; i < score_keys; ++i) rows[i] = keys + std::min(k + i, count - 1) * stride;
        const Number* const q = queries + v * L * step;
        float* const to = weights + k * panel + v * L;
        switch (vectors - v) {
          case 1:
            score_tile<1, Scaled>(rows, scale, scales + k, width, q, query_scales + v * L, to);
            break;
          case 2:
            score_tile<2, Scaled>(rows, scale, scales + k, width, q, query_scales + v * L, to);
            break;
          default:
            score_tile<3, Scaled>(rows, scale, scales + k, width, q, query_scales + v * L, to);
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

  /// Scores to weights 2^(score - largest), where they were; updates `largest` and `sum`, and says by what earlier sums
  /// shrink. Weights are stored times the `scales` of the values that they will multiply where these are Scaled.
  template <bool Scaled>
  static void softmax(std::int64_t count, std::int64_t vectors, [[maybe_unused]] const float* scales, float* weights,
                      float* largest, float* sum, float* factor) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      float* const at = weights + v * L;
      const V before = simd::load<A>(largest + v * L);
      V most = before;
      for (std::int64_t k = 0; k < count; ++k) most = simd::max<A>(most, simd::load<A>(at + k * panel));
      V total = simd::zero<A>();
      // What `step` scores become is as long as one of them, and takes the place of one that has been read.
      Number* const to = reinterpret_cast<Number*>(weights) + v * L * step;
      for (std::int64_t k = 0; k < count; k += step) {
        V w[step];
        unrolled<step>([&](auto i) {
          w[i] = simd::exp2_nonpositive<A>(simd::load<A>(at + (k + i) * panel) - most);
          total = total + w[i];
          if constexpr (Scaled) w[i] = w[i] * V(scales[k + i]);
        });
        Unit::store(to + k * panel, Unit::together(w));
      }
      const V shrink = simd::exp2_nonpositive<A>(before - most);
      simd::store<A>(largest + v * L, most);
      simd::store<A>(sum + v * L, simd::fma<A>(simd::load<A>(sum + v * L), shrink, total));
      simd::store<A>(factor + v * L, shrink);
    }
  }

  template <int N, bool Fetch, class Values, class Fetched>
  static void weighted_sum_columns(const Weights& weights, std::int64_t count, std::int64_t rows, const Values& values,
                                   std::int64_t column, const float* factor, float* out, std::int64_t out_row,
                                   const Fetched& ahead) {
    std::int64_t r = 0;
    for (; r + value_rows <= rows; r += value_rows) {
      value_tile<value_rows, N, Fetch>(weights.rows_from(r), count, values, column, factor + r, out + r * out_row,
                                       out_row, ahead);
    }
    with_static<1, 2, 3, 4, 5>(rows - r, [&](auto rest) {
      if constexpr (rest() > 0) {
        value_tile<rest(), N, Fetch>(weights.rows_from(r), count, values, column, factor + r, out + r * out_row,
                                     out_row, ahead);
      }
    });
  }
  /// out = out * factor + weights^T values, for `rows` rows.
  template <class Values, class Fetched>
  static void weighted_sum(const Weights& weights, std::int64_t count, std::int64_t rows, const Values& values,
                           std::int64_t vectors, const float* factor, float* out, std::int64_t out_row,
                           const Fetched& ahead) {
    std::int64_t v = 0;
    if (ahead.with_first_columns() && vectors >= value_vectors) {
      weighted_sum_columns<value_vectors, true>(weights, count, rows, values, 0, factor, out, out_row, ahead);
      v += value_vectors;
    }
    for (; v + value_vectors <= vectors; v += value_vectors) {
      weighted_sum_columns<value_vectors, false>(weights, count, rows, values, v * L, factor, out, out_row, ahead);
    }
    if constexpr (value_vectors > 2) {
      if (v + 2 <= vectors) {
        weighted_sum_columns<2, false>(weights, count, rows, values, v * L, factor, out, out_row, ahead);
        v += 2;
      }
    }
    if (v < vectors) {
      weighted_sum_columns<1, false>(weights, count, rows, values, v * L, factor, out, out_row, ahead);
    }
  }

  /// What is visible of the block of positions at `b`, in whole steps at multiples of their size: sums do not depend on
  /// where a task begins to see.
  struct BlockOfPositions {
    std::int64_t first = 0, count = 0;  ///< count <= 0: nothing
    BlockOfPositions() = default;
    BlockOfPositions(const AttentionVisible& visible, std::int64_t b) {
      std::int64_t a = b, c = b + block;
      visible.clip(a, c);
      if (a >= c) return;
      first = a / step * step;
      count = round_up(c, step) - first;
    }
  };

  // --- One token, where sums are exact -------------------------------------------------------------------------------
  //
  // Its few rows would leave most lanes empty. As sums come out the same in any order, here lanes run along the keys'
  // columns, for weights along positions, and keys and values are used as they lie in the cache.

  /// Whether a task is one token of few rows, and all columns whole registers.
  template <class E>
  static bool one_token(const AttentionTask<E>& t) {
    return Unit::exact && t.tokens == 1 && t.rows() <= value_rows && t.shape.key_width % (L * step) == 0 &&
           t.shape.value_width % L == 0;
  }

  /// What follows values, fetched with the first columns of them.
  template <class E>
  struct ValuesAhead {
    const E* const* rows;
    std::int64_t width;
    static constexpr bool with_first_columns() { return true; }
    HYMBA_ALWAYS_INLINE void with_values(std::int64_t k) const { Exact::fetch_ahead(rows[k], width); }
  };

  /// attend() for a task that is one_token. All keys of the span, then all its values: memory that is read from end to
  /// end, where a block's keys and values in turn would be pages that the processor does not expect.
  template <class E>
  static void attend_of_one(const AttentionTask<E>& t, const Workspace& w, const AttentionVisible& visible,
                            std::int64_t start, const AttentionPartial& to) {
    const AttentionShape& shape = t.shape;
    const float scale = shape.scale * log2_e;
    constexpr bool scaled = scaled_rows<E>;
    constexpr std::int64_t most_blocks = attention_span / block;
    const std::int64_t rows = t.rows();
    Number* const weights = reinterpret_cast<Number*>(w.scores + value_rows * attention_span);
    const E* at[block];
    BlockOfPositions blocks[most_blocks];
    std::int64_t n = 0;
    for (std::int64_t b = start; b < start + attention_span && b <= visible.last; b += block) {
      const BlockOfPositions here(visible, b);
      if (here.count <= 0) continue;
      blocks[n] = here;
      find_rows(t.sequence, here.first, here.count, [&](const auto& s, std::int64_t j) { return t.keys(s, j); }, w, at);
      gather_scales(t, here.first, here.count, w.key_scales + n * block, w.value_scales + n * block);
      with_static<1, 2, 3, 4, 5>(rows, [&](auto r) {
        constexpr int R = r() > 0 ? r() : value_rows;
        Exact::template scores_of_one<R, scaled>(at, scale, w.key_scales + n * block, here.count, shape.key_width,
                                                 w.queries, w.query_scales, w.scores + n * block, attention_span);
      });
      ++n;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t a = blocks[i].first, count = blocks[i].count;
      // Positions at either end that only fill a step are hidden, as are those between what is pinned and the window.
      const bool some_hidden = a + count - 1 > visible.first || (a < visible.low && a + count > shape.pinned);
      for (std::int64_t r = 0; r < rows; ++r) {
        float* const scores = w.scores + r * attention_span + i * block;
        for (std::int64_t k = 0; some_hidden && k < count; ++k) {
          if (!shape.sees(visible.first, a + k)) scores[k] = -std::numeric_limits<float>::infinity();
        }
        Exact::template softmax_of_one<scaled>(count, w.value_scales + i * block, scores, to.largest[r], to.sum[r],
                                               w.factor[r], w.weight_scales[r], weights + r * block);
      }
      find_rows(t.sequence, a, count, [&](const auto& s, std::int64_t j) { return t.values(s, j); }, w, at);
      weighted_sum(Weights{weights, 1, block, w.weight_scales}, count, rows, Lying<E>{at}, shape.value_width / L,
                   w.factor, to.values, attention_value_stride(shape), ValuesAhead<E>{at, shape.value_width});
    }
  }

  // --- Parts of a task -----------------------------------------------------------------------------------------------

  static constexpr float log2_e = 1.44269504f;

  /// Queries, transposed unless they are of one_token, the rows' positions, and the row of zeros.
  template <class E>
  static void prepare(const AttentionTask<E>& t, MatrixView<const float> q, const Workspace& w) {
    const std::int64_t width = t.shape.key_width, r = attention_group(t.shape), rows = t.rows();
    const bool one = one_token(t);
    for (std::int64_t row = 0; row < round_up(rows, L); ++row) {
      Number* const to = w.queries + row / panel * panel * depth(t.shape) + row % panel * step;
      const float* const from =
          row < rows ? q.row(t.sequence.first_row + t.token + row / r) + (t.head * r + row % r) * width : nullptr;
      [[maybe_unused]] V by(0.0f);
      if constexpr (Unit::exact) {
        float most = 0, lost = 0;
        for (std::int64_t d = 0; from != nullptr && d < width; ++d) {
          most = std::max(most, std::fabs(from[d]));
          lost += from[d] * 0.0f;  // not a number once one was not finite
        }
        const float integers = Unit::largest(width);
        by = V(most > 0x1p-112f ? integers / most : 0.0f);
        w.query_scales[row] = most / integers + lost;
      }
      for (std::int64_t d = 0; d < width; d += L * step) {
        alignas(64) Number some[L * step] = {};
        if (from != nullptr) {
          if constexpr (Unit::exact) {
            Unit::store(some, Unit::rounded(from + d, width - d, by));
          } else {
            Unit::store(some, Unit::row(from + d, width - d));
          }
        }
        if (one) {
          if (row < rows) std::copy_n(some, L * step, w.queries + row * width + d);
          continue;
        }
        const std::int64_t end = std::min(L * step, depth(t.shape) - d);
        for (std::int64_t i = 0; i < end; i += step) std::copy_n(some + i, step, to + (d + i) * panel);
      }
      w.position[row] = static_cast<float>(std::min(row, rows - 1) / r);
    }
    std::fill_n(w.zeros, Workspace::zero_bytes(t.shape), std::byte{0});
  }

  /// Where the rows of positions [first, first + count) lie. Positions in no segment are hidden from all rows, yet lie
  /// between visible ones or in one step with them: their weight of zero needs a number to be multiplied with, and they
  /// get the row of zeros.
  template <class E, class Rows>
  static void find_rows(const AttentionSequence<E>& sequence, std::int64_t first, std::int64_t count, Rows&& rows,
                        const Workspace& w, const E* (&at)[block]) {
    if (const KeyValueSegment<E>* const all = sequence.holder(first, count); all != nullptr) {
      for (std::int64_t j = 0; j < count; ++j) at[j] = rows(*all, first + j);
      return;
    }
    std::fill_n(at, count, reinterpret_cast<const E*>(w.zeros));
    for (int i = 0; i < sequence.segment_count; ++i) {
      const KeyValueSegment<E>& s = sequence.segments[i];
      const std::int64_t a = std::max(first, s.first_position);
      const std::int64_t c = std::min(first + count, s.first_position + s.count);
      for (std::int64_t j = a; j < c; ++j) at[j - first] = rows(s, j);
    }
  }
  template <class E>
  static void copy_keys(const E* const* rows, std::int64_t count, const AttentionShape& shape, Number* to) {
    const std::int64_t width = shape.key_width, stride = key_stride(shape);
    for (std::int64_t k = 0; k < count; ++k, to += stride) {
      for (std::int64_t d = 0; d < width; d += L * step) Unit::store(to + d, Unit::row(rows[k] + d, width - d));
    }
  }
  template <class E>
  static void copy_values(const E* const* rows, std::int64_t count, const AttentionShape& shape, Number* to) {
    const std::int64_t width = shape.value_width, stride = attention_value_stride(shape) * step;
    for (std::int64_t k = 0; k < count; k += step, to += stride) {
      for (std::int64_t d = 0; d < width; d += L) {
        Unit::store(to + d * step, Unit::columns(rows + k, d, width - d));
      }
    }
  }

  /// The scales of positions [first, first + count) as floats; zeros for those in no segment, as for their numbers.
  template <class E>
  static void gather_scales([[maybe_unused]] const AttentionTask<E>& t, [[maybe_unused]] std::int64_t first,
                            [[maybe_unused]] std::int64_t count, [[maybe_unused]] float* keys,
                            [[maybe_unused]] float* values) {
    if constexpr (scaled_rows<E>) {
      std::fill_n(keys, block, 0.0f);
      std::fill_n(values, block, 0.0f);
      for (int i = 0; i < t.sequence.segment_count; ++i) {
        const KeyValueSegment<E>& s = t.sequence.segments[i];
        const std::int64_t a = std::max(first, s.first_position);
        const std::int64_t c = std::min(first + count, s.first_position + s.count);
        if (a >= c) continue;
        widen(t.key_scales(s, a), c - a, keys + (a - first));
        widen(t.value_scales(s, a), c - a, values + (a - first));
      }
    }
  }
  static void widen(const RowScale* from, std::int64_t count, float* to) {
    std::int64_t i = 0;
    for (; i + L <= count; i += L) simd::store<A>(to + i, simd::load<A>(from + i));
    if (i < count) simd::store_partial<A>(to + i, simd::load_partial<A>(from + i, count - i), count - i);
  }

  /// The block behind that at `first`, when one segment holds all of it. Half of what values are used where they lie
  /// is fetched while they are.
  template <class E>
  static Ahead next_block(const AttentionTask<E>& t, std::int64_t first, bool in_place) {
    Ahead ahead;
    for (int i = 0; i < t.sequence.segment_count; ++i) {
      const KeyValueSegment<E>& s = t.sequence.segments[i];
      const std::int64_t row = first + block - s.first_position;
      if (row < 0 || row + block > s.count) continue;
      ahead.keys = reinterpret_cast<const char*>(t.keys(s, first + block));
      ahead.values = reinterpret_cast<const char*>(t.values(s, first + block));
      ahead.key_bytes = t.shape.key_width * static_cast<std::int64_t>(sizeof(E));
      ahead.value_bytes = t.shape.value_width * static_cast<std::int64_t>(sizeof(E));
      ahead.split = in_place ? ahead.value_bytes / 128 * 64 : ahead.value_bytes;
    }
    return ahead;
  }

  /// The sums over what the task's rows see of the span that starts at `start`.
  template <class E>
  static void attend(const AttentionTask<E>& t, const Workspace& w, const AttentionVisible& visible, std::int64_t start,
                     const AttentionPartial& to) {
    const AttentionShape& shape = t.shape;
    const std::int64_t rows = t.rows(), r = attention_group(shape), value_stride = attention_value_stride(shape);
    const float scale = shape.scale * log2_e;  // scores in units of log2
    const std::int64_t columns = (shape.value_width + L - 1) / L;
    std::fill_n(to.largest, round_up(rows, L), attention_lowest);
    std::fill_n(to.sum, round_up(rows, L), 0.0f);
    std::fill_n(to.values, rows * value_stride, 0.0f);
    if constexpr (Unit::exact) {
      if (one_token(t)) return attend_of_one(t, w, visible, start, to);
    }
    for (std::int64_t b = start; b < start + attention_span && b <= visible.last; b += block) {
      const BlockOfPositions seen(visible, b);
      if (seen.count <= 0) continue;
      const std::int64_t a = seen.first, c = a + seen.count;
      // A few rows read a block once: straight from the cache where it lies in one piece, and as it is multiplied. More
      // rows read it often: from a copy that stays near.
      const KeyValueSegment<E>* const in_place = rows <= value_rows ? t.sequence.holder(a, c - a) : nullptr;
      const E* at[block];
      const Number* keys = nullptr;
      std::int64_t stride = key_stride(shape);
      if constexpr (std::is_same_v<E, Number>) {
        if (in_place != nullptr && shape.key_width % step == 0) {
          keys = t.keys(*in_place, a);
          stride = shape.key_width;
        }
      }
      if (keys == nullptr) {
        find_rows(t.sequence, a, c - a, [&](const auto& s, std::int64_t j) { return t.keys(s, j); }, w, at);
        copy_keys(at, c - a, shape, w.keys);
        keys = w.keys;
      }
      const E* direct = nullptr;
      if (step == 1 && in_place != nullptr && shape.value_width % L == 0) {
        direct = t.values(*in_place, a);
      } else {
        find_rows(t.sequence, a, c - a, [&](const auto& s, std::int64_t j) { return t.values(s, j); }, w, at);
        copy_values(at, c - a, shape, w.values);
      }
      gather_scales(t, a, c - a, w.key_scales, w.value_scales);
      Ahead ahead = next_block(t, b, direct != nullptr);
      for (std::int64_t p = 0; p < rows; p += panel) {
        const std::int64_t here = std::min(panel, rows - p), vectors = (here + L - 1) / L;
        const std::int64_t first = visible.first + p / r, last = visible.first + (p + here - 1) / r;
        const std::int64_t count = std::min(c, round_up(last + 1, step)) - a;
        const bool in_window = shape.window == 0 || c - 1 >= first - shape.window || a < shape.pinned;
        if (count <= 0 || !in_window) continue;
        scores<scaled_rows<E>>(keys, stride, scale, w.key_scales, count, shape.key_width,
                               w.queries + p * depth(shape), w.query_scales + p, vectors, w.weights, ahead);
        const bool all_old = a + count - 1 <= first;
        const bool all_near = shape.window == 0 || a >= last - shape.window || a + count <= shape.pinned;
        if (!all_old || !all_near) mask(shape, visible.first, a, count, w.position + p, vectors, w.weights);
        if constexpr (Unit::exact) {
          Exact::template softmax<scaled_rows<E>>(count, vectors, w.value_scales, w.weights, to.largest + p, to.sum + p,
                                                  w.factor + p, w.weight_scales + p);
        } else {
          softmax<scaled_rows<E>>(count, vectors, w.value_scales, w.weights, to.largest + p, to.sum + p, w.factor + p);
        }
        float* const sums = to.values + p * value_stride;
        const Weights weights{reinterpret_cast<const Number*>(w.weights), panel, step, w.weight_scales + p};
        if constexpr (step == 1) {
          if (direct != nullptr) {
            weighted_sum(weights, count, here, Copied<E>{direct, shape.value_width}, columns, w.factor + p, sums,
                         value_stride, ahead);
          }
        }
        if (direct == nullptr) {
          weighted_sum(weights, count, here, Copied<Number>{w.values, value_stride}, columns, w.factor + p, sums,
                       value_stride, ahead);
        }
        ahead = Ahead{};
      }
    }
  }
};

}  // namespace detail

template <class A>
struct kernel_for<op::Attention, arch::simd<A>> {
  using Impl = detail::AttentionEngine<A, detail::AttentionInVectors<detail::AttentionFloats<A>>>;

  static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t max_rows) {
    return Impl::scratch_bytes(shape, max_rows);
  }

  template <class E, class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  std::span<const AttentionSequence<E>> sequences, MatrixView<float> out) {
    Impl::template run<E>(exec, scratch, shape, q, sequences, out);
  }
};

namespace detail {
/// op::Attention over int8 caches by the engine `OverInt8`, over bf16 ones by `OverBf16`; over others that of `Base`.
template <class OverInt8, class OverBf16, class Base>
struct AttentionByCache {
  static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t max_rows) {
    return std::max({OverInt8::scratch_bytes(shape, max_rows), OverBf16::scratch_bytes(shape, max_rows),
                     kernel_for<op::Attention, Base>::scratch_bytes(shape, max_rows)});
  }

  template <class E, class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  std::span<const AttentionSequence<E>> sequences, MatrixView<float> out) {
    if constexpr (scaled_rows<E>) {
      OverInt8::template run<E>(exec, scratch, shape, q, sequences, out);
    } else if constexpr (std::is_same_v<E, bf16>) {
      OverBf16::template run<E>(exec, scratch, shape, q, sequences, out);
    } else {
      kernel_for<op::Attention, Base>::template run<E>(exec, scratch, shape, q, sequences, out);
    }
  }
};
}  // namespace detail

HYMBA_NAMESPACE_END
