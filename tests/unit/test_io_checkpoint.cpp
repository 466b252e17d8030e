// SPDX-License-Identifier: Apache-2.0
//
// Folders: the golden checkpoints open and fit their configuration, shards are checked against their index, what is
// saved opens again.
#include <hymba/core/tensor_check.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/variant/presets.hpp>
#include <hymba/variant/tensors.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

using namespace hymba;
namespace fs = std::filesystem;

namespace {
const fs::path golden = fs::path(HYMBA_TEST_DATA) / "golden";

struct Folder {
  fs::path path;
  Folder() {
    static int serial = 0;
    path = fs::temp_directory_path() /
           ("hymba_ckpt_" + std::to_string(std::random_device{}()) + "_" + std::to_string(serial++));
    fs::create_directories(path);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

void write_text(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

std::vector<ExpectedTensor> expected_tensors(const Description& d) {
  const auto a = architecture_from<DynamicHymba>(d);
  std::vector<ExpectedTensor> out;
  auto add = [&](const std::string& prefix, const TensorSpec& t) {
    out.push_back({prefix + t.name, {t.dims.begin(), t.dims.begin() + t.rank}});
  };
  for_each_model_tensor(a, [&](const TensorSpec& t) { add("", t); });
  for (int i = 0; i < a.layers; ++i) {
    for_each_layer_tensor(a, i, [&](Part, const TensorSpec& t) { add(layer_prefix(i), t); });
  }
  return out;
}

std::vector<TensorToWrite> to_write(const TensorTable& table) {
  std::vector<TensorToWrite> out;
  for (const auto& [name, t] : table.tensors) out.push_back({name, t.dtype, t.shape, t.bytes});
  return out;
}

bool equal(const TensorTable& a, const TensorTable& b) {
  return std::equal(
      a.tensors.begin(), a.tensors.end(), b.tensors.begin(), b.tensors.end(), [](const auto& x, const auto& y) {
        return x.first == y.first && x.second.dtype == y.second.dtype && x.second.shape == y.second.shape &&
               std::equal(x.second.bytes.begin(), x.second.bytes.end(), y.second.bytes.begin(), y.second.bytes.end());
      });
}

template <class Exception>
std::string refusal(const fs::path& folder) {
  try {
    open_checkpoint(folder);
  } catch (const Exception& e) {
    const std::string what = e.what();
    CHECK(what.find('\n') == std::string::npos);
    return what;
  } catch (const Error& e) {
    return std::string("another: ") + e.what();
  }
  return "accepted";
}

/// A folder with a config and two shards, which a test then spoils.
struct Sharded : Folder {
  std::vector<float> numbers = std::vector<float>(8, 1.5f);
  Sharded() {
    fs::copy_file(golden / "hymba_tiny" / "config.json", path / "config.json");
    write_shard("one.safetensors", {"a", "b"});
    write_shard("two.safetensors", {"c"});
    write_index(R"({"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})");
  }
  void write_shard(const char* name, const std::vector<std::string>& tensors) {
    std::vector<TensorToWrite> out;
    for (const std::string& t : tensors) out.push_back({t, DType::f32, {8}, std::as_bytes(std::span(numbers))});
    write_safetensors(path / name, out);
  }
  void write_index(std::string_view map) {
    write_text(path / "model.safetensors.index.json",
               "{\"metadata\": {\"total_size\": 96}, \"weight_map\": " + std::string(map) + "}");
  }
};
}  // namespace

TEST_CASE("every golden checkpoint holds exactly the tensors its configuration asks for") {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(golden)) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    ++count;
    const Checkpoint c = open_checkpoint(entry.path());
    INFO(entry.path().string());
    CHECK_NOTHROW(check_tensors(expected_tensors(c.description), c.tensors, entry.path().string()));
  }
  CHECK(count >= 10);
}

