// SPDX-License-Identifier: Apache-2.0
//
// Choosing the next token from logits: greedy, temperature, top-k, top-p, min-p, penalties.
//
// The order of the steps is that of Hugging Face's generation: penalties, temperature, top-k, top-p, min-p. Temperature
// comes before the filters because top-p and min-p then cut the distribution that is really drawn from; after them, a
// high temperature would revive what a filter had judged by another distribution.
//
//   1. repetition penalty (CTRL, Keskar et al. 2019): a token of the history has its logit divided by the penalty when
//      positive and multiplied by it otherwise, once, however often it occurs;
//   2. presence and frequency penalties (OpenAI): logit -= presence + frequency * (occurrences in the history);
//   3. temperature: logit / temperature;
//   4. top-k: the k largest logits;
//   5. top-p: the smallest set of the most likely tokens of what is left whose probability reaches p (always one
//   token);
//   6. min-p: tokens at least min_p times as likely as the most likely one.
//
// Equal logits rank by id, lowest first, so each filter keeps one well-defined set. Probabilities are held as integers
// (in units of 2^-40 of the most likely token's), hence every sum is exact and independent of its order, and the draw
// is exact too; a token less likely than that unit is never drawn. The generator is our own, since the standard
// library's distributions differ from one implementation to another: the same seed and logits give the same tokens
// everywhere, up to the last bit of std::exp.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// How to choose a token. The defaults are greedy decoding. The layout has no padding: it is part of snapshots.
struct SamplingOptions {
  float temperature = 0.0f;          ///< 0: greedy (the filters and the seed are then unused); otherwise positive
  std::int32_t top_k = 0;            ///< keep the k most likely tokens; 0: all
  float top_p = 1.0f;                ///< keep the most likely tokens up to this probability, in (0, 1]; 1: all
  float min_p = 0.0f;                ///< keep tokens this fraction as likely as the best one, in [0, 1]; 0: all
  float repetition_penalty = 1.0f;   ///< positive; 1: none; above 1 discourages tokens of the history
  float presence_penalty = 0.0f;     ///< finite; subtracted once from each token of the history
  float frequency_penalty = 0.0f;    ///< finite; subtracted once per occurrence in the history
  std::int32_t penalty_window = -1;  ///< the penalties see the last n tokens of the history; -1: all; 0: none
  std::uint64_t seed = 0;            ///< any value

  friend bool operator==(const SamplingOptions&, const SamplingOptions&) = default;
};

/// Everything a sampler needs to go on exactly where it was: fixed-size fields without padding, to be written as bytes.
struct SamplerState {
  SamplingOptions options;
  std::array<std::uint64_t, 4> rng{};  ///< xoshiro256** state; never all zero

  friend bool operator==(const SamplerState&, const SamplerState&) = default;
};

static_assert(sizeof(SamplingOptions) == 40 && std::is_trivially_copyable_v<SamplingOptions>);
static_assert(sizeof(SamplerState) == 72 && std::is_trivially_copyable_v<SamplerState>);

/// A token and the natural logarithm of its probability under the model's own distribution: softmax of the logits as
/// given, temperature 1, no penalty and no filter.
struct Choice {
  Token token = -1;
  float log_probability = -std::numeric_limits<float>::infinity();

  friend bool operator==(const Choice&, const Choice&) = default;
};

namespace detail {

/// Seeds generators: Steele, Lea, Flood 2014 (the reference constants). Advances `x`.
constexpr std::uint64_t splitmix64(std::uint64_t& x) {
  x += 0x9e3779b97f4a7c15ull;
  std::uint64_t z = x;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// xoshiro256** 1.0 (Blackman, Vigna). Advances `s`, which must not be all zero.
constexpr std::uint64_t xoshiro256(std::array<std::uint64_t, 4>& s) {
  const std::uint64_t result = std::rotl(s[1] * 5, 7) * 9;
  const std::uint64_t t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = std::rotl(s[3], 45);
  return result;
}

/// A uniform integer in [0, bound), bound >= 1, without bias: draws the bits needed until they fall below the bound.
constexpr std::uint64_t uniform_below(std::array<std::uint64_t, 4>& s, std::uint64_t bound) {
  const int shift = bound > 1 ? std::countl_zero(bound - 1) : 63;
  for (;;) {
    const std::uint64_t value = xoshiro256(s) >> shift;
    if (value < bound) return value;
  }
}

/// Index of the largest logit (lowest index among equals). Throws ArgumentError on an empty vector, on NaN, on
/// +infinity, and when every logit is -infinity: there is no distribution to speak of.
inline std::size_t checked_argmax(std::span<const float> logits) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  if (logits.empty()) throw ArgumentError("logits: there are 0 of them, expected one per token of the vocabulary");
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < infinity)) {
      throw ArgumentError(message("logits[", i, "] is ", std::isnan(logits[i]) ? "NaN" : "+infinity",
                                  ", expected a finite number or -infinity"));
    }
    if (logits[i] > logits[best]) best = i;
  }
  if (logits[best] == -infinity) {
    throw ArgumentError(message("logits: all ", logits.size(), " are -infinity, expected at least one finite number"));
  }
  return best;
}

