// SPDX-License-Identifier: Apache-2.0
//
// op::Gemm on dot products of bytes, and what arch::dot<Base> means for everything else: those of bf16, or Base.
// Includes every operation that has dot products, so that the name means the same wherever it is used.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/dot/attention.hpp>
#include <hymba/kernels/dot/bf16_gemm.hpp>
#include <hymba/kernels/dot/tokens.hpp>
#include <hymba/kernels/dot/units.hpp>
#include <hymba/kernels/gated_gemm.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/memory_to_read.hpp>
#include <hymba/kernels/quantised_rows.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/kernels/transpose.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

HYMBA_NAMESPACE_BEGIN

#if defined(HYMBA_DOT)

namespace detail::dot {

/// Weights as registers of shifted bytes, and how these are multiplied.
template <class Unit, Weights W>
struct Rows;

template <class Unit>
struct Rows<Unit, Weights::int8> {
  /// A block of one row.
  struct Block {
    const std::byte* values;
    HYMBA_ALWAYS_INLINE Block(const std::byte* row, std::int64_t, std::int64_t block)
        : values(row + block * quantised_block) {}
    /// Register `part` of line 2 `pair` + `half` of the block.
    HYMBA_ALWAYS_INLINE typename Unit::Bytes load(int pair, int half, int part) const {
      return Unit::shifted(Unit::load(values + (2 * pair + half) * line + part * 4 * Unit::lanes));
    }
  };
  static HYMBA_ALWAYS_INLINE typename Unit::Ints dot(typename Unit::Ints sum, typename Unit::Bytes w,
                                                     typename Unit::Bytes x) {
    return Unit::dot(sum, w, x);
  }
};

template <class Unit>
struct Rows<Unit, Weights::int4> {
  struct Block {
    const std::byte *values, *codes;
    HYMBA_ALWAYS_INLINE Block(const std::byte* row, std::int64_t cols, std::int64_t block)
        : values(row + block * (quantised_block / 2)), codes(Int4Rows::codes(row, cols, block)) {}
    HYMBA_ALWAYS_INLINE typename Unit::Bytes load(int pair, int half, int part) const {
      // A line of memory has the first of two lines of columns in its low halves. A line of columns has two codes.
      const typename Unit::Bytes stored = Unit::load(values + pair * line + part * 4 * Unit::lanes);
      const std::byte* const two = codes + 4 * pair + 2 * half;
      const auto levels = [&](int i) { return int4_table<Unit::offset>.at[std::to_integer<unsigned>(two[i])]; };
      return Unit::look_up(Unit::table(part, levels(0), levels(1)),
                           half == 0 ? Unit::low_halves(stored) : Unit::high_halves(stored));
    }
  };
  static HYMBA_ALWAYS_INLINE typename Unit::Ints dot(typename Unit::Ints sum, typename Unit::Bytes w,
                                                     typename Unit::Bytes x) {
    return Unit::dot_levels(sum, w, x);
  }
};

/// Products of a packed block of weights.
template <class Unit>
struct Panel {
  using Ints = typename Unit::Ints;
  using Floats = typename Unit::Floats;
  static constexpr std::int64_t L = Unit::lanes;
  static constexpr int vectors = Unit::panel_vectors, tokens_most = Unit::panel_tokens;
  static constexpr std::int64_t rows = L * vectors;

  /// Adds those of tokens [t, t + n), n <= tokens_most, with `lines` lines of block `block` of the panel's rows to sums
  /// [n][rows], or sets them if `first`; scale [rows].
  static void multiply(const std::int8_t* panel, std::int64_t lines, const Tokens<Unit>& tokens, std::int64_t t,
                       std::int64_t n, std::int64_t block, const float* scale, float* sums, bool first) {
    unrolled<tokens_most>([&](auto one_less) {
      if (n == one_less + 1) products<one_less + 1>(panel, lines, tokens, tokens.at(t, block), scale, sums, first);
    });
  }

