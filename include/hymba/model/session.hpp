// SPDX-License-Identifier: Apache-2.0
//
// A session: one sequence being read and continued. Everything is allocated when it is made; it belongs to one thread at
// a time. Any number of sessions share one model.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/model/forward.hpp>
#include <hymba/model/generation.hpp>
#include <hymba/model/model_data.hpp>
#include <hymba/model/sampler.hpp>
#include <hymba/state/session_state.hpp>
#include <hymba/state/snapshot.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

struct SessionOptions {
  std::int64_t max_context = 2048;   ///< tokens the session can hold, prompt and answer together; meta tokens are extra
  int threads = 0;                   ///< 0: the executor's own choice (OpenMP: all cores)
  std::int64_t prefill_chunk = 512;  ///< most tokens that go through the layers at once; bounds working memory
};

template <class V, Policy P>
class Model;
template <class V, Policy P>
class Batch;

/// One sequence over a model. Movable, not copyable (see `fork`).
template <class V, Policy P>
class Session {
 public:
  using E = typename P::cache_element;

  Session(Session&&) = default;
  Session& operator=(Session&&) = default;

  /// Reads tokens, in chunks; afterwards `logits()` predicts the token behind the last one.
  /// @throws ArgumentError on a token outside the vocabulary; @throws ContextError when they do not fit. Either way the
  /// session is unchanged.
  void prefill(std::span<const Token> tokens) {
    check(tokens);
    if (tokens.empty()) return;
    last_logits(read(tokens, [](std::int64_t, std::int64_t) {}));
  }
  void prefill(std::initializer_list<Token> tokens) { prefill(std::span<const Token>(tokens.begin(), tokens.size())); }

  /// Reads one token and returns the logits [vocabulary] behind it. Allocates nothing.
  /// @throws as prefill.
  std::span<const float> decode(Token token) {
    prefill(std::span<const Token>(&token, 1));
    return logits();
  }

  /// Reads tokens and writes the logits behind every one of them: `logits` is [tokens.size(), vocabulary].
  /// @throws ArgumentError when `logits` has another size; otherwise as prefill.
  void evaluate(std::span<const Token> tokens, std::span<float> logits) {
    check(tokens);
    const std::int64_t vocabulary = data_->architecture().vocabulary, width = data_->architecture().width;
    if (logits.size() != tokens.size() * static_cast<std::size_t>(vocabulary)) {
      throw ArgumentError(detail::message("logits: room for ", logits.size(), " floats, expected ", tokens.size(),
                                          " tokens * vocabulary ", vocabulary));
    }
    if (tokens.empty()) return;
    read(tokens, [&](std::int64_t first, std::int64_t rows) {
      project_logits(*data_, workspace_, executor_, MatrixView<float>(workspace_.x, rows, width),
                     MatrixView<float>(logits.data() + first * vocabulary, rows, vocabulary));
    });
    std::copy(logits.end() - vocabulary, logits.end(), logits_.begin());
    has_logits_ = true;
  }

  /// Logits [vocabulary] behind the last token read; empty when none was. The view is of the session's own memory, which
  /// the next tokens overwrite.
  std::span<const float> logits() const {
    return has_logits_ ? std::span<const float>(logits_) : std::span<const float>();
  }
  /// Tokens read so far.
  std::span<const Token> tokens() const { return tokens_; }
  /// Number of tokens read so far; meta tokens are not counted.
  std::int64_t position() const { return static_cast<std::int64_t>(tokens_.size()); }
  std::int64_t max_context() const { return state_.context(); }
  /// Tokens that still fit.
  std::int64_t room() const { return max_context() - position(); }
  int threads() const { return executor_.threads(); }
  /// Bytes of caches and recurrent state together; of working memory.
  std::size_t memory_bytes() const { return state_.bytes(); }
  std::size_t workspace_bytes() const { return workspace_.bytes(); }

