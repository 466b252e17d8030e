// SPDX-License-Identifier: Apache-2.0
//
// The log of a training run: FOLDER/log.jsonl, one JSON object a line, and the same columns in FOLDER/log.csv.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/file_map.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/io/atomic_file.hpp>
#include <hymba/io/json.hpp>

#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// One line of a log. NaN: not measured at this step. Numbers that are not finite are written as null in JSON and as an
/// empty field in CSV, and read back as NaN.
struct RunLogRow {
  static constexpr double none = std::numeric_limits<double>::quiet_NaN();

  std::int64_t step = 0;    ///< steps done
  std::int64_t tokens = 0;  ///< tokens trained on so far
  double loss = none;       ///< of training, in nats per token
  double validation_loss = none;
  double learning_rate = none;
  double gradient_norm = none;  ///< before clipping
  double tokens_per_second = none;
  double seconds = none;  ///< since this run began, or went on
};

namespace detail {

struct RunLogColumn {
  std::string_view name;
  double RunLogRow::*value;
};
/// Behind "step" and "tokens".
inline constexpr std::array<RunLogColumn, 6> kRunLogColumns{{{"loss", &RunLogRow::loss},
                                                             {"validation_loss", &RunLogRow::validation_loss},
                                                             {"learning_rate", &RunLogRow::learning_rate},
                                                             {"gradient_norm", &RunLogRow::gradient_norm},
                                                             {"tokens_per_second", &RunLogRow::tokens_per_second},
                                                             {"seconds", &RunLogRow::seconds}}};

/// Nine significant digits: a float comes back as it was. Independent of the locale.
inline void append_number(std::string& out, double value, std::string_view missing) {
  if (!std::isfinite(value)) {
    out += missing;
    return;
  }
  char text[40];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 9);
  out.append(text, end);
}

inline std::string run_log_json(const RunLogRow& row) {
  std::string out = "{\"step\": " + std::to_string(row.step) + ", \"tokens\": " + std::to_string(row.tokens);
  for (const RunLogColumn& column : kRunLogColumns) {
    out.append(", \"").append(column.name).append("\": ");
    append_number(out, row.*column.value, "null");
  }
  return out + "}\n";
}

inline std::string run_log_csv(const RunLogRow& row) {
  std::string out = std::to_string(row.step) + ',' + std::to_string(row.tokens);
  for (const RunLogColumn& column : kRunLogColumns) {
    out += ',';
    append_number(out, row.*column.value, "");
  }
  return out + '\n';
}

inline std::string run_log_csv_head() {
  std::string out = "step,tokens";
  for (const RunLogColumn& column : kRunLogColumns) out.append(",").append(column.name);
  return out + '\n';
}

/// @throws FormatError. @param where file and line.
inline RunLogRow parse_run_log_line(std::string_view line, const std::string& where) {
  const Json json = parse_json(line, where, {.bytes = std::size_t{1} << 16, .depth = 4});
  if (!json.is_object()) throw FormatError(message(where, ": ", shown(json), ", expected an object"));
  RunLogRow row;
  const auto whole = [&](const char* name, std::int64_t& value) {
    const auto found = json.find(name);
    if (found == json.end()) throw FormatError(message(where, ": ", name, " is missing"));
    const bool fits = found->is_number_unsigned() && found->get<std::uint64_t>() <= (std::uint64_t{1} << 62);
    if (!fits) throw FormatError(message(where, ": ", name, " is ", shown(*found), ", expected a whole number >= 0"));
    value = found->get<std::int64_t>();
  };
  whole("step", row.step);
  whole("tokens", row.tokens);
  for (const RunLogColumn& column : kRunLogColumns) {
    const auto found = json.find(column.name);
    if (found == json.end() || found->is_null()) continue;
    if (!found->is_number()) {
      throw FormatError(message(where, ": ", column.name, " is ", shown(*found), ", expected a number or null"));
    }
    row.*column.value = found->get<double>();
  }
  return row;
}

}  // namespace detail

