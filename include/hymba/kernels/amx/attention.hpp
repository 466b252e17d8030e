// SPDX-License-Identifier: Apache-2.0
//
// op::Attention over bf16 and int8 caches on AMX tiles, for prefill and decode.
#pragma once

#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/amx/tiles.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/attention_engine.hpp>
#include <hymba/kernels/attention_shape.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/transpose.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

#if defined(HYMBA_AMX)

namespace detail::amx {

/// The sums of a span on tiles: queries, keys, values and weights in bf16, sums and softmax in single precision. Signed
/// bytes are bf16 once packed, exactly; their rows' scales meet the scores and the weights.
///
/// Scores are Q K^T and the weighted sum is P V, 32 positions (a step) at a time, steps at multiples of their size.
/// Rows of scores are then rows of weights: narrowing two vectors of them gives the left operand of the second product
/// as it is. Keys need one transposition and values one interleaving, shared by all rows of the task. Few rows, as in
/// decoding, do not make up for that: for them keys and values are operands as they lie, and what comes out is turned
/// (scores_of_few, weighted_sums_of_few); the bits are the same.
///
/// A tile of rows has its scores of the whole span before the first exponential, so sums are never rescaled within a
/// span; they fill most of the first-level cache, and weights take their place: writing to a cache further out takes
/// longer than products.
///
/// A step of which a row sees nothing adds zeros to its sums, or is left out: the bits are the same.
struct AttentionTiles {
  static constexpr std::int64_t panel = tile_rows;  ///< rows whose scores are held at a time
  static constexpr std::int64_t task_rows = 24 * panel;
  static constexpr std::int64_t step = tile_depth;  ///< positions per step
  static constexpr std::int64_t steps = attention_span / step;
  /// Of a row of scores, in floats: rows start in different sets of the first-level cache.
  static constexpr std::int64_t score_stride = attention_span + 16;
  static constexpr std::int64_t row_bytes = score_stride * static_cast<std::int64_t>(sizeof(float));
  static constexpr int columns_at_once = 4;  ///< tiles of the weighted sum held at a time
  static constexpr std::int64_t few_rows = 8, groups_at_once = 4;
  static constexpr float log2_e = 1.44269504f;

  static constexpr std::int64_t depth_steps(const AttentionShape& s) { return units_of(s.key_width, tile_depth); }
  static constexpr std::int64_t value_tiles(const AttentionShape& s) { return units_of(s.value_width, tile_rows); }

  struct Workspace {
    bf16* queries;        ///< [row tiles][depth steps] tiles
    bf16* keys;           ///< [steps][depth steps][2] tiles, each of 16 positions
    bf16* values;         ///< [value tiles][steps] tiles
    float* scores;        ///< [panel][score_stride], then weights at the start of each row
    bf16* gathered;       ///< [step][the larger width]: rows that do not lie together, in the cache's format
    float* key_scales;    ///< [attention_span] where rows have scales
    float* value_scales;  ///< [attention_span], the same

    constexpr Workspace(const AttentionShape& s, std::int64_t rows, AttentionMemory& memory)
        : queries(memory.take<bf16>(rows * depth_steps(s) * tile_depth)),
          keys(memory.take<bf16>(steps * depth_steps(s) * 2 * tile_size)),
          values(memory.take<bf16>(value_tiles(s) * steps * tile_size)),
          scores(memory.take<float>(panel * score_stride)),
          gathered(memory.take<bf16>(step * std::max(s.key_width, s.value_width))),
          key_scales(memory.take<float>(attention_span)),
          value_scales(memory.take<float>(attention_span)) {}

    /// Room for rows of a cache of E.
    template <class E>
    E* rows() const {
      static_assert(sizeof(E) <= sizeof(bf16));
      return reinterpret_cast<E*>(gathered);
    }
  };

  /// The steps of the span at `start` that hold something visible: those of the pinned positions, those of the others.
  struct Steps {
    struct Range {
      std::int64_t first, last;
    } range[2];

    Steps(const AttentionVisible& v, std::int64_t start) {
      const std::int64_t end = std::min(start + attention_span, v.last + 1);
      range[0] = {0, std::max<std::int64_t>(0, units_of(std::min(v.pinned, end) - start, step))};
      range[1].last = std::max(range[0].last, units_of(end - start, step));
      range[1].first = std::clamp((v.low - start) / step, range[0].last, range[1].last);
    }
    std::int64_t first() const { return range[0].last > 0 ? 0 : range[1].first; }
    std::int64_t last() const { return range[1].last; }
    template <class F>
    HYMBA_ALWAYS_INLINE void each(F&& f) const {
      for (const Range& r : range) {
        for (std::int64_t s = r.first; s < r.last; ++s) f(s);
      }
    }
  };

  // --- Packing -------------------------------------------------------------------------------------------------------

  /// Queries as tiles of the left operand. A negative scale is its magnitude and the opposite queries.
  template <class E>
  static void prepare(const AttentionTask<E>& t, MatrixView<const float> q, const Workspace& w) {
    const std::int64_t width = t.shape.key_width, r = attention_group(t.shape), rows = t.rows();
    const std::int64_t depth = depth_steps(t.shape);
    const __m512i sign = _mm512_set1_epi32(t.shape.scale < 0 ? static_cast<int>(0x80008000u) : 0);
    for (std::int64_t row = 0; row < round_up(rows, tile_rows); ++row) {
      bf16* to = w.queries + row / tile_rows * depth * tile_size + row % tile_rows * tile_depth;
      const float* const from =
          row < rows ? q.row(t.sequence.first_row + t.token + row / r) + (t.head * r + row % r) * width : nullptr;
      for (std::int64_t d = 0; d < depth; ++d, to += tile_size) {
        const std::int64_t rest = width - d * tile_depth;
        const __m512i v = from == nullptr      ? _mm512_setzero_si512()
                          : rest >= tile_depth ? load_row<false>(from + d * tile_depth, rest)
                                               : load_row<true>(from + d * tile_depth, rest);
        _mm512_store_si512(to, _mm512_xor_si512(v, sign));
      }
    }
  }

