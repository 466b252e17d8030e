// SPDX-License-Identifier: Apache-2.0
//
// Large matrix products in single precision: both operands packed block by block, an outer product in registers inside.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/train/kernels/block_product.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// A block of a matrix that is fetched into the second-level cache line by line.
class FetchedBlock {
 public:
  FetchedBlock() = default;
  template <class T>
  FetchedBlock(const T* first, std::int64_t stride, std::int64_t rows, std::int64_t cols)
      : row_(reinterpret_cast<const char*>(first)), stride_(stride * bytes<T>), rows_(rows), bytes_(cols * bytes<T>) {}
  std::int64_t lines() const { return rows_ * (bytes_ / 64 + 1); }
  HYMBA_ALWAYS_INLINE void fetch(std::int64_t count) {
    for (; count > 0 && rows_ > 0; --count) {
      simd::prefetch<2>(row_ + at_);
      at_ += 64;
      if (at_ >= bytes_) {
        at_ = 0;
        row_ += stride_;
        --rows_;
      }
    }
  }

 private:
  template <class T>
  static constexpr std::int64_t bytes = static_cast<std::int64_t>(sizeof(T));

  const char* row_ = nullptr;
  std::int64_t stride_ = 0, rows_ = 0, bytes_ = 0, at_ = 0;
};

/// What an outer product fetches between its steps: the rows of c it will write, a few lines of the next panel of b and
/// of the next block of a. All at once would wait for each other; spread over the steps they cost nothing.
struct ProductAhead {
  FetchedBlock a, b;
  std::int64_t share_a = 0, share_b = 0;  // lines at a time
  const float* c = nullptr;
  std::int64_t ldc = 0, c_rows = 0, c_cols = 0;

  void panel(const float* to, std::int64_t stride, std::int64_t rows, std::int64_t cols) {
    c = to;
    ldc = stride;
    c_rows = rows;
    c_cols = cols;
  }
  HYMBA_ALWAYS_INLINE void operator()() {
    if (c_rows > 0) {
      for (std::int64_t j = 0; j < c_cols; j += 16) simd::prefetch(c + j);
      c += ldc;
      --c_rows;
    }
    a.fetch(share_a);
    b.fetch(share_b);
  }
};

/// How the left operand lies: rows of A are rows in memory, or columns.
enum class LeftOrder { rows, columns };

/// c [m, n] (+)= a b on xsimd architecture `A`, with b [k, n] and c row-major, and k at least 1.
///
/// A panel of b (`depth` rows, the columns of one outer product) stays in the first-level cache while the panels of a
/// block of a come past it from the second level. Neither operand is transposed on the way: the elements of a are
/// broadcast one by one, so a panel of a may hold its rows one after the other (LeftOrder::rows) or its columns
/// (LeftOrder::columns), whichever the source does.
template <class A>
struct PackedProduct {
  using Size = OuterProduct<A>;
  static constexpr std::int64_t L = Size::lanes;
  static constexpr int R = Size::rows;
  static constexpr std::int64_t depth_max = 256;
  static constexpr std::int64_t height_max = (L >= 16 ? 504 : 252) / R * R;
  /// Distance of the rows of a packed panel of a. Not a power of two: the rows would share the cache's sets.
  static constexpr std::int64_t row_stride = depth_max + 16;

  static constexpr std::size_t scratch_bytes(std::int64_t m, std::int64_t, std::int64_t k) {
    const std::int64_t block_a = std::min(round_up(m, R), height_max) * row_stride;
    const std::int64_t panel_b = std::min(k, depth_max) * Size::cols;
    return aligned_size(static_cast<std::size_t>(block_a) * sizeof(float)) +
           aligned_size(static_cast<std::size_t>(panel_b) * sizeof(float));
  }

