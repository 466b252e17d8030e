// SPDX-License-Identifier: Apache-2.0
//
// The machine's own limits, measured in the process that compares itself with them: read bandwidth of memory, and the
// peaks of the units that multiply matrices (single-precision multiply-adds, AMX tiles in bf16 and int8, dot products
// of bytes and of bf16). The best of several ways and repetitions: a limit is what was reached once. The benches and `hymba bench`
// share this file.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/amx/tiles.hpp>
#include <hymba/kernels/dot/bf16_unit.hpp>
#include <hymba/kernels/dot/units.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

namespace hymba_bench {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// How many threads a bench uses: HYMBA_BENCH_THREADS, else all.
inline int threads() {
  static const int n = [] {
    const char* text = std::getenv("HYMBA_BENCH_THREADS");
    return hymba::DefaultExecutor(text != nullptr ? std::atoi(text) : 0).threads();
  }();
  return n;
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

#if defined(HYMBA_AMX)
/// Products of tiles that stay in registers, in six chains: a product takes 16 cycles, and its sums are ready after
/// some 52. `multiply` holds the six products. The number of operations done: a product is 16 x 16 sums of `depth`.
template <class Multiply>
inline double multiply_tiles(std::int64_t rounds, int depth, Multiply&& multiply) {
  const hymba::detail::amx::TileScope tiles;
  alignas(64) std::uint8_t numbers[1024];
  std::memset(numbers, 0x3c, sizeof(numbers));  // 0.0115 as bf16, 60 as a byte: no zeros, no infinite sums
  hymba::detail::amx::written_before_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_loadd(6, numbers, 64);
  _tile_loadd(7, numbers, 64);
  for (std::int64_t i = 0; i < rounds; ++i) multiply();
  _tile_stored(0, numbers, 64);
  keep(static_cast<float>(numbers[0]));
  return 2.0 * static_cast<double>(rounds) * 6 * 16 * 16 * depth;
}
#endif

#if defined(HYMBA_DOT)
/// Dot products of four bytes each in independent chains; the number of operations done.
inline double multiply_bytes(std::int64_t rounds) {
  using Unit = hymba::detail::dot::Best;
  constexpr int chains = 12;  // as above
  alignas(64) std::int8_t numbers[4 * Unit::lanes];
  std::memset(numbers, 3, sizeof(numbers));
  typename Unit::Ints acc[chains];
#pragma GCC unroll 12
  for (int c = 0; c < chains; ++c) acc[c] = Unit::same(c);
  const typename Unit::Bytes a = Unit::load(numbers);
  typename Unit::Bytes b = a;
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) {
      // A new operand as far as the compiler knows, that it multiplies anew.
#if defined(__aarch64__)
      __asm__ volatile("" : "+w"(b));
#else
      __asm__ volatile("" : "+x"(b));
#endif
      acc[c] = Unit::dot(acc[c], a, b);
    }
  }
#pragma GCC unroll 12
  for (int c = 1; c < chains; ++c) acc[0] = Unit::subtract(acc[0], acc[c]);
  Unit::store(numbers, Unit::bytes(acc[0]));
  keep(static_cast<float>(numbers[0]));
  return 2.0 * static_cast<double>(rounds) * chains * sizeof(numbers);
}
#endif

#if HYMBA_DOT_BF16
/// Dot products of two bf16 each likewise.
inline double multiply_bf16(std::int64_t rounds) {
  using Unit = hymba::detail::dot::Bf16Unit;
  constexpr int chains = 12;  // as above
  alignas(64) hymba::bf16 numbers[Unit::columns];
  for (hymba::bf16& number : numbers) number = hymba::bf16(0.01f);
  typename Unit::Sums acc[chains];
#pragma GCC unroll 12
  for (int c = 0; c < chains; ++c) acc[c] = hymba::simd::broadcast<Unit::A>(static_cast<float>(c));
  const typename Unit::Vector a = Unit::load(numbers);
  typename Unit::Vector b = a;
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) {
      // As above.
#if defined(__aarch64__)
      __asm__ volatile("" : "+w"(b));
#else
      __asm__ volatile("" : "+x"(b));
#endif
      acc[c] = Unit::multiply_add(a, b, acc[c]);
    }
  }
  float sums[chains];
  hymba::simd::sums<Unit::A>(acc, sums);
