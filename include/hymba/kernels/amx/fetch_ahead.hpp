// SPDX-License-Identifier: Apache-2.0
//
// Memory that a product will soon touch, fetched a few cache lines with every step of the tiles: the tiles' unit works
// for tens of cycles at a time, and a burst of fetches would wait for each other.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/kernels/memory_to_read.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

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
