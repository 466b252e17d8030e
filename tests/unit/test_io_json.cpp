// SPDX-License-Identifier: Apache-2.0
//
// The JSON reader refuses what is not strict JSON, with one line that says where.
#include <hymba/io/json.hpp>

#include <doctest/doctest.h>

#include <string>
#include <string_view>

using namespace hymba;

namespace {
std::string refusal(std::string_view text, JsonLimits limits = {}) {
  try {
    parse_json(text, "f.json", limits);
  } catch (const FormatError& e) {
    const std::string what = e.what();
    CHECK(what.find('\n') == std::string::npos);
    CHECK(what.size() < 400);
    for (const char c : what) CHECK((c >= 0x20 && c < 0x7f));
    return what;
  }
  return "accepted";
}
bool refused(std::string_view text) { return refusal(text).starts_with("f.json: "); }
}  // namespace

TEST_CASE("values come through") {
  const Json j = parse_json(R"({"a": [1, -2, 3.5, true, null, "x\n\u00e9"], "b": {"c": {}}, "d": []})", "f.json");
  CHECK(j["a"].size() == 6);
  CHECK(j["a"][0].is_number_unsigned());
  CHECK(j["a"][1].get<int>() == -2);
  CHECK(j["a"][5].get<std::string>() == "x\n\xc3\xa9");
  CHECK(j["b"]["c"].is_object());
  CHECK(j["d"].is_array());
  CHECK(parse_json("17", "f.json") == 17);
  CHECK(parse_json("  [ [ ] ]\n", "f.json").size() == 1);
}

TEST_CASE("errors name file, line, column and byte") {
  CHECK(refusal("{\"a\": 1,\n \"b\" 2}").starts_with("f.json: line 2, column 7 (byte 16): not valid JSON: "));
  CHECK(refusal("{\"a\": 1,\n \"a\": 2}") == "f.json: line 2, column 4 (byte 13): the key \"a\" appears twice");
  CHECK(refusal("").starts_with("f.json: line 1, column 1 (byte 0): not valid JSON: "));
}

TEST_CASE("what is not strict JSON is refused") {
  for (const char* text : {"{",           "}",
                           "[1,]",        "{\"a\":1,}",
                           "{a:1}",       "{'a':1}",
                           "[1 2]",       "// c\n1",
                           "/* c */ 1",   "NaN",
                           "Infinity",    "[-]",
                           "01",          "1.",
                           ".5",          "+1",
                           "1e999",       "-1e999",
                           "\"\\x\"",     "\"\\u12\"",
                           "\"\\ud800\"", "\"a\nb\"",
                           "\"open",      "tru",
                           "nul",         "1 1",
                           "{} {}",       "{\"a\":1} x",
                           "[",           "{\"a\"",
                           "{\"a\":",     "\"\xff\"",
                           "\"\xc3(\"",   "\"\xed\xa0\x80\"",
                           "{1:2}",       "{null:2}"}) {
    INFO(std::string(text));
    CHECK(refused(text));
  }
  CHECK(refused(std::string_view("\0", 1)));
  CHECK(refused(std::string_view("{\"a\0b\": 1}", 10)));
}

TEST_CASE("duplicate keys are refused at every depth, spelt with escapes or not") {
  CHECK(refused(R"({"a": {"b": 1, "b": 2}})"));
  CHECK(refused(R"([[{"b": 1, "\u0062": 2}]])"));
  CHECK(refused(R"({"": 1, "": 2})"));
  CHECK(refusal(R"({"a": {"a": 1}, "b": {"a": 1}})") == "accepted");
}

TEST_CASE("depth and size are limited") {
  for (const char open : {'[', '{'}) {
    std::string deep, ends;
    for (int i = 0; i < 64; ++i) {
      deep += open == '[' ? "[" : "{\"k\":";
      ends.insert(0, open == '[' ? "]" : "}");
    }
    CHECK(refusal(deep + "1" + ends) == "accepted");
    CHECK(refusal("[" + deep + "1" + ends + "]").find("more than 64 objects and arrays") != std::string::npos);
  }
  CHECK(refused(std::string(1000000, '[')));
  CHECK(refusal("[1,2,3]", {.bytes = 6}) == "f.json: 7 bytes of JSON, expected at most 6");
  CHECK(refusal("[1,2,3]", {.bytes = 7}) == "accepted");
}

TEST_CASE("a hostile text cannot reach the message as it is") {
  CHECK(refusal("{\"a\": \x1b[31m}").find('\x1b') == std::string::npos);
  refusal("{\"" + std::string(100000, 'k') + "\": 1, \"" + std::string(100000, 'k') + "\": 2}");
  refusal("{\"" + std::string(100000, '\\') + "\": 1}");
  refusal("\"" + std::string(100000, 'x') + "\n\"");
}

TEST_CASE("values as messages show them") {
  CHECK(detail::shown(Json("a\nb\"")) == "\"a\\nb\\\"\"");
  CHECK(detail::shown(Json("\xc3\xa9")) == "\"\\u00e9\"");
  CHECK(detail::shown(Json::object({{"a", 1}})) == "an object");
  CHECK(detail::shown(Json(std::string(500, 'x'))).size() == 63);
  CHECK(detail::printable("a\"b\\\n\x80") == "a\\x22b\\x5c\\x0a\\x80");
  CHECK(detail::quote(std::string(101, 'x')) == "\"" + std::string(100, 'x') + "...\"");
}
