// SPDX-License-Identifier: Apache-2.0
//
// How the steps of a region go to its tasks: each has a share of its own, and whoever is done helps the others.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/memory_to_read.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Steps [0, n) of a parallel region, in contiguous shares, nearly equal.
///
/// Two threads are hardly ever equally fast: another process, or another guest of the machine, has their core or its
/// memory for a while, and a decoded token is some 220 products at whose end the faster waits for the slower. So a task
/// takes its share bit by bit from the front, and then, while others are not done, bits of theirs from the back. A share
/// is still read from end to end by one thread, but for what is taken at the end: sharing out all of it bit by bit would
/// be streams that begin anew.
///
/// Who computes a step is chance, so that steps must not depend on it, nor on each other. Works with any executor: a
/// task that runs late, or after others, finds less to do.
class StepShares {
 public:
  /// @pre tasks >= 1, 0 <= steps < 2^32. @param bit steps taken at once, at least 1.
  StepShares(std::int64_t tasks, std::int64_t steps, std::int64_t bit) noexcept
      : tasks_(tasks),
        shares_(std::min(tasks, most)),
        steps_(steps),
        bit_(std::max<std::int64_t>(bit, 1)) {
    for (std::int64_t i = 0; i < shares_; ++i) {
      const BlockRange share = share_at(i);
      rest(i).store(packed(share.first, share.last), std::memory_order_relaxed);
    }
  }
  StepShares(const StepShares&) = delete;
  StepShares& operator=(const StepShares&) = delete;

  std::int64_t tasks() const noexcept { return tasks_; }

  /// Task `task` of the region: calls body(share, steps) with ranges of steps, and the share that each is in, until none
  /// is left of any share.
  template <class Body>
  void run(std::int64_t task, Body&& body) noexcept {
    const std::int64_t own = task * shares_ / tasks_;
    for (std::int64_t i = 0; i < shares_; ++i) {
      const std::int64_t other = (own + i) % shares_;
      const BlockRange share = share_at(other);
      for (BlockRange steps{}; take(rest(other), i == 0, steps);) body(share, steps);
    }
  }

 private:
  // More tasks than that share shares: of one, all take from the front.
  static constexpr std::int64_t most = 32;

  BlockRange share_at(std::int64_t i) const noexcept {
    return {steps_ * i / shares_, steps_ * (i + 1) / shares_};
  }

  // What is left of a share in one word: two could be seen one before and one after a change.
  static constexpr std::uint64_t packed(std::int64_t first, std::int64_t last) noexcept {
    return static_cast<std::uint64_t>(last) << 32 | static_cast<std::uint64_t>(first);
  }
  // No memory hangs on the order of these words: what steps read and write is the region's affair.
  bool take(std::atomic<std::uint64_t>& rest, bool front, BlockRange& steps) const noexcept {
    std::uint64_t now = rest.load(std::memory_order_relaxed);
    for (;;) {
      const auto first = static_cast<std::int64_t>(now & 0xffffffffu), last = static_cast<std::int64_t>(now >> 32);
      if (first >= last) return false;
      const std::int64_t n = std::min(bit_, last - first);
      const std::uint64_t then = front ? packed(first + n, last) : packed(first, last - n);
      if (rest.compare_exchange_weak(now, then, std::memory_order_relaxed)) {
        steps = front ? BlockRange{first, first + n} : BlockRange{last - n, last};
        return true;
      }
    }
  }

  struct alignas(128) Rest {  // two lines: some processors fetch them in pairs
    std::atomic<std::uint64_t> word{0};
  };
  std::atomic<std::uint64_t>& rest(std::int64_t share) noexcept { return rests_[share].word; }

  std::int64_t tasks_, shares_, steps_, bit_;
  Rest rests_[most];
};

/// Runs body(first, last, thread) on all of [0, n), in ranges of up to `bit`, by up to `tasks` tasks.
template <class Exec, class Body>
void for_steps(Exec& exec, std::int64_t tasks, std::int64_t n, std::int64_t bit, Body&& body) {
  if (n <= 0) return;
  StepShares shares(std::clamp<std::int64_t>(tasks, 1, n), n, bit);
  exec.parallel_for(shares.tasks(), [&](std::int64_t task, int thread) noexcept {
    shares.run(task, [&](BlockRange, BlockRange steps) { body(steps.first, steps.last, thread); });
  });
}

/// Work below which a task is not worth a thread, counted in simple operations on one float each: a few microseconds.
inline constexpr std::int64_t task_work = 32768;

/// Runs body(first, last, thread) on all of [0, n), in ranges that start at multiples of `unit`; `work` is the work of
/// one element. A small job stays on the caller; else each thread has about eight ranges, that the last to be done are
/// not waited for.
template <class Exec, class Body>
void for_parts(Exec& exec, std::int64_t n, std::int64_t unit, std::int64_t work, Body&& body) {
  if (n <= 0) return;
  const std::int64_t units = units_of(n, unit), worth = std::max<std::int64_t>(1, n * work / task_work);
  const std::int64_t tasks = std::min({units, worth, static_cast<std::int64_t>(exec.threads())});
  for_steps(exec, tasks, units, units_of(units, std::min(worth, 8 * tasks)),
            [&](std::int64_t first, std::int64_t last, int thread) {
              body(first * unit, std::min(n, last * unit), thread);
            });
}

/// Weights that are taken at once where they pass once: read in a few microseconds, long enough to take no notice of
/// being handed out, short enough to wait for.
inline constexpr std::int64_t bytes_at_once = 48 << 10;

/// The rows of weights that few tokens go past: every share in pieces that are read side by side (see RowPieces).
class RowShares {
 public:
  /// @param row_bytes of a row, with those that lie between it and the next.
  RowShares(std::int64_t tasks, std::int64_t rows, std::int64_t pieces, std::int64_t step, std::int64_t row_bytes) noexcept
      : rows_(rows),
        pieces_(pieces),
        step_(step),
        shares_(std::clamp<std::int64_t>(tasks, 1, units_of(rows, pieces * step)), units_of(rows, pieces * step),
                bytes_at_once / std::max<std::int64_t>(1, pieces * step * row_bytes)) {}

  std::int64_t tasks() const noexcept { return shares_.tasks(); }

  /// As StepShares: calls body(pieces, first, last), which computes rows [first, last) of each piece.
  template <class Body>
  void run(std::int64_t task, Body&& body) noexcept {
    shares_.run(task, [&](BlockRange share, BlockRange steps) {
      const std::int64_t unit = pieces_ * step_;
      const RowPieces pieces(share.first * unit, std::min(share.last * unit, rows_), pieces_, step_);
      body(pieces, (steps.first - share.first) * step_, (steps.last - share.first) * step_);
    });
  }

 private:
  std::int64_t rows_, pieces_, step_;
  StepShares shares_;
};

}  // namespace detail

HYMBA_NAMESPACE_END
