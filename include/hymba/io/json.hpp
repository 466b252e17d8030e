// SPDX-License-Identifier: Apache-2.0
//
// JSON from files that are not trusted: strict syntax, no duplicate keys, limited size and depth, errors of one line
// with the position. The one place of io/ that includes nlohmann-json.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

using Json = nlohmann::json;

/// What a text may take before it is refused.
struct JsonLimits {
  std::size_t bytes = std::size_t{1} << 20;  ///< length of the text, in bytes
  std::size_t depth = 64;                    ///< objects and arrays inside each other
};

/// Receives the events of a parse and knows where in the text it stands. Base of everything here that reads JSON.
class JsonHandler : public nlohmann::json_sax<Json> {
 public:
  /// @param file named in errors.
  JsonHandler(std::string_view text, std::string_view file, JsonLimits limits)
      : text_(text), file_(file), limits_(limits), at_(text.data()) {}

  /// @throws FormatError for what is not JSON, exceeds the limits, or is refused by a derived class.
  void parse() {
    if (text_.size() > limits_.bytes) {
      throw FormatError(detail::message(file_, ": ", text_.size(), " bytes of JSON, expected at most ", limits_.bytes));
    }
    const Position begin(text_.data(), &at_), end(text_.data() + text_.size(), &at_);
    Json::sax_parse(begin, end, static_cast<nlohmann::json_sax<Json>*>(this));
  }

 protected:
  /// Ends the parse with a FormatError that names the file and the position.
  [[noreturn]] void fail(std::string_view what) const {
    std::size_t line = 1, column = 1;
    const auto offset = static_cast<std::size_t>(at_ - text_.data());
    for (const char c : text_.substr(0, offset == 0 ? 0 : offset - 1)) {
      column = c == '\n' ? 1 : column + 1;
      line += c == '\n' ? 1 : 0;
    }
    throw FormatError(detail::message(file_, ": line ", line, ", column ", column, " (byte ", offset, "): ", what));
  }
  void enter() {
    if (++depth_ > limits_.depth)
      fail(detail::message("more than ", limits_.depth, " objects and arrays inside each other"));
  }
  void leave() { --depth_; }
  std::size_t depth() const { return depth_; }
  std::string_view file() const { return file_; }

  bool binary(binary_t&) override { fail("binary data"); }
  bool parse_error(std::size_t, const std::string& token, const nlohmann::detail::exception& error) override {
    // The library's message starts with an identifier in brackets and repeats the position; keep what comes behind.
    std::string_view why = error.what();
    if (const auto bracket = why.find("] "); bracket != std::string_view::npos) why.remove_prefix(bracket + 2);
    if (why.starts_with("parse error at ")) {
      if (const auto colon = why.find(": "); colon != std::string_view::npos) why.remove_prefix(colon + 2);
    }
    if (const auto last = why.find("; last read"); last != std::string_view::npos) why = why.substr(0, last);
    fail(detail::message("not valid JSON: ", detail::printable(why, 160), ", at ",
                         detail::quote(token.size() > 40 ? std::string_view(token).substr(token.size() - 40) : token)));
  }

 private:
  /// A pointer into the text that leaves word of how far it has come.
  class Position {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = char;
    using difference_type = std::ptrdiff_t;
    using pointer = const char*;
    using reference = const char&;
    Position(const char* at, const char** mark) : at_(at), mark_(mark) {}
    reference operator*() const { return *at_; }
    Position& operator++() {
      *mark_ = ++at_;
      return *this;
    }
    Position operator++(int) {
      Position before = *this;
      ++*this;
      return before;
    }
    friend bool operator==(const Position& a, const Position& b) { return a.at_ == b.at_; }
    friend bool operator!=(const Position& a, const Position& b) { return a.at_ != b.at_; }

   private:
    const char* at_;
    const char** mark_;
  };

  std::string_view text_;
  std::string_view file_;
  JsonLimits limits_;
  const char* at_;
  std::size_t depth_ = 0;
};

namespace detail {
/// Builds the value.
class JsonBuilder final : public JsonHandler {
 public:
  using JsonHandler::JsonHandler;
  Json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool v) override { return put(v); }
  bool number_integer(number_integer_t v) override { return put(v); }
  bool number_unsigned(number_unsigned_t v) override { return put(v); }
  bool number_float(number_float_t v, const string_t&) override { return put(v); }
  bool string(string_t& v) override { return put(std::move(v)); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (open_.back()->contains(name)) fail(message("the key ", quote(name), " appears twice"));
    key_ = std::move(name);
    return true;
  }

 private:
  template <class Value>
  bool put(Value&& value) {
    place(Json(std::forward<Value>(value)));
    return true;
  }
  bool open(Json value) {
    enter();
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    leave();
    open_.pop_back();
    return true;
  }
  Json* place(Json&& value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }

  Json root_;
  std::vector<Json*> open_;
  std::string key_;
};
}  // namespace detail

/// Parses a whole text. Comments, trailing commas, duplicate keys, NaN and invalid UTF-8 are refused.
/// @param file named in errors.
/// @throws FormatError with file, line, column and byte.
inline Json parse_json(std::string_view text, std::string_view file, JsonLimits limits = {}) {
  detail::JsonBuilder builder(text, file, limits);
  builder.parse();
  return builder.take();
}

namespace detail {
/// A value as an error message shows it: ASCII, one line, at most 60 characters.
inline std::string shown(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 20) return message("a list of ", value.size());
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}
}  // namespace detail

HYMBA_NAMESPACE_END
