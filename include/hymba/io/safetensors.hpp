// SPDX-License-Identifier: Apache-2.0
//
// Safetensors files, read without a copy and written without one.
//
//   8 bytes   length N of the header, little-endian
//   N bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__":
//   {...}} the rest  the data; offsets count from its first byte; no gaps, no overlaps
//
// Nothing in a file is believed: every number is checked before it is used.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/file_map.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/core/tensor_check.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/io/atomic_file.hpp>
#include <hymba/io/json.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Longest header the format allows, in bytes.
inline constexpr std::uint64_t safetensors_header_limit = 100'000'000;
/// Most dimensions a tensor may have here.
inline constexpr std::size_t safetensors_rank_limit = 8;

/// Bytes per element of a dtype of the format, 0 for an unknown one.
constexpr std::size_t safetensors_dtype_bytes(std::string_view dtype) {
  for (const std::string_view one : {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"}) {
    if (dtype == one) return 1;
  }
  for (const std::string_view two : {"I16", "U16", "F16", "BF16"}) {
    if (dtype == two) return 2;
  }
  for (const std::string_view four : {"I32", "U32", "F32"}) {
    if (dtype == four) return 4;
  }
  for (const std::string_view eight : {"I64", "U64", "F64"}) {
    if (dtype == eight) return 8;
  }
  return 0;
}

/// One tensor of a header, of any dtype. Offsets count bytes from the start of the data.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

/// What a header says, checked against the file's size.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  ///< offset of the data in the file, in bytes
};

namespace detail {

/// Reads the header's JSON event by event: no tree, so that a header costs no more than its entries.
class SafetensorsHeaderReader final : public JsonHandler {
 public:
  SafetensorsHeaderReader(std::string_view text, std::string_view file)
      : JsonHandler(text, file, {.bytes = static_cast<std::size_t>(safetensors_header_limit), .depth = 3}) {}

  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { wrong("null"); }
  bool boolean(bool) override { wrong("a boolean"); }
  bool number_integer(number_integer_t v) override { wrong(message("the number ", v)); }
  bool number_float(number_float_t, const string_t& text) override { wrong("the number " + printable(text, 40)); }
  bool number_unsigned(number_unsigned_t v) override {
    if (v > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) wrong(message("the number ", v));
    if (at_ == At::shape) {
      if (entry_.shape.size() == safetensors_rank_limit) {
        fail(message("tensor ", quote(entry_.name), ": more than ", safetensors_rank_limit, " dimensions"));
      }
      entry_.shape.push_back(static_cast<std::int64_t>(v));
    } else if (at_ == At::offsets) {
      if (offsets_ == 2) fail(message("tensor ", quote(entry_.name), ": data_offsets holds more than two numbers"));
      (offsets_ == 0 ? entry_.begin : entry_.end) = v;
      ++offsets_;
    } else {
      wrong(message("the number ", v));
    }
    return true;
  }
  bool string(string_t& v) override {
    if (at_ == At::metadata_value) {
      metadata.insert_or_assign(name_, std::move(v));
      at_ = At::metadata;
    } else if (at_ == At::dtype) {
      if (safetensors_dtype_bytes(v) == 0) {
        fail(message("tensor ", quote(entry_.name), ": the dtype ", quote(v, 40), " is not known"));
      }
      entry_.dtype = std::move(v);
      at_ = At::tensor;
    } else {
      wrong("the string " + quote(v, 40));
    }
    return true;
  }
  bool start_object(std::size_t) override {
    if (at_ == At::start) {
      at_ = At::top;
    } else if (at_ == At::top_value) {
      at_ = name_ == "__metadata__" ? At::metadata : At::tensor;
      entry_ = {};
      entry_.name = name_;
      offsets_ = 0;
      seen_ = {};
    } else {
      wrong("an object");
    }
    enter();
    return true;
  }
  bool end_object() override {
    leave();
    if (at_ == At::tensor) {
      for (std::size_t i = 0; i < fields.size(); ++i) {
        if (!seen_[i]) fail(message("tensor ", quote(entry_.name), ": ", fields[i], " is missing"));
      }
      entries.push_back(std::move(entry_));
      at_ = At::top;
    } else if (at_ == At::metadata) {
      at_ = At::top;
    }
    return true;
  }
  bool start_array(std::size_t) override {
    if (at_ == At::shape_value) {
      at_ = At::shape;
    } else if (at_ == At::offsets_value) {
      at_ = At::offsets;
    } else {
      wrong("a list");
    }
    enter();
    return true;
  }
  bool end_array() override {
    leave();
    if (at_ == At::offsets && offsets_ != 2) {
      fail(message("tensor ", quote(entry_.name), ": data_offsets holds ", offsets_, " numbers, expected two"));
    }
    at_ = At::tensor;
    return true;
  }
  bool key(string_t& name) override {
    if (at_ == At::top) {
      if (!names_.insert(name).second) fail(message("the tensor name ", quote(name), " appears twice"));
      name_ = std::move(name);
      at_ = At::top_value;
    } else if (at_ == At::metadata) {
      if (metadata.contains(name)) fail(message("the metadata key ", quote(name), " appears twice"));
      name_ = std::move(name);
      at_ = At::metadata_value;
    } else {
      const auto field = static_cast<std::size_t>(std::find(fields.begin(), fields.end(), name) - fields.begin());
      if (field == fields.size()) fail(message("tensor ", quote(entry_.name), ": unknown field ", quote(name, 40)));
      if (seen_[field]) fail(message("tensor ", quote(entry_.name), ": ", name, " appears twice"));
      seen_[field] = true;
      at_ = field == 0 ? At::dtype : field == 1 ? At::shape_value : At::offsets_value;
    }
    return true;
  }

