// SPDX-License-Identifier: Apache-2.0
//
// Training and evaluation windows: every token once, no sequence across documents, the same batches after a restore.
#include <hymba/train/windows.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "error_text.hpp"

using namespace hymba;
using text_test::contains;
using text_test::error_of;

namespace {

/// A token file in memory whose token at position i is i, so that a batch tells where it came from.
struct Numbers {
  std::vector<std::int64_t> starts;  ///< of documents, and the end; filled while the bytes are made
  std::vector<std::byte> bytes;
  TokenFile file;

  explicit Numbers(const std::vector<std::int64_t>& lengths)
      : bytes(make(lengths, starts)), file(TokenFile::view(bytes, "numbers")) {}

  bool begins(std::int64_t token) const { return std::binary_search(starts.begin(), starts.end(), token); }
  std::int64_t size() const { return file.size(); }

 private:
  static std::vector<std::byte> make(const std::vector<std::int64_t>& lengths, std::vector<std::int64_t>& starts) {
    starts.assign(1, 0);
    for (const std::int64_t n : lengths) starts.push_back(starts.back() + n);
    std::vector<std::byte> out;
    for (const char c : std::string("HYMBATOK")) out.push_back(static_cast<std::byte>(c));
    detail::append_little(out, std::uint32_t{1});
    detail::append_little(out, std::uint32_t{2});
    for (const std::int64_t n :
         {std::int64_t{65536}, starts.back(), static_cast<std::int64_t>(lengths.size()), std::int64_t{0}}) {
      detail::append_little(out, static_cast<std::uint64_t>(n));
    }
    for (std::size_t i = 0; i < lengths.size(); ++i) detail::append_little(out, static_cast<std::uint64_t>(starts[i]));
    for (std::int64_t i = 0; i < starts.back(); ++i) detail::append_little(out, static_cast<std::uint16_t>(i));
    return out;
  }
};

const std::vector<std::vector<std::int64_t>> kDocuments = {
    {100}, {1, 1, 1, 97}, {7, 13, 1, 29, 50}, {33, 34, 33}, {99, 1}, std::vector<std::int64_t>(100, 1)};

void check_shape(const TrainingBatch& batch) {
  CHECK(batch.tokens.size() == batch.targets.size());
  CHECK(std::accumulate(batch.lengths.begin(), batch.lengths.end(), std::int64_t{0}) == batch.rows());
  CHECK(std::all_of(batch.lengths.begin(), batch.lengths.end(), [](std::int64_t n) { return n > 0; }));
}

/// Sequences run through the text, within one document when they are split; targets are the next tokens.
void check_content(const Numbers& numbers, const TrainingBatch& batch, bool split) {
  std::size_t row = 0;
  for (const std::int64_t length : batch.lengths) {
    for (std::int64_t i = 0; i < length; ++i, ++row) {
      const std::int64_t token = batch.tokens[row], next = token + 1;
      const std::int64_t on_ring = next < numbers.size() ? next : 0;
      if (i + 1 < length) {
        CHECK(batch.tokens[row + 1] == on_ring);
        CHECK(batch.targets[row] == on_ring);
        if (split) CHECK(!numbers.begins(next));
      } else {
        CHECK(batch.targets[row] == (split && numbers.begins(next) ? -1 : on_ring));
      }
    }
  }
}

bool same(const TrainingBatch& a, const TrainingBatch& b) {
  return a.tokens == b.tokens && a.targets == b.targets && a.lengths == b.lengths;
}

}  // namespace

TEST_CASE("training windows: rows are constant, parts stay inside documents, targets are the next tokens") {
  for (const auto& lengths : kDocuments) {
    const Numbers numbers(lengths);
    for (const std::int64_t context : {1, 2, 7, 10, 49, 50, 51, 99}) {
      for (const std::int64_t sequences : {1, 3}) {
        for (const bool split : {true, false}) {
          CAPTURE(context);
          CAPTURE(sequences);
          CAPTURE(split);
          WindowSampler sampler(numbers.file, context, sequences, 5, {.split_documents = split});
          CHECK(sampler.windows_per_epoch() == 100 / context);
          TrainingBatch batch;
          for (int i = 0; i < 20; ++i) {
            sampler.next(batch);
            check_shape(batch);
            REQUIRE(batch.rows() == context * sequences);
            REQUIRE(batch.rows() == sampler.rows());
            check_content(numbers, batch, split);
            if (!split) CHECK(batch.lengths == std::vector<std::int64_t>(static_cast<std::size_t>(sequences), context));
          }
        }
      }
    }
  }
}

