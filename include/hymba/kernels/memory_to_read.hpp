// SPDX-License-Identifier: Apache-2.0
//
// How products read weights from memory: which rows side by side, and what is fetched ahead, a few lines at a time between
// the products of what was fetched before, or left to the processor.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/block_grid.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Whether weights that pass once are read row by row, by one load instruction, and nothing is fetched ahead.
///
/// A Zen 4 core brings one such stream into its second-level cache by itself, at the bandwidth of memory. Of streams side
/// by side, or of one that several instructions read, it does not, and its first-level cache waits for 24 lines at a
/// time, fetched ahead or not: about half of the bandwidth. Where Intel's cores do best, rows side by side and fetched
/// well ahead, they too get half of it from a single stream; Zen 3, without a load of a whole line, is between them and
/// better off with rows side by side. Measured on Zen 3, Zen 4 and Sapphire Rapids. What compilers call Zen 3 is 4 where
/// it has AVX-512.
#if (defined(__znver3__) && defined(__AVX512F__)) || defined(__znver4__) || defined(__znver5__)
inline constexpr bool reads_row_by_row = true;
#else
inline constexpr bool reads_row_by_row = false;
#endif

/// How far ahead, in bytes, weights of few tokens are fetched in each of the streams that they are read in, into the
/// first-level cache: 1 to 4 KB do alike. Where they go into the second (kernels/dot/gemm.hpp), twice as far.
inline constexpr std::int64_t fetched_ahead = 2048;

/// Whether int8 weights of few tokens are fetched ahead on dot products, as all others are. On Zen 3 they come faster if
/// nobody does.
#if defined(__znver3__) && !defined(__AVX512F__)
inline constexpr bool fetches_int8 = false;
#else
inline constexpr bool fetches_int8 = true;
#endif

/// Rows [first, last) in `count` pieces of `length`, read side by side: a step takes as many neighbours of each. Each
/// piece is memory that is read from end to end. Neighbouring rows side by side would be as many streams, but all of
/// them would begin anew with the next rows.
struct RowPieces {
  std::int64_t first, last, length;
  /// In steps of `step` rows of each piece.
  RowPieces(std::int64_t first_row, std::int64_t last_row, std::int64_t count, std::int64_t step)
      : first(first_row),
        last(last_row),
        length(round_up(units_of(last_row - first_row, count), step)) {}
  std::int64_t row(std::int64_t piece, std::int64_t i) const { return first + piece * length + i; }
  bool has(std::int64_t piece, std::int64_t i) const { return row(piece, i) < last; }
  /// Whoever needs as many rows of each piece takes the last one again, and drops what comes of it.
  std::int64_t row_or_last(std::int64_t piece, std::int64_t i) const { return std::min(row(piece, i), last - 1); }
};

/// Rows of `lines` cache lines that will be read, `stride` bytes apart.
struct RowsToRead {
  const std::byte* row = nullptr;
  std::int64_t stride = 0, lines = 0, rows = 0, line = 0;
  HYMBA_ALWAYS_INLINE void fetch(std::int64_t count) {
    while (count > 0 && rows > 0) {
      const std::int64_t here = std::min(count, lines - line);
      const std::byte* const at = row + line * 64;
      for (std::int64_t i = 0; i < here; ++i) simd::prefetch<2>(at + i * 64);
      count -= here;
      line += here;
      if (line == lines) {
        line = 0;
        row += stride;
        --rows;
      }
    }
  }
};

/// Memory that will be read from end to end.
struct BytesToRead {
  const std::byte* at = nullptr;
  std::int64_t left = 0;
  HYMBA_ALWAYS_INLINE void fetch(std::int64_t lines) {
    // Counted before: as members, place and rest would go through memory with each line.
    const std::int64_t here = std::min(lines, (left + 63) / 64);
    for (std::int64_t i = 0; i < here; ++i) simd::prefetch<2>(at + i * 64);
    at += here * 64;
    left -= here * 64;
  }
};

}  // namespace detail

HYMBA_NAMESPACE_END
