// SPDX-License-Identifier: Apache-2.0
#include <hymba/text/tokenizer.hpp>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__unix__)
#include <fcntl.h>
#include <unistd.h>
#endif

#include "error_text.hpp"

using namespace hymba;
using text_test::contains;
using text_test::error_of;

namespace {

std::filesystem::path tiny_folder() {
  return std::filesystem::path(HYMBA_TEST_DATA).parent_path() / "examples/models/random-tiny";
}

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string from_hex(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return out;
}

struct TemporaryFolder {
  std::filesystem::path path;
  TemporaryFolder() {
    std::random_device random;
    path = std::filesystem::temp_directory_path() /
           ("hymba-tokenizer-" + std::to_string(random()) + std::to_string(random()));
    std::filesystem::create_directories(path);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
  void write(const char* name, std::string_view data) const { std::ofstream(path / name, std::ios::binary) << data; }
};

/// What a piece of code prints to the error stream, at the level of the file descriptor.
template <class F>
std::string printed_by(F&& f) {
#if defined(__unix__)
  const TemporaryFolder folder;
  const auto file = folder.path / "stderr";
  const int saved = dup(2);
  const int sink = open(file.c_str(), O_CREAT | O_WRONLY, 0600);
  dup2(sink, 2);
  f();
  std::fflush(stderr);
  dup2(saved, 2);
  close(sink);
  close(saved);
  return read(file);
#else
  f();
  return {};
#endif
}

void check_golden(const Tokenizer& tokenizer, const std::filesystem::path& file) {
  const auto golden = nlohmann::json::parse(read(file));
  REQUIRE(golden["encode"].size() > 30);
  REQUIRE(golden["decode"].size() > 30);
  for (const auto& c : golden["encode"]) {
    const std::string text = from_hex(c["hex"]);
    const auto ids = c["ids"].get<std::vector<Token>>();
    CAPTURE(c["hex"].get<std::string>());
    CHECK(tokenizer.encode(text, {.add_bos = false}) == ids);
    auto with_bos = ids;
    with_bos.insert(with_bos.begin(), tokenizer.bos());
    CHECK(tokenizer.encode(text) == with_bos);
  }
  for (const auto& c : golden["decode"]) {
    const auto ids = c["ids"].get<std::vector<Token>>();
    CAPTURE(c["ids"].dump());
    CHECK(tokenizer.decode(ids) == from_hex(c["hex"]));
  }
}

std::string random_text(std::mt19937& rng, std::size_t pieces) {
  static const char* const parts[] = {"the",    " ",       "   ",    "and",        "God", "\n", "\t", "7",    "42",
                                      "\u00e9", "e\u0301", "\u6f22", "\U0001f600", ".",   "<",  ">",  "</s>", "_"};
  std::string text;
  for (std::size_t i = 0; i < pieces; ++i) text += parts[rng() % std::size(parts)];
  return text;
}

// Protocol-buffer parts, to make models that SentencePiece's trainer would not.
std::string varint(std::uint64_t v) {
  std::string out;
  for (; v >= 128; v >>= 7) out += static_cast<char>((v & 127) | 128);
  return out + static_cast<char>(v);
}
std::string bytes_field(unsigned number, const std::string& data) {
  return varint(number << 3 | 2) + varint(data.size()) + data;
}
std::string int_field(unsigned number, std::uint64_t v) { return varint(number << 3) + varint(v); }
std::string piece(const std::string& text, unsigned type = 1) {
  return bytes_field(1, bytes_field(1, text) + int_field(3, type));
}
const std::string kSpecials = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3);

}  // namespace

TEST_CASE("the tiny model: size, ids, pieces") {
  const Tokenizer t = Tokenizer::open(tiny_folder());
  CHECK(t.vocabulary() == 512);
  CHECK(t.unk() == 0);
  CHECK(t.bos() == 1);
  CHECK(t.eos() == 2);
  CHECK(t.pad() == -1);
  CHECK(t.piece(2) == "</s>");
  CHECK(t.piece(3) == "<0x00>");
  CHECK(t.byte_of(3) == 0);
  CHECK(t.byte_of(3 + 0xaf) == 0xaf);
  CHECK(t.byte_of(258) == 255);
  CHECK(t.byte_of(2) == -1);
  CHECK(t.is_control(1));
  CHECK(!t.is_control(0));
  CHECK(t.is_unknown(0));
  CHECK(Tokenizer::open(tiny_folder() / "tokenizer.model").vocabulary() == 512);
  CHECK(t.encode("").size() == 1);
  CHECK(t.encode("", {.add_bos = false}).empty());
}

