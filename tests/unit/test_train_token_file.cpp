// SPDX-License-Identifier: Apache-2.0
//
// Token files: round trips at both widths, every way a file can be wrong, every byte of a good file changed.
#include <hymba/train/token_file.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error_text.hpp"
#include "temp_folder.hpp"

using namespace hymba;
using text_test::contains;
using text_test::error_of;
using test::file_text, test::Folder, test::write_text;
namespace fs = std::filesystem;

namespace {

std::string little(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  return out;
}

/// What a file is made of; each part can be made wrong.
struct Parts {
  std::string magic = "HYMBATOK";
  std::uint64_t version = 1, width = 2, vocabulary = 100, tokens = 5, documents = 2, text_bytes = 17;
  std::vector<std::uint64_t> starts{0, 3};
  std::vector<std::uint64_t> ids{1, 50, 99, 1, 0};

  std::string bytes() const {
    std::string out = magic + little(version, 4) + little(width, 4) + little(vocabulary, 8) + little(tokens, 8) +
                      little(documents, 8) + little(text_bytes, 8);
    for (const auto s : starts) out += little(s, 8);
    for (const auto t : ids) out += little(t, static_cast<int>(width));
    return out;
  }
};

TokenFile view(std::string_view bytes) {
  return TokenFile::view(std::as_bytes(std::span(bytes.data(), bytes.size())), "f");
}
std::string refusal_of(std::string_view bytes) {
  const std::string what = error_of<FormatError>([&] { (void)view(bytes); });
  CHECK(what.find('\n') == std::string::npos);
  CHECK(what.size() < 300);
  return what;
}
template <class Change>
std::string refusal_with(Change&& change) {
  Parts parts;
  change(parts);
  return refusal_of(parts.bytes());
}

}  // namespace

TEST_CASE("what is written is read back, at both widths") {
  const Folder folder;
  for (const std::int64_t vocabulary :
       {std::int64_t{1}, std::int64_t{300}, std::int64_t{65536}, std::int64_t{65537}, std::int64_t{0x7fffffff}}) {
    CAPTURE(vocabulary);
    const fs::path path = folder.path / "t.tok";
    std::mt19937_64 random(static_cast<std::uint64_t>(vocabulary));
    std::vector<std::vector<Token>> documents;
    for (const std::size_t length : {1, 7, 2, 64, 1, 33}) {
      auto& document = documents.emplace_back(length);
      for (Token& t : document) t = static_cast<Token>(random() % static_cast<std::uint64_t>(vocabulary));
      document.front() = static_cast<Token>(vocabulary - 1);
    }
    TokenFileWriter writer(path, vocabulary);
    std::vector<Token> all;
    for (const auto& document : documents) {
      writer.add_document(document, 3 * static_cast<std::int64_t>(document.size()));
      all.insert(all.end(), document.begin(), document.end());
    }
    const auto count = static_cast<std::int64_t>(all.size());
    CHECK(writer.size() == count);
    writer.commit();

    const std::size_t width = vocabulary <= 65536 ? 2 : 4;
    CHECK(fs::file_size(path) == 48 + 8 * documents.size() + width * all.size());
    const TokenFile opened = TokenFile::open(path);
    const TokenFile file = opened;  // a copy shares the mapping
    REQUIRE(file.size() == count);
    CHECK(file.vocabulary() == vocabulary);
    CHECK(file.text_bytes() == 3 * count);
    CHECK(file.name() == path.string());
    std::vector<Token> read(all.size());
    file.read(0, count, read.data());
    CHECK(read == all);
    for (std::int64_t i = 0; i < count; ++i) CHECK(file[i] == all[static_cast<std::size_t>(i)]);
    Token three[3];
    file.read(5, 3, three);
    CHECK(std::equal(three, three + 3, all.begin() + 5));
    file.read(count, 0, nullptr);

    REQUIRE(file.documents() == 6);
    std::int64_t first = 0;
    for (std::int64_t d = 0; d < 6; ++d) {
      const std::int64_t last = first + static_cast<std::int64_t>(documents[static_cast<std::size_t>(d)].size());
      CHECK(file.document(d) == DocumentRange{first, last});
      for (std::int64_t t = first; t < last; ++t) CHECK(file.document_of(t) == d);
      first = last;
    }
    fs::remove(path);
    CHECK(file[0] == vocabulary - 1);  // the mapping lives on
  }
}

