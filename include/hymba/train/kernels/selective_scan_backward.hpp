// SPDX-License-Identifier: Apache-2.0
//
// Backward of the recurrence of the SSM heads.
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
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// What the scan has read; members as in ScanInputs.
template <class T>
struct ScanOperands {
  MatrixView<const T> c;   ///< [T, E]
  MatrixView<const T> dt;  ///< [T, E] before softplus
  MatrixView<const T> z;   ///< [T, E]
  MatrixView<const T> B;   ///< [T, N]
  MatrixView<const T> C;   ///< [T, N]
  const T* A = nullptr;    ///< [N, E], no element is positive
  const T* D = nullptr;    ///< [E]
};

/// Gradients with respect to the members of ScanOperands.
template <class T>
struct ScanGradients {
  MatrixView<T> c;   ///< [T, E] assigned
  MatrixView<T> dt;  ///< [T, E] assigned
  MatrixView<T> z;   ///< [T, E] assigned
  MatrixView<T> B;   ///< [T, N] assigned
  MatrixView<T> C;   ///< [T, N] assigned
  T* A = nullptr;    ///< [N, E] added to
  T* D = nullptr;    ///< [E] added to
};

namespace op {
/// Backward of op::SelectiveScan whose sequences start from a state of zero. With `delta = softplus(dt)`, `a[n] =
/// exp(delta * A[n])`, `h[n] = a[n] * h'[n] + delta * c * B[n]` (h' is h of the row before), `s = sum over n of h[n] *
/// C[n] + D * c`, `y = s * silu(z)`, and the gradient dy [T, E] of y, for every sequence from its last row to its
/// first:
///
///     ds = dy * silu(z);   dz = dy * s * silu'(z);   dD += ds * c;   dC[n] = sum over e of ds * h[n]
///     g[n] = ds * C[n] + (g[n] * a[n] of the row behind);   dB[n] = sum over e of g[n] * delta * c
///     dA[n] += g[n] * delta * a[n] * h'[n];   dc = ds * D + sum over n of g[n] * delta * B[n]
///     d(dt) = sigmoid(dt) * sum over n of g[n] * (A[n] * a[n] * h'[n] + c * B[n])
///
///     static constexpr std::size_t scratch_bytes(std::int64_t longest_sequence_rows, std::int64_t total_rows,
///                                                std::int64_t states);
///     static void run(E& exec, Scratch scratch, const ScanOperands<Real>& in, std::span<const RowRange> sequences,
///                     MatrixView<const Real> dy, const ScanGradients<Real>& out);
///
/// `total_rows` is at least T. Rows of out.c, dt, z, B, C that belong to a sequence are assigned, others are left
/// alone; out.A and out.D are added to. Nothing overlaps. States are computed again, none is kept by the forward pass.
/// Same inputs and number of threads, same bits. Source: Gu and Dao, "Mamba" (arXiv 2312.00752), section 3.3.2,
/// algorithm 2 differentiated.
struct SelectiveScanBackward {};
}  // namespace op

