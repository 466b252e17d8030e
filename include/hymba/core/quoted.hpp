// SPDX-License-Identifier: Apache-2.0
//
// Text from a file, made fit for an error message: one line, printable, not too long.
#pragma once

#include <hymba/core/macros.hpp>

#include <cstddef>
#include <string>
#include <string_view>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// `text` with every byte outside printable ASCII, and the quote and the backslash, as \xNN; cut after `most` bytes.
inline std::string printable(std::string_view text, std::size_t most = 100) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, most)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && c != '"' && c != '\\') {
      out += c;
    } else {
      out += "\\x";
      out += digits[byte >> 4];
      out += digits[byte & 15];
    }
  }
  if (text.size() > most) out += "...";
  return out;
}

/// The same between quotation marks. (Not named quoted: std::quoted would be found by its argument.)
inline std::string quote(std::string_view text, std::size_t most = 100) { return '"' + printable(text, most) + '"'; }

}  // namespace detail

HYMBA_NAMESPACE_END
