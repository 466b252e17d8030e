// SPDX-License-Identifier: Apache-2.0
#include <hymba/text/text_stream.hpp>
#include <hymba/text/tokenizer.hpp>

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

using namespace hymba;

namespace {

Tokenizer tiny() {
  return Tokenizer::open(std::filesystem::path(HYMBA_TEST_DATA).parent_path() / "examples/models/random-tiny");
}

std::string stream(TextStream& s, const std::vector<Token>& ids) {
  std::string all;
  for (const Token id : ids) {
    const std::string_view part = s.push(id);
    REQUIRE(detail::is_utf8(part));  // whole characters
    all += part;
  }
  const std::string_view part = s.finish();
  REQUIRE(detail::is_utf8(part));
  return all += part;
}

/// Sequences rich in what matters: bytes of characters, broken ones, spaces, control tokens, added tokens.
std::vector<Token> random_ids(const Tokenizer& t, std::mt19937& rng, Token byte0, Token space) {
  static const unsigned bytes[] = {0x41, 0x20, 0x00, 0xc3, 0xa9, 0xe2, 0x96, 0x81, 0x82, 0xac,
                                   0xf0, 0x9f, 0x98, 0x80, 0xff, 0xc0, 0xed, 0xa0, 0xf4, 0x90};
  std::vector<Token> ids(rng() % 14);
  for (Token& id : ids) {
    switch (rng() % 6) {
      case 0:
      case 1:
        id = byte0 + static_cast<Token>(bytes[rng() % std::size(bytes)]);
        break;
      case 2:
        id = static_cast<Token>(rng() % 3);
        break;
      case 3:
        id = space;
        break;
      default:
        id = static_cast<Token>(rng() % static_cast<unsigned>(t.vocabulary()));
    }
  }
  return ids;
}

void check_stream_equals_decode(const Tokenizer& t, int rounds) {
  const Token byte0 = t.encode(std::string_view("\0", 1), {.add_bos = false}).back();
  REQUIRE(t.byte_of(byte0) == 0);
  const Token space = t.encode("\ue000", {.add_bos = false})[0];
  REQUIRE(t.piece(space) == "\u2581");
  std::mt19937 rng(5);
  TextStream s(t);  // one for all: finish() must leave it as new
  TextStream continued(t, true);
  const std::vector<Token> x = t.encode("x", {.add_bos = false});
  for (int i = 0; i < rounds; ++i) {
    const auto ids = random_ids(t, rng, byte0, space);
    CAPTURE(i);
    REQUIRE(stream(s, ids) == t.decode(ids));
    // A continuation: the same after any text that ends with a whole character.
    auto after_x = x;
    after_x.insert(after_x.end(), ids.begin(), ids.end());
    REQUIRE("x" + stream(continued, ids) == t.decode(after_x));
  }
}

// Protocol-buffer parts, for models with other space rules.
std::string field(unsigned number, const std::string& data) {
  return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(data.size()) + data;
}
std::string field(unsigned number, unsigned v) {
  return std::string(1, static_cast<char>(number << 3)) + static_cast<char>(v);
}
std::string piece(const std::string& text, unsigned type) { return field(1, field(1, text) + field(3, type)); }

}  // namespace

TEST_CASE("the parts put together are the decoding, for any token sequence") {
  check_stream_equals_decode(tiny(), 20000);
}

TEST_CASE("the same for every way of treating spaces") {
  for (unsigned dummy = 0; dummy < 2; ++dummy) {
    for (unsigned remove = 0; remove < 2; ++remove) {
      const std::string model = piece("<unk>", 2) + piece("<s>", 3) + piece("a", 1) + piece("\u2581", 1) +
                                piece("\u2581\u2581", 1) + piece("\u2581b\u2581c", 1) + piece("user", 4) +
                                piece("unused", 5) + field(2, field(3, 2u)) +
                                field(3, field(3, dummy) + field(4, remove));
      const Tokenizer t = Tokenizer::from_bytes(model, R"({"added": 8})");
      std::mt19937 rng(6);
      TextStream s(t);
      for (int i = 0; i < 3000; ++i) {
        std::vector<Token> ids(rng() % 7);
        for (Token& id : ids) id = static_cast<Token>(rng() % 9);
        CAPTURE(i);
        REQUIRE(stream(s, ids) == t.decode(ids));
      }
    }
  }
}