  /// Sets how `sample` chooses, and restarts its generator from the seed.
  /// @throws ArgumentError on an option out of range.
  void configure(const SamplingOptions& options) { sampler_.configure(options); }
  /// Chooses the next token from `logits()`, given the tokens read so far. The session does not read it. Allocates nothing.
  /// @throws ArgumentError when the session has read nothing yet, or its logits are not numbers.
  Choice sample() {
    if (!has_logits_) throw ArgumentError("the session has read 0 tokens, expected a prompt before sampling");
    return sampler_.sample(logits_, tokens_);
  }
  /// Generates tokens from here on: `for (Token t : session.generate({.max_new_tokens = 64})) ...`.
  /// @throws ArgumentError on an option out of range.
  Generation<Session> generate(const GenerateOptions& options = {}) & {
    configure(options.sampling());
    return resume(options.max_new_tokens, options.stop_tokens);
  }
  /// As `generate`, with the sampler as it stands: a restored session goes on exactly where it was.
  Generation<Session> resume(std::int64_t max_new_tokens, std::vector<Token> stop_tokens = {}) & {
    if (max_new_tokens < 0) {
      throw ArgumentError(detail::message("max_new_tokens is ", max_new_tokens, ", expected 0 or more"));
    }
    return Generation<Session>(*this, max_new_tokens, std::move(stop_tokens));
  }
  /// A generation reads from its session: it must not outlive it, and the session must not be moved meanwhile.
  Generation<Session> generate(const GenerateOptions& options = {}) && = delete;
  Generation<Session> resume(std::int64_t max_new_tokens, std::vector<Token> stop_tokens = {}) && = delete;

  /// Forgets everything but the meta tokens. The sampler keeps its options and generator.
  void reset() {
    state_.copy_from(meta());
    // Recurrent states are overwritten by the copy; a model without meta tokens starts from zeros, as copied.
    tokens_.clear();
    has_logits_ = false;
  }

  /// A second session at the same place, with room and threads of its own; both go on independently.
  Session fork() const {
    Session other(data_, options_);
    other.state_.copy_from(state_);
    other.tokens_.assign(tokens_.begin(), tokens_.end());
    other.logits_ = logits_;
    other.has_logits_ = has_logits_;
    other.sampler_.restore(sampler_.state());
    return other;
  }

  /// The whole session as one blob: caches, convolution tails, SSM states, tokens, logits, sampler.
  std::vector<std::byte> snapshot() const {
    detail::SnapshotWriter out(state_.bytes() + tokens_.size() * sizeof(Token) + logits_.size() * sizeof(float) + 4096);
    out.value(position());
    out.bytes(tokens_.data(), tokens_.size() * sizeof(Token));
    out.value(sampler_.state());
    out.value(static_cast<std::uint64_t>(has_logits_ ? 1 : 0));
    if (has_logits_) out.bytes(logits_.data(), logits_.size() * sizeof(float));
    visit_state(state_, [&](const void* data, std::size_t bytes) { out.bytes(data, bytes); });
    return std::move(out).finish(data_->fingerprint(), cache_format<P::cache>::name);
  }

 private:
  friend class Model<V, P>;
  friend class Batch<V, P>;
  using Data = ModelData<V, P>;

  Session(std::shared_ptr<const Data> data, const SessionOptions& options)
      : data_(std::move(data)),
        options_(checked(options)),
        executor_(options.threads),
        state_(data_->architecture(), options.max_context),
        workspace_(*data_, std::min(options.prefill_chunk, options.max_context), 1, executor_.threads()),
        logits_(static_cast<std::size_t>(data_->architecture().vocabulary)),
        sampler_(data_->architecture().vocabulary) {
    tokens_.reserve(static_cast<std::size_t>(options.max_context));
    state_.copy_from(meta());
  }

  static const SessionOptions& checked(const SessionOptions& o) {
    constexpr std::int64_t most = std::int64_t{1} << 30;
    if (o.max_context < 1 || o.max_context > most) {
      throw ArgumentError(detail::message("max_context is ", o.max_context, ", expected 1 to ", most));
    }
    if (o.prefill_chunk < 1 || o.prefill_chunk > 65536) {
      throw ArgumentError(detail::message("prefill_chunk is ", o.prefill_chunk, ", expected 1 to 65536"));
    }
    return o;
  }

  /// The state after the meta tokens, computed by the first session of a model.
  const SessionState<E>& meta() {
    return data_->meta_state([&] {
      const Architecture<V>& a = data_->architecture();
      SessionState<E> state(a, 0);
      const std::int64_t count = a.meta_tokens(), chunk = 512;
      if (count == 0) return state;
      // In a session's own memory unless that is for smaller chunks, which would take long.
      std::optional<Workspace<V, P>> larger;
      if (workspace_.max_rows() < std::min(count, chunk)) {
        larger.emplace(*data_, std::min(count, chunk), 1, executor_.threads());
      }
      Workspace<V, P>& workspace = larger ? *larger : workspace_;
      for (std::int64_t first = 0; first < count; first += chunk) {
        const StepSequence<E> step{&state, std::min(chunk, count - first)};
        const float* rows = data_->meta_tokens() + first * a.width;
        std::copy(rows, rows + step.rows * a.width, workspace.x);
        forward(*data_, workspace, executor_, std::span<const StepSequence<E>>(&step, 1));
      }
      return state;
    });
  }

