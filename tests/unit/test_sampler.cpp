// SPDX-License-Identifier: Apache-2.0
#include <hymba/model/sampler.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {
std::atomic<long> allocations{0};
}

#if defined(__GNUC__)
#define KEEP_CALL __attribute__((noinline))  // inlined, gcc takes the pair below for a mismatch
#else
#define KEEP_CALL
#endif

// Counts every allocation of this program: sample() must make none.
KEEP_CALL void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size ? size : 1)) return p;
  throw std::bad_alloc();
}
KEEP_CALL void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size ? size : 1);
}
KEEP_CALL void operator delete(void* p) noexcept { std::free(p); }
KEEP_CALL void operator delete(void* p, std::size_t) noexcept { std::free(p); }

using namespace hymba;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::mt19937& rng, std::size_t n, float spread = 2.0f, bool ties = false) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(n);
  for (float& l : logits) l = ties ? std::round(normal(rng)) : normal(rng);
  return logits;
}

/// Ids by rank: most likely first, lowest id first among equals. A full sort: the reference.
std::vector<std::size_t> ranking(const std::vector<float>& logits) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  return order;
}

std::vector<double> probabilities(const std::vector<float>& logits, double temperature) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p(logits.size());
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) sum += p[i] = std::exp((logits[i] - top) / temperature);
  for (double& x : p) x /= sum;
  return p;
}

/// The filters by their definition: what they drop becomes -infinity. False when rounding could decide otherwise: the
/// probability reaches p, or a token reaches min_p, to within 1e-6.
bool filtered(const std::vector<float>& logits, const SamplingOptions& o, std::vector<float>& out) {
  out = logits;
  const auto order = ranking(logits);
  const auto p = probabilities(logits, o.temperature);
  const std::size_t k =
      o.top_k == 0 ? logits.size() : std::min<std::size_t>(static_cast<std::size_t>(o.top_k), logits.size());
  double kept = 0;
  for (std::size_t i = 0; i < k; ++i) kept += p[order[i]];
  double before = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t id = order[i];
    const double reached = before / kept;
    const double relative = p[id] / p[order[0]];
    if (i < k && i > 0 && o.top_p < 1 && std::abs(reached - static_cast<double>(o.top_p)) < 1e-6) return false;
    if (i > 0 && o.min_p > 0 && std::abs(relative - static_cast<double>(o.min_p)) < 1e-6) return false;
    if (i >= k || (i > 0 && o.top_p < 1 && reached >= static_cast<double>(o.top_p)) ||
        relative < static_cast<double>(o.min_p))
      out[id] = -kInfinity;
    before += p[id];
  }
  return true;
}

/// The value a chi-square variable exceeds with probability 3e-5 (4 standard deviations; Wilson and Hilferty 1931).
double chi_square_limit(double freedom) {
  const double a = 2.0 / (9.0 * freedom);
  return freedom * std::pow(1.0 - a + 4.0 * std::sqrt(a), 3);
}

/// Draws `n` tokens and holds their counts against `p`. Cells with an expectation below 5 are put together.
void check_distribution(Sampler& sampler, const std::vector<float>& logits, const std::vector<double>& p, int n) {
  std::vector<int> counts(p.size());
  for (int i = 0; i < n; ++i) ++counts[static_cast<std::size_t>(sampler.sample(logits).token)];
  double chi = 0;
  double rest_expected = 0;
  double rest_count = 0;
  int cells = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * n;
    if (p[i] == 0) REQUIRE(counts[i] == 0);
    if (expected >= 5) {
      chi += (counts[i] - expected) * (counts[i] - expected) / expected;
      ++cells;
    } else {
      rest_expected += expected;
      rest_count += counts[i];
    }
  }
  if (rest_expected >= 5) {
    chi += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
    ++cells;
  }
  REQUIRE(cells > 1);
  CHECK(chi < chi_square_limit(cells - 1));
}

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const ArgumentError& e) {
    return e.what();
  }
  return "no ArgumentError";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the generators are the published ones") {
  std::uint64_t seed = 0;
  CHECK(detail::splitmix64(seed) == 0xe220a8397b1dcdafull);
  CHECK(detail::splitmix64(seed) == 0x6e789e6aa1b965f4ull);
  std::array<std::uint64_t, 4> s{1, 2, 3, 4};  // reference vectors of xoshiro256**
  CHECK(detail::xoshiro256(s) == 11520u);
  CHECK(detail::xoshiro256(s) == 0u);
  CHECK(detail::xoshiro256(s) == 1509978240u);
  CHECK(detail::xoshiro256(s) == 1215971899390074240u);
}

