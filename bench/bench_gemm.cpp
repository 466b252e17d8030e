// SPDX-License-Identifier: Apache-2.0
//
// op::Gemm on the shapes of Hymba-1.5B, beside Eigen's own product in float on the same shapes and threads.
//
// Counters, for the mean and for the best iteration: bytes/s of weights and its share of the read bandwidth that this
// process measured (T = 1); FLOP/s and its share of the measured multiply-add peak (T > 1). The limits are measured
// again between benchmarks, and the best counts. Environment: HYMBA_BENCH_THREADS (default: all).
#include "limits.hpp"

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/gemm.hpp>

#include <Eigen/Core>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace hymba;

struct Shape {
  const char* name;
  std::int64_t in, out;
};
constexpr Shape shapes[] = {{"in_proj", 1600, 25 * 64 + 5 * 64 + 5 * 128 + 2 * 3200},
                            {"out_proj", 3200, 1600},
                            {"gate_or_up", 1600, 5504},
                            {"down", 5504, 1600},
                            {"x_proj", 3200, 132},
                            {"dt_proj", 100, 3200},
                            {"output", 1600, 32001}};
constexpr std::int64_t rows_max = 512;
constexpr std::size_t pool_bytes = std::size_t{1} << 30;  // larger than any cache share; T = 1 walks through all of it

struct Limits {
  double read = 0.0, peak = 0.0;
};
/// The best of what was measured so far; measures again when the last time is long ago.
const Limits& limits() {
  static Limits best;
  static hymba_bench::Clock::time_point last{};
  if (best.read == 0.0 || hymba_bench::seconds_since(last) > 20.0) {
    best.read = std::max(best.read, hymba_bench::read_bandwidth(hymba_bench::threads(), pool_bytes / 2, 1) * 1e9);
    best.peak = std::max(best.peak, hymba_bench::multiply_add_peak(hymba_bench::threads(), 5) * 1e9);
    last = hymba_bench::Clock::now();
  }
  return best;
}

/// Random numbers of type `Element`, as many as fill the pool.
template <class Element>
const AlignedBuffer& pool() {
  static const AlignedBuffer filled = [] {
    AlignedBuffer memory(pool_bytes);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> some(1 << 16);
    for (auto& v : some) v = normal(random);
    auto* to = reinterpret_cast<Element*>(memory.data());
    for (std::size_t i = 0; i < pool_bytes / sizeof(Element); ++i) to[i] = Element(some[(i + (i >> 13)) % some.size()]);
    return memory;
  }();
  return filled;
}

std::vector<float> activations(std::int64_t count) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (auto& v : x) v = normal(random);
  return x;
}

/// Times the iterations of one benchmark one by one.
class Stopwatch {
 public:
  void start() { start_ = hymba_bench::Clock::now(); }
  void stop() {
    const double now = hymba_bench::seconds_since(start_);
    total_ += now;
    best_ = std::min(best_, now);
    ++count_;
  }
  void report(benchmark::State& state, const Shape& shape, std::int64_t rows, std::size_t element) const {
    const double weights = static_cast<double>(shape.in * shape.out);
    const double amount = weights * (rows == 1 ? static_cast<double>(element) : 2.0 * static_cast<double>(rows));
    const double limit = rows == 1 ? limits().read : limits().peak;
    const double mean = amount * count_ / total_, best = amount / best_;
    state.counters[rows == 1 ? "GB_per_s" : "GFLOP_per_s"] = mean * 1e-9;
    state.counters["percent_of_limit"] = 100.0 * mean / limit;
    state.counters[rows == 1 ? "best_GB_per_s" : "best_GFLOP_per_s"] = best * 1e-9;
    state.counters["best_percent_of_limit"] = 100.0 * best / limit;
  }

 private:
  hymba_bench::Clock::time_point start_;
  double total_ = 0.0, best_ = HUGE_VAL, count_ = 0.0;
};

template <Weights W>
void ours(benchmark::State& state, const Shape& shape, std::int64_t rows) {
  using Kernel = kernel_for<op::Gemm, arch::best>;
  using Element = typename weight_format<W>::element;
  limits();
  const std::size_t one = static_cast<std::size_t>(shape.in * shape.out) * sizeof(Element);
  const std::size_t copies = pool_bytes / one;
  const std::byte* weights = pool<Element>().data();
  DefaultExecutor exec(hymba_bench::threads());
  const std::size_t per_thread = Kernel::scratch_bytes(rows, shape.in, shape.out);
  AlignedBuffer scratch(per_thread * static_cast<std::size_t>(exec.threads()));
  const std::vector<float> x = activations(rows * shape.in);
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  std::size_t copy = 0;
  Stopwatch watch;
  for (auto _ : state) {
    watch.start();
    Kernel::run(exec, Scratch{scratch.data(), per_thread}, MatrixView<const float>(x.data(), rows, shape.in),
                WeightMatrix<W>{weights + copy * one, shape.out, shape.in}, nullptr,
                MatrixView<float>(y.data(), rows, shape.out), Store::assign);
    watch.stop();
    copy = (copy + 1) % copies;
    benchmark::ClobberMemory();
  }
  watch.report(state, shape, rows, sizeof(Element));
}

void eigen(benchmark::State& state, const Shape& shape, std::int64_t rows) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  limits();
  Eigen::setNbThreads(hymba_bench::threads());
  const std::size_t one = static_cast<std::size_t>(shape.in * shape.out);
  const std::size_t copies = pool_bytes / sizeof(float) / one;
  const auto* weights = reinterpret_cast<const float*>(pool<float>().data());
  const std::vector<float> xs = activations(rows * shape.in);
  const Eigen::Map<const Matrix> x(xs.data(), rows, shape.in);
  Matrix y(rows, shape.out);
  std::size_t copy = 0;
  Stopwatch watch;
  for (auto _ : state) {
    watch.start();
    const Eigen::Map<const Matrix> w(weights + copy * one, shape.out, shape.in);
    if (rows == 1) {
      y.transpose().col(0).noalias() = w * x.transpose().col(0);  // as a matrix times a vector
    } else {
      y.noalias() = x * w.transpose();
    }
    watch.stop();
    copy = (copy + 1) % copies;
    benchmark::ClobberMemory();
  }
  watch.report(state, shape, rows, sizeof(float));
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{4}, std::int64_t{16}, rows_max}) {
    for (const Shape& shape : shapes) {
      const std::string tail = std::string("/") + shape.name + "/T" + std::to_string(rows);
      const auto add = [&](const char* name, void (*body)(benchmark::State&, const Shape&, std::int64_t)) {
        benchmark::RegisterBenchmark((name + tail).c_str(), body, shape, rows)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      };
      add("hymba_bf16", ours<Weights::bf16>);
      add("hymba_f32", ours<Weights::f32>);
      add("eigen_f32", eigen);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  std::fprintf(stderr, "limits with %d threads: read %.1f GB/s, multiply-add %.1f GFLOP/s\n", hymba_bench::threads(),
               limits().read * 1e-9, limits().peak * 1e-9);
  benchmark::Shutdown();
  return 0;
}