TEST_CASE("a character appears when its last byte does, a broken one as soon as that is certain") {
  const Tokenizer t = tiny();
  TextStream s(t);
  const auto byte = [](int b) { return Token{3 + b}; };
  CHECK(s.push(byte(0xf0)) == "");
  CHECK(s.push(byte(0x9f)) == "");
  CHECK(s.push(byte(0x98)) == "");
  CHECK(s.push(byte(0x80)) == "\U0001f600");
  CHECK(s.push(byte(0xe2)) == "");
  CHECK(s.push(byte(0x41)) == "\ufffdA");
  CHECK(s.push(byte(0xff)) == "\ufffd");
  CHECK(s.push(byte(0xe2)) == "");
  CHECK(s.push(t.eos()) == "\ufffd");
  CHECK(s.push(byte(0xe2)) == "");
  CHECK(s.push(byte(0x82)) == "");
  CHECK(s.finish() == "\ufffd\ufffd");
  CHECK(s.finish() == "");
  CHECK_THROWS_AS(s.push(512), ArgumentError);
  CHECK_THROWS_AS(s.push(-1), ArgumentError);
}

TEST_CASE("the dummy prefix's space goes at the start only, and not in a continuation") {
  const Tokenizer t = tiny();
  const auto the = t.encode("the", {.add_bos = false});
  REQUIRE(the.size() == 1);
  TextStream s(t);
  CHECK(s.push(t.bos()) == "");
  CHECK(s.push(the[0]) == "the");
  CHECK(s.push(the[0]) == " the");
  s.reset();
  CHECK(s.push(the[0]) == "the");
  TextStream c(t, true);
  CHECK(c.push(the[0]) == " the");
}

TEST_CASE("optional: the published tokeniser, streamed") {
  const char* folder = std::getenv("HYMBA_INSTRUCT_DIR");
  if (folder == nullptr) {
    MESSAGE("skipped: set HYMBA_INSTRUCT_DIR to the folder of the published tokenizer.model");
    return;
  }
  check_stream_equals_decode(Tokenizer::open(folder), 20000);
}

namespace {

/// The definition: the earliest end of a stop string in the whole text, of those the earliest beginning.
std::string reference(const std::string& text, const std::vector<std::string>& stops, int& which) {
  which = -1;
  for (std::size_t end = 1; end <= text.size(); ++end) {
    for (std::size_t i = 0; i < stops.size(); ++i) {
      const bool here = std::string_view(text).substr(0, end).ends_with(stops[i]);
      if (here && (which < 0 || stops[i].size() > stops[static_cast<std::size_t>(which)].size()))
        which = static_cast<int>(i);
    }
    if (which >= 0) return text.substr(0, end - stops[static_cast<std::size_t>(which)].size());
  }
  return text;
}

}  // namespace

TEST_CASE("stop strings: the same wherever the text is cut into parts") {
  std::mt19937 rng(7);
  int stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    const auto random_text = [&](std::size_t n) {
      std::string s(n, ' ');
      for (char& c : s) c = "abc"[rng() % 3];
      return s;
    };
    std::vector<std::string> stops(rng() % 4);
    for (auto& s : stops) s = random_text(1 + rng() % 5);
    const std::string text = random_text(rng() % 20);
    int which = -1;
    const std::string expected = reference(text, stops, which);
    StopStrings watcher(stops);
    std::string shown;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t n = std::min<std::size_t>(rng() % 4, text.size() - at);
      shown += watcher.push(std::string_view(text).substr(at, n));
      at += n;
      // Nothing that belongs to a stop string is ever shown, and nothing is held back without need.
      REQUIRE(expected.starts_with(shown));
      if (!watcher.stopped()) {
        const std::string held = text.substr(shown.size(), at - shown.size());
        bool could_begin = held.empty();
        for (const auto& s : stops) could_begin = could_begin || (s.size() > held.size() && s.starts_with(held));
        REQUIRE(could_begin);
      }
    }
    shown += watcher.finish();
    REQUIRE(shown == expected);
    REQUIRE(watcher.stopped() == (which >= 0));
    if (which >= 0)
      REQUIRE(stops[static_cast<std::size_t>(watcher.matched())] == stops[static_cast<std::size_t>(which)]);
    stopped += watcher.stopped();
  }
  CHECK(stopped > 5000);
}

TEST_CASE("stop strings: after a stop nothing comes; reset starts again; bad ones are refused") {
  StopStrings watcher({"<extra_id_1>"});
  CHECK(watcher.push("Hello <ex") == "Hello ");
  CHECK(watcher.push("tra") == "");
  CHECK(watcher.push("_id_2> <extra_id_1> more") == "<extra_id_2> ");
  CHECK(watcher.stopped());
  CHECK(watcher.matched() == 0);
  CHECK(watcher.push("text") == "");
  CHECK(watcher.finish() == "");
  watcher.reset();
  CHECK(!watcher.stopped());
  CHECK(watcher.push("a<extra") == "a");
  CHECK(watcher.finish() == "<extra");
  CHECK_THROWS_AS(StopStrings({"ok", ""}), ArgumentError);
  CHECK_THROWS_AS(StopStrings({"\xff"}), ArgumentError);
}
