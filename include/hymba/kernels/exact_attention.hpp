// SPDX-License-Identifier: Apache-2.0
//
// What attention in vectors does its own way where sums of products are exact integers: softmax, whose weights become
// integers, and one token, whose scores may be summed in any order.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/memory_to_read.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/transpose.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// `Unit` as AttentionInVectors has it (kernels/attention.hpp), and exact; `block` positions at a time, of many tokens
/// `panel` rows.
template <class Unit, std::int64_t block, std::int64_t panel>
struct ExactAttention {
  using A = typename Unit::A;
  using Number = typename Unit::Number;
  using Operand = typename Unit::Operand;
  using Sums = typename Unit::Sums;
  using V = simd::floats<A>;
  static constexpr std::int64_t L = simd::lanes<A>;
  static constexpr int step = Unit::step;

  /// The sum of weights counts in units of 2^-24: a block's weights, of at most 1, fit, and what rounding leaves out is
  /// nothing beside the sum, which a weight of 1 is in.
  static constexpr float exact_one = 0x1p24f, largest_weight = 32767.0f;
  static_assert(block <= 64);
  /// Weights of rows, a row in each lane or one in all, in any order.
  struct SumOfWeights {
    Sums total = Unit::no_sums();
    V heaviest = simd::zero<A>();
    V lost = simd::zero<A>();  ///< not a number once a weight was not finite: integers would not show it

    /// 2^score, which is not positive; times the value's scale.
    template <bool Scaled>
    HYMBA_ALWAYS_INLINE V weight(const V& score, const V& scale) {
      V w = simd::exp2_nonpositive<A>(score);
      total = Unit::add(total, Unit::integers(w * V(exact_one)));
      if constexpr (Scaled) w = w * scale;
      heaviest = simd::max<A>(heaviest, w);
      lost = simd::fma<A>(w, simd::zero<A>(), lost);
      return w;
    }
    /// What makes integers of weights; zero where they are nothing.
    HYMBA_ALWAYS_INLINE V integers() const {
      return xsimd::select(heaviest > V(0x1p-112f), V(largest_weight) / heaviest, simd::zero<A>());
    }
    HYMBA_ALWAYS_INLINE V scale() const { return simd::fma<A>(heaviest, V(1.0f / largest_weight), lost); }
  };
  static HYMBA_ALWAYS_INLINE V add_total(const V& sum, const V& shrink, const V& total) {
    return simd::fma<A>(sum, shrink, total * V(1.0f / exact_one));
  }

  // --- Many tokens ---------------------------------------------------------------------------------------------------

