// SPDX-License-Identifier: Apache-2.0
//
// Gradients of attention over whole sequences: global and window layers, grouped queries.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/static_dispatch.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/kernels/vector_math.hpp>
#include <hymba/train/kernels/block_product.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// Rows [first_row, first_row + rows) of the matrices are one sequence, from its position 0. Keys of head g are
/// [rows, key_width] at `keys + g * key_head_stride`, rows contiguous; values alike. Gradients lie like what they are
/// the gradients of.
template <class T>
struct AttentionGradientSequence {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  const T* keys = nullptr;
  const T* values = nullptr;
  T* d_keys = nullptr;
  T* d_values = nullptr;
  std::int64_t key_head_stride = 0, value_head_stride = 0;  ///< in elements
};

namespace op {
/// Gradients of op::Attention, `out = P v`, `P = softmax(scale * q k^T + mask)`, for sequences from their start. For
/// every query head, with dout [T, H * dv] the gradient of out [T, H * dv], and q, dq [T, H * dk]:
///
///     dP = dout v^T,   D = sum over columns of dout * out,   dS = P (dP - D)
///     dv += P^T dout,  dq = scale * dS k,                    dk += scale * dS^T q
///
///     template <class Real, Executor Exec>
///     static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const Real> q,
///                     MatrixView<const Real> out, MatrixView<const Real> dout,
///                     std::span<const AttentionGradientSequence<Real>> sequences, MatrixView<Real> dq);
///     static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t longest_rows);
///
/// q is rotated, as the forward pass had it; out is what it returned. dq is assigned in the sequences' rows; gradients
/// of keys and values are added to, since layers may share them. No operand overlaps another, nor do the gradients of
/// two sequences. Real is float; double too on arch::scalar. Parallel over sequences and key/value heads, each of which
/// has its gradients to itself: bits do not depend on the number of threads. `scratch_bytes` is per thread and grows
/// with longest_rows, up to what a window holds.
/// Source: Dao et al., "FlashAttention" (arXiv 2205.14135), appendix B.2; visibility as in op::Attention.
struct AttentionBackward {};
}  // namespace op

namespace reference {
/// op::AttentionBackward in plain loops for one sequence. Weights are computed again wherever they are needed.
template <class Real>
void attention_backward(const AttentionShape& shape, MatrixView<const Real> q, MatrixView<const Real> out,
                        MatrixView<const Real> dout, const AttentionGradientSequence<Real>& sequence,
                        MatrixView<Real> dq) {
  const std::int64_t dk = shape.key_width, dv = shape.value_width;
  const auto scale = static_cast<Real>(shape.scale);
  const auto dot = [](const Real* a, const Real* b, std::int64_t n) {
    Real sum = 0;
    for (std::int64_t d = 0; d < n; ++d) sum += a[d] * b[d];
    return sum;
  };
  for (std::int64_t i = 0; i < sequence.rows; ++i) {
    for (std::int64_t h = 0; h < shape.query_heads; ++h) {
      const std::int64_t g = h * shape.kv_heads / shape.query_heads;
      const std::int64_t row = sequence.first_row + i;
      const Real *query = q.row(row) + h * dk, *d_out = dout.row(row) + h * dv;
      const Real* keys = sequence.keys + g * sequence.key_head_stride;
      const Real* values = sequence.values + g * sequence.value_head_stride;
      Real* d_keys = sequence.d_keys + g * sequence.key_head_stride;
      Real* d_values = sequence.d_values + g * sequence.value_head_stride;
      Real* d_query = dq.row(row) + h * dk;
      const auto score = [&](std::int64_t j) { return scale * dot(query, keys + j * dk, dk); };
      Real largest = -std::numeric_limits<Real>::infinity(), sum = 0;
      for (std::int64_t j = 0; j <= i; ++j) {
        if (shape.sees(i, j)) largest = std::max(largest, score(j));
      }
      for (std::int64_t j = 0; j <= i; ++j) {
        if (shape.sees(i, j)) sum += std::exp(score(j) - largest);
      }
      const Real mean = dot(d_out, out.row(row) + h * dv, dv);
      for (std::int64_t d = 0; d < dk; ++d) d_query[d] = 0;
      for (std::int64_t j = 0; j <= i; ++j) {
        if (!shape.sees(i, j)) continue;
        const Real weight = std::exp(score(j) - largest) / sum;
        const Real d_score = scale * weight * (dot(d_out, values + j * dv, dv) - mean);
        for (std::int64_t d = 0; d < dv; ++d) d_values[j * dv + d] += weight * d_out[d];
        for (std::int64_t d = 0; d < dk; ++d) {
          d_keys[j * dk + d] += d_score * query[d];
          d_query[d] += d_score * keys[j * dk + d];
        }
      }
    }
  }
}
}  // namespace reference

