// SPDX-License-Identifier: Apache-2.0
//
// Backward of the causal depthwise convolution in front of the SSM heads.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/kernels/vector_math.hpp>
#include <hymba/train/kernels/row_range.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// Backward of op::Conv1d whose sequences start from a tail of zeros. With `p[t, e] = bias[e] + sum over k of weight[k,
/// e] * x[t - K + 1 + k, e]`, `y = silu(p)`, x outside its sequence zero, and the gradient dy [T, E] of y:
///
///     dp = dy * silu'(p);                 dx[t, e] = sum over k of weight[k, e] * dp[t + K - 1 - k, e]
///     dbias[e] += sum over t of dp[t, e];  dweight[k, e] += sum over t of dp[t, e] * x[t - K + 1 + k, e]
///
///     static constexpr std::size_t scratch_bytes(int taps);
///     static void run(E& exec, Scratch scratch, MatrixView<const Real> x, const Real* weight, const Real* bias, int
///     taps,
///                     std::span<const RowRange> sequences, MatrixView<const Real> dy, MatrixView<Real> dx,
///                     Real* dweight, Real* dbias);
///
/// x, dy, dx [T, E]; weight, dweight [K, E], tap-major; bias, dbias [E] or null, each for itself. Rows of dx that
/// belong to a sequence are assigned, others are left alone; dweight and dbias are added to. Nothing overlaps. K >= 1;
/// a sequence may have fewer rows than K - 1, or none. Same bits on any number of threads. Source: op::Conv1d's formula
/// differentiated.
struct Conv1dBackward {};
}  // namespace op