  /// One call. a: element (r, i) at a[r * lda + i] (LeftOrder::rows) or a[i * lda + r] (LeftOrder::columns). `sums`,
  /// unless null, has sums[r] += the sum of row r of A (LeftOrder::columns only).
  template <LeftOrder Order, class Exec, class Element>
  static void run(Exec& exec, Scratch scratch, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                  std::int64_t lda, const Element* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add,
                  float* sums = nullptr) {
    const BlockGrid grid(m * n * k < serial_product ? 1 : exec.threads(), units_of(m, R), units_of(n, Size::cols));
    exec.parallel_for(grid.tasks(), [&](std::int64_t task, int thread) noexcept {
      const BlockRange rows = grid.row_range(task, R, m);
      const BlockRange cols = grid.col_range(task, Size::cols, n);
      block<Order>(scratch.of<float>(thread), rows.last - rows.first, cols.last - cols.first, k,
                   a + rows.first * (Order == LeftOrder::rows ? lda : 1), lda, b + cols.first, ldb,
                   c + rows.first * ldc + cols.first, ldc, add,
                   sums != nullptr && cols.first == 0 ? sums + rows.first : nullptr);
    });
  }

 private:
  template <LeftOrder Order, class Element>
  static void block(float* scratch, std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
                    const Element* b, std::int64_t ldb, float* c, std::int64_t ldc, bool add, float* sums) {
    const std::int64_t depth = equal_block(k, depth_max, 1);
    const std::int64_t height = equal_block(m, height_max, R);
    float* block_a = scratch;
    float* panel_b = scratch + height * row_stride;
    for (std::int64_t i0 = 0; i0 < k; i0 += depth) {
      const std::int64_t steps = std::min(depth, k - i0);
      for (std::int64_t r0 = 0; r0 < m; r0 += height) {
        const std::int64_t rows = std::min(height, m - r0);
        for (std::int64_t r = 0; r < rows; r += R) {
          const std::int64_t count = std::min<std::int64_t>(R, rows - r);
          float* to = block_a + r * row_stride;
          if constexpr (Order == LeftOrder::rows) {
            pack_rows(a + (r0 + r) * lda + i0, lda, count, steps, to);
          } else {
            pack_columns(a + i0 * lda + r0 + r, lda, count, steps, to);
            if (sums != nullptr) add_sums(to, count, steps, sums + r0 + r);
          }
        }
        // What is packed next is fetched while this is used: the next block of a, the next panel of b.
        const bool below = r0 + height < m;
        const std::int64_t next_r = below ? r0 + height : 0;
        const std::int64_t next_i = below ? i0 : i0 + depth;
        ProductAhead ahead;
        if (next_i < k) {
          const std::int64_t next_rows = std::min(height, m - next_r), next_steps = std::min(depth, k - next_i);
          ahead.a = Order == LeftOrder::rows ? FetchedBlock(a + next_r * lda + next_i, lda, next_rows, next_steps)
                                             : FetchedBlock(a + next_i * lda + next_r, lda, next_steps, next_rows);
        }
        const std::int64_t calls = units_of(steps, fetch_steps);  // per panel
        ahead.share_a = units_of(ahead.a.lines(), units_of(rows, R) * units_of(n, Size::cols) * calls);
        for (std::int64_t j = 0; j < n; j += Size::cols) {
          const std::int64_t next_j = j + Size::cols < n ? j + Size::cols : 0;
          const std::int64_t b_i = next_j > 0 ? i0 : next_i;
          ahead.b = FetchedBlock();
          if (b_i < k) {
            ahead.b =
                FetchedBlock(b + b_i * ldb + next_j, ldb, std::min(depth, k - b_i), std::min(n - next_j, Size::cols));
          }
          ahead.share_b = units_of(ahead.b.lines(), units_of(rows, R) * calls);
          float* to = c + r0 * ldc + j;
          const bool sum = add || i0 > 0;
          if (n - j > L) {
            pack_right<Size::vectors>(b + i0 * ldb + j, ldb, steps, n - j, panel_b);
            panels<Order, Size::vectors>(block_a, panel_b, rows, steps, to, ldc, sum, n - j, ahead);
          } else {
            pack_right<1>(b + i0 * ldb + j, ldb, steps, n - j, panel_b);
            panels<Order, 1>(block_a, panel_b, rows, steps, to, ldc, sum, n - j, ahead);
          }
        }
      }
    }
  }

  /// Rows of a one after the other, row_stride apart. Missing rows repeat the first: what they give is dropped.
  static void pack_rows(const float* a, std::int64_t lda, std::int64_t count, std::int64_t steps, float* to) {
    for (std::int64_t r = 0; r < R; ++r) {
      const float* from = a + (r < count ? r : 0) * lda;
      std::int64_t i = 0;
      for (; i + L <= steps; i += L) simd::store<A>(to + i, simd::load<A>(from + i));
      if (i < steps) simd::store_partial<A>(to + i, simd::load_partial<A>(from + i, steps - i), steps - i);
      to += row_stride;
    }
  }