 private:
  // A function of its own, and loops instead of `unrolled`: GCC then keeps the sums in registers.
  template <int N>
  static HYMBA_NEVER_INLINE void products(const std::int8_t* panel, std::int64_t lines, const Tokens<Unit>& tokens,
                                          std::int64_t at, const float* scale, float* sums, bool first) {
    Ints sum[N][vectors];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        sum[n][v] = Unit::same(Unit::offset != 0 ? -tokens.excess[at + n] : 0);
        // What the blocks before left there is fetched meanwhile.
        simd::prefetch(sums + n * rows + v * L);
      }
    }
    const std::int8_t* x = tokens.bytes + at * quantised_block;
    const std::int8_t* const end = x + lines * line;
    for (; x < end; x += 4) {
      typename Unit::Bytes ws[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) ws[v] = Unit::load(panel + v * 4 * L);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const typename Unit::Bytes four = Unit::broadcast(x + n * quantised_block);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[n][v] = Unit::dot(sum[n][v], ws[v], four);
      }
      panel += vectors * 4 * L;
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Floats token_scale = Unit::same(tokens.scales[at + n]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        float* const held = sums + n * rows + v * L;
        const Floats before = first ? Unit::same(0.0f) : Unit::load(held);
        Unit::store(held, Unit::add_scaled(before, sum[n][v], Unit::multiply(Unit::load(scale + v * L), token_scale)));
      }
    }
  }
};

/// The product of activations and a weight matrix of bytes or halves of them. Tokens are quantised once.
///
/// Few tokens: a group of L weight rows straight from memory, L being the lanes of a register, four at a time, which
/// are far apart (see RowPieces); lanes run along the columns, and the L registers of sums of a block of 256 are folded
/// to one. Some tokens, 16 at most: rows are read likewise, but the tokens are packed so that lanes are tokens (see
/// TokenQuads). Many tokens: a block of a panel of weights is packed so that lanes are rows; it stays in the
/// first-level cache while all tokens, broadcast four bytes at a time, go past it, their sums waiting in the second.
///
/// In each way a block is summed exactly, then scaled and added in single precision, block after block, as on tiles
/// (kernels/amx/gemm.hpp): a number depends on its row and its token alone, and is the same on every unit.
///
/// `RowByRow` changes how one token goes past rows of bytes (see reads_row_by_row), and into which cache half bytes are
/// fetched, not the bits. More tokens, and rows of half bytes, are bound by arithmetic too: rows are read side by side
/// everywhere.
template <class Unit, Weights W, bool RowByRow = reads_row_by_row>
struct DotGemm {
  using Format = weight_format<W>;
  using Bytes = typename Unit::Bytes;
  using Ints = typename Unit::Ints;
  using Floats = typename Unit::Floats;
  static constexpr std::int64_t L = Unit::lanes;
  static constexpr int parts = static_cast<int>(line / (4 * L));  ///< registers in a line
  /// That share a block of a row, as measured, and those that are packed instead of the weights.
  static constexpr std::int64_t few_tokens = W == Weights::int4 ? (Unit::many_registers ? 4 : 3) : RowByRow ? 1 : 3;
  static constexpr std::int64_t some_tokens = 16;
  static constexpr bool fetches = W == Weights::int4 || fetches_int8;  ///< what few or some tokens read
  static constexpr std::int64_t block_bytes = quantised_byte<W>(quantised_block);  ///< of a row
  static constexpr int panel_vectors = Unit::panel_vectors, panel_tokens = Unit::panel_tokens;
  static constexpr std::int64_t panel_rows = Panel<Unit>::rows;
  static constexpr std::int64_t most_tokens = 512;

