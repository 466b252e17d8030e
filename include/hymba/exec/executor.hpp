// SPDX-License-Identifier: Apache-2.0
//
// Who runs the work. An executor runs a number of independent tasks on at most `threads()` threads:
//
//   executor.parallel_for(tasks, [&](std::int64_t task, int thread) noexcept { ... });
//
// returns when all are done. `thread` is below `threads()` and no two tasks run at once with the same one, so it
// indexes scratch memory. Neither bodies nor parallel_for throw: a step that stops half-way leaves its sessions' states
// unusable. Sessions and batches each make one, `Executor(threads)`, and keep it; a pool shared by many is a small
// handle. A user's own pool is any type that models `Executor`. The library's executors run tasks with denormal numbers
// counting as zero (exec/flush_denormals.hpp), on every thread alike; with one that does not, results may differ where
// numbers get below 1.2e-38.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/exec/flush_denormals.hpp>

#include <concepts>
#include <cstdint>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

HYMBA_NAMESPACE_BEGIN

namespace detail {
struct ExampleTask {
  void operator()(std::int64_t, int) const noexcept {}
};
}  // namespace detail

template <class E>
concept Executor = std::movable<E> && std::constructible_from<E, int> && requires(E& e, std::int64_t tasks, detail::ExampleTask body) {
  { e.threads() } -> std::convertible_to<int>;
  e.parallel_for(tasks, body);
};

/// Runs everything on the calling thread.
class Serial {
 public:
  /// @param threads must be 0 (the default) or 1.
  /// @throws ArgumentError otherwise: it would be a promise this executor cannot keep.
  explicit Serial(int threads = 1) {
    if (threads != 0 && threads != 1) {
      throw ArgumentError(detail::message("threads is ", threads, ", but this policy runs on one thread (Serial): compile with OpenMP, "
                                          "or name another executor in the policy"));
    }
  }
  int threads() const { return 1; }
  template <class Body>
  void parallel_for(std::int64_t tasks, Body&& body) const {
    const FlushDenormals flush;
    for (std::int64_t i = 0; i < tasks; ++i) body(i, 0);
  }
};

#if defined(_OPENMP)
/// OpenMP. Tasks are handed out in contiguous static chunks; a single task runs on the caller without a region.
class OpenMp {
 public:
  /// @param threads 0: as many as OpenMP would use (OMP_NUM_THREADS, else the number of cores).
  explicit OpenMp(int threads = 0) : threads_(threads > 0 ? threads : omp_get_max_threads()) {
    if (threads < 0 || threads > 4096) {
      throw ArgumentError(detail::message("threads is ", threads, ", expected 0 (all cores) to 4096"));
    }
  }
  int threads() const { return threads_; }
  template <class Body>
  void parallel_for(std::int64_t tasks, Body&& body) const {
    if (tasks <= 1 || threads_ == 1) {
      const FlushDenormals flush;
      for (std::int64_t i = 0; i < tasks; ++i) body(i, 0);
      return;
    }
#pragma omp parallel num_threads(threads_)
    {
      const FlushDenormals flush;
#pragma omp for schedule(static) nowait
      for (std::int64_t i = 0; i < tasks; ++i) body(i, omp_get_thread_num());
    }
  }

 private:
  int threads_;
};
using DefaultExecutor = OpenMp;
#else
/// Built without OpenMP: one thread unless the policy names a user's own pool.
using DefaultExecutor = Serial;
#endif

HYMBA_NAMESPACE_END
