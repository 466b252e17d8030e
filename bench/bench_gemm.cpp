// SPDX-License-Identifier: Apache-2.0
//
// op::Gemm on the shapes of Hymba-1.5B in every weight format, on vectors, on dot products and on AMX tiles where there
// are any, beside Eigen's own product in float on the same shapes and threads.
//
// Counters, for the mean and for the best iteration: bytes/s of weights (T = 1) or FLOP/s (T > 1), and the share of the
// limit that this process measured. The limit is the time in which memory delivers the weights or the unit that
// multiplies does the products (single-precision multiply-adds, dot products, tiles), whichever is longer. The
// limits are measured again between benchmarks, and the best counts. Environment: HYMBA_BENCH_THREADS (default: all).
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/amx/gemm.hpp>
#include <hymba/kernels/dot/gemm.hpp>
#include <hymba/kernels/gemm.hpp>

#include <benchmark/benchmark.h>
#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "limits.hpp"

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
constexpr std::size_t pool_bytes = std::size_t{1} << 30;  // larger than any cache share; T = 1 walks through all of it

/// What multiplies: its peak bounds a product of many rows.
enum class Unit { vectors, tiles_bf16, tiles_bytes, dots_bf16, dots_bytes };

struct Limits {
  double read = 0.0;  ///< bytes/s
  double vectors = 0.0, tiles_bf16 = 0.0, tiles_bytes = 0.0, dots_bf16 = 0.0, dots_bytes = 0.0;  ///< operations/s

  double peak(Unit unit) const {
    return unit == Unit::vectors       ? vectors
           : unit == Unit::tiles_bf16  ? tiles_bf16
           : unit == Unit::tiles_bytes ? tiles_bytes
           : unit == Unit::dots_bf16   ? dots_bf16
                                       : dots_bytes;
  }
};
/// The best of what was measured so far; measures again when the last time is long ago.
const Limits& limits() {
  static Limits best;
  static hymba_bench::Clock::time_point last{};
  if (best.read == 0.0 || hymba_bench::seconds_since(last) > 20.0) {
    const int threads = hymba_bench::threads();
    best.read = std::max(best.read, hymba_bench::read_limit(threads, pool_bytes / 2, 1).gb_s * 1e9);
    best.vectors = std::max(best.vectors, hymba_bench::multiply_add_peak(threads, 5) * 1e9);
    best.tiles_bf16 = std::max(best.tiles_bf16, hymba_bench::bf16_tile_peak(threads, 5) * 1e9);
    best.tiles_bytes = std::max(best.tiles_bytes, hymba_bench::int8_tile_peak(threads, 5) * 1e9);
    best.dots_bf16 = std::max(best.dots_bf16, hymba_bench::bf16_dot_peak(threads, 5) * 1e9);
    best.dots_bytes = std::max(best.dots_bytes, hymba_bench::byte_dot_peak(threads, 5) * 1e9);
    last = hymba_bench::Clock::now();
  }
  return best;
}

/// Rows of random weights, as many as fill the pool. There is one pool, filled anew when other rows are asked for.
class Pool {
 public:
  template <Weights W>
  const std::byte* rows(std::int64_t cols) {
    using Format = weight_format<W>;
    if (format_ == W && cols_ == cols) return memory_.data();
    constexpr std::size_t distinct = 64;
    const std::size_t bytes = distinct * Format::row_bytes(cols);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> row(static_cast<std::size_t>(cols));
    for (std::size_t r = 0; r < distinct; ++r) {
      for (auto& v : row) v = normal(random);
      Format::encode_row(row.data(), cols, memory_.data() + r * Format::row_bytes(cols));
    }
    for (std::size_t at = bytes; at < pool_bytes; at += bytes) {
      std::memcpy(memory_.data() + at, memory_.data(), std::min(bytes, pool_bytes - at));
    }
    format_ = W;
    cols_ = cols;
    return memory_.data();
  }

 private:
  AlignedBuffer memory_{pool_bytes};
  Weights format_ = Weights::f64;
  std::int64_t cols_ = 0;
};
Pool& pool() {
  static Pool all;
  return all;
}

/// Numbers that begin on a cache line, as in a session: where they do not, vectors are up to a third slower.
AlignedBuffer activations(std::int64_t count) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  AlignedBuffer x(static_cast<std::size_t>(count) * sizeof(float));
  std::generate_n(reinterpret_cast<float*>(x.data()), count, [&] { return normal(random); });
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
  void report(benchmark::State& state, const Shape& shape, std::int64_t rows, std::size_t bytes, Unit unit) const {
    const double operations = 2.0 * static_cast<double>(shape.in * shape.out * rows);
    const double amount = rows == 1 ? static_cast<double>(bytes) : operations;
    const double least = std::max(static_cast<double>(bytes) / limits().read, operations / limits().peak(unit));
    const double mean = total_ / count_;
    state.counters[rows == 1 ? "GB_per_s" : "GFLOP_per_s"] = amount / mean * 1e-9;
    state.counters["percent_of_limit"] = 100.0 * least / mean;
    state.counters[rows == 1 ? "best_GB_per_s" : "best_GFLOP_per_s"] = amount / best_ * 1e-9;
    state.counters["best_percent_of_limit"] = 100.0 * least / best_;
  }

 private:
  hymba_bench::Clock::time_point start_;
  double total_ = 0.0, best_ = HUGE_VAL, count_ = 0.0;
};

