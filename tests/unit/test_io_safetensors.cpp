// SPDX-License-Identifier: Apache-2.0
//
// Safetensors: round trips, every way a file can be wrong, and every byte of a good file changed.
#include <hymba/io/safetensors.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "temp_folder.hpp"

using namespace hymba;
using test::file_text, test::Folder, test::write_text;
namespace fs = std::filesystem;

namespace {
std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string length_prefix(std::uint64_t n) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(n >> (8 * i) & 0xff);
  return out;
}
std::string with_header(std::string_view header, std::string_view data = {}) {
  return length_prefix(header.size()) + std::string(header) + std::string(data);
}

std::string refusal_of(std::string_view file) {
  try {
    const SafetensorsHeader header = parse_safetensors(bytes_of(file), "f");
    std::uint64_t end = 0;
    for (const SafetensorsEntry& e : header.entries) {
      CHECK(e.begin == end);
      end = e.end;
    }
    CHECK(header.data_begin + end == file.size());
  } catch (const FormatError& e) {
    const std::string what = e.what();
    CHECK(what.find('\n') == std::string::npos);
    CHECK(what.size() < 500);
    return what;
  }
  return "accepted";
}
bool refuses(std::string_view header, std::string_view data, std::string_view what) {
  const std::string said = refusal_of(with_header(header, data));
  const bool found = said.starts_with("f: ") && said.find(what) != std::string::npos;
  if (!found) MESSAGE(std::string(header) << " -> " << said);
  return found;
}
const std::string four(4, 'x'), eight(8, 'x');
}  // namespace

TEST_CASE("round trip of every dtype, shape and order") {
  const Folder folder;
  std::vector<std::string> data;
  std::vector<SafetensorsToWrite> tensors;
  const std::vector<std::vector<std::int64_t>> shapes{{}, {1}, {3}, {2, 3}, {0}, {4, 0, 2}, {1, 2, 1, 2}};
  data.reserve(200);
  int serial = 0;
  for (const char* dtype : {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32",
                            "I64", "U64", "F64"}) {
    for (const auto& shape : shapes) {
      const auto count = static_cast<std::size_t>(element_count(shape));
      std::string& bytes = data.emplace_back(count * safetensors_dtype_bytes(dtype), '\0');
      for (char& c : bytes) c = static_cast<char>(serial++ * 37);
      tensors.push_back({"t." + std::to_string(tensors.size()) + "\xc3\xa9", dtype, shape, bytes_of(bytes)});
    }
  }
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"note", "\"\n\xe2\x82\xac"}};
  write_safetensors(folder.path / "a.safetensors", tensors, metadata);
  CHECK(folder.files() == 1);

  const SafetensorsFile file(folder.path / "a.safetensors");
  CHECK(file.metadata() == metadata);
  CHECK(file.entries().size() == tensors.size());
  for (const SafetensorsToWrite& t : tensors) {
    const SafetensorsEntry* e = file.find(t.name);
    REQUIRE(e != nullptr);
    CHECK(e->dtype == t.dtype);
    CHECK(e->shape == t.shape);
    const auto read = file.bytes(*e);
    REQUIRE(read.size() == t.bytes.size());
    CHECK(std::equal(read.begin(), read.end(), t.bytes.begin()));
    const auto address = reinterpret_cast<std::uintptr_t>(read.data());
    CHECK((read.empty() || address % safetensors_dtype_bytes(t.dtype) == 0));
  }
  CHECK(file.find("t.0") == nullptr);
  const std::string text = file_text(folder.path / "a.safetensors");
  CHECK(static_cast<unsigned char>(text[0]) % 8 == 0);
}

TEST_CASE("a table keeps the file alive and copies nothing") {
  const Folder folder;
  const std::vector<float> f{1, 2, 3};
  const std::vector<bf16> b{bf16(4.0f), bf16(5.0f)};
  write_safetensors(folder.path / "a",
                    std::vector<TensorToWrite>{{"f", DType::f32, {3, 1}, std::as_bytes(std::span(f))},
                                               {"b", DType::bf16, {2}, std::as_bytes(std::span(b))}});
  TensorTable table = read_safetensors(folder.path / "a");
  // Another file under the name leaves the mapping what it was.
  write_safetensors(folder.path / "a", std::vector<TensorToWrite>{});
  fs::remove(folder.path / "a");
  REQUIRE(table.find("f") != nullptr);
  CHECK(table.find("f")->shape == std::vector<std::int64_t>{3, 1});
  CHECK(std::memcmp(table.find("f")->bytes.data(), f.data(), 12) == 0);
  CHECK(table.find("b")->dtype == DType::bf16);
  CHECK(std::memcmp(table.find("b")->bytes.data(), b.data(), 4) == 0);
  CHECK(table.owner.use_count() == 1);
}

