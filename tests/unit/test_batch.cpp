// SPDX-License-Identifier: Apache-2.0
//
// A batch of sessions of different lengths and ages gives each the logits it would have had alone.
#include "model_support.hpp"

#include <random>

using namespace hymba;
using namespace model_test;

using TestModel = Model<DynamicHymba, Cpu<Weights::f32>>;

TEST_CASE_TEMPLATE("ragged batches equal single sessions", P, Cpu<Weights::f32>, Cpu<Weights::f32, Cache::int8>) {
  using AnyModel = Model<DynamicHymba, P>;
  for (const char* name : {"hymba_tiny", "groups_of_three", "window_smaller_than_meta", "window_one", "no_meta", "ssm_only",
                           "attention_only", "mixed_kinds", "odd_sizes"}) {
    CAPTURE(name);
    const auto model = AnyModel::open(golden_root() / name);
    const Golden golden = read_golden(golden_root() / name);
    const std::size_t n = golden.ids.size(), vocabulary = golden.logits.size() / n;
    const std::vector<float> whole = full_pass(model, golden.ids, room_for(n));
    std::mt19937 random(3);
    for (const std::int64_t max_rows : {1, 5, 64}) {
      CAPTURE(max_rows);
      // Each session reads a prefix of the text; at every step some of them read some more.
      constexpr std::size_t count = 5;
      std::vector<typename AnyModel::session_type> sessions;
      for (std::size_t i = 0; i < count; ++i) sessions.push_back(model.session(room_for(n)));
      auto batch = model.batch({.max_sessions = count, .threads = 2, .max_rows = max_rows});
      for (bool more = true; more;) {
        std::vector<typename AnyModel::batch_type::Item> items;
        more = false;
        for (auto& session : sessions) {
          const auto at = static_cast<std::size_t>(session.position());
          const std::size_t take = std::min<std::size_t>(random() % 9, n - at);
          if (random() % 3 == 0) continue;
          items.push_back({&session, std::span<const Token>(golden.ids).subspan(at, take)});
        }
        batch.step(items);
        for (auto& session : sessions) {
          const auto at = static_cast<std::size_t>(session.position());
          more = more || at < n;
          if (at == 0) continue;
          const std::span<const float> expected(whole.data() + (at - 1) * vocabulary, vocabulary);
          REQUIRE(relative_error(session.logits(), expected) < 2e-5);
        }
      }
    }
  }
}

TEST_CASE("batched decoding: one token each, for sessions of different ages") {
  const auto model = TestModel::open(golden_root() / "hymba_tiny");
  const Golden golden = read_golden(golden_root() / "hymba_tiny");
  const std::size_t n = golden.ids.size(), vocabulary = golden.logits.size() / n;
  std::vector<TestModel::session_type> sessions;
  std::vector<Session<DynamicHymba, Cpu<Weights::f32>>*> pointers;
  for (std::size_t i = 0; i < 7; ++i) {
    sessions.push_back(model.session({.max_context = 200, .threads = 1}));
    sessions.back().prefill(std::span<const Token>(golden.ids).first(i * 4));
  }
  for (auto& s : sessions) pointers.push_back(&s);
  auto batch = model.batch({.max_sessions = 8, .threads = 1});
  for (int step = 0; step < 15; ++step) {
    std::vector<Token> next;
    for (auto* s : pointers) next.push_back(golden.ids[static_cast<std::size_t>(s->position())]);
    batch.decode(pointers, next);
    for (auto* s : pointers) {
      const auto at = static_cast<std::size_t>(s->position());
      REQUIRE(relative_error(s->logits(), std::span(golden.logits).subspan((at - 1) * vocabulary, vocabulary)) < 2e-5);
    }
  }
}

TEST_CASE("a bad batch is refused whole") {
  const auto model = TestModel::open(golden_root() / "hymba_tiny");
  const auto other = TestModel::open(golden_root() / "hymba_tiny");
  auto a = model.session({.max_context = 8, .threads = 1}), b = model.session({.max_context = 4, .threads = 1});
  auto foreign = other.session({.max_context = 8, .threads = 1});
  auto batch = model.batch({.max_sessions = 2, .threads = 1});
  const std::vector<Token> five = {1, 2, 3, 4, 5}, bad = {1, 999999};
  using Item = TestModel::batch_type::Item;
  const auto refused = [&](std::vector<Item> items) {
    CHECK_THROWS_AS(batch.step(items), Error);
    CHECK(a.position() == 0);
    CHECK(b.position() == 0);
  };
  refused({{&a, five}, {&b, five}});
  refused({{&a, five}, {&b, bad}});
  refused({{&a, five}, {&a, five}});
  refused({{&a, five}, {&foreign, five}});
  refused({{&a, five}, {nullptr, five}});
  refused({{&a, five}, {&b, {}}, {&foreign, {}}});
  CHECK_THROWS_WITH_AS(batch.step(std::vector<Item>{{&a, five}, {&b, five}}),
                       "batch: session 1: 5 tokens do not fit: the session holds 0 of max_context 4", ContextError);
  CHECK_THROWS_AS(model.batch({.max_sessions = 0}), ArgumentError);
  CHECK_THROWS_AS(model.batch({.max_rows = 0}), ArgumentError);
  batch.step(std::vector<Item>{{&a, five}, {&b, {}}});
  CHECK(a.position() == 5);
  CHECK(b.logits().empty());
  batch.step(std::vector<Item>{});
}
