// SPDX-License-Identifier: Apache-2.0
//
// However a text is read, the logits are the same: in one pass, in chunks of every size, token by token, in a batch of
// ragged sessions, restored from a snapshot, forked.
//
// Tolerance: the ways differ only in how sums are grouped, so each stays as close to the others as the f32 pass is to
// the oracle (2e-5 of the largest logit), whatever the cache format: what is read back from the cache is the same number.
#include <hymba/exec/amx.hpp>
#include <hymba/kernels/amx/gemm.hpp>

#include "model_support.hpp"

#include <cstdlib>
#include <cstring>
#include <random>

using namespace hymba;
using namespace model_test;

namespace {

constexpr double tolerance = 2e-5;

/// Calls `body(name, model, golden)` for each golden.
template <class P, class Body>
void for_goldens(std::initializer_list<const char*> names, Body&& body) {
  for (const char* name : names) {
    CAPTURE(name);
    body(Model<DynamicHymba, P>::open(golden_root() / name), read_golden(golden_root() / name));
  }
}

const std::initializer_list<const char*> varied = {
    "hymba_tiny", "groups_of_three", "window_smaller_than_meta", "window_one", "no_meta",      "all_windows",
    "odd_sizes",  "mixed_kinds",     "ssm_only",                 "attention_only", "dynamic_ntk", "conv_taps_2"};

template <class P>
void check_chunks() {
  for_goldens<P>(varied, [](const auto& model, const Golden& golden) {
    const std::span<const Token> ids = golden.ids;
    const std::size_t n = ids.size();
    const std::vector<float> whole = full_pass(model, ids, room_for(n));
    for (std::size_t chunk = 1; chunk <= n; ++chunk) {
      CAPTURE(chunk);
      REQUIRE(relative_error(pass_in_chunks(model, ids, chunk, room_for(n)), whole) < tolerance);
    }
    // The same split done inside the session.
    for (const std::int64_t inner : {1, 3, 7}) {
      auto options = room_for(n);
      options.prefill_chunk = inner;
      REQUIRE(relative_error(full_pass(model, ids, options), whole) < tolerance);
    }
  });
}

/// A session restored or forked after some tokens goes on exactly as the one it came from, with more room too.
template <class P>
void check_snapshots() {
  for_goldens<P>(varied, [](const auto& model, const Golden& golden) {
    const std::span<const Token> ids = golden.ids;
    const std::size_t n = ids.size();
    for (const std::size_t at : {std::size_t{0}, std::size_t{1}, n / 3, n - 2, n - 1}) {
      CAPTURE(at);
      auto session = model.session(room_for(n));
      session.configure({.temperature = 0.8f, .seed = 5});
      session.prefill(ids.first(at));
      if (at > 0) session.sample();  // the generator has moved on
      const std::vector<std::byte> blob = session.snapshot();
      auto restored = model.restore(blob, {.max_context = static_cast<std::int64_t>(2 * n), .threads = 1});
      auto forked = session.fork();
      CHECK(std::vector<Token>(restored.tokens().begin(), restored.tokens().end()) ==
            std::vector<Token>(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(at)));
      CHECK(restored.snapshot() == blob);
      CHECK(forked.snapshot() == blob);
      for (std::size_t i = at; i < n; ++i) {
        const auto expected = session.decode(ids[i]);
        const std::vector<float> want(expected.begin(), expected.end());
        const auto got = restored.decode(ids[i]);
        REQUIRE(std::vector<float>(got.begin(), got.end()) == want);
        const auto other = forked.decode(ids[i]);
        REQUIRE(std::vector<float>(other.begin(), other.end()) == want);
        REQUIRE(session.sample() == restored.sample());
      }
    }
  });
}

std::vector<float> last_row(const std::vector<float>& logits, std::size_t row, std::size_t vocabulary) {
  return {logits.begin() + static_cast<std::ptrdiff_t>(row * vocabulary),
          logits.begin() + static_cast<std::ptrdiff_t>((row + 1) * vocabulary)};
}

}  // namespace