TEST_CASE("a dtype that no model takes is refused by name, and only there") {
  const Folder folder;
  write_safetensors(folder.path / "a", std::vector<SafetensorsToWrite>{{"ids", "I64", {1}, bytes_of(eight)}});
  CHECK(SafetensorsFile(folder.path / "a").entries().size() == 1);
  CHECK_THROWS_WITH_AS(read_safetensors(folder.path / "a"),
                       ((folder.path / "a").string() + ": tensor \"ids\" is I64, expected F32, F16 or BF16").c_str(),
                       TensorError);
}

TEST_CASE("the first eight bytes") {
  for (std::size_t n = 0; n < 8; ++n) CHECK(refusal_of(std::string(n, 'x')).find("too few") != std::string::npos);
  CHECK(refusal_of(length_prefix(0)) == "f: the header does not start with '{'");
  CHECK(refusal_of(length_prefix(3) + "{}") == "f: the header claims 3 bytes, but the file holds 2 after its first 8");
  CHECK(refusal_of(length_prefix(100'000'001) + "{}").find("expected at most 100000000") != std::string::npos);
  CHECK(refusal_of(length_prefix(~std::uint64_t{0}) + "{}").find("18446744073709551615") != std::string::npos);
  CHECK(refusal_of(length_prefix(~std::uint64_t{0} - 7) + "{}").find("expected at most") != std::string::npos);
  CHECK(refusal_of(with_header("{}")) == "accepted");
  CHECK(refusal_of(with_header("{}      ")) == "accepted");
  CHECK(refuses(" {}", "", "does not start with '{'"));
  CHECK(refuses("[]", "", "does not start with '{'"));
  CHECK(refuses("{}", "x", "1 bytes after the last tensor belong to none"));
  CHECK(refuses("{}{}", "", "not valid JSON"));
  CHECK(refuses("{", "", "not valid JSON"));
}