 private:
  enum class At {
    start,
    top,
    top_value,
    metadata,
    metadata_value,
    tensor,
    dtype,
    shape_value,
    shape,
    offsets_value,
    offsets
  };
  static constexpr std::array<std::string_view, 3> fields{"dtype", "shape", "data_offsets"};

  [[noreturn]] void wrong(std::string_view found) const {
    switch (at_) {
      case At::start:
        fail(message("the header is ", found, ", expected an object"));
      case At::metadata_value:
        fail(message("__metadata__: ", quote(name_), " is ", found, ", expected a string"));
      case At::dtype:
        fail(message("tensor ", quote(entry_.name), ": dtype is ", found, ", expected a string"));
      case At::shape_value:
        fail(message("tensor ", quote(entry_.name), ": shape is ", found, ", expected a list"));
      case At::shape:
        fail(message("tensor ", quote(entry_.name), ": shape holds ", found,
                     ", expected whole numbers from 0 to 2^63-1"));
      case At::offsets_value:
        fail(message("tensor ", quote(entry_.name), ": data_offsets is ", found, ", expected a list of two numbers"));
      case At::offsets:
        fail(message("tensor ", quote(entry_.name), ": data_offsets holds ", found,
                     ", expected whole numbers from 0 to 2^63-1"));
      default:
        fail(message("tensor ", quote(name_), " is ", found, ", expected an object"));
    }
  }

