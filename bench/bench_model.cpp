// SPDX-License-Identifier: Apache-2.0
//
// Whole models with random weights: Hymba-1.5B and Hymba-125M in bf16, prefill, decoding and batches, each beside the
// limit measured in the same process.
//
//   of_bandwidth   bytes of weights and cache read per token, over time, over the read bandwidth of memory
//   of_fma_peak    floating-point operations of the matrix products, over time, over the peak of multiply-adds
//   of_eigen       time of Eigen's own products (f32, same shapes, same threads) over the time of the whole prefill:
//                  above 1, a prefill with everything in it is faster than Eigen's matrix products alone
//
// HYMBA_BENCH_THREADS sets the number of threads (default: all).
#include "limits.hpp"

#include <hymba/model/model.hpp>
#include <hymba/model/random_weights.hpp>
#include <hymba/variant/presets.hpp>

#include <Eigen/Core>
#include <benchmark/benchmark.h>

#include <map>
#include <utility>
#include <vector>

namespace {

using namespace hymba;

double bandwidth() {
  static const double gb = hymba_bench::read_limit(hymba_bench::threads()).gb_s;
  return gb * 1e9;
}
double fma_peak() {
  static const double gflop = hymba_bench::multiply_add_peak(hymba_bench::threads());
  return gflop * 1e9;
}

template <class V>
using Bf16Model = Model<V, Cpu<Weights::bf16, Cache::bf16>>;

/// Each model is made once, when first asked for.
template <class V>
const Bf16Model<V>& model() {
  static const Bf16Model<V> m(architecture<V>, random_tensors(architecture<V>, 1, DType::bf16));
  return m;
}

std::vector<Token> some_tokens(std::int64_t count) {
  std::vector<Token> ids(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<Token>((i * 7919 + 13) % 32000);
  return ids;
}

/// Bytes of weight matrices one step reads, the output projection included.
template <class V>
double weight_bytes() {
  double elements = 0;
  for (const BoundTensor& t : model<V>().tensors()) {
    const bool lookup_only = t.name == "model.embed_tokens.weight" && !model<V>().architecture().tied_embeddings;
    if (t.spec.role == TensorRole::matrix && !lookup_only) elements += static_cast<double>(t.spec.elements());
  }
  return elements * 2;
}

/// Bytes of keys and values one token reads at `depth`, each reader of a shared cache counted.
template <class V>
double cache_read_bytes(std::int64_t depth) {
  const auto& a = architecture<V>;
  double elements = 0;
  for (int i = 0; i < a.layers; ++i) {
    if (!a.plan[i].has_attention()) continue;
    elements += static_cast<double>(cached_positions(a.plan[i].window, a.meta_tokens(), depth) *
                                    (a.attention.keys_width() + a.attention.values_width()));
  }
  return elements * 2;
}

template <class V>
void decode(benchmark::State& state) {
  const std::int64_t depth = state.range(0);
  auto session = model<V>().session({.max_context = depth + 4096, .threads = hymba_bench::threads()});
  session.prefill(some_tokens(depth));
  for (auto _ : state) benchmark::DoNotOptimize(session.decode(17).data());
  const double bytes = weight_bytes<V>() + cache_read_bytes<V>(depth);
  const double tokens = static_cast<double>(state.iterations());
  state.counters["bytes/s"] = benchmark::Counter(bytes * tokens, benchmark::Counter::kIsRate);
  state.counters["of_bandwidth"] = benchmark::Counter(bytes * tokens / bandwidth(), benchmark::Counter::kIsRate);
  state.counters["tokens/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
}

template <class V>
void batched_decode(benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  std::vector<typename Bf16Model<V>::session_type> sessions;
  for (std::size_t i = 0; i < count; ++i) {
    sessions.push_back(
        model<V>().session({.max_context = 1024, .threads = hymba_bench::threads(), .prefill_chunk = 64}));
    sessions.back().prefill(some_tokens(static_cast<std::int64_t>(16 + i)));
  }
  std::vector<Session<V, Cpu<Weights::bf16, Cache::bf16>>*> pointers;
  for (auto& s : sessions) pointers.push_back(&s);
  auto batch = model<V>().batch(
      {.max_sessions = static_cast<std::int64_t>(count), .threads = hymba_bench::threads(), .max_rows = 64});
  const std::vector<Token> next(count, 17);
  for (auto _ : state) batch.decode(pointers, next);
  const double tokens = static_cast<double>(state.iterations()) * static_cast<double>(count);
  state.counters["tokens/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  state.counters["of_bandwidth"] = benchmark::Counter(
      weight_bytes<V>() * static_cast<double>(state.iterations()) / bandwidth(), benchmark::Counter::kIsRate);
}

/// Seconds that Eigen's products of `rows` rows take for all matrices of the model but the embedding.
template <class V>
double eigen_seconds(std::int64_t rows) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::setNbThreads(hymba_bench::threads());
  std::map<std::pair<std::int64_t, std::int64_t>, int> shapes;
  for (const BoundTensor& t : model<V>().tensors()) {
    if (t.spec.role == TensorRole::matrix && t.name != "model.embed_tokens.weight") {
      ++shapes[{t.spec.dims[0], t.spec.dims[1]}];
    }
  }
  double total = 0;
  for (const auto& [shape, count] : shapes) {
    const Matrix x = Matrix::Random(rows, shape.second), w = Matrix::Random(shape.first, shape.second);
    Matrix y(rows, shape.first);
    double best = 1e30;
    for (int i = 0; i < 3; ++i) {
      const auto start = hymba_bench::Clock::now();
      y.noalias() = x * w.transpose();
      benchmark::DoNotOptimize(y.data());
      best = std::min(best, hymba_bench::seconds_since(start));
    }
    total += best * count;
  }
  return total;
}

template <class V>
void prefill(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const std::vector<Token> ids = some_tokens(rows);
  auto session = model<V>().session({.max_context = rows, .threads = hymba_bench::threads()});
  const double eigen = eigen_seconds<V>(std::min<std::int64_t>(rows, 512)) * static_cast<double>(rows) /
                       static_cast<double>(std::min<std::int64_t>(rows, 512));
  for (auto _ : state) {
    session.reset();
    session.prefill(ids);
  }
  double elements = 0;
  for (const BoundTensor& t : model<V>().tensors()) {
    if (t.spec.role == TensorRole::matrix && t.name != "model.embed_tokens.weight") {
      elements += static_cast<double>(t.spec.elements());
    }
  }
  const double passes = static_cast<double>(state.iterations());
  const double flop = 2 * elements * static_cast<double>(rows) * passes;
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(rows) * passes, benchmark::Counter::kIsRate);
  state.counters["FLOP/s"] = benchmark::Counter(flop, benchmark::Counter::kIsRate);
  state.counters["of_fma_peak"] = benchmark::Counter(flop / fma_peak(), benchmark::Counter::kIsRate);
  state.counters["of_eigen"] = benchmark::Counter(eigen * passes, benchmark::Counter::kIsRate);
}

}  // namespace

BENCHMARK(decode<presets::Hymba125M>)->Arg(1)->Arg(1024)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(batched_decode<presets::Hymba125M>)->Arg(1)->Arg(4)->Arg(16)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(prefill<presets::Hymba125M>)->Arg(512)->Arg(2048)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(decode<presets::Hymba1_5B>)->Arg(1)->Arg(1024)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(batched_decode<presets::Hymba1_5B>)->Arg(1)->Arg(4)->Arg(16)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(prefill<presets::Hymba1_5B>)->Arg(512)->Unit(benchmark::kMillisecond)->UseRealTime();
