// SPDX-License-Identifier: Apache-2.0
//
// op::Gemm on AMX tiles, and what arch::amx<Base> means for operations without tiles: Base. Includes every operation that
// has them, so that arch::amx means the same wherever it is named.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/amx/activations.hpp>
#include <hymba/kernels/amx/attention.hpp>
#include <hymba/kernels/amx/tiles.hpp>
#include <hymba/kernels/amx/weight_tiles.hpp>
#include <hymba/kernels/dot/gemm.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/static_dispatch.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

#if defined(HYMBA_AMX)

namespace detail::amx {

/// The product of activations and a weight matrix on tiles.
///
/// The weights are the left operand: their rows are rows of tiles, in whatever row-major order they are stored. The
/// tokens are the right operand, packed once for all threads; for a single token its row is the operand as it lies. So
/// a thread takes its share of the weights past all tokens, and weights are read from memory once.
///
/// Bytes are summed exactly over a block of 256 columns, then scaled and added in single precision, block after block.
/// bf16 products are summed along k by the tiles. Either way a number depends on its row and its token alone.
template <Weights W>
struct TileGemm {
  using Format = weight_format<W>;
  using Tiles = TileWeights<W>;
  using Element = typename Tiles::Element;
  static constexpr bool bytes = Tiles::bytes;
  static constexpr std::int64_t depth = Tiles::depth, tile = Tiles::tile;
  // In the first-level cache: a panel of weights, `deepest` along k. In the second: the tokens as deep as that, and the
  // sums of `block_panels` panels of weights.
  static constexpr std::int64_t deepest = bytes ? 1024 : 448;
  static constexpr std::int64_t most_tokens = 512;
  static constexpr std::int64_t block_panels = 8;
  static constexpr std::int64_t sums_size = panel_rows * panel_rows;

  static constexpr std::int64_t steps_of(std::int64_t k) { return units_of(k, depth); }
  static constexpr std::int64_t deep_block(std::int64_t k) { return equal_block(k, deepest, bytes ? quantised_block : depth); }

  // --- Memory --------------------------------------------------------------------------------------------------------