template <class Arch, Weights W>
void ours(benchmark::State& state, const Shape& shape, std::int64_t rows) {
  using Kernel = kernel_for<op::Gemm, Arch>;
  constexpr bool bytes = weight_format<W>::quantised;
  constexpr Unit unit = std::is_same_v<Arch, arch::best>              ? Unit::vectors
                        : std::is_same_v<Arch, arch::dot<arch::best>> ? (bytes ? Unit::dots_bytes : Unit::dots_bf16)
                        : bytes                                       ? Unit::tiles_bytes
                                                                      : Unit::tiles_bf16;
  limits();
  const std::byte* weights = pool().rows<W>(shape.in);
  const std::size_t one = static_cast<std::size_t>(shape.out) * weight_format<W>::row_bytes(shape.in);
  const std::size_t copies = pool_bytes / one;
  DefaultExecutor exec(hymba_bench::threads());
  const std::size_t per_thread = Kernel::scratch_bytes(rows, shape.in, shape.out);
  AlignedBuffer scratch(per_thread * static_cast<std::size_t>(exec.threads()));
  AlignedBuffer shared(gemm_shared_bytes<Arch>(rows, shape.in, shape.out, false));
  const AlignedBuffer x = activations(rows * shape.in);
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  std::size_t copy = 0;
  Stopwatch watch;
  for (auto _ : state) {
    watch.start();
    Kernel::run(exec, Scratch{scratch.data(), per_thread, shared.data()},
                MatrixView<const float>(reinterpret_cast<const float*>(x.data()), rows, shape.in),
                WeightMatrix<W>{weights + copy * one, shape.out, shape.in}, nullptr,
                MatrixView<float>(y.data(), rows, shape.out), Store::assign);
    watch.stop();
    copy = (copy + 1) % copies;
    benchmark::ClobberMemory();
  }
  watch.report(state, shape, rows, one, unit);
}

void eigen(benchmark::State& state, const Shape& shape, std::int64_t rows) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  limits();
  Eigen::setNbThreads(hymba_bench::threads());
  const std::size_t one = static_cast<std::size_t>(shape.in * shape.out);
  const std::size_t copies = pool_bytes / sizeof(float) / one;
  const auto* weights = reinterpret_cast<const float*>(pool().rows<Weights::f32>(shape.in));
  const AlignedBuffer xs = activations(rows * shape.in);
  const Eigen::Map<const Matrix> x(reinterpret_cast<const float*>(xs.data()), rows, shape.in);
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
  watch.report(state, shape, rows, one * sizeof(float), Unit::vectors);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const std::int64_t rows : {1, 16, 512}) {
    for (const Shape& shape : shapes) {
      const std::string tail = std::string("/") + shape.name + "/T" + std::to_string(rows);
      const auto add = [&](const char* name, void (*body)(benchmark::State&, const Shape&, std::int64_t)) {
        benchmark::RegisterBenchmark((name + tail).c_str(), body, shape, rows)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      };
      add("hymba_f32", ours<arch::best, Weights::f32>);
      add("hymba_bf16", ours<arch::best, Weights::bf16>);
      add("hymba_f16", ours<arch::best, Weights::f16>);
      add("hymba_int8", ours<arch::best, Weights::int8>);
      add("hymba_int4", ours<arch::best, Weights::int4>);
#if defined(HYMBA_DOT)
      if (dot_available()) {
        using Dot = arch::dot<arch::best>;
#if HYMBA_DOT_BF16
        add("hymba_dot_bf16", ours<Dot, Weights::bf16>);
#endif
        add("hymba_dot_int8", ours<Dot, Weights::int8>);
        add("hymba_dot_int4", ours<Dot, Weights::int4>);
      }
#endif
#if defined(HYMBA_AMX)
      if (amx_available()) {
        using Amx = arch::amx<arch::best>;
        add("hymba_amx_bf16", ours<Amx, Weights::bf16>);
        add("hymba_amx_int8", ours<Amx, Weights::int8>);
        add("hymba_amx_int4", ours<Amx, Weights::int4>);
      }
#endif
      add("eigen_f32", eigen);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  std::fprintf(
      stderr,
      "limits with %d threads: read %.1f GB/s, multiply-add %.1f GFLOP/s, dot products %.1f in bf16 and %.1f in int8, "
      "tiles %.1f in bf16 and %.1f in int8\n",
      hymba_bench::threads(), limits().read * 1e-9, limits().vectors * 1e-9, limits().dots_bf16 * 1e-9,
      limits().dots_bytes * 1e-9, limits().tiles_bf16 * 1e-9, limits().tiles_bytes * 1e-9);
  benchmark::Shutdown();
  return 0;
}