  // --- Memory --------------------------------------------------------------------------------------------------------

  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in) {
    return rows <= 1 ? 0 : Tokens<Unit>::memory_bytes(std::min(rows, most_tokens), in);
  }
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in) {
    const std::size_t one = Tokens<Unit>::memory_bytes(1, in);
    if (rows <= few_tokens) return one;
    const std::size_t some = std::max(one, TokenQuads<Unit, some_tokens / 4>::memory_bytes(in));
    if (rows <= some_tokens) return some;
    // A block of a panel, and the sums of all tokens; of one block only, those that are computed together.
    const std::int64_t held = in <= quantised_block ? panel_tokens : std::min(rows, most_tokens);
    return std::max(some, static_cast<std::size_t>(panel_rows * (quantised_block + held * 4)));
  }

  // --- Running -------------------------------------------------------------------------------------------------------

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, const WeightMatrix<W>& w, const float* bias,
                  MatrixView<float> y, Store store) {
    const std::int64_t threads = x.rows * w.rows * w.cols < serial_product ? 1 : exec.threads();
    if (x.rows == 1) {
      RowShares shares = few_shares(threads, w);
      // Every thread quantises the token for itself: less work than to wait for one that does.
      exec.parallel_for(shares.tasks(), [&](std::int64_t task, int thread) noexcept {
        const Tokens<Unit> tokens(scratch.of<std::byte>(thread), 1, w.cols);
        tokens.quantise(0, x.row(0), w.cols, w.rotated);
        shares.run(task, [&](const RowPieces& pieces, std::int64_t first, std::int64_t last) {
          few(tokens, 1, w, bias, y, store, pieces, first, last);
        });
      });
      return;
    }
    for (std::int64_t t0 = 0; t0 < x.rows; t0 += most_tokens) {
      const std::int64_t count = std::min(most_tokens, x.rows - t0);
      const Tokens<Unit> tokens(scratch.shared, count, w.cols);
      for_steps(exec, threads, count, 8, [&](std::int64_t first, std::int64_t last, int) {
        for (std::int64_t t = first; t < last; ++t) tokens.quantise(t, x.row(t0 + t), w.cols, w.rotated);
      });
      const MatrixView<float> out = y.row_range(t0, count);
      if (count <= few_tokens) {
        RowShares shares = few_shares(threads, w);
        exec.parallel_for(shares.tasks(), [&](std::int64_t task, int) noexcept {
          shares.run(task, [&](const RowPieces& pieces, std::int64_t first, std::int64_t last) {
            few(tokens, count, w, bias, out, store, pieces, first, last);
          });
        });
        continue;
      }
      if (count <= some_tokens) {
        RowShares shares = some_shares(threads, w);
        exec.parallel_for(shares.tasks(), [&](std::int64_t task, int thread) noexcept {
          unrolled<some_tokens / 4>([&](auto q) {
            if (units_of(count, 4) == q + 1) some<q + 1>(scratch.of<std::byte>(thread), tokens, w, bias, out, store, task, shares);
          });
        });
        continue;
      }
      const BlockGrid grid(threads, units_of(count, panel_tokens), units_of(w.rows, panel_rows));
      // A step is a panel of weights past a block of tokens.
      const std::int64_t panels = grid.col_units;
      StepShares shares(grid.tasks(), grid.rows * panels, 1);
      exec.parallel_for(shares.tasks(), [&](std::int64_t task, int thread) noexcept {
        shares.run(task, [&](BlockRange share, BlockRange steps) {
          const std::int64_t block = steps.first / panels, from = block * panels;
          many(scratch.of<std::byte>(thread), tokens, w, bias, out, store, grid.row_block(block, panel_tokens, count),
               (steps.first - from) * panel_rows, std::min((share.last - from) * panel_rows, w.rows));
        });
      });
    }
  }

 private:
  /// y[0, n) from sums, on what it starts from.
  static HYMBA_ALWAYS_INLINE void write(Floats sum, std::int64_t n, const float* bias, float* y, Store store) {
    if (n >= L) {
      Floats value = Unit::add(sum, bias != nullptr ? Unit::load(bias) : Unit::same(0.0f));
      if (store == Store::add) value = Unit::add(value, Unit::load(y));
      Unit::store(y, value);
      return;
    }
    float all[L];
    Unit::store(all, sum);
    for (std::int64_t i = 0; i < n; ++i) write_one(all[i], i, bias, y, store);
  }
  /// y[o] likewise.
  static HYMBA_ALWAYS_INLINE void write_one(float sum, std::int64_t o, const float* bias, float* y, Store store) {
    const float value = sum + (bias != nullptr ? bias[o] : 0.0f);
    y[o] = store == Store::add ? value + y[o] : value;
  }

  /// The scales of a block for L rows from row `o`, of which `rows` exist.
  static HYMBA_ALWAYS_INLINE Floats scales(const WeightMatrix<W>& w, std::int64_t o, std::int64_t rows,
                                           std::int64_t block) {
    return Unit::scales(w.row(o) + Format::value_bytes(w.cols) + static_cast<std::size_t>(block) * Format::scale_bytes,
                        static_cast<std::int64_t>(Format::row_bytes(w.cols)), static_cast<int>(std::min(rows, L)));
  }

  // --- Few tokens ----------------------------------------------------------------------------------------------------

  static constexpr bool few_row_by_row = RowByRow && W == Weights::int8;

  static RowShares few_shares(std::int64_t tasks, const WeightMatrix<W>& w) {
    const auto row_bytes = static_cast<std::int64_t>(Format::row_bytes(w.cols));
    return few_row_by_row ? RowShares(tasks, w.rows, 1, 1, row_bytes) : RowShares(tasks, w.rows, 4, L / 4, row_bytes);
  }

  /// `count` tokens against rows [first, last) of each piece of the weights.
  static void few(const Tokens<Unit>& tokens, std::int64_t count, const WeightMatrix<W>& w, const float* bias,
                  MatrixView<float> y, Store store, const RowPieces& pieces, std::int64_t first, std::int64_t last) {
    if constexpr (few_row_by_row) {
      row_by_row(tokens, w, bias, y, store, pieces.row(0, first), pieces.row(0, last));
    } else {
      for (std::int64_t i = first; i < last; i += L / 4) {
        const RowOfLane row_of{pieces, i};
        unrolled<few_tokens>([&](auto one_less) {
          if (count == one_less + 1) group<one_less + 1>(tokens, w, row_of, bias, y, store);
        });
      }
    }
  }

  /// The rows that are computed together, L / 4 of each piece: lane 4 q + p is row `at` + q of piece p.
  struct RowOfLane {
    const RowPieces& pieces;
    std::int64_t at;
    bool has(std::int64_t lane) const { return pieces.has(lane % 4, at + lane / 4); }
    std::int64_t operator()(std::int64_t lane) const { return pieces.row_or_last(lane % 4, at + lane / 4); }
  };

  /// The scales of L rows, block after block. Loaded as they lie and transposed: gathering them takes longer, on Zen by
  /// far.
  class RowScales {
   public:
    RowScales(const WeightMatrix<W>& w, const RowOfLane& row_of) : w_(w), row_of_(row_of) {}
    /// Of block `block`: the first is 0, each other one more than the one before.
    HYMBA_ALWAYS_INLINE Floats next(std::int64_t block) {
      if constexpr (Format::scale_bytes == 0) {
        if (block == 0) {
          alignas(64) float all[L];
          for (std::int64_t r = 0; r < L; ++r) all[r] = float_at(row(r));
          same_ = Unit::load(all);
        }
        return same_;
      } else {
        if (block % L == 0) {
          // Scales fill whole lines: what is behind the last of a row belongs to it.
          const std::int64_t at = block * static_cast<std::int64_t>(Format::scale_bytes);
          for (std::int64_t r = 0; r < L; ++r) square_[r] = Unit::words(Unit::load(row(r) + at));
          transpose(square_);
        }
        return Unit::floats(square_[block % L]);
      }
    }
    /// Those that the next rows of each piece begin with: behind the values, whose blocks are fetched one by one.
    void fetch_next() const {
      const auto on = static_cast<std::int64_t>(Format::row_bytes(w_.cols)) * (L / 4);
      for (std::int64_t r = 0; r < L; ++r) simd::prefetch(row(r) + on);
    }

   private:
    const std::byte* row(std::int64_t r) const { return w_.row(row_of_(r)) + Format::value_bytes(w_.cols); }
    const WeightMatrix<W>& w_;
    const RowOfLane& row_of_;
    Floats same_ = Unit::same(0.0f);
    Ints square_[Format::scale_bytes == 0 ? 1 : L];
  };

  /// The N tokens against L rows.
  template <int N>
  static HYMBA_NEVER_INLINE void group(const Tokens<Unit>& tokens, const WeightMatrix<W>& w, const RowOfLane& row_of,
                                       const float* bias, MatrixView<float> y, Store store) {
    constexpr std::int64_t held = 16 / N;  // blocks that wait to be folded
    RowScales scales(w, row_of);
    if constexpr (fetches) scales.fetch_next();
    Floats total[N];
    unrolled<N>([&](auto n) { total[n] = Unit::same(0.0f); });
    for (std::int64_t b0 = 0; b0 < tokens.blocks; b0 += held) {
      const std::int64_t end = std::min(b0 + held, tokens.blocks);
      Ints quads[held][N][L / 4];
      for (std::int64_t q = 0; q < L / 4; ++q) {
        const auto row = [&](std::int64_t p) { return w.row(row_of(4 * q + p)); };
        four_rows<N>(row(0), row(1), row(2), row(3), w.cols, tokens, b0, end, &quads[0][0][q]);
      }
      for (std::int64_t b = b0; b < end; ++b) {
        const Floats scale = scales.next(b);
        unrolled<N>([&](auto n) {
          const std::int64_t at = tokens.at(n, b);
          Ints sum = fold_quads(quads[b - b0][n]);
          if constexpr (Unit::offset != 0) sum = Unit::subtract(sum, Unit::same(tokens.excess[at]));
          total[n] = Unit::add_scaled(total[n], sum, Unit::multiply(scale, Unit::same(tokens.scales[at])));
        });
      }
    }
    unrolled<N>([&](auto n) {
      float sums[L];
      Unit::store(sums, total[n]);
      for (std::int64_t lane = 0; lane < L; ++lane) {
        if (row_of.has(lane)) write_one(sums[lane], row_of(lane), bias, y.row(n), store);
      }
    });
  }

  /// What is read of four rows some blocks after block `block`, into the cache of that level.
  template <int Level>
  static HYMBA_ALWAYS_INLINE void fetch(const std::byte* const (&row)[4], std::int64_t block) {
    if constexpr (fetches) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 4
        for (std::int64_t i = 0; i < block_bytes; i += line) {
          simd::prefetch<Level>(row[r] + block * block_bytes + Level * fetched_ahead + i);
        }
      }
    }
  }

  /// Blocks [b0, end) of four rows times N tokens, folded: those of block b and token n at to[((b - b0) * N + n) * L / 4].
  /// A function of its own, or GCC keeps the rows in memory.
  template <int N>
  static HYMBA_NEVER_INLINE void four_rows(const std::byte* row0, const std::byte* row1, const std::byte* row2,
                                           const std::byte* row3, std::int64_t cols, const Tokens<Unit>& tokens,
                                           std::int64_t b0, std::int64_t end, Ints* to) {
    const std::byte* const row[4] = {row0, row1, row2, row3};
    for (std::int64_t b = b0; b < end; ++b) {
      // Several tokens take longer with what was fetched, and leave it less room in the first-level cache. That of
      // Zen 4 waits for too few lines at a time.
      fetch<N == 1 && !RowByRow ? 1 : 2>(row, b);
      Ints sums[N][4];
      block_of_four(row, cols, tokens, b, sums);
      unrolled<N>([&](auto n) { to[n * (L / 4)] = fold_to_quads(sums[n]); });
      to += N * (L / 4);
    }
  }

  /// sums[n][r]: block `block` of row r times token n, along the lanes.
  template <int N>
  static HYMBA_ALWAYS_INLINE void block_of_four(const std::byte* const (&row)[4], std::int64_t cols,
                                                const Tokens<Unit>& tokens, std::int64_t block, Ints (&sums)[N][4]) {
    static_assert(block_lines == 4);
    switch (std::min(block_lines, units_of(cols - block * quantised_block, line))) {
      case 4: return lines_of_four<4>(row, cols, tokens, block, sums);
      case 3: return lines_of_four<3>(row, cols, tokens, block, sums);
      case 2: return lines_of_four<2>(row, cols, tokens, block, sums);
      default: return lines_of_four<1>(row, cols, tokens, block, sums);
    }
  }

  /// Of a block of `Lines` lines. Rows taken at once share what is read of the tokens. Loops instead of `unrolled`, whose
  /// bodies GCC makes functions of when there are many.
  template <int Lines, int N>
  static HYMBA_ALWAYS_INLINE void lines_of_four(const std::byte* const (&row)[4], std::int64_t cols,
                                                const Tokens<Unit>& tokens, std::int64_t block, Ints (&sums)[N][4]) {
    constexpr int at_once = N == 1 ? 4 : N < 4 || Unit::many_registers ? 2 : 1;
    static_assert(4 % at_once == 0);
    const std::int8_t* const x = tokens.bytes + tokens.at(0, block) * quantised_block;
    // Not unrolled, or GCC keeps what it read of the tokens, for which there are not enough registers.
#pragma GCC unroll 1
    for (int first = 0; first < 4; first += at_once) {
      Ints sum[N][at_once];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
        for (int r = 0; r < at_once; ++r) sum[n][r] = Unit::same(0);
      }
#pragma GCC unroll 16
      for (int i = 0; i < Lines * parts; ++i) {
        const int l = i / parts, part = i % parts;
        Bytes xs[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) xs[n] = Unit::load(x + n * quantised_block + l * line + part * 4 * L);
#pragma GCC unroll 4
        for (int r = 0; r < at_once; ++r) {
          const typename Rows<Unit, W>::Block weights(row[first + r], cols, block);
          const Bytes v = weights.load(l / 2, l % 2, part);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) sum[n][r] = Rows<Unit, W>::dot(sum[n][r], v, xs[n]);
        }
      }
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
        for (int r = 0; r < at_once; ++r) sums[n][first + r] = sum[n][r];
      }
    }
  }

  /// One token against rows [first, last) of the weights, each from end to end: scales, which lie behind the values, when
  /// these were read. Read before, they would cost a sixth of the bandwidth: a line ahead of the stream ends it for the
  /// processor.
  static HYMBA_NEVER_INLINE void row_by_row(const Tokens<Unit>& tokens, const WeightMatrix<W>& w, const float* bias,
                                            MatrixView<float> y, Store store, std::int64_t first, std::int64_t last) {
    constexpr std::int64_t most = 64;  // blocks, of which rows have 7 to 22
    for (std::int64_t o = first; o < last; ++o) {
      const std::byte* const row = w.row(o);
      float total = 0;
      for (std::int64_t b0 = 0; b0 < tokens.blocks; b0 += most) {
        const std::int64_t end = std::min(b0 + most, tokens.blocks);
        std::int32_t sums[most];
        for (std::int64_t b = b0; b < end; ++b) {
          const std::int64_t from = b * quantised_block;
          const std::int64_t bytes = std::min(quantised_block, round_up(w.cols - from, line));
          Ints sum = Unit::same(0);
          // One instruction has to read them all.
#pragma GCC unroll 1
          for (std::int64_t i = from; i < from + bytes; i += 4 * L) {
            sum = Unit::dot(sum, Unit::shifted(Unit::load(row + i)), Unit::load(tokens.bytes + i));
          }
          sums[b - b0] = Unit::sum(sum) - (Unit::offset != 0 ? tokens.excess[b] : 0);
        }
        for (std::int64_t b = b0; b < end; ++b) {
          const float scale = Format::scale(row, w.cols, b) * tokens.scales[b];
          total = std::fma(static_cast<float>(sums[b - b0]), scale, total);
        }
      }
      write_one(total, o, bias, y.row(0), store);
    }
  }

  // --- Some tokens ---------------------------------------------------------------------------------------------------

  static RowShares some_shares(std::int64_t tasks, const WeightMatrix<W>& w) {
    return RowShares(tasks, w.rows, 4, 1, static_cast<std::int64_t>(Format::row_bytes(w.cols)));
  }

  /// The tokens, 4 Q at most, against what task `task` gets of the weights. Every thread packs them for itself: less
  /// work than to wait for one that does.
  template <int Q>
  static void some(std::byte* memory, const Tokens<Unit>& unpacked, const WeightMatrix<W>& w, const float* bias,
                   MatrixView<float> y, Store store, std::int64_t task, RowShares& shares) {
    const TokenQuads<Unit, Q> tokens(memory, unpacked.blocks);
    tokens.pack(unpacked, w.cols);
    shares.run(task, [&](const RowPieces& pieces, std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        alignas(64) float sums[4][TokenQuads<Unit, Q>::tokens];
        const auto row = [&](std::int64_t p) { return w.row(pieces.row_or_last(p, i)); };
        four_rows_of_quads<Q>(row(0), row(1), row(2), row(3), w.cols, tokens, sums);
        for (std::int64_t p = 0; p < 4; ++p) {
          if (!pieces.has(p, i)) continue;
          const std::int64_t o = pieces.row(p, i);
          for (std::int64_t t = 0; t < unpacked.count; ++t) write_one(sums[p][t], o, bias, y.row(t), store);
        }
      }
    });
  }

  /// Four rows times all tokens.
  template <int Q>
  static HYMBA_NEVER_INLINE void four_rows_of_quads(const std::byte* row0, const std::byte* row1, const std::byte* row2,
                                                    const std::byte* row3, std::int64_t cols,
                                                    const TokenQuads<Unit, Q>& tokens,
                                                    float (&to)[4][TokenQuads<Unit, Q>::tokens]) {
    constexpr int at_once = Unit::many_registers || Q == 1 ? 4 : 2;
    constexpr int registers = TokenQuads<Unit, Q>::sums;
    const std::byte* const row[4] = {row0, row1, row2, row3};
    const auto blocks = tokens.blocks;
    const std::int8_t* quads = tokens.bytes;
    const float* token_scales = tokens.scales;
    const std::int32_t* excess = tokens.excess;
    Floats total[4][registers];
    unrolled<4>([&](auto r) { unrolled<registers>([&](auto s) { total[r][s] = Unit::same(0.0f); }); });
    for (std::int64_t b = 0; b < blocks; ++b) {
      fetch<2>(row, b);
      const std::int64_t lines = std::min(block_lines, units_of(cols - b * quantised_block, line));
      // Unrolled, or the sums are in memory.
#pragma GCC unroll 2
      for (int first = 0; first < 4; first += at_once) {
        Ints sum[at_once][Q];
        unrolled<at_once>([&](auto r) { unrolled<Q>([&](auto q) { sum[r][q] = Unit::same(0); }); });
        const std::int8_t* x = quads;
#pragma GCC unroll 1
        for (int pair = 0; 2 * pair < lines; ++pair) {
          line_of_quads<Q, at_once, 0>(row + first, cols, b, pair, x, sum);
          if (2 * pair + 1 < lines) line_of_quads<Q, at_once, 1>(row + first, cols, b, pair, x, sum);
        }
        unrolled<at_once>([&](auto r) {
          const Floats scale = Unit::same(Format::scale(row[first + r], cols, b));
          unrolled<registers>([&](auto s) {
            Ints fours[L / 4];
            unrolled<static_cast<int>(L / 4)>([&](auto i) {
              constexpr int q = s * static_cast<int>(L / 4) + i;
              if constexpr (q < Q) {
                fours[i] = sum[r][q];
              } else {
                fours[i] = Unit::same(0);
              }
            });
            Ints all = fold_quads(fours);
            if constexpr (Unit::offset != 0) all = Unit::subtract(all, Unit::words(Unit::load(excess + s * L)));
            Floats& to_add = total[first + r][s];
            to_add = Unit::add_scaled(to_add, all, Unit::multiply(scale, Unit::load(token_scales + s * L)));
          });
        });
      }
      quads += TokenQuads<Unit, Q>::block_bytes;
      token_scales += registers * L;
      excess += registers * L;
    }
    unrolled<4>([&](auto r) { unrolled<registers>([&](auto s) { Unit::store(to[r] + s * L, total[r][s]); }); });
  }

  /// Adds the products of line 2 `pair` + Half of R rows with all tokens, whose registers from `x` on it passes.
  template <int Q, int R, int Half>
  static HYMBA_ALWAYS_INLINE void line_of_quads(const std::byte* const* row, std::int64_t cols, std::int64_t block,
                                                int pair, const std::int8_t*& x, Ints (&sum)[R][Q]) {
#pragma GCC unroll 4
    for (int part = 0; part < parts; ++part) {
      Bytes weights[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        weights[r] = typename Rows<Unit, W>::Block(row[r], cols, block).load(pair, Half, part);
      }
      unrolled<4>([&](auto j) {
        Bytes four_times[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) four_times[r] = Unit::template spread<j>(weights[r]);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          const Bytes four_tokens = Unit::load(x + (j * Q + q) * 4 * L);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) sum[r][q] = Rows<Unit, W>::dot(sum[r][q], four_times[r], four_tokens);
        }
      });
      x += 4 * Q * 4 * L;
    }
  }

  // --- Many tokens ---------------------------------------------------------------------------------------------------

  /// Tokens [some.first, some.last) against the panel of weights from row `o`; those before row `end` come next.
  static void many(std::byte* memory, const Tokens<Unit>& tokens, const WeightMatrix<W>& w, const float* bias,
                   MatrixView<float> y, Store store, BlockRange some, std::int64_t o, std::int64_t end) {
    auto* const panel = reinterpret_cast<std::int8_t*>(memory);
    auto* const sums = reinterpret_cast<float*>(memory + panel_rows * quantised_block);
    const std::int64_t valid = std::min(panel_rows, end - o);
    const std::int64_t count = some.last - some.first, groups = units_of(count, panel_tokens);
    for (std::int64_t b = 0; b < tokens.blocks; ++b) {
      const std::int64_t lines = std::min(block_lines, units_of(w.cols - b * quantised_block, line));
      const bool last = b + 1 == tokens.blocks;
      // The next block, beside this one or the first of the rows below, is fetched in equal parts.
      Ahead ahead(w, last ? o + panel_rows : o, end, last ? 0 : b + 1, panel_vectors * lines + groups);
      pack(w, o, valid, b, lines, ahead, panel);
      float scale[panel_rows] = {};
      for (std::int64_t r = 0; r < valid; r += L) Unit::store(scale + r, scales(w, o + r, valid - r, b));
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t first = count * g / groups, n = count * (g + 1) / groups - first, t = some.first + first;
        float* const at = sums + (tokens.blocks > 1 ? first * panel_rows : 0);
        ahead.fetch();
        // What the next group will write; rows of y are pages apart.
        for (std::int64_t i = n; last && i < 2 * n && first + i < count; ++i) {
          for (std::int64_t r = 0; r < valid; r += line / 4) simd::prefetch(y.row(t + i) + o + r);
        }
        Panel<Unit>::multiply(panel, lines, tokens, t, n, b, scale, at, b == 0);
        for (std::int64_t i = 0; last && i < n; ++i) {
          write_row(at + i * panel_rows, valid, bias != nullptr ? bias + o : nullptr, y.row(t + i) + o, store);
        }
      }
    }
  }

  /// Block `block` of the panel from row `o` of those before `end`: fetched into the second-level cache in `shares`.
  class Ahead {
   public:
    Ahead(const WeightMatrix<W>& w, std::int64_t o, std::int64_t end, std::int64_t block, std::int64_t shares)
        : share_(units_of(panel_rows * row_lines, shares)),
          rows_{w.row(o) + block * block_bytes, static_cast<std::int64_t>(Format::row_bytes(w.cols)), row_lines,
                std::clamp<std::int64_t>(end - o, 0, panel_rows)} {}
    HYMBA_ALWAYS_INLINE void fetch() { rows_.fetch(share_); }

   private:
    static constexpr std::int64_t row_lines = block_bytes / line;
    std::int64_t share_;
    RowsToRead rows_;
  };

  /// A block of `lines` lines of the rows from `o`, of which `valid` exist, as [four columns][row][4], shifted. Rows
  /// that do not exist repeat the last one.
  static void pack(const WeightMatrix<W>& w, std::int64_t o, std::int64_t valid, std::int64_t block, std::int64_t lines,
                   Ahead& ahead, std::int8_t* to) {
    for (std::int64_t v = 0; v < panel_vectors; ++v) {
      const auto pack_line = [&](auto l) {
        if (l >= lines) return;
        ahead.fetch();
        unrolled<parts>([&](auto part) {
          Ints square[L];
          unrolled<static_cast<int>(L)>([&](auto r) {
            const std::byte* const row = w.row(o + std::min<std::int64_t>(v * L + r, valid - 1));
            square[r] = Unit::words(typename Rows<Unit, W>::Block(row, w.cols, block).load(l / 2, l % 2, part));
          });
          transpose(square);
          std::int8_t* const out = to + ((l * line / 4 + part * L) * panel_vectors + v) * 4 * L;
          unrolled<static_cast<int>(L)>(
              [&](auto q) { Unit::store(out + q * panel_vectors * 4 * L, Unit::bytes(square[q])); });
        });
      };
      unrolled<static_cast<int>(block_lines)>(pack_line);
    }
  }

  /// Sums of a token for `valid` rows, on what y starts from.
  static void write_row(const float* sums, std::int64_t valid, const float* bias, float* y, Store store) {
    for (std::int64_t i = 0; i < valid; i += L) {
      write(Unit::load(sums + i), valid - i, bias != nullptr ? bias + i : nullptr, y + i, store);
    }
  }
};

}  // namespace detail::dot

