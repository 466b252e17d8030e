// SPDX-License-Identifier: Apache-2.0
//
// OUT/results.jsonl: what has been measured so far, one JSON object a line. A study that was stopped goes on from
// there.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/file_map.hpp>
#include <hymba/io/atomic_file.hpp>
#include <hymba/io/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace study {

/// One measurement. Values that are not finite (a run that diverged) are null in the file.
struct Result {
  std::string task;  ///< "lm", "recall" or "decode"
  std::string variant;
  std::uint64_t seed = 0;
  std::string settings;        ///< everything that was the same for all variants
  std::vector<double> values;  ///< lm: perplexity; recall: accuracy for each number of pairs; decode: tokens per second
  double seconds = 0;          ///< that it took

  bool answers(std::string_view a_task, std::string_view a_variant, std::uint64_t a_seed,
               std::string_view some_settings) const {
    return task == a_task && variant == a_variant && seed == a_seed && settings == some_settings;
  }
};

/// The file and its content. `find` and `add` may be called from several threads.
class Results {
 public:
  /// Reads what is there. A last line without an end was cut off when the program was stopped, and is dropped.
  /// @throws hymba::IoError, hymba::FormatError.
  explicit Results(const std::filesystem::path& path) : path_(path) {
    std::string kept;
    std::error_code unknown;
    if (std::filesystem::exists(path, unknown) && std::filesystem::file_size(path) > 0) {
      const hymba::FileMap map(path);
      const std::string_view text(reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size());
      kept = text.substr(0, text.rfind('\n') + 1);
    }
    std::size_t number = 1;
    for (std::size_t at = 0; at < kept.size(); ++number) {
      const std::size_t end = kept.find('\n', at);
      all_.push_back(parsed(std::string_view(kept).substr(at, end - at),
                            hymba::detail::message(path.string(), ": line ", number)));
      at = end + 1;
    }
    hymba::AtomicFile whole(path);
    whole.write(kept);
    whole.commit();
    out_.open(path, std::ios::app | std::ios::binary);
  }

  std::optional<Result> find(std::string_view task, std::string_view variant, std::uint64_t seed,
                             std::string_view settings) const {
    const std::scoped_lock lock(mutex_);
    const auto found = std::find_if(all_.rbegin(), all_.rend(),
                                    [&](const Result& r) { return r.answers(task, variant, seed, settings); });
    return found == all_.rend() ? std::nullopt : std::optional(*found);
  }

  /// @throws hymba::IoError when it cannot be written.
  void add(const Result& r) {
    hymba::Json values = hymba::Json::array();
    for (const double v : r.values) values.push_back(std::isfinite(v) ? hymba::Json(v) : hymba::Json(nullptr));
    const nlohmann::ordered_json line{{"task", r.task},         {"variant", r.variant}, {"seed", r.seed},
                                      {"settings", r.settings}, {"values", values},     {"seconds", r.seconds}};
    const std::scoped_lock lock(mutex_);
    out_ << line.dump() << '\n' << std::flush;
    if (!out_) throw hymba::IoError("cannot write " + path_.string());
    all_.push_back(r);
  }

 private:
  static Result parsed(std::string_view line, const std::string& where) {
    const hymba::Json json = hymba::parse_json(line, where);
    try {
      Result r{json.at("task"), json.at("variant"), json.at("seed"), json.at("settings"), {}, json.at("seconds")};
      for (const hymba::Json& v : json.at("values")) {
        r.values.push_back(v.is_null() ? std::numeric_limits<double>::quiet_NaN() : v.get<double>());
      }
      return r;
    } catch (const nlohmann::json::exception& error) {
      throw hymba::FormatError(where + ": not a result of this study: " + error.what());
    }
  }

  std::filesystem::path path_;
  std::vector<Result> all_;
  std::ofstream out_;
  mutable std::mutex mutex_;
};

}  // namespace study
