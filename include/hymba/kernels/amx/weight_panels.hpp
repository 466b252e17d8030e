// SPDX-License-Identifier: Apache-2.0
//
// Which rows of weights a product on tiles takes side by side: panels of two halves, each a tile of 16 rows.
#pragma once

#include <hymba/kernels/amx/tiles.hpp>

#if defined(HYMBA_AMX)

#include <hymba/core/macros.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/kernels/block_grid.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

/// Up to 16 rows of a matrix from `row`; none where `rows` is 0.
template <Weights W>
struct PanelHalf {
  WeightMatrix<W> w{};
  std::int64_t row = 0, rows = 0;
  /// Null where there are no rows.
  const std::byte* data(std::int64_t offset = 0) const { return rows > 0 ? w.row(row) + offset : nullptr; }
};

/// Only the second half may be empty while the first is not.
template <Weights W>
struct PanelHalves {
  PanelHalf<W> at[2];
  std::int64_t rows() const { return at[0].rows + at[1].rows; }
  /// Whether every half that exists has all its rows.
  bool whole() const { return at[0].rows == tile_rows && (at[1].rows == tile_rows || at[1].rows == 0); }
};

/// The rows of one matrix in order. A unit, the least that a thread gets, is one half.
template <Weights W>
class RowPanels {
 public:
  static constexpr std::int64_t pair_units = 2;
  explicit RowPanels(const WeightMatrix<W>& w) : w_(w) {}
  std::int64_t rows() const { return w_.rows; }
  bool rotated() const { return w_.rotated; }
  std::int64_t panels() const { return units_of(w_.rows, panel_rows); }
  std::int64_t units() const { return units_of(w_.rows, tile_rows); }
  PanelHalves<W> panel(std::int64_t p) const { return pair(2 * p, 2 * p + 2); }
  /// Units `unit` and, if it is below `end`, the next.
  PanelHalves<W> pair(std::int64_t unit, std::int64_t end) const {
    return {{half(unit), unit + 1 < end ? half(unit + 1) : PanelHalf<W>{}}};
  }

 private:
  PanelHalf<W> half(std::int64_t unit) const {
    return {w_, unit * tile_rows, std::clamp<std::int64_t>(w_.rows - unit * tile_rows, 0, tile_rows)};
  }
  WeightMatrix<W> w_;
};

/// The same rows of two matrices of one shape, rotated or not both, beside each other. A unit is a pair.
template <Weights W>
class PairPanels {
 public:
  static constexpr std::int64_t pair_units = 1;
  PairPanels(const WeightMatrix<W>& first, const WeightMatrix<W>& second) : first_(first), second_(second) {}
  std::int64_t rows() const { return 2 * first_.rows; }
  bool rotated() const { return first_.rotated; }
  std::int64_t panels() const { return units_of(first_.rows, tile_rows); }
  std::int64_t units() const { return panels(); }
  PanelHalves<W> panel(std::int64_t p) const { return pair(p, p + 1); }
  PanelHalves<W> pair(std::int64_t unit, std::int64_t) const {
    const std::int64_t row = unit * tile_rows, rows = std::min(tile_rows, first_.rows - row);
    return {{{first_, row, rows}, {second_, row, rows}}};
  }

 private:
  WeightMatrix<W> first_, second_;
};

}  // namespace detail::amx

HYMBA_NAMESPACE_END

#endif  // HYMBA_AMX
