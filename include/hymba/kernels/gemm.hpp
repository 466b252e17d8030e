// SPDX-License-Identifier: Apache-2.0
//
// The product of activations and a weight matrix: a few rows against weights in memory (decode), or many rows against
// packed blocks (prefill).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/memory_to_read.hpp>
#include <hymba/kernels/quantised_rows.hpp>
#include <hymba/kernels/rotation.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// What a kernel does with what its output held before.
enum class Store { assign, add };

namespace op {
/// Linear layer: `y = x w^T + bias` (Store::assign) or `y += x w^T + bias` (Store::add), with x [T, I], w [O, I] in
/// weight format `W`, bias [O] or null, y [T, O].
///
///     template <Weights W, Executor E>
///     static void run(E& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
///                     MatrixView<float> y, Store store);
///     static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out);
///     static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in, std::int64_t out);  // may be absent
///     static constexpr std::size_t rotated_bytes(std::int64_t rows, std::int64_t in);                   // likewise
///
/// y overlaps neither x nor w. T may be 0. `scratch_bytes` grows with each argument: that of the largest sizes serves
/// all smaller ones; likewise `shared_bytes`, of the scratch that threads share, and `rotated_bytes`, what of it
/// rotated weights need.
///
/// Every element is a sum in single precision whose order depends on I and the architecture only: not on T, nor on the
/// number of threads, nor on where the row lies. A prompt fed in pieces gives the bits of the whole.
struct Gemm {};
}  // namespace op

/// Bytes of scratch that the threads of op::Gemm share on `Arch`.
template <class Arch>
constexpr std::size_t gemm_shared_bytes(std::int64_t rows, std::int64_t in, std::int64_t out, bool rotated) {
  using Kernel = kernel_for<op::Gemm, Arch>;
  std::size_t bytes = 0;
  if constexpr (requires { Kernel::shared_bytes(rows, in, out); }) bytes = Kernel::shared_bytes(rows, in, out);
  if constexpr (requires { Kernel::rotated_bytes(rows, in); }) {
    if (rotated) bytes = std::max(bytes, Kernel::rotated_bytes(rows, in));
  }
  return bytes;
}

namespace reference {
/// op::Gemm in plain loops. `Real` is the type of the sum; y may be wider than float.
template <class Real, Weights W, class Out, class In = float>
void gemm(MatrixView<const std::type_identity_t<In>> x, WeightMatrix<W> w, const std::type_identity_t<In>* bias,
          MatrixView<Out> y, Store store) {
  std::vector<Real> turned(w.rotated ? static_cast<std::size_t>(w.cols) : 0);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    if (w.rotated) {
      for (std::int64_t i = 0; i < w.cols; ++i) turned[static_cast<std::size_t>(i)] = static_cast<Real>(x(t, i));
      rotate(turned.data(), w.cols);
    }
    for (std::int64_t o = 0; o < w.rows; ++o) {
      const std::byte* row = w.row(o);
      Real sum = bias != nullptr ? static_cast<Real>(bias[o]) : Real(0);
      for (std::int64_t i = 0; i < w.cols; ++i) {
        const Real number = w.rotated ? turned[static_cast<std::size_t>(i)] : static_cast<Real>(x(t, i));
        sum += number * weight_format<W>::template number<Real>(row, w.cols, i);
      }
      y(t, o) = static_cast<Out>(store == Store::add ? static_cast<Real>(y(t, o)) + sum : sum);
    }
  }
}
}  // namespace reference

namespace detail {
/// Where w is rotated, makes x its rotated rows, in scratch.shared, so that they and the rows as they are give the
/// product.
template <class Exec, Weights W, class T, class Rotate>
void rotate_operand(Exec& exec, Scratch scratch, MatrixView<const T>& x, WeightMatrix<W>& w, const Rotate& rotate) {
  if (!w.rotated) return;
  const MatrixView<T> turned(reinterpret_cast<T*>(scratch.shared), x.rows, x.cols);
  const std::int64_t tasks = x.rows * x.cols < serial_product ? 1 : std::min<std::int64_t>(exec.threads(), x.rows);
  exec.parallel_for(tasks, [&](std::int64_t task, int) noexcept {
    for (std::int64_t t = x.rows * task / tasks; t < x.rows * (task + 1) / tasks; ++t) {
      std::copy_n(x.row(t), x.cols, turned.row(t));
      rotate(turned.row(t), x.cols);
    }
  });
  x = turned;
  w.rotated = false;
}
}  // namespace detail

