// SPDX-License-Identifier: Apache-2.0
//
// Memory that a product will soon read: fetched into the second-level cache a few lines at a time, between the products
// of what was fetched before.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

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
