// SPDX-License-Identifier: Apache-2.0
//
// Training on disk. A checkpoint is a model's folder in the published layout (config.json, model.safetensors in F32,
// and whatever files accompany the model, such as its tokeniser) with one file more:
//
//   optimizer.safetensors   first_moment.NAME and second_moment.NAME for every tensor; in its metadata the number of
//                           steps and tokens done and where the batches stand
//
// Opening the model needs nothing but the folder. A checkpoint is written beside its final name, every file brought to
// the disk, then renamed, and one that is to go is renamed before it is removed: a folder under its final name is
// whole. So a kill, a crash or a full disk at any moment loses no more than the steps since the last one.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/file_map.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_check.hpp>
#include <hymba/io/atomic_file.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/io/open.hpp>
#include <hymba/io/safetensors.hpp>
#include <hymba/train/trainer.hpp>
#include <hymba/train/windows.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {
inline constexpr const char* optimizer_file = "optimizer.safetensors";
inline constexpr std::string_view checkpoint_prefix = "step-";

inline std::filesystem::path checkpoint_name(std::int64_t step) {
  const std::string digits = std::to_string(step);
  return std::string(checkpoint_prefix) + std::string(digits.size() < 8 ? 8 - digits.size() : 0, '0') + digits;
}

/// Every checkpoint in `out`, oldest first: folders of the right name that hold an optimiser's file.
/// @throws IoError when `out` is there and cannot be read.
inline std::vector<std::pair<std::int64_t, std::filesystem::path>> checkpoints_in(const std::filesystem::path& out) {
  namespace fs = std::filesystem;
  std::vector<std::pair<std::int64_t, fs::path>> all;
  std::error_code error;
  if (!fs::exists(out, error)) return all;
  for (fs::directory_iterator it(out, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::int64_t step = -1;
    if (!name.starts_with(checkpoint_prefix)) continue;
    std::from_chars(name.data() + checkpoint_prefix.size(), name.data() + name.size(), step);
    std::error_code unknown;
    if (step < 0 || checkpoint_name(step) != name || !fs::exists(it->path() / optimizer_file, unknown)) continue;
    all.emplace_back(step, it->path());
  }
  if (error) throw IoError(message("cannot read ", out.string(), ": ", error.message()));
  std::sort(all.begin(), all.end());
  return all;
}

/// What a run that was killed left half-written or half-removed.
inline void remove_parts(const std::filesystem::path& out) {
  std::error_code error;
  std::vector<std::filesystem::path> parts;
  for (std::filesystem::directory_iterator it(out, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(checkpoint_prefix) && name.ends_with(".part")) parts.push_back(it->path());
  }
  for (const auto& part : parts) std::filesystem::remove_all(part, error);
}

/// Removes a checkpoint so that it is gone as a whole: another name first.
inline void remove_checkpoint(const std::filesystem::path& folder) {
  std::filesystem::path part = folder;
  part += ".old.part";
  std::error_code error;
  std::filesystem::rename(folder, part, error);
  if (!error) std::filesystem::remove_all(part, error);
}

/// Writes a copy of `from` under `to`, whole or not at all.
inline void copy_file(const std::filesystem::path& from, const std::filesystem::path& to) {
  const FileMap source(from);
  AtomicFile file(to);
  file.write(source.bytes());
  file.commit();
}

template <class V, class P>
std::vector<TensorToWrite> tensors_to_write(Trainer<V, P>& trainer, std::span<const float> block,
                                            const std::string& prefix) {
  std::vector<TensorToWrite> out;
  for (const TrainedTensor& t : trainer.parameters().tensors()) {
    out.push_back(
        {prefix + t.name, DType::f32, t.shape(),
         std::as_bytes(block.subspan(static_cast<std::size_t>(t.offset), static_cast<std::size_t>(t.count())))});
  }
  return out;
}
}  // namespace detail

/// A file copied beside every model: a tokeniser's.
struct Companion {
  std::filesystem::path source;
  std::string name;  ///< in the model's folder
};