template <>
struct kernel_for<op::Gemm, arch::scalar> {
  static constexpr std::size_t scratch_bytes(std::int64_t, std::int64_t, std::int64_t) { return 0; }
  static constexpr std::size_t rotated_bytes(std::int64_t rows, std::int64_t in) {
    return static_cast<std::size_t>(rows * in) * sizeof(double);
  }

  template <class Exec, Weights W, class T>
  static void run(Exec& exec, Scratch scratch, MatrixView<const std::type_identity_t<T>> x, WeightMatrix<W> w,
                  const std::type_identity_t<T>* bias, MatrixView<T> y, Store store) {
    if (x.rows == 0) return;
    detail::rotate_operand(exec, scratch, x, w, [](T* row, std::int64_t cols) { reference::rotate(row, cols); });
    const std::int64_t tasks = x.rows * w.rows * w.cols < 65536 ? 1 : std::min<std::int64_t>(exec.threads(), w.rows);
    exec.parallel_for(tasks, [&](std::int64_t task, int) noexcept {
      const std::int64_t first = w.rows * task / tasks;
      const std::int64_t count = w.rows * (task + 1) / tasks - first;
      reference::gemm<T, W, T, T>(x, w.row_range(first, count), bias != nullptr ? bias + first : nullptr,
                             y.columns(first, count), store);
    });
  }
};

namespace detail {

/// Multiply-adds of floats in the vectors of xsimd architecture `A`. GemmAlongColumns works on any such unit:
///
///   Number                  what the numbers of both operands are multiplied as
///   Vector, columns         a register of so many of them, neighbours in a row
///   Sums, lanes             a register of sums, each of the same columns in every vector
///   wide                    whether there are 32 registers
///   A                       the xsimd architecture of the sums
///   load, load_partial      numbers of any type that rows have, converted; load_partial as simd::load_partial
///   store, zero, no_sums    Vector to memory, one of zeros; sums of nothing
///   multiply_add(w, x, s)   s and the products of w and x
///   pinned(v)               as simd::pinned
template <class Arch>
struct FloatUnit {
  using A = Arch;
  using Number = float;
  using Vector = simd::floats<A>;
  using Sums = simd::floats<A>;
  static constexpr std::int64_t columns = simd::lanes<A>, lanes = columns;
  static constexpr bool wide = simd::registers<A> >= 32;

  template <class T>
  static HYMBA_ALWAYS_INLINE Vector load(const T* from) {
    return simd::load<A>(from);
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Vector load_partial(const T* from, std::int64_t count) {
    return simd::load_partial<A>(from, count);
  }
  static HYMBA_ALWAYS_INLINE Vector load_aligned(const float* from) { return Vector::load_aligned(from); }
  static HYMBA_ALWAYS_INLINE void store(float* to, const Vector& v) { simd::store<A>(to, v); }
  static HYMBA_ALWAYS_INLINE Vector zero() { return simd::zero<A>(); }
  static HYMBA_ALWAYS_INLINE Sums no_sums() { return simd::zero<A>(); }
  static HYMBA_ALWAYS_INLINE Sums multiply_add(const Vector& w, const Vector& x, const Sums& sums) {
    return simd::fma<A>(w, x, sums);
  }
  static HYMBA_ALWAYS_INLINE Vector pinned(const Vector& v) { return simd::pinned<A>(v); }
};

/// op::Gemm on vectors that run along the columns, by `Unit`.
///
/// Both operands are contiguous along I, so lanes run along I: a block of accumulators holds R weight rows times N rows
/// of x, and at the end of a block of I each is folded to one number. That needs no transposition, serves one row of x
/// as well as a thousand with the same sums, and costs a fold per accumulator: about a twentieth of the time when a
/// block is some fifty vectors long. I is cut in equal blocks, so that a block of both operands stays in cache.
///
/// `RowByRow` changes how one row of x goes past weights (see reads_row_by_row), not the bits.
template <class Unit, int DirectRowsAtOnce = 4, bool RowByRow = reads_row_by_row>
struct GemmAlongColumns {
  using A = typename Unit::A;
  using Number = typename Unit::Number;
  using Vector = typename Unit::Vector;
  using Sums = typename Unit::Sums;
  static constexpr std::int64_t C = Unit::columns, L = Unit::lanes;
  static constexpr bool wide = Unit::wide;

