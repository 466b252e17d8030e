// SPDX-License-Identifier: Apache-2.0
//
// Ending generated text at given strings, wherever the borders of its parts fall.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/text/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Watches a stream of text for stop strings, across the borders of its parts. Text that could be the beginning of a
/// stop string is held back until that is decided. The stop string that is complete first ends the text (of several
/// that end at the same place, the longest); the text before it is delivered, nothing of it or after it.
class StopStrings {
 public:
  StopStrings() = default;
  /// Throws ArgumentError on an empty stop string or one that is not UTF-8 (it could split a character).
  explicit StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
    for (std::size_t i = 0; i < strings_.size(); ++i) {
      if (strings_[i].empty())
        throw ArgumentError(detail::message("stop string ", i, " is empty, expected at least one character"));
      if (!detail::is_utf8(strings_[i])) throw ArgumentError(detail::message("stop string ", i, " is not valid UTF-8"));
    }
  }

  /// The text that may be shown now. The view holds until the next call. After a stop: empty.
  std::string_view push(std::string_view text) {
    ready_.clear();
    if (stopped()) return ready_;
    for (const char c : text) {
      held_.push_back(c);
      for (std::size_t i = 0; i < strings_.size(); ++i) {
        if (held_.ends_with(strings_[i]) &&
            (matched_ < 0 || strings_[i].size() > strings_[static_cast<std::size_t>(matched_)].size())) {
          matched_ = static_cast<int>(i);
        }
      }
      if (stopped()) {
        held_.resize(held_.size() - strings_[static_cast<std::size_t>(matched_)].size());
        ready_.swap(held_);
        held_.clear();
        return ready_;
      }
    }
    const std::size_t keep = undecided();
    ready_.assign(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return ready_;
  }

  /// What was held back when the stream ends without a stop; empty after a stop. The stop state stays until reset().
  std::string_view finish() {
    ready_.clear();
    ready_.swap(held_);
    return ready_;
  }

  /// Whether a stop string is complete, and which one (an index into the list; -1: none).
  bool stopped() const { return matched_ >= 0; }
  int matched() const { return matched_; }
  const std::vector<std::string>& strings() const { return strings_; }

  /// Ready for another stream.
  void reset() {
    held_.clear();
    ready_.clear();
    matched_ = -1;
  }

 private:
  /// Length of the longest end of held_ that begins a stop string.
  std::size_t undecided() const {
    std::size_t longest = 0;
    for (const std::string& s : strings_) {
      for (std::size_t n = std::min(s.size() - 1, held_.size()); n > longest; --n) {
        if (held_.ends_with(std::string_view(s).substr(0, n))) longest = n;
      }
    }
    return longest;
  }

  std::vector<std::string> strings_;
  std::string held_;
  std::string ready_;
  int matched_ = -1;
};

HYMBA_NAMESPACE_END