template <>
struct kernel_for<op::AttentionBackward, arch::scalar> {
  static constexpr std::size_t scratch_bytes(const AttentionShape&, std::int64_t) { return 0; }

  template <class Exec, class Real>
  static void run(Exec&, Scratch, const AttentionShape& shape, MatrixView<const std::type_identity_t<Real>> q,
                  MatrixView<const std::type_identity_t<Real>> out, MatrixView<const std::type_identity_t<Real>> dout,
                  std::span<const AttentionGradientSequence<std::type_identity_t<Real>>> sequences,
                  MatrixView<Real> dq) {
    for (const auto& s : sequences) reference::attention_backward<Real>(shape, q, out, dout, s, dq);
  }
};

namespace detail {

/// The vector version of op::AttentionBackward on xsimd architecture `A`.
///
/// The queries that read one key/value head are rows, token by token; a panel of them at a time meets all positions
/// that it sees. Scores lie with the rows in lanes, positions below each other: keys and values are read in place,
/// the softmax needs no operation across lanes, and only the panel's own queries and gradients are transposed. The
/// scores of all visible positions are kept, so that they and their exponentials are computed once; what follows goes
/// block by block of positions:
///
///     dP^T = v dout^T      dv += P^T dout      dS^T = P^T (dP^T - D)      dk += dS^T q      dq += dS k
///
/// The softmax's sums divide the panel's dout instead of every weight.
template <class A>
struct AttentionBackwardSimd {
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;
  using Sequence = AttentionGradientSequence<float>;

  static constexpr std::int64_t panel = 64;                                                  ///< rows
  static constexpr std::int64_t block = 56 / OuterProduct<A>::rows * OuterProduct<A>::rows;  ///< positions
  static_assert(panel % L == 0);

  static constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }
  static constexpr std::int64_t group(const AttentionShape& s) { return s.query_heads / s.kv_heads; }

  /// The most positions that the rows of a panel see together.
  static constexpr std::int64_t most_visible(const AttentionShape& s, std::int64_t longest_rows) {
    if (s.window == 0 || s.window >= longest_rows || s.pinned >= longest_rows) return longest_rows;
    return std::min(longest_rows, s.pinned + s.window + panel / group(s) + 2);
  }

  static constexpr std::int64_t key_stride(const AttentionShape& s) { return round_up(s.key_width, 16); }
  static constexpr std::int64_t value_stride(const AttentionShape& s) { return round_up(s.value_width, 16); }

  /// A thread's scratch.
  struct Workspace {
    float* queries;    ///< [panel, key_stride], scaled
    float* queries_t;  ///< [key_width, panel], scaled, in units of log2
    float* d_queries;  ///< [panel, key_stride]
    float* d_out;      ///< [panel, value_stride], divided by the softmax's sums
    float* d_out_t;    ///< [value_width, panel], the same
    float* d_scores;   ///< [block, panel]
    float* position;   ///< [panel]
    float* largest;    ///< [panel] largest scores, then one over the softmax's sums
    float* mean;       ///< [panel] D, divided by the softmax's sums
    float* weights;    ///< [visible, panel] scores, then their exponentials; last, since its size varies

    static constexpr std::int64_t floats(const AttentionShape& s, std::int64_t visible) {
      return panel * (2 * key_stride(s) + s.key_width + value_stride(s) + s.value_width + block + 3 + visible);
    }
    Workspace(const AttentionShape& s, float* at) {
      const auto take = [&](std::int64_t columns) {
        float* const p = at;
        at += columns * panel;
        return p;
      };
      queries = take(key_stride(s));
      queries_t = take(s.key_width);
      d_queries = take(key_stride(s));
      d_out = take(value_stride(s));
      d_out_t = take(s.value_width);
      d_scores = take(block);
      position = take(1);
      largest = take(1);
      mean = take(1);
      weights = at;
    }
  };
  static constexpr std::size_t scratch_bytes(const AttentionShape& s, std::int64_t longest_rows) {
    return aligned_size(static_cast<std::size_t>(Workspace::floats(s, most_visible(s, longest_rows))) * sizeof(float));
  }

