// SPDX-License-Identifier: Apache-2.0
//
// Attention in training: forward and backward on a batch of sequences, global and with a window.
//
// FLOP/s count what the formulas ask for, per query head and visible position: forward 2 (dk + dv), backward
// 2 (3 dk + 2 dv), the scores among them. `of_peak` is the share of the multiply-add peak that this process measured.
// Environment: HYMBA_BENCH_THREADS (default: all).
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/train/kernels/attention_backward.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "limits.hpp"

namespace {

using namespace hymba;

double peak() {
  static const double measured = hymba_bench::multiply_add_peak(hymba_bench::threads()) * 1e9;
  return measured;
}

struct Case {
  AttentionShape shape;
  std::int64_t batch, rows;

  double seen() const {
    double n = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) n += shape.sees(i, j) ? 1 : 0;
    }
    return n * static_cast<double>(batch) * shape.query_heads;
  }
};

/// Operands of both directions; caches and their gradients sequence by sequence, head by head.
struct Data {
  Case c;
  std::vector<float> q, out, dout, dq, keys, values, d_keys, d_values;

  explicit Data(const Case& c_) : c(c_) {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    const std::int64_t rows = c.batch * c.rows;
    const auto fill = [&](std::vector<float>& v, std::int64_t width) {
      v.resize(static_cast<std::size_t>(rows * width));
      for (float& x : v) x = normal(engine);
    };
    const AttentionShape& s = c.shape;
    for (auto* v : {&q, &dq}) fill(*v, s.query_heads * s.key_width);
    for (auto* v : {&out, &dout}) fill(*v, s.query_heads * s.value_width);
    for (auto* v : {&keys, &d_keys}) fill(*v, s.kv_heads * s.key_width);
    for (auto* v : {&values, &d_values}) fill(*v, s.kv_heads * s.value_width);
  }
  template <class T>
  MatrixView<T> rows_of(T* data, std::int64_t width) const {
    return {data, c.batch * c.rows, width};
  }
};

template <class Run>
void measure(benchmark::State& state, double flops, Run run) {
  peak();
  double best = 1e9;
  for (auto _ : state) {
    const auto start = hymba_bench::Clock::now();
    run();
    best = std::min(best, hymba_bench::seconds_since(start));
    benchmark::ClobberMemory();
  }
  state.counters["best_us"] = best * 1e6;
  state.counters["FLOP/s"] = flops / best;
  state.counters["of_peak"] = flops / best / peak();
}

void forward(benchmark::State& state, const Case& c) {
  using Kernel = kernel_for<op::Attention, arch::best>;
  Data d(c);
  const AttentionShape& s = c.shape;
  std::vector<AttentionSequence<float>> sequences;
  for (std::int64_t i = 0; i < c.batch; ++i) {
    AttentionSequence<float> sequence;
    sequence.first_row = i * c.rows;
    sequence.rows = c.rows;
    sequence.segment_count = 1;
    sequence.segments[0] = {d.keys.data() + i * c.rows * s.kv_heads * s.key_width,
                            d.values.data() + i * c.rows * s.kv_heads * s.value_width,
                            c.rows * s.key_width,
                            c.rows * s.value_width,
                            0,
                            c.rows};
    sequences.push_back(sequence);
  }
  DefaultExecutor exec(hymba_bench::threads());
  const std::size_t bytes = Kernel::scratch_bytes(s, c.rows);
  AlignedBuffer memory(bytes * static_cast<std::size_t>(exec.threads()));
  measure(state, c.seen() * 2 * (s.key_width + s.value_width), [&] {
    Kernel::run<float>(exec, Scratch{memory.data(), bytes}, s,
                       d.rows_of<const float>(d.q.data(), s.query_heads * s.key_width), sequences,
                       d.rows_of(d.out.data(), s.query_heads * s.value_width));
  });
}

void backward(benchmark::State& state, const Case& c) {
  using Kernel = kernel_for<op::AttentionBackward, arch::best>;
  Data d(c);
  const AttentionShape& s = c.shape;
  std::vector<AttentionGradientSequence<float>> sequences;
  for (std::int64_t i = 0; i < c.batch; ++i) {
    const std::int64_t k = i * c.rows * s.kv_heads * s.key_width, v = i * c.rows * s.kv_heads * s.value_width;
    sequences.push_back({i * c.rows, c.rows, d.keys.data() + k, d.values.data() + v, d.d_keys.data() + k,
                         d.d_values.data() + v, c.rows * s.key_width, c.rows * s.value_width});
  }
  DefaultExecutor exec(hymba_bench::threads());
  const std::size_t bytes = Kernel::scratch_bytes(s, c.rows);
  AlignedBuffer memory(bytes * static_cast<std::size_t>(exec.threads()));
  measure(state, c.seen() * 2 * (3 * s.key_width + 2 * s.value_width), [&] {
    Kernel::run(exec, Scratch{memory.data(), bytes}, s, d.rows_of<const float>(d.q.data(), s.query_heads * s.key_width),
                d.rows_of<const float>(d.out.data(), s.query_heads * s.value_width),
                d.rows_of<const float>(d.dout.data(), s.query_heads * s.value_width), sequences,
                d.rows_of(d.dq.data(), s.query_heads * s.key_width));
  });
}

void add(const std::string& name, const Case& c) {
  for (const bool back : {false, true}) {
    benchmark::RegisterBenchmark(((back ? "backward/" : "forward/") + name).c_str(), back ? backward : forward, c)
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond)
        ->MinTime(0.3);
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add("H8_G2_32_64/8x512/global", {{8, 2, 32, 64, 0, 0, 0.18f}, 8, 512});
  add("H8_G2_32_64/8x512/window128", {{8, 2, 32, 64, 128, 0, 0.18f}, 8, 512});
  add("H8_G2_64_128/4x1024/global", {{8, 2, 64, 128, 0, 0, 0.125f}, 4, 1024});
  add("H8_G2_64_128/16x256/global", {{8, 2, 64, 128, 0, 0, 0.125f}, 16, 256});
  benchmark::RunSpecifiedBenchmarks();
  std::fprintf(stderr, "limit with %d threads: multiply-add %.1f GFLOP/s\n", hymba_bench::threads(), peak() * 1e-9);
  benchmark::Shutdown();
  return 0;
}
