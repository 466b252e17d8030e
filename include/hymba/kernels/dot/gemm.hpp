// SPDX-License-Identifier: Apache-2.0
//
// op::Gemm on dot products of bytes, and what arch::dot<Base> means for everything else: Base.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/dot/units.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/quantised_activations.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/transpose.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

HYMBA_NAMESPACE_BEGIN

#if defined(HYMBA_DOT)

namespace detail::dot {

inline constexpr std::int64_t line = 64;                          ///< columns in a line, in every format
inline constexpr std::int64_t block_lines = quantised_block / line;

/// Tokens as signed bytes: rows [token][columns, rounded up to lines], and for each block of columns, [token][block],
/// the scale and `offset` times the sum of the bytes, by which products with shifted weights are too large.
template <class Unit>
struct Tokens {
  std::int8_t* bytes;
  float* scales;
  std::int32_t* excess;
  std::int64_t stride, blocks;

  static constexpr std::int64_t row_bytes(std::int64_t cols) { return round_up(cols, line); }
  static constexpr std::size_t memory_bytes(std::int64_t tokens, std::int64_t cols) {
    return static_cast<std::size_t>(tokens * row_bytes(cols) + 2 * round_up(tokens * quantised_blocks(cols) * 4, line));
  }
  Tokens(std::byte* memory, std::int64_t tokens, std::int64_t cols)
      : bytes(reinterpret_cast<std::int8_t*>(memory)),
        scales(reinterpret_cast<float*>(memory + tokens * row_bytes(cols))),
        excess(reinterpret_cast<std::int32_t*>(memory + tokens * row_bytes(cols) +
                                               round_up(tokens * quantised_blocks(cols) * 4, line))),
        stride(row_bytes(cols)),
        blocks(quantised_blocks(cols)) {}

  const std::int8_t* row(std::int64_t token, std::int64_t block) const {
    return bytes + token * stride + block * quantised_block;
  }
  void quantise(std::int64_t token, const float* x, std::int64_t cols) const {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t first = b * quantised_block, count = std::min(quantised_block, cols - first);
      std::int8_t* const to = bytes + token * stride + first;
      scales[token * blocks + b] = quantise_activations(x + first, count, to);
      std::int32_t sum = 0;
      if constexpr (Unit::offset != 0) {
        for (std::int64_t i = 0; i < round_up(count, line); ++i) sum += to[i];
      }
      excess[token * blocks + b] = Unit::offset * sum;
    }
  }
};

/// Weights as registers of shifted bytes.
template <class Unit, Weights W>
struct Rows;

template <class Unit>
struct Rows<Unit, Weights::int8> {
  /// A block of one row.
  struct Block {
    const std::byte* values;
    HYMBA_ALWAYS_INLINE Block(const std::byte* row, std::int64_t, std::int64_t block)
        : values(row + block * quantised_block) {}
    /// Register `Part` of line `Line` of the block.
    template <int Line, int Part>
    HYMBA_ALWAYS_INLINE typename Unit::Bytes load() const {
      return Unit::shifted(Unit::load(values + Line * line + Part * 4 * Unit::lanes));
    }
  };
};

template <class Unit>
struct Rows<Unit, Weights::int4> {
  struct Block {
    const std::byte* values;
    std::uint32_t multipliers;
    HYMBA_ALWAYS_INLINE Block(const std::byte* row, std::int64_t cols, std::int64_t block)
        : values(row + block * (quantised_block / 2)), multipliers(Int4Rows::multipliers(row, cols, block)) {}
    template <int Line, int Part>
    HYMBA_ALWAYS_INLINE typename Unit::Bytes load() const {
      // A line of memory has the first of two lines of columns in its low halves. A line of columns has two multipliers.
      const typename Unit::Bytes stored = Unit::load(values + Line / 2 * line + Part * 4 * Unit::lanes);
      const auto products = [&](unsigned nibble) { return table.at[multipliers >> 4 * nibble & 15u]; };
      return Unit::look_up(Unit::template table<Part>(products(2 * Line), products(2 * Line + 1)),
                           Line % 2 == 0 ? Unit::low_halves(stored) : Unit::high_halves(stored));
    }
  };