  At at_ = At::start;
  std::string name_;
  SafetensorsEntry entry_;
  int offsets_ = 0;
  std::array<bool, 3> seen_{};
  std::set<std::string> names_;
};

/// Bytes that the shape and dtype of an entry take; nothing when that is out of range.
inline std::optional<std::uint64_t> entry_bytes(const SafetensorsEntry& e) {
  const std::uint64_t element = safetensors_dtype_bytes(e.dtype);
  const std::int64_t count = element_count(e.shape);
  if (count < 0 || static_cast<std::uint64_t>(count) > (std::uint64_t{1} << 62) / element) return std::nullopt;
  return static_cast<std::uint64_t>(count) * element;
}

/// Sizes, order, gaps and overlaps of sorted entries over `data_bytes` bytes of data.
inline void check_safetensors_layout(const std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes,
                                     std::string_view file) {
  std::uint64_t reached = 0;
  const SafetensorsEntry* before = nullptr;
  for (const SafetensorsEntry& e : entries) {
    auto refuse = [&](const auto&... what) {
      throw FormatError(message(file, ": tensor ", quote(e.name), ": ", what...));
    };
    if (e.begin > e.end) refuse("data_offsets [", e.begin, ", ", e.end, "] are not in order");
    if (e.end > data_bytes) {
      refuse("data_offsets [", e.begin, ", ", e.end, "] exceed the ", data_bytes, " bytes of data in the file");
    }
    const std::optional<std::uint64_t> bytes = entry_bytes(e);
    if (!bytes) refuse("the shape ", shape_text(e.shape), " of ", e.dtype, " is out of range");
    if (*bytes != e.end - e.begin) {
      refuse("data_offsets [", e.begin, ", ", e.end, "] hold ", e.end - e.begin, " bytes, but ", e.dtype, " ",
             shape_text(e.shape), " takes ", *bytes);
    }
    if (e.begin < reached) {
      refuse("its data [", e.begin, ", ", e.end, ") overlaps that of ", quote(before->name), ", which ends at ",
             reached);
    }
    if (e.begin > reached) refuse("bytes ", reached, " to ", e.begin, " before its data belong to no tensor");
    reached = e.end;
    before = &e;
  }
  if (reached != data_bytes) {
    throw FormatError(message(file, ": ", data_bytes - reached, " bytes after the last tensor belong to none"));
  }
}
}  // namespace detail

/// Checks a whole file in memory.
/// @param name the file, as errors are to name it.
/// @throws FormatError naming the file and, where there is one, the tensor and the numbers that do not fit.
inline SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view name) {
  if (file.size() < 8) {
    throw FormatError(detail::message(name, ": ", file.size(), " bytes are too few for a safetensors file"));
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < 8; ++i) length |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
  if (length > safetensors_header_limit) {
    throw FormatError(
        detail::message(name, ": the header claims ", length, " bytes, expected at most ", safetensors_header_limit));
  }
  if (length > file.size() - 8) {
    throw FormatError(detail::message(name, ": the header claims ", length, " bytes, but the file holds ",
                                      file.size() - 8, " after its first 8"));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, static_cast<std::size_t>(length));
  if (text.empty() || text.front() != '{')
    throw FormatError(detail::message(name, ": the header does not start with '{'"));
  const std::string where = std::string(name) + ": header";
  detail::SafetensorsHeaderReader reader(text, where);
  reader.parse();

  SafetensorsHeader header{std::move(reader.entries), std::move(reader.metadata), 8 + length};
  std::sort(header.entries.begin(), header.entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  detail::check_safetensors_layout(header.entries, file.size() - header.data_begin, name);
  return header;
}

namespace detail {

inline std::string rows_key(std::string_view tensor) { return message("hymba.rows.", tensor); }
/// What the metadata calls a layout of quantised rows. Its number changes with the layout: files of another are refused.
constexpr std::string_view rows_name(DType t) {
  switch (t) {
    case DType::int4: return "int4.2";
    case DType::rotated_int8: return "int8.rotated";
    case DType::rotated_int4: return "int4.2.rotated";
    default: return "int8";
  }
}
/// The type that the metadata of quantised rows begins with, before its colon.
inline std::optional<DType> rows_dtype(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos) return std::nullopt;
  for (const DType t : {DType::int8, DType::int4, DType::rotated_int8, DType::rotated_int4}) {
    if (text.substr(0, colon) == rows_name(t)) return t;
  }
  return std::nullopt;
}

/// The type and the columns that `text`, the metadata of quantised rows, names; checked against the entry's own rows.
inline std::pair<DType, std::int64_t> quantised_rows(const SafetensorsEntry& e, const std::string& text,
                                                     std::string_view file) {
  std::int64_t cols = 0;
  const std::optional<DType> type = rows_dtype(text);
  const char* const end = text.data() + text.size();
  const bool number = type && std::from_chars(text.data() + text.find(':') + 1, end, cols).ptr == end;
  if (!number || cols < 1 || cols > (std::int64_t{1} << 31)) {
    const char* const former =
        text.starts_with("int4:") ? ", a layout of an earlier version: quantise the model again; " : ", ";
    throw TensorError(message(file, ": tensor ", quote(e.name), " is said to hold ", quote(text, 40), former, "expected ",
                              rows_name(DType::int8), " or ", rows_name(DType::int4),
                              ", .rotated or not, and a number of columns, as in int8:1600"));
  }
  const std::size_t row = dtype_row_bytes(*type, cols);
  if (e.dtype != "U8" || e.shape.size() != 2 || static_cast<std::uint64_t>(e.shape[1]) != row) {
    throw TensorError(message(file, ": tensor ", quote(e.name), " is ", e.dtype, ' ', shape_text(e.shape),
                              ", but rows of ", text, " are U8 with ", row, " bytes each"));
  }
  return {*type, cols};
}

/// An entry and its bytes as a model takes it; see SafetensorsFile::tensor.
inline TensorRef tensor_of(const SafetensorsHeader& header, const SafetensorsEntry& e, std::span<const std::byte> bytes,
                           std::string_view file) {
  if (const auto rows = header.metadata.find(rows_key(e.name)); rows != header.metadata.end()) {
    const auto [type, cols] = quantised_rows(e, rows->second, file);
    return {type, {e.shape[0], cols}, bytes};
  }
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    if (e.dtype == dtype_name(dtype)) return {dtype, e.shape, bytes};
  }
  throw TensorError(message(file, ": tensor ", quote(e.name), " is ", e.dtype, ", expected F32, F16 or BF16"));
}

}  // namespace detail