TEST_CASE("bounded integers are uniform and below their bound") {
  std::array<std::uint64_t, 4> s{1, 2, 3, 4};
  for (const std::uint64_t bound : {1ull, 2ull, 3ull, 64ull, 65ull, (1ull << 62) + 1, ~0ull}) {
    for (int i = 0; i < 200; ++i) REQUIRE(detail::uniform_below(s, bound) < bound);
  }
  std::vector<double> counts(7);
  const int n = 70000;
  for (int i = 0; i < n; ++i) ++counts[detail::uniform_below(s, 7)];
  double chi = 0;
  for (const double c : counts) chi += (c - n / 7.0) * (c - n / 7.0) / (n / 7.0);
  CHECK(chi < chi_square_limit(6));
}

TEST_CASE("a seed gives the same tokens everywhere") {
  // Ten equal logits: token = (uniform integer below 10 * 2^40) >> 40, made by a separate program in another language.
  Sampler sampler(10);
  sampler.configure({.temperature = 1.0f, .seed = 42});
  const std::vector<float> logits(10, 0.5f);
  std::vector<Token> tokens;
  for (int i = 0; i < 16; ++i) tokens.push_back(sampler.sample(logits).token);
  CHECK(tokens == std::vector<Token>{1, 6, 9, 4, 5, 9, 1, 2, 6, 9, 5, 7, 6, 3, 6, 9});
}

TEST_CASE("greedy takes the most likely token, the lowest id among equals, and reports its log-probability") {
  std::mt19937 rng(1);
  for (int round = 0; round < 50; ++round) {
    const auto logits = random_logits(rng, 1 + rng() % 300, 3.0f, round % 2 == 0);
    Sampler sampler(static_cast<int>(logits.size()));
    const Choice choice = sampler.sample(logits);
    CHECK(static_cast<std::size_t>(choice.token) == ranking(logits)[0]);
    const auto p = probabilities(logits, 1.0);
    // exp and the logits are floats: each term is good to a few units of 2^-24, and so is the logarithm of their sum.
    CHECK(std::abs(choice.log_probability - std::log(p[static_cast<std::size_t>(choice.token)])) < 1e-5);
    CHECK(sampler.state() == Sampler(static_cast<int>(logits.size())).state());  // no random number was used
  }
}

TEST_CASE("temperature: frequencies follow the softmax") {
  std::mt19937 rng(2);
  for (const float temperature : {0.3f, 1.0f, 2.5f}) {
    const auto logits = random_logits(rng, 40);
    Sampler sampler(40);
    sampler.configure({.temperature = temperature, .seed = 7});
    check_distribution(sampler, logits, probabilities(logits, static_cast<double>(temperature)), 100000);
  }
}

TEST_CASE("temperature leaves the reported log-probability alone") {
  std::mt19937 rng(3);
  const auto logits = random_logits(rng, 64);
  const auto p = probabilities(logits, 1.0);
  Sampler sampler(64);
  sampler.configure({.temperature = 3.0f, .top_k = 40, .repetition_penalty = 1.5f, .seed = 5});
  const std::vector<Token> history{1, 2, 3};
  for (int i = 0; i < 100; ++i) {
    const Choice c = sampler.sample(logits, history);
    CHECK(std::abs(c.log_probability - std::log(p[static_cast<std::size_t>(c.token)])) < 1e-5);
  }
}