 private:
  /// at[m][v]: the shifted weight of stored value v under multiplier m.
  struct Products {
    alignas(64) std::int8_t at[16][16] = {};
    constexpr Products() {
      for (int m = 0; m < 16; ++m) {
        for (int v = 0; v < 16; ++v) {
          at[m][v] = static_cast<std::int8_t>(static_cast<std::uint8_t>(m * (v - 8) + Unit::offset));
        }
      }
    }
  };
  static constexpr Products table{};
};

/// The product of activations and a weight matrix of bytes or halves of them. Tokens are quantised once.
///
/// Few tokens: a group of L weight rows straight from memory, L being the lanes of a register; lanes run along the
/// columns, and at the end of a block of 256 the L registers of sums are folded to one. Many tokens: a block of a panel
/// of weights is packed so that lanes are rows; it stays in the first-level cache while all tokens, broadcast four bytes
/// at a time, go past it, their sums waiting in the second.
///
/// Either way a block is summed exactly, then scaled and added in single precision, block after block, as on tiles
/// (kernels/amx/gemm.hpp): a number depends on its row and its token alone, and is the same on every unit.
template <class Unit, Weights W>
struct DotGemm {
  using Format = weight_format<W>;
  using Bytes = typename Unit::Bytes;
  using Ints = typename Unit::Ints;
  using Floats = typename Unit::Floats;
  static constexpr std::int64_t L = Unit::lanes;
  static constexpr int parts = static_cast<int>(line / (4 * L));  ///< registers in a line
  static constexpr std::int64_t few_tokens = 8;
  static constexpr int group_tokens = 4;  ///< of few, that share an unpacked block of a row
  static constexpr int panel_vectors = Unit::panel_vectors, panel_tokens = Unit::panel_tokens;
  static constexpr std::int64_t panel_rows = L * panel_vectors;
  static constexpr std::int64_t most_tokens = 512;