  // Few rows: R weight rows straight from memory, N <= N_max rows of x.
  static constexpr int direct_r = DirectRowsAtOnce;
  static constexpr int direct_n_max = wide ? 6 : 3;
  /// The most rows of x that are few. Quantised weights are decoded anew for every N_max rows: soon packing pays.
  template <Weights W>
  static constexpr std::int64_t direct_rows = weight_format<W>::quantised ? direct_n_max : 4 * direct_n_max;

  // Many rows: packed panels of R weight rows (first-level cache) and of N rows of x (second-level cache).
  static constexpr int packed_r = L >= 16 ? 8 : 4;
  static constexpr int packed_n = 3;
  static constexpr std::int64_t packed_rows = (L >= 16 ? 256 : 144) / packed_n * packed_n;

  static constexpr std::int64_t block_max = 3328 / static_cast<std::int64_t>(sizeof(Number));
  static constexpr std::int64_t block_unit = 64;
  static_assert(block_max % block_unit == 0 && block_unit % C == 0);

  /// Columns per block of I: all blocks but the last have this many.
  static constexpr std::int64_t block_cols(std::int64_t cols) {
    const std::int64_t blocks = (cols + block_max - 1) / block_max;
    return round_up((cols + blocks - 1) / blocks, block_unit);
  }

  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t) {
    // What the format with the fewest direct rows needs: who asks does not say which.
    if (rows <= direct_n_max) return 0;
    const std::int64_t cols = std::min(round_up(in, block_unit), block_max);
    const std::int64_t height = std::min(round_up(rows, packed_n), packed_rows) + packed_r;
    return static_cast<std::size_t>(round_up(height * cols * static_cast<std::int64_t>(sizeof(Number)), 64));
  }

  /// What y starts from: its old value or zero, plus the bias.
  static HYMBA_ALWAYS_INLINE float start(float old, const float* bias, std::int64_t o, Store store) {
    const float base = store == Store::add ? old : 0.0f;
    return bias != nullptr ? base + bias[o] : base;
  }

  // --- Few rows ------------------------------------------------------------------------------------------------------

  /// R rows of weights in format `W` as direct_block reads them: line by line, each begun with line(k), the weights of
  /// a line by load(r, k). Columns count from the first of the block. Fetches what lies `ahead` bytes on.
  template <Weights W>
  struct DirectRows {
    using Element = typename weight_format<W>::element;
    static constexpr std::int64_t columns = std::max<std::int64_t>(C, 64 / static_cast<std::int64_t>(sizeof(Element)));
    const Element* row[direct_r];
    std::int64_t ahead;

    HYMBA_ALWAYS_INLINE DirectRows(const WeightMatrix<W>& w, const RowPieces& pieces, std::int64_t i,
                                   std::int64_t first, std::int64_t ahead_bytes)
        : ahead(ahead_bytes / static_cast<std::int64_t>(sizeof(Element))) {
#pragma GCC unroll 8
      for (int r = 0; r < direct_r; ++r) {
        row[r] = reinterpret_cast<const Element*>(w.row(pieces.row_or_last(r, i))) + first;
      }
    }
    HYMBA_ALWAYS_INLINE void line(std::int64_t k) {
#pragma GCC unroll 8
      for (int r = 0; r < direct_r; ++r) simd::prefetch(row[r] + k + ahead);
    }
    HYMBA_ALWAYS_INLINE Vector load(int r, std::int64_t k) const { return Unit::load(row[r] + k); }
    HYMBA_ALWAYS_INLINE Vector load_partial(int r, std::int64_t k, std::int64_t count) const {
      return Unit::load_partial(row[r] + k, count);
    }
  };

  /// The same for quantised rows: they become floats in registers.
  template <Weights W>
    requires(weight_format<W>::quantised)
  struct DirectRows<W> {
    static constexpr std::int64_t columns = quantised_line;
    const std::byte* row[direct_r];
    std::int64_t cols, first, ahead, begin = 0;
    const std::int8_t* values[direct_r] = {};
    Vector scale[direct_r];
    alignas(64) std::int8_t buffer[direct_r][W == Weights::int4 ? quantised_line : 1];

