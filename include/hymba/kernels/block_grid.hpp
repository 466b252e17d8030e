// SPDX-License-Identifier: Apache-2.0
//
// How a matrix product is shared out: each task computes one block of the output.
#pragma once

#include <hymba/core/macros.hpp>

#include <algorithm>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// [first, last) of one dimension of one block.
struct BlockRange {
  std::int64_t first, last;
};

/// An output of `row_units` x `col_units` units cut into `rows` x `cols` blocks, nearly equal, one per thread at most.
struct BlockGrid {
  std::int64_t row_units, col_units, rows = 1, cols = 1;

  /// The cut with the smallest largest block; among equals the one whose blocks read least of both operands.
  constexpr BlockGrid(std::int64_t threads, std::int64_t row_units_, std::int64_t col_units_)
      : row_units(row_units_), col_units(col_units_) {
    std::int64_t best_area = row_units * col_units;
    std::int64_t best_sides = row_units + col_units;
    for (std::int64_t r = 1; r <= std::min(threads, row_units); ++r) {
      const std::int64_t c = std::min(threads / r, col_units);
      const std::int64_t height = (row_units + r - 1) / r, width = (col_units + c - 1) / c;
      if (height * width < best_area || (height * width == best_area && height + width < best_sides)) {
        best_area = height * width;
        best_sides = height + width;
        rows = r;
        cols = c;
      }
    }
  }
  constexpr std::int64_t tasks() const { return rows * cols; }
  /// Rows and columns of task `task`, of a matrix with units of `unit` and `size` in all.
  constexpr BlockRange row_range(std::int64_t task, std::int64_t unit, std::int64_t size) const {
    return row_block(task / cols, unit, size);
  }
  /// Rows of the blocks beside each other that are the `block`-th from above, likewise.
  constexpr BlockRange row_block(std::int64_t block, std::int64_t unit, std::int64_t size) const {
    return range(block, rows, row_units, unit, size);
  }
  constexpr BlockRange col_range(std::int64_t task, std::int64_t unit, std::int64_t size) const {
    return range(task % cols, cols, col_units, unit, size);
  }

 private:
  static constexpr BlockRange range(std::int64_t part, std::int64_t parts, std::int64_t units, std::int64_t unit,
                                    std::int64_t size) {
    return {units * part / parts * unit, std::min(units * (part + 1) / parts * unit, size)};
  }
};

/// Multiply-adds below which a product stays on the caller.
inline constexpr std::int64_t serial_product = 65536;

/// `n` in parts of `unit`.
constexpr std::int64_t units_of(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit; }
constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) { return units_of(n, unit) * unit; }

/// A dimension of `n` cut into the fewest equal blocks of at most `most`, all but the last a multiple of `unit` long
/// (so is `most`). Depends on `n` alone: sums that follow these blocks do not depend on who computes them.
constexpr std::int64_t equal_block(std::int64_t n, std::int64_t most, std::int64_t unit) {
  return n <= 0 ? unit : round_up(units_of(n, units_of(n, most)), unit);
}

}  // namespace detail

HYMBA_NAMESPACE_END