  /// Rows [first, first + step) of keys or values: where they lie when one segment holds them all, else a copy with
  /// zeros for those in no segment, which nobody sees and which are multiplied by zero.
  template <class E, class Rows>
  static const E* rows_at(const AttentionTask<E>& t, std::int64_t first, std::int64_t width, Rows&& rows, E* gathered) {
    if (const KeyValueSegment<E>* const s = t.sequence.holder(first, step)) return rows(*s, first);
    std::fill_n(gathered, step * width, E());
    for (int i = 0; i < t.sequence.segment_count; ++i) {
      const KeyValueSegment<E>& s = t.sequence.segments[i];
      const std::int64_t a = std::max(first, s.first_position), c = std::min(first + step, s.first_position + s.count);
      if (a < c) std::copy_n(rows(s, a), (c - a) * width, gathered + (a - first) * width);
    }
    return gathered;
  }

  /// Memory that is packed some steps later, fetched into the second-level cache, a few rows with every tile that is
  /// packed now: a head's rows are too short a stream for the processor to keep memory busy by itself.
  class Ahead {
   public:
    Ahead() = default;
    /// `columns` of each of a step's rows of `width`, in `parts` parts.
    template <class E>
    Ahead(const E* rows, std::int64_t width, std::int64_t columns, std::int64_t parts)
        : at_(reinterpret_cast<const char*>(rows)),
          row_bytes_(width * static_cast<std::int64_t>(sizeof(E))),
          bytes_(columns * static_cast<std::int64_t>(sizeof(E))),
          rows_(step),
          share_(units_of(step, parts)) {}
    HYMBA_ALWAYS_INLINE void fetch() {
      for (std::int64_t i = 0; i < share_ && rows_ > 0; ++i, --rows_, at_ += row_bytes_) {
        for (std::int64_t line = 0; line < bytes_; line += 64) __builtin_prefetch(at_ + line, 0, 2);
      }
    }

   private:
    const char* at_ = nullptr;
    std::int64_t row_bytes_ = 0, bytes_ = 0, rows_ = 0, share_ = 0;
  };

  /// Columns [first, first + count) of the values, in tiles.
  struct Columns {
    std::int64_t first, count;
  };

  /// In which order a span's memory is used: its keys, its values (a few columns of all positions after the other), the
  /// keys of the task's next span or, after the last span, those of the next head, which this thread likely takes next.
  template <class E>
  struct Walk {
    static constexpr std::int64_t lead = 4;  ///< steps fetched ahead

    const AttentionTask<E>& task;
    AttentionTask<E> next;
    std::int64_t first, end, next_first;  ///< positions; `next_first` of the keys of `next`
    std::int64_t columns;                 ///< of values at a time, in tiles

    Walk(const AttentionTask<E>& t, const AttentionVisible& v, std::int64_t start, const Steps& all,
         std::int64_t columns_)
        : task(t),
          next(t),
          first(start + all.first() * step),
          end(start + all.last() * step),
          next_first(v.next_span(start)),
          columns(columns_) {
      if (next_first < 0) {
        ++next.head;
        next_first = v.span_start(0);
      }
      next_first += Steps(v, next_first).first() * step;
    }
    /// What to fetch while the keys at `at` are packed, in a part for every tile.
    Ahead with_keys(std::int64_t at) const {
      const std::int64_t parts = 2 * depth_steps(task.shape), over = at + lead * step - end;
      return over < 0 ? keys(task, end + over, parts) : values(first + over, 0, parts);
    }
    /// What to fetch while some columns of the values at `at` are packed, in a part for every pair of rows.
    Ahead with_values(std::int64_t at, const Columns& c) const {
      const std::int64_t over = at + lead * step - end, behind = c.first + c.count;
      if (over < 0) return values(end + over, c.first, tile_rows);
      if (behind < value_tiles(task.shape)) return values(first + over, behind, tile_rows);
      return next.head < task.shape.kv_heads ? keys(next, next_first + over, tile_rows) : Ahead();
    }
    static Ahead keys(const AttentionTask<E>& t, std::int64_t at, std::int64_t parts) {
      const KeyValueSegment<E>* const s = t.sequence.holder(at, step);
      return s != nullptr ? Ahead(t.keys(*s, at), t.shape.key_width, t.shape.key_width, parts) : Ahead();
    }
    Ahead values(std::int64_t at, std::int64_t column, std::int64_t parts) const {
      const KeyValueSegment<E>* const s = task.sequence.holder(at, step);
      const std::int64_t width = task.shape.value_width;
      const std::int64_t count = std::min(columns * tile_rows, width - column * tile_rows);
      return s != nullptr ? Ahead(task.values(*s, at) + column * tile_rows, width, count, parts) : Ahead();
    }
  };

