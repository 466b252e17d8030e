// SPDX-License-Identifier: Apache-2.0
//
// How products read weights from memory: fetched ahead into the second-level cache, a few lines at a time between the
// products of what was fetched before, or left to the processor.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>

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
