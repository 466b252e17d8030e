// SPDX-License-Identifier: Apache-2.0
//
// Backward of the selective scan and of the convolution beside their forward passes, as a training step has them: eight
// sequences of 512 rows, and one long sequence.
//
// Each benchmark runs forward and backward in turn. Counters, from the best iteration of each: microseconds of both,
// their ratio; of the backward pass, bytes/s of what has to be read and written and its share of the read bandwidth
// that this process measured, FLOP/s, counting an exponential as one, and its share of the measured multiply-add peak.
// Environment: HYMBA_BENCH_THREADS (default: all).
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/conv1d.hpp>
#include <hymba/kernels/selective_scan.hpp>
#include <hymba/train/kernels/conv1d_backward.hpp>
#include <hymba/train/kernels/selective_scan_backward.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "limits.hpp"

namespace {

using namespace hymba;

struct Limits {
  double read = hymba_bench::read_limit(hymba_bench::threads()).gb_s * 1e9;
  double peak = hymba_bench::multiply_add_peak(hymba_bench::threads()) * 1e9;
};
const Limits& limits() {
  static const Limits measured;
  return measured;
}

std::vector<float> random_floats(std::int64_t n, float mean = 0.0f, float scale = 1.0f) {
  // Short period: millions of normal deviates would take longer than what is measured.
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> v(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = i < 4099 ? normal(engine) : v[i - 4099];
  return v;
}

/// Runs both in turn; `bytes` and `flops` are the backward pass's.
template <class Forward, class Backward>
void in_turn(benchmark::State& state, double bytes, double flops, Forward forward, Backward backward) {
  limits();
  double best_forward = 1e9, best_backward = 1e9;
  for (auto _ : state) {
    const auto start = hymba_bench::Clock::now();
    forward();
    benchmark::ClobberMemory();
    const auto middle = hymba_bench::Clock::now();
    backward();
    benchmark::ClobberMemory();
    best_backward = std::min(best_backward, hymba_bench::seconds_since(middle));
    best_forward = std::min(best_forward, std::chrono::duration<double>(middle - start).count());
  }
  state.counters["forward_us"] = best_forward * 1e6;
  state.counters["backward_us"] = best_backward * 1e6;
  state.counters["ratio"] = best_backward / best_forward;
  state.counters["bytes/s"] = bytes / best_backward;
  state.counters["of_read"] = bytes / best_backward / limits().read;
  state.counters["FLOP/s"] = flops / best_backward;
  state.counters["of_peak"] = flops / best_backward / limits().peak;
}

struct Shape {
  std::int64_t sequences, rows, width, states;
  std::int64_t total() const { return sequences * rows; }
  double elements() const { return static_cast<double>(total() * width); }
  std::string name() const {
    return std::to_string(sequences) + "x" + std::to_string(rows) + "/E" + std::to_string(width) + "/N" +
           std::to_string(states);
  }
};

void scan(benchmark::State& state, Shape shape) {
  using Forward = kernel_for<op::SelectiveScan, arch::best>;
  using Backward = kernel_for<op::SelectiveScanBackward, arch::best>;
  const std::int64_t T = shape.total(), E = shape.width, N = shape.states;
  const auto c = random_floats(T * E), dt = random_floats(T * E, -3.0f), z = random_floats(T * E);
  const auto b = random_floats(T * N), out = random_floats(T * N), skip = random_floats(E), dy = random_floats(T * E);
  std::vector<float> a;
  for (std::int64_t n = 0; n < N; ++n) a.insert(a.end(), static_cast<std::size_t>(E), -static_cast<float>(n + 1));
  std::vector<float> states(static_cast<std::size_t>(shape.sequences * N * E)), y(c.size());
  std::vector<float> d_c(c.size()), d_dt(c.size()), d_z(c.size()), d_b(b.size()), d_out(b.size()), d_a(a.size());
  std::vector<float> d_skip(skip.size());
  std::vector<ScanSequence> sequences;
  std::vector<RowRange> ranges;
  for (std::int64_t s = 0; s < shape.sequences; ++s) {
    sequences.push_back({s * shape.rows, shape.rows, states.data() + s * N * E});
    ranges.push_back({s * shape.rows, shape.rows});
  }
  DefaultExecutor exec(hymba_bench::threads());
  const std::size_t per_thread = Backward::scratch_bytes(shape.rows, T, N);
  AlignedBuffer memory(per_thread * static_cast<std::size_t>(exec.threads()));
  const ScanInputs inputs{{c.data(), T, E},   {dt.data(), T, E}, {z.data(), T, E}, {b.data(), T, N},
                          {out.data(), T, N}, a.data(),          skip.data()};
  const ScanOperands<float> operands{inputs.c, inputs.dt, inputs.z, inputs.B, inputs.C, inputs.A, inputs.D};
  const ScanGradients<float> gradients{{d_c.data(), T, E}, {d_dt.data(), T, E},  {d_z.data(), T, E},
                                       {d_b.data(), T, N}, {d_out.data(), T, N}, d_a.data(),
                                       d_skip.data()};
  // Read: c, dt, z, dy, B, C; written: dc, d(dt), dz, dB, dC. Per state: decay (2), state (3), s (2), dC (2), g (2), dB
  // (2), its part of dc (2), g a and g a h' (2), its part of d(dt) (2), dA (2).
  const double bytes = 4.0 * (shape.elements() * 7 + static_cast<double>(T * N) * 4);
  const double flops = shape.elements() * (21.0 * static_cast<double>(N) + 24);
  in_turn(
      state, bytes, flops,
      [&] {
        std::fill(states.begin(), states.end(), 0.0f);
        Forward::run(exec, Scratch{}, inputs, std::span<const ScanSequence>(sequences),
                     MatrixView<float>(y.data(), T, E));
      },
      [&] {
        Backward::run(exec, Scratch{memory.data(), per_thread}, operands, std::span<const RowRange>(ranges),
                      MatrixView<const float>(dy.data(), T, E), gradients);
      });
}

void convolution(benchmark::State& state, Shape shape) {
  using Forward = kernel_for<op::Conv1d, arch::best>;
  using Backward = kernel_for<op::Conv1dBackward, arch::best>;
  constexpr int taps = 4;
  const std::int64_t T = shape.total(), E = shape.width;
  const auto x = random_floats(T * E), dy = random_floats(T * E), weight = random_floats(taps * E);
  const auto bias = random_floats(E);
  std::vector<float> y(x.size()), dx(x.size()), dweight(weight.size()), dbias(bias.size());
  std::vector<float> tails(static_cast<std::size_t>(shape.sequences * (taps - 1) * E));
  std::vector<ConvSequence> sequences;
  std::vector<RowRange> ranges;
  for (std::int64_t s = 0; s < shape.sequences; ++s) {
    sequences.push_back({s * shape.rows, shape.rows, tails.data() + s * (taps - 1) * E});
    ranges.push_back({s * shape.rows, shape.rows});
  }
  DefaultExecutor exec(hymba_bench::threads());
  const std::size_t per_thread = Backward::scratch_bytes(taps);
  AlignedBuffer memory(per_thread * static_cast<std::size_t>(exec.threads()));
  in_turn(
      state, 12.0 * shape.elements(), shape.elements() * (6.0 * taps + 8),
      [&] {
        std::fill(tails.begin(), tails.end(), 0.0f);
        Forward::run(exec, Scratch{}, MatrixView<const float>(x.data(), T, E), weight.data(), bias.data(), taps,
                     std::span<const ConvSequence>(sequences), MatrixView<float>(y.data(), T, E));
      },
      [&] {
        Backward::run(exec, Scratch{memory.data(), per_thread}, MatrixView<const float>(x.data(), T, E), weight.data(),
                      bias.data(), taps, std::span<const RowRange>(ranges), MatrixView<const float>(dy.data(), T, E),
                      MatrixView<float>(dx.data(), T, E), dweight.data(), dbias.data());
      });
}

template <class... Args>
void add(const std::string& name, Args... args) {
  benchmark::RegisterBenchmark(name.c_str(), args...)->UseRealTime()->Unit(benchmark::kMicrosecond)->MinTime(0.5);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const Shape& shape : {Shape{8, 512, 512, 16}, Shape{16, 256, 384, 16}, Shape{4, 1024, 1024, 16},
                             Shape{8, 512, 512, 8}, Shape{1, 4096, 512, 16}}) {
    add("scan_backward/" + shape.name(), scan, shape);
  }
  for (const Shape& shape : {Shape{8, 512, 512, 1}, Shape{4, 1024, 1024, 1}}) {
    add("conv1d_backward/" + shape.name(), convolution, shape);
  }
  benchmark::RunSpecifiedBenchmarks();
  std::fprintf(stderr, "limits with %d threads: read %.1f GB/s, multiply-add %.1f GFLOP/s\n", hymba_bench::threads(),
               limits().read * 1e-9, limits().peak * 1e-9);
  benchmark::Shutdown();
  return 0;
}