TEST_CASE("training windows: every token once an epoch, but for those left over, which change") {
  const Numbers numbers({7, 13, 1, 29, 50});
  for (const std::int64_t context : {1, 4, 7, 10, 33, 60, 99}) {
    CAPTURE(context);
    WindowSampler sampler(numbers.file, context, 1, 3);
    TrainingBatch batch;
    std::vector<int> left_out(100);
    std::set<std::vector<Token>> orders;
    const int epochs = 200;
    for (int epoch = 0; epoch < epochs; ++epoch) {
      CHECK(sampler.state() == WindowSamplerState{3, static_cast<std::uint64_t>(epoch), 0});
      std::vector<int> seen(100);
      std::vector<Token> order;
      for (std::int64_t w = 0; w < sampler.windows_per_epoch(); ++w) {
        sampler.next(batch);
        order.push_back(batch.tokens.front());
        for (const Token t : batch.tokens) ++seen[static_cast<std::size_t>(t)];
      }
      CHECK(std::count(seen.begin(), seen.end(), 1) == 100 - 100 % context);
      CHECK(std::count(seen.begin(), seen.end(), 0) == 100 % context);
      for (std::size_t t = 0; t < 100; ++t) left_out[t] += seen[t] == 0;
      orders.insert(order);
    }
    CHECK(orders.size() > 60);  // of 99: 100 starts, drawn 200 times, give 87 on average
    // Each token is left out with probability r/100; six standard deviations of the binomial and one for r small.
    const double p = static_cast<double>(100 % context) / 100, deviation = std::sqrt(epochs * p * (1 - p));
    for (const int n : left_out) CHECK(std::abs(n - epochs * p) <= 6 * deviation);
  }
}

TEST_CASE("training windows: a batch runs from one epoch into the next") {
  const Numbers numbers({40, 60});
  for (const std::int64_t sequences : {1, 2, 3, 7, 25}) {
    WindowSampler one(numbers.file, 10, 1, 9), many(numbers.file, 10, sequences, 9);
    TrainingBatch a, b;
    for (int i = 0; i < 12; ++i) {
      many.next(b);
      TrainingBatch joined;
      for (std::int64_t s = 0; s < sequences; ++s) {
        one.next(a);
        joined.tokens.insert(joined.tokens.end(), a.tokens.begin(), a.tokens.end());
        joined.targets.insert(joined.targets.end(), a.targets.begin(), a.targets.end());
        joined.lengths.insert(joined.lengths.end(), a.lengths.begin(), a.lengths.end());
      }
      CHECK(same(joined, b));
      CHECK(one.state() == many.state());
    }
  }
}

TEST_CASE("training windows: a restored sampler goes on with the same batches; another seed with others") {
  const Numbers numbers({7, 13, 1, 29, 50});
  WindowSampler sampler(numbers.file, 9, 2, 77);
  TrainingBatch expected, batch;
  for (int done = 0; done < 30; ++done) {
    const WindowSamplerState state = sampler.state();
    WindowSampler other(numbers.file, 9, 2, 1);
    other.restore(state);
    CHECK(other.state() == state);
    WindowSampler ahead = sampler;
    for (int i = 0; i < 15; ++i) {
      ahead.next(expected);
      other.next(batch);
      CHECK(same(expected, batch));
    }
    sampler.next(batch);
  }
  WindowSampler a(numbers.file, 9, 2, 77), b(numbers.file, 9, 2, 78);
  a.next(expected);
  b.next(batch);
  CHECK(!same(expected, batch));
  const WindowSamplerState before = a.state();
  CHECK(contains(error_of<ArgumentError>([&] {
                   a.restore({77, 0, 11});
                 }),
                 "position is 11, expected less than the 11"));
  CHECK(a.state() == before);
}

TEST_CASE("training windows: the order is the same on every machine") {
  const Numbers numbers({100});
  WindowSampler sampler(numbers.file, 10, 4, 1234);
  TrainingBatch batch;
  std::vector<Token> first;
  for (int i = 0; i < 5; ++i) {
    sampler.next(batch);
    for (std::size_t row = 0; row < batch.tokens.size(); row += 10) first.push_back(batch.tokens[row]);
  }
  // Worked out with the generators' published definitions, in another language.
  CHECK(first == std::vector<Token>{64, 14, 44, 24, 54, 4, 34, 84, 74, 94, 16, 6, 46, 96, 86, 26, 36, 66, 56, 76});
}