TEST_CASE("chunked reading equals one pass: f32 cache") { check_chunks<Cpu<Weights::f32, Cache::f32>>(); }
TEST_CASE("chunked reading equals one pass: f16 cache") { check_chunks<Cpu<Weights::f32, Cache::f16>>(); }
TEST_CASE("chunked reading equals one pass: bf16 cache and weights") { check_chunks<Cpu<Weights::bf16, Cache::bf16>>(); }
TEST_CASE("chunked reading equals one pass: int8 cache") { check_chunks<Cpu<Weights::f32, Cache::int8>>(); }
TEST_CASE("chunked reading equals one pass: int8 cache, plain loops") {
  check_chunks<Cpu<Weights::f32, Cache::int8, arch::scalar, Serial>>();
}

TEST_CASE("on tiles: chunked reading equals one pass, snapshots continue bit for bit, int8 cache") {
#if defined(HYMBA_AMX)
  if (!amx_available()) return;
  using P = Cpu<Weights::bf16, Cache::int8, arch::amx<arch::best>>;
  check_chunks<P>();
  check_snapshots<P>();
#else
  MESSAGE("not compiled for AMX: sessions on tiles are not tested");
#endif
}

TEST_CASE("prefill and decode give the logits of evaluate") {
  for_goldens<Cpu<Weights::f32>>(varied, [](const auto& model, const Golden& golden) {
    const std::span<const Token> ids = golden.ids;
    const std::size_t n = ids.size(), vocabulary = golden.logits.size() / n;
    const std::vector<float> whole = full_pass(model, ids, room_for(n));
    auto session = model.session(room_for(n));
    session.prefill(ids.first(n / 2));
    CHECK(relative_error(session.logits(), last_row(whole, n / 2 - 1, vocabulary)) < tolerance);
    for (std::size_t i = n / 2; i < n; ++i) {
      REQUIRE(relative_error(session.decode(ids[i]), last_row(whole, i, vocabulary)) < tolerance);
    }
    CHECK(session.position() == static_cast<std::int64_t>(n));
    CHECK(session.room() == 0);
  });
}

TEST_CASE("results do not depend on the number of threads") {
  for_goldens<Cpu<Weights::f32>>({"hymba_tiny", "odd_sizes"}, [](const auto& model, const Golden& golden) {
    const auto one = full_pass(model, golden.ids, {.max_context = 100, .threads = 1});
    for (const int threads : {2, 3, 8}) {
      CHECK(full_pass(model, golden.ids, {.max_context = 100, .threads = threads}) == one);
    }
  });
}

TEST_CASE("a larger max_context changes nothing") {
  for_goldens<Cpu<Weights::f32>>(varied, [](const auto& model, const Golden& golden) {
    const auto exact = full_pass(model, golden.ids, room_for(golden.ids.size()));
    CHECK(relative_error(full_pass(model, golden.ids, {.max_context = 300, .threads = 1}), exact) < tolerance);
  });
}

TEST_CASE_TEMPLATE("a snapshot at any position continues bit for bit, also with another max_context", P,
                   Cpu<Weights::f32, Cache::bf16>, Cpu<Weights::f32, Cache::int8>) {
  check_snapshots<P>();
}