  /// Columns of a one after the other, R apart. Missing rows are zero.
  static void pack_columns(const float* a, std::int64_t lda, std::int64_t count, std::int64_t steps, float* to) {
    for (std::int64_t i = 0; i < steps; ++i) {
      const float* from = a + i * lda;
      if (count == R) {
        std::int64_t r = 0;
        for (; r + L <= R; r += L) simd::store<A>(to + r, simd::load<A>(from + r));
        if constexpr (R % L != 0) {
          if constexpr (L >= 16) {
            simd::store_partial<A>(to + r, simd::load_partial<A>(from + r, R % L), R % L);
          } else {
            for (; r < R; ++r) to[r] = from[r];
          }
        }
      } else {
        for (std::int64_t r = 0; r < R; ++r) to[r] = r < count ? from[r] : 0.0f;
      }
      to += R;
    }
  }

  /// sums[r] += the sum of row r of a panel that holds columns.
  static void add_sums(const float* panel, std::int64_t count, std::int64_t steps, float* sums) {
    float total[R] = {};
    for (std::int64_t i = 0; i < steps; ++i) {
      for (int r = 0; r < R; ++r) total[r] += panel[i * R + r];
    }
    for (std::int64_t r = 0; r < count; ++r) sums[r] += total[r];
  }

  /// `V` vectors of each row of b, widened; missing columns are zero.
  template <int V, class Element>
  static void pack_right(const Element* b, std::int64_t ldb, std::int64_t steps, std::int64_t cols, float* to) {
    if (cols >= V * L) {
      for (std::int64_t i = 0; i < steps; ++i) {
        unrolled<V>([&](auto v) { simd::store<A>(to + v * L, simd::load<A>(b + v * L)); });
        b += ldb;
        to += V * L;
      }
    } else {
      const std::int64_t last = cols - (V - 1) * L;
      for (std::int64_t i = 0; i < steps; ++i) {
        unrolled<V - 1>([&](auto v) { simd::store<A>(to + v * L, simd::load<A>(b + v * L)); });
        simd::store<A>(to + (V - 1) * L, simd::load_partial<A>(b + (V - 1) * L, last));
        b += ldb;
        to += V * L;
      }
    }
  }

  /// One panel of b against the panels of a block of a.
  template <LeftOrder Order, int V>
  static void panels(const float* block_a, const float* panel_b, std::int64_t rows, std::int64_t steps, float* c,
                     std::int64_t ldc, bool add, std::int64_t cols, ProductAhead& ahead) {
    for (std::int64_t r = 0; r < rows; r += R) {
      const float* a = block_a + r * row_stride;
      float* to = c + r * ldc;
      ahead.panel(to, ldc, std::min<std::int64_t>(R, rows - r), std::min<std::int64_t>(cols, V * L));
      if (rows - r >= R && cols >= V * L) {
        panel<Order, V>(steps, a, panel_b, to, ldc, add, ahead);
      } else {
        // An edge: the whole panel into a buffer, then what exists of it to c.
        alignas(64) float all[R * V * L];
        panel<Order, V>(steps, a, panel_b, all, V * L, false, ahead);
        const std::int64_t width = std::min<std::int64_t>(cols, V * L);
        for (std::int64_t i = 0; i < std::min<std::int64_t>(R, rows - r); ++i) {
          for (std::int64_t j = 0; j < width; ++j) {
            to[i * ldc + j] = add ? to[i * ldc + j] + all[i * V * L + j] : all[i * V * L + j];
          }
        }
      }
    }
  }

  template <LeftOrder Order, int V>
  static void panel(std::int64_t steps, const float* a, const float* b, float* c, std::int64_t ldc, bool add,
                    ProductAhead& ahead) {
    if constexpr (Order == LeftOrder::rows) {
      outer_product<A, R, V, false>(steps, a, row_stride, 1, b, V * L, c, ldc, add, L, ahead);
    } else {
      outer_product<A, R, V, false>(steps, a, 1, R, b, V * L, c, ldc, add, L, ahead);
    }
  }
};

}  // namespace detail

HYMBA_NAMESPACE_END