  /// As AttentionInVectors::softmax, but that weights become integers, each row's with a scale of its own.
  template <bool Scaled>
  static void softmax(std::int64_t count, std::int64_t vectors, [[maybe_unused]] const float* scales, float* weights,
                      float* largest, float* sum, float* factor, float* weight_scales) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      float* const at = weights + v * L;
      const V before = simd::load<A>(largest + v * L);
      V most = before;
      for (std::int64_t k = 0; k < count; ++k) most = simd::max<A>(most, simd::load<A>(at + k * panel));
      SumOfWeights all;
      for (std::int64_t k = 0; k < count; ++k) {
        const V scale(Scaled ? scales[k] : 1.0f);
        simd::store<A>(at + k * panel, all.template weight<Scaled>(simd::load<A>(at + k * panel) - most, scale));
      }
      const V by = all.integers();
      Number* const to = reinterpret_cast<Number*>(weights) + v * L * step;
      for (std::int64_t k = 0; k < count; k += step) {
        V w[step];
        unrolled<step>([&](auto i) { w[i] = simd::load<A>(at + (k + i) * panel) * by; });
        Unit::store(to + k * panel, Unit::together(w));
      }
      const V shrink = simd::exp2_nonpositive<A>(before - most);
      simd::store<A>(largest + v * L, most);
      simd::store<A>(sum + v * L, add_total(simd::load<A>(sum + v * L), shrink, Unit::floats(all.total)));
      simd::store<A>(factor + v * L, shrink);
      simd::store<A>(weight_scales + v * L, all.scale());
    }
  }

  // --- One token -----------------------------------------------------------------------------------------------------

  /// What will be read after a row, into the second-level cache: as far on as products of few tokens fetch it.
  template <class E>
  static HYMBA_ALWAYS_INLINE void fetch_ahead(const E* row, std::int64_t width) {
    const char* const from = reinterpret_cast<const char*>(row) + 2 * fetched_ahead;
    for (std::int64_t at = 0; at < width * static_cast<std::int64_t>(sizeof(E)); at += 64) simd::prefetch<2>(from + at);
  }

  /// to[r * stride + k] = score of row r and key k, for R rows; keys past the end repeat the last one.
  template <int R, bool Scaled, class E>
  static HYMBA_NEVER_INLINE void scores_of_one(const E* const* keys, float scale, [[maybe_unused]] const float* scales,
                                               std::int64_t count, std::int64_t width, const Number* queries,
                                               const float* query_scales, float* to, std::int64_t stride) {
    for (std::int64_t k = 0; k < count; k += L) {
      Sums quads[R][L / 4];
      for (std::int64_t q = 0; q < L / 4; ++q) {
        const E* row[4];
        for (std::int64_t i = 0; i < 4; ++i) row[i] = keys[std::min(k + 4 * q + i, count - 1)];
        for (const E* const key : row) fetch_ahead(key, width);
        Sums sum[R][4];
        unrolled<R>([&](auto r) { unrolled<4>([&](auto i) { sum[r][i] = Unit::no_sums(); }); });
        for (std::int64_t d = 0; d < width; d += L * step) {
          Operand key[4];
          unrolled<4>([&](auto i) { key[i] = Unit::row(row[i] + d, L * step); });
          unrolled<R>([&](auto r) {
            const Operand x = Unit::load(queries + r * width + d);
            unrolled<4>([&](auto i) { sum[r][i] = Unit::multiply_add(key[i], x, sum[r][i]); });
          });
        }
        unrolled<R>([&](auto r) { quads[r][q] = fold_to_quads(sum[r]); });
      }
      const V by = Scaled ? V(scale) * simd::load<A>(scales + k) : V(scale);
      unrolled<R>([&](auto r) {
        simd::store<A>(to + r * stride + k, Unit::floats(fold_quads(quads[r])) * by * V(query_scales[r]));
      });
    }
  }

  /// As softmax, for one row: scores [block] to weights, as many integers.
  template <bool Scaled>
  static void softmax_of_one(std::int64_t count, [[maybe_unused]] const float* scales, float* scores, float& largest,
                             float& sum, float& factor, float& weight_scale, Number* weights) {
    const std::int64_t end = round_up(count, L);
    std::fill(scores + count, scores + end, -std::numeric_limits<float>::infinity());
    const V before(largest);
    V most = before;
    for (std::int64_t k = 0; k < end; k += L) most = simd::max<A>(most, simd::load<A>(scores + k));
    most = V(largest = simd::max_lane<A>(most));
    SumOfWeights all;
    for (std::int64_t k = 0; k < end; k += L) {
      const V scale = Scaled ? simd::load<A>(scales + k) : V(1.0f);
      simd::store<A>(scores + k, all.template weight<Scaled>(simd::load<A>(scores + k) - most, scale));
    }
    all.heaviest = V(simd::max_lane<A>(all.heaviest));
    all.lost = V(simd::sum<A>(all.lost));
    const V by = all.integers();
    for (std::int64_t k = 0; k < end; k += L * step) Unit::store(weights + k, Unit::rounded(scores + k, end - k, by));
    const V shrink = simd::exp2_nonpositive<A>(before - most);
    simd::store_partial<A>(&sum, add_total(V(sum), shrink, V(Unit::total(all.total))), 1);
    simd::store_partial<A>(&factor, shrink, 1);
    simd::store_partial<A>(&weight_scale, all.scale(), 1);
  }
};

}  // namespace detail

HYMBA_NAMESPACE_END
