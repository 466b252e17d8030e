// SPDX-License-Identifier: Apache-2.0
//
// Walking through UTF-8 text that may be unfinished or invalid.
#pragma once

#include <hymba/core/macros.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// What a position in UTF-8 text holds, by SentencePiece's rules (overlong forms and surrogates are invalid).
enum class Utf8 : std::uint8_t { character, incomplete, invalid };

struct Utf8Step {
  Utf8 kind;
  std::size_t length;   ///< bytes of the character; 1 when invalid; all that is left when incomplete
  char32_t code_point;  ///< of a character
};

/// Looks at the start of `text`, which must not be empty.
inline Utf8Step utf8_step(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80u) return {Utf8::character, 1, static_cast<char32_t>(lead)};
  const std::size_t length = (lead & 0xe0u) == 0xc0u   ? 2
                             : (lead & 0xf0u) == 0xe0u ? 3
                             : (lead & 0xf8u) == 0xf0u ? 4
                                                       : 0;
  if (length == 0) return {Utf8::invalid, 1, 0};
  char32_t code = static_cast<char32_t>(lead & (0x7fu >> length));
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8::incomplete, i, 0};
    if ((byte(i) & 0xc0u) != 0x80u) return {Utf8::invalid, 1, 0};
    code = (code << 6) | (byte(i) & 0x3fu);
  }
  constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < least[length] || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff) return {Utf8::invalid, 1, 0};
  return {Utf8::character, length, code};
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (step.kind != Utf8::character) return false;
    text.remove_prefix(step.length);
  }
  return true;
}

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

}  // namespace detail

HYMBA_NAMESPACE_END
