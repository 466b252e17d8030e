// SPDX-License-Identifier: Apache-2.0
//
// What every blocked version of op::Attention shares: tasks, spans, who computes which, and how spans are merged. The
// sums over one span are a part of their own (`Part` below), one per kind of hardware unit.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/attention_shape.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/step_shares.hpp>
#include <hymba/kernels/vector_math.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

HYMBA_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::int64_t attention_span = 512;  ///< positions per span

/// The largest score of a row that sees nothing.
inline constexpr float attention_lowest = std::numeric_limits<float>::lowest();

constexpr std::int64_t attention_group(const AttentionShape& s) { return s.query_heads / s.kv_heads; }
constexpr std::int64_t attention_value_stride(const AttentionShape& s) { return round_up(s.value_width, 16); }

/// What the tokens at positions [first, last] see together: [0, pinned) and [low, last].
struct AttentionVisible {
  std::int64_t first, last, low, pinned;
  std::int64_t pinned_spans, window_span;

  AttentionVisible(const AttentionShape& s, std::int64_t first_, std::int64_t last_)
      : first(first_),
        last(last_),
        low(s.window > 0 ? std::max<std::int64_t>(0, first_ - s.window) : 0),
        pinned(std::min(s.pinned, last_ + 1)),
        pinned_spans((pinned + attention_span - 1) / attention_span),
        window_span(std::max(pinned_spans, low / attention_span)) {}
  /// Spans with something visible, in order.
  std::int64_t spans() const {
    return pinned_spans + std::max<std::int64_t>(0, last / attention_span - window_span + 1);
  }
  std::int64_t span_start(std::int64_t i) const {
    return (i < pinned_spans ? i : window_span + i - pinned_spans) * attention_span;
  }
  /// The start of the span behind that at `start`, or -1.
  std::int64_t next_span(std::int64_t start) const {
    std::int64_t n = start / attention_span + 1;
    if (n >= pinned_spans) n = std::max(n, window_span);
    return n * attention_span <= last ? n * attention_span : -1;
  }
  /// Shrinks [a, c) to the positions between the first and the last visible one.
  void clip(std::int64_t& a, std::int64_t& c) const {
    c = std::min(c, last + 1);
    if (c <= low) {
      c = std::min(c, pinned);
    } else if (a < low && a >= pinned) {
      a = low;
    }
  }
};

/// Some tokens of one sequence and all query heads of one key/value head.
template <class E>
struct AttentionTask {
  const AttentionShape& shape;
  const AttentionSequence<E>& sequence;
  std::int64_t head, token, tokens;

  std::int64_t rows() const { return tokens * attention_group(shape); }
  AttentionVisible visible() const {
    const std::int64_t first = sequence.first_position + token;
    return AttentionVisible(shape, first, first + tokens - 1);
  }

  /// Rows of the task's head from `position` on, which `s` holds.
  const E* keys(const KeyValueSegment<E>& s, std::int64_t position) const {
    return s.keys + head * s.key_head_stride + (position - s.first_position) * shape.key_width;
  }
  const E* values(const KeyValueSegment<E>& s, std::int64_t position) const {
    return s.values + head * s.value_head_stride + (position - s.first_position) * shape.value_width;
  }
  /// Their scales, where rows of E have them.
  const RowScale* key_scales(const KeyValueSegment<E>& s, std::int64_t position) const {
    return s.key_scales + head * s.scale_head_stride + (position - s.first_position);
  }
  const RowScale* value_scales(const KeyValueSegment<E>& s, std::int64_t position) const {
    return s.value_scales + head * s.scale_head_stride + (position - s.first_position);
  }
};

/// Sums over some positions for the rows of a task, relative to the largest score: enough to merge them with others.
struct AttentionPartial {
  float* largest = nullptr;  ///< [rows] in units of log2
  float* sum = nullptr;      ///< [rows]
  float* values = nullptr;   ///< [rows, attention_value_stride]
};

/// Hands out a thread's scratch; without a base it only counts.
struct AttentionMemory {
  std::byte* base = nullptr;
  std::size_t used = 0;

