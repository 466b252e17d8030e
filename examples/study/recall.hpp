// SPDX-License-Identifier: Apache-2.0
//
// Multi-query associative recall (Arora et al., "Zoology", arXiv 2312.04927): pairs of keys and values, then, much
// later, keys alone, whose values are to be named. Every sequence pairs them anew, so that nothing helps but looking
// back.
#pragma once

#include <hymba/core/types.hpp>
#include <hymba/train/training_batch.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace study {

/// Makes sequences: keys, each followed by its value, then three times as much filler with queries at random places.
/// Every key is queried, some several times. The only targets are the answers.
class Recall {
 public:
  static constexpr std::array<int, 4> pairs{4, 8, 16, 32};
  static constexpr int keys = 32, values = 32, vocabulary = 1 + keys + values, filler = 0;
  static constexpr int longest = 8 * pairs.back();
  static constexpr int length(int pair_count) { return longest / pairs.back() * pair_count; }
  static constexpr int queries(int pair_count) { return 4 * pair_count; }

  explicit Recall(std::uint64_t seed) : random_(seed) { std::iota(keys_.begin(), keys_.end(), 1); }

  /// Adds one sequence to a batch.
  void append(int pair_count, hymba::TrainingBatch& batch) {
    const auto n = static_cast<std::size_t>(pair_count);
    const std::size_t start = batch.tokens.size();
    const auto size = static_cast<std::size_t>(length(pair_count));
    batch.tokens.resize(start + size, filler);
    batch.targets.resize(start + size, hymba::no_target);
    batch.lengths.push_back(length(pair_count));
    shuffle(keys_, keys_.size());
    std::array<hymba::Token, keys> answers{};
    for (std::size_t i = 0; i < n; ++i) {
      answers[i] = 1 + keys + static_cast<hymba::Token>(below(values));
      batch.tokens[start + 2 * i] = keys_[i];
      batch.tokens[start + 2 * i + 1] = answers[i];
    }
    std::iota(places_.begin(), places_.end(), 2 * n);
    shuffle(places_, size - 2 * n);
    for (std::size_t q = 0; q < static_cast<std::size_t>(queries(pair_count)); ++q) {
      const std::size_t i = q < n ? q : below(n), at = start + places_[q];
      batch.tokens[at] = keys_[i];
      batch.targets[at] = answers[i];
    }
  }

  /// A batch for training, of `tokens` tokens: as many of each number of pairs, hence more of the short sequences, from
  /// which it is soonest learned what is asked.
  void next(std::int64_t tokens, hymba::TrainingBatch& batch) {
    batch.clear();
    for (const int n : pairs) {
      const std::int64_t sequences = tokens / static_cast<std::int64_t>(pairs.size()) / length(n);
      for (std::int64_t i = 0; i < sequences; ++i) append(n, batch);
    }
  }

 private:
  /// The standard library's distributions differ from one implementation to another; a remainder does not, and its bias
  /// of 2^-26 does not matter here.
  std::size_t below(std::size_t n) { return random_() % n; }

  /// Puts the first `count` elements in random order.
  template <class List>
  void shuffle(List& list, std::size_t count) {
    for (std::size_t i = count; i > 1; --i) std::swap(list[i - 1], list[below(i)]);
  }

  std::mt19937_64 random_;
  std::array<hymba::Token, keys> keys_{};
  std::array<std::size_t, longest> places_{};
};

}  // namespace study
