// SPDX-License-Identifier: Apache-2.0
//
// The operations between the projections on the shapes of Hymba-1.5B: attention (prefill in chunks of 512 and 2048, and
// decode; global and window layers; caches in f32, f16, bf16 and int8, the last two also on AMX tiles and on dot
// products of bf16), selective scan beside its plain loop, convolution, norms, rotary embedding, SwiGLU.
//
// Counters, from the best iteration: bytes/s of what has to be read and written, and its share of the read bandwidth
// that this process measured; FLOP/s, counting an exponential as one, and its share of the measured multiply-add peak.
// Environment: HYMBA_BENCH_THREADS (default: all).
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/activations.hpp>
#include <hymba/kernels/amx/attention.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/conv1d.hpp>
#include <hymba/kernels/dot/gemm.hpp>
#include <hymba/kernels/fuse_norms.hpp>
#include <hymba/kernels/rms_norm.hpp>
#include <hymba/kernels/rope.hpp>
#include <hymba/kernels/selective_scan.hpp>

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

constexpr int H = 25, G = 5, dk = 64, dv = 128, E = 3200, N = 16, K = 4, F = 5504, D = 1600;
constexpr std::int64_t meta = 128, window = 1024;

struct Limits {
  double read = hymba_bench::read_limit(hymba_bench::threads()).gb_s * 1e9;
  double peak = hymba_bench::multiply_add_peak(hymba_bench::threads()) * 1e9;
};
const Limits& limits() {
  static const Limits measured;
  return measured;
}

/// Times iterations and reports rates of the best one.
class Meter {
 public:
  explicit Meter(benchmark::State& state) : state_(state) { limits(); }
  void start() { start_ = hymba_bench::Clock::now(); }
  void stop() { best_ = std::min(best_, hymba_bench::seconds_since(start_)); }
  void report(double bytes, double flops) {
    state_.counters["best_us"] = best_ * 1e6;
    if (bytes > 0) {
      state_.counters["bytes/s"] = bytes / best_;
      state_.counters["of_read"] = bytes / best_ / limits().read;
    }
    if (flops > 0) {
      state_.counters["FLOP/s"] = flops / best_;
      state_.counters["of_peak"] = flops / best_ / limits().peak;
    }
  }

 private:
  benchmark::State& state_;
  hymba_bench::Clock::time_point start_;
  double best_ = 1e9;
};