/// Operations that arch::dot does not specialise run on its base.
template <class Op, class Base>
struct kernel_for<Op, arch::dot<Base>> : kernel_for<Op, Base> {};

/// op::Gemm with int8 and int4 weights: activations rounded to signed bytes, with a scale for each token and 256
/// columns; sums of a block exact. The bits are those of arch::amx. With bf16 weights, where HYMBA_DOT_BF16 is 1:
/// activations rounded to bf16 (nearest even; subnormals become zero), sums in single precision as the instruction forms
/// them. Other weights run on the base. As on every architecture a row's bits do not depend on the rows it is computed
/// with.
template <class Base>
struct kernel_for<op::Gemm, arch::dot<Base>> {
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    std::size_t bytes = std::max(detail::dot::DotGemm<detail::dot::Best, Weights::int8>::scratch_bytes(rows, in),
                                 kernel_for<op::Gemm, Base>::scratch_bytes(rows, in, out));
#if HYMBA_DOT_BF16
    bytes = std::max(bytes, detail::dot::Bf16Gemm::scratch_bytes(rows, in, out));
#endif
    return bytes;
  }
  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    std::size_t bytes = std::max(detail::dot::DotGemm<detail::dot::Best, Weights::int8>::shared_bytes(rows, in),
                                 gemm_shared_bytes<Base>(rows, in, out, false));
