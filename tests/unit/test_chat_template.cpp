// SPDX-License-Identifier: Apache-2.0
#include <hymba/text/chat_template.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "error_text.hpp"

using namespace hymba;
using text_test::contains;
using text_test::error_of;

namespace {

std::string dumps(const nlohmann::ordered_json& value) {
  std::string out;
  detail::append_python_json(out, value);
  return out;
}

std::string random_content(std::mt19937& rng) {
  static const char* const parts[] = {" ", "\n",         "\t",     "\u00a0",     "\u3000", "a",  "b c",
                                      "<", "<extra_id_", "\u00e9", "\U0001f600", "1>",     "\n<"};
  std::string s;
  for (unsigned i = 0; i < rng() % 6; ++i) s += parts[rng() % std::size(parts)];
  return s;
}

}  // namespace

TEST_CASE("renderings are those of the published template in Jinja") {
  std::ifstream in(std::filesystem::path(HYMBA_TEST_DATA) / "golden/chat_template.json");
  REQUIRE(in.good());
  const auto golden = nlohmann::json::parse(in);
  REQUIRE(golden["cases"].size() > 100);
  for (const auto& c : golden["cases"]) {
    const auto text = [&](const char* name) {
      return c[name].is_null() ? std::string("[]") : c[name].get<std::string>();
    };
    CAPTURE(c.dump());
    const auto messages = parse_messages(text("messages"));
    const auto tools = parse_tools(text("tools"));
    const auto contexts = parse_contexts(text("contexts"));
    CHECK(render_chat(messages, tools, contexts, c["add_generation_prompt"].get<bool>()) ==
          c["text"].get<std::string>());
  }
}

TEST_CASE("the plain prompt, spelt out") {
  const std::vector<ChatMessage> messages{{Role::user, " Hello\n"}};
  CHECK(render_chat(messages) == "<extra_id_0>System\n\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\n");
  CHECK(render_chat({}, {}, {}, false) == "<extra_id_0>System\n\n");
  CHECK(chat_stop_strings() == std::vector<std::string>{"<extra_id_1>"});
}

TEST_CASE("contents that are not UTF-8 pass through; their bytes are no white space") {
  const std::vector<ChatMessage> messages{{Role::user, " \x85\xa0 \xe3\x80 "}};
  CHECK(render_chat(messages, {}, {}, false) == "<extra_id_0>System\n\n<extra_id_1>User\n\x85\xa0 \xe3\x80\n");
}

TEST_CASE("JSON is written as Python's json.dumps writes it") {
  CHECK(dumps(1.0) == "1.0");
  CHECK(dumps(-0.0) == "-0.0");
  CHECK(dumps(1e15) == "1000000000000000.0");
  CHECK(dumps(1e16) == "1e+16");
  CHECK(dumps(1.5e300) == "1.5e+300");
  CHECK(dumps(0.0001) == "0.0001");
  CHECK(dumps(0.00001) == "1e-05");
  CHECK(dumps(0.1) == "0.1");
  CHECK(dumps(123.456) == "123.456");
  CHECK(dumps(5e-324) == "5e-324");
  CHECK(dumps(NAN) == "NaN");
  CHECK(dumps(-INFINITY) == "-Infinity");
  CHECK(dumps(nlohmann::ordered_json::object()) == "{}");
  CHECK(dumps(nlohmann::ordered_json::array()) == "[]");
  CHECK(dumps("<&'>\"\\\x01\x7f\u2028") == "\"<&'>\\\"\\\\\\u0001\x7f\u2028\"");
  CHECK_THROWS_AS(dumps("\xff"), ArgumentError);
  CHECK_THROWS_AS(dumps(nlohmann::ordered_json::binary({1})), ArgumentError);
  nlohmann::ordered_json deep = 1;
  for (int i = 0; i < 200; ++i) deep = nlohmann::ordered_json::array({deep});
  CHECK_THROWS_AS(dumps(deep), ArgumentError);
}

TEST_CASE("floats read back to the same value, whatever their size") {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 20000; ++i) {
    const double value = i % 2 ? std::bit_cast<double>(rng()) : static_cast<double>(rng() % 100000) / 1000.0;
    if (!std::isfinite(value)) continue;
    const std::string text = dumps(value);
    REQUIRE(text.find_first_of(".e") != std::string::npos);  // an integer would not come back as a float
    REQUIRE(std::strtod(text.c_str(), nullptr) == value);
  }
}