TEST_CASE("damaged, foreign and oversized snapshots are refused") {
  const auto model = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "hymba_tiny");
  const Golden golden = read_golden(golden_root() / "hymba_tiny");
  auto session = model.session({.max_context = 64, .threads = 1});
  session.prefill(golden.ids);
  const std::vector<std::byte> blob = session.snapshot();
  CHECK_NOTHROW(model.restore(blob, {.max_context = 64, .threads = 1}));

  std::mt19937 random(7);
  for (int i = 0; i < 300; ++i) {  // one flipped bit anywhere
    auto bad = blob;
    bad[random() % bad.size()] ^= static_cast<std::byte>(1u << (random() % 8));
    REQUIRE_THROWS_AS(model.restore(bad, {.max_context = 64, .threads = 1}), SnapshotError);
  }
  for (std::size_t size = 0; size < blob.size(); size += 1 + blob.size() / 97) {  // cut short
    REQUIRE_THROWS_AS(model.restore(std::span(blob).first(size), {.max_context = 64, .threads = 1}), SnapshotError);
  }
  auto longer = blob;
  longer.push_back(std::byte{0});
  CHECK_THROWS_AS(model.restore(longer, {.max_context = 64, .threads = 1}), SnapshotError);
  CHECK_THROWS_WITH_AS(model.restore(blob, {.max_context = 8, .threads = 1}),
                       "snapshot: holds 44 tokens, this session has max_context 8", SnapshotError);

  // Another model, another storage format: refused, although the sizes are the same.
  const auto other = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "no_sharing");
  CHECK_THROWS_AS(other.restore(blob, {.max_context = 64, .threads = 1}), SnapshotError);
  const auto half = Model<DynamicHymba, Cpu<Weights::f32, Cache::f16>>::open(golden_root() / "hymba_tiny");
  CHECK_THROWS_WITH_AS(half.restore(blob, {.max_context = 64, .threads = 1}),
                       "snapshot: its caches are in \"f32\", this model's in \"f16\"", SnapshotError);
}

TEST_CASE("an int8 snapshot is refused by other caches, and its damaged rows are numbers") {
  const auto model = Model<DynamicHymba, Cpu<Weights::f32, Cache::int8>>::open(golden_root() / "hymba_tiny");
  const auto whole = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "hymba_tiny");
  const Golden golden = read_golden(golden_root() / "hymba_tiny");
  auto session = model.session({.max_context = 64, .threads = 1});
  session.prefill(golden.ids);
  const std::vector<std::byte> blob = session.snapshot();
  CHECK_THROWS_WITH_AS(whole.restore(blob, {.max_context = 64, .threads = 1}),
                       "snapshot: its caches are in \"int8\", this model's in \"f32\"", SnapshotError);
  auto wide = whole.session({.max_context = 64, .threads = 1});
  wide.prefill(golden.ids);
  CHECK_THROWS_WITH_AS(model.restore(wide.snapshot(), {.max_context = 64, .threads = 1}),
                       "snapshot: its caches are in \"f32\", this model's in \"int8\"", SnapshotError);
  auto named = blob;
  named[12] = std::byte{7};
  CHECK_THROWS_WITH_AS(model.restore(named, {.max_context = 64, .threads = 1}),
                       "snapshot: its caches are in \"\\x07nt8\", this model's in \"int8\"", SnapshotError);

  // Whatever bytes a blob with a right header holds behind the logits, reading on neither crashes nor hangs.
  std::mt19937 random(11);
  const std::size_t header = sizeof(detail::SnapshotHeader);
  const std::size_t state = header + sizeof(std::int64_t) + golden.ids.size() * sizeof(Token) + sizeof(SamplerState) +
                            sizeof(std::uint64_t) + session.logits().size() * sizeof(float);
  for (int i = 0; i < 20; ++i) {
    detail::SnapshotWriter writer(blob.size());
    auto bad = blob;
    for (std::size_t at = state; at < bad.size(); ++at) bad[at] = static_cast<std::byte>(random() & 255u);
    writer.bytes(bad.data() + header, bad.size() - header);
    detail::SnapshotHeader said{};
    std::memcpy(&said, blob.data(), header);
    auto restored = model.restore(std::move(writer).finish(said.fingerprint, "int8"), {.max_context = 64, .threads = 1});
    CHECK(restored.position() == static_cast<std::int64_t>(golden.ids.size()));
    restored.decode(1);
  }
}

TEST_CASE("int8 caches take half the bytes of 16-bit ones and little of the accuracy") {
  for_goldens<Cpu<Weights::f32, Cache::int8>>(varied, [](const auto& model, const Golden& golden) {
    // A number is off by 2^-8 of its row's largest at most, in f16 caches of such models by 2^-12 of itself.
    CHECK(relative_error(full_pass(model, golden.ids, room_for(golden.ids.size())), golden.logits) < 0.1);
  });
}

