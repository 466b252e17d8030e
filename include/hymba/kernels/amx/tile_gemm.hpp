// SPDX-License-Identifier: Apache-2.0
//
// Products of activations and weights on AMX tiles: what op::Gemm and op::GatedGemm have in common.
#pragma once

#include <hymba/kernels/amx/tiles.hpp>

#if defined(HYMBA_AMX)

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/amx/activations.hpp>
#include <hymba/kernels/amx/fetch_ahead.hpp>
#include <hymba/kernels/amx/weight_panels.hpp>
#include <hymba/kernels/amx/weight_tiles.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace detail::amx {

/// The product of activations and weights on tiles. Which rows of weights go side by side is the panels' affair, what
/// becomes of the sums the sink's (amx/weight_panels.hpp, amx/sinks.hpp).
///
/// The weights are the left operand: their rows are rows of tiles, in whatever row-major order they are stored. The
/// tokens are the right operand, packed once for all threads; for a single token, of bf16, its row is the operand as it lies. A
/// thread keeps a group of tokens in its second-level cache and takes weights past them, which are fetched there just
/// before; the groups run through the weights at the same time, so that memory is read once for all of them. Where all
/// tokens are one panel, weights are used once and go from end to end of their rows.
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
  /// Columns multiplied at once: a panel of weights as deep as that stays in the first-level cache.
  static constexpr std::int64_t deepest = bytes ? 1024 : 448;
  static constexpr std::int64_t most_tokens = 512;
  /// Tokens that a thread takes past its weights. In the second-level cache stay either all their columns, with the
  /// sums of one panel of weights, or, where that is too much, `deepest` columns with the sums of `block_panels`.
  static constexpr std::int64_t group_tokens = 256;
  static constexpr std::int64_t group_bytes = 1280 << 10;
  static constexpr std::int64_t block_panels = 24;
  static constexpr std::int64_t sums_size = panel_rows * panel_rows;
  static constexpr std::int64_t step_bytes = 2 * 1024;  ///< of a panel of weights or of tokens

  static constexpr std::int64_t steps_of(std::int64_t k) { return units_of(k, depth); }
  /// True where so many panels of tokens stay in the second-level cache with all their columns.
  static constexpr bool stay(std::int64_t panels, std::int64_t in) {
    return steps_of(in) * 64 * panel_rows * panels <= group_bytes;
  }
  /// Columns multiplied at once, with so many panels of tokens.
  static constexpr std::int64_t deep_block(std::int64_t panels, std::int64_t k) {
    const std::int64_t unit = bytes ? quantised_block : depth;
    return panels == 1 ? round_up(k, unit) : equal_block(k, deepest, unit);
  }

  // --- Memory --------------------------------------------------------------------------------------------------------

  /// The packed tokens that all threads read.
  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in) {
    if (rows <= 1) return 0;
    const std::int64_t panels = units_of(std::min(rows, most_tokens), panel_rows);
    const std::int64_t scales = bytes ? PackedTokens::panel_scales(in) : 0;
    return static_cast<std::size_t>(panels * (steps_of(in) * step_bytes + scales * 4));
  }
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in) {
    // One token: its row, and tiles of weights that must be converted or completed.
    const std::int64_t one = steps_of(in) * 64 + 2 * one_tiles * 1024;
    if (rows <= 1) return static_cast<std::size_t>(one);
    // One panel of tokens, which may be what is left of many: two steps of weights, and the scales of all columns.
    const std::int64_t panel = 2 * step_bytes + (sums_size + quantised_blocks(in) * panel_rows) * 4;
    const std::int64_t panels = units_of(std::min(rows, most_tokens), panel_rows);
    // As deep as any block of no more columns: blocks of more columns may be less deep.
    const std::int64_t deep = std::min(round_up(in, bytes ? quantised_block : depth), deepest);
    const std::int64_t group = std::min(panels, group_tokens / panel_rows);
    const std::int64_t held = group * (stay(group, in) ? 1 : block_panels);
    const std::int64_t many =
        steps_of(deep) * step_bytes + (held * sums_size + quantised_blocks(deep) * panel_rows) * 4;
    return static_cast<std::size_t>(round_up(std::max({one, panel, many}), 64));
  }

  // --- Many tokens ---------------------------------------------------------------------------------------------------

  template <class Exec, class Panels, class Sink>
  static void many(Exec& exec, Scratch scratch, MatrixView<const float> x, const Panels& w, const Sink& sink) {
    const std::int64_t threads = x.rows * w.rows() * x.cols < serial_product ? 1 : exec.threads();
    for (std::int64_t t0 = 0; t0 < x.rows; t0 += most_tokens) {
      const std::int64_t tokens = std::min(most_tokens, x.rows - t0);
      const MatrixView<const float> here = x.row_range(t0, tokens);
      const std::int64_t columns = units_of(tokens, tile_rows), panels = units_of(tokens, panel_rows);
      auto* const packed = reinterpret_cast<Element*>(scratch.shared);
      auto* const scales = reinterpret_cast<float*>(scratch.shared + panels * steps_of(x.cols) * step_bytes);
      for_steps(exec, threads, columns, 1, [&](std::int64_t first, std::int64_t last, int) {
        for (std::int64_t c = first; c < last; ++c) pack(here, w.rotated(), c, packed, scales);
      });
      // The fewest cuts of the weights with which every thread has as many tasks.
      const std::int64_t groups = units_of(panels, group_tokens / panel_rows);
      const std::int64_t cuts = std::min(threads / std::gcd(threads, groups), w.panels());
      // A step is a panel of weights past a group of tokens.
      StepShares shares(groups * cuts, groups * w.panels(), panels_at_once(panels, groups, x.cols, w.panels() / cuts));
      exec.parallel_for(shares.tasks(), [&](std::int64_t task, int thread) noexcept {
        const TileScope tiles;
        shares.run(task, [&](BlockRange share, BlockRange steps) {
          while (steps.first < steps.last) {
            const std::int64_t group = steps.first / w.panels(), from = group * w.panels();
            const std::int64_t last = std::min(steps.last - from, w.panels());
            const Range rows{panels * group / groups * panel_rows,
                             std::min(panels * (group + 1) / groups * panel_rows, tokens)};
            multiply(scratch.of<std::byte>(thread), packed, scales, x.cols, w, sink, t0, rows,
                     {steps.first - from, last}, std::min(share.last - from, w.panels()));
            steps.first = from + last;
          }
        });
      });
    }
  }

 private:
  static constexpr std::int64_t one_tiles = 2;  ///< of weights that go side by side past one token, at most
  /// Bytes of the rows that go side by side: what is fetched ahead, so little that it stays in the second-level cache.
  static constexpr std::int64_t one_bytes = 128 << 10;
  /// Rows are tiles as they lie, unless they must be converted, or end within a tile.
  static constexpr bool stored = W == Weights::int8 || W == Weights::bf16;

  struct Range {
    std::int64_t first, last;
  };

  /// Panels of weights that a thread takes past its group of tokens at once: as many as share what it keeps of them, else
  /// some tens of kilobytes.
  static std::int64_t panels_at_once(std::int64_t panels, std::int64_t groups, std::int64_t in, std::int64_t of) {
    const std::int64_t group = units_of(panels, groups);
    if (group > 1 && !stay(group, in)) return equal_block(of, block_panels, 1);
    return bytes_at_once / (panel_rows * static_cast<std::int64_t>(Format::row_bytes(in)));
  }

  static void pack(MatrixView<const float> x, [[maybe_unused]] bool rotated, std::int64_t column, Element* packed,
                   float* scales) {
    const std::int64_t first = column * tile_rows, tokens = std::min(tile_rows, x.rows - first);
    Element* const to = packed + column / 2 * steps_of(x.cols) * 2 * tile + column % 2 * tile;
    if constexpr (bytes) {
      PackedTokens::pack_int8(x, rotated, first, tokens, to,
                              scales + column / 2 * PackedTokens::panel_scales(x.cols) + column % 2 * tile_rows);
    } else {
      PackedTokens::pack_bf16(x, first, tokens, to);
    }
  }

  /// A panel of weights as tiles that lie in memory: rows of `stride` bytes of either half, a step `next` bytes after
  /// the one before.
  struct Lying {
    const std::byte *first, *second;
    std::int64_t stride, next;
    HYMBA_ALWAYS_INLINE const std::byte* upper(std::int64_t s) const { return first + s * next; }
    HYMBA_ALWAYS_INLINE const std::byte* lower(std::int64_t s) const { return second + s * next; }
    HYMBA_ALWAYS_INLINE void begin() const {}
    HYMBA_ALWAYS_INLINE void prepare(std::int64_t) const {}
  };
  /// A panel of weights that must be copied to become tiles: each step while the one before it is multiplied.
  struct Copied {
    PanelHalves<W> halves;
    std::int64_t steps;
    Element* memory;  ///< of two steps
    static constexpr std::int64_t stride = 64;
    HYMBA_ALWAYS_INLINE Element* at(std::int64_t s) const { return memory + s % 2 * 2 * tile; }
    HYMBA_ALWAYS_INLINE const Element* upper(std::int64_t s) const { return at(s); }
    HYMBA_ALWAYS_INLINE const Element* lower(std::int64_t s) const { return at(s) + tile; }
    void begin() const { load_panel(halves, 0, 1, at(0)); }
    /// Before step s.
    HYMBA_ALWAYS_INLINE void prepare(std::int64_t s) const {
      if (s + 1 < steps) load_panel(halves, s + 1, 1, at(s + 1));
      written_before_tiles();
    }
  };

  /// Cache lines [first, last) of the rows of a pair of halves, to be fetched within `steps` steps.
  static void fetch_in(FetchAhead& fetches, const PanelHalves<W>& halves, std::int64_t first, std::int64_t last,
                       std::int64_t steps) {
    for (int h = 0; h < 2; ++h) {
      const PanelHalf<W>& half = halves.at[h];
      const auto stride = static_cast<std::int64_t>(Format::row_bytes(half.w.cols));
      fetches.weights[h] = {half.data(first * 64), stride, last - first, half.rows};
    }
    fetches.lines = units_of((last - first) * std::max(halves.at[0].rows, halves.at[1].rows), steps);
  }

  /// Tokens [rows.first, rows.last), counted from `t0`, against panels [cols.first, cols.last) of weights; those before
  /// `end` come next. Within a TileScope.
  template <class Panels, class Sink>
  static void multiply(std::byte* memory, const Element* packed, const float* token_scales, std::int64_t in,
                       const Panels& w, const Sink& sink, std::int64_t t0, Range rows, Range cols, std::int64_t end) {
    const std::int64_t first_panel = rows.first / panel_rows, panels = units_of(rows.last - rows.first, panel_rows);
    const std::int64_t all_steps = steps_of(in), deep = deep_block(panels, in), most_steps = steps_of(deep);
    const bool once = panels == 1;
    const std::int64_t block = once || stay(panels, in) ? 1 : equal_block(cols.last - cols.first, block_panels, 1);
    const auto row_bytes = static_cast<std::int64_t>(Format::row_bytes(in));
    const bool whole_steps = W == Weights::int8 || in % depth == 0;
    auto* const weights = reinterpret_cast<Element*>(memory);
    auto* const weight_scales = reinterpret_cast<float*>(memory + (once ? 2 : most_steps) * step_bytes);
    float* const sums = weight_scales + quantised_blocks(deep) * (bytes ? panel_rows : 0);
    FetchAhead fetches;
    for (std::int64_t o0 = cols.first; o0 < cols.last; o0 += block) {
      const std::int64_t o1 = std::min(cols.last, o0 + block);
      for (std::int64_t k = 0; k < in; k += deep) {
        const std::int64_t step = k / depth, steps = std::min(most_steps, all_steps - step);
        const bool last = k + deep >= in;
        for (std::int64_t o = o0; o < o1; ++o) {
          const PanelHalves<W> halves = w.panel(o);
          // While this is multiplied, what follows is fetched: all of the next panel while this one's columns pass, or,
          // where the columns of many panels do, the next panel's, and after the last those that come next.
          if (block == 1) {
            if (k == 0 && o + 1 < end) {
              fetch_in(fetches, w.panel(o + 1), 0, row_bytes / 64, panels * all_steps);
            }
          } else if (const std::int64_t after = o + 1 < o1 ? o + 1 : !last ? o0 : o1; after < end) {
            const std::int64_t after_k = o + 1 < o1 ? k : !last ? k + deep : 0;
            fetch_in(fetches, w.panel(after), after_k * row_bytes / in / 64,
                     std::min(after_k + deep, in) * row_bytes / in / 64, panels * steps);
          }
          const bool lie = stored && whole_steps && halves.whole();
          Lying left{halves.at[0].data(step * 64), halves.at[1].data(step * 64), row_bytes, 64};
          if (!lie && !once) {
            load_panel(halves, step, steps, weights);
            const auto* const upper = reinterpret_cast<const std::byte*>(weights);
            left = {upper, upper + 1024, 64, step_bytes};
          }
          if constexpr (bytes) load_scales(halves, step, steps, weight_scales);
          for (std::int64_t p = 0; p < panels; ++p) {
            const std::int64_t panel = first_panel + p;
            const std::int64_t tokens = std::min(panel_rows, rows.last - panel * panel_rows);
            float* const at = sums + ((o - o0) * panels + p) * sums_size;
            const Element* const right = packed + (panel * all_steps + step) * 2 * tile;
            if (last) fetches.outputs = sink.rows_to_write(o, t0 + panel * panel_rows, tokens);
            const auto product = [&](const auto& weights_left) {
              with_tiles(halves.at[1].rows > 0, tokens > tile_rows, [&](auto h, auto c) {
                if constexpr (bytes) {
                  byte_product<h(), c()>(
                      steps, weights_left, right, weight_scales,
                      token_scales + panel * PackedTokens::panel_scales(in) + k / quantised_block * panel_rows, at,
                      k == 0, fetches);
                } else {
                  bf16_product<h(), c()>(steps, weights_left, right, at, k == 0, fetches);
                }
              });
            };
            lie || !once ? product(left) : product(Copied{halves, steps, weights});
            if (last) sink.write(at, o, halves.rows(), t0 + panel * panel_rows, tokens);
          }
        }
      }
    }
  }

  static void load_panel(const PanelHalves<W>& halves, std::int64_t step, std::int64_t steps, Element* to) {
    for (int h = 0; h < 2 && halves.at[h].rows > 0; ++h) {
      Tiles::load(halves.at[h].w, halves.at[h].row, halves.at[h].rows, step, steps, to + h * tile, 2 * tile);
    }
  }
  static void load_scales(const PanelHalves<W>& halves, std::int64_t step, std::int64_t steps,
                          float* to) requires bytes {
    for (int h = 0; h < 2 && halves.at[h].rows > 0; ++h) {
      const PanelHalf<W>& half = halves.at[h];
      for (std::int64_t b = 0; b < units_of(steps, block_steps); ++b) {
        _mm512_storeu_ps(to + b * panel_rows + h * tile_rows,
                         Tiles::scales(half.w, half.row, half.rows, step / block_steps + b));
      }
    }
  }

  /// sums [32, 32] = (first ? 0 : sums) + the product.
  template <int Rows, int Cols, class Left>
  static void bf16_product(std::int64_t steps, const Left& left, const bf16* b, float* sums, bool first,
                           FetchAhead& fetches) {
    constexpr std::int64_t row_bytes = panel_rows * 4;
    written_before_tiles();
    if (first) {
      zero_sums<Rows, Cols>();
    } else {
      load_sums<Rows, Cols>(sums, row_bytes);
    }
    const Left a = left;
    FetchAhead ahead = fetches;  // where the compiler need not fear that tiles write them
    a.begin();
    for (std::int64_t s = 0; s < steps; ++s) {
      a.prepare(s);
      multiply_step<Rows, Cols>(a.upper(s), a.lower(s), a.stride, b);
      ahead.step();
      b += 2 * tile;
    }
    store_sums<Rows, Cols>(sums, row_bytes);
    written_before_tiles();
    fetches = ahead;
  }

  /// Calls `body` with the numbers of tiles of weights and of tokens: 1 or 2 each.
  template <class Body>
  static HYMBA_ALWAYS_INLINE void with_tiles(bool two_halves, bool two_columns, Body&& body) {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (two_halves) {
      two_columns ? body(Two{}, Two{}) : body(Two{}, One{});
    } else {
      two_columns ? body(One{}, Two{}) : body(One{}, One{});
    }
  }

  /// sums [32, 32] = (first ? 0 : sums) + the blocks' integer sums, scaled. While a block is multiplied, the integers
  /// of the one before it are converted and added: the tiles' unit and the vector units work at the same time.
  template <int Rows, int Cols, class Left>
  static void byte_product(std::int64_t steps, const Left& left, const std::int8_t* b, const float* weight_scales,
                           const float* token_scales, float* sums, bool first, FetchAhead& fetches) {
    const Left a = left;
    FetchAhead ahead = fetches;  // where the compiler need not fear that tiles write them
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
    a.begin();
    written_before_tiles();
    for (std::int64_t block = 0; block < blocks; ++block) {
      zero_sums<Rows, Cols>();
      const int here = static_cast<int>(std::min(block_steps, steps - block * block_steps));
      int added = 0;
      for (int i = 0; i < here; ++i) {
        const std::int64_t s = block * block_steps + i;
        a.prepare(s);
        multiply_step<Rows, Cols>(a.upper(s), a.lower(s), a.stride, b);
        ahead.step();
        b += 2 * tile;
        if (block > 0) {
          add(block - 1, first && block == 1, added);
          added += share;
        }
      }
      for (; block > 0 && added < all; added += share) add(block - 1, first && block == 1, added);
      store_sums<Rows, Cols>(held[block % 2], row_bytes);
      written_before_tiles();
    }
    for (int row = 0; row < all; row += share) add(blocks - 1, first && blocks == 1, row);
    fetches = ahead;
  }

 public:
  // --- One token -----------------------------------------------------------------------------------------------------

  template <class Exec, class Panels, class Sink>
  static void one(Exec& exec, Scratch scratch, MatrixView<const float> x, const Panels& w, const Sink& sink)
    requires(!bytes)
  {
    // A step is a pair of halves.
    const std::int64_t pairs = units_of(w.units(), w.pair_units);
    const std::int64_t tasks = w.rows() * x.cols < serial_product ? 1 : std::min<std::int64_t>(exec.threads(), pairs);
    StepShares shares(tasks, pairs,
                      bytes_at_once / (2 * tile_rows * static_cast<std::int64_t>(Format::row_bytes(x.cols))));
    exec.parallel_for(shares.tasks(), [&](std::int64_t task, int thread) noexcept {
      const OneToken token(scratch.of<std::byte>(thread), x.row(0), x.cols);
      std::int64_t expected = -1;
      shares.run(task, [&](BlockRange share, BlockRange steps) {
        token.multiply(w, sink, steps.first * w.pair_units, std::min(steps.last * w.pair_units, w.units()),
                       std::min(share.last * w.pair_units, w.units()), steps.first != expected);
        expected = steps.last;
      });
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

  /// Two halves of weights, fetched beside each other: two streams keep memory busier than one.
  struct HalvesToRead {
    BytesToRead first, second;
    HalvesToRead(const PanelHalf<W>& a, const PanelHalf<W>& b) : first(bytes_of(a)), second(bytes_of(b)) {}
    static BytesToRead bytes_of(const PanelHalf<W>& half) {
      return {half.data(), half.rows * static_cast<std::int64_t>(Format::row_bytes(half.w.cols))};
    }
  };

  /// A token as it goes past weights, two halves at a time.
  class OneToken {
   public:
    OneToken(std::byte* memory, const float* x, std::int64_t in)
        : row_(reinterpret_cast<Element*>(memory)),
          buffer_(reinterpret_cast<Element*>(memory + steps_of(in) * 64)),
          in_(in) {
      for (std::int64_t k = 0; k < in; k += depth) {
        _mm512_store_si512(row_ + k, k + depth <= in ? load_row<false>(x + k, depth) : load_row<true>(x + k, in - k));
      }
      written_before_tiles();
    }

    /// Units [first, last) of the weights; those before `end` come next. `begins` if what was fetched before is not them.
    template <class Panels, class Sink>
    void multiply(const Panels& w, const Sink& sink, std::int64_t first, std::int64_t last, std::int64_t end,
                  bool begins) const {
      const auto row_bytes = static_cast<std::int64_t>(Format::row_bytes(in_));
      const bool together = one_tiles * tile_rows * row_bytes <= one_bytes;
      PanelHalves<W> here = w.pair(first, end);
      if (begins) {
        HalvesToRead beginning(here.at[0], here.at[1]);
        beginning.first.fetch(64);
        beginning.second.fetch(64);
      }
      for (std::int64_t unit = first; unit < last;) {
        const std::int64_t next_unit = unit + w.pair_units;
        const PanelHalves<W> next = next_unit < end ? w.pair(next_unit, end) : PanelHalves<W>{};
        alignas(64) float sums[one_tiles * tile_rows];
        // The rows that come next are fetched little by little.
        const HalvesToRead later(next.at[0], next.at[1]);
        if (here.at[1].rows > 0 && together) {
          one_group<2>(here.at, row_, buffer_, in_, later, sums);
        } else if (here.at[1].rows > 0) {
          one_group<1>(here.at, row_, buffer_, in_, HalvesToRead(here.at[1], {}), sums);
          one_group<1>(here.at + 1, row_, buffer_, in_, HalvesToRead(next.at[0], {}), sums + tile_rows);
        } else {
          one_group<1>(here.at, row_, buffer_, in_, later, sums);
        }
        sink.write_one(sums, unit, here.rows());
        unit = next_unit;
        here = next;
      }
    }

   private:
    const OneColumn tiles_{};
    Element *row_, *buffer_;
    std::int64_t in_;
  };

  /// sums [16 N] of N halves of weights times one token.
  template <int N>
  static void one_group(const PanelHalf<W>* halves, const Element* row, Element* buffer, std::int64_t in,
                        HalvesToRead later, float* sums) {
    const std::int64_t steps = steps_of(in);
    const auto row_bytes = static_cast<std::int64_t>(Format::row_bytes(in));
    bool full = true;
    const std::byte* data[N];
    for (int n = 0; n < N; ++n) {
      full = full && halves[n].rows == tile_rows;
      data[n] = halves[n].data();
    }
    const std::int64_t whole = stored && full ? in / depth : 0;
    // Elsewhere they are copied to one half of the buffer, while the tiles read what was copied to the other before.
    const auto load = [&](std::int64_t s) {
      Element* const to = buffer + s % 2 * N * tile;
      for (int n = 0; n < N; ++n) Tiles::load(halves[n].w, halves[n].row, halves[n].rows, s, 1, to + n * tile, tile);
    };
    if (whole < steps) load(whole);
    const std::int64_t lines = units_of(tile_rows * row_bytes, 64 * steps);
    const auto multiply_step = [&](std::int64_t s) {
      later.first.fetch(lines);
      if constexpr (N > 1) later.second.fetch(lines);
      const std::byte* a[N];
      std::int64_t stride = row_bytes;
      if (s < whole) {
        unrolled<N>([&](auto n) { a[n] = data[n] + s * 64; });
      } else {
        if (s + 1 < steps) load(s + 1);
        written_before_tiles();
        unrolled<N>([&](auto n) { a[n] = reinterpret_cast<const std::byte*>(buffer + (s % 2 * N + n) * tile); });
        stride = 64;
      }
      _tile_loadd(6, row + s * depth, 4);
      _tile_loadd(4, a[0], stride);
      multiply_tiles<0>();
      if constexpr (N > 1) {
        _tile_loadd(5, a[1], stride);
        multiply_tiles<1>();
      }
    };
    zero_columns<N>();
    for (std::int64_t s = 0; s < steps; ++s) multiply_step(s);
    store_columns<N>(sums);
    written_before_tiles();
  }

  /// Tile N += tile 4 or 5 times tile 6. Tiles are named by literals: the instructions have no other operands.
  template <int N>
  static HYMBA_ALWAYS_INLINE void multiply_tiles() {
    if constexpr (N == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (N == 1) _tile_dpbf16ps(1, 5, 6);
  }
  template <int N>
  static HYMBA_ALWAYS_INLINE void zero_columns() {
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
  }
  template <int N>
  static HYMBA_ALWAYS_INLINE void store_columns(float* to) {
    _tile_stored(0, to, 4);
    if constexpr (N > 1) _tile_stored(1, to + 16, 4);
  }
};

}  // namespace detail::amx

HYMBA_NAMESPACE_END

#endif  // HYMBA_AMX