TEST_CASE("encodings and decodings are those of SentencePiece's own Python package") {
  check_golden(Tokenizer::open(tiny_folder()), std::filesystem::path(HYMBA_TEST_DATA) / "golden/tokenizer_tiny.json");
}

TEST_CASE("valid text comes back as it was; control tokens are not made from text") {
  const Tokenizer t = Tokenizer::open(tiny_folder());
  std::mt19937 rng(1);
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(rng, rng() % 30);
    const auto ids = t.encode(text, {.add_bos = false});
    REQUIRE(t.decode(ids) == text);
    for (const Token id : ids) REQUIRE(id > 2);
  }
}

TEST_CASE("bytes that are not UTF-8 become U+FFFD, one each; NUL is a character") {
  const Tokenizer t = Tokenizer::open(tiny_folder());
  CHECK(t.decode(t.encode("a\xff\xe2\x82z")) == "a\ufffd\ufffd\ufffdz");
  CHECK(t.decode(t.encode(std::string_view("a\0b\0", 4))) == std::string("a\0b\0", 4));
}

TEST_CASE("a continuation adds exactly its text") {
  const Tokenizer t = Tokenizer::open(tiny_folder());
  std::mt19937 rng(2);
  for (int i = 0; i < 300; ++i) {
    const std::string a = random_text(rng, 1 + rng() % 10);
    const std::string b = random_text(rng, rng() % 10);
    auto ids = t.encode(a);
    const auto more = t.encode(b, {.continuation = true});
    for (const Token id : more) REQUIRE(id > 2);
    ids.insert(ids.end(), more.begin(), more.end());
    REQUIRE(t.decode(ids) == a + b);
  }
  CHECK(t.encode("", {.continuation = true}).empty());
  // Not just harmless: the dummy prefix really is left out.
  CHECK(t.encode("the", {.continuation = true}) != t.encode("the", {.add_bos = false}));
}

TEST_CASE("ids outside the vocabulary are refused with their position") {
  const Tokenizer t = Tokenizer::open(tiny_folder());
  CHECK(contains(error_of<ArgumentError>([&] {
                   t.decode(std::vector<Token>{1, 2, 512});
                 }),
                 "ids[2] is 512, expected 0 to 511"));
  CHECK(contains(error_of<ArgumentError>([&] { t.decode(-1); }), "-1"));
  CHECK_THROWS_AS(t.piece(512), ArgumentError);
  CHECK_THROWS_AS(t.piece(-1), ArgumentError);
  CHECK_THROWS_AS(t.byte_of(512), ArgumentError);
  CHECK_THROWS_AS(t.is_control(1 << 30), ArgumentError);
}

TEST_CASE("added tokens count, decode to nothing and are never encoded") {
  const std::string model = read(tiny_folder() / "tokenizer.model");
  const TemporaryFolder folder;
  folder.write("tokenizer.model", model);
  folder.write("added_tokens.json", R"({"[PAD]": 512, "</s>": 2, "<|x|>": 513})");
  const Tokenizer t = Tokenizer::open(folder.path);
  CHECK(t.vocabulary() == 514);
  CHECK(t.pad() == 512);
  CHECK(t.piece(512) == "[PAD]");
  CHECK(t.piece(513) == "<|x|>");
  CHECK(t.is_added(513));
  CHECK(!t.is_added(511));
  CHECK(t.decode(512) == "");
  auto ids = t.encode("[PAD] and <|x|>", {.add_bos = false});
  for (const Token id : ids) CHECK(id < 512);
  ids.insert(ids.begin() + 3, 512);
  ids.push_back(513);
  CHECK(t.decode(ids) == "[PAD] and <|x|>");
  CHECK_THROWS_AS(t.piece(514), ArgumentError);
}