  void check(std::span<const Token> tokens) const {
    const int vocabulary = data_->architecture().vocabulary;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= vocabulary) {
        throw ArgumentError(detail::message("token ", i, " is ", tokens[i], ", expected 0 to ", vocabulary - 1));
      }
    }
    if (static_cast<std::int64_t>(tokens.size()) > room()) {
      throw ContextError(detail::message(tokens.size(), " tokens do not fit: the session holds ", position(),
                                         " of max_context ", max_context()));
    }
  }

  /// Reads checked tokens in chunks; `after(first, rows)` is called while the workspace holds the chunk's last states.
  /// Returns the rows of the last chunk.
  template <class After>
  std::int64_t read(std::span<const Token> tokens, After&& after) {
    std::int64_t first = 0, rows = 0;
    while (!tokens.empty()) {
      const auto chunk = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(workspace_.max_rows())));
      embed(*data_, workspace_, 0, chunk);
      rows = static_cast<std::int64_t>(chunk.size());
      const StepSequence<E> step{&state_, rows};
      forward(*data_, workspace_, executor_, std::span<const StepSequence<E>>(&step, 1));
      tokens_.insert(tokens_.end(), chunk.begin(), chunk.end());
      after(first, rows);
      first += rows;
      tokens = tokens.subspan(chunk.size());
    }
    return rows;
  }
  /// The logits of the last of `rows` rows in the workspace.
  void last_logits(std::int64_t rows) {
    const std::int64_t width = data_->architecture().width;
    project_logits(*data_, workspace_, executor_, MatrixView<float>(workspace_.x + (rows - 1) * width, 1, width),
                   MatrixView<float>(logits_.data(), 1, static_cast<std::int64_t>(logits_.size())));
    has_logits_ = true;
  }

  /// Visits the valid part of a state in a fixed order that does not depend on its room: `visit(pointer, bytes)`.
  template <class Visit>
  static void visit_state(const SessionState<E>& state, Visit&& visit) {
    for (int i = 0; i < state.layers(); ++i) {
      if (state.ssm(i) != nullptr) visit(state.ssm(i), static_cast<std::size_t>(state.ssm_floats()) * sizeof(float));
      const LayerCache<E>& c = state.cache(i);
      if (c.keys == nullptr) continue;
      const std::int64_t length = state.position();
      visit_positions(c, 0, std::min(length, c.meta), visit);
      visit_positions(c, c.oldest(length), length, visit);
    }
  }
  template <class Visit>
  static void visit_positions(const LayerCache<E>& c, std::int64_t first, std::int64_t last, Visit& visit) {
    for (std::int64_t p = first; p < last; ++p) c.visit_row(c.row_of(p), visit);
  }

  void restore(std::span<const std::byte> blob) {
    detail::SnapshotReader in(blob, data_->fingerprint(), cache_format<P::cache>::name);
    const auto count = in.value<std::int64_t>();
    if (count < 0 || count > max_context()) {
      throw SnapshotError(detail::message("snapshot: holds ", count, " tokens, this session has max_context ", max_context()));
    }
    tokens_.resize(static_cast<std::size_t>(count));
    in.bytes(tokens_.data(), tokens_.size() * sizeof(Token));
    for (const Token t : tokens_) {
      if (t < 0 || t >= data_->architecture().vocabulary) {
        throw SnapshotError(detail::message("snapshot: holds token ", t, ", expected 0 to ",
                                            data_->architecture().vocabulary - 1));
      }
    }
    const auto sampler = in.value<SamplerState>();
    try {
      sampler_.restore(sampler);
    } catch (const ArgumentError& e) {
      throw SnapshotError(detail::message("snapshot: ", e.what()));
    }
    has_logits_ = in.value<std::uint64_t>() != 0;
    if (has_logits_) in.bytes(logits_.data(), logits_.size() * sizeof(float));
    state_.set_position(state_.meta() + count);
    visit_state(state_, [&](void* data, std::size_t bytes) { in.bytes(data, bytes); });
    in.finish();
  }

  std::shared_ptr<const Data> data_;
  SessionOptions options_;
  typename P::executor executor_;
  SessionState<E> state_;
  Workspace<V, P> workspace_;
  std::vector<float> logits_;
  bool has_logits_ = false;
  std::vector<Token> tokens_;
  Sampler sampler_;
};

HYMBA_NAMESPACE_END
