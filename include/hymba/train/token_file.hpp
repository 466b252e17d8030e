// SPDX-License-Identifier: Apache-2.0
//
// Tokenised text on disk, mapped read-only: what training reads. Little-endian throughout:
//
//   offset  bytes
//        0  8       "HYMBATOK"
//        8  4       version: 1
//       12  4       bytes per token: 2 when the vocabulary is at most 65536, else 4
//       16  8       vocabulary V: 1 to 2^31 - 1
//       24  8       tokens N: at least 1
//       32  8       documents D: 1 to N
//       40  8       bytes of the text, as UTF-8, that the tokens were made from (for bits per byte); 0: not known
//       48  8 D     position of each document's first token: 0 first, then rising
//   48 + 8 D  ...   N tokens, each below V; the file ends with the last one
//
// Nothing in a file is believed: every number is checked before it is used.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/file_map.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/core/types.hpp>
#include <hymba/io/atomic_file.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::string_view kTokenFileMagic = "HYMBATOK";
inline constexpr std::uint32_t kTokenFileVersion = 1;
inline constexpr std::size_t kTokenFileHeader = 48;

/// An unsigned number stored little-endian at `at`, aligned or not.
template <class U>
U load_little(const std::byte* at) {
  U value;
  std::memcpy(&value, at, sizeof value);
  if constexpr (std::endian::native == std::endian::big) {
    U swapped = 0;
    for (std::size_t i = 0; i < sizeof value; ++i) swapped = static_cast<U>(swapped << 8 | (value >> (8 * i) & 0xffu));
    value = swapped;
  }
  return value;
}

template <class U>
void append_little(std::vector<std::byte>& out, U value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i) & 0xffu));
}

constexpr std::size_t token_bytes(std::int64_t vocabulary) { return vocabulary <= 65536 ? 2 : 4; }

/// The largest of `count` stored tokens: one pass, without a branch.
template <class U>
std::uint64_t largest_token(const std::byte* tokens, std::int64_t count) {
  U largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, load_little<U>(tokens + static_cast<std::size_t>(i) * sizeof(U)));
  }
  return largest;
}

}  // namespace detail

/// Positions of a document's tokens: first to last - 1.
struct DocumentRange {
  std::int64_t first = 0, last = 0;
  std::int64_t size() const { return last - first; }
  friend bool operator==(const DocumentRange&, const DocumentRange&) = default;
};

/// A token file, mapped and checked. Immutable; copies share the mapping; may be read from several threads at once.
class TokenFile {
 public:
  /// Maps the file and reads it through once (a token outside the vocabulary would index past an embedding).
  /// @throws IoError when it cannot be mapped; FormatError, naming the value and what was expected, when it is none.
  static TokenFile open(const std::filesystem::path& path) {
    auto map = std::make_shared<const FileMap>(path);
    TokenFile file(map->bytes(), path.string());
    file.owner_ = std::move(map);
    return file;
  }
  /// Over bytes that the caller keeps alive.
  /// @param name stands in errors. @throws FormatError.
  static TokenFile view(std::span<const std::byte> bytes, std::string name) {
    return TokenFile(bytes, std::move(name));
  }

  /// Tokens.
  std::int64_t size() const { return size_; }
  /// @param i 0 to size() - 1, not checked.
  Token operator[](std::int64_t i) const {
    const std::byte* at = tokens_ + static_cast<std::size_t>(i) * width_;
    return width_ == 2 ? static_cast<Token>(detail::load_little<std::uint16_t>(at))
                       : static_cast<Token>(detail::load_little<std::uint32_t>(at));
  }
  /// Copies tokens first to first + count - 1.
  /// @throws ArgumentError when they are not all there.
  void read(std::int64_t first, std::int64_t count, Token* out) const {
    if (first < 0 || count < 0 || first > size_ || count > size_ - first) {
      throw ArgumentError(detail::message(name_, ": tokens ", first, " to ", first, " + ", count,
                                          " asked for, expected positions within its ", size_));
    }
    const std::byte* at = tokens_ + static_cast<std::size_t>(first) * width_;
    if (width_ == 2) {
      copy<std::uint16_t>(at, count, out);
    } else {
      copy<std::uint32_t>(at, count, out);
    }
  }

  std::int64_t documents() const { return documents_; }
  /// @param i 0 to documents() - 1, not checked.
  DocumentRange document(std::int64_t i) const { return {start(i), i + 1 < documents_ ? start(i + 1) : size_}; }
  /// The document that holds a token.
  /// @param token 0 to size() - 1, not checked.
  std::int64_t document_of(std::int64_t token) const {
    std::int64_t low = 0, high = documents_;  // start(low) <= token < start(high)
    while (high - low > 1) {
      const std::int64_t middle = low + (high - low) / 2;
      (start(middle) <= token ? low : high) = middle;
    }
    return low;
  }