#pragma GCC unroll 12
  for (int c = 0; c < chains; ++c) keep(sums[c]);
  return 2.0 * static_cast<double>(rounds) * chains * Unit::columns;
}
#endif

/// The best rate, in 1e9 operations a second, over `repetitions` runs in which every thread calls `body`, which returns
/// the number of its operations. Begins none after a second, as below.
template <class Body>
inline double best_rate(int threads, int repetitions, Body&& body) {
  hymba::DefaultExecutor exec(threads);
  double best = 0.0;
  const auto begin = Clock::now();
  for (int repetition = 0; repetition < repetitions && (best == 0.0 || seconds_since(begin) < 1.0); ++repetition) {
    double done = 0.0;
    const auto start = Clock::now();
    exec.parallel_for(threads, [&](std::int64_t task, int) noexcept {
      const double mine = body();
      if (task == 0) done = mine;
    });
    best = std::max(best, done * threads / seconds_since(start));
  }
  return best * 1e-9;
}

}  // namespace detail

/// A way of reading memory: streams of each thread, and how far ahead of the loads these are fetched, in bytes.
struct ReadingWay {
  int streams = 1;
  std::int64_t ahead = 0;
};

namespace detail {
/// Reads `count` floats, a multiple of 512.
inline void read(ReadingWay way, const float* from, std::int64_t count) {
  switch (way.streams) {
    case 1: return keep(read<1>(from, count, way.ahead));
    case 2: return keep(read<2>(from, count, way.ahead));
    case 4: return keep(read<4>(from, count, way.ahead));
    default: return keep(read<8>(from, count, way.ahead));
  }
}
inline constexpr std::int64_t read_unit = 8 * 64;  ///< floats: what eight streams take at once
}  // namespace detail

struct ReadLimit {
  double gb_s = 0;  ///< 1e9 bytes a second
  ReadingWay way;   ///< that reached it
};

/// Read bandwidth of memory with `threads` threads: the best over streams per thread, prefetch distances and
/// repetitions, each over `bytes` of memory. Ends after `seconds_most`, with what it has then: a build without
/// optimisation, or a machine that is busy, would take minutes.
inline ReadLimit read_limit(int threads, std::size_t bytes = std::size_t{1} << 30, int repetitions = 2,
                            double seconds_most = 5.0) {
  hymba::DefaultExecutor exec(threads);
  constexpr std::int64_t unit = detail::read_unit;
  const std::int64_t each = static_cast<std::int64_t>(bytes / sizeof(float)) / threads / unit * unit;
  hymba::AlignedBuffer memory(static_cast<std::size_t>(each * threads) * sizeof(float));
  const auto* data = reinterpret_cast<const float*>(memory.data());
  exec.parallel_for(threads, [&](std::int64_t task, int) noexcept {
    std::memset(memory.data() + static_cast<std::size_t>(task * each) * sizeof(float), 1,
                static_cast<std::size_t>(each) * sizeof(float));
  });
  ReadLimit best;
  const auto begin = Clock::now();
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    for (const std::int64_t ahead : {0, 512, 1024, 2048, 4096}) {
      for (const int streams : {1, 2, 4, 8}) {
        if (best.gb_s > 0.0 && seconds_since(begin) > seconds_most) return best;
        const ReadingWay way{streams, ahead};
        const auto start = Clock::now();
        exec.parallel_for(
            threads, [&](std::int64_t task, int) noexcept { detail::read(way, data + task * each, each); });
        const double rate = static_cast<double>(each * threads) * sizeof(float) / seconds_since(start) * 1e-9;
        if (rate > best.gb_s) best = {rate, way};
      }
    }
  }
  return best;
}