TEST_CASE("headers that say something else than tensors") {
  const std::string rest = R"(,"shape":[1],"data_offsets":[0,4]})";
  CHECK(refusal_of(with_header(R"({"a":{"dtype":"F32")" + rest + "}", four)) == "accepted");
  CHECK(refuses(R"({"a":1})", four, "tensor \"a\" is the number 1, expected an object"));
  CHECK(refuses(R"({"a":null})", four, "is null, expected an object"));
  CHECK(refuses(R"({"a":[]})", four, "is a list, expected an object"));
  CHECK(refuses(R"({"a":"F32"})", four, "is the string \"F32\", expected an object"));
  CHECK(refuses(R"({"a":{}})", four, "dtype is missing"));
  CHECK(refuses(R"({"a":{"dtype":"F32","shape":[1]}})", four, "data_offsets is missing"));
  CHECK(refuses(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", four, "shape is missing"));
  CHECK(refuses(R"({"a":{"dtype":"F33")" + rest + "}", four, "the dtype \"F33\" is not known"));
  CHECK(refuses(R"({"a":{"dtype":"f32")" + rest + "}", four, "the dtype \"f32\" is not known"));
  CHECK(refuses(R"({"a":{"dtype":32)" + rest + "}", four, "dtype is the number 32, expected a string"));
  CHECK(refuses(R"({"a":{"dtype":["F32"])" + rest + "}", four, "dtype is a list"));
  CHECK(refuses(R"({"a":{"dtype":"F32","more":1)" + rest + "}", four, "unknown field \"more\""));
  CHECK(refuses(R"({"a":{"dtype":"F32","dtype":"F32")" + rest + "}", four, "dtype appears twice"));
  CHECK(refuses(R"({"a":{"dtype":"F32","shape":[1])" + rest + "}", four, "shape appears twice"));
  CHECK(refuses(R"({"a":{"dtype":"F32")" + rest + R"(,"a":{"dtype":"F32")" + rest + "}", four,
                "the tensor name \"a\" appears twice"));
  CHECK(refuses(R"({"__metadata__":{},"__metadata__":{}})", "", "appears twice"));
  CHECK(refuses(R"({"__metadata__":1})", "", "\"__metadata__\" is the number 1, expected an object"));
  CHECK(refuses(R"({"__metadata__":{"a":1}})", "", "__metadata__: \"a\" is the number 1, expected a string"));
  CHECK(refuses(R"({"__metadata__":{"a":{"b":"c"}}})", "", "is an object, expected a string"));
  CHECK(refuses(R"({"__metadata__":{"a":"b","a":"c"}})", "", "the metadata key \"a\" appears twice"));
  CHECK(refusal_of(with_header(R"({"__metadata__":{"a":"b","":""}})")) == "accepted");
}

TEST_CASE("shapes and offsets that are no whole numbers, or too many") {
  auto with_shape = [](const std::string& shape) {
    return R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,4]}})";
  };
  auto with_offsets = [](const std::string& offsets) {
    return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)" + offsets + "}}";
  };
  for (const char* wrong : {"-1", "1.0", "1e0", "\"1\"", "null", "true", "[1]", "{}", "18446744073709551616",
                            "9223372036854775808", "18446744073709551615"}) {
    CHECK(refuses(with_shape("[" + std::string(wrong) + "]"), four, "shape holds "));
    CHECK(refuses(with_offsets("[0," + std::string(wrong) + "]"), four, "data_offsets holds "));
  }
  for (const char* wrong : {"1", "null", "\"[1]\"", "{}"}) {
    CHECK(refuses(with_shape(wrong), four, "shape is "));
    CHECK(refuses(with_offsets(wrong), four, "data_offsets is "));
  }
  CHECK(refusal_of(with_header(with_shape("[1,1,1,1,1,1,1,1]"), four)) == "accepted");
  CHECK(refuses(with_shape("[1,1,1,1,1,1,1,1,1]"), four, "more than 8 dimensions"));
  CHECK(refuses(with_offsets("[]"), four, "data_offsets holds 0 numbers, expected two"));
  CHECK(refuses(with_offsets("[0]"), four, "data_offsets holds 1 numbers, expected two"));
  CHECK(refuses(with_offsets("[0,2,4]"), four, "data_offsets holds more than two numbers"));
}

TEST_CASE("numbers that lie") {
  auto one = [](const std::string& shape, const std::string& begin, const std::string& end) {
    return R"({"a":{"dtype":"F32","shape":[)" + shape + R"(],"data_offsets":[)" + begin + "," + end + "]}}";
  };
  CHECK(refuses(one("1", "4", "0"), four, "data_offsets [4, 0] are not in order"));
  CHECK(refuses(one("2", "0", "8"), four, "data_offsets [0, 8] exceed the 4 bytes of data in the file"));
  CHECK(refuses(one("1", "0", "9223372036854775807"), four, "exceed the 4 bytes"));
  CHECK(refuses(one("2", "0", "4"), four, "hold 4 bytes, but F32 [2] takes 8"));
  CHECK(refuses(one("0", "0", "4"), four, "hold 4 bytes, but F32 [0] takes 0"));
  CHECK(refuses(one("4294967296,4294967296", "0", "4"), four, "is out of range"));
  CHECK(refuses(one("4611686018427387904,2", "0", "4"), four, "is out of range"));
  CHECK(refuses(one("4611686018427387904", "0", "4"), four, "is out of range"));
  CHECK(refuses(one("9223372036854775807", "0", "4"), four, "is out of range"));
  CHECK(refuses(one("2305843009213693953", "0", "4"), four, "is out of range"));  // times 4 is 4 modulo 2^64
  CHECK(refuses(one("1", "4", "8"), eight, "bytes 0 to 4 before its data belong to no tensor"));
  CHECK(refuses(one("1", "0", "4"), eight, "4 bytes after the last tensor belong to none"));
}