TEST_CASE("past max_context: a clear error, and the session stays usable") {
  const auto model = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "hymba_tiny");
  const Golden golden = read_golden(golden_root() / "hymba_tiny");
  const std::span<const Token> ids = golden.ids;
  auto session = model.session({.max_context = 20, .threads = 1});
  session.prefill(ids.first(18));
  const auto before = session.snapshot();
  CHECK_THROWS_WITH_AS(session.prefill(ids.first(3)), "3 tokens do not fit: the session holds 18 of max_context 20",
                       ContextError);
  CHECK(session.snapshot() == before);
  session.prefill(ids.subspan(18, 2));
  CHECK_THROWS_AS(session.decode(0), ContextError);
  CHECK(relative_error(session.logits(), last_row(golden.logits, 19, session.logits().size())) < tolerance);
  session.reset();
  CHECK(session.logits().empty());
  session.prefill(ids.first(20));
  CHECK(relative_error(session.logits(), last_row(golden.logits, 19, session.logits().size())) < tolerance);
}

TEST_CASE("bad arguments name themselves and change nothing") {
  const auto model = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "hymba_tiny");
  auto session = model.session({.max_context = 20, .threads = 1});
  CHECK_THROWS_WITH_AS(session.prefill({1, -1}), doctest::Contains("token 1 is -1, expected 0 to "), ArgumentError);
  CHECK_THROWS_AS(session.prefill({1, 1 << 29}), ArgumentError);
  CHECK(session.position() == 0);
  CHECK_THROWS_AS(session.sample(), ArgumentError);
  session.prefill(std::span<const Token>());
  CHECK(session.logits().empty());
  CHECK_THROWS_WITH_AS(model.session({.max_context = 0}), "max_context is 0, expected 1 to 1073741824", ArgumentError);
  CHECK_THROWS_AS(model.session({.threads = -1}), ArgumentError);
  CHECK_THROWS_AS(model.session({.prefill_chunk = 0}), ArgumentError);
  std::vector<float> small(3);
  const Token one[1] = {1};
  CHECK_THROWS_AS(session.evaluate(one, small), ArgumentError);
  CHECK_THROWS_AS(session.resume(-1), ArgumentError);
}

TEST_CASE("generation: greedy follows the largest logit, stops where it should, equal seeds give equal text") {
  const auto model = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "hymba_tiny");
  const auto run = [&](const GenerateOptions& options, std::int64_t context = 64) {
    auto session = model.session({.max_context = context, .threads = 1});
    session.prefill({3, 4, 5});
    auto generation = session.generate(options);
    std::vector<Token> out;
    for (const Token t : generation) out.push_back(t);
    return std::pair(out, generation.finish());
  };
  const auto [greedy, finish] = run({.max_new_tokens = 12});
  CHECK(greedy.size() == 12);
  CHECK(finish == Finish::length);
  {
    auto session = model.session({.max_context = 64, .threads = 1});
    session.prefill({3, 4, 5});
    for (const Token t : greedy) {
      const auto logits = session.logits();
      CHECK(t == std::max_element(logits.begin(), logits.end()) - logits.begin());
      session.decode(t);
    }
  }
  const GenerateOptions warm{.max_new_tokens = 30, .temperature = 1.2f, .seed = 11};
  CHECK(run(warm) == run(warm));
  GenerateOptions reseeded = warm;
  reseeded.seed = 12;
  CHECK(run(warm).first != run(reseeded).first);

  GenerateOptions stopping{.max_new_tokens = 12};
  stopping.stop_tokens = {greedy[5]};
  const auto [stopped, why] = run(stopping);
  CHECK(why == Finish::stop_token);
  CHECK(stopped.size() <= 5);
  CHECK(std::equal(stopped.begin(), stopped.end(), greedy.begin()));

  CHECK(run({.max_new_tokens = 100}, 10).second == Finish::context);
  CHECK(run({.max_new_tokens = 8}, 10).second == Finish::length);  // the eighth token is given, and not read
  CHECK(run({.max_new_tokens = 0}).first.empty());
}
