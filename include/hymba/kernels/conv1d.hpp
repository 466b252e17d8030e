// SPDX-License-Identifier: Apache-2.0
//
// The causal depthwise convolution in front of the SSM heads.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// Rows [first_row, first_row + rows) of the matrices are one sequence. `tail` [K - 1, E], oldest first: in, the inputs
/// before first_row (zeros at the start of a text); out, the last K - 1 inputs. Null when K is 1.
template <class T>
struct BasicConvSequence {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  T* tail = nullptr;
};
using ConvSequence = BasicConvSequence<float>;

namespace op {
/// Causal depthwise convolution, bias, silu: `y[t, e] = silu(bias[e] + sum over k of weight[k, e] * x[t - K + 1 + k,
/// e])`, with the sequence's tail in front of its first row. x, y [T, E]; weight [K, E], tap-major, tap K - 1 is the
/// current token's; bias [E] or null.
///
///     static void run(E& exec, Scratch scratch, MatrixView<const float> x, const float* weight, const float* bias,
///                     int taps, std::span<const ConvSequence> sequences, MatrixView<float> y);
///
/// x and y do not overlap. K >= 1; a sequence may have fewer rows than K - 1, or none. A sequence run in pieces gives
/// the bits of the whole, on any number of threads. Source: Hymba reference implementation; Gu and Dao, "Mamba" (arXiv
/// 2312.00752), figure 3.
struct Conv1d {};
}  // namespace op

namespace reference {
/// op::Conv1d in plain loops; `tail` is read, not updated.
template <class Real, class Out, class In = float>
void conv1d(MatrixView<const std::type_identity_t<In>> x, const std::type_identity_t<In>* weight,
            const std::type_identity_t<In>* bias, int taps,
            const BasicConvSequence<std::type_identity_t<In>>& sequence, MatrixView<Out> y) {
  for (std::int64_t i = 0; i < sequence.rows; ++i) {
    for (std::int64_t e = 0; e < x.cols; ++e) {
      Real sum = bias != nullptr ? static_cast<Real>(bias[e]) : Real(0);
      for (int k = 0; k < taps; ++k) {
        const std::int64_t at = i - taps + 1 + k;  // row within the sequence; negative: in the tail
        const In input = at >= 0 ? x(sequence.first_row + at, e) : sequence.tail[(at + taps - 1) * x.cols + e];
        sum += static_cast<Real>(weight[k * x.cols + e]) * static_cast<Real>(input);
      }
      y(sequence.first_row + i, e) = static_cast<Out>(silu(sum));
    }
  }
}
}  // namespace reference

namespace detail {
/// Channels [first, last) of a sequence's tail become its last K - 1 inputs.
template <class T>
void update_tail(MatrixView<const std::type_identity_t<T>> x, int taps, const BasicConvSequence<T>& s,
                 std::int64_t first, std::int64_t last) {
  const std::int64_t width = x.cols, kept = taps - 1;
  // Oldest first: a row is read only at or behind the one being written.
  for (std::int64_t k = 0; k < kept; ++k) {
    const std::int64_t at = s.rows - kept + k;
    const T* from = at >= 0 ? x.row(s.first_row + at) : s.tail + (k + s.rows) * width;
    if (from != s.tail + k * width) std::copy(from + first, from + last, s.tail + k * width + first);
  }
}
}  // namespace detail

template <>
struct kernel_for<op::Conv1d, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, MatrixView<const std::type_identity_t<T>> x, const std::type_identity_t<T>* weight,
                  const std::type_identity_t<T>* bias, int taps,
                  std::span<const BasicConvSequence<std::type_identity_t<T>>> sequences, MatrixView<T> y) {
    for (const BasicConvSequence<T>& s : sequences) {
      reference::conv1d<T, T, T>(x, weight, bias, taps, s, y);
      detail::update_tail(x, taps, s, 0, x.cols);
    }
  }
};

template <class A>
struct kernel_for<op::Conv1d, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<const float> x, const float* weight, const float* bias, int taps,
                  std::span<const ConvSequence> sequences, MatrixView<float> y) {
    detail::with_static<4, 3, 2>(taps, [&](auto k) {
      // A task keeps its channels for all sequences: every tail is read and updated by one thread.
      detail::for_parts(exec, x.cols, 64, (10 + taps) * x.rows, [&](std::int64_t first, std::int64_t last, int) {
        for (const ConvSequence& s : sequences) {
          for (std::int64_t e = first; e < last; e += block) {
            const std::int64_t end = std::min(e + block, last);
            for (std::int64_t i = 0; i < s.rows; ++i) row<k()>(x, weight, bias, taps, s, i, e, end, y);
            detail::update_tail(x, taps, s, e, end);
          }
        }
      });
    });
  }

 private:
  static constexpr std::int64_t L = simd::lanes<A>;
  static constexpr std::int64_t block = 256;  ///< channels at a time: their inputs and weights stay in the cache

  /// Channels [first, last) of row `i` of a sequence.
  template <int K>
  static void row(MatrixView<const float> x, const float* weight, const float* bias, int taps, const ConvSequence& s,
                  std::int64_t i, std::int64_t first, std::int64_t last, MatrixView<float> y) {
    const std::int64_t width = x.cols;
    float* to = y.row(s.first_row + i);
    const auto input = [&](int k, int count) {
      const std::int64_t at = i - count + 1 + k;
      return at >= 0 ? x.row(s.first_row + at) : s.tail + (at + count - 1) * width;
    };
    if constexpr (K != dynamic) {
      const float* inputs[K];
      for (int k = 0; k < K; ++k) inputs[k] = input(k, K);
      const auto channels = [&](std::int64_t e, auto load) {
        simd::floats<A> sum = bias != nullptr ? load(bias + e) : simd::zero<A>();
        detail::unrolled<K>(
            [&](auto k) { sum = simd::fma<A>(load(weight + k * width + e), load(inputs[k] + e), sum); });
        return simd::silu<A>(sum);
      };
      for_channels(first, last, to, channels);
    } else {
      const auto channels = [&](std::int64_t e, auto load) {
        simd::floats<A> sum = bias != nullptr ? load(bias + e) : simd::zero<A>();
        for (int k = 0; k < taps; ++k) sum = simd::fma<A>(load(weight + k * width + e), load(input(k, taps) + e), sum);
        return simd::silu<A>(sum);
      };
      for_channels(first, last, to, channels);
    }
  }
  template <class Channels>
  static HYMBA_ALWAYS_INLINE void for_channels(std::int64_t first, std::int64_t last, float* to, Channels&& channels) {
    std::int64_t e = first;
    for (; e + L <= last; e += L) {
      simd::store<A>(to + e, channels(e, [](const float* p) { return simd::load<A>(p); }));
    }
    if (e < last) {
      const std::int64_t rest = last - e;
      simd::store_partial<A>(to + e, channels(e, [rest](const float* p) { return simd::load_partial<A>(p, rest); }),
                             rest);
    }
  }
};

HYMBA_NAMESPACE_END
