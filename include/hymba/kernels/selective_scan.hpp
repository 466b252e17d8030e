// SPDX-License-Identifier: Apache-2.0
//
// The recurrence of the SSM heads.
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
#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// Rows [first_row, first_row + rows) of the matrices are one sequence; `state` [N, E] is read and updated.
template <class T>
struct BasicScanSequence {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  T* state = nullptr;
};
using ScanSequence = BasicScanSequence<float>;

/// What the scan reads.
template <class T>
struct BasicScanInputs {
  MatrixView<const T> c;   ///< [T, E] output of the convolution
  MatrixView<const T> dt;  ///< [T, E] time step before softplus, bias already in
  MatrixView<const T> z;   ///< [T, E] gate
  MatrixView<const T> B;   ///< [T, N]
  MatrixView<const T> C;   ///< [T, N]
  const T* A = nullptr;    ///< [N, E], -exp(A_log) transposed; no element is positive
  const T* D = nullptr;    ///< [E] skip
};
using ScanInputs = BasicScanInputs<float>;

namespace op {
/// Mamba-1 selective scan. For every sequence, row t and channel e, with `delta = softplus(dt)`:
///
///     h[n] = exp(delta * A[n]) * h[n] + delta * c * B[n];   y = (sum over n of h[n] * C[n] + D * c) * silu(z)
///
///     static void run(E& exec, Scratch scratch, const ScanInputs& inputs, std::span<const ScanSequence> sequences,
///                     MatrixView<float> y);
///
/// y [T, E] may be c, dt or z. A sequence run in pieces gives the bits of the whole, on any number of threads.
/// Source: Gu and Dao, "Mamba" (arXiv 2312.00752), algorithm 2, with the gate of figure 3.
struct SelectiveScan {};
}  // namespace op

namespace reference {
/// op::SelectiveScan in plain loops for one sequence; `state` [N, E] in `Real`.
template <class Real, class Out, class In = float>
void selective_scan(const BasicScanInputs<std::type_identity_t<In>>& in, std::int64_t first_row, std::int64_t rows, Real* state, MatrixView<Out> y) {
  const std::int64_t width = in.c.cols, states = in.B.cols;
  for (std::int64_t t = first_row; t < first_row + rows; ++t) {
    for (std::int64_t e = 0; e < width; ++e) {
      const Real delta = softplus(static_cast<Real>(in.dt(t, e)));
      const Real c = static_cast<Real>(in.c(t, e));
      Real sum = static_cast<Real>(in.D[e]) * c;
      for (std::int64_t n = 0; n < states; ++n) {
        Real& h = state[n * width + e];
        h = std::exp(delta * static_cast<Real>(in.A[n * width + e])) * h + delta * c * static_cast<Real>(in.B(t, n));
        sum += h * static_cast<Real>(in.C(t, n));
      }
      y(t, e) = static_cast<Out>(sum * silu(static_cast<Real>(in.z(t, e))));
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::SelectiveScan, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, const BasicScanInputs<std::type_identity_t<T>>& in,
                  std::span<const BasicScanSequence<std::type_identity_t<T>>> sequences, MatrixView<T> y) {
    for (const BasicScanSequence<T>& s : sequences) reference::selective_scan<T, T, T>(in, s.first_row, s.rows, s.state, y);
  }
};

/// Lanes are channels; the state of one vector of channels stays in registers over the rows of a sequence when d_state
/// is known to the compiler.
template <class A>
struct kernel_for<op::SelectiveScan, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, const ScanInputs& in, std::span<const ScanSequence> sequences,
                  MatrixView<float> y) {
    const std::int64_t width = in.c.cols, states = in.B.cols;
    const std::int64_t vectors = (width + L - 1) / L, count = static_cast<std::int64_t>(sequences.size());
    std::int64_t rows = 0;
    for (const ScanSequence& s : sequences) rows += s.rows;
    if (count == 0 || rows == 0) return;
    detail::with_static<16, 8>(states, [&](auto n) {
      // Parts are ranges of (sequence, vector of channels) pairs: even ones, however few sequences there are.
      detail::for_parts(exec, count * vectors, 1, rows * L * (8 + 3 * states) / count + 1,
                        [&](std::int64_t first, std::int64_t last, int) {
                          while (first < last) {
                            const std::int64_t sequence = first / vectors, v = first % vectors;
                            const std::int64_t end = std::min(last - first + v, vectors);
                            tiles<n()>(in, sequences[static_cast<std::size_t>(sequence)], v, end, y);
                            first += end - v;
                          }
                        });
    });
  }

