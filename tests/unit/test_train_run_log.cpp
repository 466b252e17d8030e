// SPDX-License-Identifier: Apache-2.0
//
// The log of a run: what is written, what is read back, stops in the middle of a line, going on from a step.
#include <hymba/train/run_log.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "error_text.hpp"
#include "temp_folder.hpp"

using namespace hymba;
using text_test::contains;
using text_test::error_of;
namespace fs = std::filesystem;

namespace {

struct Folder : test::Folder {
  std::string text(const char* name) const { return test::file_text(path / name); }
  void write(const char* name, std::string_view text) const { test::write_text(path / name, text); }
};

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }
bool same(const RunLogRow& a, const RunLogRow& b) {
  return a.step == b.step && a.tokens == b.tokens && same(a.loss, b.loss) &&
         same(a.validation_loss, b.validation_loss) && same(a.learning_rate, b.learning_rate) &&
         same(a.gradient_norm, b.gradient_norm) && same(a.tokens_per_second, b.tokens_per_second) &&
         same(a.seconds, b.seconds);
}
bool same(const std::vector<RunLogRow>& a, const std::vector<RunLogRow>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!same(a[i], b[i])) return false;
  }
  return true;
}

RunLogRow row_of(std::int64_t step) {
  RunLogRow row{.step = step, .tokens = 512 * step, .loss = 7.5 / static_cast<double>(step)};
  row.loss = static_cast<double>(static_cast<float>(row.loss));  // as a trainer has it
  if (step % 2 == 0) row.validation_loss = 2.25;
  row.learning_rate = 0.0003;
  row.gradient_norm = 1;
  row.tokens_per_second = 12345.5;
  row.seconds = 0.25 * static_cast<double>(step);
  return row;
}
/// Numbers have nine digits in a log.
bool as_float(const std::vector<RunLogRow>& read) {
  for (const RunLogRow& row : read) {
    if (static_cast<float>(row.loss) != static_cast<float>(row_of(row.step).loss)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("the two files, as documented") {
  const Folder folder;
  RunLog log = RunLog::start(folder.path);
  CHECK(folder.text("log.jsonl").empty());
  log.append({.step = 1, .tokens = 512, .loss = 7.5});
  RunLogRow row = row_of(2);
  row.gradient_norm = std::numeric_limits<double>::infinity();
  log.append(row);
  // Without closing the log: a row is there when append returns.
  CHECK(folder.text("log.jsonl") ==
        "{\"step\": 1, \"tokens\": 512, \"loss\": 7.5, \"validation_loss\": null, \"learning_rate\": null, "
        "\"gradient_norm\": null, \"tokens_per_second\": null, \"seconds\": null}\n"
        "{\"step\": 2, \"tokens\": 1024, \"loss\": 3.75, \"validation_loss\": 2.25, \"learning_rate\": 0.0003, "
        "\"gradient_norm\": null, \"tokens_per_second\": 12345.5, \"seconds\": 0.5}\n");
  CHECK(folder.text("log.csv") ==
        "step,tokens,loss,validation_loss,learning_rate,gradient_norm,tokens_per_second,seconds\n"
        "1,512,7.5,,,,,\n"
        "2,1024,3.75,2.25,0.0003,,12345.5,0.5\n");
  row.gradient_norm = RunLogRow::none;
  CHECK(same(read_run_log(folder.path), {{.step = 1, .tokens = 512, .loss = 7.5}, row}));
  CHECK(same(read_run_log(folder.path / "log.jsonl"), read_run_log(folder.path)));
  (void)RunLog::start(folder.path);
  CHECK(read_run_log(folder.path).empty());
}

TEST_CASE("floats come back as they were") {
  const Folder folder;
  RunLog log = RunLog::start(folder.path);
  std::mt19937 random(1);
  std::vector<float> values{0.0f, -0.0f, 1e-45f, 3.4028235e38f, -1.17549435e-38f, 16777217.0f};
  for (int i = 0; i < 200; ++i)
    values.push_back(std::ldexp(static_cast<float>(random()), static_cast<int>(random() % 200) - 120));
  std::int64_t step = 0;
  for (const float v : values) log.append({.step = ++step, .tokens = step, .loss = static_cast<double>(v)});
  const auto rows = read_run_log(folder.path);
  REQUIRE(rows.size() == values.size());
  for (std::size_t i = 0; i < rows.size(); ++i) CHECK(static_cast<float>(rows[i].loss) == values[i]);
}

TEST_CASE("a log cut anywhere is read up to its last whole line, and goes on from there") {
  const Folder folder;
  {
    RunLog log = RunLog::start(folder.path);
    for (std::int64_t step = 1; step <= 4; ++step) log.append(row_of(step));
  }
  const std::string whole = folder.text("log.jsonl"), table = folder.text("log.csv");
  const auto rows = read_run_log(folder.path);
  REQUIRE(rows.size() == 4);
  for (std::size_t length = 0; length <= whole.size(); ++length) {
    const std::string cut = whole.substr(0, length);
    folder.write("log.jsonl", cut);
    const auto read = read_run_log(folder.path);
    const std::size_t ends = static_cast<std::size_t>(std::count(cut.begin(), cut.end(), '\n'));
    // A line that lacks nothing but its end is whole.
    const bool complete = length < whole.size() && whole[length] == '\n';
    CHECK(same(read, {rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(ends + (complete ? 1 : 0))}));
    if (length % 151 != 0) continue;  // writing reaches the disk, which takes its time
    RunLog log = RunLog::resume(folder.path, 100);
    for (std::size_t step = read.size() + 1; step <= 4; ++step) log.append(row_of(static_cast<std::int64_t>(step)));
    CHECK(folder.text("log.jsonl") == whole);
    CHECK(folder.text("log.csv") == table);
  }
}

TEST_CASE("going on drops the rows of later steps from both files") {
  const Folder folder;
  std::vector<std::string> texts, tables;
  {
    RunLog log = RunLog::start(folder.path);
    for (std::int64_t step = 0; step <= 6; ++step) {
      texts.push_back(folder.text("log.jsonl"));
      tables.push_back(folder.text("log.csv"));
      log.append(row_of(step + 1));
    }
  }
  for (const std::int64_t step : {6, 5, 3, 1, 0}) {
    RunLog log = RunLog::resume(folder.path, step);
    CHECK(folder.text("log.jsonl") == texts[static_cast<std::size_t>(step)]);
    CHECK(folder.text("log.csv") == tables[static_cast<std::size_t>(step)]);
    CHECK(as_float(read_run_log(folder.path)));
  }
  // A step between two rows, and a folder without a log.
  const Folder other;
  RunLog log = RunLog::resume(other.path, 5);
  log.append(row_of(10));
  log.append(row_of(20));
  CHECK(same(read_run_log(other.path).back(), row_of(20)));
  (void)RunLog::resume(other.path, 15);
  CHECK(read_run_log(other.path).size() == 1);
}

TEST_CASE("what is no log is refused with its line, and left as it is") {
  const Folder folder;
  const std::string good = "{\"step\": 1, \"tokens\": 2}\n";
  const auto refusal_of = [&](const std::string& text) {
    folder.write("log.jsonl", text);
    const std::string what = error_of<FormatError>([&] { (void)read_run_log(folder.path); });
    CHECK(what.find('\n') == std::string::npos);
    CHECK(error_of<FormatError>([&] { (void)RunLog::resume(folder.path, 1); }) == what);
    CHECK(folder.text("log.jsonl") == text);
    CHECK(contains(what, "log.jsonl: log line "));
    return what;
  };
  CHECK(contains(refusal_of(good + "nonsense\n" + good), "log line 2"));
  CHECK(contains(refusal_of("[1]\n"), "expected an object"));
  CHECK(contains(refusal_of(good + good + "\n"), "log line 3"));
  CHECK(contains(refusal_of("{\"tokens\": 2}\n"), "step is missing"));
  CHECK(contains(refusal_of("{\"step\": 1}\n"), "tokens is missing"));
  CHECK(contains(refusal_of("{\"step\": -1, \"tokens\": 2}\n"), "step is -1"));
  CHECK(contains(refusal_of("{\"step\": 1.5, \"tokens\": 2}\n"), "step is 1.5"));
  CHECK(contains(refusal_of("{\"step\": 18446744073709551615, \"tokens\": 2}\n"), "step is 18446744073709551615"));
  CHECK(contains(refusal_of("{\"step\": 1, \"tokens\": 2, \"loss\": \"low\"}\n"), "loss is \"low\""));
  CHECK(contains(refusal_of("{\"step\": 5, \"tokens\": 2}\n" + good), "step 1 comes after step 5"));
  // Columns that are missing or not known are no error, nor is an integer in place of a number.
  folder.write("log.jsonl", "{\"step\": 1, \"tokens\": 2, \"loss\": 3, \"other\": [{}]}\n");
  CHECK(same(read_run_log(folder.path), {{.step = 1, .tokens = 2, .loss = 3}}));
}

TEST_CASE("files and folders that are not there; steps that go back") {
  const Folder folder;
  CHECK(contains(error_of<IoError>([&] { (void)read_run_log(folder.path); }), "log.jsonl"));
  CHECK(contains(error_of<IoError>([&] { (void)RunLog::start(folder.path / "none"); }), "log.jsonl"));
  RunLog log = RunLog::start(folder.path);
  log.append(row_of(5));
  log.append(row_of(5));  // a second row of a step is fine
  CHECK(contains(error_of<ArgumentError>([&] { log.append(row_of(4)); }), "step 4"));
  CHECK(contains(error_of<ArgumentError>([&] { log.append({.step = 6, .tokens = -1}); }), "-1 tokens"));
  CHECK(read_run_log(folder.path).size() == 2);
#if defined(__linux__)
  const Folder full;
  fs::create_symlink("/dev/full", full.path / "log.csv");
  CHECK(contains(error_of<IoError>([&] { (void)RunLog::start(full.path); }), "log.csv"));
#endif
}
