// SPDX-License-Identifier: Apache-2.0
//
// Properties over random variants: odd sizes, any mix of layer kinds, windows and sharing groups.
//
//   vector kernels, chunks of random sizes, snapshots in between  ==  scalar kernels, one pass
//   a broken rule is refused with its sentence
//   caches take exactly the bytes the cost functions promise
#include "model_support.hpp"
#include "random_description.hpp"

#include <hymba/model/random_weights.hpp>

#include <random>

using namespace hymba;
using namespace model_test;
using test::Rng, test::coin, test::pick, test::random_description, test::random_tokens;

namespace {

/// Reads `ids` in random chunks; now and then goes on from a snapshot or a fork. Returns all logits.
template <class Model>
std::vector<float> wander(const Model& model, std::span<const Token> ids, Rng& rng) {
  const auto vocabulary = static_cast<std::size_t>(model.architecture().vocabulary);
  std::vector<float> logits(ids.size() * vocabulary);
  SessionOptions options{.max_context = static_cast<std::int64_t>(ids.size()), .threads = pick(rng, 1, 3),
                         .prefill_chunk = pick(rng, 1, 20)};
  auto session = model.session(options);
  for (std::size_t at = 0; at < ids.size();) {
    const std::size_t take = std::min<std::size_t>(static_cast<std::size_t>(pick(rng, 1, 13)), ids.size() - at);
    session.evaluate(ids.subspan(at, take), std::span(logits).subspan(at * vocabulary, take * vocabulary));
    at += take;
    if (pick(rng, 0, 4) == 0) {
      options.max_context += pick(rng, 0, 9);
      session = model.restore(session.snapshot(), options);
    } else if (pick(rng, 0, 4) == 0) {
      session = session.fork();
    }
  }
  return logits;
}

}  // namespace

TEST_CASE("random variants: every way of reading equals one scalar pass") {
  for (unsigned seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    const Description d = random_description(rng);
    const Architecture<DynamicHymba> a(d);
    const Rule broken = a.first_broken_rule().rule;
    CAPTURE(std::string(sentence(broken)));
    REQUIRE(broken == Rule::none);
    const std::vector<Token> ids = random_tokens(rng, d.vocabulary, static_cast<std::size_t>(pick(rng, 1, 60)));
    const Model<DynamicHymba, Cpu<Weights::f32, Cache::f32, arch::scalar, Serial>> plain(a, random_tensors(a, seed));
    const Model<DynamicHymba, Cpu<Weights::f32>> fast(a, random_tensors(a, seed));
    const std::vector<float> expected = full_pass(plain, ids, room_for(ids.size()));
    REQUIRE(relative_error(full_pass(fast, ids, room_for(ids.size())), expected) < 2e-5);
    for (int i = 0; i < 3; ++i) REQUIRE(relative_error(wander(fast, ids, rng), expected) < 2e-5);

    // A cache of 16 or 8 bits rounds keys and values once; then, again, every way of reading gives the same.
    const Model<DynamicHymba, Cpu<Weights::bf16, Cache::f16>> half(a, random_tensors(a, seed));
    const std::vector<float> rounded = full_pass(half, ids, room_for(ids.size()));
    REQUIRE(relative_error(wander(half, ids, rng), rounded) < 2e-5);
    const Model<DynamicHymba, Cpu<Weights::f32, Cache::int8>> bytes(a, random_tensors(a, seed));
    const std::vector<float> coarse = full_pass(bytes, ids, room_for(ids.size()));
    REQUIRE(relative_error(wander(bytes, ids, rng), coarse) < 2e-5);
  }
}

TEST_CASE("random variants: a session's state takes the bytes the cost functions promise") {
  for (unsigned seed = 100; seed < 140; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    const Description d = random_description(rng);
    const Architecture<DynamicHymba> a(d);
    for (const std::int64_t context : {1, 5, 100}) {
      const SessionState<bf16> state(a, context);
      // Each array is rounded up to the alignment: at most one line for each of three arrays a layer, and of five with
      // the scales of int8.
      const std::size_t promised = cache_bytes(a, sizeof(bf16), context) + state_bytes(a);
      CHECK(state.bytes() >= promised);
      CHECK(state.bytes() <= promised + static_cast<std::size_t>(d.layers) * 3 * alignment);
      const SessionState<std::int8_t> bytes(a, context);
      const std::size_t fewer = cache_bytes(a, cache_element_bytes<std::int8_t>, context) + state_bytes(a);
      CHECK(bytes.bytes() >= fewer);
      CHECK(bytes.bytes() <= fewer + static_cast<std::size_t>(d.layers) * 5 * alignment);
      for (int i = 0; i < a.layers; ++i) {
        if (state.cache(i).keys == nullptr) continue;
        CHECK(a.plan.produces(i));
        if (a.plan[i].window > 0) CHECK(state.cache(i).capacity <= d.meta_tokens + a.plan[i].window + 1);
      }
    }
  }
}

TEST_CASE("random damage to a valid plan is refused, never run") {
  int refused = 0;
  for (unsigned seed = 200; seed < 400; ++seed) {
    Rng rng(seed);
    Description d = random_description(rng);
    const int layer = pick(rng, 0, d.layers - 1);
    switch (pick(rng, 0, 5)) {
      case 0: d.plan[layer].source = pick(rng, -3, d.layers + 2); break;
      case 1: d.plan[layer].window = pick(rng, -5, 20); break;
      case 2: d.query_heads = pick(rng, -1, 7); break;
      case 3: d.inner = pick(rng, -1, 50); break;
      case 4: d.plan[layer].kind = static_cast<LayerKind>(pick(rng, 0, 2)); break;
      default: d.key_width = pick(rng, -1, 9); break;
    }
    const Architecture<DynamicHymba> a(d);
    const Rule broken = a.first_broken_rule().rule;
    if (broken == Rule::none) continue;
    ++refused;
    using Checked = Model<DynamicHymba, Cpu<Weights::f32>>;
    CHECK_THROWS_WITH_AS(Checked(a, TensorTable{}), doctest::Contains(sentence(broken)), ConfigError);
  }
  CHECK(refused > 50);
}