/// log(sum(exp(logits))), about `maximum`, the largest of them.
inline double log_sum_exp(std::span<const float> logits, float maximum) {
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - maximum));
  return static_cast<double>(maximum) + std::log(sum);
}

/// Throws ArgumentError, naming the option, its value and its range.
inline void check(const SamplingOptions& o) {
  const auto refuse = [](const char* name, auto value, const char* expected) {
    throw ArgumentError(message("sampling option ", name, " is ", value, ", expected ", expected));
  };
  if (!(o.temperature >= 0.0f) || !std::isfinite(o.temperature)) {
    refuse("temperature", o.temperature, "0 (greedy) or a positive finite number");
  }
  if (o.top_k < 0) refuse("top_k", o.top_k, "0 (all tokens) or more");
  if (!(o.top_p > 0.0f && o.top_p <= 1.0f)) refuse("top_p", o.top_p, "a number above 0 and at most 1 (all tokens)");
  if (!(o.min_p >= 0.0f && o.min_p <= 1.0f)) refuse("min_p", o.min_p, "a number from 0 (all tokens) to 1");
  if (!(o.repetition_penalty > 0.0f) || !std::isfinite(o.repetition_penalty)) {
    refuse("repetition_penalty", o.repetition_penalty, "a positive finite number (1: none)");
  }
  if (!std::isfinite(o.presence_penalty)) refuse("presence_penalty", o.presence_penalty, "a finite number (0: none)");
  if (!std::isfinite(o.frequency_penalty))
    refuse("frequency_penalty", o.frequency_penalty, "a finite number (0: none)");
  if (o.penalty_window < -1) {
    refuse("penalty_window", o.penalty_window, "-1 (the whole history), 0 (none of it) or a number of tokens");
  }
}

}  // namespace detail

/// Chooses tokens. Allocates on construction only. Not for concurrent use: one sampler per session.
class Sampler {
 public:
  /// `vocabulary`: the length of every logit vector to come, 1 to 2^23. Starts greedy, seed 0. Throws ArgumentError.
  explicit Sampler(int vocabulary) {
    if (vocabulary < 1 || vocabulary > kMaxVocabulary) {
      throw ArgumentError(
          detail::message("sampler vocabulary is ", vocabulary, ", expected 1 to ", static_cast<int>(kMaxVocabulary)));
    }
    const auto size = static_cast<std::size_t>(vocabulary);
    scores_.resize(size);
    weights_.resize(size);
    order_.resize(size);
    counts_.resize(size);
    configure({});
  }

  int vocabulary() const { return static_cast<int>(scores_.size()); }
  const SamplingOptions& options() const { return state_.options; }

  /// Takes new options and restarts the generator from their seed. Throws ArgumentError naming the option, its value
  /// and its range; the sampler is then unchanged.
  void configure(const SamplingOptions& options) {
    detail::check(options);
    state_.options = options;
    std::uint64_t seed = options.seed;
    for (auto& word : state_.rng) word = detail::splitmix64(seed);
  }

  SamplerState state() const { return state_; }

  /// Goes on from a state taken earlier, here or in another process. Throws ArgumentError when it cannot be one (an
  /// option out of range, a generator of zeros); the sampler is then unchanged.
  void restore(const SamplerState& state) {
    detail::check(state.options);
    if (state.rng == std::array<std::uint64_t, 4>{}) {
      throw ArgumentError("sampler state: the generator's 256 bits are all 0, expected a seeded generator");
    }
    state_ = state;
  }