TEST_CASE("overlaps and gaps between tensors") {
  auto two = [](int a, int b, int c, int d) {
    return R"({"a":{"dtype":"U8","shape":[)" + std::to_string(b - a) + R"(],"data_offsets":[)" + std::to_string(a) +
           "," + std::to_string(b) + R"(]},"b":{"dtype":"U8","shape":[)" + std::to_string(d - c) +
           R"(],"data_offsets":[)" + std::to_string(c) + "," + std::to_string(d) + "]}}";
  };
  CHECK(refusal_of(with_header(two(0, 4, 4, 8), eight)) == "accepted");
  CHECK(refusal_of(with_header(two(4, 8, 0, 4), eight)) == "accepted");
  CHECK(refusal_of(with_header(two(0, 8, 8, 8), eight)) == "accepted");
  CHECK(refusal_of(with_header(two(0, 0, 0, 8), eight)) == "accepted");
  CHECK(refuses(two(0, 5, 4, 8), eight, "its data [4, 8) overlaps that of \"a\", which ends at 5"));
  CHECK(refuses(two(0, 8, 0, 8), eight, "overlaps"));
  CHECK(refuses(two(0, 8, 2, 4), eight, "overlaps"));
  CHECK(refuses(two(0, 8, 4, 4), eight, "overlaps"));
  CHECK(refuses(two(0, 3, 4, 8), eight, "bytes 3 to 4 before its data belong to no tensor"));
  CHECK(refuses(two(0, 4, 4, 7), eight, "1 bytes after the last tensor"));
}

namespace {
/// What reading tensor "a" of a file says; "" when it is read.
std::string tensor_refusal(const std::string& header, std::size_t data_bytes) {
  const Folder folder;
  write_text(folder.path / "f", with_header(header, std::string(data_bytes, '\x01')));
  try {
    const TensorTable table = read_safetensors(folder.path / "f");
    for (const auto& [name, t] : table.tensors) {
      CHECK(t.shape[1] >= 1);
      CHECK(static_cast<std::size_t>(t.shape[0]) * dtype_row_bytes(t.dtype, t.shape[1]) == t.bytes.size());
    }
    return "";
  } catch (const TensorError& e) {
    const std::string what = e.what();
    CHECK(what.find('\n') == std::string::npos);
    CHECK(what.size() < 500);
    CHECK(what.find("tensor \"a\"") != std::string::npos);
    return what;
  }
}
/// A header with U8 [rows, bytes of a row] as tensor "a" and `note` as what it is said to hold.
std::string rows_header(const std::string& note, std::int64_t rows, std::int64_t row, const std::string& dtype = "U8") {
  return R"({"__metadata__":{"hymba.rows.a":")" + note + R"("},"a":{"dtype":")" + dtype + R"(","shape":[)" +
         std::to_string(rows) + "," + std::to_string(row) + R"(],"data_offsets":[0,)" + std::to_string(rows * row) +
         "]}}";
}
}  // namespace

TEST_CASE("quantised rows are written and read back as they are") {
  const Folder folder;
  for (const DType dtype : {DType::int8, DType::int4, DType::rotated_int8, DType::rotated_int4}) {
    for (const std::int64_t cols : {1, 31, 64, 65, 128, 129, 256, 257, 1600, 5000}) {
      const std::size_t size = 3 * dtype_row_bytes(dtype, cols);
      std::vector<std::byte> bytes(size);
      for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + 7);
      const std::vector<float> vector{1, 2};
      write_safetensors(folder.path / "f",
                        std::vector<TensorToWrite>{{"a", dtype, {3, cols}, bytes},
                                                   {"b", DType::f32, {2}, std::as_bytes(std::span(vector))}},
                        {{"format", "pt"}});
      const TensorTable table = read_safetensors(folder.path / "f");
      const TensorRef& a = *table.find("a");
      CHECK(a.dtype == dtype);
      CHECK(a.shape == std::vector<std::int64_t>{3, cols});
      REQUIRE(a.bytes.size() == size);
      CHECK(std::equal(bytes.begin(), bytes.end(), a.bytes.begin()));
      CHECK(reinterpret_cast<std::uintptr_t>(a.bytes.data()) % 64 == 0);  // kernels read whole lines
      CHECK(table.find("b")->dtype == DType::f32);
      // Other readers of the format see bytes, and where to look what they mean.
      const SafetensorsFile file(folder.path / "f");
      CHECK(file.find("a")->dtype == "U8");
      const std::string layout = layout_of(dtype) == DType::int8 ? "int8" : "int4.2";
      CHECK(file.metadata().at("hymba.rows.a") ==
            layout + (is_rotated(dtype) ? ".rotated:" : ":") + std::to_string(cols));
      CHECK(file.metadata().size() == 2);
    }
    // One byte too many or too few, or not a matrix
    const std::vector<std::byte> bytes(2 * dtype_row_bytes(dtype, 100) + 1);
    const std::span<const std::byte> all(bytes);
    for (const auto& wrong : {TensorToWrite{"a", dtype, {2, 100}, all},
                              TensorToWrite{"a", dtype, {2, 100}, all.first(all.size() - 2)},
                              TensorToWrite{"a", dtype, {100}, all.first(all.size() / 2)},
                              TensorToWrite{"a", dtype, {2, 10, 10}, all.first(all.size() - 1)}}) {
      CHECK_THROWS_AS(write_safetensors(folder.path / "g", std::vector<TensorToWrite>{wrong}), ArgumentError);
    }
    CHECK(folder.files() == 1);
  }
}

