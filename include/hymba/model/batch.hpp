// SPDX-License-Identifier: Apache-2.0
//
// A batch: many sessions of different lengths and ages stepped together, so that the weights are read once for all.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/model/forward.hpp>
#include <hymba/model/model_data.hpp>
#include <hymba/model/session.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

struct BatchOptions {
  std::int64_t max_sessions = 64;  ///< most sessions in one call
  int threads = 0;                 ///< 0: the executor's own choice
  std::int64_t max_rows = 512;     ///< most tokens, of all sessions together, that go through the layers at once
};

/// Steps many sessions of one model together. Holds no sequence of its own: sessions come and go between calls, and may
/// be used alone in between. Belongs to one thread at a time, as do the sessions while a call runs.
///
/// Everything is allocated when the batch is made.
template <class V, Policy P>
class Batch {
 public:
  using E = typename P::cache_element;

  /// A session and the tokens it is to read; any number of them, also none.
  struct Item {
    Session<V, P>* session = nullptr;
    std::span<const Token> tokens;
  };

  Batch(Batch&&) = default;
  Batch& operator=(Batch&&) = default;

  /// Every session reads its tokens; afterwards its `logits()` predict the token behind its last one.
  /// @throws ArgumentError when there are more than max_sessions, a session is missing, of another model or in the batch
  /// twice, or a token is outside the vocabulary; @throws ContextError when a session has no room. Then none has changed.
  void step(std::span<const Item> items) {
    check(items);
    // Rounds of at most max_rows rows. Short prompts do not wait for long ones: each round deals rows out evenly.
    std::fill(done_.begin(), done_.end(), 0);
    for (;;) {
      const std::int64_t active = count_active(items);
      if (active == 0) return;
      round(items, active);
    }
  }

  /// Every session reads one token: sessions[i] reads tokens[i].
  /// @throws as step; ArgumentError when there are not as many tokens as sessions.
  void decode(std::span<Session<V, P>* const> sessions, std::span<const Token> tokens) {
    if (sessions.size() != tokens.size()) {
      throw ArgumentError(detail::message("batch: ", tokens.size(), " tokens for ", sessions.size(), " sessions"));
    }
    check_count(sessions.size());
    for (std::size_t i = 0; i < sessions.size(); ++i) items_[i] = {sessions[i], tokens.subspan(i, 1)};
    step(std::span<const Item>(items_.data(), sessions.size()));
  }

  std::int64_t max_sessions() const { return static_cast<std::int64_t>(items_.size()); }
  int threads() const { return executor_.threads(); }

 private:
  friend class Model<V, P>;
  using Data = ModelData<V, P>;

  Batch(std::shared_ptr<const Data> data, const BatchOptions& options)
      : data_(std::move(data)),
        executor_(checked(options).threads),
        workspace_(*data_, std::max(options.max_rows, options.max_sessions), options.max_sessions, executor_.threads()),
        steps_(static_cast<std::size_t>(options.max_sessions)),
        finished_(static_cast<std::size_t>(options.max_sessions)),
        done_(static_cast<std::size_t>(options.max_sessions)),
        items_(static_cast<std::size_t>(options.max_sessions)),
        order_(static_cast<std::size_t>(options.max_sessions)),
        hidden_(static_cast<std::size_t>(options.max_sessions * data_->architecture().width)),
        logits_(static_cast<std::size_t>(options.max_sessions) *
                static_cast<std::size_t>(data_->architecture().vocabulary)) {}

  static const BatchOptions& checked(const BatchOptions& o) {
    if (o.max_sessions < 1 || o.max_sessions > 65536) {
      throw ArgumentError(detail::message("max_sessions is ", o.max_sessions, ", expected 1 to 65536"));
    }
    if (o.max_rows < 1 || o.max_rows > 65536) {
      throw ArgumentError(detail::message("max_rows is ", o.max_rows, ", expected 1 to 65536"));
    }
    return o;
  }