TEST_CASE("filters: same tokens as a plain draw from logits filtered by a full sort") {
  std::mt19937 rng(4);
  std::uniform_real_distribution<float> unit(0.01f, 0.99f);
  int checked = 0;
  for (int round = 0; round < 400; ++round) {
    const std::size_t n = 1 + rng() % 200;
    const auto logits = random_logits(rng, n, 2.0f, round % 3 == 0);
    SamplingOptions o{.temperature = 0.2f + 2 * unit(rng), .seed = rng()};
    if (rng() % 2) o.top_k = static_cast<std::int32_t>(1 + rng() % (n + 5));
    if (rng() % 2) o.top_p = unit(rng);
    if (rng() % 2) o.min_p = unit(rng) * unit(rng);
    std::vector<float> reference;
    if (!filtered(logits, o, reference)) continue;
    ++checked;
    Sampler sampler(static_cast<int>(n));
    Sampler plain(static_cast<int>(n));
    sampler.configure(o);
    plain.configure({.temperature = o.temperature, .seed = o.seed});
    for (int i = 0; i < 20; ++i) REQUIRE(sampler.sample(logits).token == plain.sample(reference).token);
    REQUIRE(sampler.state().rng == plain.state().rng);
  }
  CHECK(checked > 300);
}

TEST_CASE("filters: extremes leave the most likely token, ties the lowest ids") {
  std::mt19937 rng(5);
  const auto logits = random_logits(rng, 100);
  const auto best = static_cast<Token>(ranking(logits)[0]);
  Sampler sampler(100);
  for (const SamplingOptions& o :
       {SamplingOptions{.temperature = 5.0f, .top_k = 1}, SamplingOptions{.temperature = 5.0f, .top_p = 1e-7f},
        SamplingOptions{.temperature = 5.0f, .min_p = 1.0f}, SamplingOptions{.temperature = 1e-45f}}) {
    sampler.configure(o);
    for (int i = 0; i < 50; ++i) CHECK(sampler.sample(logits).token == best);
  }
  // Eight equal logits, the three lowest ids are kept.
  const std::vector<float> equal(8, -1.0f);
  Sampler small(8);
  for (const SamplingOptions& o :
       {SamplingOptions{.temperature = 1.0f, .top_k = 3}, SamplingOptions{.temperature = 1.0f, .top_p = 0.375f}}) {
    small.configure(o);
    std::vector<int> seen(8);
    for (int i = 0; i < 300; ++i) ++seen[static_cast<std::size_t>(small.sample(equal).token)];
    CHECK(seen[0] > 0);
    CHECK(seen[1] > 0);
    CHECK(seen[2] > 0);
    CHECK(seen[0] + seen[1] + seen[2] == 300);
  }
}

TEST_CASE("tokens at -infinity are never drawn, whatever the temperature") {
  std::vector<float> logits(32, -kInfinity);
  logits[5] = -3.0e38f;
  logits[9] = 3.0e38f;
  Sampler sampler(32);
  sampler.configure({.temperature = 1e30f, .repetition_penalty = 2.0f, .seed = 1});
  const std::vector<Token> history{4, 5};
  for (int i = 0; i < 200; ++i) {
    const Token t = sampler.sample(logits, history).token;
    CHECK((t == 5 || t == 9));
  }
}