TEST_CASE("added_tokens.json: what is wrong with it is said") {
  const std::string model = read(tiny_folder() / "tokenizer.model");
  const auto refused = [&](const char* json, const char* part) {
    const std::string what = error_of<FormatError>([&] { Tokenizer::from_bytes(model, json); });
    CAPTURE(what);
    CHECK(contains(what, part));
    CHECK(!contains(what, "\n"));
  };
  refused("", "not JSON");
  refused("{", "not JSON");
  refused("[1]", "array");
  refused(R"({"a": "b"})", "expected an integer");
  refused(R"({"a": 512.0})", "expected an integer");
  refused(R"({"a": -1})", "-1");
  refused(R"({"a": 5})", "id 5");
  refused(R"({"a": 513})", "513");
  refused(R"({"a": 18446744073709551615})", "18446744073709551615");
  refused(R"({"a": 512, "b": 512})", "share");
  refused(R"({"a": 513, "</s>": 2})", "512");
}

TEST_CASE("files that are not there or not files") {
  const TemporaryFolder folder;
  CHECK(contains(error_of<IoError>([&] { Tokenizer::open(folder.path); }), "tokenizer.model"));
  CHECK(contains(error_of<IoError>([&] { Tokenizer::open(folder.path / "nothing"); }), "does not exist"));
  std::filesystem::create_directories(folder.path / "tokenizer.model");
  CHECK_THROWS_AS(Tokenizer::open(folder.path), IoError);
}

TEST_CASE("hostile models: one error or a working tokeniser, and nothing printed") {
  const std::string model = read(tiny_folder() / "tokenizer.model");
  int refused = 0;
  int accepted = 0;
  const auto attempt = [&](const std::string& bytes) {
    try {
      const Tokenizer t = Tokenizer::from_bytes(bytes);
      ++accepted;
      const auto ids = t.encode("In the beginning \xff\U0001f600", {.add_bos = false});
      t.decode(ids);
      std::vector<Token> all;
      for (Token id = 0; id < t.vocabulary(); ++id) all.push_back(id);
      t.decode(all);
    } catch (const Error& e) {
      ++refused;
      if (std::string(e.what()).find('\n') != std::string::npos) FAIL_CHECK("more than a line: ", e.what());
    }
  };
  const std::string printed = printed_by([&] {
    for (std::size_t n = 0; n < model.size(); n += n < 100 ? 1 : 37) attempt(model.substr(0, n));
    std::mt19937 rng(3);
    for (int i = 0; i < 500; ++i) {
      std::string random(rng() % 300, '\0');
      for (char& c : random) c = static_cast<char>(rng());
      attempt(random);
    }
    for (int i = 0; i < 1500; ++i) {
      std::string damaged = model;
      for (unsigned k = 0; k <= rng() % 4; ++k) {
        // The end of the file holds the settings; it deserves half of the damage.
        const std::size_t at = rng() % 2 ? rng() % damaged.size() : damaged.size() - 1 - rng() % 300;
        damaged[at] = static_cast<char>(rng());
      }
      attempt(damaged);
    }
  });
  CHECK(printed == "");
  CHECK(refused > 500);
  CHECK(accepted > 50);  // damage inside a learnt piece or a score still leaves a model
  for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, model.size() - 1}) {
    CHECK_THROWS_AS(Tokenizer::from_bytes(model.substr(0, n)), FormatError);
  }
}