  void check_count(std::size_t count) const {
    if (count > items_.size()) {
      throw ArgumentError(detail::message("batch: ", count, " sessions, expected at most max_sessions ", items_.size()));
    }
  }
  void check(std::span<const Item> items) {
    check_count(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (items[i].session == nullptr) throw ArgumentError(detail::message("batch: session ", i, " is null"));
      if (items[i].session->data_ != data_) {
        throw ArgumentError(detail::message("batch: session ", i, " belongs to another model"));
      }
      order_[i] = items[i].session;
    }
    const auto last = order_.begin() + static_cast<std::ptrdiff_t>(items.size());
    std::sort(order_.begin(), last, std::less<>());
    if (std::adjacent_find(order_.begin(), last) != last) {
      throw ArgumentError("batch: one session is in the batch twice, expected each at most once");
    }
    for (std::size_t i = 0; i < items.size(); ++i) {
      try {
        items[i].session->check(items[i].tokens);
      } catch (const ContextError& e) {
        throw ContextError(detail::message("batch: session ", i, ": ", e.what()));
      } catch (const ArgumentError& e) {
        throw ArgumentError(detail::message("batch: session ", i, ": ", e.what()));
      }
    }
  }

  std::int64_t left(const Item& item, std::size_t i) const {
    return static_cast<std::int64_t>(item.tokens.size()) - done_[i];
  }
  std::int64_t count_active(std::span<const Item> items) const {
    std::int64_t active = 0;
    for (std::size_t i = 0; i < items.size(); ++i) active += left(items[i], i) > 0 ? 1 : 0;
    return active;
  }

  void round(std::span<const Item> items, std::int64_t active) {
    const std::int64_t width = data_->architecture().width, vocabulary = data_->architecture().vocabulary;
    std::int64_t rows = 0, finished = 0;
    std::size_t count = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (left(items[i], i) == 0) continue;
      // What is left of the round, shared evenly among the sessions still to be served in it.
      const std::int64_t share = (workspace_.max_rows() - rows) / active--;
      const std::int64_t take = std::min(left(items[i], i), share);
      Session<V, P>& session = *items[i].session;
      const auto tokens = items[i].tokens.subspan(static_cast<std::size_t>(done_[i]), static_cast<std::size_t>(take));
      embed(*data_, workspace_, rows, tokens);
      session.tokens_.insert(session.tokens_.end(), tokens.begin(), tokens.end());
      steps_[count++] = {&session.state_, take};
      done_[i] += take;
      rows += take;
      if (left(items[i], i) == 0) finished_[static_cast<std::size_t>(finished++)] = {&session, rows - 1};
    }
    forward(*data_, workspace_, executor_, std::span<const StepSequence<E>>(steps_.data(), count));
    if (finished == 0) return;
    for (std::int64_t f = 0; f < finished; ++f) {
      const float* from = workspace_.x + finished_[static_cast<std::size_t>(f)].second * width;
      std::copy(from, from + width, hidden_.begin() + f * width);
    }
    project_logits(*data_, workspace_, executor_, MatrixView<float>(hidden_.data(), finished, width),
                   MatrixView<float>(logits_.data(), finished, vocabulary));
    for (std::int64_t f = 0; f < finished; ++f) {
      Session<V, P>& session = *finished_[static_cast<std::size_t>(f)].first;
      std::copy(logits_.begin() + f * vocabulary, logits_.begin() + (f + 1) * vocabulary, session.logits_.begin());
      session.has_logits_ = true;
    }
  }

  std::shared_ptr<const Data> data_;
  typename P::executor executor_;
  Workspace<V, P> workspace_;
  std::vector<StepSequence<E>> steps_;
  std::vector<std::pair<Session<V, P>*, std::int64_t>> finished_;
  std::vector<std::int64_t> done_;
  std::vector<Item> items_;
  std::vector<const Session<V, P>*> order_;
  std::vector<float> hidden_, logits_;
};

HYMBA_NAMESPACE_END
