// SPDX-License-Identifier: Apache-2.0
//
// Steps shared out: each one once, whoever runs the tasks, in whatever order; a task's own from the front, others' from
// the back; and nobody waits for a task that is held up with more than what it has begun.
#include "test_executor.hpp"

#include <hymba/exec/team.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

using namespace hymba;
using namespace hymba::detail;

namespace {

constexpr std::int64_t task_counts[] = {1, 2, 3, 7, 31, 32, 33, 40, 100};
constexpr std::int64_t step_counts[] = {0, 1, 2, 5, 32, 33, 1000};
constexpr std::int64_t bits[] = {0, 1, 3, 7, 5000};

/// How often each step was run, and whether ranges were as promised.
struct Count {
  explicit Count(std::int64_t steps) : times(static_cast<std::size_t>(steps)) {}
  void add(BlockRange share, BlockRange range, std::int64_t bit) {
    const auto steps = static_cast<std::int64_t>(times.size());
    if (range.first >= range.last || range.last - range.first > std::max<std::int64_t>(bit, 1)) fine = false;
    if (share.first > range.first || range.last > share.last || share.first < 0 || share.last > steps) {
      fine = false;
      return;
    }
    for (std::int64_t i = range.first; i < range.last; ++i) ++times[static_cast<std::size_t>(i)];
  }
  bool each_once() const {
    return fine && std::all_of(times.begin(), times.end(), [](const auto& n) { return n == 1; });
  }
  std::vector<std::atomic<int>> times;
  std::atomic<bool> fine{true};
};

template <class E>
bool each_step_once(const E& exec, std::int64_t tasks, std::int64_t steps, std::int64_t bit) {
  Count count(steps);
  StepShares shares(tasks, steps, bit);
  exec.parallel_for(tasks, [&](std::int64_t task, int) noexcept {
    shares.run(task, [&](BlockRange share, BlockRange range) { count.add(share, range, bit); });
  });
  return count.each_once();
}

}  // namespace

TEST_CASE("Every step is run once, by tasks at the same time") {
  for (int threads = 1; threads <= 8; ++threads) {
    const hymba_test::TestExecutor exec(threads);
    const Team team(threads);
    for (const std::int64_t tasks : task_counts) {
      for (const std::int64_t steps : step_counts) {
        for (const std::int64_t bit : bits) {
          CAPTURE(threads);
          CAPTURE(tasks);
          CAPTURE(steps);
          CAPTURE(bit);
          CHECK(each_step_once(exec, tasks, steps, bit));
          CHECK(each_step_once(team, tasks, steps, bit));
        }
      }
    }
  }
}

TEST_CASE("One task alone does all: its own share from the front, the others' from the back; later ones find nothing") {
  for (const std::int64_t tasks : task_counts) {
    for (const std::int64_t task : {std::int64_t{0}, tasks / 2, tasks - 1}) {
      CAPTURE(tasks);
      CAPTURE(task);
      constexpr std::int64_t steps = 500, bit = 3;
      Count count(steps);
      StepShares shares(tasks, steps, bit);
      bool own = true, ordered = true;
      BlockRange mine{-1, -1};
      std::int64_t expected = -1;
      shares.run(task, [&](BlockRange share, BlockRange range) {
        count.add(share, range, bit);
        if (mine.first < 0) mine = share;
        if (own && share.first != mine.first) own = false;
        if (own) {
          ordered = ordered && range.first == (expected < 0 ? share.first : expected);
          expected = range.last;
        } else {
          // Another share begins at its end, and goes on where the last range began.
          ordered = ordered && (range.last == share.last || range.last == expected);
          expected = range.first;
        }
      });
      CHECK(ordered);
      CHECK(count.each_once());
      CHECK(mine.first <= steps * task / tasks);
      CHECK(mine.last > steps * task / tasks);
      for (std::int64_t other = 0; other < tasks; ++other) shares.run(other, [&](BlockRange, BlockRange) { CHECK(false); });
    }
  }
}

TEST_CASE("A task that is held up keeps what it has begun, and others do the rest") {
  constexpr std::int64_t steps = 64, bit = 2;
  const Team team(2);
  StepShares shares(2, steps, bit);
  std::atomic<std::int64_t> done{0};
  std::atomic<bool> in_time{true};
  team.parallel_for(2, [&](std::int64_t task, int) noexcept {
    bool first = true;
    shares.run(task, [&](BlockRange, BlockRange range) {
      if (task == 1 && first) {
        const auto start = std::chrono::steady_clock::now();
        while (done < steps - (range.last - range.first)) {
          std::this_thread::yield();
          if (std::chrono::steady_clock::now() - start > std::chrono::seconds(60)) {
            in_time = false;
            break;
          }
        }
      }
      first = false;
      done += range.last - range.first;
    });
  });
  CHECK(done == steps);
  CHECK(in_time);
}

TEST_CASE("for_steps and for_parts run each element once, at multiples of the unit") {
  for (int threads = 1; threads <= 8; ++threads) {
    const hymba_test::TestExecutor exec(threads);
    for (const std::int64_t n : {0, 1, 15, 16, 17, 100, 1000}) {
      for (const std::int64_t unit : {1, 16}) {
        for (const std::int64_t work : {std::int64_t{1}, task_work / 16, task_work}) {
          CAPTURE(threads);
          CAPTURE(n);
          CAPTURE(unit);
          CAPTURE(work);
          Count parts(n), ranges(n);
          std::atomic<bool> units{true};
          for_parts(exec, n, unit, work, [&](std::int64_t first, std::int64_t last, int thread) {
            if (first % unit != 0 || (last % unit != 0 && last != n)) units = false;
            if (thread < 0 || thread >= threads) units = false;
            parts.add({0, n}, {first, last}, n);
          });
          for_steps(exec, threads, n, unit, [&](std::int64_t first, std::int64_t last, int) {
            ranges.add({0, n}, {first, last}, unit);
          });
          CHECK(units);
          CHECK(parts.each_once());
          CHECK(ranges.each_once());
        }
      }
    }
  }
}

TEST_CASE("Rows in pieces: each row once, whatever the sizes") {
  for (const int threads : {1, 2, 3, 8}) {
    const hymba_test::TestExecutor exec(threads);
    for (std::int64_t rows = 1; rows <= 140; ++rows) {
      for (const std::int64_t pieces : {1, 4}) {
        for (const std::int64_t step : {1, 4}) {
          for (const std::int64_t row_bytes : {0, 64, 5504, 1 << 20}) {
            Count count(rows);
            std::atomic<bool> apart{true};
            RowShares shares(threads, rows, pieces, step, row_bytes);
            CHECK(shares.tasks() <= threads);
            exec.parallel_for(shares.tasks(), [&](std::int64_t task, int) noexcept {
              shares.run(task, [&](const RowPieces& p, std::int64_t first, std::int64_t last) {
                if (first % step != 0 || last % step != 0 || first >= last || last > p.length) apart = false;
                for (std::int64_t i = first; i < last; ++i) {
                  for (std::int64_t piece = 0; piece < pieces; ++piece) {
                    if (!p.has(piece, i)) continue;
                    count.add({0, rows}, {p.row(piece, i), p.row(piece, i) + 1}, 1);
                  }
                }
              });
            });
            CAPTURE(threads);
            CAPTURE(rows);
            CAPTURE(pieces);
            CAPTURE(step);
            CAPTURE(row_bytes);
            CHECK(apart);
            CHECK(count.each_once());
          }
        }
      }
    }
  }
}
