// SPDX-License-Identifier: Apache-2.0
//
// What a model's windows, shared caches and recurrent heads save: its cache and its speed beside a plain transformer of
// the same width and number of parameters, run by the same engine on one thread.
#include <hymba/hymba.hpp>
#include <hymba/model/random_weights.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace hymba;
using Run = Cpu<Weights::bf16, Cache::bf16>;
using AnyModel = Model<DynamicHymba, Run>;

/// Attention in every layer, over everything, a cache for each: as many layers and as wide an MLP as the parameters of
/// `d` allow.
Description plain_transformer(const Description& d) {
  const std::int64_t wanted = parameters(architecture_from<DynamicHymba>(d));
  Description t = d;
  t.meta_tokens = 0;
  t.ssm = "none";
  t.fusion = "none";
  t.inner = t.d_state = t.conv_taps = t.dt_rank = 0;
  t.value_width = t.key_width;
  t.mlp = "silu";
  t.mlp_width = std::max(d.mlp_width, 2 * d.width);
  const auto with = [&](int layers) {
    t.layers = t.plan.layers = layers;
    for (int i = 0; i < layers; ++i) t.plan[i] = {LayerKind::attention, 0, i};
    return parameters(architecture_from<DynamicHymba>(t));
  };
  int layers = 1;
  while (layers < max_layers && with(layers + 1) <= wanted) ++layers;
  with(layers);
  for (int step = std::max(1, t.mlp_width / 64); with(layers) < wanted;) t.mlp_width += step;
  return t;
}

/// Seconds per token behind `depth` tokens: the best of `rounds`.
double decode_seconds(AnyModel::session_type& session, int rounds) {
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    session.decode(static_cast<Token>(i % 7 + 3));
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string folder = argc > 1 ? argv[1] : "examples/models/jacobean-5m";
  const std::int64_t deepest = argc > 2 ? std::stol(argv[2]) : 512;
  if (deepest < 256) {
    std::fprintf(stderr, "the depth is %lld, expected at least 256\n", static_cast<long long>(deepest));
    return 2;
  }
  const auto model = AnyModel::open(folder);
  const auto architecture = architecture_from<DynamicHymba>(plain_transformer(model.architecture().describe()));
  const AnyModel transformer(architecture, random_tensors(architecture, 1, DType::bf16));
  std::printf("%-28s %15s %15s\n", "", "this model", "transformer");
  std::printf("%-28s %15lld %15lld\n", "parameters", static_cast<long long>(model.parameters()),
              static_cast<long long>(transformer.parameters()));
  bool smaller = true;
  for (std::int64_t depth = 256; depth <= deepest; depth *= 4) {
    const std::vector<Token> text(static_cast<std::size_t>(depth), 3);
    auto a = model.session({.max_context = depth + 64, .threads = 1}),
         b = transformer.session({.max_context = depth + 64, .threads = 1});
    a.prefill(text);
    b.prefill(text);
    // Turn and turn about, so that what else the machine does meets both.
    double seconds_a = 1e30, seconds_b = 1e30;
    for (int i = 0; i < 8; ++i) {
      seconds_a = std::min(seconds_a, decode_seconds(a, 4));
      seconds_b = std::min(seconds_b, decode_seconds(b, 4));
    }
    const auto bytes_a = cache_bytes(model.architecture(), 2, depth), bytes_b = cache_bytes(architecture, 2, depth);
    const std::string at = "after " + std::to_string(depth) + " tokens: ";
    std::printf("%-28s %15lld %15lld\n", (at + "cache bytes").c_str(), static_cast<long long>(bytes_a),
                static_cast<long long>(bytes_b));
    std::printf("%-28s %15.0f %15.0f\n", (at + "tokens/s").c_str(), 1 / seconds_a, 1 / seconds_b);
    smaller = smaller && bytes_a < bytes_b;
  }
  return smaller ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