/// @throws IoError when one cannot be read; ArgumentError when its name is that of one of the model's own files.
inline void check_companions(std::span<const Companion> companions) {
  for (const Companion& c : companions) {
    for (const std::string_view own :
         {"config.json", detail::weights_file, detail::index_file, detail::optimizer_file}) {
      if (c.name == own) {
        throw ArgumentError(detail::message("cannot put ", c.source.string(), " beside the model as ", c.name,
                                            ": the model's own file has that name"));
      }
    }
    FileMap readable(c.source);
  }
}

/// Where a run stands besides its weights and moments.
struct TrainingState {
  WindowSamplerState sampler;
  std::int64_t context = 0;      ///< of the windows
  std::int64_t file_tokens = 0;  ///< of the file they are cut from
  std::int64_t tokens = 0;       ///< trained on so far
};

/// Writes the present weights as a model's folder: matrices in `matrices` (F32 or BF16), all else in F32, and copies of
/// `companions`.
/// @throws IoError when a file cannot be written or a companion cannot be read; ArgumentError for another type.
template <class V, class P>
void save_trained_model(const std::filesystem::path& folder, Trainer<V, P>& trainer, DType matrices = DType::f32,
                        std::span<const Companion> companions = {}) {
  if (matrices == DType::bf16) {
    trainer.template model<Cpu<Weights::bf16>>().save(folder);
  } else if (matrices == DType::f32) {
    save_checkpoint(folder, trainer.architecture().describe(),
                    detail::tensors_to_write(trainer, trainer.parameters().weights(), ""));
  } else {
    throw ArgumentError(detail::message("a trained model is saved as F32 or BF16, not ", dtype_name(matrices)));
  }
  for (const Companion& c : companions) detail::copy_file(c.source, folder / c.name);
}

/// The newest checkpoint in `out`, if there is one.
/// @throws IoError when `out` is there and cannot be read.
inline std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& out) {
  const auto all = detail::checkpoints_in(out);
  return all.empty() ? std::nullopt : std::optional(all.back().second);
}

/// Writes OUT/step-NNNNNNNN for the trainer's present step, then removes checkpoints of later steps (of a run that went
/// back to an older one) and all but the newest `keep`.
/// @throws DivergedError when a weight is not finite: nothing is written. IoError when something cannot be written;
/// checkpoints that were there are then still there.
template <class V, class P>
std::filesystem::path save_training_checkpoint(const std::filesystem::path& out, Trainer<V, P>& trainer,
                                               const TrainingState& state, std::span<const Companion> companions = {},
                                               int keep = 2) {
  namespace fs = std::filesystem;
  trainer.check_weights();
  const fs::path target = out / detail::checkpoint_name(trainer.steps());
  fs::path part = target, old = target;
  part += ".part";
  old += ".old.part";
  detail::remove_parts(out);
  std::error_code error;
  try {
    save_trained_model(part, trainer, DType::f32, companions);
    std::vector<TensorToWrite> moments = detail::tensors_to_write(trainer, trainer.first_moments(), "first_moment.");
    for (auto& t : detail::tensors_to_write(trainer, trainer.second_moments(), "second_moment.")) {
      moments.push_back(std::move(t));
    }
    write_safetensors(part / detail::optimizer_file, std::span<const TensorToWrite>(moments),
                      {{"format", "hymba-optimizer"},
                       {"version", "1"},
                       {"step", std::to_string(trainer.steps())},
                       {"tokens", std::to_string(state.tokens)},
                       {"context", std::to_string(state.context)},
                       {"file_tokens", std::to_string(state.file_tokens)},
                       {"sampler_seed", std::to_string(state.sampler.seed)},
                       {"sampler_epoch", std::to_string(state.sampler.epoch)},
                       {"sampler_position", std::to_string(state.sampler.position)}});
  } catch (...) {
    fs::remove_all(part, error);
    throw;
  }
  // The same step may be there, when the run went back to an older checkpoint.
  const bool again = fs::exists(target, error);
  if (again) fs::rename(target, old, error);
  fs::rename(part, target, error);
  if (error) {
    const std::string why = error.message();
    if (again) fs::rename(old, target, error);
    throw IoError(detail::message("cannot rename ", part.string(), ": ", why));
  }
  if (again) fs::remove_all(old, error);
  detail::sync_folder(out);
  const auto all = detail::checkpoints_in(out);
  std::size_t kept = 0;
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    const bool stays = it->first <= trainer.steps() && kept < static_cast<std::size_t>(std::max(keep, 1));
    if (stays) {
      ++kept;
    } else {
      detail::remove_checkpoint(it->second);
    }
  }
  return target;
}