namespace reference {
/// op::SelectiveScanBackward in plain loops for one sequence; `history` [rows + 1, N] is working memory.
template <class Real>
void selective_scan_backward(const ScanOperands<Real>& in, const RowRange& s,
                             MatrixView<const std::type_identity_t<Real>> dy,
                             const ScanGradients<std::type_identity_t<Real>>& out, Real* history) {
  using std::exp;
  const std::int64_t width = in.c.cols, states = in.B.cols, first = s.first_row, last = first + s.rows;
  Real* const carry = history + s.rows * states;  // g * a of the row behind
  for (std::int64_t t = first; t < last; ++t) {
    for (std::int64_t n = 0; n < states; ++n) out.B(t, n) = out.C(t, n) = Real(0);
  }
  for (std::int64_t e = 0; e < width; ++e) {
    const auto state = [&](std::int64_t t, std::int64_t n) -> Real& { return history[(t - first) * states + n]; };
    const auto before = [&](std::int64_t t, std::int64_t n) { return t > first ? state(t - 1, n) : Real(0); };
    for (std::int64_t t = first; t < last; ++t) {
      const Real delta = softplus(in.dt(t, e));
      for (std::int64_t n = 0; n < states; ++n) {
        state(t, n) = exp(delta * in.A[n * width + e]) * before(t, n) + delta * in.c(t, e) * in.B(t, n);
      }
    }
    for (std::int64_t n = 0; n < states; ++n) carry[n] = Real(0);
    for (std::int64_t t = last - 1; t >= first; --t) {
      const Real delta = softplus(in.dt(t, e)), gate = sigmoid(in.z(t, e)), c = in.c(t, e), z = in.z(t, e);
      const Real ds = dy(t, e) * (z * gate);
      Real sum = in.D[e] * c, g_b = Real(0), d_delta = Real(0);
      for (std::int64_t n = 0; n < states; ++n) {
        const Real a = exp(delta * in.A[n * width + e]);
        const Real kept = a * before(t, n), g = ds * in.C(t, n) + carry[n];
        sum += state(t, n) * in.C(t, n);
        out.C(t, n) += ds * state(t, n);
        out.B(t, n) += g * (delta * c);
        out.A[n * width + e] += g * kept * delta;
        g_b += g * in.B(t, n);
        d_delta += g * kept * in.A[n * width + e];
        carry[n] = g * a;
      }
      out.D[e] += ds * c;
      out.z(t, e) = dy(t, e) * sum * (gate * (Real(1) + z * (Real(1) - gate)));
      out.c(t, e) = ds * in.D[e] + delta * g_b;
      out.dt(t, e) = (d_delta + c * g_b) * sigmoid(in.dt(t, e));
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::SelectiveScanBackward, arch::scalar> {
  /// Enough for float and double.
  static constexpr std::size_t scratch_bytes(std::int64_t longest_sequence_rows, std::int64_t, std::int64_t states) {
    return (static_cast<std::size_t>((longest_sequence_rows + 1) * states) * sizeof(double) + 63) / 64 * 64;
  }
  template <class Exec, class Real>
  static void run(Exec&, Scratch scratch, const ScanOperands<std::type_identity_t<Real>>& in,
                  std::span<const RowRange> sequences, MatrixView<const std::type_identity_t<Real>> dy,
                  const ScanGradients<Real>& out) {
    for (const RowRange& s : sequences) {
      reference::selective_scan_backward<Real>(in, s, dy, out, scratch.template of<Real>(0));
    }
  }
};

/// Lanes are channels. A sequence is cut into chunks: a first sweep keeps the state at every chunk's start only; then,
/// from the last chunk to the first, a chunk's states and decays are computed again, for a few states at a time, and
/// read backwards while they are in the nearest cache. Every thread has its own channels and all sequences, so that
/// only dB and dC are sums over threads; those are added up in the order of the channels.
template <class A>
struct kernel_for<op::SelectiveScanBackward, arch::simd<A>> {
  static constexpr std::size_t scratch_bytes(std::int64_t longest_sequence_rows, std::int64_t total_rows,
                                             std::int64_t states) {
    return static_cast<std::size_t>(Layout(longest_sequence_rows, total_rows, states).end) * sizeof(float);
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, const ScanOperands<float>& in, std::span<const RowRange> sequences,
                  MatrixView<const float> dy, const ScanGradients<float>& out) {
    const std::int64_t width = in.c.cols, states = in.B.cols, total = in.c.rows;
    std::int64_t rows = 0, longest = 0;
    for (const RowRange& s : sequences) rows += s.rows, longest = std::max(longest, s.rows);
    if (rows == 0 || width == 0) return;
    const Layout layout(longest, total, states);
    const std::int64_t vectors = (width + L - 1) / L;
    const std::int64_t worth = std::max<std::int64_t>(1, rows * width * (16 + 8 * states) / detail::task_work);
    const std::int64_t parts = std::min({vectors, worth, static_cast<std::int64_t>(exec.threads())});
    // The first part's dB and dC are the output; the others' lie in the scratch memory of as many threads. Indexed by
    // part and not by thread: one thread may run several.
    const auto partial = [&](std::int64_t part, std::int64_t which) {
      return MatrixView<float>(scratch.of<float>(static_cast<int>(part)) + which * total * states, total, states);
    };
    exec.parallel_for(parts, [&](std::int64_t part, int thread) noexcept {
      const MatrixView<float> d_b = part == 0 ? out.B : partial(part, 0), d_c = part == 0 ? out.C : partial(part, 1);
      const std::int64_t first = vectors * part / parts, last = vectors * (part + 1) / parts;
      for (std::int64_t v = first; v < last; v += W) {
        const Block block{in,        dy, out, d_b, d_c, layout, scratch.of<float>(thread), v * L, std::min(W, last - v),
                          v == first};
        block.run(sequences);
      }
    });
    if (parts == 1) return;
    detail::for_parts(exec, total, 1, 2 * parts * states, [&](std::int64_t first, std::int64_t last, int) {
      for (const RowRange& s : sequences) {
        const std::int64_t end = std::min(last, s.first_row + s.rows);
        for (std::int64_t t = std::max(first, s.first_row); t < end; ++t) {
          for (std::int64_t part = 1; part < parts; ++part) {
            add(partial(part, 0).row(t), states, out.B.row(t));
            add(partial(part, 1).row(t), states, out.C.row(t));
          }
        }
      }
    });
  }

 private:
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  static constexpr int G = 4;            ///< states at a time: their recurrences hide each other's latency
  static constexpr std::int64_t R = 32;  ///< rows of a chunk
  /// Vectors of channels at a time. Their pieces of a row are long enough for the processor to see the next ones
  /// coming, and what is kept of a chunk's rows fits the second cache.
  static constexpr std::int64_t W = 512 / L;
  static constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

  // What belongs to a row lies together. Arrays a multiple of 4096 bytes apart would make loads wait for stores to the
  // same row that have nothing to do with them.
  enum Row { delta, input, ds, sum, g_b, p_a, row_vectors };  ///< of a vector of channels: in `rows`
  enum Step { before = 0, decay = G, d_b = 2 * G, d_c = 3 * G, step_vectors = 4 * G + 1 };  ///< of G states: in `steps`

  /// Where things lie in a thread's scratch memory, in floats. `states` are rounded up to a multiple of G.
  struct Layout {
    std::int64_t states, state, starts, carry, a, d_a, rows, steps, b, c, end;
    constexpr Layout(std::int64_t longest, std::int64_t total, std::int64_t n)
        : states((n + G - 1) / G * G), state(states * W * L) {
      std::int64_t at = 0;
      const auto next = [&at](std::int64_t size) {
        const std::int64_t here = at;
        at += (size + 15) / 16 * 16;
        return here;
      };
      next(2 * total * n);                           // partial dB and dC of a part
      starts = next((longest + R - 1) / R * state);  // [chunk, states / G, W, G, L] states in front of each chunk
      carry = next(state), a = next(state), d_a = next(state);
      rows = next(W * R * row_vectors * L);        // [W, R, row_vectors, L]
      steps = next(R * step_vectors * L);          // [R, step_vectors, L]
      b = next(R * states), c = next(R * states);  // [R, states]
      end = at;
    }
  };

  static void add(const float* from, std::int64_t n, float* to) {
    for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
  }

  /// `vectors` vectors of channels from channel `first`, all sequences.
  struct Block {
    const ScanOperands<float>& in;
    MatrixView<const float> dy;
    const ScanGradients<float>& out;
    MatrixView<float> to_b, to_c;  ///< the part's dB and dC
    const Layout& at;
    float* memory;
    std::int64_t first, vectors;
    bool assign;  ///< to_b and to_c: by the first block of a part; the others add

    void run(std::span<const RowRange> sequences) const {
      const std::int64_t width = in.c.cols, states = in.B.cols;
      for (std::int64_t n = 0; n < at.states; ++n) {
        for (std::int64_t v = 0; v < vectors; ++v) {
          // The exponentials are powers of two. States that are only there to fill a group have A = B = C = 0.
          const V rate = n < states ? load(in.A + n * width, v) * V(log2_e) : simd::zero<A>();
          simd::store<A>(of(at.a, n, v), rate);
          simd::store<A>(of(at.d_a, n, v), simd::zero<A>());
        }
      }
      V d_skip[W];
      for (V& d : d_skip) d = simd::zero<A>();
      for (const RowRange& s : sequences) {
        if (s.rows > 0) sequence(s, d_skip);
      }
      for (std::int64_t v = 0; v < vectors; ++v) {
        store(out.D, v, load(out.D, v) + d_skip[v]);
        for (std::int64_t n = 0; n < states; ++n) {
          float* const to = out.A + n * width;
          store(to, v, load(to, v) + simd::load<A>(of(at.d_a, n, v)));
        }
      }
    }

   private:
    /// Lanes of vector v that are channels.
    std::int64_t count(std::int64_t v) const { return std::min(L, in.c.cols - first - v * L); }
    HYMBA_ALWAYS_INLINE V load(const float* row, std::int64_t v) const {
      const float* const p = row + first + v * L;
      const std::int64_t n = count(v);
      return n == L ? simd::load<A>(p) : simd::load_partial<A>(p, n);
    }
    HYMBA_ALWAYS_INLINE void store(float* row, std::int64_t v, const V& value) const {
      float* const p = row + first + v * L;
      const std::int64_t n = count(v);
      if (n == L) {
        simd::store<A>(p, value);
      } else {
        simd::store_partial<A>(p, value, n);
      }
    }
    /// State n of vector v in an array of states.
    float* of(std::int64_t array, std::int64_t n, std::int64_t v) const {
      return memory + array + ((n / G * W + v) * G + n % G) * L;
    }

    float* row_of(std::int64_t v, std::int64_t r) const { return memory + at.rows + (v * R + r) * row_vectors * L; }

    void sequence(const RowRange& s, V (&d_skip)[W]) const {
      const std::int64_t chunks = (s.rows + R - 1) / R;
      std::fill_n(memory + at.starts, at.state, 0.0f);
      for (std::int64_t k = 0; k + 1 < chunks; ++k) {
        const std::int64_t first_row = s.first_row + k * R;
        for (std::int64_t r = 0; r < R; ++r) {
          for (std::int64_t v = 0; v < vectors; ++v) {
            float* const row = row_of(v, r);
            const V step = simd::softplus<A>(load(in.dt.row(first_row + r), v));
            simd::store<A>(row + delta * L, step);
            simd::store<A>(row + input * L, step * load(in.c.row(first_row + r), v));
          }
        }
        stage(in.B, first_row, R, memory + at.b);
        const std::int64_t start = at.starts + k * at.state;
        for (std::int64_t n = 0; n < at.states; n += G) {
          for (std::int64_t v = 0; v < vectors; ++v) {
            advance(of(start, n, v), of(at.a, n, v), row_of(v, 0), memory + at.b + n, at.states,
                    of(start + at.state, n, v));
          }
        }
      }
      std::fill_n(memory + at.carry, at.state, 0.0f);
      for (std::int64_t k = chunks; k-- > 0;) {
        chunk(s.first_row + k * R, std::min(R, s.rows - k * R), at.starts + k * at.state, d_skip);
      }
    }

    /// Rows of B or C one behind the other, with zeros up to a whole number of groups.
    void stage(MatrixView<const float> from, std::int64_t row, std::int64_t rows, float* to) const {
      for (std::int64_t r = 0; r < rows; ++r, to += at.states) {
        std::fill(std::copy_n(from.row(row + r), from.cols, to), to + at.states, 0.0f);
      }
    }

    /// Both directions through the rows of a chunk.
    void chunk(std::int64_t first_row, std::int64_t rows, std::int64_t start, V (&d_skip)[W]) const {
      stage(in.B, first_row, rows, memory + at.b);
      stage(in.C, first_row, rows, memory + at.c);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t t = first_row + r;
        for (std::int64_t v = 0; v < vectors; ++v) {
          const V skip = load(in.D, v);
          float* const row = row_of(v, r);
          const V c = load(in.c.row(t), v), z = load(in.z.row(t), v), dt = load(in.dt.row(t), v);
          const V d_y = load(dy.row(t), v), gate = simd::sigmoid<A>(z), one(1.0f);
          const V step = simd::softplus<A>(dt), d_s = d_y * (z * gate);
          simd::store<A>(row + delta * L, step);
          simd::store<A>(row + input * L, step * c);
          simd::store<A>(row + ds * L, d_s);
          simd::store<A>(row + sum * L, skip * c);
          simd::store<A>(row + g_b * L, simd::zero<A>());
          simd::store<A>(row + p_a * L, simd::zero<A>());
          // Factors of the results, kept where the results will be.
          store(out.dt.row(t), v, simd::sigmoid<A>(dt));
          store(out.z.row(t), v, d_y * (gate * simd::fma<A>(z, one - gate, one)));
          d_skip[v] = simd::fma<A>(d_s, c, d_skip[v]);
        }
      }
      float* const steps = memory + at.steps;
      for (std::int64_t n = 0; n < at.states; n += G) {
        for (std::int64_t r = 0; r < rows; ++r) std::fill_n(steps + (r * step_vectors + d_b) * L, 2 * G * L, 0.0f);
        for (std::int64_t v = 0; v < vectors; ++v) {
          const float* const b = memory + at.b + n;
          const float* const c = memory + at.c + n;
          forward(of(start, n, v), of(at.a, n, v), b, c, at.states, rows, row_of(v, 0), steps);
          backward(of(at.a, n, v), b, c, at.states, rows, row_of(v, 0), steps, of(at.carry, n, v), of(at.d_a, n, v));
        }
        fold(steps + d_b * L, first_row, rows, n, to_b);
        fold(steps + d_c * L, first_row, rows, n, to_c);
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t t = first_row + r;
        for (std::int64_t v = 0; v < vectors; ++v) {
          const V skip = load(in.D, v);
          const float* const row = row_of(v, r);
          const V c = load(in.c.row(t), v), by_input = simd::load<A>(row + g_b * L);
          const V d_delta = simd::fma<A>(simd::load<A>(row + p_a * L), V(ln_2), c * by_input);
          store(out.c.row(t), v,
                simd::fma<A>(simd::load<A>(row + ds * L), skip, simd::load<A>(row + delta * L) * by_input));
          store(out.dt.row(t), v, load(out.dt.row(t), v) * d_delta);
          store(out.z.row(t), v, load(out.z.row(t), v) * simd::load<A>(row + sum * L));
        }
      }
    }

    /// Columns [n, n + G) of the rows of dB or dC: the sums over lanes of what the block's vectors added up.
    void fold(const float* from, std::int64_t row, std::int64_t rows, std::int64_t n, MatrixView<float> to) const {
      const std::int64_t used = std::min<std::int64_t>(G, in.B.cols - n);
      for (std::int64_t r = 0; r < rows; ++r, from += step_vectors * L) {
        V v[G];
        detail::unrolled<G>([&](auto i) { v[i] = simd::load<A>(from + i * L); });
        float sums[G];
        simd::sums<A>(v, sums);
        float* const p = to.row(row + r) + n;
        for (std::int64_t i = 0; i < used; ++i) p[i] = assign ? sums[i] : p[i] + sums[i];
      }
    }
  };

  // The loops below see G states of one vector of channels. `b` and `c` point to the group's column of the staged rows.

  /// From the start of a whole chunk to the start of the next.
  static void advance(const float* from, const float* rates, const float* row, const float* b, std::int64_t stride,
                      float* to) {
    V h[G], rate[G];
    detail::unrolled<G>([&](auto i) {
      h[i] = simd::load<A>(from + i * L);
      rate[i] = simd::load<A>(rates + i * L);
    });
    for (std::int64_t r = 0; r < R; ++r, row += row_vectors * L, b += stride) {
      const V step = simd::load<A>(row + delta * L), in = simd::load<A>(row + input * L);
      detail::unrolled<G>(
          [&](auto i) { h[i] = simd::fma<A>(simd::exp2_nonpositive<A>(step * rate[i]), h[i], in * V(b[i])); });
    }
    detail::unrolled<G>([&](auto i) { simd::store<A>(to + i * L, h[i]); });
  }

  /// Keeps decays and the states in front of every row, adds to s and dC.
  static void forward(const float* from, const float* rates, const float* b, const float* c, std::int64_t stride,
                      std::int64_t rows, float* row, float* kept) {
    V h[G], rate[G];
    detail::unrolled<G>([&](auto i) {
      h[i] = simd::load<A>(from + i * L);
      rate[i] = simd::load<A>(rates + i * L);
    });
    for (std::int64_t r = 0; r < rows;
         ++r, row += row_vectors * L, kept += step_vectors * L, b += stride, c += stride) {
      const V step = simd::load<A>(row + delta * L), in = simd::load<A>(row + input * L);
      const V d_s = simd::load<A>(row + ds * L);
      V s = simd::load<A>(row + sum * L);
      detail::unrolled<G>([&](auto i) {
        const V a = simd::exp2_nonpositive<A>(step * rate[i]);
        simd::store<A>(kept + (decay + i) * L, a);
        simd::store<A>(kept + (before + i) * L, h[i]);
        h[i] = simd::fma<A>(a, h[i], in * V(b[i]));
        s = simd::fma<A>(h[i], V(c[i]), s);
        simd::store<A>(kept + (d_c + i) * L, simd::fma<A>(d_s, h[i], simd::load<A>(kept + (d_c + i) * L)));
      });
      simd::store<A>(row + sum * L, s);
    }
  }

  /// The same states backwards: adds to dA, dB and the sums over states.
  static void backward(const float* rates, const float* b, const float* c, std::int64_t stride, std::int64_t rows,
                       float* row, float* kept, float* carried, float* d_rates) {
    V carry[G], d_a[G], rate[G];
    detail::unrolled<G>([&](auto i) {
      carry[i] = simd::load<A>(carried + i * L);
      d_a[i] = simd::load<A>(d_rates + i * L);
      rate[i] = simd::load<A>(rates + i * L);
    });
    row += rows * row_vectors * L, kept += rows * step_vectors * L, b += rows * stride, c += rows * stride;
    for (std::int64_t r = rows; r-- > 0;) {
      row -= row_vectors * L, kept -= step_vectors * L, b -= stride, c -= stride;
      const V step = simd::load<A>(row + delta * L), in = simd::load<A>(row + input * L);
      const V d_s = simd::load<A>(row + ds * L);
      V by_input = simd::load<A>(row + g_b * L), by_decay = simd::load<A>(row + p_a * L);
      detail::unrolled<G>([&](auto i) {
        const V g = simd::fma<A>(d_s, V(c[i]), carry[i]);
        by_input = simd::fma<A>(g, V(b[i]), by_input);
        simd::store<A>(kept + (d_b + i) * L, simd::fma<A>(g, in, simd::load<A>(kept + (d_b + i) * L)));
        carry[i] = g * simd::load<A>(kept + (decay + i) * L);
        const V p = carry[i] * simd::load<A>(kept + (before + i) * L);
        by_decay = simd::fma<A>(p, rate[i], by_decay);
        d_a[i] = simd::fma<A>(p, step, d_a[i]);
      });
      simd::store<A>(row + g_b * L, by_input);
      simd::store<A>(row + p_a * L, by_decay);
    }
    detail::unrolled<G>([&](auto i) {
      simd::store<A>(carried + i * L, carry[i]);
      simd::store<A>(d_rates + i * L, d_a[i]);
    });
  }
};

HYMBA_NAMESPACE_END