  template <class E>
  static void pack_keys(const AttentionTask<E>& t, std::int64_t first, Ahead next, const Workspace& w, bf16* to) {
    const std::int64_t width = t.shape.key_width;
    const E* const from = rows_at(
        t, first, width, [&](const KeyValueSegment<E>& s, std::int64_t p) { return t.keys(s, p); },
        w.template rows<E>());
    if constexpr (scaled_rows<E>) {
      for (std::int64_t d = 0; d < width; d += 2 * tile_depth, to += 4 * tile_size) {
        for (std::int64_t k = 0; k < step; k += tile_rows) {
          next.fetch();
          next.fetch();
          bf16* const tile = to + k / tile_rows * tile_size;
          if (width - d >= 2 * tile_depth) {
            pack_bytes_transposed<false>(from + k * width + d, width, 2 * tile_depth, tile, 2 * tile_size);
          } else {
            pack_bytes_transposed<true>(from + k * width + d, width, width - d, tile, 2 * tile_size);
          }
        }
      }
    } else {
      for (std::int64_t d = 0; d < width; d += tile_depth) {
        for (std::int64_t k = 0; k < step; k += tile_rows, to += tile_size) {
          next.fetch();
          if (width - d >= tile_depth) {
            pack_tile<Depth::along, true, false>(from + k * width + d, width, tile_rows, tile_depth, to);
          } else {
            pack_tile<Depth::along, true, true>(from + k * width + d, width, tile_rows, width - d, to);
          }
        }
      }
    }
  }
  /// 32 columns of two rows of values as pairs, 16 of them in each of two tiles.
  template <bool Partial>
  static HYMBA_ALWAYS_INLINE void pack_pairs(const std::int8_t* even, const std::int8_t* odd, std::int64_t columns,
                                             bf16* left, bf16* right) {
    _mm512_store_si512(left, pairs_of(load_integers<Partial>(even, columns), load_integers<Partial>(odd, columns)));
    if (Partial && columns <= tile_rows) return;
    _mm512_store_si512(right, pairs_of(load_integers<Partial>(even + tile_rows, columns - tile_rows),
                                       load_integers<Partial>(odd + tile_rows, columns - tile_rows)));
  }
  template <bool Partial>
  static HYMBA_ALWAYS_INLINE void pack_pairs(const bf16* even, const bf16* odd, std::int64_t columns, bf16* left,
                                             bf16* right) {
    // Interleaving works within quarters of a vector: the row's first half goes to the low halves of the quarters.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i a = _mm512_permutexvar_epi64(order, load_row<Partial>(even, columns));
    const __m512i b = _mm512_permutexvar_epi64(order, load_row<Partial>(odd, columns));
    _mm512_store_si512(left, _mm512_unpacklo_epi16(a, b));
    if (!Partial || columns > tile_rows) _mm512_store_si512(right, _mm512_unpackhi_epi16(a, b));
  }
  /// Some columns, row after row; their tiles `stride` apart.
  template <class E>
  static void pack_values(const AttentionTask<E>& t, std::int64_t first, const Columns& columns, Ahead next,
                          const Workspace& w, bf16* to, std::int64_t stride) {
    const std::int64_t width = t.shape.value_width, c = columns.first * tile_rows;
    const std::int64_t count = std::min(columns.count * tile_rows, width - c);
    const E* from = rows_at(
        t, first, width, [&](const KeyValueSegment<E>& s, std::int64_t p) { return t.values(s, p); },
        w.template rows<E>());
    from += c;
    for (std::int64_t p = 0; p < tile_rows; ++p, from += 2 * width, to += tile_depth) {
      next.fetch();
      bf16* tile = to;
      std::int64_t i = 0;
      for (; i + tile_depth <= count; i += tile_depth, tile += 2 * stride) {
        pack_pairs<false>(from + i, from + width + i, tile_depth, tile, tile + stride);
      }
      if (i < count) pack_pairs<true>(from + i, from + width + i, count - i, tile, tile + stride);
    }
  }

  /// The scales of what the steps hold of the span at `start`, as floats; zeros for positions in no segment.
  template <class E>
  static void gather_scales(const AttentionTask<E>& t, std::int64_t start, const Steps& all, const Workspace& w) {
    if constexpr (scaled_rows<E>) {
      const std::int64_t first = start + all.first() * step, end = start + all.last() * step;
      std::fill_n(w.key_scales, attention_span, 0.0f);
      std::fill_n(w.value_scales, attention_span, 0.0f);
      for (int i = 0; i < t.sequence.segment_count; ++i) {
        const KeyValueSegment<E>& s = t.sequence.segments[i];
        const std::int64_t a = std::max(first, s.first_position), c = std::min(end, s.first_position + s.count);
        if (a >= c) continue;
        widen(t.key_scales(s, a), c - a, w.key_scales + (a - start));
        widen(t.value_scales(s, a), c - a, w.value_scales + (a - start));
      }
    }
  }
  static void widen(const RowScale* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; i += tile_rows, from += tile_rows, to += tile_rows) {
      const __mmask16 mask = first_lanes(count - i);
      const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
      _mm512_mask_storeu_ps(to, mask, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
    }
  }

  // --- Products ------------------------------------------------------------------------------------------------------

