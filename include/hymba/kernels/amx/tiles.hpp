// SPDX-License-Identifier: Apache-2.0
//
// Matrix products on AMX tiles: packing of both operands to bf16 panels, a 32 x 32 block of the output in four tiles.
//
// AMX multiplies a tile of A, 16 rows of 32 numbers along k, by a tile of B whose rows hold 16 pairs: row p has
// B[2p, j] and B[2p + 1, j] side by side for every column j. So a tile of either operand is 16 rows of 16 pairs, one
// vector each, and a source of the other orientation needs one transposition of 16 x 16 pairs.
#pragma once

#include <hymba/core/macros.hpp>

// The second spelling is that of clang before version 15.
#if (defined(__AMX_TILE__) || defined(__AMXTILE__)) && (defined(__AMX_BF16__) || defined(__AMXBF16__))
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define HYMBA_AMX 1
#endif
#endif

#if defined(HYMBA_AMX)

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/amx/fetch_ahead.hpp>
#include <hymba/kernels/bf16_vectors.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/transpose.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <immintrin.h>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

inline constexpr std::int64_t tile_rows = 16;              ///< rows of a tile
inline constexpr std::int64_t tile_depth = 32;             ///< numbers along k in a tile
inline constexpr std::int64_t tile_size = 512;             ///< numbers in a tile of an operand
inline constexpr std::int64_t panel_rows = 2 * tile_rows;  ///< rows of A, or columns of B, in a panel
inline constexpr std::int64_t panel_step = 2 * tile_size;  ///< numbers of a panel per tile_depth of k

/// Configures the tiles of the calling thread (all of them 16 rows of 64 bytes) while it lives, and gives them up
/// after.
class TileScope {
 public:
  TileScope() noexcept {
    static constexpr Config config;
    _tile_loadconfig(&config);
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
  ~TileScope() { _tile_release(); }

 private:
  struct alignas(64) Config {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static_assert(sizeof(Config) == 64);
};

/// The tile instructions do not tell GCC that they read memory; this does.
HYMBA_ALWAYS_INLINE void written_before_tiles() { __asm__ volatile("" ::: "memory"); }

// --- Packing ---------------------------------------------------------------------------------------------------------

/// 16 integers below 129 in magnitude and 16 more as 16 pairs of bf16. Exact: the upper half of such a float is all of
/// it.
HYMBA_ALWAYS_INLINE __m512i pairs_of(__m512i even, __m512i odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(even)), 16);
  const __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(odd));
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(0xffff0000u)), high, low, 0xca);
}
/// 16 consecutive signed bytes as integers; with `Partial` only the first `count` exist and the others are zero.
template <bool Partial>
HYMBA_ALWAYS_INLINE __m512i load_integers(const std::int8_t* from, std::int64_t count) {
  if constexpr (Partial) {
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(count), from));
  } else {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
}

/// 16 numbers and 16 more as 16 pairs.
HYMBA_ALWAYS_INLINE __m512i interleave(__m512i rows) {
  alignas(64) static constexpr std::uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), rows);
}
/// 16 columns of two rows as pairs; with `Partial` only the first `cols` exist, and a null row is zero.
template <bool Partial>
HYMBA_ALWAYS_INLINE __m512i load_pairs(const float* first, const float* second, std::int64_t cols) {
  if constexpr (Partial) {
    const __mmask16 mask = first_lanes(cols);
    return interleave(narrow(first != nullptr ? _mm512_maskz_loadu_ps(mask, first) : _mm512_setzero_ps(),
                             second != nullptr ? _mm512_maskz_loadu_ps(mask, second) : _mm512_setzero_ps()));
  } else {
    return interleave(narrow(_mm512_loadu_ps(first), _mm512_loadu_ps(second)));
  }
}
template <bool Partial>
HYMBA_ALWAYS_INLINE __m512i load_pairs(const bf16* first, const bf16* second, std::int64_t cols) {
  const auto row = [&](const bf16* from) {
    if constexpr (Partial) {
      return from != nullptr ? _mm256_maskz_loadu_epi16(first_lanes(cols), from) : _mm256_setzero_si256();
    } else {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    }
  };
  return interleave(_mm512_inserti64x4(_mm512_castsi256_si512(row(first)), row(second), 1));
}

/// Where k lies in a source: along its rows (the left operand as it is), or across them (the right operand as it is).
enum class Depth { along, across };