TEST_CASE("quantised rows that are not what the metadata says") {
  constexpr std::int64_t of8 = 1664, of4 = 896;  // bytes of a row of 1600 columns
  static_assert(Int8Rows::row_bytes(1600) == of8 && Int4Rows::row_bytes(1600) == of4);
  CHECK(tensor_refusal(rows_header("int8:1600", 2, of8), 2 * of8).empty());
  CHECK(tensor_refusal(rows_header("int4.2:1600", 2, of4), 2 * of4).empty());
  CHECK(tensor_refusal(rows_header("int8.rotated:1600", 2, of8), 2 * of8).empty());
  CHECK(tensor_refusal(rows_header("int4.2.rotated:1600", 2, of4), 2 * of4).empty());
  CHECK(tensor_refusal(rows_header("int8:0001600", 2, of8), 2 * of8).empty());

  const auto said = [](const std::string& note) { return tensor_refusal(rows_header(note, 2, of8), 2 * of8); };
  const auto contains = [](const std::string& text, std::string_view part) {
    const bool found = text.find(part) != std::string::npos;
    if (!found) MESSAGE(std::string(part) << " is not in: " << text);
    return found;
  };
  for (const char* note :
       {"", ":", "int8", "int8:", ":1600", "int8 1600", "int8:-1600", "int8:+1600", "int8: 1600", "int8:1600 ",
        "int8:0", "int8:-0", "int8:1600x", "int8:16e2", "int8:0x640", "int8:1600.0", "int8:1600:2", "int8::1600",
        "int2:1600", "int88:1600", "int4:1600", "int4.1:1600", "int4.2.:1600", "int8.2:1600", "int8.rotated", "int8.rotated:", "int8.rotated.:1600", "int8.:1600",
        "INT8:1600", "U8:1600", "F32:1600", "int8:2147483649", "int8:9223372036854775807",
        "int8:9223372036854775808", "int8:18446744073709551616", "int8:99999999999999999999999999", "int8:-1",
        "int8:-9223372036854775808", "int8:1600\\u0000", "int8:\\n1600"}) {
    CHECK(contains(said(note), "expected int8 or int4.2, .rotated or not, and a number of columns, as in int8:1600"));
  }
  // Four bits as they were laid out before, whose rows may be as long
  CHECK(contains(tensor_refusal(rows_header("int4:1600", 2, of4), 2 * of4),
                 "is said to hold \"int4:1600\", a layout of an earlier version: quantise the model again; expected"));
  CHECK(contains(said(std::string(300, '1')), "is said to hold \"1111"));
  CHECK(contains(said("int8:" + std::string(300, '1')), "..."));
  // Columns whose rows are longer or shorter
  for (const char* note : {"int8:1", "int8:1536", "int8:1601", "int8:2147483648", "int4.2:1600"}) {
    CHECK(contains(said(note), "is U8 [2, 1664], but rows of "));
  }
  CHECK(contains(tensor_refusal(rows_header("int8:1600", 2, of4), 2 * of4), "are U8 with 1664 bytes each"));
  CHECK(contains(tensor_refusal(rows_header("int8:1600", 1, 2 * of8), 2 * of8), "is U8 [1, 3328]"));
  CHECK(contains(tensor_refusal(rows_header("int8:1600", 2, of8 - 1), 2 * (of8 - 1)), "is U8 [2, 1663]"));
  // As many bytes in another type, or other than two dimensions
  CHECK(contains(tensor_refusal(rows_header("int8:1600", 2, of8, "I8"), 2 * of8), "is I8 [2, 1664]"));
  CHECK(contains(tensor_refusal(rows_header("int8:1600", 2, of8, "BOOL"), 2 * of8), "is BOOL"));
  const std::string note = R"({"__metadata__":{"hymba.rows.a":"int8:1600"},"a":{"dtype":)";
  const std::string end = R"(,"data_offsets":[0,3328]}})";
  for (const char* entry : {R"("U8","shape":[3328])", R"("U8","shape":[2,1664,1])", R"("U8","shape":[1,2,1664])",
                            R"("U8","shape":[1664,2])", R"("F32","shape":[1,832])", R"("F16","shape":[1,1664])",
                            R"("BF16","shape":[1664])"}) {
    CHECK(contains(tensor_refusal(note + entry + end, 3328), "but rows of int8:1600 are U8 with 1664 bytes each"));
  }
  CHECK(contains(tensor_refusal(note + R"("U8","shape":[],"data_offsets":[0,1]}})", 1), "is U8 []"));
}