TEST_CASE("a checkpoint written back is the same, in one file or in many") {
  for (const char* name : {"hymba_tiny", "mixed_dtypes", "sharded", "ssm_only", "attention_only"}) {
    const Folder folder;
    const Checkpoint c = open_checkpoint(golden / name);
    const std::vector<TensorToWrite> tensors = to_write(c.tensors);
    auto files = [&] {
      std::size_t shards = 0;
      for (const auto& e : fs::directory_iterator(folder.path))
        shards += e.path().extension() == ".safetensors" ? 1 : 0;
      return shards;
    };
    save_checkpoint(folder.path / "new", c.description, tensors);
    CHECK(fs::exists(folder.path / "new" / "model.safetensors"));
    CHECK(equal(open_checkpoint(folder.path / "new").tensors, c.tensors));

    save_checkpoint(folder.path, c.description, tensors, {.shard_bytes = 5000});
    CHECK(files() > 2);
    CHECK(!fs::exists(folder.path / "model.safetensors"));
    const Checkpoint again = open_checkpoint(folder.path);
    CHECK(equal(again.tensors, c.tensors));
    CHECK(same_architecture(again.description, c.description));

    // From what is mapped onto itself, back to one file: the index goes.
    save_checkpoint(folder.path, again.description, to_write(again.tensors));
    CHECK(!fs::exists(folder.path / "model.safetensors.index.json"));
    const Checkpoint single = open_checkpoint(folder.path);
    CHECK(equal(single.tensors, c.tensors));
    save_checkpoint(folder.path, single.description, to_write(single.tensors), {.shard_bytes = 1});
    CHECK(!fs::exists(folder.path / "model.safetensors"));
    CHECK(equal(open_checkpoint(folder.path).tensors, c.tensors));
    for (const auto& e : fs::directory_iterator(folder.path)) {
      CHECK(e.path().filename().string().find(".tmp") == std::string::npos);
    }
  }
  const Folder folder;
  const Checkpoint c = open_checkpoint(golden / "bf16_checkpoint");
  save_checkpoint(folder.path, c.description, to_write(c.tensors));
  std::ifstream in(folder.path / "config.json");
  CHECK(Json::parse(in)["torch_dtype"] == "bfloat16");
}

TEST_CASE("saving refuses before it writes") {
  const Folder folder;
  const Checkpoint c = open_checkpoint(golden / "hymba_tiny");
  Description broken = c.description;
  broken.kv_heads = 3;
  CHECK_THROWS_AS(save_checkpoint(folder.path / "x", broken, to_write(c.tensors)), ConfigError);
  std::vector<TensorToWrite> twice = to_write(c.tensors);
  twice.push_back(twice.front());
  CHECK_THROWS_AS(save_checkpoint(folder.path / "x", c.description, twice, {.shard_bytes = 1}), ArgumentError);
  CHECK(!fs::exists(folder.path / "x"));
  write_text(folder.path / "file", "");
  CHECK_THROWS_AS(save_checkpoint(folder.path / "file" / "x", c.description, to_write(c.tensors)), IoError);
}

TEST_CASE("folders that lack something") {
  const Folder folder;
  CHECK(refusal<IoError>(folder.path / "none").find("config.json") != std::string::npos);
  CHECK(refusal<IoError>(folder.path).find("config.json") != std::string::npos);
  fs::copy_file(golden / "hymba_tiny" / "config.json", folder.path / "config.json");
  CHECK(refusal<IoError>(folder.path) ==
        folder.path.string() + " holds neither model.safetensors nor model.safetensors.index.json");
  write_text(folder.path / "model.safetensors", "short");
  CHECK(refusal<FormatError>(folder.path).find("model.safetensors: 5 bytes are too few") != std::string::npos);
  fs::remove(folder.path / "config.json");
  write_text(folder.path / "config.json", "{}");
  CHECK(refusal<ConfigError>(folder.path).find("config.json: the key vocab_size is missing") != std::string::npos);
}

