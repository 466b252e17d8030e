// SPDX-License-Identifier: Apache-2.0
//
// The three matrix products of training a linear layer: y = x w^T, dx = dy w, dw += dy^T x, in single precision and,
// where the processor has them, on AMX tiles with bf16 operands.
//
// Counters, for the mean and for the best iteration: FLOP/s and its share of the single-precision multiply-add peak
// that this process measured, with the same number of threads; tiles may exceed it. The peak is measured again between
// benchmarks, and the best counts. Operands rotate through more memory than a second-level cache holds, as they do in
// a model. Environment: HYMBA_BENCH_THREADS (default: all), HYMBA_BENCH_ROWS (default: 2048).
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/amx/gemm.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/train/kernels/products.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "limits.hpp"

namespace {

using namespace hymba;

struct Shape {
  std::int64_t in, out;
};
constexpr Shape shapes[] = {{192, 1152}, {384, 192}, {192, 448}, {448, 192}, {256, 1472}, {192, 2048}};
constexpr std::size_t working_set = std::size_t{64} << 20;

int from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atoi(text) : otherwise;
}
std::int64_t row_count() { return from_environment("HYMBA_BENCH_ROWS", 2048); }

/// The best of what was measured so far, in FLOP/s; measures again when the last time is long ago.
double peak() {
  static double best = 0.0;
  static hymba_bench::Clock::time_point last{};
  if (best == 0.0 || hymba_bench::seconds_since(last) > 5.0) {
    best = std::max(best, hymba_bench::multiply_add_peak(hymba_bench::threads(), 5) * 1e9);
    last = hymba_bench::Clock::now();
  }
  return best;
}

enum class Which { forward, input_gradient, weight_gradient };

/// Operands of one layer, several times over.
struct Operands {
  std::int64_t rows, in, out, copies;
  AlignedBuffer memory;

  Operands(std::int64_t t, const Shape& shape)
      : rows(t),
        in(shape.in),
        out(shape.out),
        copies(1 + static_cast<std::int64_t>(working_set) / static_cast<std::int64_t>(sizeof(float)) / size()),
        memory(static_cast<std::size_t>(copies * size()) * sizeof(float)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> some(1 << 14);
    for (auto& v : some) v = normal(random);
    auto* to = reinterpret_cast<float*>(memory.data());
    for (std::int64_t i = 0; i < copies * size(); ++i) {
      to[i] = some[static_cast<std::size_t>((i + (i >> 11)) % static_cast<std::int64_t>(some.size()))];
    }
  }
  /// Numbers of one copy: x, y and the weights, and one of each to write.
  std::int64_t size() const { return 2 * (rows * in + rows * out + out * in); }
  float* copy(std::int64_t i) const {
    return reinterpret_cast<float*>(const_cast<std::byte*>(memory.data())) + i * size();
  }
};

template <class Arch>
void product(benchmark::State& state, const Shape& shape, Which which) {
  peak();
  const Operands operands(row_count(), shape);
  const std::int64_t t = operands.rows, in = operands.in, out = operands.out;
  using Forward = kernel_for<op::Gemm, Arch>;
  using InputGradient = kernel_for<op::GemmInputGradient, Arch>;
  using WeightGradient = kernel_for<op::GemmWeightGradient, Arch>;
  const std::size_t per_thread = std::max({Forward::scratch_bytes(t, in, out), InputGradient::scratch_bytes(t, in, out),
                                           WeightGradient::scratch_bytes(t, in, out)});
  DefaultExecutor exec(hymba_bench::threads());
  AlignedBuffer memory(per_thread * static_cast<std::size_t>(exec.threads()));
  const Scratch scratch{memory.data(), per_thread};
  double total = 0.0, best = HUGE_VAL, count = 0.0;
  std::int64_t turn = 0;
  for (auto _ : state) {
    float* x = operands.copy(turn);
    float* dx = x + t * in;
    float* dy = dx + t * in;
    float* y = dy + t * out;
    float* w = y + t * out;
    float* dw = w + out * in;
    const WeightMatrix<Weights::f32> weights{reinterpret_cast<const std::byte*>(w), out, in};
    const auto start = hymba_bench::Clock::now();
    switch (which) {
      case Which::forward:
        Forward::run(exec, scratch, MatrixView<const float>(x, t, in), weights, nullptr, MatrixView<float>(y, t, out),
                     Store::assign);
        break;
      case Which::input_gradient:
        InputGradient::run(exec, scratch, MatrixView<const float>(dy, t, out), weights, MatrixView<float>(dx, t, in),
                           Store::assign);
        break;
      case Which::weight_gradient:
        WeightGradient::run(exec, scratch, MatrixView<const float>(dy, t, out), MatrixView<const float>(x, t, in),
                            MatrixView<float>(dw, out, in), nullptr);
        break;
    }
    const double seconds = hymba_bench::seconds_since(start);
    total += seconds;
    best = std::min(best, seconds);
    ++count;
    turn = (turn + 1) % operands.copies;
    benchmark::ClobberMemory();
  }
  const double amount = 2.0 * static_cast<double>(t * in * out);
  state.counters["GFLOP_per_s"] = amount * count / total * 1e-9;
  state.counters["percent_of_peak"] = 100.0 * amount * count / total / peak();
  state.counters["best_GFLOP_per_s"] = amount / best * 1e-9;
  state.counters["best_percent_of_peak"] = 100.0 * amount / best / peak();
}

template <class Arch>
void add(const char* name) {
  constexpr struct {
    Which which;
    const char* name;
  } all[] = {{Which::forward, "y"}, {Which::input_gradient, "dx"}, {Which::weight_gradient, "dw"}};
  for (const auto& one : all) {
    for (const Shape& shape : shapes) {
      const std::string title = std::string(name) + "/" + one.name + "/T" + std::to_string(row_count()) + "/" +
                                std::to_string(shape.in) + "x" + std::to_string(shape.out);
      benchmark::RegisterBenchmark(title.c_str(), product<Arch>, shape, one.which)
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add<arch::best>("f32");
#if defined(HYMBA_AMX)
  if (amx_available()) add<arch::amx<arch::best>>("amx");
#endif
  benchmark::RunSpecifiedBenchmarks();
  std::fprintf(stderr, "multiply-add peak with %d threads: %.1f GFLOP/s\n", hymba_bench::threads(), peak() * 1e-9);
  benchmark::Shutdown();
  return 0;
}
