// SPDX-License-Identifier: Apache-2.0
//
// Batches of training and evaluation windows out of a token file.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/model/sampler.hpp>
#include <hymba/train/token_file.hpp>
#include <hymba/train/training_batch.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

struct WindowOptions {
  /// A window that holds parts of several documents becomes a sequence for each part, and no token is trained to
  /// predict the first of another document. false: documents run on as if they were one text.
  bool split_documents = true;
};

/// Where a WindowSampler stands: plain numbers, to be saved with a checkpoint.
struct WindowSamplerState {
  std::uint64_t seed = 0;
  std::uint64_t epoch = 0;
  std::uint64_t position = 0;  ///< windows of the epoch already drawn
  friend bool operator==(const WindowSamplerState&, const WindowSamplerState&) = default;
};

namespace detail {

/// @throws ArgumentError.
inline void check_window_sizes(std::int64_t context, std::int64_t sequences) {
  constexpr std::int64_t most = std::int64_t{1} << 40;
  if (context < 1) throw ArgumentError(message("windows: context is ", context, ", expected at least 1"));
  if (sequences < 1 || sequences > most / context) {
    throw ArgumentError(message("windows: ", sequences, " sequences of ", context, " tokens, expected at least 1 and ",
                                "at most 2^40 tokens in all"));
  }
}

/// Adds `count` tokens from `first` as one sequence with the tokens behind them as targets. All but the last target
/// lie in the sequence; the last is given.
inline void append_sequence(const TokenFile& file, std::int64_t first, std::int64_t count, Token last_target,
                            TrainingBatch& batch) {
  const std::size_t at = batch.tokens.size(), rows = static_cast<std::size_t>(count);
  batch.tokens.resize(at + rows);
  file.read(first, count, batch.tokens.data() + at);
  batch.targets.insert(batch.targets.end(), batch.tokens.begin() + static_cast<std::ptrdiff_t>(at) + 1,
                       batch.tokens.end());
  batch.targets.push_back(last_target);
  batch.lengths.push_back(count);
}

}  // namespace detail

/// Draws random windows of a file for training, without replacement.
///
/// The file is read as a ring (its first token follows its last). Every epoch lays a grid of floor(tokens / context)
/// windows, end to end, over the ring from a new random start, and goes through them in a new random order. So each
/// token is an input exactly once an epoch, but for the fewer than `context` tokens that are left over, which are
/// others each time; and windows are cut elsewhere in every epoch. A batch that begins at the end of one epoch goes on
/// with the next.
///
/// Grid and order follow from (seed, epoch) alone, so that state() is three numbers, and the same on every machine.
class WindowSampler {
 public:
  /// @param context tokens of a window. @param sequences windows of a batch.
  /// @throws ArgumentError when a size is out of range or the file holds fewer than context + 1 tokens.
  WindowSampler(TokenFile file, std::int64_t context, std::int64_t sequences, std::uint64_t seed,
                WindowOptions options = {})
      : file_(std::move(file)), context_(context), sequences_(sequences), options_(options) {
    detail::check_window_sizes(context, sequences);
    if (file_.size() <= context) {
      throw ArgumentError(detail::message(file_.name(), ": ", file_.size(), " tokens, expected at least ", context + 1,
                                          " for windows of context ", context));
    }
    order_.resize(static_cast<std::size_t>(file_.size() / context));
    state_.seed = seed;
    lay_grid();
  }

  /// The next batch: always context x sequences rows, windows in the order drawn, the parts of a window in the order
  /// of the text. Reuses the batch's memory.
  void next(TrainingBatch& batch) {
    batch.clear();
    batch.tokens.reserve(static_cast<std::size_t>(rows()));
    batch.targets.reserve(static_cast<std::size_t>(rows()));
    for (std::int64_t i = 0; i < sequences_; ++i) {
      const std::int64_t window = order_[static_cast<std::size_t>(state_.position)];
      append_window(on_ring(start_ + window * context_), batch);
      if (++state_.position == order_.size()) {
        ++state_.epoch;
        state_.position = 0;
        lay_grid();
      }
    }
  }

  WindowSamplerState state() const { return state_; }
  /// Goes on from a state taken earlier, of a sampler over the same file with the same context.
  /// @throws ArgumentError when its position is none of the epoch's windows; the sampler is then unchanged.
  void restore(const WindowSamplerState& state) {
    if (state.position >= order_.size()) {
      throw ArgumentError(detail::message("window sampler state: position is ", state.position,
                                          ", expected less than the ", order_.size(), " windows of ", file_.name()));
    }
    state_ = state;
    lay_grid();
  }