  /// One sequence and one key/value head.
  struct Task {
    const AttentionShape& shape;
    const Sequence& sequence;
    std::int64_t head;
    MatrixView<const float> q, out, d_out;
    MatrixView<float> dq;

    /// Where row `i` of all panels' rows, token by token, starts in a matrix whose heads are `width` wide.
    template <class T>
    T* row(MatrixView<T> m, std::int64_t i, std::int64_t width) const {
      const std::int64_t r = group(shape);
      return m.row(sequence.first_row + i / r) + (head * r + i % r) * width;
    }
    const float* keys() const { return sequence.keys + head * sequence.key_head_stride; }
    const float* values() const { return sequence.values + head * sequence.value_head_stride; }
    float* d_keys() const { return sequence.d_keys + head * sequence.key_head_stride; }
    float* d_values() const { return sequence.d_values + head * sequence.value_head_stride; }
  };

  /// Rows [begin, begin + rows) of a task: tokens [first, last], in `vectors` vectors.
  struct Panel {
    std::int64_t begin, rows, first, last, vectors;

    Panel(const Task& t, std::int64_t begin_)
        : begin(begin_),
          rows(std::min(panel, t.sequence.rows * group(t.shape) - begin_)),
          first(begin_ / group(t.shape)),
          last((begin_ + rows - 1) / group(t.shape)),
          vectors((rows + L - 1) / L) {}

    /// Calls `use(start, count, slot)` for blocks of the positions that the rows see together, `slot` being the number
    /// of positions in the blocks before.
    template <class Use>
    void for_blocks(const AttentionShape& s, Use&& use) const {
      const std::int64_t low = s.window > 0 ? std::max<std::int64_t>(0, first - s.window) : 0;
      const std::int64_t pinned = std::min(s.pinned, last + 1);
      std::int64_t slot = 0;
      const auto range = [&](std::int64_t from, std::int64_t to) {
        const std::int64_t n = to - from, parts = (n + block - 1) / block;
        for (std::int64_t part = 0; part < parts; ++part) {
          const std::int64_t start = from + n * part / parts, count = from + n * (part + 1) / parts - start;
          use(start, count, slot);
          slot += count;
        }
      };
      if (low <= pinned) {
        range(0, last + 1);
      } else {
        range(0, pinned);
        range(low, last + 1);
      }
    }
  };

  // --- Passes over scores, positions below each other ----------------------------------------------------------------

  static constexpr int chunk = simd::registers<A> >= 32 ? 4 : 2;

  /// Calls `pass(number of vectors, first vector)` with numbers that are constants, over all `vectors`.
  template <class Pass>
  static void for_chunks(std::int64_t vectors, Pass&& pass) {
    std::int64_t v = 0;
    for (; v + chunk <= vectors; v += chunk) pass(std::integral_constant<int, chunk>{}, v);
    for (; v < vectors; ++v) pass(std::integral_constant<int, 1>{}, v);
  }

  /// Hides positions [start, start + count) from the rows that do not see them.
  static void mask(const AttentionShape& shape, const Panel& p, std::int64_t start, std::int64_t count,
                   const float* position, float* scores) {
    const V hidden(-std::numeric_limits<float>::infinity()), window(static_cast<float>(shape.window));
    for (std::int64_t k = 0; k < count; ++k) {
      const V j(static_cast<float>(start + k - p.first));
      const bool always = shape.window == 0 || start + k < shape.pinned;
      for (std::int64_t v = 0; v < p.vectors; ++v) {
        float* const at = scores + k * panel + v * L;
        const V distance = simd::load<A>(position + v * L) - j;
        V s = xsimd::select(distance >= simd::zero<A>(), simd::load<A>(at), hidden);
        if (!always) s = xsimd::select(distance <= window, s, hidden);
        simd::store<A>(at, s);
      }
    }
  }

  static void raise_largest(std::int64_t count, std::int64_t vectors, const float* scores, float* largest) {
    for_chunks(vectors, [&](auto n, std::int64_t first) {
      V most[n];
      unrolled<n>([&](auto v) { most[v] = simd::load<A>(largest + (first + v) * L); });
      for (std::int64_t k = 0; k < count; ++k) {
        const float* const at = scores + k * panel + first * L;
        unrolled<n>([&](auto v) { most[v] = simd::max<A>(most[v], simd::load<A>(at + v * L)); });
      }
      unrolled<n>([&](auto v) { simd::store<A>(largest + (first + v) * L, most[v]); });
    });
  }

