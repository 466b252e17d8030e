// SPDX-License-Identifier: Apache-2.0
//
// Which rows of a matrix are one sequence.
#pragma once

#include <hymba/core/macros.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// Rows [first_row, first_row + rows) of the matrices are one sequence, from its start.
struct RowRange {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
};

HYMBA_NAMESPACE_END