std::vector<float> random_floats(std::int64_t n, float mean = 0.0f, float scale = 1.0f) {
  // Short period: millions of normal deviates would take longer than what is measured.
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> v(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = i < 4099 ? normal(engine) : v[i - 4099];
  return v;
}

/// One layer's cache of `length` positions, several times over, so that no copy is still in a processor's cache. Aligned
/// as a session's is.
template <class Element>
struct Caches {
  std::int64_t length, copies;
  AlignedBuffer memory;
  Element *keys, *values;
  std::vector<RowScale> scales;  ///< of keys and of values, where rows have them

  explicit Caches(std::int64_t n) : length(n) {
    const std::int64_t one = n * position_bytes;
    copies = std::max<std::int64_t>(1, (std::int64_t{256} << 20) / one);
    const auto source = random_floats(8191);
    const std::int64_t key_count = copies * n * G * dk, value_count = copies * n * G * dv;
    memory = AlignedBuffer(static_cast<std::size_t>(key_count + value_count) * sizeof(Element));
    keys = reinterpret_cast<Element*>(memory.data());
    values = keys + key_count;
    // Bytes as they are after a row's largest has become 127, and the scale that undoes it.
    constexpr float unit = scaled_rows<Element> ? 40.0f : 1.0f;
    std::vector<Element> stored;
    for (const float x : source) stored.push_back(static_cast<Element>(std::clamp(unit * x, -127.0f, 127.0f)));
    for (std::int64_t i = 0; i < key_count + value_count; ++i) keys[i] = stored[static_cast<std::size_t>(i) % stored.size()];
    if (scaled_rows<Element>) scales.assign(static_cast<std::size_t>(copies * n * G), RowScale(1.0f / unit));
  }
  KeyValueSegment<Element> segment(std::int64_t copy, std::int64_t row, std::int64_t first, std::int64_t count) const {
    KeyValueSegment<Element> s{keys + copy * length * G * dk + row * dk,
                               values + copy * length * G * dv + row * dv,
                               length * dk,
                               length * dv,
                               first,
                               count};
    if (scaled_rows<Element>) {
      s.key_scales = s.value_scales = scales.data() + copy * length * G + row;
      s.scale_head_stride = length;
    }
    return s;
  }
  /// Bytes of keys and values.
  static constexpr std::int64_t position_bytes =
      G * ((dk + dv) * static_cast<std::int64_t>(cache_element_bytes<Element>.element) +
           2 * static_cast<std::int64_t>(cache_element_bytes<Element>.row));
};

/// `rows` tokens behind `past` others; a window layer's cache holds what is visible only.
template <class Arch, class Element>
void attention(benchmark::State& state, std::int64_t past, std::int64_t rows, bool windowed) {
  using Kernel = kernel_for<op::Attention, Arch>;
  const AttentionShape shape{H, G, dk, dv, windowed ? window : 0, meta, 0.125f};
  const std::int64_t end = past + rows;
  const std::int64_t low = windowed ? std::max(meta, past - window) : 0;
  const std::int64_t pinned = low > 0 ? meta : 0, held = pinned + end - low;
  const Caches<Element> caches(held);
  const auto q = random_floats(rows * H * dk);
  std::vector<float> out(static_cast<std::size_t>(rows * H * dv));
  DefaultExecutor exec(hymba_bench::threads());
  const std::size_t per_thread = Kernel::scratch_bytes(shape, rows);
  AlignedBuffer memory(per_thread * static_cast<std::size_t>(exec.threads()));
  double seen = 0;
  for (std::int64_t i = past; i < end; ++i) {
    seen += static_cast<double>(
        windowed ? std::min(i + 1, std::min(i, window) + 1 + std::min(meta, std::max<std::int64_t>(0, i - window)))
                 : i + 1);
  }
  Meter meter(state);
  std::int64_t copy = 0;
  for (auto _ : state) {
    AttentionSequence<Element> s;
    s.rows = rows;
    s.first_position = past;
    if (pinned > 0) s.segments[s.segment_count++] = caches.segment(copy, 0, 0, pinned);
    s.segments[s.segment_count++] = caches.segment(copy, pinned, low, end - low);
    meter.start();
    Kernel::template run<Element>(
        exec, Scratch{memory.data(), per_thread}, shape, MatrixView<const float>(q.data(), rows, H * dk),
        std::span<const AttentionSequence<Element>>(&s, 1), MatrixView<float>(out.data(), rows, H * dv));
    meter.stop();
    copy = (copy + 1) % caches.copies;
    benchmark::ClobberMemory();
  }
  const auto bytes = static_cast<double>(held * Caches<Element>::position_bytes);
  meter.report(rows == 1 ? bytes : 0, 2 * seen * H * (dk + dv));
}

/// The columns of the input projection's output that the SSM heads read, and the other operands.
struct ScanData {
  std::int64_t rows, wide = H * dk + G * (dk + dv) + 2 * E;
  std::vector<float> projected, c, dt, bc, a, d, state, y;
  explicit ScanData(std::int64_t r)
      : rows(r),
        projected(random_floats(r * wide)),
        c(random_floats(r * E)),
        dt(random_floats(r * E, -3.0f)),
        bc(random_floats(r * (100 + 2 * N))),
        d(random_floats(E)),
        state(random_floats(N * E)),
        y(static_cast<std::size_t>(r * E)) {
    for (int n = 0; n < N; ++n) {
      for (int e = 0; e < E; ++e) a.push_back(-static_cast<float>(n + 1));
    }
  }
  ScanInputs inputs() const {
    return {{c.data(), rows, E},
            {dt.data(), rows, E},
            {projected.data() + wide - E, rows, E, wide},
            {bc.data() + 100, rows, N, 100 + 2 * N},
            {bc.data() + 100 + N, rows, N, 100 + 2 * N},
            a.data(),
            d.data()};
  }
  double bytes() const { return 4.0 * (static_cast<double>(rows) * E * 4 + 3.0 * N * E); }
  double flops() const { return static_cast<double>(rows) * E * (N * 7.0 + 8); }
};

template <class Arch>
void scan(benchmark::State& state, std::int64_t rows) {
  ScanData data(rows);
  DefaultExecutor exec(hymba_bench::threads());
  const ScanSequence s{0, rows, data.state.data()};
  Meter meter(state);
  for (auto _ : state) {
    meter.start();
    kernel_for<op::SelectiveScan, Arch>::run(exec, Scratch{}, data.inputs(), std::span<const ScanSequence>(&s, 1),
                                             MatrixView<float>(data.y.data(), rows, E));
    meter.stop();
    benchmark::ClobberMemory();
  }
  meter.report(data.bytes(), data.flops());
}

template <class Arch>
void convolution(benchmark::State& state, std::int64_t rows) {
  const ScanData data(rows);
  const auto weight = random_floats(K * E), bias = random_floats(E);
  auto tail = random_floats((K - 1) * E);
  std::vector<float> y(static_cast<std::size_t>(rows * E));
  DefaultExecutor exec(hymba_bench::threads());
  const ConvSequence s{0, rows, tail.data()};
  Meter meter(state);
  for (auto _ : state) {
    meter.start();
    kernel_for<op::Conv1d, Arch>::run(
        exec, Scratch{}, MatrixView<const float>(data.projected.data(), rows, E, data.wide), weight.data(), bias.data(),
        K, std::span<const ConvSequence>(&s, 1), MatrixView<float>(y.data(), rows, E));
    meter.stop();
    benchmark::ClobberMemory();
  }
  meter.report(8.0 * static_cast<double>(rows) * E, 0);
}

/// The operations that pass over rows once; `bytes` read and written per row.
template <class Run>
void rows_of(benchmark::State& state, double bytes, std::int64_t rows, Run run) {
  DefaultExecutor exec(hymba_bench::threads());
  Meter meter(state);
  for (auto _ : state) {
    meter.start();
    run(exec);
    meter.stop();
    benchmark::ClobberMemory();
  }
  meter.report(bytes * static_cast<double>(rows), 0);
}

void rms_norm(benchmark::State& state, std::int64_t rows) {
  const auto x = random_floats(rows * D), w = random_floats(D);
  std::vector<float> y(x.size());
  rows_of(state, 8.0 * D, rows, [&](auto& exec) {
    kernel_for<op::RmsNorm, arch::best>::run(exec, Scratch{}, MatrixView<const float>(x.data(), rows, D), w.data(),
                                             1e-6f, MatrixView<float>(y.data(), rows, D));
  });
}
void fuse_norms(benchmark::State& state, std::int64_t rows) {
  const auto a = random_floats(rows * E), s = random_floats(rows * E), w = random_floats(E);
  std::vector<float> y(a.size());
  rows_of(state, 12.0 * E, rows, [&](auto& exec) {
    kernel_for<op::FuseNorms, arch::best>::run(exec, Scratch{}, MatrixView<const float>(a.data(), rows, E),
                                               MatrixView<const float>(s.data(), rows, E), w.data(), w.data(), 1e-6f,
                                               MatrixView<float>(y.data(), rows, E));
  });
}
void rope(benchmark::State& state, std::int64_t rows) {
  auto x = random_floats(rows * H * dk);
  const std::vector<float> cos(static_cast<std::size_t>(rows * dk / 2), 0.6f), sin(cos.size(), 0.8f);
  rows_of(state, 8.0 * H * dk, rows, [&](auto& exec) {
    kernel_for<op::Rope, arch::best>::run(exec, Scratch{}, MatrixView<float>(x.data(), rows, H * dk), H, dk,
                                          MatrixView<const float>(cos.data(), rows, dk / 2),
                                          MatrixView<const float>(sin.data(), rows, dk / 2));
  });
}
void swiglu(benchmark::State& state, std::int64_t rows) {
  const auto gate = random_floats(rows * F), up = random_floats(rows * F);
  std::vector<float> y(gate.size());
  rows_of(state, 12.0 * F, rows, [&](auto& exec) {
    kernel_for<op::SwiGlu, arch::best>::run(exec, Scratch{}, MatrixView<const float>(gate.data(), rows, F),
                                            MatrixView<const float>(up.data(), rows, F),
                                            MatrixView<float>(y.data(), rows, F));
  });
}

template <class... Args>
void add(const std::string& name, Args... args) {
  benchmark::RegisterBenchmark(name.c_str(), args...)->UseRealTime()->Unit(benchmark::kMicrosecond)->MinTime(0.3);
}

template <class Arch, class Element>
void add_attention(const std::string& name) {
  for (const std::int64_t past : {1024, 8192, 32768}) {
    add("decode_global/" + name + "/" + std::to_string(past), attention<Arch, Element>, past, std::int64_t{1}, false);
  }
  add("decode_window/" + name + "/8192", attention<Arch, Element>, std::int64_t{8192}, std::int64_t{1}, true);
  for (const std::int64_t rows : {512, 2048}) {
    for (const std::int64_t past : {0, 8192}) {
      const std::string start = "prefill" + std::to_string(rows), at = "/" + name + "/" + std::to_string(past);
      add(start + "_global" + at, attention<Arch, Element>, past, rows, false);
      add(start + "_window" + at, attention<Arch, Element>, past, rows, true);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_attention<arch::best, float>("f32");
  add_attention<arch::best, f16>("f16");
  add_attention<arch::best, bf16>("bf16");
  add_attention<arch::best, std::int8_t>("int8");
#if defined(HYMBA_AMX)
  if (amx_available()) {
    add_attention<arch::amx<arch::best>, bf16>("bf16_amx");
    add_attention<arch::amx<arch::best>, std::int8_t>("int8_amx");
  } else {
    std::fprintf(stderr, "no AMX on this machine: attention on tiles is left out\n");
  }
#endif
#if HYMBA_DOT_BF16
  if (dot_available()) {
    add_attention<arch::dot<arch::best>, bf16>("bf16_dot");
    add_attention<arch::dot<arch::best>, std::int8_t>("int8_dot");
  } else {
    std::fprintf(stderr, "no dot products of bf16 on this machine: attention on them is left out\n");
  }
#endif
  for (const std::int64_t rows : {1, 512}) {
    const std::string tail = "/T" + std::to_string(rows);
    add("scan" + tail, scan<arch::best>, rows);
    add("scan_plain" + tail, scan<arch::scalar>, rows);
    add("conv1d" + tail, convolution<arch::best>, rows);
    add("conv1d_plain" + tail, convolution<arch::scalar>, rows);
    add("rms_norm" + tail, rms_norm, rows);
    add("fuse_norms" + tail, fuse_norms, rows);
    add("rope" + tail, rope, rows);
    add("swiglu" + tail, swiglu, rows);
  }
  benchmark::RunSpecifiedBenchmarks();
  std::fprintf(stderr, "limits with %d threads: read %.1f GB/s, multiply-add %.1f GFLOP/s\n", hymba_bench::threads(),
               limits().read * 1e-9, limits().peak * 1e-9);
  benchmark::Shutdown();
  return 0;
}
