// SPDX-License-Identifier: Apache-2.0
//
// Text to token ids and back, over SentencePiece's C++ library (link with it: component hymba::tokenizer).
//
// SentencePiece trusts its model file: a damaged one can make it log, throw foreign exceptions or read out of bounds.
// The file is therefore checked here first, field by field, and only then handed over.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/text/utf8.hpp>

#include <nlohmann/json.hpp>
#include <sentencepiece_processor.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::string_view kSpaceSymbol = "\xe2\x96\x81";  // U+2581, SentencePiece's visible space

/// One field of a protocol-buffer message.
struct ProtoField {
  std::uint32_t number = 0;
  std::uint32_t wire = 0;       ///< 0 varint, 1 eight bytes, 2 bytes, 5 four bytes
  std::uint64_t value = 0;      ///< of wires 0, 1, 5
  std::string_view bytes = {};  ///< of wire 2
  std::string_view raw = {};    ///< the whole field, key included
};

/// Walks the fields of a message; throws FormatError, prefixed with `what`, where it is malformed.
class ProtoReader {
 public:
  ProtoReader(std::string_view message_bytes, const std::string& what)
      : rest_(message_bytes), what_(&what), size_(message_bytes.size()) {}

  bool next(ProtoField& field) {
    if (rest_.empty()) return false;
    const std::string_view from = rest_;
    const std::uint64_t key = varint();
    field = {};
    field.number = static_cast<std::uint32_t>(key >> 3);
    field.wire = static_cast<std::uint32_t>(key & 7);
    if (key >> 32 != 0 || field.number == 0) fail("a field number out of range");
    switch (field.wire) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 5:
        field.value = fixed(4);
        break;
      case 2: {
        const std::uint64_t length = varint();
        if (length > rest_.size()) fail("a field longer than the data left: the file is truncated or damaged");
        field.bytes = rest_.substr(0, static_cast<std::size_t>(length));
        rest_.remove_prefix(static_cast<std::size_t>(length));
        break;
      }
      default:
        fail("an unknown wire type");
    }
    field.raw = from.substr(0, from.size() - rest_.size());
    return true;
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) fail("a number that ends with the data: the file is truncated");
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<std::uint64_t>(byte & 0x7fu) << shift;
      if (byte < 0x80u) return value;
    }
    fail("a number longer than 10 bytes");
  }
  std::uint64_t fixed(std::size_t bytes) {
    if (rest_.size() < bytes) fail("a number that ends with the data: the file is truncated");
    std::uint64_t value = 0;
    for (std::size_t i = bytes; i-- > 0;) value = (value << 8) | static_cast<unsigned char>(rest_[i]);
    rest_.remove_prefix(bytes);
    return value;
  }
  [[noreturn]] void fail(const char* found) const {
    throw FormatError(message(*what_, ": not a SentencePiece model: ", found, " (byte ", size_ - rest_.size(),
                              " of its part of ", size_, ")"));
  }

  std::string_view rest_;
  const std::string* what_;
  std::size_t size_;
};

/// What the library needs to know of a SentencePiece model beyond SentencePiece's own interface.
struct SentencePieceTraits {
  std::size_t pieces = 0;
  std::size_t unknown = 0;     ///< id of the unknown piece
  std::string self_contained;  ///< the model without its self tests, whose failures SentencePiece prints
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool byte_fallback = false;
};

/// Checks a precompiled character map (a Darts double array and the strings it points into): no walk through it may
/// leave it. SentencePiece itself only checks the sizes.
inline void check_character_map(std::string_view map, const std::string& what) {
  if (map.empty()) return;
  const auto word = [map](std::size_t at) {
    std::uint32_t v = 0;
    for (std::size_t i = 4; i-- > 0;) v = (v << 8) | static_cast<unsigned char>(map[at + i]);
    return v;
  };
  const std::uint64_t trie = map.size() < 4 ? 0 : word(0);
  if (trie == 0 || trie % 1024 != 0 || 4 + trie >= map.size() || map.back() != '\0') {
    throw FormatError(message(what, ": normaliser map of ", map.size(), " bytes holds a trie of ", trie,
                              ", expected a multiple of 1024 followed by NUL-terminated strings"));
  }
  const std::size_t units = static_cast<std::size_t>(trie) / 4;
  const std::size_t strings = map.size() - 4 - static_cast<std::size_t>(trie);
  for (std::size_t i = 0; i < units; ++i) {
    const std::uint32_t unit = word(4 + 4 * i);
    if (unit >> 31) {  // a leaf: where its string begins
      if ((unit & 0x7fffffffu) >= strings) {
        throw FormatError(
            message(what, ": normaliser map: unit ", i, " points to byte ", unit & 0x7fffffffu, " of ", strings));
      }
      continue;
    }
    // A step goes from here to (i ^ offset) ^ label, label any byte.
    const std::uint32_t offset = (unit >> 10) << ((unit & (1u << 9)) >> 6);
    if (((i ^ offset) | 0xffu) >= units) {
      throw FormatError(
          message(what, ": normaliser map: unit ", i, " leads to unit ", (i ^ offset) | 0xffu, " of ", units));
    }
  }
}

