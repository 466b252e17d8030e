// SPDX-License-Identifier: Apache-2.0
//
// Shared by the tests of text: what an error says.
#pragma once

#include <string>

namespace text_test {

template <class E, class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  return "no error";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace text_test