  template <class T>
  constexpr T* take(std::int64_t count) {
    const std::size_t at = used;
    used += aligned_size(static_cast<std::size_t>(count) * sizeof(T));
    return base == nullptr ? nullptr : reinterpret_cast<T*>(base + at);
  }
  constexpr AttentionPartial partial(std::int64_t rows, std::int64_t stride) {
    AttentionPartial p;
    p.largest = take<float>(rows);
    p.sum = take<float>(rows);
    p.values = take<float>(rows * stride);
    return p;
  }
};

/// op::Attention with the sums of a span from `Part` and vectors of xsimd architecture `A`.
///
/// A task has a few tokens of one sequence and all query heads of one key/value head: its rows, token by token.
///
/// Positions are cut in spans, at multiples of their size. A span is summed on its own, relative to its own largest
/// score, and spans are then merged in order: decoding can hand spans to different threads and still add the same
/// numbers in the same order as a prefill that takes them one after the other. Hidden positions weigh exactly zero, so
/// what other rows of a task see does not matter either.
///
/// A part has
///
///     static constexpr std::int64_t panel;      // rows are padded to a multiple of it, itself one of 16
///     static constexpr std::int64_t task_rows;  // rows of a task at most
///     struct Workspace { constexpr Workspace(const AttentionShape&, std::int64_t rows, AttentionMemory&); };
///     // Once per task.
///     template <class E>
///     static void prepare(const AttentionTask<E>&, MatrixView<const float> q, const Workspace&);
///     // The sums over what the task's rows see of the span that starts at `start`. `to` has room for padded rows.
///     template <class E>
///     static void attend(const AttentionTask<E>&, const Workspace&, const AttentionVisible&, std::int64_t start,
///                        const AttentionPartial& to);
template <class A, class Part>
struct AttentionEngine {
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;

  static constexpr std::int64_t slots = 64;  ///< span results per thread
  static_assert(Part::panel % 16 == 0 && 16 % L == 0);

  /// A thread's scratch. Carved the same way to measure and to use.
  struct Workspace {
    typename Part::Workspace part;
    float* factor;  ///< [2][rows]
    AttentionPartial running, next;
    std::int64_t slot_rows, slot_stride;
    std::size_t slot_bytes;
    std::byte* slot_memory;

    constexpr Workspace(const AttentionShape& s, std::int64_t rows, AttentionMemory& memory)
        : part(s, rows, memory),
          factor(memory.take<float>(2 * rows)),
          running(memory.partial(rows, attention_value_stride(s))),
          next(memory.partial(rows, attention_value_stride(s))),
          slot_rows(attention_group(s)),
          slot_stride(attention_value_stride(s)),
          slot_bytes(bytes_of_slot(slot_rows, slot_stride)),
          slot_memory(memory.take<std::byte>(slots * static_cast<std::int64_t>(slot_bytes))) {}
    static constexpr std::size_t bytes_of_slot(std::int64_t rows, std::int64_t stride) {
      AttentionMemory counter;
      counter.partial(rows, stride);
      return counter.used;
    }
    AttentionPartial slot(std::int64_t i) const {
      return AttentionMemory{slot_memory + static_cast<std::size_t>(i) * slot_bytes}.partial(slot_rows, slot_stride);
    }
  };

  static constexpr std::int64_t max_tokens(const AttentionShape& s) {
    return std::max<std::int64_t>(1, Part::task_rows / attention_group(s));
  }
  /// Enough for steps of at most `max_rows` tokens.
  static constexpr std::size_t scratch_bytes(const AttentionShape& s, std::int64_t max_rows) {
    const std::int64_t tokens = std::min(std::max<std::int64_t>(max_rows, 1), max_tokens(s));
    AttentionMemory counter;
    [[maybe_unused]] const Workspace w(s, round_up(tokens * attention_group(s), Part::panel), counter);
    return counter.used;
  }
  static Workspace workspace(const AttentionShape& s, std::int64_t rows, Scratch scratch, int thread) {
    AttentionMemory memory{scratch.of<std::byte>(thread)};
    return Workspace(s, rows, memory);
  }