/// Continues from a checkpoint: moments, number of steps and where the batches stand. The trainer was made from the
/// same folder's tensors. With the same number of threads every later step has the bits it would have had without the
/// interruption.
/// @throws IoError, FormatError, TensorError: the file is missing, malformed, or another model's. The trainer is then
/// unchanged.
template <class V, class P>
TrainingState resume_training(const std::filesystem::path& folder, Trainer<V, P>& trainer) {
  const std::filesystem::path path = folder / detail::optimizer_file;
  const std::string name = path.string();
  const SafetensorsFile file(path);
  const auto number = [&](const char* key) -> std::uint64_t {
    const auto it = file.metadata().find(key);
    std::uint64_t value = 0;
    if (it != file.metadata().end()) {
      const std::string& text = it->second;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      if (error == std::errc() && end == text.data() + text.size()) return value;
    }
    throw FormatError(detail::message(name, ": the metadata has no number ", key));
  };
  const auto count = [&](const char* key) {
    const std::uint64_t value = number(key);
    if (value <= (std::uint64_t{1} << 62)) return static_cast<std::int64_t>(value);
    throw FormatError(detail::message(name, ": ", key, " is ", value, ", expected at most 2^62"));
  };
  if (const auto it = file.metadata().find("format"); it == file.metadata().end() || it->second != "hymba-optimizer") {
    throw FormatError(detail::message(name, ": the metadata's format is not hymba-optimizer"));
  }
  if (number("version") != 1) {
    throw FormatError(detail::message(name, ": version ", number("version"), ", expected 1"));
  }
  const std::int64_t steps = count("step");
  const TrainingState state{{number("sampler_seed"), number("sampler_epoch"), number("sampler_position")},
                            count("context"),
                            count("file_tokens"),
                            count("tokens")};

  TensorTable table;
  for (const SafetensorsEntry& e : file.entries()) table.tensors.emplace(e.name, file.tensor(e));
  std::vector<ExpectedTensor> expected;
  for (const TrainedTensor& t : trainer.parameters().tensors()) {
    for (const char* prefix : {"first_moment.", "second_moment."}) {
      expected.push_back({prefix + t.name, t.shape()});
    }
  }
  check_tensors(expected, table, name);
  std::vector<float> first(trainer.first_moments().size()), second(first.size());
  for (const TrainedTensor& t : trainer.parameters().tensors()) {
    float* const m = first.data() + t.offset;
    float* const v = second.data() + t.offset;
    detail::to_float(*table.find("first_moment." + t.name), 0, t.count(), m);
    detail::to_float(*table.find("second_moment." + t.name), 0, t.count(), v);
    for (std::int64_t i = 0; i < t.count(); ++i) {
      if (!std::isfinite(m[i]) || !std::isfinite(v[i]) || v[i] < 0) {
        throw FormatError(detail::message(name, ": moments of ", t.name, " at ", i, " are ", m[i], " and ", v[i],
                                          ", expected finite numbers, the second not below 0"));
      }
    }
  }
  std::copy(first.begin(), first.end(), trainer.first_moments().begin());
  std::copy(second.begin(), second.end(), trainer.second_moments().begin());
  trainer.resume_at(steps);
  return state;
}

HYMBA_NAMESPACE_END