TEST_CASE("shards and their index") {
  {
    const Sharded s;
    CHECK(open_tensors(s.path).tensors.size() == 3);
  }
  auto says = [](const Sharded& s, std::string_view what) {
    const std::string said = refusal<FormatError>(s.path);
    INFO(said);
    CHECK(said.find("model.safetensors.index.json") != std::string::npos);
    CHECK(said.find(what) != std::string::npos);
  };
  for (const char* name : {"../one.safetensors", "/one.safetensors", "x/one.safetensors", "..", ".", "", ".hidden",
                           "a\\\\b", "C:one", "one\\u0000.safetensors", "one\\n", "\\u00e9"}) {
    Sharded s;
    s.write_index(R"({"a": ")" + std::string(name) + R"(", "b": "one.safetensors", "c": "two.safetensors"})");
    says(s, "expected the name of a file in the folder");
  }
  for (const char* shard : {"1", "null", "[\"one.safetensors\"]", "{}"}) {
    Sharded s;
    s.write_index(R"({"a": )" + std::string(shard) + "}");
    says(s, "expected the name of a file in the folder");
  }
  {
    Sharded s;
    s.write_index(R"({"a": "one.safetensors", "b": "one.safetensors"})");
    CHECK(open_tensors(s.path).tensors.size() == 2);  // a file that no tensor names is not looked at
    s.write_index(R"({"a": "one.safetensors", "c": "two.safetensors"})");
    says(s, "tensor \"b\" of one.safetensors is not in the weight_map");
    s.write_index(R"({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})");
    says(s, "tensor \"b\" is said to be in two.safetensors, but is in one.safetensors");
    s.write_index(
        R"({"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors", "d": "two.safetensors"})");
    says(s, "tensor \"d\" is said to be in two.safetensors, but is not");
    s.write_index(R"({"a": "one.safetensors", "b": "one.safetensors", "a": "two.safetensors"})");
    says(s, "the key \"a\" appears twice");
    s.write_index(R"({"a": "one.safetensors", "b": "one.safetensors", "c": "three.safetensors"})");
    CHECK(refusal<IoError>(s.path).find("names three.safetensors, which is not in the folder") != std::string::npos);
  }
  {
    Sharded s;
    s.write_shard("two.safetensors", {"c", "b"});
    says(s, "tensor \"b\" is in two shards, two.safetensors the second");
    fs::resize_file(s.path / "two.safetensors", 100);
    CHECK(refusal<FormatError>(s.path).find("two.safetensors: ") != std::string::npos);
  }
  for (const char* index : {"[]", "1", "{}", "{\"weight_map\": []}", "{\"weight_map\": null}"}) {
    Sharded s;
    write_text(s.path / "model.safetensors.index.json", index);
    says(s, "there is no object \"weight_map\"");
  }
  {
    Sharded s;
    write_text(s.path / "model.safetensors.index.json", "{\"weight_map\": {");
    says(s, "not valid JSON");
    s.write_index("{}");
    CHECK(open_tensors(s.path).tensors.empty());
  }
}

TEST_CASE("check_tensors tells missing, unexpected and misshaped tensors apart") {
  const std::vector<float> data(6);
  const auto bytes = std::as_bytes(std::span(data));
  TensorTable table;
  table.tensors["a"] = {DType::f32, {2, 3}, bytes};
  table.tensors["b"] = {DType::f32, {6}, bytes};
  auto said = [&](const std::vector<ExpectedTensor>& expected) {
    try {
      check_tensors(expected, table, "x");
    } catch (const TensorError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(said({{"a", {2, 3}}, {"b", {6}}}) == "");
  CHECK(said({{"a", {2, 3}}, {"b", {6}}, {"c", {1}}}) == "x: 1 tensor is missing: c");
  CHECK(said({{"a", {2, 3}}, {"b", {6}}, {"g", {}}, {"f", {}}, {"e", {}}, {"d", {}}, {"c", {}}, {"h", {}}}) ==
        "x: 6 tensors are missing: g, f, e, d, c, ...");
  CHECK(said({{"a", {2, 3}}}) == "x: 1 tensor is unexpected: b");
  CHECK(said({}) == "x: 2 tensors are unexpected: a, b");
  CHECK(said({{"a", {3, 2}}, {"b", {6}}}) == "x: tensor \"a\" has shape [2, 3], expected [3, 2]");
  CHECK(said({{"a", {2, 3}}, {"b", {6, 1}}}) == "x: tensor \"b\" has shape [6], expected [6, 1]");
  table.tensors["b"].bytes = bytes.first(23);
  CHECK(said({{"a", {2, 3}}, {"b", {6}}}) == "x: tensor \"b\" has 23 bytes, which is not what F32 [6] takes");
  table.tensors["b"] = {DType::bf16, {-6}, bytes};
  CHECK(said({{"a", {2, 3}}, {"b", {-6}}}).find("is not what") != std::string::npos);
  table.tensors.erase("b");
  table.tensors["b\n\x1b"] = {DType::f32, {6}, bytes};
  CHECK(said({{"a", {2, 3}}}) == "x: 1 tensor is unexpected: b\\x0a\\x1b");
  CHECK(element_count(std::vector<std::int64_t>{}) == 1);
  CHECK(element_count(std::vector<std::int64_t>{std::int64_t{1} << 62}) == std::int64_t{1} << 62);
  CHECK(element_count(std::vector<std::int64_t>{std::int64_t{1} << 62, 2}) == -1);
  CHECK(element_count(std::vector<std::int64_t>{std::int64_t{1} << 62, 2, 0}) == -1);
  CHECK(element_count(std::vector<std::int64_t>{0, std::int64_t{1} << 62, 2}) == 0);
}