  /// Scores become 2^(score - largest), `largest` one over their sums.
  static void softmax(std::int64_t count, std::int64_t vectors, float* scores, float* largest) {
    for_chunks(vectors, [&](auto n, std::int64_t first) {
      V most[n], sum[n];
      unrolled<n>([&](auto v) {
        most[v] = simd::load<A>(largest + (first + v) * L);
        sum[v] = simd::zero<A>();
      });
      for (std::int64_t k = 0; k < count; ++k) {
        float* const at = scores + k * panel + first * L;
        unrolled<n>([&](auto v) {
          const V w = simd::exp2_nonpositive<A>(simd::load<A>(at + v * L) - most[v]);
          simd::store<A>(at + v * L, w);
          sum[v] = sum[v] + w;
        });
      }
      unrolled<n>([&](auto v) { simd::store<A>(largest + (first + v) * L, V(1.0f) / sum[v]); });
    });
  }

  /// d_scores = weights * (d_scores - mean).
  static void score_gradients(std::int64_t count, std::int64_t vectors, const float* weights, const float* mean,
                              float* d_scores) {
    for_chunks(vectors, [&](auto n, std::int64_t first) {
      V m[n];
      unrolled<n>([&](auto v) { m[v] = simd::load<A>(mean + (first + v) * L); });
      for (std::int64_t k = 0; k < count; ++k) {
        const std::int64_t at = k * panel + first * L;
        unrolled<n>([&](auto v) {
          const V d = simd::load<A>(d_scores + at + v * L) - m[v];
          simd::store<A>(d_scores + at + v * L, simd::load<A>(weights + at + v * L) * d);
        });
      }
    });
  }

  // --- A panel -------------------------------------------------------------------------------------------------------

  /// to = from * factor for n elements; no element behind them is touched.
  static HYMBA_ALWAYS_INLINE void scaled(const float* from, float factor, std::int64_t n, float* to) {
    const V f(factor);
    std::int64_t i = 0;
    for (; i + L <= n; i += L) simd::store<A>(to + i, simd::load<A>(from + i) * f);
    if (i < n) simd::store_partial<A>(to + i, simd::load_partial<A>(from + i, n - i) * f, n - i);
  }
  static HYMBA_ALWAYS_INLINE float dot(const float* a, const float* b, std::int64_t n) {
    V sum = simd::zero<A>();
    std::int64_t i = 0;
    for (; i + L <= n; i += L) sum = simd::fma<A>(simd::load<A>(a + i), simd::load<A>(b + i), sum);
    if (i < n) sum = simd::fma<A>(simd::load_partial<A>(a + i, n - i), simd::load_partial<A>(b + i, n - i), sum);
    return simd::sum<A>(sum);
  }
  /// to[d][row] = factor * from[row][d]; the last vector's rows past the end are zero.
  static void transpose(const Panel& p, const float* from, std::int64_t stride, std::int64_t width, float factor,
                        float* to) {
    for (std::int64_t row = 0; row < p.rows; ++row) {
      for (std::int64_t d = 0; d < width; ++d) to[d * panel + row] = factor * from[row * stride + d];
    }
    if (p.rows == p.vectors * L) return;
    for (std::int64_t d = 0; d < width; ++d) std::fill(to + d * panel + p.rows, to + d * panel + p.vectors * L, 0.0f);
  }

