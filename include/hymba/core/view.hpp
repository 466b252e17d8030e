// SPDX-License-Identifier: Apache-2.0
//
// Non-owning strided views. A view never frees and never outlives what it looks at.
#pragma once

#include <hymba/core/macros.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// A row-major matrix view: element (r, c) is `data[r * stride + c]`, `stride >= cols`.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  constexpr MatrixView() = default;
  constexpr MatrixView(T* d, std::int64_t r, std::int64_t c) : data(d), rows(r), cols(c), stride(c) {}
  constexpr MatrixView(T* d, std::int64_t r, std::int64_t c, std::int64_t s) : data(d), rows(r), cols(c), stride(s) {}
  /// A view of mutable elements reads as a view of const ones.
  template <class U>
    requires(std::is_same_v<const U, T>)
  constexpr MatrixView(const MatrixView<U>& o) : data(o.data), rows(o.rows), cols(o.cols), stride(o.stride) {}

  constexpr T* row(std::int64_t r) const { return data + r * stride; }
  constexpr T& operator()(std::int64_t r, std::int64_t c) const { return data[r * stride + c]; }
  /// Columns [first, first + count) of every row; no copy.
  constexpr MatrixView columns(std::int64_t first, std::int64_t count) const {
    return {data + first, rows, count, stride};
  }
  /// Rows [first, first + count); no copy.
  constexpr MatrixView row_range(std::int64_t first, std::int64_t count) const {
    return {data + first * stride, count, cols, stride};
  }
};

HYMBA_NAMESPACE_END