TEST_CASE("training windows: memory is reused") {
  const Numbers numbers({33, 34, 33});
  WindowSampler sampler(numbers.file, 20, 4, 5);
  TrainingBatch batch;
  batch.lengths.reserve(100);
  sampler.next(batch);
  const Token* tokens = batch.tokens.data();
  const Token* targets = batch.targets.data();
  for (int i = 0; i < 50; ++i) sampler.next(batch);
  CHECK(batch.tokens.data() == tokens);
  CHECK(batch.targets.data() == targets);
}

TEST_CASE("sizes out of range are named") {
  const Numbers numbers({100});
  CHECK(contains(error_of<ArgumentError>([&] { WindowSampler(numbers.file, 100, 1, 0); }),
                 "numbers: 100 tokens, expected at least 101 for windows of context 100"));
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{-3}}) {
    CHECK(contains(error_of<ArgumentError>([&] { WindowSampler(numbers.file, bad, 1, 0); }), "context is"));
    CHECK(contains(error_of<ArgumentError>([&] { WindowSampler(numbers.file, 5, bad, 0); }), "sequences of 5"));
    CHECK(contains(error_of<ArgumentError>([&] { EvaluationWindows(numbers.file, bad, 1); }), "context is"));
    CHECK(contains(error_of<ArgumentError>([&] { EvaluationWindows(numbers.file, 5, bad); }), "sequences of 5"));
  }
  CHECK(contains(error_of<ArgumentError>([&] { WindowSampler(numbers.file, 5, INT64_MAX, 0); }), "2^40"));
  const Numbers single({1, 1, 1});
  CHECK(contains(error_of<ArgumentError>([&] { EvaluationWindows(single.file, 5, 1); }), "3 tokens in 3 documents"));
}

TEST_CASE("evaluation windows: every token but the first of a document is predicted once, in order") {
  for (const auto& lengths : kDocuments) {
    const Numbers numbers(lengths);
    for (const std::int64_t context : {1, 2, 7, 10, 49, 99, 100, 1000}) {
      for (const bool split : {true, false}) {
        if (split && lengths.size() == 100) continue;  // nothing to predict
        CAPTURE(context);
        CAPTURE(split);
        TrainingBatch reference;
        for (const std::int64_t sequences : {1, 2, 5}) {
          EvaluationWindows windows(numbers.file, context, sequences, {.split_documents = split});
          for (int round = 0; round < 2; ++round, windows.reset()) {
            TrainingBatch batch, all;
            while (windows.next(batch)) {
              check_shape(batch);
              check_content(numbers, batch, split);
              CHECK(batch.rows() <= context * sequences);
              CHECK(*std::max_element(batch.lengths.begin(), batch.lengths.end()) <= context);
              all.tokens.insert(all.tokens.end(), batch.tokens.begin(), batch.tokens.end());
              all.targets.insert(all.targets.end(), batch.targets.begin(), batch.targets.end());
              all.lengths.insert(all.lengths.end(), batch.lengths.begin(), batch.lengths.end());
            }
            CHECK(batch.rows() == 0);
            CHECK(!windows.next(batch));
            std::vector<Token> expected;
            for (std::int64_t t = 1; t < 100; ++t) {
              if (!split || !numbers.begins(t)) expected.push_back(static_cast<Token>(t));
            }
            CHECK(all.targets == expected);
            CHECK(windows.predictions() == static_cast<std::int64_t>(expected.size()));
            // The sequences do not depend on the size of a batch.
            if (sequences == 1) reference = all;
            CHECK(same(all, reference));
          }
        }
      }
    }
  }
}

TEST_CASE("evaluation windows: documents are cut from their beginnings") {
  const Numbers numbers({7, 13, 1, 29, 50});
  EvaluationWindows windows(numbers.file, 10, 100);
  TrainingBatch batch;
  REQUIRE(windows.next(batch));
  CHECK(batch.lengths == std::vector<std::int64_t>{6, 10, 2, 10, 10, 8, 10, 10, 10, 10, 9});
}