#if HYMBA_DOT_BF16
    bytes = std::max(bytes, detail::dot::Bf16Gemm::shared_bytes(rows, in));
#endif
    return bytes;
  }

  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    if (x.rows == 0) return;
    if constexpr (!dot_takes(W)) {
      kernel_for<op::Gemm, Base>::run(exec, scratch, x, w, bias, y, store);
#if HYMBA_DOT_BF16
    } else if constexpr (W == Weights::bf16) {
      detail::dot::Bf16Gemm::run(exec, scratch, x, w, bias, y, store);
#endif
    } else {
      detail::dot::DotGemm<detail::dot::Best, W>::run(exec, scratch, x, w, bias, y, store);
    }
  }
};

template <class Base>
struct kernel_for<op::GatedGemm, arch::dot<Base>> : gated_gemm_in_parts<arch::dot<Base>> {};

#else

template <class Op, class Base>
struct kernel_for<Op, arch::dot<Base>> {
  static_assert(
      detail::always_false<Op, Base>,
      "hymba: arch::dot needs a translation unit compiled for AVX2 with FMA, AVX-512 VNNI or the dot products of "
      "ARM (-march=haswell, -march=icelake-server, -march=armv8.2-a+dotprod or later, or -march=native on a "
      "processor that has them)");
};

#endif  // HYMBA_DOT

HYMBA_NAMESPACE_END