TEST_CASE("penalties: as if the logits had been changed by hand") {
  std::mt19937 rng(6);
  for (int round = 0; round < 100; ++round) {
    const std::size_t n = 5 + rng() % 60;
    const auto logits = random_logits(rng, n);
    std::vector<Token> history(rng() % 40);
    for (Token& t : history) t = static_cast<Token>(rng() % n);
    SamplingOptions o{.temperature = round % 4 == 0 ? 0.0f : 0.9f, .top_k = 10, .seed = rng()};
    if (rng() % 2) o.repetition_penalty = 0.5f + static_cast<float>(rng() % 4) * 0.5f;
    if (rng() % 2) o.presence_penalty = static_cast<float>(rng() % 5) * 0.25f - 0.5f;
    if (rng() % 2) o.frequency_penalty = static_cast<float>(rng() % 5) * 0.25f - 0.5f;
    o.penalty_window = static_cast<std::int32_t>(rng() % 30) - 1;

    auto changed = logits;
    const std::size_t window = o.penalty_window < 0
                                   ? history.size()
                                   : std::min<std::size_t>(static_cast<std::size_t>(o.penalty_window), history.size());
    for (std::size_t id = 0; id < n; ++id) {
      const auto count =
          std::count(history.end() - static_cast<std::ptrdiff_t>(window), history.end(), static_cast<Token>(id));
      if (count == 0) continue;
      double l = static_cast<double>(logits[id]);
      l = l > 0 ? l / static_cast<double>(o.repetition_penalty) : l * static_cast<double>(o.repetition_penalty);
      l -= static_cast<double>(o.presence_penalty) +
           static_cast<double>(o.frequency_penalty) * static_cast<double>(count);
      changed[id] = static_cast<float>(l);
    }
    Sampler sampler(static_cast<int>(n));
    Sampler plain(static_cast<int>(n));
    sampler.configure(o);
    plain.configure({.temperature = o.temperature, .top_k = 10, .seed = o.seed});
    // Twice: the table of counts must be clean again.
    for (int i = 0; i < 10; ++i) REQUIRE(sampler.sample(logits, history).token == plain.sample(changed).token);
  }
}

TEST_CASE("a restored sampler goes on with the same tokens; its state is plain bytes") {
  std::mt19937 rng(7);
  const auto logits = random_logits(rng, 500);
  Sampler a(500);
  a.configure({.temperature = 1.3f, .top_k = 100, .top_p = 0.95f, .seed = 99});
  for (int i = 0; i < 37; ++i) a.sample(logits);
  unsigned char bytes[sizeof(SamplerState)];
  const SamplerState state = a.state();
  std::memcpy(bytes, &state, sizeof bytes);
  SamplerState copy;
  std::memcpy(&copy, bytes, sizeof bytes);
  Sampler b(500);
  b.restore(copy);
  CHECK(b.options() == a.options());
  bool varied = false;
  Token first = -1;
  for (int i = 0; i < 100; ++i) {
    const Choice x = a.sample(logits);
    REQUIRE(x == b.sample(logits));
    if (first < 0) first = x.token;
    varied = varied || x.token != first;
  }
  CHECK(varied);
  a.configure(a.options());  // from the seed again
  CHECK(!(a.state() == b.state()));
}

TEST_CASE("sample() does not allocate") {
  std::mt19937 rng(8);
  const auto logits = random_logits(rng, 2000);
  const std::vector<Token> history{1, 5, 5, 7};
  Sampler sampler(2000);
  std::vector<Choice> top(10);
  for (const SamplingOptions& o : {SamplingOptions{}, SamplingOptions{.temperature = 1.0f},
                                   SamplingOptions{.temperature = 1.0f,
                                   .top_k = 50,
                                   .top_p = 0.9f,
                                   .min_p = 0.01f,
                                   .repetition_penalty = 1.1f,
                                   .presence_penalty = 0.1f,
                                   .frequency_penalty = 0.1f}}) {
    const long before = allocations;
    sampler.configure(o);
    for (int i = 0; i < 10; ++i) sampler.sample(logits, history);
    const SamplerState state = sampler.state();
    sampler.restore(state);
    top_log_probabilities(logits, top);
    CHECK(allocations == before);
  }
}