  /// Adds `next` to `running`.
  static void merge(std::int64_t rows, std::int64_t stride, const AttentionPartial& running,
                    const AttentionPartial& next, float* factor) {
    float* const keep = factor;
    float* const add = factor + round_up(rows, L);
    for (std::int64_t v = 0; v < rows; v += L) {
      const V a = load_rows(running.largest, v, rows), b = load_rows(next.largest, v, rows);
      const V most = simd::max<A>(a, b);
      const V shrink_a = simd::exp2_nonpositive<A>(a - most), shrink_b = simd::exp2_nonpositive<A>(b - most);
      const V sum = simd::fma<A>(load_rows(next.sum, v, rows), shrink_b, load_rows(running.sum, v, rows) * shrink_a);
      const std::int64_t here = std::min(L, rows - v);
      simd::store_partial<A>(running.largest + v, most, here);
      simd::store_partial<A>(running.sum + v, sum, here);
      simd::store<A>(keep + v, shrink_a);
      simd::store<A>(add + v, shrink_b);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const V ka(keep[row]), kb(add[row]);
      float* const to = running.values + row * stride;
      const float* const from = next.values + row * stride;
      for (std::int64_t d = 0; d < stride; d += L) {
        simd::store<A>(to + d, simd::fma<A>(simd::load<A>(from + d), kb, simd::load<A>(to + d) * ka));
      }
    }
  }
  static HYMBA_ALWAYS_INLINE V load_rows(const float* p, std::int64_t v, std::int64_t rows) {
    return simd::load_partial<A>(p + v, std::min(L, rows - v));
  }

  /// Divides by the sums and writes the task's rows of the output.
  template <class E>
  static void finish(const AttentionTask<E>& t, const AttentionPartial& from, MatrixView<float> out) {
    const std::int64_t r = attention_group(t.shape), width = t.shape.value_width;
    const std::int64_t stride = attention_value_stride(t.shape);
    for (std::int64_t row = 0; row < t.rows(); ++row) {
      const V inverse(1.0f / from.sum[row]);
      const float* const values = from.values + row * stride;
      float* const to = out.row(t.sequence.first_row + t.token + row / r) + (t.head * r + row % r) * width;
      std::int64_t d = 0;
      for (; d + L <= width; d += L) simd::store<A>(to + d, simd::load<A>(values + d) * inverse);
      if (d < width) simd::store_partial<A>(to + d, simd::load<A>(values + d) * inverse, width - d);
    }
  }

  /// A whole task, span after span.
  template <class E>
  static void run_task(const AttentionTask<E>& t, const Workspace& w, MatrixView<const float> q,
                       MatrixView<float> out) {
    Part::prepare(t, q, w.part);
    const AttentionVisible visible = t.visible();
    Part::attend(t, w.part, visible, visible.span_start(0), w.running);
    for (std::int64_t i = 1; i < visible.spans(); ++i) {
      Part::attend(t, w.part, visible, visible.span_start(i), w.next);
      merge(t.rows(), attention_value_stride(t.shape), w.running, w.next, w.factor);
    }
    finish(t, w.running, out);
  }

  // --- Distribution --------------------------------------------------------------------------------------------------

  /// The task with number `index` when every task has up to `tokens` tokens; sequences with `skip_rows` rows have none.
  template <class E>
  static AttentionTask<E> task_at(const AttentionShape& shape, std::span<const AttentionSequence<E>> sequences,
                                  std::int64_t tokens, std::int64_t skip_rows, std::int64_t index) {
    for (const AttentionSequence<E>& s : sequences) {
      if (s.rows == skip_rows) continue;
      const std::int64_t blocks = (s.rows + tokens - 1) / tokens;
      if (index >= blocks * shape.kv_heads) {
        index -= blocks * shape.kv_heads;
        continue;
      }
      // Early tokens see less than late ones: one from each end in turn gives all parts of the list the same work.
      const std::int64_t i = index % blocks, b = i % 2 == 0 ? i / 2 : blocks - 1 - i / 2;
      return {shape, s, index / blocks, b * tokens, std::min(tokens, s.rows - b * tokens)};
    }
    return {shape, sequences[0], 0, 0, 0};  // not reached: `index` is below the number of tasks
  }