/// One tile. `wide` rows of A or columns of B exist, `deep` numbers along k; what does not exist is zero.
template <Depth Source, bool Transposed, bool Partial, class Element>
HYMBA_ALWAYS_INLINE void pack_tile(const Element* from, std::int64_t stride, std::int64_t wide, std::int64_t deep,
                                   bf16* to) {
  __m512i v[16];
  if constexpr (Source == Depth::along) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      v[r] = Partial && r >= wide ? _mm512_setzero_si512() : load_row<Partial>(from + r * stride, deep);
    }
  } else {
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
      const Element* first = from + 2 * p * stride;
      if constexpr (Partial) {
        v[p] = load_pairs<true>(2 * p < deep ? first : nullptr, 2 * p + 1 < deep ? first + stride : nullptr, wide);
      } else {
        v[p] = load_pairs<false>(first, first + stride, wide);
      }
    }
  }
  if constexpr (Transposed) transpose(v);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) _mm512_store_si512(to + r * tile_depth, v[r]);
}

/// 16 rows of `deep` signed bytes, at most 64, as tiles of the right operand, transposed: one, and with more than 32
/// bytes another `next` numbers behind it. Quads of bytes are transposed and widened then: half as much as pairs of
/// bf16.
template <bool Partial>
HYMBA_ALWAYS_INLINE void pack_bytes_transposed(const std::int8_t* from, std::int64_t stride, std::int64_t deep,
                                               bf16* to, std::int64_t next) {
  __m512i v[16];
  [[maybe_unused]] const __mmask64 mask = deep >= 64 ? ~__mmask64{0} : (__mmask64{1} << deep) - 1u;
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    v[r] = Partial ? _mm512_maskz_loadu_epi8(mask, from + r * stride) : _mm512_loadu_si512(from + r * stride);
  }
  transpose(v);
#pragma GCC unroll 16
  for (int q = 0; q < 16; ++q) {
    if (Partial && q >= 8 && deep <= tile_depth) break;
    bf16* const at = to + (q < 8 ? 0 : next) + q % 8 * 2 * tile_depth;
    const __m512i first = _mm512_srai_epi32(_mm512_slli_epi32(v[q], 24), 24);
    const __m512i second = _mm512_srai_epi32(_mm512_slli_epi32(v[q], 16), 24);
    const __m512i third = _mm512_srai_epi32(_mm512_slli_epi32(v[q], 8), 24);
    _mm512_store_si512(at, pairs_of(first, second));
    _mm512_store_si512(at + tile_depth, pairs_of(third, _mm512_srai_epi32(v[q], 24)));
  }
}

/// A block of one operand as panels of [step][2 tiles]; the panels are `steps` steps long. Walks the source along its
/// rows as far as it can.
template <Depth Source, bool Transposed, class Element>
void pack_block(const Element* from, std::int64_t stride, std::int64_t wide, std::int64_t deep, bf16* to) {
  const std::int64_t steps = units_of(deep, tile_depth);
  const auto one = [&](std::int64_t e, std::int64_t s) {
    const Element* at =
        Source == Depth::along ? from + e * stride + s * tile_depth : from + s * tile_depth * stride + e;
    bf16* tile = to + e / panel_rows * steps * panel_step + s * panel_step + e % panel_rows / tile_rows * tile_size;
    const std::int64_t w = wide - e, d = deep - s * tile_depth;
    if (w >= tile_rows && d >= tile_depth) {
      pack_tile<Source, Transposed, false>(at, stride, tile_rows, tile_depth, tile);
    } else {
      pack_tile<Source, Transposed, true>(at, stride, w, d, tile);
    }
  };
  if constexpr (Source == Depth::along) {
    for (std::int64_t e = 0; e < wide; e += tile_rows) {
      for (std::int64_t s = 0; s < steps; ++s) one(e, s);
    }
  } else {
    for (std::int64_t s = 0; s < steps; ++s) {
      for (std::int64_t e = 0; e < wide; e += tile_rows) one(e, s);
    }
  }
}

// --- Products --------------------------------------------------------------------------------------------------------

/// What the sums of a block start from.
enum class Start { zero, output, bias };

