// SPDX-License-Identifier: Apache-2.0
//
// Generating text from a session: options, why it ended, and the range that yields tokens.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/model/sampler.hpp>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// How to generate. The sampling fields mean what they mean in SamplingOptions.
struct GenerateOptions {
  std::int64_t max_new_tokens = 128;
  float temperature = 0.0f;
  std::int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::int32_t penalty_window = -1;
  std::uint64_t seed = 0;
  std::vector<Token> stop_tokens = {};  ///< generation ends before the first of these; the session does not read it

  SamplingOptions sampling() const {
    return {temperature,      top_k,            top_p,          min_p, repetition_penalty, presence_penalty,
            frequency_penalty, penalty_window, seed};
  }
};

/// Why generation ended.
enum class Finish {
  running,     ///< it has not
  stop_token,  ///< a stop token came
  length,      ///< max_new_tokens were generated
  context,     ///< the session's max_context is full; it has not read the last token
};

/// The tokens of one generation, made as they are asked for: `for (Token t : session.generate(options)) ...`.
///
/// Each token is read by the session when the next one is asked for, so that it can be shown at once. Leaving the loop
/// early (break) leaves the last token unread: `session.decode(token)` catches up.
template <class Session>
class Generation {
 public:
  class iterator {
   public:
    using value_type = Token;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;
    iterator() = default;
    explicit iterator(Generation* g) : generation_(g) {}
    Token operator*() const { return generation_->choice_.token; }
    iterator& operator++() {
      generation_->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& i, std::default_sentinel_t) {
      return i.generation_->finish() != Finish::running;
    }

   private:
    Generation* generation_ = nullptr;
  };

  Generation(Session& session, std::int64_t max_new_tokens, std::vector<Token> stop_tokens)
      : session_(&session), left_(max_new_tokens), stop_tokens_(std::move(stop_tokens)) {}

  /// Samples the first token. Call once.
  /// @throws ArgumentError when the session has read nothing yet.
  iterator begin() {
    sample();
    return iterator(this);
  }
  static std::default_sentinel_t end() { return {}; }

  /// The current token and its log-probability under the model's distribution.
  const Choice& choice() const { return choice_; }
  Finish finish() const { return finish_; }

 private:
  void sample() {
    if (left_ <= 0) {
      finish_ = Finish::length;
      return;
    }
    choice_ = session_->sample();
    for (const Token stop : stop_tokens_) {
      if (choice_.token == stop) finish_ = Finish::stop_token;
    }
  }
  void next() {
    --left_;
    if (session_->room() == 0) {
      finish_ = left_ == 0 ? Finish::length : Finish::context;
      return;
    }
    session_->decode(choice_.token);
    sample();
  }

  Session* session_;
  std::int64_t left_;
  std::vector<Token> stop_tokens_;
  Choice choice_;
  Finish finish_ = Finish::running;
};

HYMBA_NAMESPACE_END