  template <class E, class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  std::span<const AttentionSequence<E>> sequences, MatrixView<float> out) {
    const std::int64_t threads = exec.threads(), r = attention_group(shape), heads = shape.kv_heads;
    // Work: rows times what they see, and how many spans the sequences of one row have together.
    std::int64_t work = 0, single = 0, items = 0, most_rows = 0;
    for (const AttentionSequence<E>& s : sequences) {
      if (s.rows == 0) continue;
      const AttentionVisible v(shape, s.first_position, s.first_position + s.rows - 1);
      work += s.rows * (v.last + 1 - v.low + v.pinned) * shape.query_heads * (shape.key_width + shape.value_width);
      most_rows = std::max(most_rows, s.rows);
      if (s.rows == 1) {
        single += heads;
        items += heads * v.spans();
      }
    }
    if (work == 0) return;
    const bool small = work < 8 * task_work;
    const bool split = !small && threads > 1 && items > single && single < 8 * threads;
    const std::int64_t skip_rows = split ? 1 : 0;

    const auto count_tasks = [&](std::int64_t tokens) {
      std::int64_t n = 0;
      for (const AttentionSequence<E>& s : sequences) {
        if (s.rows != skip_rows) n += (s.rows + tokens - 1) / tokens * heads;
      }
      return n;
    };
    std::int64_t tokens = std::min(most_rows, max_tokens(shape));
    while (tokens > 1 && tokens * r > Part::panel && count_tasks(tokens) < 3 * threads) tokens = (tokens + 1) / 2;
    const std::int64_t tasks = count_tasks(tokens);
    const std::int64_t room = round_up(tokens * r, Part::panel);

    const auto run_one = [&](std::int64_t i, int thread) {
      run_task(task_at(shape, sequences, tokens, skip_rows, i), workspace(shape, room, scratch, thread), q, out);
    };
    for_steps(exec, small ? 1 : threads, tasks, 1,
              [&](std::int64_t i, std::int64_t, int thread) { run_one(i, thread); });
    if (split) run_split(exec, scratch, shape, q, sequences, room, items, out);
  }

  /// Sequences of one row, span by span on all threads, merged by the caller in waves as large as the slots.
  template <class E, class Exec>
  static void run_split(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                        std::span<const AttentionSequence<E>> sequences, std::int64_t room, std::int64_t items,
                        MatrixView<float> out) {
    struct Item {
      AttentionTask<E> task;
      std::int64_t span, spans;
    };
    const auto item_at = [&](std::int64_t index) -> Item {
      for (const AttentionSequence<E>& s : sequences) {
        if (s.rows != 1) continue;
        const std::int64_t spans = AttentionVisible(shape, s.first_position, s.first_position).spans();
        if (index < spans * shape.kv_heads) return {{shape, s, index / spans, 0, 1}, index % spans, spans};
        index -= spans * shape.kv_heads;
      }
      return {{shape, sequences[0], 0, 0, 0}, 0, 0};  // not reached: `index` is below `items`
    };
    const std::int64_t r = attention_group(shape), stride = attention_value_stride(shape);
    const auto slot = [&](std::int64_t i) {
      return workspace(shape, room, scratch, static_cast<int>(i / slots)).slot(i % slots);
    };
    const Workspace mine = workspace(shape, room, scratch, 0);
    const std::int64_t wave = slots * exec.threads();
    for (std::int64_t base = 0; base < items; base += wave) {
      const std::int64_t count = std::min(wave, items - base);
      for_steps(exec, exec.threads(), count, 1, [&](std::int64_t i, std::int64_t, int thread) {
        const Item item = item_at(base + i);
        const Workspace w = workspace(shape, room, scratch, thread);
        Part::prepare(item.task, q, w.part);
        const AttentionVisible visible = item.task.visible();
        Part::attend(item.task, w.part, visible, visible.span_start(item.span), w.next);
        copy(w.next, r, stride, slot(i));
      });
      // A task too: there denormal numbers count as zero, as where whole tasks are merged.
      exec.parallel_for(1, [&](std::int64_t, int) noexcept {
        for (std::int64_t i = 0; i < count; ++i) {
          const Item item = item_at(base + i);
          if (item.span == 0) {
            copy(slot(i), r, stride, mine.running);
          } else {
            merge(r, stride, mine.running, slot(i), mine.factor);
          }
          if (item.span + 1 == item.spans) finish(item.task, mine.running, out);
        }
      });
    }
  }
  static void copy(const AttentionPartial& from, std::int64_t rows, std::int64_t stride, const AttentionPartial& to) {
    std::copy_n(from.largest, rows, to.largest);
    std::copy_n(from.sum, rows, to.sum);
    std::copy_n(from.values, rows * stride, to.values);
  }
};

}  // namespace detail

HYMBA_NAMESPACE_END