TEST_CASE("the layout is the documented one") {
  const Folder folder;
  const fs::path path = folder.path / "t.tok";
  TokenFileWriter writer(path, 100);
  writer.add_document(std::vector<Token>{1, 50, 99}, 10);
  writer.add_document(std::vector<Token>{1, 0}, 7);
  writer.commit();
  CHECK(file_text(path) == Parts{}.bytes());

  Parts wide;
  wide.width = 4;
  wide.vocabulary = 70000;
  TokenFileWriter other(path, 70000);
  other.add_document(std::vector<Token>{1, 50, 99}, 10);
  other.add_document(std::vector<Token>{1, 0}, 7);
  CHECK(file_text(path) == Parts{}.bytes());  // until the commit
  other.commit();
  CHECK(file_text(path) == wide.bytes());
  CHECK(folder.files() == 1);
}

TEST_CASE("reads outside the file are refused") {
  const std::string bytes = Parts{}.bytes();
  const TokenFile file = view(bytes);
  Token out[8];
  for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {-1, 1}, {0, -1}, {0, 6}, {5, 1}, {6, 0}, {4, 2}, {1, INT64_MAX}, {INT64_MAX, INT64_MAX}}) {
    const std::string what = error_of<ArgumentError>([&, f = first, c = count] { file.read(f, c, out); });
    CHECK(contains(what, "f: tokens " + std::to_string(first)));
  }
}

TEST_CASE("every wrong field is named with its value") {
  CHECK(refusal_of(Parts{}.bytes()) == "no error");
  CHECK(contains(refusal_of(""), "f: is empty"));
  CHECK(contains(refusal_of("HYMB"), "starts with \"HYMB\""));
  CHECK(contains(refusal_of("HYMBATOK"), "is 8 bytes, expected at least the 48"));
  CHECK(contains(refusal_with([](Parts& p) { p.magic = "hymbatok"; }), "starts with \"hymbatok\""));
  CHECK(contains(refusal_with([](Parts& p) { p.magic = "\n\x1b\"TOKEN"; }), "starts with \"\\x0a\\x1b\\x22TOKEN\""));
  CHECK(contains(refusal_with([](Parts& p) { p.version = 2; }), "version 2, expected 1"));
  CHECK(contains(refusal_with([](Parts& p) { p.width = 4; }), "4 bytes per token, expected 2"));
  CHECK(contains(refusal_with([](Parts& p) { p.vocabulary = 65537; }), "2 bytes per token, expected 4"));
  CHECK(contains(refusal_with([](Parts& p) { p.vocabulary = 0; }), "vocabulary of 0"));
  CHECK(contains(refusal_with([](Parts& p) { p.vocabulary = std::uint64_t{1} << 31; }), "vocabulary of 2147483648"));
  CHECK(
      contains(refusal_with([](Parts& p) { p.vocabulary = ~std::uint64_t{0}; }), "vocabulary of 18446744073709551615"));
  CHECK(contains(refusal_with([](Parts& p) { p.vocabulary = 99; }), "token 2 is 99, expected 0 to 98"));
  CHECK(contains(refusal_with([](Parts& p) { p.tokens = 0; }), "0 tokens"));
  CHECK(contains(refusal_with([](Parts& p) { p.tokens = 4; }), "2 bytes behind its last token"));
  CHECK(contains(refusal_with([](Parts& p) { p.tokens = 6; }), "is cut short"));
  CHECK(contains(refusal_with([](Parts& p) { p.tokens = ~std::uint64_t{0}; }), "is cut short"));
  CHECK(contains(refusal_with([](Parts& p) { p.tokens = (std::uint64_t{1} << 63) + 5; }), "is cut short"));
  CHECK(contains(refusal_with([](Parts& p) { p.documents = 0; }), "0 documents"));
  CHECK(contains(refusal_with([](Parts& p) { p.documents = 6; }), "6 documents"));
  CHECK(contains(refusal_with([](Parts& p) { p.tokens = p.documents = std::uint64_t{1} << 61; }), "is cut short"));
  CHECK(contains(refusal_with([](Parts& p) { p.documents = 1; }), "8 bytes behind its last token"));
  CHECK(contains(refusal_with([](Parts& p) { p.text_bytes = std::uint64_t{1} << 63; }), "bytes of text"));
  CHECK(contains(refusal_with([](Parts& p) { p.starts = {1, 3}; }), "document 0 starts at token 1, expected 0"));
  CHECK(contains(refusal_with([](Parts& p) { p.starts = {0, 0}; }), "document 1 starts at token 0, expected 1 to 4"));
  CHECK(contains(refusal_with([](Parts& p) { p.starts = {0, 5}; }), "document 1 starts at token 5"));
  CHECK(contains(refusal_with([](Parts& p) { p.starts = {0, ~std::uint64_t{0}}; }), "document 1 starts at token 1844"));
  const auto wide = [](Parts& p) {
    p.width = 4;
    p.vocabulary = 0x7fffffff;
    p.ids[3] = 0xffffffff;
  };
  CHECK(contains(refusal_with(wide), "token 3 is 4294967295, expected 0 to 2147483646"));
}