/// A safetensors file, mapped and checked. Tensors of every dtype of the format; the bytes are the file's own.
class SafetensorsFile {
 public:
  /// @throws IoError when the file cannot be mapped; FormatError when it is malformed.
  explicit SafetensorsFile(const std::filesystem::path& path)
      : name_(path.string()),
        map_(std::make_shared<const FileMap>(path)),
        header_(parse_safetensors(map_->bytes(), name_)) {}

  /// In the order of their data.
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const std::string& name() const { return name_; }
  /// Keeps the bytes alive.
  std::shared_ptr<const FileMap> owner() const { return map_; }

  /// nullptr when there is none of that name.
  const SafetensorsEntry* find(std::string_view name) const {
    for (const SafetensorsEntry& e : header_.entries) {
      if (e.name == name) return &e;
    }
    return nullptr;
  }
  /// The data of one of this file's entries.
  std::span<const std::byte> bytes(const SafetensorsEntry& e) const {
    return map_->bytes().subspan(static_cast<std::size_t>(header_.data_begin + e.begin),
                                 static_cast<std::size_t>(e.end - e.begin));
  }
  /// The tensor as a model takes it: F32, F16, BF16, or quantised rows, which are U8 [rows, bytes of a row] with their
  /// type and number of columns in the metadata ("hymba.rows.NAME": "int8:1600", "int8.rotated:1600" or "int4.2:1600").
  /// @throws TensorError when it is neither, or its rows are not as long as the metadata says.
  TensorRef tensor(const SafetensorsEntry& e) const { return detail::tensor_of(header_, e, bytes(e), name_); }

 private:
  std::string name_;
  std::shared_ptr<const FileMap> map_;
  SafetensorsHeader header_;
};

/// Every tensor of a file; the table keeps the mapping alive.
/// @throws IoError, FormatError; what SafetensorsFile::tensor throws.
inline TensorTable read_safetensors(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  TensorTable table;
  for (const SafetensorsEntry& e : file.entries()) table.tensors.emplace(e.name, file.tensor(e));
  table.owner = file.owner();
  return table;
}

