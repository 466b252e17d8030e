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
/// A Zen core brings one such stream into its second-level cache by itself, at the bandwidth of memory. Of streams side
/// by side, or of one that several instructions read, it does not, and its first-level cache waits for 24 lines at a
/// time, fetched ahead or not: about half of the bandwidth. Where Intel's cores do best, rows side by side and fetched
/// well ahead, they too get half of it from a single stream. Measured on Zen 4 and Sapphire Rapids; what compilers call
/// Zen 3 may be 4.
#if defined(__znver3__) || defined(__znver4__) || defined(__znver5__)
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
    for (std::int64_t i = 0; i < lines && left > 0; ++i, at += 64, left -= 64) simd::prefetch<2>(at);
  }
};

}  // namespace detail

HYMBA_NAMESPACE_END