  /// Chooses a token. `logits`: [vocabulary], finite or -infinity. `history`: the tokens the penalties look at, oldest
  /// first (usually prompt and answer, as in Hugging Face; the answer alone, as OpenAI counts, when the caller passes
  /// only that); not read when no penalty is on. Time O(vocabulary + history); no allocation, no sort of the
  /// vocabulary. Throws ArgumentError on a wrong length, NaN, +infinity, logits that are all -infinity, or a history
  /// token outside the vocabulary; nothing is drawn then.
  Choice sample(std::span<const float> logits, std::span<const Token> history = {}) {
    if (logits.size() != scores_.size()) {
      throw ArgumentError(
          detail::message("logits: there are ", logits.size(), ", expected the vocabulary of ", scores_.size()));
    }
    const std::size_t likeliest = detail::checked_argmax(logits);
    const bool penalised = penalise(logits, history);
    const std::span<const float> scores = penalised ? std::span<const float>(scores_) : logits;
    const std::size_t best = penalised ? argmax(scores) : likeliest;
    const std::size_t token = state_.options.temperature == 0.0f ? best : draw(scores, best);
    const double total = detail::log_sum_exp(logits, logits[likeliest]);
    return {static_cast<Token>(token), static_cast<float>(static_cast<double>(logits[token]) - total)};
  }

 private:
  // Weights are fixed-point numbers with this many fractional bits; the largest weight is 1. A sum over the vocabulary
  // stays below 2^63.
  static constexpr int kFraction = 40;
  static constexpr int kMaxVocabulary = 1 << 23;

  static std::size_t argmax(std::span<const float> scores) {
    return static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
  }

  /// Fills scores_ with the penalised logits and returns true, or returns false when no penalty applies.
  bool penalise(std::span<const float> logits, std::span<const Token> history) {
    const SamplingOptions& o = state_.options;
    if (o.repetition_penalty == 1.0f && o.presence_penalty == 0.0f && o.frequency_penalty == 0.0f) return false;
    if (o.penalty_window >= 0 && history.size() > static_cast<std::size_t>(o.penalty_window)) {
      history = history.last(static_cast<std::size_t>(o.penalty_window));
    }
    if (history.empty()) return false;
    for (std::size_t i = 0; i < history.size(); ++i) {
      if (history[i] < 0 || static_cast<std::size_t>(history[i]) >= scores_.size()) {
        throw ArgumentError(detail::message("history token ", history[i], ", expected 0 to ", scores_.size() - 1));
      }
    }
    std::copy(logits.begin(), logits.end(), scores_.begin());
    for (const Token t : history) ++counts_[static_cast<std::size_t>(t)];
    for (const Token t : history) {
      std::uint32_t& count = counts_[static_cast<std::size_t>(t)];
      float& score = scores_[static_cast<std::size_t>(t)];
      if (count != 0 && std::isfinite(score)) {
        double s = static_cast<double>(score);
        const double r = static_cast<double>(o.repetition_penalty);
        s = s > 0 ? s / r : s * r;
        s -= static_cast<double>(o.presence_penalty) + static_cast<double>(o.frequency_penalty) * count;
        // Extreme penalties must not turn a finite logit into an infinite one.
        constexpr double limit = static_cast<double>(std::numeric_limits<float>::max());
        score = static_cast<float>(std::clamp(s, -limit, limit));
      }
      count = 0;  // applied; and the table is clean for the next call
    }
    return true;
  }

