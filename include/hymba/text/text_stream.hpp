// SPDX-License-Identifier: Apache-2.0
//
// Text as it is generated: tokens in, complete characters out.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/text/stop_strings.hpp>
#include <hymba/text/tokenizer.hpp>
#include <hymba/text/utf8.hpp>

#include <cstddef>
#include <string>
#include <string_view>

HYMBA_NAMESPACE_BEGIN

/// Decodes token by token. What push() and finish() return, put together, equals Tokenizer::decode of all the tokens;
/// each part consists of whole UTF-8 characters.
class TextStream {
 public:
  /// `tokenizer` must outlive the stream. `continuation`: the tokens go on from others (a prompt), so that a space in
  /// front of the first one is text; otherwise it is the dummy prefix and dropped.
  explicit TextStream(const Tokenizer& tokenizer, bool continuation = false)
      : tokenizer_(&tokenizer), continuation_(continuation) {
    reset();
  }
  // The tokenizer is kept by reference: a temporary would dangle.
  explicit TextStream(Tokenizer&&, bool = false) = delete;

  /// The text that `token` completes; often empty while a character's bytes are arriving. The view holds until the next
  /// call. Throws ArgumentError on an id outside the vocabulary; the stream is then unchanged.
  std::string_view push(Token token) {
    const std::string_view piece = tokenizer_->piece(token);
    text_.clear();
    if (tokenizer_->is_added(token)) return text_;
    const int byte = tokenizer_->byte_of(token);
    if (byte >= 0) {
      bytes_.push_back(static_cast<char>(byte));
      flush(false);
      return text_;
    }
    flush(true);  // any other piece ends a run of bytes
    if (!text_.empty()) at_start_ = false;
    if (tokenizer_->is_control(token)) return text_;
    if (tokenizer_->is_unknown(token)) {
      text_ += tokenizer_->unknown_text();
      at_start_ = false;
      return text_;
    }
    std::string_view rest = piece;
    if (at_start_ && tokenizer_->drops_first_space() && rest.starts_with(detail::kSpaceSymbol)) {
      rest.remove_prefix(detail::kSpaceSymbol.size());
      // When extra spaces are removed, every leading one is, until there is text.
      if (!tokenizer_->drops_leading_spaces()) at_start_ = false;
    }
    while (!rest.empty()) {
      const std::size_t space = rest.find(detail::kSpaceSymbol);
      text_ += rest.substr(0, space);
      if (space == std::string_view::npos) break;
      text_ += ' ';
      rest.remove_prefix(space + detail::kSpaceSymbol.size());
    }
    if (!text_.empty()) at_start_ = false;
    return text_;
  }

  /// What was held back at the end: bytes of a character that never became complete, each as U+FFFD. The stream then
  /// starts anew.
  std::string_view finish() {
    text_.clear();
    flush(true);
    at_start_ = !continuation_;
    return text_;
  }

  /// Forgets everything.
  void reset() {
    text_.clear();
    bytes_.clear();
    at_start_ = !continuation_;
  }

 private:
  /// Moves complete characters, and bytes that can no longer become one, from bytes_ to text_.
  void flush(bool all) {
    std::string_view rest = bytes_;
    while (!rest.empty()) {
      const detail::Utf8Step step = detail::utf8_step(rest);
      if (step.kind == detail::Utf8::character) {
        text_ += rest.substr(0, step.length);
        rest.remove_prefix(step.length);
      } else if (step.kind == detail::Utf8::invalid || all) {
        text_ += detail::kReplacementCharacter;
        rest.remove_prefix(1);
      } else {
        break;
      }
    }
    bytes_.erase(0, bytes_.size() - rest.size());
    if (!text_.empty()) at_start_ = false;
  }

  const Tokenizer* tokenizer_;
  std::string text_;   // what the last call returned
  std::string bytes_;  // at most three bytes of an unfinished character
  bool continuation_;
  bool at_start_ = true;
};

HYMBA_NAMESPACE_END