namespace reference {
/// op::Conv1dBackward in plain loops for one sequence.
template <class Real>
void conv1d_backward(MatrixView<const std::type_identity_t<Real>> x, const Real* weight, const Real* bias, int taps,
                     const RowRange& s, MatrixView<const std::type_identity_t<Real>> dy,
                     MatrixView<std::type_identity_t<Real>> dx, Real* dweight, Real* dbias) {
  const std::int64_t width = x.cols;
  for (std::int64_t i = 0; i < s.rows; ++i) {
    for (std::int64_t e = 0; e < width; ++e) dx(s.first_row + i, e) = Real(0);
  }
  for (std::int64_t i = 0; i < s.rows; ++i) {
    const std::int64_t t = s.first_row + i;
    const int first_tap = static_cast<int>(std::max<std::int64_t>(0, taps - 1 - i));  // taps before see zeros
    for (std::int64_t e = 0; e < width; ++e) {
      Real p = bias != nullptr ? bias[e] : Real(0);
      for (int k = first_tap; k < taps; ++k) p += weight[k * width + e] * x(t - taps + 1 + k, e);
      const Real gate = sigmoid(p), dp = dy(t, e) * (gate * (Real(1) + p * (Real(1) - gate)));
      for (int k = first_tap; k < taps; ++k) {
        dx(t - taps + 1 + k, e) += weight[k * width + e] * dp;
        dweight[k * width + e] += dp * x(t - taps + 1 + k, e);
      }
      if (dbias != nullptr) dbias[e] += dp;
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::Conv1dBackward, arch::scalar> {
  static constexpr std::size_t scratch_bytes(int) { return 0; }
  template <class Exec, class Real>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<Real>> x,
                  const std::type_identity_t<Real>* weight, const std::type_identity_t<Real>* bias, int taps,
                  std::span<const RowRange> sequences, MatrixView<const std::type_identity_t<Real>> dy,
                  MatrixView<Real> dx, std::type_identity_t<Real>* dweight, std::type_identity_t<Real>* dbias) {
    for (const RowRange& s : sequences) {
      reference::conv1d_backward<Real>(x, weight, bias, taps, s, dy, dx, dweight, dbias);
    }
  }
};

/// Lanes are channels. Every thread has its own channels and all sequences: no sum goes over threads.
template <class A>
struct kernel_for<op::Conv1dBackward, arch::simd<A>> {
  static constexpr std::size_t scratch_bytes(int taps) {
    const std::int64_t floats = (taps - 1) * block + (2 * (taps - 1) + tile) * L;
    return static_cast<std::size_t>((floats + 15) / 16 * 16) * sizeof(float);
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, const float* weight, const float* bias,
                  int taps, std::span<const RowRange> sequences, MatrixView<const float> dy, MatrixView<float> dx,
                  float* dweight, float* dbias) {
    detail::with_static<4>(taps, [&](auto k) {
      detail::for_parts(exec, x.cols, std::max<std::int64_t>(L, 16), (25 + 4 * taps) * x.rows,
                        [&](std::int64_t first, std::int64_t last, int thread) {
                          float* const kept = scratch.of<float>(thread);
                          for (std::int64_t e = first; e < last; e += block) {
                            const Columns<k()> columns{x, weight, bias, taps, dy, dx, dweight, dbias, kept, e};
                            for (const RowRange& s : sequences) columns.run(s, std::min(e + block, last));
                          }
                        });
    });
  }

 private:
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  static constexpr std::int64_t block = 16 * L;  ///< channels whose last rows' dp is kept between tiles
  // Rows are pages apart: all channels of a block for some rows, as in the forward pass's scan.
  static constexpr std::int64_t tile = 16;

  struct Full {
    HYMBA_ALWAYS_INLINE V load(const float* p) const { return simd::load<A>(p); }
    HYMBA_ALWAYS_INLINE void store(float* p, const V& v) const { simd::store<A>(p, v); }
  };
  struct Partial {
    std::int64_t count;
    HYMBA_ALWAYS_INLINE V load(const float* p) const { return simd::load_partial<A>(p, count); }
    HYMBA_ALWAYS_INLINE void store(float* p, const V& v) const { simd::store_partial<A>(p, v, count); }
  };

  /// Channels from `first`, at most `block`.
  template <int K>
  struct Columns {
    MatrixView<const float> x;
    const float *weight, *bias;
    int run_time_taps;
    MatrixView<const float> dy;
    MatrixView<float> dx;
    float *dweight, *dbias;
    float* kept;  ///< [block / L, K - 1, L] dp of the last rows of the tile before; behind it, dp of a tile
    std::int64_t first;

    HYMBA_ALWAYS_INLINE int taps() const { return K == dynamic ? run_time_taps : K; }

    void run(const RowRange& s, std::int64_t last) const {
      if (s.rows <= 0) return;
      for (std::int64_t i = 0; i < s.rows; i += tile) {
        for (std::int64_t e = first; e < last; e += L) {
          if (e + L <= last) {
            rows(s, i, e, Full{});
          } else {
            rows(s, i, e, Partial{last - e});
          }
        }
      }
    }

    /// f(0), ..., f(taps - 1).
    template <class F>
    HYMBA_ALWAYS_INLINE void each_tap(F&& f) const {
      if constexpr (K != dynamic) {
        detail::unrolled<K>(f);
      } else {
        for (int k = 0; k < run_time_taps; ++k) f(k);
      }
    }

    /// One vector of channels over a tile's rows from row i of the sequence.
    template <class Access>
    void rows(const RowRange& s, std::int64_t i, std::int64_t e, Access access) const {
      const std::int64_t width = x.cols, past = taps() - 1, end = std::min(i + tile, s.rows);
      const bool at_end = end == s.rows;
      float* const carried = kept + (e - first) * past;  // past rows of L floats
      float* const window = kept + past * block;
      // window + j * L is dp of row i - past + j; rows outside the sequence have none.
      for (std::int64_t j = 0; j < past; ++j) {
        simd::store<A>(window + j * L, i > 0 ? simd::load<A>(carried + j * L) : simd::zero<A>());
      }
      const float* const from = x.row(s.first_row) + e;
      V d_bias = simd::zero<A>();
      for (std::int64_t t = i; t < end; ++t) {
        V p = bias != nullptr ? access.load(bias + e) : simd::zero<A>();
        each_tap([&](auto k) {
          const std::int64_t row = t - past + k;
          if (row >= 0) p = simd::fma<A>(access.load(weight + k * width + e), access.load(from + row * x.stride), p);
        });
        const V gate = simd::sigmoid<A>(p), one(1.0f);
        const V dp = access.load(dy.row(s.first_row + t) + e) * (gate * simd::fma<A>(p, one - gate, one));
        simd::store<A>(window + (t - i + past) * L, dp);
        d_bias = d_bias + dp;
      }
      if (dbias != nullptr) access.store(dbias + e, access.load(dbias + e) + d_bias);
      each_tap([&](auto k) {
        V d_weight = simd::zero<A>();
        for (std::int64_t t = std::max(i, past - k); t < end; ++t) {
          d_weight = simd::fma<A>(simd::load<A>(window + (t - i + past) * L),
                                  access.load(from + (t - past + k) * x.stride), d_weight);
        }
        float* const to = dweight + k * width + e;
        access.store(to, access.load(to) + d_weight);
      });
      // dx of row t needs dp of rows t to t + past: the tile's last rows wait for the next tile.
      if (at_end) {
        for (std::int64_t j = 0; j < past; ++j) simd::store<A>(window + (end - i + past + j) * L, simd::zero<A>());
      }
      for (std::int64_t t = std::max<std::int64_t>(0, i - past), stop = at_end ? end : end - past; t < stop; ++t) {
        const float* const behind = window + (t - i + past) * L;
        V sum = simd::zero<A>();
        each_tap([&](auto k) {
          sum = simd::fma<A>(access.load(weight + k * width + e), simd::load<A>(behind + (past - k) * L), sum);
        });
        access.store(dx.row(s.first_row + t) + e, sum);
      }
      if (!at_end) {
        for (std::int64_t j = 0; j < past; ++j)
          simd::store<A>(carried + j * L, simd::load<A>(window + (end - i + j) * L));
      }
    }
  };
};

HYMBA_NAMESPACE_END