/// A tensor of any dtype of the format, to be written.
struct SafetensorsToWrite {
  std::string name;
  std::string dtype;  ///< as the format spells it: "F32", "I64", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// A tensor to be written, as TensorRef describes one.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Writes a file, whole or not at all. The data starts at a whole cache line; tensors that take whole lines come first,
/// then wider dtypes before narrower ones, so that everything is aligned to its scalar type and most to lines.
/// @param metadata goes into the header's `__metadata__`.
/// @throws IoError when it cannot be written; ArgumentError for a name that appears twice or is reserved or not UTF-8,
/// an unknown dtype, or bytes that do not fit the shape.
inline void write_safetensors(const std::filesystem::path& path, std::span<const SafetensorsToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
  std::vector<const SafetensorsToWrite*> order;
  std::set<std::string_view> names{"__metadata__"};
  for (const SafetensorsToWrite& t : tensors) {
    auto refuse = [&](const auto&... what) {
      throw ArgumentError(detail::message("cannot write tensor ", detail::quote(t.name), ": ", what...));
    };
    if (!names.insert(t.name).second) refuse("the name is taken");
    if (safetensors_dtype_bytes(t.dtype) == 0) refuse("the dtype ", detail::quote(t.dtype), " is not known");
    if (t.shape.size() > safetensors_rank_limit) refuse("more than ", safetensors_rank_limit, " dimensions");
    if (detail::entry_bytes({t.name, t.dtype, t.shape, 0, 0}) != t.bytes.size()) {
      refuse(t.bytes.size(), " bytes are not what ", t.dtype, " ", shape_text(t.shape), " takes");
    }
    order.push_back(&t);
  }
  std::stable_sort(order.begin(), order.end(), [](const SafetensorsToWrite* a, const SafetensorsToWrite* b) {
    const bool lines = a->bytes.size() % 64 == 0, other = b->bytes.size() % 64 == 0;
    return lines != other ? lines : !lines && safetensors_dtype_bytes(a->dtype) > safetensors_dtype_bytes(b->dtype);
  });

  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t end = 0;
  for (const SafetensorsToWrite* t : order) {
    const std::uint64_t begin = end;
    end += t->bytes.size();
    header[t->name] = {{"dtype", t->dtype}, {"shape", t->shape}, {"data_offsets", {begin, end}}};
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::type_error&) {
    throw ArgumentError(detail::message("cannot write ", path.string(), ": a name or the metadata is not UTF-8"));
  }
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  if (text.size() > safetensors_header_limit) {
    throw ArgumentError(detail::message("cannot write ", path.string(), ": the header would exceed ",
                                        safetensors_header_limit, " bytes"));
  }
  std::array<std::byte, 8> length{};
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(text.size() >> (8 * i) & 0xff);

  AtomicFile file(path);
  file.write(length);
  file.write(text);
  for (const SafetensorsToWrite* t : order) file.write(t->bytes);
  file.commit();
}

/// The same for the dtypes of a model.
inline void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
  std::vector<SafetensorsToWrite> all;
  all.reserve(tensors.size());
  std::map<std::string, std::string> notes = metadata;
  for (const TensorToWrite& t : tensors) {
    if (is_quantised(t.dtype) && t.shape.size() == 2) {
      notes[detail::rows_key(t.name)] = detail::message(detail::rows_name(t.dtype), ':', t.shape[1]);
      const auto row = static_cast<std::int64_t>(dtype_row_bytes(t.dtype, t.shape[1]));
      all.push_back({t.name, "U8", {t.shape[0], row}, t.bytes});
    } else {
      all.push_back({t.name, dtype_name(t.dtype), t.shape, t.bytes});
    }
  }
  write_safetensors(path, std::span<const SafetensorsToWrite>(all), notes);
}

HYMBA_NAMESPACE_END