  std::int64_t vocabulary() const { return vocabulary_; }
  /// Bytes of the text the tokens stand for; 0 when not known.
  std::int64_t text_bytes() const { return text_bytes_; }
  const std::string& name() const { return name_; }

 private:
  TokenFile(std::span<const std::byte> bytes, std::string name) : name_(std::move(name)) {
    if (bytes.empty()) refuse("is empty, expected a token file");
    const std::string_view magic(reinterpret_cast<const char*>(bytes.data()), std::min<std::size_t>(bytes.size(), 8));
    if (magic != detail::kTokenFileMagic) {
      refuse("starts with ", detail::quote(magic), ", expected ", detail::quote(detail::kTokenFileMagic),
             " (a file written by hymba tokenize)");
    }
    if (bytes.size() < detail::kTokenFileHeader) {
      refuse("is ", bytes.size(), " bytes, expected at least the ", detail::kTokenFileHeader, " of a header");
    }
    const std::byte* head = bytes.data();
    const auto version = detail::load_little<std::uint32_t>(head + 8);
    if (version != detail::kTokenFileVersion) {
      refuse("has version ", version, ", expected ", detail::kTokenFileVersion);
    }
    const auto width = detail::load_little<std::uint32_t>(head + 12);
    const auto vocabulary = detail::load_little<std::uint64_t>(head + 16);
    const auto tokens = detail::load_little<std::uint64_t>(head + 24);
    const auto documents = detail::load_little<std::uint64_t>(head + 32);
    const auto text_bytes = detail::load_little<std::uint64_t>(head + 40);
    constexpr std::uint64_t most = std::numeric_limits<Token>::max();
    if (vocabulary == 0 || vocabulary > most) {
      refuse("has a vocabulary of ", vocabulary, ", expected 1 to ", most);
    }
    vocabulary_ = static_cast<std::int64_t>(vocabulary);
    width_ = detail::token_bytes(vocabulary_);
    if (width != width_) {
      refuse("has ", width, " bytes per token, expected ", width_, " for a vocabulary of ", vocabulary);
    }
    if (tokens == 0) refuse("holds 0 tokens, expected at least 1");
    if (documents == 0 || documents > tokens) {
      refuse("holds ", documents, " documents, expected 1 to its number of tokens ", tokens);
    }
    if (text_bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      refuse("claims ", text_bytes, " bytes of text, expected at most 2^63 - 1");
    }
    // The file's own size bounds the two counts, so nothing below overflows.
    const std::uint64_t left = bytes.size() - detail::kTokenFileHeader;
    if (documents > left / 8 || tokens > (left - 8 * documents) / width_) {
      refuse("is cut short: ", bytes.size(), " bytes, expected ", detail::kTokenFileHeader, " + 8 x ", documents,
             " documents + ", width_, " x ", tokens, " tokens");
    }
    if (left - 8 * documents != tokens * width_) {
      refuse("has ", left - 8 * documents - tokens * width_, " bytes behind its last token, expected none");
    }
    starts_ = head + detail::kTokenFileHeader;
    tokens_ = starts_ + 8 * static_cast<std::size_t>(documents);
    size_ = static_cast<std::int64_t>(tokens);
    documents_ = static_cast<std::int64_t>(documents);
    text_bytes_ = static_cast<std::int64_t>(text_bytes);
    check_documents();
    check_tokens();
  }

  void check_documents() const {
    std::uint64_t before = 0;
    for (std::int64_t i = 0; i < documents_; ++i) {
      const auto at = detail::load_little<std::uint64_t>(starts_ + 8 * static_cast<std::size_t>(i));
      if (i == 0 && at != 0) refuse("document 0 starts at token ", at, ", expected 0");
      if (i > 0 && (at <= before || at >= static_cast<std::uint64_t>(size_))) {
        refuse("document ", i, " starts at token ", at, ", expected ", before + 1, " to ", size_ - 1);
      }
      before = at;
    }
  }

  void check_tokens() const {
    const std::uint64_t largest = width_ == 2 ? detail::largest_token<std::uint16_t>(tokens_, size_)
                                              : detail::largest_token<std::uint32_t>(tokens_, size_);
    if (largest < static_cast<std::uint64_t>(vocabulary_)) return;
    for (std::int64_t i = 0; i < size_; ++i) {
      const auto token = static_cast<std::uint32_t>((*this)[i]);
      if (token >= vocabulary_) refuse("token ", i, " is ", token, ", expected 0 to ", vocabulary_ - 1);
    }
  }