TEST_CASE("metadata of quantised rows counts for the tensor it names alone") {
  const auto with = [](const std::string& metadata) {
    return R"({"__metadata__":)" + metadata + R"(,"a":{"dtype":"U8","shape":[1,128],"data_offsets":[0,128]}})";
  };
  CHECK(tensor_refusal(with(R"({"hymba.rows.a":"int8:64"})"), 128).empty());
  // Of a tensor that is not there it says nothing, whatever it says.
  CHECK(tensor_refusal(with(R"({"hymba.rows.a":"int8:64","hymba.rows.b":"int8:64","hymba.rows.":"x"})"), 128).empty());
  for (const char* other : {"{}", R"({"hymba.rows.b":"int8:64"})", R"({"hymba.rows.":"int8:64"})",
                            R"({"hymba.rows.a ":"int8:64"})", R"({"hymba.rows.A":"int8:64"})", R"({"a":"int8:64"})",
                            R"({"hymba.rows.hymba.rows.a":"int8:64"})"}) {
    CHECK(tensor_refusal(with(other), 128).find("is U8, expected F32, F16 or BF16") != std::string::npos);
  }
  // Twice is once too often, as for every key.
  CHECK(refuses(with(R"({"hymba.rows.a":"int8:64","hymba.rows.a":"int4.2:128"})"), std::string(128, 'x'),
                "the metadata key \"hymba.rows.a\" appears twice"));
  CHECK(refuses(with(R"({"hymba.rows.a":64})"), std::string(128, 'x'), "is the number 64, expected a string"));
}

TEST_CASE("a file of quantised rows with any byte of its header changed is refused or valid, never more") {
  const std::string good = rows_header("int4.2:129", 2, static_cast<std::int64_t>(Int4Rows::row_bytes(129)));
  const std::size_t size = 2 * Int4Rows::row_bytes(129);
  const std::string data(size, 'x');
  const auto read = [&](const std::string& header) {
    const std::string file = with_header(header, data);
    try {
      const SafetensorsHeader parsed = parse_safetensors(bytes_of(file), "f");
      for (const SafetensorsEntry& e : parsed.entries) {
        const auto bytes = bytes_of(file).subspan(static_cast<std::size_t>(parsed.data_begin + e.begin),
                                                  static_cast<std::size_t>(e.end - e.begin));
        const TensorRef t = detail::tensor_of(parsed, e, bytes, "f");
        if (!is_quantised(t.dtype)) continue;
        REQUIRE(t.shape.size() == 2);
        CHECK(static_cast<std::size_t>(t.shape[0]) * dtype_row_bytes(t.dtype, t.shape[1]) == bytes.size());
      }
      return true;
    } catch (const FormatError&) {
    } catch (const TensorError&) {
    }
    return false;
  };
  REQUIRE(read(good));
  int accepted = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = good;
      changed[at] = static_cast<char>(value);
      accepted += read(changed) ? 1 : 0;
    }
  }
  CHECK(accepted < static_cast<int>(good.size()) + 300);  // each byte as it was, and columns that take as many bytes
}