/// Fetches the next block of the output while this one is computed, a few rows at each step: its loads and stores would
/// otherwise wait for a cache further out, about as long as the products take.
class NextOutput {
 public:
  NextOutput(float* c, std::int64_t ldc, std::int64_t rows, std::int64_t steps)
      : rows_{c, ldc, rows}, share_(units_of(rows, std::max<std::int64_t>(steps, 1))) {}
  HYMBA_ALWAYS_INLINE void fetch() { rows_.fetch(share_); }

 private:
  RowsToWrite rows_;
  std::int64_t share_;
};

// Tiles 0 to 3 are the sums, [Rows][Cols] of them, 4 and 5 the left operand, 6 and 7 the right. Tiles are named by
// literals: the instructions have no other operands.

template <int Rows, int Cols>
HYMBA_ALWAYS_INLINE void zero_sums() {
  _tile_zero(0);
  if constexpr (Cols == 2) _tile_zero(1);
  if constexpr (Rows == 2) _tile_zero(2);
  if constexpr (Rows == 2 && Cols == 2) _tile_zero(3);
}
/// `c` are numbers of four bytes, rows `row_bytes` apart.
template <int Rows, int Cols, class T>
HYMBA_ALWAYS_INLINE void load_sums(const T* c, std::int64_t row_bytes) {
  static_assert(sizeof(T) == 4);
  const T* const below = c + tile_rows * (row_bytes / 4);
  _tile_loadd(0, c, row_bytes);
  if constexpr (Cols == 2) _tile_loadd(1, c + 16, row_bytes);
  if constexpr (Rows == 2) _tile_loadd(2, below, row_bytes);
  if constexpr (Rows == 2 && Cols == 2) _tile_loadd(3, below + 16, row_bytes);
}
template <int Rows, int Cols, class T>
HYMBA_ALWAYS_INLINE void store_sums(T* c, std::int64_t row_bytes) {
  static_assert(sizeof(T) == 4);
  T* const below = c + tile_rows * (row_bytes / 4);
  _tile_stored(0, c, row_bytes);
  if constexpr (Cols == 2) _tile_stored(1, c + 16, row_bytes);
  if constexpr (Rows == 2) _tile_stored(2, below, row_bytes);
  if constexpr (Rows == 2 && Cols == 2) _tile_stored(3, below + 16, row_bytes);
}
/// One step along k: the left operand's rows are `stride` bytes apart, the right one's tiles lie packed.
template <int Rows, int Cols, class Element>
HYMBA_ALWAYS_INLINE void multiply_step(const void* upper, const void* lower, std::int64_t stride, const Element* right) {
  static_assert(std::is_same_v<Element, bf16> || std::is_same_v<Element, std::int8_t>);
  _tile_loadd(4, upper, stride);
  _tile_stream_loadd(6, right, 64);
  if constexpr (Cols == 2) _tile_stream_loadd(7, right + 1024 / sizeof(Element), 64);
  if constexpr (Rows == 2) _tile_loadd(5, lower, stride);
  if constexpr (std::is_same_v<Element, bf16>) {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Cols == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (Rows == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (Rows == 2 && Cols == 2) _tile_dpbf16ps(3, 5, 7);
  } else {
    _tile_dpbssd(0, 4, 6);
    if constexpr (Cols == 2) _tile_dpbssd(1, 4, 7);
    if constexpr (Rows == 2) _tile_dpbssd(2, 5, 6);
    if constexpr (Rows == 2 && Cols == 2) _tile_dpbssd(3, 5, 7);
  }
}

/// c [16 Rows, 16 Cols] = start + a panel of A times a panel of B over `steps` steps. `bias` has 16 Cols numbers.
template <int Rows, int Cols>
void tile_product(std::int64_t steps, const bf16* a, const bf16* b, float* c, std::int64_t ldc, Start start,
                  const float* bias, NextOutput next) {
  const std::int64_t row_bytes = ldc * static_cast<std::int64_t>(sizeof(float));
  written_before_tiles();
  if (start == Start::output) {
    load_sums<Rows, Cols>(c, row_bytes);
  } else if (start == Start::bias) {
    // Rows no distance apart: every row of the tile is the same.
    load_sums<Rows, Cols>(bias, 0);
  } else {
    zero_sums<Rows, Cols>();
  }
  for (std::int64_t s = 0; s < steps; ++s) {
    multiply_step<Rows, Cols>(a, a + tile_size, 64, b);
    next.fetch();
    a += panel_step;
    b += panel_step;
  }
  store_sums<Rows, Cols>(c, row_bytes);
}

/// Copies rows x cols floats, cols at most 32.
inline void copy_block(const float* from, std::int64_t from_stride, float* to, std::int64_t to_stride,
                       std::int64_t rows, std::int64_t cols) {
  const __mmask16 left = first_lanes(cols), right = first_lanes(cols - 16);
  for (std::int64_t r = 0; r < rows; ++r) {
    _mm512_mask_storeu_ps(to, left, _mm512_maskz_loadu_ps(left, from));
    if (cols > 16) _mm512_mask_storeu_ps(to + 16, right, _mm512_maskz_loadu_ps(right, from + 16));
    from += from_stride;
    to += to_stride;
  }
}

/// One block of c, of which rows x cols exist (at most 32 x 32).
inline void block_of_output(std::int64_t rows, std::int64_t cols, std::int64_t steps, const bf16* a, const bf16* b,
                            float* c, std::int64_t ldc, Start start, const float* bias, NextOutput next) {
  alignas(64) float edge[panel_rows * panel_rows];
  alignas(64) float bias_row[panel_rows];
  if (start == Start::bias) {
    copy_block(bias, 0, bias_row, 0, 1, cols);
    for (std::int64_t j = cols; j < panel_rows; ++j) bias_row[j] = 0.0f;
  }
  const bool whole = rows % tile_rows == 0 && cols % tile_rows == 0;
  float* to = whole ? c : edge;
  const std::int64_t stride = whole ? ldc : panel_rows;
  if (!whole && start == Start::output) copy_block(c, ldc, edge, panel_rows, rows, cols);
  if (rows > tile_rows) {
    if (cols > tile_rows) {
      tile_product<2, 2>(steps, a, b, to, stride, start, bias_row, next);
    } else {
      tile_product<2, 1>(steps, a, b, to, stride, start, bias_row, next);
    }
  } else {
    if (cols > tile_rows) {
      tile_product<1, 2>(steps, a, b, to, stride, start, bias_row, next);
    } else {
      tile_product<1, 1>(steps, a, b, to, stride, start, bias_row, next);
    }
  }
  if (!whole) copy_block(edge, panel_rows, c, ldc, rows, cols);
}

/// c [m, n] (+)= A B + bias, with A [m, k] in `a` and B [k, n] in `b`, whose k lies as `Left` and `Right` say: with
/// Left::along A's element (r, i) is a[r * lda + i], with Left::across a[i * lda + r]; with Right::across B's element
/// (i, j) is b[i * ldb + j], with Right::along b[j * ldb + i].
///
/// Each task packs a block of B that stays in the second-level cache, then takes A past it panel by panel. A panel of A
/// stays in the first level, and panels of B are loaded with the hint not to push it out of there. Every sum runs over
/// k in order of tiles, interrupted where a block of k ends; both depend on k alone.
template <Depth Left, Depth Right>
struct Product {
  static constexpr std::int64_t depth_max = 512;
  static constexpr std::int64_t right_max = depth_max * 1024;  ///< numbers in a packed block of B
  /// Rows of A packed at once: one panel when its rows lie in memory one after the other; otherwise many, since a row
  /// of the source then holds one number of each.
  static constexpr std::int64_t height_max = Left == Depth::along ? panel_rows : 256;

  static constexpr std::size_t scratch_bytes(std::int64_t m, std::int64_t n, std::int64_t k) {
    const std::int64_t depth = std::min(round_up(k, tile_depth), depth_max);
    const std::int64_t left = depth * std::min(round_up(m, panel_rows), height_max);
    const std::int64_t right = std::min(depth * round_up(n, panel_rows), right_max);
    return static_cast<std::size_t>(left + right) * sizeof(bf16);
  }

  /// `sums`, unless null, has sums[r] += the sum of row r of A, before rounding (Left::across only).
  template <class Exec, class Element>
  static void run(Exec& exec, Scratch scratch, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                  std::int64_t lda, const Element* b, std::int64_t ldb, const float* bias, float* c, std::int64_t ldc,
                  bool add, float* sums = nullptr) {
    const BlockGrid grid(m * n * k < serial_product ? 1 : exec.threads(), units_of(m, panel_rows),
                         units_of(n, panel_rows));
    exec.parallel_for(grid.tasks(), [&](std::int64_t task, int thread) noexcept {
      const BlockRange rows = grid.row_range(task, panel_rows, m);
      const BlockRange cols = grid.col_range(task, panel_rows, n);
      block(scratch.of<bf16>(thread), rows.last - rows.first, cols.last - cols.first, k,
            a + rows.first * (Left == Depth::along ? lda : 1), lda, b + cols.first * (Right == Depth::along ? ldb : 1),
            ldb, bias != nullptr ? bias + cols.first : nullptr, c + rows.first * ldc + cols.first, ldc, add,
            sums != nullptr && cols.first == 0 ? sums + rows.first : nullptr);
    });
  }

 private:
  template <class Element>
  static void block(bf16* scratch, std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
                    const Element* b, std::int64_t ldb, const float* bias, float* c, std::int64_t ldc, bool add,
                    float* sums) {
    const TileScope tiles;
    const std::int64_t depth = equal_block(k, depth_max, tile_depth);
    const std::int64_t width = equal_block(n, right_max / depth / panel_rows * panel_rows, panel_rows);
    const std::int64_t height = equal_block(m, height_max, panel_rows);
    bf16* left = scratch;
    bf16* right = scratch + height * depth;
    if (add && bias != nullptr) add_bias(m, n, bias, c, ldc);
    for (std::int64_t j0 = 0; j0 < n; j0 += width) {
      const std::int64_t cols = std::min(width, n - j0);
      for (std::int64_t i0 = 0; i0 < k; i0 += depth) {
        const std::int64_t deep = std::min(depth, k - i0);
        const std::int64_t steps = units_of(deep, tile_depth);
        const Start start = add || i0 > 0 ? Start::output : bias != nullptr ? Start::bias : Start::zero;
        pack_block<Right, Right == Depth::along>(b + (Right == Depth::along ? j0 * ldb + i0 : i0 * ldb + j0), ldb, cols,
                                                 deep, right);
        for (std::int64_t r0 = 0; r0 < m; r0 += height) {
          const std::int64_t rows = std::min(height, m - r0);
          const float* from = a + (Left == Depth::along ? r0 * lda + i0 : i0 * lda + r0);
          pack_block<Left, Left == Depth::across>(from, lda, rows, deep, left);
          if constexpr (Left == Depth::across) {
            if (sums != nullptr && j0 == 0) add_sums(from, lda, rows, deep, sums + r0);
          }
          for (std::int64_t r = 0; r < rows; r += panel_rows) {
            for (std::int64_t j = 0; j < cols; j += panel_rows) {
              // Right of this block, or at the start of the row of blocks below.
              const bool right_of = j + panel_rows < cols;
              const std::int64_t next_r = r0 + (right_of ? r : r + panel_rows);
              const bool last = next_r >= m;
              float* next = last ? nullptr : c + next_r * ldc + j0 + (right_of ? j + panel_rows : 0);
              block_of_output(std::min(panel_rows, rows - r), std::min(panel_rows, cols - j), steps,
                              left + r / panel_rows * steps * panel_step, right + j / panel_rows * steps * panel_step,
                              c + (r0 + r) * ldc + j0 + j, ldc, start, bias != nullptr ? bias + j0 + j : nullptr,
                              NextOutput(next, ldc, last ? 0 : std::min(panel_rows, m - next_r), steps));
            }
          }
        }
      }
    }
  }

  static void add_bias(std::int64_t m, std::int64_t n, const float* bias, float* c, std::int64_t ldc) {
    for (std::int64_t r = 0; r < m; ++r) {
      for (std::int64_t j = 0; j < n; ++j) c[r * ldc + j] += bias[j];
    }
  }

  /// sums[r] += the sum of column r of `deep` rows of the source.
  static void add_sums(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t deep, float* sums) {
    for (std::int64_t r = 0; r < rows; r += 16) {
      const __mmask16 mask = first_lanes(rows - r);
      __m512 total = _mm512_setzero_ps();
      for (std::int64_t i = 0; i < deep; ++i) {
        total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(mask, from + i * stride + r));
      }
      _mm512_mask_storeu_ps(sums + r, mask, _mm512_add_ps(total, _mm512_maskz_loadu_ps(mask, sums + r)));
    }
  }
};

}  // namespace detail::amx

HYMBA_NAMESPACE_END

#endif  // HYMBA_AMX
