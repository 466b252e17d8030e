// SPDX-License-Identifier: Apache-2.0
//
// Training on disk. A checkpoint is a model's folder in the published layout (config.json, model.safetensors in F32,
// and whatever files accompany the model, such as its tokeniser) with one file more:
//
//   optimizer.safetensors   first_moment.NAME and second_moment.NAME for every tensor; in its metadata the number of
//                           steps done and where the batches stand
//
// Opening the model needs nothing but the folder. A checkpoint is written beside its final name, every file brought to
// the disk, then renamed: a folder under its final name is whole. So a kill, a crash or a full disk at any moment loses
// no more than the steps since the last one.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/io/safetensors.hpp>
#include <hymba/train/trainer.hpp>
#include <hymba/train/windows.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {
inline constexpr const char* optimizer_file = "optimizer.safetensors";
inline constexpr std::string_view checkpoint_prefix = "step-";

inline std::filesystem::path checkpoint_name(std::int64_t step) {
  const std::string digits = std::to_string(step);
  return std::string(checkpoint_prefix) + std::string(digits.size() < 8 ? 8 - digits.size() : 0, '0') + digits;
}

/// The step in a checkpoint folder's name; -1 for any other name.
inline std::int64_t step_of(std::string_view name) {
  if (!name.starts_with(checkpoint_prefix)) return -1;
  name.remove_prefix(checkpoint_prefix.size());
  std::int64_t step = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  return error == std::errc() && end == name.data() + name.size() ? step : -1;
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
    out.push_back({prefix + t.name,
                   DType::f32,
                   {t.spec.dims.begin(), t.spec.dims.begin() + t.spec.rank},
                   std::as_bytes(block.subspan(static_cast<std::size_t>(t.offset), static_cast<std::size_t>(t.count())))});
  }
  return out;
}
}  // namespace detail

/// Writes the present weights as a model's folder: matrices in `matrices` (F32 or BF16), all else in F32, and copies of
/// `companions` (a tokeniser's files).
/// @throws IoError when a file cannot be written or a companion cannot be read.
template <class V, class P>
void save_trained_model(const std::filesystem::path& folder, Trainer<V, P>& trainer, DType matrices = DType::f32,
                        std::span<const std::filesystem::path> companions = {}) {
  if (matrices == DType::bf16) {
    trainer.template model<Cpu<Weights::bf16>>().save(folder);
  } else if (matrices == DType::f32) {
    save_checkpoint(folder, trainer.architecture().describe(),
                    detail::tensors_to_write(trainer, trainer.parameters().weights(), ""));
  } else {
    throw ArgumentError(detail::message("a trained model is saved as F32 or BF16, not ", dtype_name(matrices)));
  }
  for (const auto& from : companions) detail::copy_file(from, folder / from.filename());
}

/// The newest complete checkpoint in `out`, if there is one.
inline std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& out) {
  std::optional<std::filesystem::path> best;
  std::int64_t newest = -1;
  std::error_code error;
  for (std::filesystem::directory_iterator it(out, error), end; !error && it != end; it.increment(error)) {
    const std::int64_t step = detail::step_of(it->path().filename().string());
    if (step > newest) newest = step, best = it->path();
  }
  return best;
}

/// Writes OUT/step-NNNNNNNN for the trainer's present step, then removes all but the newest `keep` checkpoints.
/// @throws IoError when something cannot be written; checkpoints that were there are then still there.
template <class V, class P>
std::filesystem::path save_training_checkpoint(const std::filesystem::path& out, Trainer<V, P>& trainer,
                                               const WindowSamplerState& sampler,
                                               std::span<const std::filesystem::path> companions = {}, int keep = 2) {
  namespace fs = std::filesystem;
  const fs::path target = out / detail::checkpoint_name(trainer.steps());
  fs::path part = target;
  part += ".part";
  std::error_code error;
  fs::remove_all(part, error);  // of a run that was killed
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
                       {"sampler_seed", std::to_string(sampler.seed)},
                       {"sampler_epoch", std::to_string(sampler.epoch)},
                       {"sampler_position", std::to_string(sampler.position)}});
  } catch (...) {
    fs::remove_all(part, error);
    throw;
  }
  fs::remove_all(target, error);  // the same step, reached again after going back to an older checkpoint
  fs::rename(part, target, error);
  if (error) throw IoError(detail::message("cannot rename ", part.string(), ": ", error.message()));
  detail::sync_folder(out);

  std::vector<std::pair<std::int64_t, fs::path>> all;
  for (fs::directory_iterator it(out, error), end; !error && it != end; it.increment(error)) {
    const std::int64_t step = detail::step_of(it->path().filename().string());
    if (step >= 0) all.emplace_back(step, it->path());
  }
  std::sort(all.begin(), all.end());
  for (std::size_t i = 0; i + static_cast<std::size_t>(std::max(keep, 1)) < all.size(); ++i) {
    if (all[i].first != trainer.steps()) fs::remove_all(all[i].second, error);
  }
  return target;
}

/// Continues from a checkpoint: moments, number of steps and where the batches stand. The trainer was made from the
/// same folder's tensors. On one thread every later step has the bits it would have had without the interruption.
/// @throws IoError, FormatError, TensorError: the file is missing, malformed, or another model's.
template <class V, class P>
WindowSamplerState resume_training(const std::filesystem::path& folder, Trainer<V, P>& trainer) {
  const std::filesystem::path path = folder / detail::optimizer_file;
  const SafetensorsFile file(path);
  const auto number = [&](const char* key) -> std::uint64_t {
    const auto it = file.metadata().find(key);
    std::uint64_t value = 0;
    if (it != file.metadata().end()) {
      const std::string& text = it->second;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      if (error == std::errc() && end == text.data() + text.size()) return value;
    }
    throw FormatError(detail::message(path.string(), ": the metadata has no number ", key));
  };
  if (const auto it = file.metadata().find("format"); it == file.metadata().end() || it->second != "hymba-optimizer") {
    throw FormatError(detail::message(path.string(), ": the metadata's format is not hymba-optimizer"));
  }
  if (number("version") != 1) {
    throw FormatError(detail::message(path.string(), ": version ", number("version"), ", expected 1"));
  }
  const std::uint64_t steps = number("step");
  if (steps > (std::uint64_t{1} << 62)) throw FormatError(detail::message(path.string(), ": step ", steps, " is out of range"));

  TensorTable table = read_safetensors(path);
  std::vector<ExpectedTensor> expected;
  for (const TrainedTensor& t : trainer.parameters().tensors()) {
    for (const char* prefix : {"first_moment.", "second_moment."}) {
      expected.push_back({prefix + t.name, {t.spec.dims.begin(), t.spec.dims.begin() + t.spec.rank}});
    }
  }
  check_tensors(expected, table, path.string());
  for (const TrainedTensor& t : trainer.parameters().tensors()) {
    detail::to_float(*table.find("first_moment." + t.name), 0, t.count(), trainer.first_moments().data() + t.offset);
    detail::to_float(*table.find("second_moment." + t.name), 0, t.count(), trainer.second_moments().data() + t.offset);
  }
  trainer.resume_at(static_cast<std::int64_t>(steps));
  return {number("sampler_seed"), number("sampler_epoch"), number("sampler_position")};
}

HYMBA_NAMESPACE_END
