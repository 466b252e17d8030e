// SPDX-License-Identifier: Apache-2.0
//
// The machine's own limits, measured in the process that compares itself with them: read bandwidth of memory, and peak
// of single-precision multiply-adds. The best of several ways and repetitions: a limit is what was reached once.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/exec/simd.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hymba_bench {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Keeps the compiler from dropping what computed `value`.
inline void keep(float value) {
  [[maybe_unused]] static volatile float sink;
  sink = value;
}

namespace detail {

using Best = xsimd::default_arch;
using Floats = hymba::simd::floats<Best>;
inline constexpr std::int64_t lanes = hymba::simd::lanes<Best>;

/// Sums `count` floats (a multiple of Streams * 64) read as `Streams` streams, each fetched `ahead` bytes in advance.
template <int Streams>
inline float read(const float* from, std::int64_t count, std::int64_t ahead) {
  const std::int64_t each = count / Streams;
  Floats acc[Streams];
  for (auto& a : acc) a = hymba::simd::zero<Best>();
  for (std::int64_t i = 0; i < each; i += 64) {
    for (int s = 0; s < Streams; ++s) {
      const float* p = from + s * each + i;
      if (ahead > 0) {
        for (std::int64_t line = 0; line < 64; line += 16) {
          hymba::simd::prefetch(reinterpret_cast<const char*>(p + line) + ahead);
        }
      }
      for (std::int64_t j = 0; j < 64; j += lanes) acc[s] += hymba::simd::load<Best>(p + j);
    }
  }
  Floats total = acc[0];
  for (int s = 1; s < Streams; ++s) total += acc[s];
  return hymba::simd::sum<Best>(total);
}

/// Multiply-adds in independent chains; the number of floating-point operations done.
inline double multiply_add(std::int64_t rounds, float& out) {
  constexpr int chains = 12;  // covers two pipelines of latency 4 or 5; more would not stay in 16 registers
  Floats acc[chains];
#pragma GCC unroll 12
  for (int c = 0; c < chains; ++c) acc[c] = hymba::simd::broadcast<Best>(static_cast<float>(c));
  const Floats scale = hymba::simd::broadcast<Best>(0.999f);
  const Floats shift = hymba::simd::broadcast<Best>(out);
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) acc[c] = hymba::simd::fma<Best>(acc[c], scale, shift);
  }
  Floats total = acc[0];
#pragma GCC unroll 12
  for (int c = 1; c < chains; ++c) total += acc[c];
  out = hymba::simd::sum<Best>(total);
  return 2.0 * static_cast<double>(rounds) * chains * lanes;
}

}  // namespace detail

/// Read bandwidth of memory with `threads` threads in GB/s (1e9 bytes): the best over streams per thread, prefetch
/// distances and repetitions, each over `bytes` of memory.
inline double read_bandwidth(int threads, std::size_t bytes = std::size_t{1} << 30, int repetitions = 2) {
  hymba::DefaultExecutor exec(threads);
  constexpr std::int64_t unit = 8 * 64;
  const std::int64_t each = static_cast<std::int64_t>(bytes / sizeof(float)) / threads / unit * unit;
  hymba::AlignedBuffer memory(static_cast<std::size_t>(each * threads) * sizeof(float));
  const auto* data = reinterpret_cast<const float*>(memory.data());
  exec.parallel_for(threads, [&](std::int64_t task, int) noexcept {
    std::memset(memory.data() + static_cast<std::size_t>(task * each) * sizeof(float), 1,
                static_cast<std::size_t>(each) * sizeof(float));
  });
  double best = 0.0;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    for (const std::int64_t ahead : {0, 512, 1024, 2048, 4096}) {
      for (const int streams : {1, 2, 4, 8}) {
        const auto start = Clock::now();
        exec.parallel_for(threads, [&](std::int64_t task, int) noexcept {
          const float* from = data + task * each;
          switch (streams) {
            case 1: keep(detail::read<1>(from, each, ahead)); break;
            case 2: keep(detail::read<2>(from, each, ahead)); break;
            case 4: keep(detail::read<4>(from, each, ahead)); break;
            default: keep(detail::read<8>(from, each, ahead)); break;
          }
        });
        best = std::max(best, static_cast<double>(each * threads) * sizeof(float) / seconds_since(start));
      }
    }
  }
  return best * 1e-9;
}

/// Peak of single-precision multiply-adds with `threads` threads in GFLOP/s: the best of several runs of ~10 ms.
inline double multiply_add_peak(int threads, int repetitions = 10) {
  hymba::DefaultExecutor exec(threads);
  double best = 0.0;
  constexpr std::int64_t rounds = 1'000'000;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    double done = 0.0;
    const auto start = Clock::now();
    exec.parallel_for(threads, [&](std::int64_t task, int) noexcept {
      float seed = 0.5f;
      const double mine = detail::multiply_add(rounds, seed);
      keep(seed);
      if (task == 0) done = mine;
    });
    best = std::max(best, done * threads / seconds_since(start));
  }
  return best * 1e-9;
}

}  // namespace hymba_bench