  std::int64_t rows() const { return context_ * sequences_; }
  std::int64_t windows_per_epoch() const { return static_cast<std::int64_t>(order_.size()); }
  const TokenFile& file() const { return file_; }

 private:
  std::int64_t on_ring(std::int64_t at) const { return at < file_.size() ? at : at - file_.size(); }

  /// Start and order of the windows of the state's epoch.
  void lay_grid() {
    std::uint64_t x = state_.seed;
    x = detail::splitmix64(x) + state_.epoch;
    std::array<std::uint64_t, 4> generator{};
    for (auto& word : generator) word = detail::splitmix64(x);
    start_ = static_cast<std::int64_t>(detail::uniform_below(generator, static_cast<std::uint64_t>(file_.size())));
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<std::int64_t>(i);
    for (std::size_t i = order_.size(); i > 1; --i) {
      std::swap(order_[i - 1], order_[static_cast<std::size_t>(detail::uniform_below(generator, i))]);
    }
  }

  void append_window(std::int64_t first, TrainingBatch& batch) const {
    if (options_.split_documents) {
      std::int64_t left = context_;
      for (std::int64_t document = file_.document_of(first); left > 0; first = on_ring(first)) {
        const std::int64_t end = file_.document(document).last, part = std::min(left, end - first);
        detail::append_sequence(file_, first, part, first + part < end ? file_[first + part] : -1, batch);
        left -= part;
        first += part;
        document = document + 1 < file_.documents() ? document + 1 : 0;
      }
      return;
    }
    const std::int64_t before_end = std::min(context_, file_.size() - first);
    detail::append_sequence(file_, first, before_end, file_[on_ring(first + before_end)], batch);
    if (before_end == context_) return;
    const std::int64_t rest = context_ - before_end;
    detail::append_sequence(file_, 0, rest, file_[rest], batch);
    batch.lengths.pop_back();
    batch.lengths.back() = context_;
  }

  TokenFile file_;
  std::int64_t context_, sequences_;
  WindowOptions options_;
  WindowSamplerState state_;
  std::int64_t start_ = 0;
  std::vector<std::int64_t> order_;
};

/// Covers a file once, front to back: every token but the first of a document (of the file, when documents are not
/// split) is the target of exactly one row, and no target is -1.
///
/// Every document is cut into sequences of `context` rows from its own beginning (the last one is shorter), whatever
/// the size of a batch: a loss measured over a file does not depend on it.
class EvaluationWindows {
 public:
  /// @param sequences a batch has at most context x sequences rows.
  /// @throws ArgumentError when a size is out of range or there is nothing to predict.
  EvaluationWindows(TokenFile file, std::int64_t context, std::int64_t sequences, WindowOptions options = {})
      : file_(std::move(file)), context_(context), sequences_(sequences), options_(options) {
    detail::check_window_sizes(context, sequences);
    if (predictions() == 0) {
      throw ArgumentError(detail::message(file_.name(), ": ", file_.size(), " tokens in ", file_.documents(),
                                          " documents, expected a document of at least 2 tokens to predict"));
    }
  }

  /// The next batch, as many sequences as fit; false, with an empty batch, when the file is done.
  bool next(TrainingBatch& batch) {
    batch.clear();
    std::int64_t room = context_ * sequences_;
    for (;;) {
      const DocumentRange range = part(document_);
      const std::int64_t begin = range.first + done_, left = range.last - 1 - begin;
      if (left <= 0) {
        if (document_ + 1 >= parts()) break;
        ++document_;
        done_ = 0;
        continue;
      }
      const std::int64_t count = std::min(context_, left);
      if (count > room) break;
      detail::append_sequence(file_, begin, count, file_[begin + count], batch);
      done_ += count;
      room -= count;
    }
    return batch.rows() > 0;
  }

  /// Starts over.
  void reset() { document_ = done_ = 0; }

  /// Rows of all batches together: tokens that are predicted.
  std::int64_t predictions() const { return file_.size() - parts(); }
  const TokenFile& file() const { return file_; }

 private:
  std::int64_t parts() const { return options_.split_documents ? file_.documents() : 1; }
  DocumentRange part(std::int64_t i) const {
    return options_.split_documents ? file_.document(i) : DocumentRange{0, file_.size()};
  }

  TokenFile file_;
  std::int64_t context_, sequences_;
  WindowOptions options_;
  std::int64_t document_ = 0, done_ = 0;
};

HYMBA_NAMESPACE_END