/// Checks the bytes of a tokenizer.model. Throws FormatError (damaged) or ConfigError (a feature that is not
/// supported).
inline SentencePieceTraits check_sentencepiece_model(std::string_view model, const std::string& what) {
  SentencePieceTraits traits;
  ProtoField field;
  ProtoField inner;
  std::size_t unknown_pieces = 0;
  const auto expect = [&](const ProtoField& f, std::uint32_t wire, const char* name) {
    if (f.wire != wire)
      throw FormatError(
          message(what, ": not a SentencePiece model: field ", name, " has wire type ", f.wire, ", expected ", wire));
  };
  traits.self_contained.reserve(model.size());
  for (ProtoReader reader(model, what); reader.next(field);) {
    if (field.number != 4) traits.self_contained += field.raw;
    if (field.number == 1) {
      expect(field, 2, "pieces");
      std::string_view piece;
      std::uint64_t type = 1;
      for (ProtoReader r(field.bytes, what); r.next(inner);) {
        if (inner.number == 1) {
          expect(inner, 2, "piece");
          piece = inner.bytes;
        } else if (inner.number == 2) {
          expect(inner, 5, "score");
          const float score = std::bit_cast<float>(static_cast<std::uint32_t>(inner.value));
          if (!std::isfinite(score))
            throw FormatError(
                message(what, ": piece ", traits.pieces, " has score ", score, ", expected a finite number"));
        } else if (inner.number == 3) {
          expect(inner, 0, "type");
          type = inner.value;
          if (type < 1 || type > 6)
            throw FormatError(message(what, ": piece ", traits.pieces, " has type ", type, ", expected 1 to 6"));
        }
      }
      if (piece.empty()) throw FormatError(message(what, ": piece ", traits.pieces, " is empty, expected text"));
      if (!is_utf8(piece) || piece.find('\0') != std::string_view::npos) {
        throw FormatError(message(what, ": piece ", traits.pieces, " is not text (invalid UTF-8 or a NUL)"));
      }
      if (type == 2) {
        ++unknown_pieces;
        traits.unknown = traits.pieces;
      }
      if (++traits.pieces > (1u << 23)) throw FormatError(message(what, ": more than ", 1u << 23, " pieces"));
    } else if (field.number == 2) {
      expect(field, 2, "trainer_spec");
      for (ProtoReader r(field.bytes, what); r.next(inner);) {
        if (inner.number == 3) {
          expect(inner, 0, "model_type");
          if (inner.value < 1 || inner.value > 4)
            throw FormatError(message(what, ": model_type is ", inner.value, ", expected 1 to 4"));
        } else if (inner.number == 24 && inner.wire == 0 && inner.value != 0) {
          throw ConfigError(message(
              what, ": treat_whitespace_as_suffix is set, which is not supported; expected spaces in front of words"));
        } else if (inner.number == 35) {
          expect(inner, 0, "byte_fallback");
          traits.byte_fallback = inner.value != 0;
        }
      }
    } else if (field.number == 3) {
      expect(field, 2, "normalizer_spec");
      for (ProtoReader r(field.bytes, what); r.next(inner);) {
        if (inner.number == 2) {
          expect(inner, 2, "precompiled_charsmap");
          check_character_map(inner.bytes, what);
        } else if (inner.number == 3) {
          expect(inner, 0, "add_dummy_prefix");
          traits.add_dummy_prefix = inner.value != 0;
        } else if (inner.number == 4) {
          expect(inner, 0, "remove_extra_whitespaces");
          traits.remove_extra_whitespaces = inner.value != 0;
        }
      }
    } else if (field.number == 5) {
      expect(field, 2, "denormalizer_spec");
      for (ProtoReader r(field.bytes, what); r.next(inner);) {
        // It rewrites the decoded text as a whole, which cannot be streamed.
        if (inner.number == 2 && !inner.bytes.empty())
          throw ConfigError(message(what, ": has a denormaliser, which is not supported; expected none"));
      }
    }
  }
  if (traits.pieces == 0) throw FormatError(message(what, ": holds 0 pieces, expected a SentencePiece model"));
  if (unknown_pieces != 1) throw FormatError(message(what, ": holds ", unknown_pieces, " unknown pieces, expected 1"));
  return traits;
}

