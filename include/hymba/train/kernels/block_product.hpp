// SPDX-License-Identifier: Apache-2.0
//
// The register-blocked outer product behind the matrix products of training, and a product of small blocks that lie in
// cache already.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/static_dispatch.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Sizes of the outer product in registers: `rows` broadcast elements of A times `vectors` vectors of B, so that the
/// accumulators, one row of B and one element of A fill the registers.
template <class A>
struct OuterProduct {
  static constexpr int vectors = 2;
  static constexpr int rows = simd::registers<A> >= 32 ? 14 : 6;
  static constexpr std::int64_t lanes = simd::lanes<A>;
  static constexpr std::int64_t cols = vectors * lanes;
};

/// What outer_product() does between its steps: nothing.
struct NoFetch {
  void operator()() const {}
};

/// Steps between two calls of what outer_product() does besides.
inline constexpr std::int64_t fetch_steps = 16;

/// c[R, V vectors] (+)= a b, summed over k in order. A's element (r, i) lies at a[r * row_stride + i * col_stride], row
/// i of b at b + i * ldb. Inlined, so that strides known to the caller become displacements. With `Partial` only the
/// first `last` lanes of the last vector of b and c exist. `fetch()` is called every `fetch_steps` steps.
template <class A, int R, int V, bool Partial, class Fetch = NoFetch>
HYMBA_ALWAYS_INLINE void outer_product(std::int64_t k, const float* a, std::int64_t row_stride, std::int64_t col_stride,
                                       const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add,
                                       std::int64_t last, Fetch&& fetch = {}) {
  constexpr std::int64_t L = simd::lanes<A>;
  simd::floats<A> acc[R][V];
  unrolled<R>([&](auto r) { unrolled<V>([&](auto v) { acc[r][v] = simd::zero<A>(); }); });
  // Three rows share a pointer: the distances to the others are what one address of x86 can express.
  constexpr int groups = (R + 2) / 3;
  const float* from[groups];
  unrolled<groups>([&](auto g) { from[g] = a + 3 * g * row_stride; });
  for (std::int64_t i = 0; i < k;) {
    fetch();
    for (const std::int64_t stop = std::is_same_v<std::decay_t<Fetch>, NoFetch> ? k : std::min(i + fetch_steps, k);
         i < stop; ++i) {
      simd::floats<A> row[V];
      unrolled<V>([&](auto v) {
        if constexpr (Partial && v == V - 1) {
          row[v] = simd::pinned<A>(simd::load_partial<A>(b + v * L, last));
        } else {
          row[v] = simd::pinned<A>(simd::load<A>(b + v * L));
        }
      });
      unrolled<R>([&](auto r) {
        const simd::floats<A> element = simd::broadcast<A>(from[r / 3][(r % 3) * row_stride]);
        unrolled<V>([&](auto v) { acc[r][v] = simd::fma<A>(element, row[v], acc[r][v]); });
      });
      unrolled<groups>([&](auto g) { from[g] += col_stride; });
      b += ldb;
    }
  }
  unrolled<R>([&](auto r) {
    float* to = c + r * ldc;
    unrolled<V>([&](auto v) {
      if constexpr (Partial && v == V - 1) {
        if (add) acc[r][v] += simd::load_partial<A>(to + v * L, last);
        simd::store_partial<A>(to + v * L, acc[r][v], last);
      } else {
        if (add) acc[r][v] += simd::load<A>(to + v * L);
        simd::store<A>(to + v * L, acc[r][v]);
      }
    });
  });
}

/// The same with R = `rows`, one of 1 to `Most`.
template <class A, int Most, int V, bool Partial>
void outer_product_rows(std::int64_t rows, std::int64_t k, const float* a, std::int64_t row_stride,
                        std::int64_t col_stride, const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add,
                        std::int64_t last) {
  unrolled<Most>([&](auto i) {
    if (rows == i + 1) outer_product<A, i + 1, V, Partial>(k, a, row_stride, col_stride, b, ldb, c, ldc, add, last);
  });
}

/// c [m, n] = a b, or c += a b with `add`, for blocks small enough to lie in cache together: nothing is packed or
/// allocated. a [m, k] has its element (r, i) at a[r * a_row_stride + i * a_col_stride], so either operand order or a
/// transpose costs nothing; b [k, n] and c are row-major with rows ldb and ldc apart. c overlaps neither. Runs on the
/// caller. Every element is summed in the order of k, then added: its bits depend on nothing else. k may be 0.
template <class A>
void block_product(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t a_row_stride,
                   std::int64_t a_col_stride, const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add) {
  using Size = OuterProduct<A>;
  constexpr std::int64_t L = Size::lanes;
  if (k == 0) {  // a and b may be null, and no address is formed from them
    for (std::int64_t r = 0; !add && r < m; ++r) std::fill_n(c + r * ldc, n, 0.0f);
    return;
  }
  // Rows in equal parts: a last part of one or two rows could not cover the latency of the multiply-adds.
  const std::int64_t parts = (m + Size::rows - 1) / Size::rows;
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t first = m * part / parts;
    const std::int64_t rows = m * (part + 1) / parts - first;
    const float* from = a + first * a_row_stride;
    float* to = c + first * ldc;
    std::int64_t j = 0;
    for (; j + Size::cols <= n; j += Size::cols) {
      outer_product_rows<A, Size::rows, Size::vectors, false>(rows, k, from, a_row_stride, a_col_stride, b + j, ldb,
                                                              to + j, ldc, add, L);
    }
    if (j + L <= n) {
      outer_product_rows<A, Size::rows, 1, false>(rows, k, from, a_row_stride, a_col_stride, b + j, ldb, to + j, ldc,
                                                  add, L);
      j += L;
    }
    if (j < n) {
      outer_product_rows<A, Size::rows, 1, true>(rows, k, from, a_row_stride, a_col_stride, b + j, ldb, to + j, ldc,
                                                 add, n - j);
    }
  }
}

}  // namespace detail

HYMBA_NAMESPACE_END