TEST_CASE("top log-probabilities are the head of a full sort") {
  std::mt19937 rng(9);
  for (int round = 0; round < 100; ++round) {
    const auto logits = random_logits(rng, 1 + rng() % 100, 2.0f, round % 2 == 0);
    std::vector<Choice> top(rng() % (logits.size() + 1));
    top_log_probabilities(logits, top);
    const auto order = ranking(logits);
    const auto p = probabilities(logits, 1.0);
    for (std::size_t i = 0; i < top.size(); ++i) {
      REQUIRE(static_cast<std::size_t>(top[i].token) == order[i]);
      REQUIRE(std::abs(top[i].log_probability - std::log(p[order[i]])) < 1e-5);
    }
  }
  std::vector<Choice> too_many(3);
  CHECK(contains(error_of([&] { top_log_probabilities(std::vector<float>{1, 2}, too_many); }), "3"));
}

TEST_CASE("bad logits and histories are refused, and the sampler stays as it was") {
  Sampler sampler(4);
  sampler.configure({.temperature = 1.0f, .frequency_penalty = 1.0f, .seed = 3});
  const SamplerState before = sampler.state();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto sample = [&](std::vector<float> logits, std::vector<Token> history = {}) {
    return error_of([&] { sampler.sample(logits, history); });
  };
  CHECK(contains(sample({0, 1, nan, 2}), "logits[2] is NaN"));
  CHECK(contains(sample({nan, 1, 1, 2}), "logits[0] is NaN"));
  CHECK(contains(sample({0, 1, 2, kInfinity}), "logits[3] is +infinity"));
  CHECK(contains(sample({-kInfinity, -kInfinity, -kInfinity, -kInfinity}), "-infinity"));
  CHECK(contains(sample({0, 1, 2}), "3"));
  CHECK(contains(sample({0, 1, 2, 3}, {0, 4}), "history token 4"));
  CHECK(contains(sample({0, 1, 2, 3}, {1, 1, -1}), "history token -1"));
  CHECK(sampler.state() == before);
  // The refused history left no count behind.
  Sampler other(4);
  other.restore(before);
  const std::vector<float> logits{0, 1, 2, 3};
  const std::vector<Token> history{1};
  for (int i = 0; i < 50; ++i) CHECK(sampler.sample(logits, history) == other.sample(logits, history));
}

TEST_CASE("options out of range are refused by name, and the sampler stays as it was") {
  Sampler sampler(4);
  sampler.configure({.temperature = 0.5f, .seed = 11});
  const SamplerState before = sampler.state();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto name_of = [&](const SamplingOptions& o, const char* name) {
    SamplerState state = before;
    state.options = o;
    return contains(error_of([&] { sampler.configure(o); }), name) &&
           contains(error_of([&] { sampler.restore(state); }), name);
  };
  CHECK(name_of({.temperature = -0.1f}, "temperature is -0.1"));
  CHECK(name_of({.temperature = nan}, "temperature"));
  CHECK(name_of({.temperature = kInfinity}, "temperature"));
  CHECK(name_of({.top_k = -1}, "top_k is -1"));
  CHECK(name_of({.top_p = 0.0f}, "top_p is 0"));
  CHECK(name_of({.top_p = 1.5f}, "top_p is 1.5"));
  CHECK(name_of({.top_p = nan}, "top_p"));
  CHECK(name_of({.min_p = -0.5f}, "min_p is -0.5"));
  CHECK(name_of({.min_p = nan}, "min_p"));
  CHECK(name_of({.repetition_penalty = 0.0f}, "repetition_penalty is 0"));
  CHECK(name_of({.repetition_penalty = kInfinity}, "repetition_penalty"));
  CHECK(name_of({.presence_penalty = nan}, "presence_penalty"));
  CHECK(name_of({.frequency_penalty = kInfinity}, "frequency_penalty"));
  CHECK(name_of({.penalty_window = -2}, "penalty_window is -2"));
  SamplerState zeros = before;
  zeros.rng = {};
  CHECK(contains(error_of([&] { sampler.restore(zeros); }), "generator"));
  CHECK(sampler.state() == before);
  CHECK_THROWS_AS(Sampler(0), ArgumentError);
  CHECK_THROWS_AS(Sampler(-5), ArgumentError);
}
