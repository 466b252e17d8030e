// SPDX-License-Identifier: Apache-2.0
//
// What a region costs: the three executors, warm, with work of some microseconds in each share, and after 10 ms without
// any. Compare rows of one run only, and only on idle cores; OMP_WAIT_POLICY and GOMP_SPINCOUNT matter to OpenMP.
//
//   region        empty tasks. A team's caller runs those that no worker has begun: nearly all of such short ones
//   share/N       N times about 0.1 us of arithmetic on each thread; `over_us` is what is beyond the time of one thread
//                 with one share, measured in the same iterations: cost of the region, and of sharing a core if so
//   idle/N        the same after the caller has slept for 10 ms, and so have the workers
//
// Environment: HYMBA_BENCH_THREADS (default: all).
#include <hymba/exec/executor.hpp>
#include <hymba/exec/flush_denormals.hpp>
#include <hymba/exec/team.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

using namespace hymba;
using Clock = std::chrono::steady_clock;

int thread_count() {
  const char* text = std::getenv("HYMBA_BENCH_THREADS");
  return Team(text != nullptr ? std::atoi(text) : 0).threads();
}

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// One array per thread, in cache.
class Work {
 public:
  explicit Work(int threads) : arrays_(static_cast<std::size_t>(threads)) {}
  void operator()(int thread, std::int64_t amount) noexcept {
    float* x = arrays_[static_cast<std::size_t>(thread)].x;
    for (std::int64_t n = 0; n < amount; ++n) {
      for (int i = 0; i < size; ++i) x[i] = x[i] * 0.999f + 0.5f;
      benchmark::ClobberMemory();
    }
  }

 private:
  static constexpr int size = 4096;
  struct Array {
    alignas(128) float x[size] = {};
  };
  std::vector<Array> arrays_;
};

template <class E>
E make() {
  if constexpr (std::is_same_v<E, Serial>) {
    return E(1);
  } else {
    return E(thread_count());
  }
}

template <class E>
void region(benchmark::State& state) {
  const E exec = make<E>();
  std::vector<std::int64_t> counts(static_cast<std::size_t>(exec.threads()) * 16);
  for (auto _ : state) {
    exec.parallel_for(exec.threads(), [&](std::int64_t, int thread) noexcept {
      ++counts[static_cast<std::size_t>(thread) * 16];
      benchmark::ClobberMemory();
    });
  }
}

template <class E>
void share(benchmark::State& state) {
  const E exec = make<E>();
  Work work(exec.threads());
  const std::int64_t amount = state.range(0);
  double all = 0.0, alone = 0.0;
  for (auto _ : state) {
    const auto start = Clock::now();
    exec.parallel_for(exec.threads(), [&](std::int64_t, int thread) noexcept { work(thread, amount); });
    const auto middle = Clock::now();
    Serial().parallel_for(1, [&](std::int64_t, int thread) noexcept { work(thread, amount); });
    const auto end = Clock::now();
    all += seconds(start, middle);
    alone += seconds(middle, end);
    state.SetIterationTime(seconds(start, middle));
  }
  state.counters["over_us"] = (all - alone) * 1e6 / static_cast<double>(state.iterations());
}

template <class E>
void idle(benchmark::State& state) {
  const E exec = make<E>();
  Work work(exec.threads());
  const std::int64_t amount = state.range(0);
  for (auto _ : state) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const auto start = Clock::now();
    exec.parallel_for(exec.threads(), [&](std::int64_t, int thread) noexcept { work(thread, amount); });
    state.SetIterationTime(seconds(start, Clock::now()));
  }
}

void flush_denormals(benchmark::State& state) {
  for (auto _ : state) {
    const FlushDenormals flush;
    benchmark::ClobberMemory();
  }
}

BENCHMARK(flush_denormals);
#define HYMBA_OF_EACH(name, executor)                                                                       \
  BENCHMARK(region<executor>)->Name("region/" name)->UseRealTime()->Unit(benchmark::kMicrosecond);          \
  BENCHMARK(share<executor>)                                                                                \
      ->Name("share/" name)->Arg(10)->Arg(50)->Arg(500)->UseManualTime()->Unit(benchmark::kMicrosecond);    \
  BENCHMARK(idle<executor>)                                                                                 \
      ->Name("idle/" name)->Arg(0)->Arg(50)->Iterations(50)->UseManualTime()->Unit(benchmark::kMicrosecond)

HYMBA_OF_EACH("serial", Serial);
#if defined(_OPENMP)
HYMBA_OF_EACH("openmp", OpenMp);
#endif
HYMBA_OF_EACH("team", Team);

}  // namespace
