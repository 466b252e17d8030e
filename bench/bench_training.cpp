// SPDX-License-Identifier: Apache-2.0
//
// Training steps of the shipped model (examples/models/jacobean-5m): forward, backward, clipping, AdamW.
//
//   FLOP/s         useful floating-point operations: three times those of a forward pass, products and attention and
//   scan;
//                  what the backward pass computes a second time is not counted
//   of_fma_peak    FLOP/s over the peak of single-precision multiply-adds measured in this process (model FLOPs
//   utilisation)
//
// HYMBA_BENCH_THREADS sets the number of threads (default: all). Beside PyTorch: tests/oracle/bench_torch_training.py.
#include <hymba/exec/amx.hpp>
#include <hymba/hymba.hpp>
#include <hymba/model/random_weights.hpp>
#include <hymba/train/trainer.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <random>

#include "limits.hpp"

namespace {

using namespace hymba;

/// The variant of examples/models/jacobean-5m.
struct Jacobean {
  using attention = AttentionHeads<6, 2, 32, 64>;
  using ssm = MambaHeads<384, 16, 4, 12>;
  using mlp = SwiGlu<448>;
  using meta = MetaTokens<16>;
  using spans = GlobalAt<0, 4, 8>::otherwise<Window<128>>;
  using sharing = ShareAdjacentWindows<3>;
  static constexpr int width = 192, layers = 9, vocabulary = 2048;
};

/// Useful operations of one training step over `sequences` windows of `context` tokens.
template <class V>
double useful_flop(std::int64_t context, std::int64_t sequences) {
  const Architecture<V>& a = architecture<V>;
  const double tokens = static_cast<double>(context + a.meta_tokens()) * static_cast<double>(sequences);
  double forward = 0;
  const auto matrices = [&](const TensorSpec& t) {
    if (t.role == TensorRole::matrix) forward += 2.0 * static_cast<double>(t.elements()) * tokens;
  };
  for (int i = 0; i < a.layers; ++i) {
    for_each_layer_tensor(a, i, [&](Part, const TensorSpec& t) { matrices(t); });
    if (a.plan[i].has_attention()) {
      double pairs = 0;
      const AttentionShape shape{1, 1, 1, 1, a.plan[i].window, a.meta_tokens(), 1.0f};
      for (std::int64_t q = 0; q < context + a.meta_tokens(); ++q) {
        const std::int64_t near = shape.window == 0 ? q + 1 : std::min<std::int64_t>(q, shape.window) + 1;
        pairs += static_cast<double>(std::min(q + 1, near + std::min<std::int64_t>(shape.pinned, q + 1 - near)));
      }
      forward += 2.0 * a.attention.query_heads * (a.attention.key_width + a.attention.value_width) * pairs *
                 static_cast<double>(sequences);
    }
    // Per channel and state: the decay, two multiply-adds, one more product.
    if (a.plan[i].has_ssm()) forward += 6.0 * a.ssm.inner * a.ssm.d_state * tokens;
  }
  // The output matrix, for the tokens alone.
  forward += 2.0 * a.vocabulary * a.width * static_cast<double>(context * sequences);
  return 3 * forward;
}

template <class V, class Arch>
void step(benchmark::State& state) {
  const std::int64_t context = state.range(0), sequences = state.range(1);
  if constexpr (!std::is_same_v<Arch, arch::best>) {
    if (!amx_available()) {
      state.SkipWithError("no AMX tiles here");
      return;
    }
  }
  TrainerOptions options;
  options.limits = {.tokens = context * sequences, .sequences = sequences, .recompute_layers = state.range(2) != 0};
  options.schedule = {.kind = Schedule::Kind::constant, .peak = 1e-3, .warmup = 0, .steps = 1'000'000};
  options.threads = hymba_bench::threads();
  Trainer<V, Cpu<Weights::f32, Cache::f32, Arch>> trainer(architecture<V>, random_tensors(architecture<V>, 1), options);
  std::mt19937 random(1);
  TrainingBatch batch;
  for (std::int64_t s = 0; s < sequences; ++s) {
    for (std::int64_t t = 0; t < context; ++t) {
      batch.tokens.push_back(static_cast<Token>(random() % static_cast<unsigned>(V::vocabulary)));
      batch.targets.push_back(static_cast<Token>(random() % static_cast<unsigned>(V::vocabulary)));
    }
    batch.lengths.push_back(context);
  }
  static const double peak = hymba_bench::multiply_add_peak(hymba_bench::threads()) * 1e9;
  for (auto _ : state) benchmark::DoNotOptimize(trainer.step(batch).loss);
  const double steps = static_cast<double>(state.iterations());
  const double flop = useful_flop<V>(context, sequences) * steps;
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(context * sequences) * steps, benchmark::Counter::kIsRate);
  state.counters["FLOP/s"] = benchmark::Counter(flop, benchmark::Counter::kIsRate);
  state.counters["of_fma_peak"] = benchmark::Counter(flop / peak, benchmark::Counter::kIsRate);
  state.counters["memory"] = static_cast<double>(trainer.network().bytes());
}

void f32_products(benchmark::State& state) { step<Jacobean, arch::best>(state); }
#if defined(HYMBA_AMX)
void bf16_products(benchmark::State& state) { step<Jacobean, arch::amx<arch::best>>(state); }
#endif

}  // namespace

BENCHMARK(f32_products)
    ->ArgNames({"context", "sequences", "recompute"})
    ->Args({512, 8, 0})
    ->Args({512, 8, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
#if defined(HYMBA_AMX)
BENCHMARK(bf16_products)
    ->ArgNames({"context", "sequences", "recompute"})
    ->Args({512, 8, 0})
    ->Args({512, 8, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
#endif