  /// The packed tokens that all threads read.
  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in) {
    if (rows <= 1) return 0;
    const std::int64_t panels = units_of(std::min(rows, most_tokens), panel_rows);
    return static_cast<std::size_t>(panels * (steps_of(in) * 2 * 1024 +
                                              (bytes ? PackedTokens::panel_scales(in) : 0) *
                                                  static_cast<std::int64_t>(sizeof(float))));
  }
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t) {
    // One token: its row, the scales of its blocks, and tiles of weights that must be unpacked or completed.
    const std::int64_t one = steps_of(in) * 64 + quantised_blocks(in) * 64 + 2 * one_tiles * 1024;
    if (rows <= 1) return static_cast<std::size_t>(one);
    const std::int64_t panels = units_of(std::min(rows, most_tokens), panel_rows);
    // As deep as any block of no more columns: blocks of more columns may be less deep.
    const std::int64_t deep = std::min(round_up(in, bytes ? quantised_block : depth), deepest);
    const std::int64_t held = in <= deepest ? 1 : block_panels * panels;
    const std::int64_t many =
        steps_of(deep) * 2 * 1024 + held * sums_size * 4 + quantised_blocks(deep) * panel_rows * 4;
    return static_cast<std::size_t>(round_up(std::max(one, many), 64));
  }

  // --- Many tokens ---------------------------------------------------------------------------------------------------

  template <class Exec>
  static void many(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                   MatrixView<float> y, Store store) {
    const std::int64_t threads = x.rows * w.rows * w.cols < serial_product ? 1 : exec.threads();
    for (std::int64_t t0 = 0; t0 < x.rows; t0 += most_tokens) {
      const std::int64_t tokens = std::min(most_tokens, x.rows - t0);
      const MatrixView<const float> here = x.row_range(t0, tokens);
      const std::int64_t columns = units_of(tokens, tile_rows), panels = units_of(tokens, panel_rows);
      auto* const packed = reinterpret_cast<Element*>(scratch.shared);
      auto* const scales = reinterpret_cast<float*>(scratch.shared + panels * steps_of(w.cols) * 2 * 1024);
      exec.parallel_for(std::min(threads, columns), [&, n = std::min(threads, columns)](std::int64_t task, int) noexcept {
        for (std::int64_t c = columns * task / n; c < columns * (task + 1) / n; ++c) pack(here, c, packed, scales);
      });
      const BlockGrid grid(threads, panels, units_of(w.rows, panel_rows));
      exec.parallel_for(grid.tasks(), [&](std::int64_t task, int thread) noexcept {
        const BlockRange rows = grid.row_range(task, panel_rows, tokens);
        const BlockRange cols = grid.col_range(task, panel_rows, w.rows);
        multiply(scratch.of<std::byte>(thread), packed, scales, w, bias, y.row_range(t0, tokens), store, rows, cols);
      });
    }
  }

 private:
  static constexpr std::int64_t one_tiles = 2;  ///< of weights that go side by side past one token, at most
  /// Bytes of the rows that go side by side: what is fetched ahead, so little that it stays in the second-level cache.
  static constexpr std::int64_t one_bytes = 128 << 10;

  static void pack(MatrixView<const float> x, std::int64_t column, Element* packed, float* scales) {
    const std::int64_t first = column * tile_rows, tokens = std::min(tile_rows, x.rows - first);
    Element* const to = packed + column / 2 * steps_of(x.cols) * 2 * tile + column % 2 * tile;
    if constexpr (bytes) {
      PackedTokens::pack_int8(x, first, tokens, to,
                              scales + column / 2 * PackedTokens::panel_scales(x.cols) + column % 2 * tile_rows);
    } else {
      PackedTokens::pack_bf16(x, first, tokens, to);
    }
  }

  /// Tokens [rows.first, rows.last) against rows [cols.first, cols.last) of the weights.
  static void multiply(std::byte* memory, const Element* packed, const float* token_scales, const WeightMatrix<W>& w,
                       const float* bias, MatrixView<float> y, Store store, BlockRange rows, BlockRange cols) {
    const TileScope tiles;
    const std::int64_t all_steps = steps_of(w.cols), deep = deep_block(w.cols), most_steps = steps_of(deep);
    const std::int64_t first_panel = rows.first / panel_rows, panels = units_of(rows.last - rows.first, panel_rows);
    const bool whole = deep >= w.cols;
    auto* const weights = reinterpret_cast<Element*>(memory);
    auto* const weight_scales = reinterpret_cast<float*>(memory + most_steps * 2 * 1024);
    float* const sums = weight_scales + quantised_blocks(deep) * (bytes ? panel_rows : 0);
    for (std::int64_t o0 = cols.first; o0 < cols.last; o0 += block_panels * panel_rows) {
      const std::int64_t o1 = std::min(cols.last, o0 + block_panels * panel_rows);
      for (std::int64_t k = 0; k < w.cols; k += deep) {
        const std::int64_t step = k / depth, steps = std::min(most_steps, all_steps - step);
        for (std::int64_t o = o0; o < o1; o += panel_rows) {
          const std::int64_t outs = std::min(panel_rows, o1 - o);
          load_panel(w, o, outs, step, steps, weights, weight_scales);
          for (std::int64_t p = 0; p < panels; ++p) {
            const std::int64_t panel = first_panel + p;
            const std::int64_t tokens = std::min(panel_rows, rows.last - panel * panel_rows);
            float* const at = sums + (whole ? 0 : ((o - o0) / panel_rows * panels + p) * sums_size);
            const Element* const right = packed + (panel * all_steps + step) * 2 * tile;
            if constexpr (bytes) {
              block_of_bytes(outs, tokens, steps, weights, right, weight_scales,
                             token_scales + panel * PackedTokens::panel_scales(w.cols) + k / quantised_block * panel_rows,
                             at, k == 0);
            } else {
              block_of_bf16(outs, tokens, steps, weights, right, at, k == 0);
            }
            if (k + deep >= w.cols) {
              write(at, outs, tokens, bias != nullptr ? bias + o : nullptr, y.row(panel * panel_rows) + o, y.stride, store);
            }
          }
        }
      }
    }
  }

  static void load_panel(const WeightMatrix<W>& w, std::int64_t o, std::int64_t outs, std::int64_t step,
                         std::int64_t steps, Element* to, float* scales) {
    for (std::int64_t half = 0; half * tile_rows < outs; ++half) {
      const std::int64_t row = o + half * tile_rows, rows = std::min(tile_rows, outs - half * tile_rows);
      Tiles::load(w, row, rows, step, steps, to + half * tile, 2 * tile);
      if constexpr (bytes) {
        const std::int64_t block = step / block_steps;
        for (std::int64_t b = 0; b < units_of(steps, block_steps); ++b) {
          _mm512_storeu_ps(scales + b * panel_rows + half * tile_rows, Tiles::scales(w, row, rows, block + b));
        }
      }
    }
  }

  static void block_of_bf16(std::int64_t outs, std::int64_t tokens, std::int64_t steps, const bf16* a, const bf16* b,
                            float* sums, bool first) {
    const Start start = first ? Start::zero : Start::output;
    const NextOutput none(nullptr, 0, 0, 1);
    with_tiles(outs, tokens, [&](auto rows, auto cols) {
      tile_product<rows(), cols()>(steps, a, b, sums, panel_rows, start, nullptr, none);
    });
  }

  static void block_of_bytes(std::int64_t outs, std::int64_t tokens, std::int64_t steps, const std::int8_t* a,
                             const std::int8_t* b, const float* weight_scales, const float* token_scales, float* sums,
                             bool first) {
    with_tiles(outs, tokens, [&](auto rows, auto cols) {
      byte_product<rows(), cols()>(steps, a, b, weight_scales, token_scales, sums, first);
    });
  }

  /// Calls `body` with the numbers of tiles that hold `outs` rows of weights and `tokens` tokens: 1 or 2 each.
  template <class Body>
  static HYMBA_ALWAYS_INLINE void with_tiles(std::int64_t outs, std::int64_t tokens, Body&& body) {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (outs > tile_rows) {
      tokens > tile_rows ? body(Two{}, Two{}) : body(Two{}, One{});
    } else {
      tokens > tile_rows ? body(One{}, Two{}) : body(One{}, One{});
    }
  }

  /// sums [32, 32] = (first ? 0 : sums) + the blocks' integer sums, scaled. While a block is multiplied, the integers of
  /// the one before it are converted and added: the tiles' unit and the vector units work at the same time.
  template <int Rows, int Cols>
  static void byte_product(std::int64_t steps, const std::int8_t* a, const std::int8_t* b, const float* weight_scales,
                           const float* token_scales, float* sums, bool first) {
    alignas(64) std::int32_t held[2][sums_size];
    constexpr std::int64_t row_bytes = panel_rows * 4;
    constexpr int all = Rows * 16, share = all / static_cast<int>(block_steps);  // rows added with each step
    const auto add = [&](std::int64_t block, bool fresh, int row) {
      const std::int32_t* const integers = held[block % 2] + row * panel_rows;
      const float* const ws = weight_scales + block * panel_rows + row;
      float* const out = sums + row * panel_rows;
      __m512 ts[Cols];
      unrolled<Cols>([&](auto c) { ts[c] = _mm512_loadu_ps(token_scales + block * panel_rows + c * 16); });
      const __mmask16 old = fresh ? 0 : 0xffff;
      unrolled<share>([&](auto r) {
        const __m512 w = _mm512_set1_ps(ws[r]);
        unrolled<Cols>([&](auto c) {
          const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(integers + r * panel_rows + c * 16));
          float* const to = out + r * panel_rows + c * 16;
          _mm512_store_ps(to, _mm512_fmadd_ps(value, _mm512_mul_ps(w, ts[c]), _mm512_maskz_load_ps(old, to)));
        });
      });
    };
    const std::int64_t blocks = units_of(steps, block_steps);
    written_before_tiles();
    for (std::int64_t block = 0; block < blocks; ++block) {
      _tile_zero(0);
      if constexpr (Cols == 2) _tile_zero(1);
      if constexpr (Rows == 2) _tile_zero(2);
      if constexpr (Rows == 2 && Cols == 2) _tile_zero(3);
      const int here = static_cast<int>(std::min(block_steps, steps - block * block_steps));
      int added = 0;
      for (int s = 0; s < here; ++s) {
        _tile_loadd(4, a, 64);
        _tile_stream_loadd(6, b, 64);
        if constexpr (Cols == 2) _tile_stream_loadd(7, b + tile, 64);
        if constexpr (Rows == 2) _tile_loadd(5, a + tile, 64);
        _tile_dpbssd(0, 4, 6);
        if constexpr (Cols == 2) _tile_dpbssd(1, 4, 7);
        if constexpr (Rows == 2) _tile_dpbssd(2, 5, 6);
        if constexpr (Rows == 2 && Cols == 2) _tile_dpbssd(3, 5, 7);
        a += 2 * tile;
        b += 2 * tile;
        if (block > 0) {
          add(block - 1, first && block == 1, added);
          added += share;
        }
      }
      for (; block > 0 && added < all; added += share) add(block - 1, first && block == 1, added);
      std::int32_t* const to = held[block % 2];
      _tile_stored(0, to, row_bytes);
      if constexpr (Cols == 2) _tile_stored(1, to + 16, row_bytes);
      if constexpr (Rows == 2) _tile_stored(2, to + 16 * panel_rows, row_bytes);
      if constexpr (Rows == 2 && Cols == 2) _tile_stored(3, to + 16 * panel_rows + 16, row_bytes);
      written_before_tiles();
    }
    for (int row = 0; row < all; row += share) add(blocks - 1, first && blocks == 1, row);
  }

  /// Writes sums [outs, tokens] (32 apart) as y [tokens, outs], on what y starts from.
  static void write(const float* sums, std::int64_t outs, std::int64_t tokens, const float* bias, float* y,
                    std::int64_t stride, Store store) {
    for (std::int64_t o = 0; o < outs; o += 16) {
      const __mmask16 mask = first_lanes(outs - o);
      const __m512 shift = bias != nullptr ? _mm512_maskz_loadu_ps(mask, bias + o) : _mm512_setzero_ps();
      for (std::int64_t t = 0; t < tokens; t += 16) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) v[r] = _mm512_load_si512(sums + (o + r) * panel_rows + t);
        transpose(v);
        const int count = static_cast<int>(std::min<std::int64_t>(16, tokens - t));
        for (int r = 0; r < count; ++r) {
          float* const to = y + (t + r) * stride + o;
          __m512 value = _mm512_add_ps(_mm512_castsi512_ps(v[r]), shift);
          if (store == Store::add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, to));
          _mm512_mask_storeu_ps(to, mask, value);
        }
      }
    }
  }

 public:
  // --- One token -----------------------------------------------------------------------------------------------------

  template <class Exec>
  static void one(Exec& exec, Scratch scratch, const float* x, WeightMatrix<W> w, const float* bias, float* y,
                  Store store) {
    const std::int64_t tiles = units_of(w.rows, tile_rows);
    const std::int64_t tasks = w.rows * w.cols < serial_product ? 1 : std::min<std::int64_t>(exec.threads(), tiles);
    exec.parallel_for(tasks, [&](std::int64_t task, int thread) noexcept {
      one_range(scratch.of<std::byte>(thread), x, w, bias, y, store, tiles * task / tasks,
                tiles * (task + 1) / tasks);
    });
  }

 private:
  /// Tiles whose right operands and sums are one column: four bytes.
  class OneColumn {
   public:
    OneColumn() noexcept {
      static constexpr Config config;
      _tile_loadconfig(&config);
    }
    OneColumn(const OneColumn&) = delete;
    OneColumn& operator=(const OneColumn&) = delete;
    ~OneColumn() { _tile_release(); }

   private:
    struct alignas(64) Config {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {4, 4, 64, 64, 64, 64, 4, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Config) == 64);
  };

  /// Tiles of 16 weight rows [first, last) of the matrix, one or two at a time.
  static void one_range(std::byte* memory, const float* x, const WeightMatrix<W>& w, const float* bias, float* y,
                        Store store, std::int64_t first, std::int64_t last) {
    const OneColumn tiles;
    const std::int64_t steps = steps_of(w.cols);
    auto* const row = reinterpret_cast<Element*>(memory);
    auto* const scales = reinterpret_cast<float*>(memory + steps * 64);
    auto* const buffer = reinterpret_cast<Element*>(memory + steps * 64 + quantised_blocks(w.cols) * 64);
    for (std::int64_t k = 0; k < w.cols; k += bytes ? quantised_block : depth) {
      if constexpr (bytes) {
        scales[k / quantised_block] = quantise_activations(x + k, std::min(quantised_block, w.cols - k), row + k);
      } else {
        _mm512_store_si512(row + k, k + depth <= w.cols ? load_row<false>(x + k, depth)
                                                         : load_row<true>(x + k, w.cols - k));
      }
    }
    written_before_tiles();
    const std::int64_t row_bytes = static_cast<std::int64_t>(Format::row_bytes(w.cols));
    const std::int64_t together = 2 * tile_rows * row_bytes <= one_bytes ? 2 : 1, height = together * tile_rows;
    const std::int64_t lines = units_of(height * row_bytes, 64 * steps), end = std::min(w.rows, last * tile_rows);
    for (std::int64_t o = first * tile_rows; o < end; o += height) {
      const std::int64_t valid = std::min(height, end - o);
      // The next rows, little by little.
      Stream ahead{w.row(o) + height * row_bytes, std::clamp<std::int64_t>(end - o - height, 0, height) * row_bytes};
      alignas(64) float sums[one_tiles * tile_rows];
      if (valid > tile_rows) {
        one_group<2>(w, o, valid, row, scales, buffer, ahead, lines, sums);
      } else {
        one_group<1>(w, o, valid, row, scales, buffer, ahead, lines, sums);
      }
      for (std::int64_t i = 0; i < valid; i += 16) {
        const __mmask16 mask = first_lanes(valid - i);
        const __m512 shift = bias != nullptr ? _mm512_maskz_loadu_ps(mask, bias + o + i) : _mm512_setzero_ps();
        __m512 value = _mm512_add_ps(_mm512_load_ps(sums + i), shift);
        if (store == Store::add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, y + o + i));
        _mm512_mask_storeu_ps(y + o + i, mask, value);
      }
    }
  }

  /// Memory that will be read, in order: fetched into the second-level cache a few lines at a time.
  struct Stream {
    const std::byte* at;
    std::int64_t left;
    HYMBA_ALWAYS_INLINE void fetch(std::int64_t lines) {
      for (std::int64_t i = 0; i < lines && left > 0; ++i, at += 64, left -= 64) __builtin_prefetch(at, 0, 2);
    }
  };

  /// sums [16 N] of 16 N rows of weights from row `o`, of which `valid` exist, times one token.
  template <int N>
  static void one_group(const WeightMatrix<W>& w, std::int64_t o, std::int64_t valid, const Element* row,
                        const float* scales, Element* buffer, Stream& ahead, std::int64_t lines, float* sums) {
    const std::int64_t steps = steps_of(w.cols);
    // Rows are tiles as they lie, unless they must be converted, or end within a tile where something else follows.
    constexpr bool stored = W == Weights::int8 || W == Weights::bf16;
    const std::int64_t whole = !stored || valid < 16 * N ? 0 : W == Weights::int8 ? steps : w.cols / depth;
    // Elsewhere they are copied to one half of the buffer, while the tiles read what was copied to the other before.
    const auto load = [&](std::int64_t s) {
      Element* const to = buffer + s % 2 * N * tile;
      for (std::int64_t n = 0; n < N; ++n) {
        Tiles::load(w, o + 16 * n, std::min<std::int64_t>(16, valid - 16 * n), s, 1, to + n * tile, tile);
      }
    };
    if (whole < steps) load(whole);
    const auto multiply_step = [&](std::int64_t s) {
      ahead.fetch(lines);
      const std::byte* a = w.row(o) + s * 64;
      auto stride = static_cast<std::int64_t>(Format::row_bytes(w.cols));
      std::int64_t next = 16 * stride;
      if (s >= whole) {
        if (s + 1 < steps) load(s + 1);
        written_before_tiles();
        a = reinterpret_cast<const std::byte*>(buffer + s % 2 * N * tile);
        stride = 64;
        next = 1024;
      }
      _tile_loadd(6, row + s * depth, 4);
      _tile_loadd(4, a, stride);
      multiply_tiles<0>();
      if constexpr (N > 1) {
        _tile_loadd(5, a + next, stride);
        multiply_tiles<1>();
      }
    };
    if constexpr (bytes) {
      __m512 total[N];
      unrolled<N>([&](auto n) { total[n] = _mm512_setzero_ps(); });
      for (std::int64_t first = 0; first < steps; first += block_steps) {
        zero_columns<N>();
        for (std::int64_t s = first; s < std::min(first + block_steps, steps); ++s) multiply_step(s);
        alignas(64) std::int32_t integers[16 * N];
        store_columns<N>(integers);
        written_before_tiles();
        const __m512 token = _mm512_set1_ps(scales[first / block_steps]);
        unrolled<N>([&](auto n) {
          const __m512 scale = _mm512_mul_ps(
              Tiles::scales(w, o + 16 * n, std::min<std::int64_t>(16, valid - 16 * n), first / block_steps), token);
          total[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(integers + 16 * n)), scale, total[n]);
        });
      }
      unrolled<N>([&](auto n) { _mm512_store_ps(sums + 16 * n, total[n]); });
    } else {
      zero_columns<N>();
      for (std::int64_t s = 0; s < steps; ++s) multiply_step(s);
      store_columns<N>(sums);
      written_before_tiles();
    }
  }

  /// Tile N += tile 4 or 5 times tile 6. Tiles are named by literals: the instructions have no other operands.
  template <int N>
  static HYMBA_ALWAYS_INLINE void multiply_tiles() {
    if constexpr (bytes) {
      if constexpr (N == 0) _tile_dpbssd(0, 4, 6);
      if constexpr (N == 1) _tile_dpbssd(1, 5, 6);
    } else {
      if constexpr (N == 0) _tile_dpbf16ps(0, 4, 6);
      if constexpr (N == 1) _tile_dpbf16ps(1, 5, 6);
    }
  }
  template <int N>
  static HYMBA_ALWAYS_INLINE void zero_columns() {
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
  }
  template <int N>
  static HYMBA_ALWAYS_INLINE void store_columns(void* to) {
    auto* const at = static_cast<std::byte*>(to);
    _tile_stored(0, at, 4);
    if constexpr (N > 1) _tile_stored(1, at + 64, 4);
  }
};

}  // namespace detail::amx

