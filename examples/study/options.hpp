// SPDX-License-Identifier: Apache-2.0
//
// The program's command line.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/quoted.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace study {

inline constexpr const char* usage =
    "study --data FILE --val FILE --out FOLDER [options]\n"
    "  --data FILE     token file to train language models on\n"
    "  --val FILE      token file of held-out text, with the same tokeniser\n"
    "  --out FOLDER    for results, tables and charts\n"
    "  --seeds N       runs of each variant on each task (default 3)\n"
    "  --jobs N        runs side by side, one thread each (default: a job per core)\n"
    "  --scale X       multiplies the training steps (default 1)\n"
    "  --only LIST     these variants and tasks only, e.g. parallel,hymba,recall\n"
    "  --quick         one seed, fewer steps, the roadmap alone: minutes; --seeds and --scale still count\n"
    "  --smoke         a few steps on made-up text, to see that everything runs; needs --out alone\n";

struct Options {
  std::filesystem::path data, held_out, out;
  std::optional<int> seeds, jobs;
  std::optional<double> scale;
  std::vector<std::string> only;
  bool quick = false, smoke = false, help = false;
};

/// @throws hymba::ArgumentError when the text is no number between the two.
template <class Number>
Number number(std::string_view name, std::string_view text, Number least, Number most) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= least && value <= most)) {
    throw hymba::ArgumentError(hymba::detail::message(name, " is ", hymba::detail::quote(text),
                                                      ", expected a number from ", least, " to ", most));
  }
  return value;
}

inline std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> out;
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(','), list.size());
    out.emplace_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return out;
}

/// @throws hymba::ArgumentError.
inline Options options_from(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 == argc) throw hymba::ArgumentError(hymba::detail::message(name, " needs a value"));
      return argv[++i];
    };
    if (name == "--data") {
      o.data = value();
    } else if (name == "--val") {
      o.held_out = value();
    } else if (name == "--out") {
      o.out = value();
    } else if (name == "--seeds") {
      o.seeds = number(name, value(), 1, 1000);
    } else if (name == "--jobs") {
      o.jobs = number(name, value(), 1, 1024);
    } else if (name == "--scale") {
      o.scale = number(name, value(), 1e-3, 1e3);
    } else if (name == "--only") {
      o.only = split(value());
    } else if (name == "--quick") {
      o.quick = true;
    } else if (name == "--smoke") {
      o.smoke = true;
    } else if (name == "--help") {
      o.help = true;
    } else {
      throw hymba::ArgumentError(
          hymba::detail::message(hymba::detail::quote(name), " is not an option (see study --help)"));
    }
  }
  if (o.help) return o;
  if (o.out.empty()) throw hymba::ArgumentError("--out is missing (see study --help)");
  if (o.smoke ? !o.data.empty() || !o.held_out.empty() : o.data.empty() || o.held_out.empty()) {
    throw hymba::ArgumentError("give --data and --val, or --smoke without them");
  }
  return o;
}

}  // namespace study
