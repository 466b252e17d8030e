// SPDX-License-Identifier: Apache-2.0
//
// What becomes of the sums of a product on tiles. A sink gets a panel's sums [32, 32], weights down and tokens across,
// and for a single token a pair's sums [32]; `rows` is how many rows of weights exist.
#pragma once

#include <hymba/kernels/amx/tiles.hpp>

#if defined(HYMBA_AMX)

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/kernels/amx/fetch_ahead.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <algorithm>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

/// y = (store == add ? y : 0) + bias + sums: the panels of RowPanels.
struct SumsToRows {
  const float* bias;
  MatrixView<float> y;
  Store store;

  RowsToWrite rows_to_write(std::int64_t panel, std::int64_t token, std::int64_t tokens) const {
    return {y.row(token) + panel * panel_rows, y.stride, tokens};
  }
  void write(const float* sums, std::int64_t panel, std::int64_t rows, std::int64_t token, std::int64_t tokens) const {
    for (std::int64_t o = 0; o < rows; o += tile_rows) {
      const std::int64_t row = panel * panel_rows + o;
      const __mmask16 mask = first_lanes(rows - o);
      const __m512 shift = bias != nullptr ? _mm512_maskz_loadu_ps(mask, bias + row) : _mm512_setzero_ps();
      for (std::int64_t t = 0; t < tokens; t += tile_rows) {
        __m512i v[tile_rows];
#pragma GCC unroll 16
        for (int r = 0; r < tile_rows; ++r) v[r] = _mm512_load_si512(sums + (o + r) * panel_rows + t);
        transpose(v);
        const int count = static_cast<int>(std::min(tile_rows, tokens - t));
        for (int r = 0; r < count; ++r) put(_mm512_castsi512_ps(v[r]), shift, mask, y.row(token + t + r) + row);
      }
    }
  }
  void write_one(const float* sums, std::int64_t unit, std::int64_t rows) const {
    for (std::int64_t o = 0; o < rows; o += tile_rows) {
      const std::int64_t row = unit * tile_rows + o;
      const __mmask16 mask = first_lanes(rows - o);
      const __m512 shift = bias != nullptr ? _mm512_maskz_loadu_ps(mask, bias + row) : _mm512_setzero_ps();
      put(_mm512_load_ps(sums + o), shift, mask, y.row(0) + row);
    }
  }

 private:
  HYMBA_ALWAYS_INLINE void put(__m512 sum, __m512 shift, __mmask16 mask, float* to) const {
    __m512 value = _mm512_add_ps(sum, shift);
    if (store == Store::add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, to));
    _mm512_mask_storeu_ps(to, mask, value);
  }
};

/// y = silu(sums of the first matrix) * sums of the second: the panels of PairPanels. `A` is an xsimd architecture of
/// 16 lanes.
template <class A>
struct GatedSums {
  MatrixView<float> y;

  RowsToWrite rows_to_write(std::int64_t panel, std::int64_t token, std::int64_t tokens) const {
    return {y.row(token) + panel * tile_rows, y.stride, tokens};
  }
  void write(const float* sums, std::int64_t panel, std::int64_t rows, std::int64_t token, std::int64_t tokens) const {
    const __mmask16 mask = first_lanes(rows / 2);
    for (std::int64_t t = 0; t < tokens; t += tile_rows) {
      __m512i gate[tile_rows], up[tile_rows];
#pragma GCC unroll 16
      for (int r = 0; r < tile_rows; ++r) gate[r] = _mm512_load_si512(sums + r * panel_rows + t);
      transpose(gate);
#pragma GCC unroll 16
      for (int r = 0; r < tile_rows; ++r) up[r] = _mm512_load_si512(sums + (tile_rows + r) * panel_rows + t);
      transpose(up);
      const int count = static_cast<int>(std::min(tile_rows, tokens - t));
      for (int r = 0; r < count; ++r) {
        put(_mm512_castsi512_ps(gate[r]), _mm512_castsi512_ps(up[r]), mask, y.row(token + t + r) + panel * tile_rows);
      }
    }
  }
  void write_one(const float* sums, std::int64_t unit, std::int64_t rows) const {
    put(_mm512_load_ps(sums), _mm512_load_ps(sums + tile_rows), first_lanes(rows / 2), y.row(0) + unit * tile_rows);
  }

 private:
  static HYMBA_ALWAYS_INLINE void put(__m512 gate, __m512 up, __mmask16 mask, float* to) {
    const simd::floats<A> value = simd::silu<A>(simd::floats<A>(gate)) * simd::floats<A>(up);
    _mm512_mask_storeu_ps(to, mask, value);
  }
};

}  // namespace detail::amx

HYMBA_NAMESPACE_END

#endif  // HYMBA_AMX