  // --- Memory --------------------------------------------------------------------------------------------------------

  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in) {
    return rows <= 1 ? 0 : Tokens<Unit>::memory_bytes(std::min(rows, most_tokens), in);
  }
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in) {
    const std::size_t one = Tokens<Unit>::memory_bytes(1, in);
    if (rows <= few_tokens) return one;
    // A block of a panel, and the sums of all tokens.
    const std::int64_t sums = in <= quantised_block ? 0 : std::min(rows, most_tokens) * panel_rows * 4;
    return std::max(one, static_cast<std::size_t>(panel_rows * quantised_block + sums));
  }

  // --- Running -------------------------------------------------------------------------------------------------------

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, const WeightMatrix<W>& w, const float* bias,
                  MatrixView<float> y, Store store) {
    const std::int64_t threads = x.rows * w.rows * w.cols < serial_product ? 1 : exec.threads();
    const std::int64_t groups = units_of(w.rows, L), tasks = std::min(threads, groups);
    const auto first_row = [&](std::int64_t task) { return std::min(groups * task / tasks * L, w.rows); };
    if (x.rows == 1) {
      // Every thread quantises the token for itself: less work than to wait for one that does.
      exec.parallel_for(tasks, [&](std::int64_t task, int thread) noexcept {
        const Tokens<Unit> tokens(scratch.of<std::byte>(thread), 1, w.cols);
        tokens.quantise(0, x.row(0), w.cols);
        few(tokens, 1, w, bias, y, store, first_row(task), first_row(task + 1));
      });
      return;
    }
    for (std::int64_t t0 = 0; t0 < x.rows; t0 += most_tokens) {
      const std::int64_t count = std::min(most_tokens, x.rows - t0);
      const Tokens<Unit> tokens(scratch.shared, count, w.cols);
      const std::int64_t parts_of_tokens = std::min(threads, count);
      exec.parallel_for(parts_of_tokens, [&](std::int64_t task, int) noexcept {
        const std::int64_t last = count * (task + 1) / parts_of_tokens;
        for (std::int64_t t = count * task / parts_of_tokens; t < last; ++t) {
          tokens.quantise(t, x.row(t0 + t), w.cols);
        }
      });
      const MatrixView<float> out = y.row_range(t0, count);
      if (count <= few_tokens) {
        exec.parallel_for(tasks, [&](std::int64_t task, int) noexcept {
          few(tokens, count, w, bias, out, store, first_row(task), first_row(task + 1));
        });
        continue;
      }
      const BlockGrid grid(threads, units_of(count, panel_tokens), units_of(w.rows, panel_rows));
      exec.parallel_for(grid.tasks(), [&](std::int64_t task, int thread) noexcept {
        many(scratch.of<std::byte>(thread), tokens, w, bias, out, store, grid.row_range(task, panel_tokens, count),
             grid.col_range(task, panel_rows, w.rows));
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
    for (std::int64_t i = 0; i < n; ++i) {
      const float value = all[i] + (bias != nullptr ? bias[i] : 0.0f);
      y[i] = store == Store::add ? value + y[i] : value;
    }
  }

  /// The scales of a block for L rows from row `o`, of which `rows` exist.
  static HYMBA_ALWAYS_INLINE Floats scales(const WeightMatrix<W>& w, std::int64_t o, std::int64_t rows,
                                           std::int64_t block) {
    return Unit::scales(w.row(o) + Format::value_bytes(w.cols) + static_cast<std::size_t>(block) * Format::scale_bytes,
                        static_cast<std::int64_t>(Format::row_bytes(w.cols)), static_cast<int>(std::min(rows, L)));
  }

  /// Memory that will be read, in order: fetched into the second-level cache a few lines at a time.
  struct Stream {
    const std::byte* at;
    std::int64_t left;
    HYMBA_ALWAYS_INLINE void fetch(std::int64_t lines) {
      for (std::int64_t i = 0; i < lines && left > 0; ++i, at += line, left -= line) simd::prefetch<2>(at);
    }
  };

  // --- Few tokens ----------------------------------------------------------------------------------------------------

  /// `count` tokens against rows [first, last) of the weights.
  static void few(const Tokens<Unit>& tokens, std::int64_t count, const WeightMatrix<W>& w, const float* bias,
                  MatrixView<float> y, Store store, std::int64_t first, std::int64_t last) {
    const auto row_bytes = static_cast<std::int64_t>(Format::row_bytes(w.cols));
    const std::int64_t share = units_of(L * row_bytes, line * L * tokens.blocks);
    for (std::int64_t o = first; o < last; o += L) {
      const std::int64_t valid = std::min(L, last - o);
      // While a group of rows is used the next one is fetched, little by little.
      Stream ahead{w.row(o) + L * row_bytes, std::clamp<std::int64_t>(last - o - L, 0, L) * row_bytes};
      for (std::int64_t t = 0; t < count;) {
        const auto take = [&](auto n) {
          group<n()>(tokens, t, w, o, valid, ahead, share, bias, y, store);
          t += n();
        };
        switch (count - t) {
          case 1: take(std::integral_constant<int, 1>{}); break;
          case 2: take(std::integral_constant<int, 2>{}); break;
          case 3: take(std::integral_constant<int, 3>{}); break;
          default: take(std::integral_constant<int, group_tokens>{});
        }
      }
    }
  }

  /// N tokens from `t` against L rows from `o`, of which `valid` exist.
  template <int N>
  static void group(const Tokens<Unit>& tokens, std::int64_t t, const WeightMatrix<W>& w, std::int64_t o,
                    std::int64_t valid, Stream& ahead, std::int64_t share, const float* bias, MatrixView<float> y,
                    Store store) {
    const std::byte* row[L];
    // Rows past the end repeat the last one; their sums are dropped.
    for (std::int64_t r = 0; r < L; ++r) row[r] = w.row(o + std::min(r, valid - 1));
    Floats total[N];
    unrolled<N>([&](auto n) { total[n] = Unit::same(0.0f); });
    for (std::int64_t b = 0; b < tokens.blocks; ++b) {
      Ints sums[N][L];
      const std::int64_t lines = std::min(block_lines, units_of(w.cols - b * quantised_block, line));
      const std::int8_t* x = tokens.row(t, b);
      if (lines == block_lines) {
        group_block<N, block_lines>(row, w.cols, b, x, tokens.stride, ahead, share, sums);
      } else if (lines == 1) {
        group_block<N, 1>(row, w.cols, b, x, tokens.stride, ahead, share, sums);
      } else if (lines == 2) {
        group_block<N, 2>(row, w.cols, b, x, tokens.stride, ahead, share, sums);
      } else {
        group_block<N, 3>(row, w.cols, b, x, tokens.stride, ahead, share, sums);
      }
      const Floats scale = scales(w, o, valid, b);
      unrolled<N>([&](auto n) {
        const std::int64_t at = (t + n) * tokens.blocks + b;
        Ints sum = row_sums(sums[n]);
        if constexpr (Unit::offset != 0) sum = Unit::subtract(sum, Unit::same(tokens.excess[at]));
        total[n] = Unit::add_scaled(total[n], sum, Unit::multiply(scale, Unit::same(tokens.scales[at])));
      });
    }
    unrolled<N>([&](auto n) {
      write(total[n], valid, bias != nullptr ? bias + o : nullptr, y.row(t + n) + o, store);
    });
  }

  /// sums[n][r]: `Lines` lines of block `block` of row r times N rows of x, along the lanes.
  template <int N, int Lines>
  static HYMBA_ALWAYS_INLINE void group_block(const std::byte* const (&row)[L], std::int64_t cols, std::int64_t block,
                                              const std::int8_t* x, std::int64_t stride, Stream& ahead,
                                              std::int64_t share, Ints (&sums)[N][L]) {
    const auto one = [&](std::int64_t r) {
      ahead.fetch(share);
      const typename Rows<Unit, W>::Block weights(row[r], cols, block);
      Ints sum[N];
      unrolled<N>([&](auto n) { sum[n] = Unit::same(0); });
      unrolled<Lines>([&](auto l) {
        unrolled<parts>([&](auto part) {
          const Bytes v = weights.template load<l(), part()>();
          unrolled<N>([&](auto n) {
            sum[n] = Unit::dot(sum[n], v, Unit::load(x + n * stride + l * line + part * 4 * L));
          });
        });
      });
      unrolled<N>([&](auto n) { sums[n][r] = sum[n]; });
    };
    for (std::int64_t r = 0; r < L; ++r) one(r);
  }

  // --- Many tokens ---------------------------------------------------------------------------------------------------

  /// Tokens [some.first, some.last) against rows [rows.first, rows.last) of the weights.
  static void many(std::byte* memory, const Tokens<Unit>& tokens, const WeightMatrix<W>& w, const float* bias,
                   MatrixView<float> y, Store store, BlockRange some, BlockRange rows) {
    auto* const panel = reinterpret_cast<std::int8_t*>(memory);
    auto* const sums = reinterpret_cast<float*>(memory + panel_rows * quantised_block);
    for (std::int64_t o = rows.first; o < rows.last; o += panel_rows) {
      const std::int64_t valid = std::min(panel_rows, rows.last - o);
      for (std::int64_t b = 0; b < tokens.blocks; ++b) {
        const std::int64_t lines = std::min(block_lines, units_of(w.cols - b * quantised_block, line));
        pack(w, o, valid, b, lines, panel);
        Floats scale[panel_vectors];
        unrolled<panel_vectors>([&](auto v) {
          scale[v] = v * L < valid ? scales(w, o + v * L, valid - v * L, b) : Unit::same(0.0f);
        });
        const bool first = b == 0, last = b + 1 == tokens.blocks;
        for (std::int64_t t = some.first; t < some.last;) {
          float* const at = sums + (t - some.first) * panel_rows;
          const auto take = [&](auto n) {
            panel_block<n()>(panel, lines, tokens, t, b, scale, at, first, last, valid,
                             bias != nullptr ? bias + o : nullptr, y.row(t) + o, y.stride, store);
            t += n();
          };
          const std::int64_t left = some.last - t;
          if (left >= panel_tokens) {
            take(std::integral_constant<int, panel_tokens>{});
          } else if (left >= 2) {
            take(std::integral_constant<int, 2>{});
          } else {
            take(std::integral_constant<int, 1>{});
          }
        }
      }
    }
  }

  /// A block of `lines` lines of the rows from `o`, of which `valid` exist, as [four columns][row][4], shifted. Rows that
  /// do not exist repeat the last one.
  static void pack(const WeightMatrix<W>& w, std::int64_t o, std::int64_t valid, std::int64_t block, std::int64_t lines,
                   std::int8_t* to) {
    for (std::int64_t v = 0; v < panel_vectors; ++v) {
      const auto pack_line = [&](auto l) {
        if (l >= lines) return;
        unrolled<parts>([&](auto part) {
          Ints square[L];
          unrolled<static_cast<int>(L)>([&](auto r) {
            const std::byte* const row = w.row(o + std::min<std::int64_t>(v * L + r, valid - 1));
            square[r] = Unit::words(typename Rows<Unit, W>::Block(row, w.cols, block).template load<l(), part()>());
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

  /// Sums of N tokens from `t` with a packed block: added to what the blocks before it left in `sums`
  /// [token][panel_rows], or, of the last block, written to y.
  template <int N>
  static void panel_block(const std::int8_t* panel, std::int64_t lines, const Tokens<Unit>& tokens, std::int64_t t,
                          std::int64_t block, const Floats (&scale)[panel_vectors], float* sums, bool first, bool last,
                          std::int64_t valid, const float* bias, float* y, std::int64_t stride, Store store) {
    Ints sum[N][panel_vectors];
    unrolled<N>([&](auto n) { unrolled<panel_vectors>([&](auto v) { sum[n][v] = Unit::same(0); }); });
    const std::int8_t* x = tokens.row(t, block);
    const std::int64_t quads = lines * (line / 4);
    for (std::int64_t q = 0; q < quads; ++q) {
      Bytes ws[panel_vectors];
      unrolled<panel_vectors>([&](auto v) { ws[v] = Unit::load(panel + v * 4 * L); });
      unrolled<N>([&](auto n) {
        const Bytes four = Unit::broadcast(x + n * tokens.stride);
        unrolled<panel_vectors>([&](auto v) { sum[n][v] = Unit::dot(sum[n][v], ws[v], four); });
      });
      panel += panel_vectors * 4 * L;
      x += 4;
    }
    unrolled<N>([&](auto n) {
      const std::int64_t at = (t + n) * tokens.blocks + block;
      const Ints excess = Unit::same(tokens.excess[at]);
      const Floats token_scale = Unit::same(tokens.scales[at]);
      unrolled<panel_vectors>([&](auto v) {
        float* const held = sums + n * panel_rows + v * L;
        Ints exact = sum[n][v];
        if constexpr (Unit::offset != 0) exact = Unit::subtract(exact, excess);
        const Floats total = Unit::add_scaled(first ? Unit::same(0.0f) : Unit::load(held), exact,
                                              Unit::multiply(scale[v], token_scale));
        if (!last) {
          Unit::store(held, total);
        } else if (v * L < valid) {
          write(total, valid - v * L, bias != nullptr ? bias + v * L : nullptr, y + n * stride + v * L, store);
        }
      });
    });
  }
};

}  // namespace detail::dot

/// Operations that arch::dot does not specialise run on its base.
template <class Op, class Base>
struct kernel_for<Op, arch::dot<Base>> : kernel_for<Op, Base> {};

/// op::Gemm with int8 and int4 weights: activations rounded to signed bytes, with a scale for each token and 256 columns;
/// sums of a block exact. The bits are those of arch::amx. Other weights run on the base. As on every architecture a
/// row's bits do not depend on the rows it is computed with.
template <class Base>
struct kernel_for<op::Gemm, arch::dot<Base>> {
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return std::max(detail::dot::DotGemm<detail::dot::Best, Weights::int8>::scratch_bytes(rows, in),
                    kernel_for<op::Gemm, Base>::scratch_bytes(rows, in, out));
  }
  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return std::max(detail::dot::DotGemm<detail::dot::Best, Weights::int8>::shared_bytes(rows, in),
                    gemm_shared_bytes<Base>(rows, in, out));
  }

  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    if (x.rows == 0) return;
    if constexpr (W == Weights::int8 || W == Weights::int4) {
      detail::dot::DotGemm<detail::dot::Best, W>::run(exec, scratch, x, w, bias, y, store);
    } else {
      kernel_for<op::Gemm, Base>::run(exec, scratch, x, w, bias, y, store);
    }
  }
};

#else

template <class Op, class Base>
struct kernel_for<Op, arch::dot<Base>> {
  static_assert(detail::always_false<Op, Base>,
                "hymba: arch::dot needs a translation unit compiled for AVX2 with FMA, AVX-512 VNNI or the dot products of "
                "ARM (-march=haswell, -march=icelake-server, -march=armv8.2-a+dotprod or later, or -march=native on a "
                "processor that has them)");
};

#endif  // HYMBA_DOT

HYMBA_NAMESPACE_END