/// The rate in GB/s at which the threads of `exec` read `blocks` from one to the last, each thread its part of all of
/// them, over and over until `seconds` are gone: at least once. 0 when there is nothing of 256 bytes to read.
template <class Exec>
double rate_of_reading(Exec& exec, std::span<const std::span<const std::byte>> blocks, ReadingWay way, double seconds) {
  constexpr std::int64_t unit = 64, units_at_once = detail::read_unit / unit;  // floats; streams take eight units
  struct Part {
    const float* from;
    std::int64_t units;
  };
  // A block begins where a checkpoint has it, numbers of 16 bits perhaps between two floats.
  const auto whole = [](std::span<const std::byte> block) -> Part {
    const std::size_t skipped = -reinterpret_cast<std::uintptr_t>(block.data()) % alignof(float);
    if (block.size() <= skipped) return {nullptr, 0};
    return {reinterpret_cast<const float*>(block.data() + skipped),
            static_cast<std::int64_t>((block.size() - skipped) / (unit * sizeof(float)))};
  };
  double bytes_of_round = 0;
  for (const std::span<const std::byte> block : blocks) {
    bytes_of_round += static_cast<double>(whole(block).units * unit) * sizeof(float);
  }
  if (bytes_of_round == 0) return 0;
  const std::int64_t threads = exec.threads();
  double bytes = 0;
  const auto start = Clock::now();
  do {
    // Executors flush denormals, so that adding takes one time whatever the bytes are as floats.
    exec.parallel_for(threads, [&](std::int64_t task, int) noexcept {
      for (const std::span<const std::byte> block : blocks) {
        const Part all = whole(block);
        const std::int64_t first = all.units * task / threads, last = all.units * (task + 1) / threads;
        const std::int64_t middle = last - (last - first) % units_at_once;
        if (middle > first) detail::read(way, all.from + first * unit, (middle - first) * unit);
        if (last > middle) keep(detail::read<1>(all.from + middle * unit, (last - middle) * unit, 0));
      }
    });
    bytes += bytes_of_round;
  } while (seconds_since(start) < seconds);
  return bytes / seconds_since(start) * 1e-9;
}

/// Peak of single-precision multiply-adds with `threads` threads in GFLOP/s: the best of several runs of ~10 ms.
inline double multiply_add_peak(int threads, int repetitions = 10) {
  return detail::best_rate(threads, repetitions, [] {
    float seed = 0.5f;
    const double done = detail::multiply_add(1'000'000, seed);
    keep(seed);
    return done;
  });
}

/// Peak of AMX tiles on bf16 (tdpbf16ps) with `threads` threads in GFLOP/s; 0 where there are none, or the program was
/// compiled without them.
inline double bf16_tile_peak([[maybe_unused]] int threads, [[maybe_unused]] int repetitions = 10) {
#if defined(HYMBA_AMX)
  if (hymba::amx_available()) {
    return detail::best_rate(threads, repetitions, [] {
      return detail::multiply_tiles(200'000, 32, [] {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
      });
    });
  }
#endif
  return 0.0;
}

/// Peak of AMX tiles on bytes (tdpbssd) with `threads` threads in 1e9 operations a second; 0 as above.
inline double int8_tile_peak([[maybe_unused]] int threads, [[maybe_unused]] int repetitions = 10) {
#if defined(HYMBA_AMX) && (defined(__AMX_INT8__) || defined(__AMXINT8__))
  if (hymba::amx_available()) {
    return detail::best_rate(threads, repetitions, [] {
      return detail::multiply_tiles(200'000, 64, [] {
        _tile_dpbssd(0, 6, 7);
        _tile_dpbssd(1, 6, 7);
        _tile_dpbssd(2, 6, 7);
        _tile_dpbssd(3, 6, 7);
        _tile_dpbssd(4, 6, 7);
        _tile_dpbssd(5, 6, 7);
      });
    });
  }
#endif
  return 0.0;
}

/// Peak of the dot products of bytes of arch::dot with `threads` threads in 1e9 operations a second; 0 where there are
/// none, or the program was compiled without them.
inline double byte_dot_peak([[maybe_unused]] int threads, [[maybe_unused]] int repetitions = 10) {
#if defined(HYMBA_DOT)
  if (hymba::dot_available()) {
    return detail::best_rate(threads, repetitions, [] { return detail::multiply_bytes(1'000'000); });
  }
#endif
  return 0.0;
}

/// Peak of the dot products of bf16 of arch::dot with `threads` threads in GFLOP/s; 0 as above, or where bf16 weights
/// run on the base.
inline double bf16_dot_peak([[maybe_unused]] int threads, [[maybe_unused]] int repetitions = 10) {
#if HYMBA_DOT_BF16
  if (hymba::dot_available()) {
    return detail::best_rate(threads, repetitions, [] { return detail::multiply_bf16(1'000'000); });
  }
#endif
  return 0.0;
}

}  // namespace hymba_bench