/// A whole file as bytes. Throws IoError.
inline std::string read_text_file(const std::filesystem::path& path, std::uintmax_t limit) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (error || !std::filesystem::is_regular_file(status)) {
    throw IoError(message(path.string(), ": ", std::filesystem::exists(status) ? "is not a file" : "does not exist",
                          ", expected a readable file"));
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw IoError(message(path.string(), ": ", error.message()));
  if (size > limit) throw IoError(message(path.string(), ": is ", size, " bytes, expected at most ", limit));
  std::ifstream in(path, std::ios::binary);
  std::string data(static_cast<std::size_t>(size), '\0');
  if (!in || !in.read(data.data(), static_cast<std::streamsize>(size))) {
    throw IoError(message(path.string(), ": cannot be read, expected a readable file of ", size, " bytes"));
  }
  return data;
}

}  // namespace detail

/// How to encode.
struct EncodeOptions {
  bool add_bos = true;        ///< put bos in front: for plain prompts. The chat template wants none.
  bool continuation = false;  ///< the text goes on from text already encoded: neither bos nor the dummy prefix (a space
                              ///< that SentencePiece puts in front of a text) is added, whatever add_bos says
};

/// A SentencePiece model and the tokens added to it. Immutable: may be used from several threads at once.
class Tokenizer {
 public:
  /// `path`: a tokenizer.model, or a folder that holds one. From a folder (or beside the file) added_tokens.json, an
  /// object of {"text": id}, is read too when it is there. Throws IoError when a file cannot be read, FormatError when
  /// it is damaged, ConfigError when it uses a feature that is not supported. Prints nothing.
  static Tokenizer open(const std::filesystem::path& path) {
    std::error_code error;
    const bool folder = std::filesystem::is_directory(path, error);
    const std::filesystem::path model = folder ? path / "tokenizer.model" : path;
    const std::filesystem::path added = model.parent_path() / "added_tokens.json";
    constexpr std::uintmax_t limit = std::uintmax_t{1} << 28;
    const std::string bytes = detail::read_text_file(model, limit);
    std::optional<std::string> extra;
    if (std::filesystem::exists(added, error)) extra = detail::read_text_file(added, limit);
    return Tokenizer(bytes, extra ? std::string_view(*extra) : std::string_view("{}"), model.string(), added.string());
  }

  /// From the bytes of a tokenizer.model and the text of an added_tokens.json. `name` stands in error messages.
  static Tokenizer from_bytes(std::string_view model, std::string_view added_tokens = "{}",
                              const std::string& name = "tokenizer.model") {
    return Tokenizer(model, added_tokens, name, name + ": added tokens");
  }

  Tokenizer(Tokenizer&&) = default;
  Tokenizer& operator=(Tokenizer&&) = default;

  /// Number of ids: SentencePiece's pieces and the added tokens after them.
  int vocabulary() const { return pieces_ + static_cast<int>(added_.size()); }
  /// Begin of text, end of text, padding, unknown. -1: the model has none. An added "[PAD]" or "<pad>" is padding when
  /// SentencePiece's model has none of its own.
  Token bos() const { return bos_; }
  Token eos() const { return eos_; }
  Token pad() const { return pad_; }
  Token unk() const { return unk_; }