 private:
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  // A vector of channels touches one cache line of every row, and rows are pages apart. All channels of some rows
  // first: a page is done with before the TLB forgets it. The state goes to memory and back once per tile, which is
  // little.
  static constexpr std::int64_t tile_rows = 16;
  static constexpr std::int64_t ahead = 32;  ///< channels: two cache lines

  struct Full {
    HYMBA_ALWAYS_INLINE V load(const float* p) const { return simd::load<A>(p); }
    HYMBA_ALWAYS_INLINE void store(float* p, const V& v) const { simd::store<A>(p, v); }
  };
  struct Partial {
    std::int64_t count;
    HYMBA_ALWAYS_INLINE V load(const float* p) const { return simd::load_partial<A>(p, count); }
    HYMBA_ALWAYS_INLINE void store(float* p, const V& v) const { simd::store_partial<A>(p, v, count); }
  };

  /// One step of one state. `delta2` is delta * log2(e), so that the decay is a power of two.
  static HYMBA_ALWAYS_INLINE V step(const V& h, const V& delta2, const V& a, const V& input, float b) {
    return simd::fma<A>(simd::exp2_nonpositive<A>(delta2 * a), h, input * V(b));
  }

  /// Vectors [first, last) of channels of a sequence, some rows at a time.
  template <int N>
  static void tiles(const ScanInputs& in, const ScanSequence& s, std::int64_t first, std::int64_t last,
                    MatrixView<float> y) {
    const std::int64_t width = in.c.cols, end = s.first_row + s.rows;
    for (std::int64_t row = s.first_row; row < end; row += tile_rows) {
      const std::int64_t rows = std::min(tile_rows, end - row);
      for (std::int64_t v = first; v < last; ++v) {
        const std::int64_t e = v * L;
        if (e + L <= width) {
          channels<N>(in, s.state, row, rows, e, Full{}, y);
        } else {
          channels<N>(in, s.state, row, rows, e, Partial{width - e}, y);
        }
      }
    }
  }

  /// One vector of channels over rows [row, row + rows).
  template <int N, class Access>
  static void channels(const ScanInputs& in, float* all_states, std::int64_t row, std::int64_t rows, std::int64_t e,
                       Access access, MatrixView<float> y) {
    const std::int64_t width = in.c.cols, states = in.B.cols, soon = std::min(e + ahead, width - 1);
    const V skip = access.load(in.D + e);
    const float* const a = in.A + e;
    float* const state = all_states + e;
    // Registers, or unused.
    [[maybe_unused]] V h[N == dynamic ? 1 : N];
    if constexpr (N != dynamic) {
      detail::unrolled<N>([&](auto n) { h[n] = access.load(state + n * width); });
    }
    // What takes long and depends on no other row first, row after row: between the states of two rows it would make
    // them wait.
    V deltas[tile_rows], gates[tile_rows];
    for (std::int64_t r = 0; r < rows; ++r) {
      deltas[r] = simd::softplus<A>(access.load(in.dt.row(row + r) + e));
      gates[r] = simd::silu<A>(access.load(in.z.row(row + r) + e));
    }
    for (std::int64_t t = row; t < row + rows; ++t) {
      // What later vectors of channels need of this row; of y too, or its stores would wait for memory one by one.
      simd::prefetch(in.c.row(t) + soon), simd::prefetch(in.dt.row(t) + soon);
      simd::prefetch(in.z.row(t) + soon), simd::prefetch(y.row(t) + soon);
      const V c = access.load(in.c.row(t) + e);
      const V delta = deltas[t - row];
      const V delta2 = delta * V(1.44269504f), input = delta * c;
      const float* const b = in.B.row(t);
      const float* const out = in.C.row(t);
      V sum = skip * c;
      if constexpr (N != dynamic) {
        detail::unrolled<N>([&](auto n) {
          h[n] = step(h[n], delta2, access.load(a + n * width), input, b[n]);
          sum = simd::fma<A>(h[n], V(out[n]), sum);
        });
      } else {
        for (std::int64_t n = 0; n < states; ++n) {
          const V next = step(access.load(state + n * width), delta2, access.load(a + n * width), input, b[n]);
          access.store(state + n * width, next);
          sum = simd::fma<A>(next, V(out[n]), sum);
        }
      }
      access.store(y.row(t) + e, sum * gates[t - row]);
    }
    if constexpr (N != dynamic) {
      detail::unrolled<N>([&](auto n) { access.store(state + n * width, h[n]); });
    }
  }
};

HYMBA_NAMESPACE_END