TEST_CASE("cut, overlong and damaged files never read outside") {
  const std::string good = Parts{}.bytes();
  for (std::size_t length = 0; length < good.size(); ++length) {
    // A copy of its own size, so that a sanitizer sees a read behind it.
    const std::vector<char> cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length));
    CHECK(refusal_of(std::string_view(cut.data(), cut.size())) != "no error");
  }
  CHECK(refusal_of(good + '\0') != "no error");
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const int value : {0, 1, 2, 4, 0x7f, 0x80, 0xff}) {
      std::string changed = good;
      changed[at] = static_cast<char>(value);
      try {
        const TokenFile file = view(changed);
        std::vector<Token> all(static_cast<std::size_t>(file.size()));
        file.read(0, file.size(), all.data());
        for (const Token t : all) CHECK((t >= 0 && t < file.vocabulary()));
        CHECK(file.document(file.documents() - 1).last == file.size());
      } catch (const FormatError&) {
      }
    }
  }
}

TEST_CASE("files that are not there, or no files") {
  const Folder folder;
  CHECK(contains(error_of<IoError>([&] { (void)TokenFile::open(folder.path / "none.tok"); }), "none.tok"));
  CHECK(contains(error_of<IoError>([&] { (void)TokenFile::open(folder.path); }), "not a regular file"));
  write_text(folder.path / "empty.tok", "");
  CHECK(contains(error_of<FormatError>([&] { (void)TokenFile::open(folder.path / "empty.tok"); }),
                 "empty.tok: is empty"));
  CHECK(contains(error_of<IoError>([&] { TokenFileWriter(folder.path / "no" / "t.tok", 5); }), "t.tok"));
}

TEST_CASE("the writer refuses what a file cannot hold, and leaves nothing behind") {
  const Folder folder;
  const fs::path path = folder.path / "t.tok";
  {
    TokenFileWriter writer(path, 100);
    writer.add_document(std::vector<Token>{1, 2}, 2);
    CHECK(contains(error_of<ArgumentError>([&] {
                     writer.add_document(std::vector<Token>{1, 100}, 2);
                   }),
                   "token 1 of document 1 is 100, expected 0 to 99"));
    CHECK(contains(error_of<ArgumentError>([&] { writer.add_document(std::vector<Token>{-1}, 2); }), "is -1"));
    CHECK(contains(error_of<ArgumentError>([&] { writer.add_document({}, 2); }), "no tokens"));
    CHECK(contains(error_of<ArgumentError>([&] { writer.add_document(std::vector<Token>{1}, -2); }), "-2 bytes"));
    CHECK(writer.size() == 2);  // refused documents are not there
    CHECK(writer.documents() == 1);
    CHECK(folder.files() == 1);  // the part written, under another name
    CHECK(!fs::exists(path));
  }
  CHECK(folder.files() == 0);
  CHECK(contains(error_of<ArgumentError>([&] { TokenFileWriter(path, 5).commit(); }), "no tokens"));
  CHECK(contains(error_of<ArgumentError>([&] { TokenFileWriter(path, 0); }), "vocabulary of 0"));
  CHECK(contains(error_of<ArgumentError>([&] { TokenFileWriter(path, std::int64_t{1} << 31); }), "vocabulary of"));
  CHECK(folder.files() == 0);
}