  /// One token from the filtered distribution. `best` is the largest score's index.
  std::size_t draw(std::span<const float> scores, std::size_t best) {
    const SamplingOptions& o = state_.options;
    const auto ranks_before = [scores](Token a, Token b) {
      const float x = scores[static_cast<std::size_t>(a)];
      const float y = scores[static_cast<std::size_t>(b)];
      return x > y || (x == y && a < b);
    };
    const auto size = static_cast<std::ptrdiff_t>(scores.size());

    // A filter's result is the last token it keeps: everything that ranks no later stays. So the walk below can go in
    // the order of ids, whatever order a partial selection leaves behind.
    std::iota(order_.begin(), order_.end(), Token{0});
    std::ptrdiff_t kept = size;
    Token last = -1;  // -1: all
    if (o.top_k > 0 && o.top_k < size) {
      kept = o.top_k;
      std::nth_element(order_.begin(), order_.begin() + (kept - 1), order_.end(), ranks_before);
      last = order_[static_cast<std::size_t>(kept - 1)];
    }

    std::uint64_t total = 0;
    const double top = static_cast<double>(scores[best]);
    const double scale = 1.0 / static_cast<double>(o.temperature);
    for (std::ptrdiff_t i = 0; i < kept; ++i) {
      const auto id = static_cast<std::size_t>(order_[static_cast<std::size_t>(i)]);
      // The difference first: no score is too large for any temperature. 0 for the best token, even at 1 / 1e-45.
      const double difference = static_cast<double>(scores[id]) - top;
      const double exponent = difference == 0.0 ? 0.0 : difference * scale;
      weights_[id] = static_cast<std::uint64_t>(std::ldexp(std::exp(exponent), kFraction));
      total += weights_[id];
    }

    if (o.top_p < 1.0f) {
      // Halve the range that holds the boundary until one token is left: O(kept) in all, since the ranges shrink by
      // two.
      const auto target =
          static_cast<std::uint64_t>(std::ceil(static_cast<double>(o.top_p) * static_cast<double>(total)));
      std::uint64_t before = 0;  // weight of everything ahead of the range
      auto low = order_.begin();
      auto high = order_.begin() + kept;
      while (high - low > 1) {
        const auto middle = low + (high - low) / 2;
        std::nth_element(low, middle, high, ranks_before);
        std::uint64_t half = 0;
        for (auto it = low; it != middle; ++it) half += weights_[static_cast<std::size_t>(*it)];
        if (before + half >= target) {
          high = middle;
        } else {
          before += half;
          low = middle;
        }
      }
      last = *low;
    }

    const auto least = static_cast<std::uint64_t>(std::ceil(std::ldexp(static_cast<double>(o.min_p), kFraction)));
    const auto stays = [&](std::ptrdiff_t i) {
      const auto id = static_cast<Token>(i);
      return (last < 0 || !ranks_before(last, id)) && weights_[static_cast<std::size_t>(i)] >= least;
    };
    total = 0;
    for (std::ptrdiff_t i = 0; i < size; ++i) {
      if (stays(i)) total += weights_[static_cast<std::size_t>(i)];
    }
    std::uint64_t at = detail::uniform_below(state_.rng, total);  // total >= 1: the best token always stays
    for (std::ptrdiff_t i = 0; i < size; ++i) {
      if (!stays(i)) continue;
      const std::uint64_t weight = weights_[static_cast<std::size_t>(i)];
      if (at < weight) return static_cast<std::size_t>(i);
      at -= weight;
    }
    return best;  // not reached: `at` started below the sum of the weights
  }

  SamplerState state_;
  std::vector<float> scores_;           // [vocabulary] penalised logits
  std::vector<std::uint64_t> weights_;  // [vocabulary] fixed-point probabilities relative to the best token's
  std::vector<Token> order_;            // [vocabulary] ids, partially ordered by rank
  std::vector<std::uint32_t> counts_;   // [vocabulary] occurrences in the history; all zero between calls
};

/// The `out.size()` most likely tokens, most likely first (equal logits: lowest id first), with their
/// log-probabilities. `logits`: [vocabulary]. No allocation; O(vocabulary * log n). Throws ArgumentError when more
/// tokens are asked for than there are, or on logits that Sampler::sample refuses.
inline void top_log_probabilities(std::span<const float> logits, std::span<Choice> out) {
  const std::size_t likeliest = detail::checked_argmax(logits);
  if (out.size() > logits.size()) {
    throw ArgumentError(detail::message("top log-probabilities: ", out.size(),
                                        " asked for, expected at most the vocabulary of ", logits.size()));
  }
  if (out.empty()) return;
  const auto ranks_before = [](const Choice& a, const Choice& b) {
    return a.log_probability > b.log_probability || (a.log_probability == b.log_probability && a.token < b.token);
  };
  // A heap of the best n so far whose front is the worst of them; the field holds the raw logit until the end.
  std::size_t filled = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const Choice candidate{static_cast<Token>(i), logits[i]};
    if (filled < out.size()) {
      out[filled++] = candidate;
      std::push_heap(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(filled), ranks_before);
    } else if (ranks_before(candidate, out.front())) {
      std::pop_heap(out.begin(), out.end(), ranks_before);
      out.back() = candidate;
      std::push_heap(out.begin(), out.end(), ranks_before);
    }
  }
  std::sort_heap(out.begin(), out.end(), ranks_before);
  const double total = detail::log_sum_exp(logits, logits[likeliest]);
  for (Choice& choice : out) {
    choice.log_probability = static_cast<float>(static_cast<double>(choice.log_probability) - total);
  }
}

HYMBA_NAMESPACE_END