  /// Ids of `text`. The text of control tokens and added tokens is plain text here ("</s>" in a prompt never becomes
  /// eos). Each byte that is not UTF-8 becomes U+FFFD, one each, as in SentencePiece. NUL is a character like any
  /// other. With `continuation`, a model without byte fallback is refused (ConfigError): the dummy prefix could not be
  /// told from the text. Throws ArgumentError for a text above 2^30 bytes.
  std::vector<Token> encode(std::string_view text, EncodeOptions options = {}) const {
    if (text.size() > (std::size_t{1} << 30)) {
      throw ArgumentError(detail::message("text to encode is ", text.size(), " bytes, expected at most ", 1 << 30));
    }
    if (options.continuation && add_dummy_prefix_) {
      if (sentinel_ids_ == 0) {
        throw ConfigError(detail::message(name_, ": has no byte fallback, which encoding a continuation needs"));
      }
      // A character that no piece contains stands in front: it takes the dummy prefix, and nothing merges across it.
      std::vector<Token> ids = encode_raw(std::string(sentinel_) + std::string(text));
      ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(sentinel_ids_));
      return ids;
    }
    std::vector<Token> ids = encode_raw(text);
    if (options.add_bos && !options.continuation) {
      if (bos_ < 0) throw ConfigError(detail::message(name_, ": has no bos token, expected one for add_bos"));
      ids.insert(ids.begin(), bos_);
    }
    return ids;
  }

  /// Text of `ids`. Control and added tokens are "", the unknown token is what the model says (usually " \u2047 "),
  /// runs of byte pieces are put together and each byte among them that is not UTF-8 becomes U+FFFD. The dummy prefix's
  /// space at the start of the text is dropped. Throws ArgumentError, naming the position, on an id outside the
  /// vocabulary.
  std::string decode(std::span<const Token> ids) const {
    std::vector<int> kept;
    kept.reserve(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      check(ids[i], detail::message("ids[", i, "]").c_str());
      if (ids[i] < pieces_) kept.push_back(ids[i]);
    }
    std::string text;
    guarded([&] { return processor_->Decode(kept, &text); });
    return text;
  }
  std::string decode(Token id) const { return decode(std::span<const Token>(&id, 1)); }

  /// The piece as the model spells it ("\u2581Paris", "<0x0A>", "</s>", "[PAD]"). Throws ArgumentError.
  std::string_view piece(Token id) const {
    check(id, "token");
    if (id >= pieces_) return added_[static_cast<std::size_t>(id - pieces_)];
    return processor_->IdToPiece(id);
  }

  /// The byte a byte-fallback piece stands for, or -1. Throws ArgumentError.
  int byte_of(Token id) const {
    check(id, "token");
    if (id >= pieces_ || !processor_->IsByte(id)) return -1;
    const std::string& p = processor_->IdToPiece(id);  // "<0xHH>", as SentencePiece has made sure
    const auto digit = [&p](std::size_t i) { return p[i] <= '9' ? p[i] - '0' : p[i] - 'A' + 10; };
    return digit(3) * 16 + digit(4);
  }

  bool is_added(Token id) const {
    check(id, "token");
    return id >= pieces_;
  }
  bool is_control(Token id) const {
    check(id, "token");
    return id < pieces_ && processor_->IsControl(id);
  }
  bool is_unknown(Token id) const {
    check(id, "token");
    return id < pieces_ && processor_->IsUnknown(id);
  }
  /// What the unknown token decodes to.
  std::string_view unknown_text() const { return unknown_text_; }
  /// Whether decoding drops the first space of a text, and whether it drops all the leading ones.
  bool drops_first_space() const { return add_dummy_prefix_ || remove_extra_whitespaces_; }
  bool drops_leading_spaces() const { return remove_extra_whitespaces_; }

 private:
  Tokenizer(std::string_view model, std::string_view added_tokens, std::string name, const std::string& added_name)
      : name_(std::move(name)), processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {
    const detail::SentencePieceTraits traits = detail::check_sentencepiece_model(model, name_);
    try {
      const auto status = processor_->LoadFromSerializedProto(traits.self_contained);
      if (!status.ok())
        throw FormatError(
            detail::message(name_, ": SentencePiece refuses the model: ", one_line(status.error_message())));
    } catch (const Error&) {
      throw;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& e) {  // its trie builder throws its own type
      throw FormatError(detail::message(name_, ": SentencePiece refuses the model: ", one_line(e.what())));
    }
    add_dummy_prefix_ = traits.add_dummy_prefix;
    remove_extra_whitespaces_ = traits.remove_extra_whitespaces;
    pieces_ = processor_->GetPieceSize();
    bos_ = processor_->bos_id();
    eos_ = processor_->eos_id();
    pad_ = processor_->pad_id();
    unk_ = static_cast<Token>(traits.unknown);
    read_added(added_tokens, added_name);
    unknown_text_ = decode(unk_);
    if (traits.byte_fallback && add_dummy_prefix_) find_sentinel();
  }

  void read_added(std::string_view text, const std::string& name) {
    nlohmann::json json;
    try {
      json = nlohmann::json::parse(text);
    } catch (const nlohmann::json::exception& e) {
      throw FormatError(detail::message(name, ": not JSON: ", one_line(e.what())));
    }
    if (!json.is_object())
      throw FormatError(
          detail::message(name, ": is a JSON ", json.type_name(), ", expected an object of {\"text\": id}"));
    // Entries that repeat a piece of the model under its own id are common in published files, and harmless.
    std::vector<std::optional<std::string>> found;
    for (const auto& [token, id] : json.items()) {
      if (!id.is_number_integer())
        throw FormatError(
            detail::message(name, ": \"", token, "\" has a JSON ", id.type_name(), ", expected an integer id"));
      const auto value = id.is_number_unsigned() && id.get<std::uint64_t>() > 0x7fffffffu ? std::int64_t{0x7fffffff}
                                                                                          : id.get<std::int64_t>();
      if (value >= 0 && value < pieces_ && processor_->IdToPiece(static_cast<int>(value)) == token) continue;
      const auto limit = pieces_ + static_cast<std::int64_t>(json.size());
      if (value < pieces_ || value >= limit) {
        throw FormatError(detail::message(name, ": \"", token, "\" has id ", id.dump(), ", expected one from ", pieces_,
                                          " (after the model's pieces) to ", limit - 1));
      }
      const auto slot = static_cast<std::size_t>(value - pieces_);
      if (slot >= found.size()) found.resize(slot + 1);
      if (found[slot])
        throw FormatError(detail::message(name, ": \"", token, "\" and \"", *found[slot], "\" share id ", value));
      found[slot] = token;
    }
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (!found[i])
        throw FormatError(
            detail::message(name, ": id ", pieces_ + static_cast<std::int64_t>(i), " is missing, expected no gap"));
      if (pad_ < 0 && (*found[i] == "[PAD]" || *found[i] == "<pad>")) pad_ = pieces_ + static_cast<Token>(i);
      added_.push_back(*found[i]);
    }
  }

  void find_sentinel() {
    // Private-use characters: the first that the model spells in bytes, "\u2581" and three of them.
    for (unsigned low = 0x80; low < 0xc0; ++low) {
      const char text[] = {'\xee', '\x80', static_cast<char>(low)};
      const std::vector<Token> ids = encode_raw(std::string_view(text, 3));
      if (ids.size() < 3) continue;
      bool spelt = true;
      for (std::size_t i = 0; i < 3; ++i)
        spelt = spelt && byte_of(ids[ids.size() - 3 + i]) == static_cast<unsigned char>(text[i]);
      if (!spelt) continue;
      bool contained = false;  // a longer piece could hold it and still not be used for it alone
      for (Token id = 0; id < pieces_ && !contained; ++id)
        contained = piece(id).find(std::string_view(text, 3)) != std::string_view::npos;
      if (contained) continue;
      sentinel_.assign(text, 3);
      sentinel_ids_ = ids.size();
      return;
    }
  }

  std::vector<Token> encode_raw(std::string_view text) const {
    static_assert(std::is_same_v<Token, int>);
    std::vector<Token> ids;
    guarded([&] { return processor_->Encode(text, &ids); });
    return ids;
  }

  template <class Call>
  void guarded(Call&& call) const {
    const auto status = call();
    if (!status.ok()) throw Error(detail::message(name_, ": SentencePiece: ", one_line(status.error_message())));
  }

  void check(Token id, const char* what) const {
    if (id < 0 || id >= vocabulary()) {
      throw ArgumentError(detail::message(what, " is ", id, ", expected 0 to ", vocabulary() - 1));
    }
  }

  static std::string one_line(std::string text) {
    for (char& c : text) {
      if (c == '\n' || c == '\r') c = ' ';
    }
    return text;
  }

  std::string name_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;  // owned; immutable once loaded
  std::vector<std::string> added_;                                    // texts of ids pieces_, pieces_ + 1, ...
  std::string sentinel_;
  std::string unknown_text_;
  std::size_t sentinel_ids_ = 0;
  int pieces_ = 0;
  Token bos_ = -1;
  Token eos_ = -1;
  Token pad_ = -1;
  Token unk_ = -1;
  bool add_dummy_prefix_ = true;
  bool remove_extra_whitespaces_ = true;
};

HYMBA_NAMESPACE_END