/// Operations that arch::amx does not specialise run on its base.
template <class Op, class Base>
struct kernel_for<Op, arch::amx<Base>> : kernel_for<Op, Base> {};

/// op::Gemm with f32 and bf16 weights: both operands rounded to bf16 (nearest even; subnormals become zero) and sums in
/// single precision, as the tiles form them. With int8 and int4 weights: activations rounded to signed bytes, with a
/// scale for each token and 256 columns; sums of a block exact. f16 weights run on the base. As on every architecture a
/// row's bits do not depend on the rows it is computed with. Where few tokens leave tiles nearly empty and dot products
/// of bytes are faster, those are used: their bits are the same.
template <class Base>
struct kernel_for<op::Gemm, arch::amx<Base>> {
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    using namespace detail::amx;
    return std::max({TileGemm<Weights::bf16>::scratch_bytes(rows, in, out),
                     TileGemm<Weights::int8>::scratch_bytes(rows, in, out), Dot<Weights::int8>::scratch_bytes(rows, in),
                     kernel_for<op::Gemm, Base>::scratch_bytes(rows, in, out)});
  }
  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in, std::int64_t) {
    using namespace detail::amx;
    return std::max({TileGemm<Weights::bf16>::shared_bytes(rows, in), TileGemm<Weights::int8>::shared_bytes(rows, in),
                     Dot<Weights::int8>::shared_bytes(rows, in)});
  }

  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    if (x.rows == 0) return;
    if constexpr (W == Weights::f16) {
      kernel_for<op::Gemm, Base>::run(exec, scratch, x, w, bias, y, store);
    } else if (dots_are_faster<W>(x.rows)) {
      if constexpr (weight_format<W>::quantised) Dot<W>::run(exec, scratch, x, w, bias, y, store);
    } else if (x.rows == 1) {
      detail::amx::TileGemm<W>::one(exec, scratch, x.row(0), w, bias, y.row(0), store);
    } else {
      detail::amx::TileGemm<W>::many(exec, scratch, x, w, bias, y, store);
    }
  }

 private:
  template <Weights W>
  using Dot = detail::dot::DotGemm<detail::dot::Best, W>;
  /// As measured (bench_gemm). int8 rows are tiles as they lie, and one token's product takes as long as reading them;
  /// with more tokens, or int4 rows, tiles wait for copies.
  template <Weights W>
  static constexpr bool dots_are_faster(std::int64_t tokens) {
    return (W == Weights::int8 && tokens >= 2 && tokens <= 4) || (W == Weights::int4 && tokens <= 8);
  }
};

#else

template <class Op, class Base>
struct kernel_for<Op, arch::amx<Base>> {
  static_assert(
      detail::always_false<Op, Base>,
      "hymba: arch::amx needs a translation unit compiled for AMX with bf16 and AVX-512 (-march=sapphirerapids, "
      "or -march=native on a processor that has them)");
};

#endif  // HYMBA_AMX

HYMBA_NAMESPACE_END