  /// Tiles 0 and 1, or 2 and 3 for the other `Half`: zeros; stored. (GCC wants the tiles as literals.)
  template <int Half>
  static HYMBA_ALWAYS_INLINE void zero_half() {
    if constexpr (Half == 0) {
      _tile_zero(0);
      _tile_zero(1);
    } else {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  template <int Half>
  static HYMBA_ALWAYS_INLINE void store_half(float* first, float* second, std::int64_t stride) {
    if constexpr (Half == 0) {
      _tile_stored(0, first, stride);
      _tile_stored(1, second, stride);
    } else {
      _tile_stored(2, first, stride);
      _tile_stored(3, second, stride);
    }
  }

  /// Scores of a tile of rows and the positions of a step, in the tiles of `Half`.
  template <int Half>
  static HYMBA_ALWAYS_INLINE void score_products(const bf16* queries, const bf16* keys, std::int64_t depth) {
    zero_half<Half>();
    for (std::int64_t d = 0; d < depth; ++d, queries += tile_size, keys += 2 * tile_size) {
      _tile_stream_loadd(6, keys, 64);
      _tile_stream_loadd(7, keys + tile_size, 64);
      if constexpr (Half == 0) {
        _tile_loadd(4, queries, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      } else {
        _tile_loadd(5, queries, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  template <int Half>
  static HYMBA_ALWAYS_INLINE void score_store(float* to) {
    store_half<Half>(to, to + tile_rows, row_bytes);
  }
  /// Scores of a tile of rows and all positions. `keys(s)` gives the tiles of step s. Tiles are stored behind the next
  /// step's products: stores that wait would keep these from being scheduled.
  template <class Keys>
  static void scores(const bf16* queries, const Steps& own, std::int64_t depth, float* to, Keys&& keys) {
    float* before = nullptr;
    bool half = false;
    own.each([&](std::int64_t s) {
      const bf16* const k = keys(s);
      if (half) {
        score_products<1>(queries, k, depth);
        score_store<0>(before);
      } else {
        score_products<0>(queries, k, depth);
        if (before != nullptr) score_store<1>(before);
      }
      before = to + s * step;
      half = !half;
    });
    if (before == nullptr) return;
    if (half) {
      score_store<0>(before);
    } else {
      score_store<1>(before);
    }
  }

  /// Scores of the 32 positions of `keys`, rows `key_bytes` apart, and queries as tiles of the right operand; in the
  /// tiles of `Half`, each of 16 positions.
  template <int Half>
  static HYMBA_ALWAYS_INLINE void position_products(const bf16* keys, std::int64_t key_bytes, const bf16* queries,
                                                    std::int64_t depth, Ahead& next) {
    zero_half<Half>();
    const bf16* const others = keys + tile_rows * key_bytes / static_cast<std::int64_t>(sizeof(bf16));
    for (std::int64_t d = 0; d < depth; ++d, queries += tile_size) {
      next.fetch();
      _tile_loadd(6, queries, 64);
      _tile_loadd(4, keys + d * tile_depth, key_bytes);
      next.fetch();
      _tile_loadd(5, others + d * tile_depth, key_bytes);
      if constexpr (Half == 0) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
      } else {
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
  }
  /// The tiles of `Half` to rows of scores, by way of `buffer` [32][16].
  template <int Half>
  static HYMBA_ALWAYS_INLINE void position_store(float* buffer, std::int64_t rows, float* to) {
    store_half<Half>(buffer, buffer + tile_rows * tile_rows, 64);
    written_before_tiles();
    transpose_eight(buffer, rows, to);
    transpose_eight(buffer + tile_rows * tile_rows, rows, to + tile_rows);
  }
  /// The first `rows` <= 8 columns of [16][16] as rows of scores.
  static HYMBA_ALWAYS_INLINE void transpose_eight(const float* from, std::int64_t rows, float* to) {
    __m512 half[2][4];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m512 v[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const float* const low = from + (8 * h + i) * tile_rows;
        v[i] = _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(_mm256_load_ps(low))),
                                                   _mm256_castps_pd(_mm256_load_ps(low + 4 * tile_rows)), 1));
      }
      const __m512 a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpacklo_ps(v[2], v[3]);
      const __m512 c = _mm512_unpackhi_ps(v[0], v[1]), d = _mm512_unpackhi_ps(v[2], v[3]);
      half[h][0] = _mm512_shuffle_ps(a, b, 0x44);
      half[h][1] = _mm512_shuffle_ps(a, b, 0xee);
      half[h][2] = _mm512_shuffle_ps(c, d, 0x44);
      half[h][3] = _mm512_shuffle_ps(c, d, 0xee);
    }
    // Quarters of half[h][c]: positions 8 h to 8 h + 3 of row c and of row c + 4, then the next four positions.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512 low = _mm512_shuffle_f32x4(half[0][c], half[1][c], 0x88);
      const __m512 high = _mm512_shuffle_f32x4(half[0][c], half[1][c], 0xdd);
      if (c < rows) _mm512_store_ps(to + c * score_stride, low);
      if (c + 4 < rows) _mm512_store_ps(to + (c + 4) * score_stride, high);
    }
  }

  /// 32 bytes as bf16.
  static HYMBA_ALWAYS_INLINE void store_widened(const std::int8_t* from, bf16* to) {
    const __m512i low = load_integers<false>(from, tile_rows), high = load_integers<false>(from + tile_rows, tile_rows);
    _mm512_store_si512(to, narrow(_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)));
  }

  /// Scores of a task of at most few_rows rows and all positions, keys whose rows are whole steps of depth.
  template <class E>
  static void scores_of_few(const AttentionTask<E>& t, std::int64_t start, const Steps& own, const Walk<E>& walk,
                            const Workspace& w) {
    const std::int64_t depth = depth_steps(t.shape), width = t.shape.key_width;
    bf16* const widened = w.keys;  // [step][width], where keys are bytes
    bf16* const queries = w.keys + 2 * depth * tile_size;
    auto* const buffer = reinterpret_cast<float*>(w.values);
    for (std::int64_t d = 0; d < depth; ++d) {
      __m512i square[tile_rows];
      for (std::int64_t r = 0; r < tile_rows; ++r) {
        square[r] = _mm512_load_si512(w.queries + d * tile_size + r * tile_depth);
      }
      transpose(square);
      for (std::int64_t r = 0; r < tile_rows; ++r) {
        _mm512_store_si512(queries + d * tile_size + r * tile_depth, square[r]);
      }
    }
    float* before = nullptr;
    bool half = false;
    own.each([&](std::int64_t s) {
      const std::int64_t first = start + s * step;
      Ahead next = walk.with_keys(first);
      const E* const rows = rows_at(
          t, first, width, [&](const KeyValueSegment<E>& g, std::int64_t p) { return t.keys(g, p); },
          w.template rows<E>());
      const bf16* keys = nullptr;
      if constexpr (scaled_rows<E>) {
        for (std::int64_t i = 0; i < step * width; i += tile_depth) store_widened(rows + i, widened + i);
        keys = widened;
      } else {
        keys = rows;
      }
      written_before_tiles();
      const auto key_bytes = width * static_cast<std::int64_t>(sizeof(bf16));
      // Behind the next step's products, as in scores.
      if (half) {
        position_products<1>(keys, key_bytes, queries, depth, next);
        position_store<0>(buffer, t.rows(), before);
      } else {
        position_products<0>(keys, key_bytes, queries, depth, next);
        if (before != nullptr) position_store<1>(buffer, t.rows(), before);
      }
      before = w.scores + s * step;
      half = !half;
    });
    if (before == nullptr) return;
    if (half) {
      position_store<0>(buffer, t.rows(), before);
    } else {
      position_store<1>(buffer, t.rows(), before);
    }
  }

  /// Weighted sums of a tile of rows and C tiles of value columns over some steps. `values(s)` gives the first tile of
  /// step s; the others follow `next` apart.
  template <int C, class Values>
  static void weighted_sum(const bf16* weights, const Steps& own, float* to, std::int64_t stride, std::int64_t next,
                           Values&& values) {
    static_assert(C == 1 || C == 2 || C == 4);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    own.each([&](std::int64_t s) {
      const bf16* const v = values(s);
      _tile_loadd(4, weights + s * step, row_bytes);
      _tile_stream_loadd(6, v, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (C >= 2) {
        _tile_stream_loadd(7, v + next, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (C == 4) {
        _tile_stream_loadd(6, v + 2 * next, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_stream_loadd(7, v + 3 * next, 64);
        _tile_dpbf16ps(3, 4, 7);
      }
    });
    const std::int64_t to_bytes = stride * static_cast<std::int64_t>(sizeof(float));
    _tile_stored(0, to, to_bytes);
    if constexpr (C >= 2) _tile_stored(1, to + tile_rows, to_bytes);
    if constexpr (C == 4) {
      _tile_stored(2, to + 2 * tile_rows, to_bytes);
      _tile_stored(3, to + 3 * tile_rows, to_bytes);
    }
  }

  /// The same for all columns. `values(s, columns)` gives the tiles of step s.
  template <class Values>
  static void weighted_sums(const bf16* weights, std::int64_t tiles, const Steps& own, float* to, std::int64_t next,
                            Values&& values) {
    const std::int64_t stride = tiles * tile_rows;
    std::int64_t c = 0;
    const auto some = [&](auto count) {
      weighted_sum<count()>(weights, own, to + c * tile_rows, stride, next, [&](std::int64_t s) {
        return values(s, Columns{c, count()});
      });
      c += count();
    };
    while (c + columns_at_once <= tiles) some(std::integral_constant<int, columns_at_once>{});
    if (c + 2 <= tiles) some(std::integral_constant<int, 2>{});
    if (c < tiles) some(std::integral_constant<int, 1>{});
  }

  /// Products of a step with N groups of 32 value columns, from zero, into sums [N][16][16]. `left` has the weights of
  /// even positions and, a tile behind, of odd ones.
  template <int N>
  static HYMBA_ALWAYS_INLINE void value_products(const bf16* left, const bf16* values, std::int64_t row, float* sums,
                                                 Ahead& next) {
    const auto bytes = 2 * row * static_cast<std::int64_t>(sizeof(bf16));  // from one even position to the next
    const auto fetch = [&] {
      for (int i = 0; i < tile_rows / (2 * N); ++i) next.fetch();
    };
    _tile_loadd(4, left, 64);
    _tile_loadd(5, left + tile_size, 64);
    _tile_zero(0);
    fetch();
    _tile_loadd(6, values, bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (N >= 2) {
      _tile_zero(1);
      fetch();
      _tile_loadd(7, values + tile_depth, bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (N >= 3) {
      _tile_zero(2);
      fetch();
      _tile_loadd(6, values + 2 * tile_depth, bytes);
      _tile_dpbf16ps(2, 4, 6);
    }
    if constexpr (N >= 4) {
      _tile_zero(3);
      fetch();
      _tile_loadd(7, values + 3 * tile_depth, bytes);
      _tile_dpbf16ps(3, 4, 7);
    }
    const bf16* const odd = values + row;
    fetch();
    _tile_loadd(6, odd, bytes);
    _tile_dpbf16ps(0, 5, 6);
    if constexpr (N >= 2) {
      fetch();
      _tile_loadd(7, odd + tile_depth, bytes);
      _tile_dpbf16ps(1, 5, 7);
    }
    if constexpr (N >= 3) {
      fetch();
      _tile_loadd(6, odd + 2 * tile_depth, bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (N >= 4) {
      fetch();
      _tile_loadd(7, odd + 3 * tile_depth, bytes);
      _tile_dpbf16ps(3, 5, 7);
    }
    constexpr std::int64_t tile = tile_rows * tile_rows;
    _tile_stored(0, sums, 64);
    if constexpr (N >= 2) _tile_stored(1, sums + tile, 64);
    if constexpr (N >= 3) _tile_stored(2, sums + 2 * tile, 64);
    if constexpr (N >= 4) _tile_stored(3, sums + 3 * tile, 64);
  }

  /// A row of weights of a step as rows of the left operand: pairs (weight, 0) and, few_rows below, (0, weight), of
  /// even positions and, a tile behind, of odd ones.
  static HYMBA_ALWAYS_INLINE void split_weights(const bf16* weights, bf16* left) {
    const __m512i pairs = _mm512_load_si512(weights);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    _mm512_store_si512(left, _mm512_andnot_si512(high, pairs));
    _mm512_store_si512(left + few_rows * tile_depth, _mm512_slli_epi32(pairs, 16));
    _mm512_store_si512(left + tile_size, _mm512_srli_epi32(pairs, 16));
    _mm512_store_si512(left + tile_size + few_rows * tile_depth, _mm512_and_si512(pairs, high));
  }

  /// The weighted sums of a task of at most few_rows rows, whose rows of values are whole groups of 32 columns, values
  /// as they lie: a row of them, in pairs of neighbouring columns, is a row of the right operand. Each row of weights
  /// is two of the left one (split_weights), whose sums are of even and of odd columns. A step's even positions are
  /// summed, then its odd ones, from zero, and the sum is added in vectors: so are those of packed pairs. (A value that
  /// is not finite makes the sum of its neighbour's column NaN, too.)
  template <class E>
  static void weighted_sums_of_few(const AttentionTask<E>& t, const bf16* weights, std::int64_t start,
                                   const Steps& own, const Walk<E>& walk, const Workspace& w, float* to) {
    constexpr std::int64_t tile = tile_rows * tile_rows, columns = groups_at_once * tile_depth;
    const std::int64_t width = t.shape.value_width, rows = t.rows();
    auto* const sums = reinterpret_cast<float*>(w.values);  // [2][groups_at_once][16][16]: of a step, of the one before
    float* const total = sums + 2 * groups_at_once * tile;
    auto* const left = reinterpret_cast<bf16*>(total + groups_at_once * tile);  // [2][2] tiles
    bf16* const copied = w.keys;                                                // [2][step][columns]
    struct Operands {
      const bf16 *left, *values;
      std::int64_t row;
    };
    const auto some = [&](auto groups, std::int64_t first_column) {
      constexpr int N = groups();
      const auto each_row = [&](auto&& f) {
        for (std::int64_t g = 0; g < N; ++g) {
          for (std::int64_t r = 0; r < rows; ++r) {
            f(g * tile + r * tile_rows);
            f(g * tile + (r + few_rows) * tile_rows);
          }
        }
      };
      each_row([&](std::int64_t i) { _mm512_store_ps(total + i, _mm512_setzero_ps()); });
      const auto add = [&](const float* from) {
        each_row([&](std::int64_t i) {
          _mm512_store_ps(total + i, _mm512_add_ps(_mm512_load_ps(total + i), _mm512_load_ps(from + i)));
        });
      };
      // Operands are multiplied a step after they were written, and sums added a step after that: neither waits.
      Operands before{};
      std::int64_t done = 0;
      const auto multiply = [&](Ahead& next) {
        float* const here = sums + (done - 1) % 2 * groups_at_once * tile;
        written_before_tiles();
        value_products<N>(before.left, before.values, before.row, here, next);
        written_before_tiles();
        if (done > 1) add(sums + done % 2 * groups_at_once * tile);
      };
      own.each([&](std::int64_t s) {
        const std::int64_t first = start + s * step, slot = done % 2;
        Ahead next = walk.with_values(first, Columns{first_column / tile_rows, 2 * N});
        const E* const gathered = w.template rows<E>();
        const E* from = rows_at(
            t, first, width, [&](const KeyValueSegment<E>& g, std::int64_t p) { return t.values(g, p); },
            w.template rows<E>());
        const bool lying = from != gathered;
        from += first_column;
        Operands now{left + slot * 2 * tile_size, nullptr, N * tile_depth};
        if constexpr (scaled_rows<E>) {
          bf16* const here = copied + slot * step * columns;
          for (std::int64_t p = 0; p < step; ++p) {
            for (std::int64_t c = 0; c < now.row; c += tile_depth) {
              store_widened(from + p * width + c, here + p * now.row + c);
            }
          }
          now.values = here;
        } else if (lying) {
          now.values = from;
          now.row = width;
        } else {
          bf16* const here = copied + slot * step * columns;
          for (std::int64_t p = 0; p < step; ++p) std::copy_n(from + p * width, now.row, here + p * now.row);
          now.values = here;
        }
        for (std::int64_t r = 0; r < rows; ++r) {
          split_weights(weights + s * step + r * 2 * score_stride,
                        left + slot * 2 * tile_size + r * tile_depth);
        }
        if (done > 0) {
          multiply(next);
        } else {
          for (std::int64_t i = 0; i < tile_rows; ++i) next.fetch();
        }
        before = now;
        ++done;
      });
      if (done > 0) {
        Ahead none;
        multiply(none);
        add(sums + (done - 1) % 2 * groups_at_once * tile);
      }
      const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t g = 0; g < N; ++g) {
          const __m512 even = _mm512_load_ps(total + g * tile + r * tile_rows);
          const __m512 odd = _mm512_load_ps(total + g * tile + (r + few_rows) * tile_rows);
          float* const out = to + r * width + first_column + g * tile_depth;
          _mm512_storeu_ps(out, _mm512_permutex2var_ps(even, low, odd));
          _mm512_storeu_ps(out + tile_rows, _mm512_permutex2var_ps(even, high, odd));
        }
      }
    };
    for (std::int64_t c = 0; c < width; c += columns) {
      switch (std::min<std::int64_t>(groups_at_once, (width - c) / tile_depth)) {
        case 1: some(std::integral_constant<int, 1>{}, c); break;
        case 2: some(std::integral_constant<int, 2>{}, c); break;
        case 3: some(std::integral_constant<int, 3>{}, c); break;
        default: some(std::integral_constant<int, 4>{}, c); break;
      }
    }
  }

  // --- Softmax -------------------------------------------------------------------------------------------------------

  /// Hides what position `i` does not see of the span at `start`.
  static void hide(const AttentionShape& shape, std::int64_t i, std::int64_t start, const Steps& own, float* scores) {
    const auto within = [&](std::int64_t p) { return std::clamp<std::int64_t>(p - start, 0, attention_span); };
    const auto hidden = [&](std::int64_t a, std::int64_t c) {
      for (const Steps::Range& r : own.range) {
        for (std::int64_t k = std::max(a, r.first * step); k < std::min(c, r.last * step); ++k) {
          scores[k] = -std::numeric_limits<float>::infinity();
        }
      }
    };
    if (shape.window > 0) hidden(within(std::min(shape.pinned, i + 1)), within(i - shape.window));
    hidden(within(i + 1), attention_span);
  }

  /// Powers of two, good enough to be narrowed. `scale` and `bias`, in units of 2^-23, make of a score the bits of the
  /// float that interpolates its power linearly; a cubic corrects the mantissa, from [1, 2) into [1, 2), with a
  /// relative error below 2^-13.2 (tried for every mantissa). Rounding of the bits adds 2^-17. Zero, or a subnormal
  /// number that narrowing makes zero, below 2^-126, for -inf and for NaN.
  static HYMBA_ALWAYS_INLINE __m512 exp2(__m512 score, __m512 scale, __m512 bias) {
    const __m512i low = _mm512_set1_epi32(0x007fffff);
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 t = _mm512_max_ps(_mm512_fmadd_ps(score, scale, bias), _mm512_setzero_ps());
    const __m512i bits = _mm512_cvtps_epi32(t);
    // Mantissa of `bits`, exponent of 1; then mantissa of the polynomial, exponent of `bits`.
    const __m512 g = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(low, bits, _mm512_castps_si512(one), 0xca));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0x1.408b4ap-4f), g, _mm512_set1_ps(-0x1.14fa14p-7f));
    p = _mm512_fmadd_ps(p, g, _mm512_set1_ps(0x1.e90360p-2f));
    p = _mm512_fmadd_ps(p, g, _mm512_set1_ps(0x1.cf81aep-2f));
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(low, _mm512_castps_si512(p), bits, 0xca));
  }

  /// A row of scores to weights, its largest score and the sum of its weights, as they are narrowed: what is divided by
  /// is what was multiplied with. `scale` in units of log2. Weights may lie where the scores do.
  ///
  /// Where rows are Scaled, scores are multiplied by the keys' scales first, and narrowed weights are times those of
  /// the values: the sum is then of weights before that, in single precision.
  template <bool Scaled>
  static HYMBA_ALWAYS_INLINE void softmax(float* scores, const Steps& own, float scale,
                                          [[maybe_unused]] const float* key_scales,
                                          [[maybe_unused]] const float* value_scales, bf16* weights, float& largest,
                                          float& sum) {
    __m512 m0 = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), m1 = m0;
    own.each([&](std::int64_t s) {
      __m512 a = _mm512_load_ps(scores + s * step), c = _mm512_load_ps(scores + s * step + 16);
      if constexpr (Scaled) {
        // A hidden score times zero is NaN: no maximum, no weight.
        a = _mm512_mul_ps(a, _mm512_load_ps(key_scales + s * step));
        c = _mm512_mul_ps(c, _mm512_load_ps(key_scales + s * step + 16));
        _mm512_store_ps(scores + s * step, a);
        _mm512_store_ps(scores + s * step + 16, c);
      }
      m0 = _mm512_max_ps(a, m0);
      m1 = _mm512_max_ps(c, m1);
    });
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(m0, m1));
    if (!(most > -std::numeric_limits<float>::infinity())) {
      largest = attention_lowest;
      sum = 0.0f;
      own.each([&](std::int64_t s) { _mm512_store_si512(weights + s * step, _mm512_setzero_si512()); });
      return;
    }
    largest = most * scale;
    constexpr float unit = 0x1p23f;
    const __m512 by = _mm512_set1_ps(scale * unit), bias = _mm512_set1_ps((127.0f - largest) * unit);
    [[maybe_unused]] const __m512i ones = _mm512_set1_epi32(0x3f803f80);
    __m512 total = _mm512_setzero_ps();
    own.each([&](std::int64_t s) {
      const __m512 a = exp2(_mm512_load_ps(scores + s * step), by, bias);
      const __m512 c = exp2(_mm512_load_ps(scores + s * step + 16), by, bias);
      if constexpr (Scaled) {
        _mm512_store_si512(weights + s * step, narrow(_mm512_mul_ps(a, _mm512_load_ps(value_scales + s * step)),
                                                      _mm512_mul_ps(c, _mm512_load_ps(value_scales + s * step + 16))));
        total = _mm512_add_ps(total, _mm512_add_ps(a, c));
      } else {
        const __m512i p = narrow(a, c);
        _mm512_store_si512(weights + s * step, p);
        total = _mm512_dpbf16_ps(total, (__m512bh)p, (__m512bh)ones);
      }
    });
    sum = _mm512_reduce_add_ps(total);
  }

  // --- A span --------------------------------------------------------------------------------------------------------

  template <class E>
  static void attend(const AttentionTask<E>& t, const Workspace& w, const AttentionVisible& visible, std::int64_t start,
                     const AttentionPartial& to) {
    const std::int64_t depth = depth_steps(t.shape), tiles = value_tiles(t.shape), rows = t.rows();
    const TileScope scope;
    const Steps all(visible, start);
    gather_scales(t, start, all, w);
    if (rows <= tile_rows) {
      // Every packed tile is used once, from a small buffer: second-level caches are slow to write.
      const bool few = rows <= few_rows && t.shape.key_width % tile_depth == 0 && t.shape.value_width % tile_depth == 0;
      const Walk<E> walk(t, visible, start, all, few ? 2 * groups_at_once : columns_at_once);
      const bf16* const weights = weigh(t, w, visible, start, 0, rows, all, to, [&] {
        if (few) return scores_of_few(t, start, all, walk, w);
        scores(w.queries, all, depth, w.scores, [&](std::int64_t s) {
          written_before_tiles();
          pack_keys(t, start + s * step, walk.with_keys(start + s * step), w, w.keys);
          written_before_tiles();
          return w.keys;
        });
      });
      if (few) return weighted_sums_of_few(t, weights, start, all, walk, w, to.values);
      weighted_sums(weights, tiles, all, to.values, tile_size, [&](std::int64_t s, const Columns& c) {
        written_before_tiles();
        pack_values(t, start + s * step, c, walk.with_values(start + s * step, c), w, w.values, tile_size);
        written_before_tiles();
        return w.values;
      });
      return;
    }
    const Columns columns{0, tiles};
    const Walk<E> walk(t, visible, start, all, tiles);
    all.each([&](std::int64_t s) {
      pack_keys(t, start + s * step, walk.with_keys(start + s * step), w, w.keys + s * depth * 2 * tile_size);
    });
    all.each([&](std::int64_t s) {
      pack_values(t, start + s * step, columns, walk.with_values(start + s * step, columns), w,
                  w.values + s * tile_size, steps * tile_size);
    });
    const auto keys = [&](std::int64_t s) { return w.keys + s * depth * 2 * tile_size; };
    const auto values = [&](std::int64_t s, const Columns& c) { return w.values + (c.first * steps + s) * tile_size; };
    for (std::int64_t p = 0; p < rows; p += panel) {
      const std::int64_t here = std::min(panel, rows - p), r = attention_group(t.shape);
      const AttentionVisible seen(t.shape, visible.first + p / r, visible.first + (p + here - 1) / r);
      const Steps own(seen, start);
      const bf16* const weights = weigh(t, w, visible, start, p, here, own, to, [&] {
        scores(w.queries + p * depth * tile_depth, own, depth, w.scores, keys);
      });
      weighted_sums(weights, tiles, own, to.values + p * tiles * tile_rows, steps * tile_size, values);
    }
  }

  /// Weights of rows [first, first + count), a tile of them, with their largest scores and sums, once `score` has put
  /// their scores into the workspace. Rows behind the last are not weights but whatever is there: their sums are
  /// nobody's.
  template <class E, class Score>
  static const bf16* weigh(const AttentionTask<E>& t, const Workspace& w, const AttentionVisible& visible,
                           std::int64_t start, std::int64_t first, std::int64_t count, const Steps& own,
                           const AttentionPartial& to, Score&& score) {
    const std::int64_t r = attention_group(t.shape);
    const float scale = std::fabs(t.shape.scale) * log2_e;
    written_before_tiles();
    score();
    written_before_tiles();
    for (std::int64_t i = 0; i < count; ++i) {
      float* const row = w.scores + i * score_stride;
      hide(t.shape, visible.first + (first + i) / r, start, own, row);
      softmax<scaled_rows<E>>(row, own, scale, w.key_scales, w.value_scales, reinterpret_cast<bf16*>(row),
                              to.largest[first + i], to.sum[first + i]);
    }
    written_before_tiles();
    return reinterpret_cast<const bf16*>(w.scores);
  }
};

}  // namespace detail::amx

/// op::Attention over bf16 and int8 caches with queries and weights rounded to bf16 too (nearest even; subnormals
/// become zero); scores, softmax and sums are in single precision. Scores are below 2^100 in magnitude. Over other
/// caches it is that of Base.
template <class Base>
struct kernel_for<op::Attention, arch::amx<Base>>
    : detail::AttentionByCache<detail::AttentionEngine<xsimd::default_arch, detail::amx::AttentionTiles>,
                               detail::AttentionEngine<xsimd::default_arch, detail::amx::AttentionTiles>, Base> {};

#endif  // HYMBA_AMX

HYMBA_NAMESPACE_END