TEST_CASE("messages from JSON: what is wrong is said") {
  const auto format = [](const char* json) { return error_of<FormatError>([&] { parse_messages(json); }); };
  CHECK(contains(format(""), "messages: not JSON"));
  CHECK(contains(format("[{\"role\""), "not JSON"));
  CHECK(contains(format("[] []"), "not JSON"));
  CHECK(contains(format("\"\xff\""), "not JSON"));
  CHECK(contains(format("{}"), "object, expected an array"));
  CHECK(contains(format("[1]"), "messages[0]: is a JSON number"));
  CHECK(contains(format(R"([{"role": "user"}])"), "messages[0]: has no \"content\""));
  CHECK(contains(format(R"([{"role": "user", "content": "a"}, {"content": "b"}])"), "messages[1]: has no \"role\""));
  CHECK(contains(format(R"([{"role": "user", "content": null}])"), "messages[0].content: is a JSON null"));
  CHECK(contains(format(R"([{"role": 3, "content": ""}])"), "messages[0].role: is a JSON number"));
  CHECK(contains(format(R"([123456789012345678901234567890])"), "does not fit 64 bits"));
  CHECK(contains(format(R"([1e999])"), "not JSON"));
  CHECK(contains(format(std::string(200, '[').c_str()), "nested more than 128"));
  CHECK(contains(error_of<ArgumentError>([] { parse_messages(R"([{"role": "narrator", "content": ""}])"); }),
                 "messages[0]: role \"narrator\""));
  CHECK(parse_messages(R"([{"role": "tool", "content": "x", "name": [1, {"a": 2}]}])") ==
        std::vector<ChatMessage>{{Role::tool, "x"}});
  CHECK(contains(error_of<FormatError>([] { parse_tools("[[]]"); }), "tools[0]: is a JSON array"));
  CHECK(contains(error_of<FormatError>([] { parse_tools("{}"); }), "tools"));
  CHECK(contains(error_of<FormatError>([] { parse_contexts(R"(["a", 1])"); }), "contexts[1]"));
  std::string keys = "[{";
  for (int i = 0; i < 5000; ++i) keys += (i ? ",\"" : "\"") + std::to_string(i) + "\":0";
  CHECK(contains(error_of<FormatError>([&] { parse_tools(keys + "}]"); }), "4096 keys"));
}

TEST_CASE("roles have names") {
  for (const Role role : {Role::system, Role::user, Role::assistant, Role::tool})
    CHECK(parse_role(to_string(role)) == role);
  CHECK_THROWS_AS(parse_role("User"), ArgumentError);
  CHECK_THROWS_AS(parse_role(""), ArgumentError);
}

TEST_CASE("a continued conversation is the rendered one, however generation ended") {
  std::mt19937 rng(2);
  int exact = 0;
  int rounds = 0;
  for (; rounds < 20000; ++rounds) {
    std::vector<ChatMessage> history{{Role::system, random_content(rng)}, {Role::user, random_content(rng)}};
    const std::string prompt = render_chat(history);
    const std::string answer = random_content(rng);
    // What the session was fed: a part of the answer (the last token was not), or all of it and a part of the marker.
    const std::string written = answer + (rng() % 2 ? "" : rng() % 2 ? "\n<extra_id_1" : "<extra_id_1");
    std::size_t cut = rng() % 3 ? written.size() : rng() % (written.size() + 1);
    while (cut < written.size() && (static_cast<unsigned char>(written[cut]) & 0xc0u) == 0x80u)
      ++cut;  // whole characters
    const std::string held = written.substr(0, cut);
    std::vector<ChatMessage> next(1 + rng() % 2, {Role::tool, ""});
    next.back().role = Role::user;
    for (auto& m : next) m.content = random_content(rng);
    const bool generation_prompt = rng() % 2;

    const ChatContinuation c = continue_chat(answer, held, next, generation_prompt);
    auto whole = history;
    whole.push_back({Role::assistant, answer});
    whole.insert(whole.end(), next.begin(), next.end());
    const std::string expected = render_chat(whole, {}, {}, generation_prompt);
    const std::string got = prompt + held + c.text;
    CAPTURE(got);
    CAPTURE(expected);
    REQUIRE(c.exact == (got == expected));
    REQUIRE(c.exact == expected.starts_with(prompt + held));  // exact whenever appending can make it so
    exact += c.exact;
    // In any case: the turns that follow are all there, behind one marker.
    std::string turns;
    for (const auto& m : next) detail::append_turn(turns, m);
    if (generation_prompt) turns += "<extra_id_1>Assistant\n";
    REQUIRE(got.ends_with(turns));
    const std::string before = got.substr(prompt.size(), got.size() - prompt.size() - turns.size());
    REQUIRE(detail::strip(before) == detail::strip(answer));
  }
  CHECK(exact > rounds / 4);
  CHECK(exact < rounds);
}

TEST_CASE("continuing: the common endings, spelt out") {
  const std::vector<ChatMessage> next{{Role::user, "More?"}};
  const std::string turn = "<extra_id_1>User\nMore?\n<extra_id_1>Assistant\n";
  const auto text = [&](const char* answer, const char* held) { return continue_chat(answer, held, next).text; };
  CHECK(text("Yes.", "Yes.") == "\n" + turn);                     // eos was sampled and not fed
  CHECK(text("Yes.", "Yes") == ".\n" + turn);                     // the token limit: the last token was not fed
  CHECK(text("Yes.\n", "Yes.\n<extra_id_1") == turn.substr(11));  // the stop string
  CHECK(text("Yes.\n", "Yes.\n<extra_id_1>") == turn.substr(12));
  CHECK(text("Yes.", "Yes.<extra_id_1") == turn.substr(11));  // not exact: no newline in front of the marker
  CHECK(text(" Yes.\n\n", " Yes.\n\n") == turn);              // not exact: white space the template strips
  CHECK(continue_chat("Yes.\n", "Yes.\n<extra_id_1", next).exact);
  CHECK(!continue_chat("Yes.", "Yes.<extra_id_1", next).exact);
  CHECK(!continue_chat(" Yes.\n\n", " Yes.\n\n", next).exact);
  CHECK(contains(error_of<ArgumentError>([&] { continue_chat("Yes.", "No.", next); }), "held"));
  CHECK(contains(error_of<ArgumentError>([&] {
                   continue_chat("a", "a", std::vector<ChatMessage>{{Role::system, "s"}});
                 }),
                 "system"));
}