TEST_CASE("a file cut short anywhere is refused") {
  const std::string good = file_text(std::string(HYMBA_TEST_DATA) + "/golden/hymba_tiny/golden.safetensors");
  REQUIRE(refusal_of(good) == "accepted");
  const std::string small =
      with_header(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", eight);
  REQUIRE(refusal_of(small) == "accepted");
  for (std::size_t n = 0; n < small.size(); ++n) CHECK(refusal_of(small.substr(0, n)) != "accepted");
  for (std::size_t n = 0; n < good.size(); n += n < 300 ? 1 : 97) CHECK(refusal_of(good.substr(0, n)) != "accepted");
}

TEST_CASE("a file with any byte changed is refused or valid, never more") {
  const std::string good = with_header(
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[],"data_offsets":[8,10]}})",
      eight + "yz");
  REQUIRE(refusal_of(good) == "accepted");
  int accepted = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = good;
      changed[at] = static_cast<char>(value);
      accepted += refusal_of(changed) == "accepted" ? 1 : 0;
    }
  }
  CHECK(accepted > 10 * 256);  // the data's own bytes, at least
  // Two bytes at once, and pieces cut out or doubled.
  std::mt19937 random(1);
  auto any = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  for (int i = 0; i < 20000; ++i) {
    std::string changed = good;
    changed[any(changed.size())] = static_cast<char>(random());
    changed[any(changed.size())] = static_cast<char>(random());
    const std::size_t from = any(changed.size());
    if (i % 3 == 1) changed.erase(from, any(9));
    if (i % 3 == 2) changed.insert(any(changed.size()), changed.substr(from, any(20)));
    refusal_of(changed);
  }
}

TEST_CASE("writing refuses what would not be read back") {
  const Folder folder;
  const fs::path path = folder.path / "a";
  auto refused = [&](std::vector<SafetensorsToWrite> tensors, std::map<std::string, std::string> metadata = {}) {
    try {
      write_safetensors(path, tensors, metadata);
    } catch (const ArgumentError&) {
      return !fs::exists(path) && folder.files() == 0;
    }
    return false;
  };
  CHECK(refused({{"a", "F32", {2}, bytes_of(four)}}));
  CHECK(refused({{"a", "F32", {-1}, bytes_of(four)}}));
  CHECK(refused({{"a", "F32", {std::numeric_limits<std::int64_t>::max()}, bytes_of(four)}}));
  CHECK(refused({{"a", "F31", {1}, bytes_of(four)}}));
  CHECK(refused({{"a", "F32", {1, 1, 1, 1, 1, 1, 1, 1, 1}, bytes_of(four)}}));
  CHECK(refused({{"a", "F32", {1}, bytes_of(four)}, {"a", "F32", {1}, bytes_of(four)}}));
  CHECK(refused({{"__metadata__", "F32", {1}, bytes_of(four)}}));
  CHECK(refused({{"\xff", "F32", {1}, bytes_of(four)}}));
  CHECK(refused({}, {{"k", "\xc3("}}));
}

TEST_CASE("a file appears whole or not at all") {
  const Folder folder;
  CHECK_THROWS_AS(write_safetensors(folder.path / "none" / "a", std::vector<TensorToWrite>{}), IoError);
  CHECK_THROWS_AS(SafetensorsFile(folder.path / "a"), IoError);
  CHECK_THROWS_AS(SafetensorsFile(folder.path), IoError);
  write_text(folder.path / "a", "before");
  {
    AtomicFile file(folder.path / "a");
    file.write("after");
    CHECK(file_text(folder.path / "a") == "before");
    CHECK(folder.files() == 2);
  }
  CHECK(file_text(folder.path / "a") == "before");
  CHECK(folder.files() == 1);
  {
    AtomicFile file(folder.path / "a");
    file.write("after");
    file.commit();
  }
  CHECK(file_text(folder.path / "a") == "after");
  CHECK(folder.files() == 1);
  // A name that a folder has taken meanwhile cannot be replaced; nothing is left behind.
  {
    AtomicFile file(folder.path / "d");
    fs::create_directories(folder.path / "d" / "e");
    CHECK_THROWS_AS(file.commit(), IoError);
  }
  CHECK_THROWS_AS(AtomicFile(folder.path / "d"), IoError);
  CHECK_THROWS_WITH_AS(AtomicFile("/dev/null"), "cannot write /dev/null: it exists and is not a regular file", IoError);
  CHECK(folder.files() == 2);
  write_text(folder.path / "empty", "");
  CHECK_THROWS_AS(SafetensorsFile(folder.path / "empty"), FormatError);
}