TEST_CASE("hostile models: each rule has its own message") {
  const auto refused = [](const std::string& bytes, const char* part) {
    std::string what;
    const std::string printed =
        printed_by([&] { what = error_of<Error>([&] { Tokenizer::from_bytes(bytes, "{}", "X"); }); });
    CAPTURE(what);
    CHECK(contains(what, part));
    CHECK(contains(what, "X: "));
    CHECK(printed == "");
  };
  CHECK_NOTHROW(Tokenizer::from_bytes(kSpecials + piece("a")));
  refused("", "0 pieces");
  refused(piece("a"), "0 unknown pieces");
  refused(kSpecials + piece("<unk2>", 2), "2 unknown pieces");
  refused(kSpecials + piece(""), "piece 3 is empty");
  refused(kSpecials + piece("\xff"), "UTF-8");
  refused(kSpecials + piece(std::string("a\0b", 3)), "NUL");
  refused(kSpecials + piece("a", 9), "type 9");
  refused(kSpecials + piece("a") + piece("a"), "a is already defined");
  refused(kSpecials + piece("<0x41>", 6), "byte");
  refused(kSpecials + bytes_field(1, bytes_field(1, "a") + varint(2 << 3 | 5) + std::string("\0\0\xc0\x7f", 4)),
          "score nan");
  refused(kSpecials + bytes_field(2, int_field(3, 7)), "model_type is 7");
  refused(kSpecials + bytes_field(2, int_field(24, 1)), "treat_whitespace_as_suffix");
  refused(kSpecials + bytes_field(5, bytes_field(2, "abc")), "denormaliser");
  refused(kSpecials + varint(9 << 3 | 3), "wire type");
  refused(kSpecials + std::string(11, '\xff'), "10 bytes");
  refused(kSpecials + int_field(2, 1), "trainer_spec");
  // Normaliser maps: sizes, then units that lead outside of the trie or of the strings.
  const auto map = [](const std::string& data) {
    return kSpecials + piece("a") + bytes_field(3, bytes_field(2, data));
  };
  refused(map("ab"), "normaliser map");
  refused(map(std::string("\0\4\0\0", 4) + std::string(100, 'x')), "normaliser map");
  std::string trie(1024, '\0');
  const std::string size("\0\4\0\0", 4);
  CHECK_NOTHROW(Tokenizer::from_bytes(map(size + trie + std::string("a\0", 2))));
  refused(map(size + trie + "ab"), "NUL");
  auto far = trie;
  far[3] = 0x7f;
  refused(map(size + far + std::string("a\0", 2)), "unit 0 leads to");
  auto leaf = trie;
  leaf[7] = static_cast<char>(0x80);
  leaf[4] = 2;
  refused(map(size + leaf + std::string("a\0", 2)), "unit 1 points to byte 2 of 2");
}

TEST_CASE("self tests inside a model are ignored: SentencePiece would print their failures") {
  const std::string test = bytes_field(4, bytes_field(1, bytes_field(1, "a") + bytes_field(2, "not this")));
  const std::string printed =
      printed_by([&] { CHECK(Tokenizer::from_bytes(kSpecials + piece("a") + test).vocabulary() == 4); });
  CHECK(printed == "");
}

TEST_CASE("models without byte fallback: unknown text, no continuation") {
  const Tokenizer t = Tokenizer::from_bytes(kSpecials + piece("a") + piece("\u2581") + bytes_field(2, int_field(3, 2)));
  CHECK(t.decode(t.encode("a\u00e9a")) == "a" + std::string(t.unknown_text()) + "a");
  CHECK_THROWS_AS(t.encode("a", {.continuation = true}), ConfigError);
}

TEST_CASE("one tokeniser, several threads") {
  const Tokenizer t = Tokenizer::open(tiny_folder());
  const auto expected = t.encode("In the beginning God created the heaven and the earth.");
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (std::size_t k = 0; k < wrong.size(); ++k) {
    threads.emplace_back([&, k] {
      for (int i = 0; i < 200; ++i) {
        const auto ids = t.encode("In the beginning God created the heaven and the earth.");
        wrong[k] += ids != expected || t.decode(ids) != "In the beginning God created the heaven and the earth.";
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4));
}

TEST_CASE("optional: the published tokeniser") {
  const char* folder = std::getenv("HYMBA_INSTRUCT_DIR");
  if (folder == nullptr) {
    MESSAGE("skipped: set HYMBA_INSTRUCT_DIR to the folder of the published tokenizer.model");
    return;
  }
  const Tokenizer t = Tokenizer::open(folder);
  CHECK(t.vocabulary() == 32001);
  CHECK(t.pad() == 32000);
  CHECK(t.bos() == 1);
  CHECK(t.eos() == 2);
  CHECK(t.encode("The capital of France is Paris.") == std::vector<Token>{1, 450, 7483, 310, 3444, 338, 3681, 29889});
  CHECK(t.encode(" Paris.", {.continuation = true}) == std::vector<Token>{3681, 29889});
  if (const char* golden = std::getenv("HYMBA_INSTRUCT_GOLDEN")) {
    check_golden(t, golden);
  } else {
    MESSAGE(
        "HYMBA_INSTRUCT_GOLDEN is not set: no comparison with SentencePiece's Python package "
        "(tests/oracle/check_text.py)");
  }
}