  std::int64_t start(std::int64_t i) const {
    return static_cast<std::int64_t>(detail::load_little<std::uint64_t>(starts_ + 8 * static_cast<std::size_t>(i)));
  }

  template <class U>
  static void copy(const std::byte* at, std::int64_t count, Token* out) {
    for (std::int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<Token>(detail::load_little<U>(at + static_cast<std::size_t>(i) * sizeof(U)));
    }
  }

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... what) const {
    throw FormatError(detail::message(name_, ": ", what...));
  }

  std::string name_;
  std::shared_ptr<const FileMap> owner_;
  const std::byte *starts_ = nullptr, *tokens_ = nullptr;
  std::int64_t size_ = 0, documents_ = 0, vocabulary_ = 0, text_bytes_ = 0;
  std::size_t width_ = 2;
};

/// Writes a token file, whole or not at all. Tokens are collected in memory (2 or 4 bytes each): the file's head, which
/// comes first, counts them.
class TokenFileWriter {
 public:
  /// @throws IoError when no file can be made there: at once, not after the text has been tokenised. ArgumentError.
  TokenFileWriter(const std::filesystem::path& path, std::int64_t vocabulary)
      : vocabulary_(checked(vocabulary)), width_(detail::token_bytes(vocabulary)), file_(path) {}

  /// One document.
  /// @param text_bytes of its text. @throws ArgumentError, with nothing added, when it is empty or a token is outside
  /// the vocabulary.
  void add_document(std::span<const Token> tokens, std::int64_t text_bytes) {
    if (tokens.empty()) throw ArgumentError("token file: a document has no tokens, expected at least 1");
    if (text_bytes < 0) {
      throw ArgumentError(detail::message("token file: a document has ", text_bytes, " bytes of text, expected >= 0"));
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= vocabulary_) {
        throw ArgumentError(detail::message("token file: token ", i, " of document ", starts_.size(), " is ", tokens[i],
                                            ", expected 0 to ", vocabulary_ - 1));
      }
    }
    starts_.push_back(static_cast<std::uint64_t>(size()));
    for (const Token t : tokens) {
      if (width_ == 2) {
        detail::append_little(data_, static_cast<std::uint16_t>(t));
      } else {
        detail::append_little(data_, static_cast<std::uint32_t>(t));
      }
    }
    text_bytes_ += text_bytes;
  }

  std::int64_t size() const { return static_cast<std::int64_t>(data_.size() / width_); }
  std::int64_t documents() const { return static_cast<std::int64_t>(starts_.size()); }
  std::int64_t text_bytes() const { return text_bytes_; }

  /// Brings the file to the disk and under its name; the last call to make.
  /// @throws IoError; ArgumentError when there are no tokens. The target is then as it was.
  void commit() {
    if (starts_.empty()) throw ArgumentError("token file: there are no tokens, expected at least 1");
    std::vector<std::byte> head;
    head.reserve(detail::kTokenFileHeader + 8 * starts_.size());
    for (const char c : detail::kTokenFileMagic) head.push_back(static_cast<std::byte>(c));
    detail::append_little(head, detail::kTokenFileVersion);
    detail::append_little(head, static_cast<std::uint32_t>(width_));
    detail::append_little(head, static_cast<std::uint64_t>(vocabulary_));
    detail::append_little(head, static_cast<std::uint64_t>(size()));
    detail::append_little(head, static_cast<std::uint64_t>(starts_.size()));
    detail::append_little(head, static_cast<std::uint64_t>(text_bytes_));
    for (const std::uint64_t start : starts_) detail::append_little(head, start);
    file_.write(head);
    file_.write(data_);
    file_.commit();
  }

 private:
  static std::int64_t checked(std::int64_t vocabulary) {
    if (vocabulary < 1 || vocabulary > std::numeric_limits<Token>::max()) {
      throw ArgumentError(detail::message("token file: a vocabulary of ", vocabulary, ", expected 1 to ",
                                          std::numeric_limits<Token>::max()));
    }
    return vocabulary;
  }

  std::int64_t vocabulary_;
  std::size_t width_;
  AtomicFile file_;
  std::vector<std::uint64_t> starts_;
  std::vector<std::byte> data_;
  std::int64_t text_bytes_ = 0;
};

HYMBA_NAMESPACE_END
