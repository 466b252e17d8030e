// SPDX-License-Identifier: Apache-2.0
//
// A model's folder in the published layout: config.json, and model.safetensors or an index with shards.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/io/atomic_file.hpp>
#include <hymba/io/config.hpp>
#include <hymba/io/json.hpp>
#include <hymba/io/safetensors.hpp>
#include <hymba/variant/description.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// What a folder holds. The tensors are the files' own bytes; the table keeps the mappings alive.
struct Checkpoint {
  Description description;
  TensorTable tensors;
};

namespace detail {
inline constexpr const char* weights_file = "model.safetensors";
inline constexpr const char* index_file = "model.safetensors.index.json";

/// A file name and nothing else: no folder, no drive, no "..".
inline bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name.size() <= 200 && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
                  c == '-';
         });
}

/// The tensors of all shards that an index names.
inline TensorTable read_shards(const std::filesystem::path& folder) {
  const std::filesystem::path index_path = folder / index_file;
  const std::string index_name = index_path.string();
  const FileMap index(index_path);
  const auto text = index.bytes();
  const Json root = parse_json({reinterpret_cast<const char*>(text.data()), text.size()}, index_name,
                               {.bytes = std::size_t{16} << 20, .depth = 8});
  auto fail = [&](const auto&... what) { throw FormatError(message(index_name, ": ", what...)); };
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object()) {
    fail("there is no object \"weight_map\"");
  }
  const Json& map = root["weight_map"];
  std::set<std::string> shards;
  for (const auto& [name, shard] : map.items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get_ref<const std::string&>())) {
      fail("tensor ", quote(name), " is said to be in ", shown(shard), ", expected the name of a file in the folder");
    }
    shards.insert(shard.get<std::string>());
  }

  TensorTable table;
  auto owners = std::make_shared<std::vector<std::shared_ptr<const FileMap>>>();
  for (const std::string& shard : shards) {
    std::error_code error;
    if (!std::filesystem::exists(folder / shard, error)) {
      throw IoError(message(index_name, " names ", shard, ", which is not in the folder"));
    }
    const SafetensorsFile file(folder / shard);
    owners->push_back(file.owner());
    for (const SafetensorsEntry& e : file.entries()) {
      const auto listed = map.find(e.name);
      if (listed == map.end()) fail("tensor ", quote(e.name), " of ", shard, " is not in the weight_map");
      if (table.find(e.name) != nullptr) fail("tensor ", quote(e.name), " is in two shards, ", shard, " the second");
      if (listed->get_ref<const std::string&>() != shard) {
        fail("tensor ", quote(e.name), " is said to be in ", listed->get_ref<const std::string&>(), ", but is in ",
             shard);
      }
      table.tensors.emplace(e.name, file.tensor(e));
    }
  }
  for (const auto& [name, shard] : map.items()) {
    if (table.find(name) == nullptr) {
      fail("tensor ", quote(name), " is said to be in ", shard.get_ref<const std::string&>(), ", but is not");
    }
  }
  table.owner = std::move(owners);
  return table;
}
}  // namespace detail

/// The tensors of a folder: those of model.safetensors where there is one, else those of the shards that
/// model.safetensors.index.json names.
/// @throws IoError for a file that is missing or unreadable; FormatError for a malformed one or an index that does not
/// match its shards; TensorError for a tensor that is not F32, F16 or BF16.
inline TensorTable open_tensors(const std::filesystem::path& folder) {
  std::error_code error;
  if (std::filesystem::exists(folder / detail::weights_file, error))
    return read_safetensors(folder / detail::weights_file);
  if (std::filesystem::exists(folder / detail::index_file, error)) return detail::read_shards(folder);
  throw IoError(detail::message(folder.string(), " holds neither ", detail::weights_file, " nor ", detail::index_file));
}

/// A folder in the published layout, every file checked; whether the tensors fit the description is for
/// `check_tensors`.
/// @throws what `read_config` and `open_tensors` throw.
inline Checkpoint open_checkpoint(const std::filesystem::path& folder) {
  Description description = read_config(folder);
  return {description, open_tensors(folder)};
}

/// How `save_checkpoint` writes.
struct SaveOptions {
  std::uint64_t shard_bytes =
      5'000'000'000;  ///< most bytes of tensors in one file; a larger tensor has a file to itself
};

/// Writes config.json and the tensors, in one file or in shards with an index. Each file appears whole or not at all;
/// what would contradict the new files (the index beside a single file, the single file beside an index) is removed.
/// The folder is made when it is not there.
/// @throws IoError when a file cannot be written; ConfigError when the description breaks a rule or cannot be
/// expressed; ArgumentError when a tensor's bytes do not fit its shape, or names are not unique.
inline void save_checkpoint(const std::filesystem::path& folder, const Description& description,
                            std::span<const TensorToWrite> tensors, const SaveOptions& options = {}) {
  // Of the scalar types alone: quantised rows have no name in config.json, and say themselves what they are.
  constexpr std::array<std::pair<DType, const char*>, 3> torch_names{
      {{DType::f32, "float32"}, {DType::f16, "float16"}, {DType::bf16, "bfloat16"}}};
  std::array<std::uint64_t, torch_names.size()> of_dtype{};
  std::uint64_t total = 0;
  std::vector<std::vector<TensorToWrite>> shards(1);
  std::uint64_t in_shard = 0;
  std::set<std::string_view> names;
  for (const TensorToWrite& t : tensors) {
    if (!names.insert(t.name).second) {
      throw ArgumentError(detail::message("cannot write tensor ", detail::quote(t.name), ": the name is taken"));
    }
    if (!shards.back().empty() && in_shard + t.bytes.size() > options.shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(t);
    in_shard += t.bytes.size();
    total += t.bytes.size();
    for (std::size_t i = 0; i < torch_names.size(); ++i) {
      if (t.dtype == torch_names[i].first) of_dtype[i] += t.bytes.size();
    }
  }
  const auto commonest = std::max_element(of_dtype.begin(), of_dtype.end()) - of_dtype.begin();
  const std::string config = config_text(description, torch_names[static_cast<std::size_t>(commonest)].second);

  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw IoError(detail::message("cannot create ", folder.string(), ": ", error.message()));
  auto write_text = [&](const char* name, std::string_view text) {
    AtomicFile file(folder / name);
    file.write(text);
    file.commit();
  };
  auto remove = [&](const char* name) {
    std::filesystem::remove(folder / name, error);
    if (error) throw IoError(detail::message("cannot remove ", (folder / name).string(), ": ", error.message()));
  };

  const std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (shards.size() == 1) {
    write_safetensors(folder / detail::weights_file, shards[0], metadata);
    remove(detail::index_file);
  } else {
    Json weight_map = Json::object();
    auto five = [](std::size_t n) {
      const std::string digits = std::to_string(n);
      return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
    };
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string name = "model-" + five(i + 1) + "-of-" + five(shards.size()) + ".safetensors";
      write_safetensors(folder / name, shards[i], metadata);
      for (const TensorToWrite& t : shards[i]) weight_map[t.name] = name;
    }
    const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weight_map)}};
    write_text(detail::index_file, index.dump(2) + "\n");
    remove(detail::weights_file);
  }
  write_text("config.json", config);
}

HYMBA_NAMESPACE_END
