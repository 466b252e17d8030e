// SPDX-License-Identifier: Apache-2.0
//
// Memory that a product will soon touch, fetched a few cache lines with every step of the tiles: the tiles' unit works
// for tens of cycles at a time, and a burst of fetches would wait for each other.
#pragma once

#include <hymba/core/macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

/// Rows of `lines` cache lines that will be read, `stride` bytes apart: into the second-level cache.
struct RowsToRead {
  const std::byte* row = nullptr;
  std::int64_t stride = 0, lines = 0, rows = 0, line = 0;
  HYMBA_ALWAYS_INLINE void fetch(std::int64_t count) {
    while (count > 0 && rows > 0) {
      const std::int64_t here = std::min(count, lines - line);
      const std::byte* const at = row + line * 64;
      for (std::int64_t i = 0; i < here; ++i) __builtin_prefetch(at + i * 64, 0, 2);
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

/// Memory that will be read from end to end: into the second-level cache.
struct BytesToRead {
  const std::byte* at = nullptr;
  std::int64_t left = 0;
  HYMBA_ALWAYS_INLINE void fetch(std::int64_t lines) {
    for (std::int64_t i = 0; i < lines && left > 0; ++i, at += 64, left -= 64) __builtin_prefetch(at, 0, 2);
  }
};

/// Rows of two cache lines that will be written, `stride` floats apart: into the first-level cache.
struct RowsToWrite {
  float* row = nullptr;
  std::int64_t stride = 0, rows = 0;
  HYMBA_ALWAYS_INLINE void fetch(std::int64_t count) {
    for (std::int64_t i = 0; i < count && rows > 0; ++i, row += stride, --rows) {
      __builtin_prefetch(row, 1, 3);
      __builtin_prefetch(row + 16, 1, 3);
    }
  }
};

/// The weights that come next, two halves of a panel, and the outputs of what is being multiplied.
struct FetchAhead {
  RowsToRead weights[2];
  std::int64_t lines = 0;  ///< of each half with each step
  RowsToWrite outputs;
  HYMBA_ALWAYS_INLINE void step() {
    weights[0].fetch(lines);
    weights[1].fetch(lines);
    outputs.fetch(3);
  }
};

}  // namespace detail::amx

HYMBA_NAMESPACE_END