  static void run_panel(const Task& t, const Panel& p, const Workspace& w) {
    const AttentionShape& shape = t.shape;
    const std::int64_t dk = shape.key_width, dv = shape.value_width, r = group(shape), columns = p.vectors * L;
    const std::int64_t qs = key_stride(shape), vs = value_stride(shape);

    for (std::int64_t row = 0; row < p.rows; ++row) {
      scaled(t.row(t.q, p.begin + row, dk), shape.scale, dk, w.queries + row * qs);
    }
    transpose(p, w.queries, qs, dk, 1.44269504f, w.queries_t);
    for (std::int64_t row = 0; row < columns; ++row) {
      w.position[row] = static_cast<float>((p.begin + std::min(row, p.rows - 1)) / r - p.first);
      w.largest[row] = std::numeric_limits<float>::lowest();
    }

    std::int64_t visible = 0;
    p.for_blocks(shape, [&](std::int64_t start, std::int64_t count, std::int64_t slot) {
      float* const scores = w.weights + slot * panel;
      block_product<A>(count, columns, dk, t.keys() + start * dk, dk, 1, w.queries_t, panel, scores, panel, false);
      const bool old = start + count - 1 <= p.first;
      const bool near = shape.window == 0 || start >= p.last - shape.window || start + count <= shape.pinned;
      if (!old || !near) mask(shape, p, start, count, w.position, scores);
      raise_largest(count, p.vectors, scores, w.largest);
      visible = slot + count;
    });
    softmax(visible, p.vectors, w.weights, w.largest);

    for (std::int64_t row = 0; row < p.rows; ++row) {
      float* const to = w.d_out + row * vs;
      scaled(t.row(t.d_out, p.begin + row, dv), w.largest[row], dv, to);
      w.mean[row] = dot(to, t.row(t.out, p.begin + row, dv), dv);
    }
    std::fill(w.mean + p.rows, w.mean + columns, 0.0f);
    transpose(p, w.d_out, vs, dv, 1.0f, w.d_out_t);

    p.for_blocks(shape, [&](std::int64_t start, std::int64_t count, std::int64_t slot) {
      const float* const weights = w.weights + slot * panel;
      const float *const keys = t.keys() + start * dk, *const values = t.values() + start * dv;
      block_product<A>(count, columns, dv, values, dv, 1, w.d_out_t, panel, w.d_scores, panel, false);
      block_product<A>(count, dv, p.rows, weights, panel, 1, w.d_out, vs, t.d_values() + start * dv, dv, true);
      score_gradients(count, p.vectors, weights, w.mean, w.d_scores);
      block_product<A>(count, dk, p.rows, w.d_scores, panel, 1, w.queries, qs, t.d_keys() + start * dk, dk, true);
      block_product<A>(p.rows, dk, count, w.d_scores, 1, panel, keys, dk, w.d_queries, qs, slot > 0);
    });
    for (std::int64_t row = 0; row < p.rows; ++row) {
      scaled(w.d_queries + row * qs, shape.scale, dk, t.row(t.dq, p.begin + row, dk));
    }
  }

  // --- Distribution --------------------------------------------------------------------------------------------------

  /// How many positions the tokens of a sequence see, added up.
  static std::int64_t pairs(const AttentionShape& s, std::int64_t rows) {
    const std::int64_t most =
        s.window > 0 ? std::min(rows, std::min(rows, s.window) + 1 + std::min(rows, s.pinned)) : rows;
    return most * (most + 1) / 2 + (rows - most) * most;
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  MatrixView<const float> out, MatrixView<const float> d_out, std::span<const Sequence> sequences,
                  MatrixView<float> dq) {
    const std::int64_t heads = shape.kv_heads, tasks = static_cast<std::int64_t>(sequences.size()) * heads;
    std::int64_t total = 0;
    for (const Sequence& s : sequences) total += heads * pairs(shape, s.rows);
    if (total == 0) return;
    const std::int64_t work = total * group(shape) * (3 * shape.key_width + 2 * shape.value_width);
    const std::int64_t parts = std::min({static_cast<std::int64_t>(exec.threads()), tasks, 1 + work / (8 * task_work)});
    exec.parallel_for(parts, [&](std::int64_t part, int thread) noexcept {
      const Workspace w(shape, scratch.of<float>(thread));
      // Tasks in order, in parts of about the same work: a task is where its middle lies.
      const auto all = static_cast<double>(total);
      std::int64_t before = 0;
      for (const Sequence& s : sequences) {
        const std::int64_t cost = pairs(shape, s.rows);
        for (std::int64_t head = 0; head < heads; ++head, before += cost) {
          const double middle = (static_cast<double>(before) + 0.5 * static_cast<double>(cost)) / all;
          if (std::min(parts - 1, static_cast<std::int64_t>(middle * static_cast<double>(parts))) != part) continue;
          const Task task{shape, s, head, q, out, d_out, dq};
          for (std::int64_t i = 0; i < s.rows * group(shape); i += panel) run_panel(task, Panel(task, i), w);
        }
      }
    });
  }
};

}  // namespace detail

template <class A>
struct kernel_for<op::AttentionBackward, arch::simd<A>> {
  static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t longest_rows) {
    return detail::AttentionBackwardSimd<A>::scratch_bytes(shape, longest_rows);
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  MatrixView<const float> out, MatrixView<const float> dout,
                  std::span<const AttentionGradientSequence<float>> sequences, MatrixView<float> dq) {
    detail::AttentionBackwardSimd<A>::run(exec, scratch, shape, q, out, dout, sequences, dq);
  }
};

HYMBA_NAMESPACE_END