/// The rows of a log.jsonl, or of the one in a folder. Columns that are not there are NaN, others are passed over. A
/// last line that was cut off (no line end, no whole object) is left out: the run was stopped while writing it.
/// @throws IoError when it cannot be read; FormatError, with the line, when it is no log or its steps go back.
inline std::vector<RunLogRow> read_run_log(const std::filesystem::path& path) {
  std::error_code unknown;
  const std::filesystem::path file = std::filesystem::is_directory(path, unknown) ? path / "log.jsonl" : path;
  const FileMap map(file);
  std::string_view rest(reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size());
  std::vector<RunLogRow> rows;
  for (std::size_t line = 1; !rest.empty(); ++line) {
    const std::size_t end = rest.find('\n');
    const std::string_view text = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    const std::string where = detail::message(file.string(), ": log line ", line);
    RunLogRow row;
    try {
      row = detail::parse_run_log_line(text, where);
    } catch (const FormatError&) {
      if (end == std::string_view::npos) break;
      throw;
    }
    if (!rows.empty() && row.step < rows.back().step) {
      throw FormatError(detail::message(where, ": step ", row.step, " comes after step ", rows.back().step));
    }
    rows.push_back(row);
  }
  return rows;
}

/// Appends to the log of a run. Every row is handed to the system before append() returns: it outlives the process.
class RunLog {
 public:
  /// Starts the log of a new run, in place of one that may be there. The folder must exist. @throws IoError.
  static RunLog start(const std::filesystem::path& folder) { return RunLog(folder, {}); }

  /// Goes on with a log: rows of later steps are dropped, a cut last line too. Starts one when there is none.
  /// @throws IoError; FormatError when what is there is no log (it is left as it is).
  static RunLog resume(const std::filesystem::path& folder, std::int64_t step) {
    std::vector<RunLogRow> rows;
    std::error_code unknown;
    if (std::filesystem::exists(folder / "log.jsonl", unknown)) rows = read_run_log(folder);
    while (!rows.empty() && rows.back().step > step) rows.pop_back();
    return RunLog(folder, rows);
  }

  /// @throws IoError naming the file, for example when the disk is full; ArgumentError for a step before the last one
  /// or a negative number of steps or tokens.
  void append(const RunLogRow& row) {
    if (row.step < last_step_ || row.tokens < 0) {
      throw ArgumentError(detail::message("run log: step ", row.step, " with ", row.tokens,
                                          " tokens, expected at least step ", last_step_, " and 0 tokens"));
    }
    json_.write(detail::run_log_json(row));
    csv_.write(detail::run_log_csv(row));
    last_step_ = row.step;
  }

 private:
  /// A file open for appending.
  class Lines {
   public:
    Lines(std::filesystem::path path, std::string_view content) : path_(std::move(path)) {
      AtomicFile whole(path_);
      whole.write(content);
      whole.commit();
      errno = 0;
      file_.reset(std::fopen(path_.string().c_str(), "ab"));
      if (file_ == nullptr) fail("open");
    }
    void write(std::string_view line) {
      errno = 0;
      if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fflush(file_.get()) != 0) {
        fail("write");
      }
    }

   private:
    struct Close {
      void operator()(std::FILE* file) const { std::fclose(file); }
    };
    [[noreturn]] void fail(const char* what) const {
      const int why = errno;
      throw IoError(detail::message("cannot ", what, " ", path_.string(), ": ", std::strerror(why)));
    }
    std::filesystem::path path_;
    std::unique_ptr<std::FILE, Close> file_;
  };

  RunLog(const std::filesystem::path& folder, const std::vector<RunLogRow>& rows)
      : json_(folder / "log.jsonl", content<detail::run_log_json>(rows, "")),
        csv_(folder / "log.csv", content<detail::run_log_csv>(rows, detail::run_log_csv_head())),
        last_step_(rows.empty() ? 0 : rows.back().step) {}

  template <std::string (*Line)(const RunLogRow&)>
  static std::string content(const std::vector<RunLogRow>& rows, std::string head) {
    for (const RunLogRow& row : rows) head += Line(row);
    return head;
  }

  Lines json_, csv_;
  std::int64_t last_step_ = 0;
};

HYMBA_NAMESPACE_END