    HYMBA_ALWAYS_INLINE DirectRows(const WeightMatrix<W>& w, const RowPieces& pieces, std::int64_t i,
                                   std::int64_t first_column, std::int64_t ahead_bytes)
        : cols(w.cols), first(first_column), ahead(ahead_bytes) {
#pragma GCC unroll 8
      for (int r = 0; r < direct_r; ++r) row[r] = w.row(pieces.row_or_last(r, i));
    }
    HYMBA_ALWAYS_INLINE void line(std::int64_t k) {
      begin = k;
#pragma GCC unroll 8
      for (int r = 0; r < direct_r; ++r) {
        simd::prefetch(row[r] + quantised_byte<W>(first + k) + ahead);
        const QuantisedLine line = quantised_line_at<W>(row[r], cols, first + k, buffer[r]);
        values[r] = line.values;
        scale[r] = simd::broadcast<A>(line.scale);
      }
    }
    HYMBA_ALWAYS_INLINE Vector load(int r, std::int64_t k) const {
      return Unit::load(values[r] + (k - begin)) * scale[r];
    }
    HYMBA_ALWAYS_INLINE Vector load_partial(int r, std::int64_t k, std::int64_t) const { return load(r, k); }
  };

  /// out[n][r] = sum over `cols` columns of weight row r and row n of x.
  template <int N, class Rows>
  static HYMBA_ALWAYS_INLINE void direct_block(Rows& rows, const Number* x, std::int64_t stride, std::int64_t cols,
                                               float (&out)[N][direct_r]) {
    Sums acc[N][direct_r];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
      for (int r = 0; r < direct_r; ++r) acc[n][r] = Unit::no_sums();
    }
    const std::int64_t whole = cols / C * C;
    std::int64_t k = 0;
    while (k < whole) {
      rows.line(k);
      const std::int64_t stop = std::min(k + Rows::columns, whole);
      for (; k < stop; k += C) {
        Vector xs[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) xs[n] = Unit::pinned(Unit::load(x + n * stride + k));
#pragma GCC unroll 8
        for (int r = 0; r < direct_r; ++r) {
          const Vector ws = Unit::pinned(rows.load(r, k));
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) acc[n][r] = Unit::multiply_add(ws, xs[n], acc[n][r]);
        }
      }
    }
    if (k < cols) {
      if (k % Rows::columns == 0) rows.line(k);
      Vector xs[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) xs[n] = Unit::load_partial(x + n * stride + k, cols - k);
#pragma GCC unroll 8
      for (int r = 0; r < direct_r; ++r) {
        const Vector ws = rows.load_partial(r, k, cols - k);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) acc[n][r] = Unit::multiply_add(ws, xs[n], acc[n][r]);
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) simd::sums<A>(acc[n], out[n]);
  }

  /// How weights go past `rows` rows of x.
  template <Weights W>
  static RowShares direct_shares(std::int64_t tasks, std::int64_t rows, const WeightMatrix<W>& w) {
    const bool one_by_one = RowByRow && !weight_format<W>::quantised && rows == 1;
    return RowShares(tasks, w.rows, one_by_one ? 1 : direct_r, 1,
                     static_cast<std::int64_t>(weight_format<W>::row_bytes(w.cols)));
  }

  /// One block of columns for rows [t, t + N) of x and row `i` of each piece of the weights.
  template <int N, Weights W>
  static void direct_tile(const WeightMatrix<W>& w, std::int64_t ahead, MatrixView<const Number> x, std::int64_t t,
                          std::int64_t k, std::int64_t cols, MatrixView<float> y, const RowPieces& pieces,
                          std::int64_t i) {
    float out[N][direct_r];
    DirectRows<W> rows(w, pieces, i, k, ahead);
    direct_block<N>(rows, x.row(t) + k, x.stride, cols, out);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      float* to = y.row(t + n);
      for (int r = 0; r < direct_r; ++r) {
        if (pieces.has(r, i)) to[pieces.row(r, i)] += out[n][r];
      }
    }
  }

  /// Rows [first, last) of each piece of the weights, which are as direct_shares says.
  template <Weights W>
  static void direct(MatrixView<const Number> x, WeightMatrix<W> w, const float* bias, MatrixView<float> y, Store store,
                     const RowPieces& pieces, std::int64_t first, std::int64_t last) {
    if constexpr (RowByRow && !weight_format<W>::quantised) {
      if (x.rows == 1) {
        return row_by_row(x.row(0), w, bias, y.row(0), store, pieces.row(0, first), pieces.row(0, last));
      }
    }
    const std::int64_t block = block_cols(w.cols);
    for (std::int64_t i = first; i < last; ++i) {
      for (std::int64_t t = 0; t < x.rows; ++t) {
        float* to = y.row(t);
        for (int r = 0; r < direct_r; ++r) {
          if (!pieces.has(r, i)) continue;
          const std::int64_t o = pieces.row(r, i);
          to[o] = start(to[o], bias, o, store);
        }
      }
      for (std::int64_t k = 0; k < w.cols; k += block) {
        const std::int64_t cols = std::min(block, w.cols - k);
        for (std::int64_t t = 0; t < x.rows; t += direct_n_max) {
          const std::int64_t ahead = t == 0 ? fetched_ahead : 0;
          switch (std::min<std::int64_t>(x.rows - t, direct_n_max)) {
            case 1: direct_tile<1>(w, ahead, x, t, k, cols, y, pieces, i); break;
            case 2: direct_tile<2>(w, ahead, x, t, k, cols, y, pieces, i); break;
            case 3: direct_tile<3>(w, ahead, x, t, k, cols, y, pieces, i); break;
            default:
              if constexpr (wide) {
                switch (std::min<std::int64_t>(x.rows - t, direct_n_max)) {
                  case 4: direct_tile<4>(w, ahead, x, t, k, cols, y, pieces, i); break;
                  case 5: direct_tile<5>(w, ahead, x, t, k, cols, y, pieces, i); break;
                  default: direct_tile<6>(w, ahead, x, t, k, cols, y, pieces, i); break;
                }
              }
          }
        }
      }
    }
  }

  /// One row of x, each row of weights from end to end.
  template <Weights W>
  static void row_by_row(const Number* x, const WeightMatrix<W>& w, const float* bias, float* y, Store store,
                         std::int64_t first, std::int64_t last) {
    const std::int64_t block = block_cols(w.cols);
    for (std::int64_t o = first; o < last; ++o) {
      const auto* const row = reinterpret_cast<const typename weight_format<W>::element*>(w.row(o));
      float total = start(y[o], bias, o, store);
      for (std::int64_t from = 0; from < w.cols; from += block) {
        const std::int64_t to = std::min(from + block, w.cols);
        Sums sums[1] = {Unit::no_sums()};
        std::int64_t k = from;
        // One instruction has to read them all.
#pragma GCC unroll 1
        for (; k + C <= to; k += C) sums[0] = Unit::multiply_add(Unit::load(row + k), Unit::load(x + k), sums[0]);
        if (k < to) {
          const std::int64_t rest = to - k;
          sums[0] = Unit::multiply_add(Unit::load_partial(row + k, rest), Unit::load_partial(x + k, rest), sums[0]);
        }
        float sum = 0;
        simd::sums<A>(sums, &sum);
        total += sum;
      }
      y[o] = total;
    }
  }

  // --- Many rows -----------------------------------------------------------------------------------------------------

  /// Packs `count` <= Height rows of `cols` columns, converted, as [step][row][column]; what is missing of either is
  /// zero.
  template <int Height, class Element>
  static HYMBA_ALWAYS_INLINE void pack(const Element* from, std::int64_t stride, std::int64_t count, std::int64_t cols,
                                       Number* to) {
    for (std::int64_t r = 0; r < Height; ++r) {
      Number* out = to + r * C;
      const Element* in = from + r * stride;
      std::int64_t k = 0;
      if (r < count) {
        for (; k + C <= cols; k += C) {
          Unit::store(out, Unit::load(in + k));
          out += Height * C;
        }
        if (k < cols) {
          Unit::store(out, Unit::load_partial(in + k, cols - k));
        }
      } else {
        for (; k < cols; k += C) {
          Unit::store(out, Unit::zero());
          out += Height * C;
        }
      }
    }
  }

  /// Packs columns [k, k + cols) of weight rows [o, o + count) likewise.
  template <Weights W>
  static HYMBA_ALWAYS_INLINE void pack_weights(const WeightMatrix<W>& w, std::int64_t o, std::int64_t count,
                                               std::int64_t k, std::int64_t cols, Number* to) {
    if constexpr (weight_format<W>::quantised) {
      constexpr std::int64_t step = packed_r * C;
      for (std::int64_t r = 0; r < packed_r; ++r) {
        if (r < count) {
          decode_columns<A, W>(w.row(o + r), w.cols, k, cols, to + r * C, step);
        } else {
          for (std::int64_t i = 0; i < cols; i += C) Unit::store(to + r * C + i * packed_r, Unit::zero());
        }
      }
    } else {
      using Element = typename weight_format<W>::element;
      pack<packed_r>(reinterpret_cast<const Element*>(w.row(o)) + k, w.cols, count, cols, to);
    }
  }

  /// Where column k, the first of a block, begins in a row of weights, in bytes; for w.cols, where the values end.
  template <Weights W>
  static constexpr std::int64_t byte_of(std::int64_t k, std::int64_t cols) {
    if constexpr (weight_format<W>::quantised) {
      return k < cols ? quantised_byte<W>(k) : static_cast<std::int64_t>(weight_format<W>::value_bytes(cols));
    } else {
      return static_cast<std::int64_t>(weight_format<W>::row_bytes(k));
    }
  }

  /// out[n][r] = the sums over `steps` vectors of one panel of each operand.
  static HYMBA_ALWAYS_INLINE void packed_block(const Number* w, const Number* x, std::int64_t steps,
                                               float (&out)[packed_n][packed_r]) {
    Sums acc[packed_n][packed_r];
#pragma GCC unroll 8
    for (int n = 0; n < packed_n; ++n) {
#pragma GCC unroll 8
      for (int r = 0; r < packed_r; ++r) acc[n][r] = Unit::no_sums();
    }
    for (std::int64_t s = 0; s < steps; ++s) {
      Vector xs[packed_n];
#pragma GCC unroll 8
      for (int n = 0; n < packed_n; ++n) xs[n] = Unit::pinned(Unit::load_aligned(x + n * C));
#pragma GCC unroll 8
      for (int r = 0; r < packed_r; ++r) {
        const Vector ws = Unit::pinned(Unit::load_aligned(w + r * C));
#pragma GCC unroll 8
        for (int n = 0; n < packed_n; ++n) acc[n][r] = Unit::multiply_add(ws, xs[n], acc[n][r]);
      }
      x += packed_n * C;
      w += packed_r * C;
    }
#pragma GCC unroll 8
    for (int n = 0; n < packed_n; ++n) simd::sums<A>(acc[n], out[n]);
  }

  /// Adds the sums of a whole tile row to y, or to what y starts from. Works on copies: compilers then use vectors.
  static HYMBA_ALWAYS_INLINE void update(float* y, const float (&sums)[packed_r], const float* bias, bool first,
                                         Store store) {
    float base[packed_r] = {};
    if (!first || store == Store::add) std::memcpy(base, y, sizeof(base));
    if (first && bias != nullptr) {
      float shift[packed_r];
      std::memcpy(shift, bias, sizeof(shift));
#pragma GCC unroll 8
      for (int r = 0; r < packed_r; ++r) base[r] += shift[r];
    }
#pragma GCC unroll 8
    for (int r = 0; r < packed_r; ++r) base[r] += sums[r];
    std::memcpy(y, base, sizeof(base));
  }

  /// Rows [t0, t1) of x against weight rows [o0, o1).
  template <Weights W>
  static void packed(Number* scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                     MatrixView<float> y, Store store, std::int64_t t0, std::int64_t t1, std::int64_t o0,
                     std::int64_t o1) {
    const std::int64_t block = block_cols(w.cols);
    Number* w_panel = scratch;
    Number* x_panels = scratch + packed_r * block;
    const std::int64_t panels = (t1 - t0 + packed_n - 1) / packed_n;
    for (std::int64_t k = 0; k < w.cols; k += block) {
      const std::int64_t cols = std::min(block, w.cols - k);
      const std::int64_t steps = units_of(cols, C);
      for (std::int64_t t = t0; t < t1; t += packed_n) {
        pack<packed_n>(x.row(t) + k, x.stride, std::min<std::int64_t>(packed_n, t1 - t), cols,
                       x_panels + (t - t0) * steps * C);
      }
      for (std::int64_t o = o0; o < o1; o += packed_r) {
        const std::int64_t valid = std::min<std::int64_t>(packed_r, o1 - o);
        pack_weights(w, o, valid, k, cols, w_panel);
        // The next panel: the rows below, or the first rows of the next block of columns.
        const bool below = o + packed_r < o1;
        const std::int64_t next_o = below ? o + packed_r : o0;
        const std::int64_t next_k = below ? k : k + block;
        const std::int64_t next_byte = byte_of<W>(std::min(next_k, w.cols), w.cols);
        // It is fetched little by little while this one is used. A row may begin anywhere in a cache line.
        const std::int64_t next_bytes = byte_of<W>(std::min(next_k + block, w.cols), w.cols) - next_byte;
        RowsToRead ahead{w.row(next_o) + next_byte, static_cast<std::int64_t>(weight_format<W>::row_bytes(w.cols)),
                         units_of(next_bytes + 63, 64),
                         next_k < w.cols ? std::min<std::int64_t>(packed_r, o1 - next_o) : 0};
        const std::int64_t share = units_of(packed_r * ahead.lines, panels);
        for (std::int64_t t = t0; t < t1; t += packed_n) {
          const std::int64_t rows = std::min<std::int64_t>(packed_n, t1 - t);
          for (std::int64_t n = 0; n < rows; ++n) simd::prefetch(y.row(t + n) + o);
          ahead.fetch(share);
          float out[packed_n][packed_r];
          packed_block(w_panel, x_panels + (t - t0) * steps * C, steps, out);
          for (std::int64_t n = 0; n < rows; ++n) {
            float* to = y.row(t + n) + o;
            if (valid == packed_r) {
              update(to, out[n], bias != nullptr ? bias + o : nullptr, k == 0, store);
            } else {
              for (std::int64_t r = 0; r < valid; ++r) {
                to[r] = (k == 0 ? start(to[r], bias, o + r, store) : to[r]) + out[n][r];
              }
            }
          }
        }
      }
    }
  }

  // --- Shared out ----------------------------------------------------------------------------------------------------

  static std::int64_t threads_for(std::int64_t threads, std::int64_t rows, std::int64_t out, std::int64_t in) {
    return rows * out * in < serial_product ? 1 : threads;
  }

  /// The product with no more than direct_rows<W> rows of x, which a thread gets by x(thread).
  template <class Exec, Weights W, class Operand>
  static void run_direct(Exec& exec, std::int64_t rows, const Operand& x, WeightMatrix<W> w, const float* bias,
                         MatrixView<float> y, Store store) {
    RowShares shares = direct_shares(threads_for(exec.threads(), rows, w.rows, w.cols), rows, w);
    exec.parallel_for(shares.tasks(), [&](std::int64_t task, int thread) noexcept {
      const auto operand = x(thread);
      shares.run(task, [&](const RowPieces& pieces, std::int64_t first, std::int64_t last) {
        direct<W>(operand, w, bias, y, store, pieces, first, last);
      });
    });
  }

  /// The product with any number of rows.
  template <class Exec, Weights W>
  static void run_packed(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                         MatrixView<float> y, Store store) {
    const std::int64_t threads = threads_for(exec.threads(), x.rows, w.rows, w.cols);
    const std::int64_t x_panels = units_of(x.rows, packed_n), w_panels = units_of(w.rows, packed_r);
    const std::int64_t x_blocks = units_of(x.rows, packed_rows);
    const std::int64_t w_blocks = x_blocks % threads == 0 ? 1 : std::min(threads, w_panels);
    exec.parallel_for(x_blocks * w_blocks, [&](std::int64_t task, int thread) noexcept {
      const std::int64_t i = task / w_blocks;
      const std::int64_t j = task % w_blocks;
      packed<W>(scratch.of<Number>(thread), x, w, bias, y, store, x_panels * i / x_blocks * packed_n,
                std::min(x_panels * (i + 1) / x_blocks * packed_n, x.rows), w_panels * j / w_blocks * packed_r,
                std::min(w_panels * (j + 1) / w_blocks * packed_r, w.rows));
    });
  }
};

}  // namespace detail

template <class A>
struct kernel_for<op::Gemm, arch::simd<A>> {
  using Impl = detail::GemmAlongColumns<detail::FloatUnit<A>>;

  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return Impl::scratch_bytes(rows, in, out);
  }
  static constexpr std::size_t rotated_bytes(std::int64_t rows, std::int64_t in) {
    return static_cast<std::size_t>(rows * in) * sizeof(float);
  }

  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    if (x.rows == 0) return;
    detail::rotate_operand(exec, scratch, x, w, [](float* row, std::int64_t cols) { detail::rotate<A>(row, cols); });
    if (x.rows <= Impl::template direct_rows<W>) {
      const auto same = [&](int) { return x; };
      Impl::run_direct(exec, x.rows, same, w, bias, y, store);
    } else {
      Impl::run_packed(exec, scratch, x, w, bias, y, store);
    }
  }
};

HYMBA_NAMESPACE_END
