// SPDX-License-Identifier: Apache-2.0
//
// The controlled study of the Hymba paper (arXiv 2411.13676, table 1) in miniature: variants of equal size, trained
// alike, asked for perplexity, recall, cache and speed. And two questions that the paper leaves open: how many meta
// tokens, and how many attention heads to each SSM head?
//
//   study --data train.tok --val heldout.tok --out OUT       (token files: hymba tokenize)
//
// Writes OUT/results.jsonl, OUT/table.md and OUT/*.svg. Started again with the same options, it goes on where it was.
#include <hymba/core/error.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/train/token_file.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "options.hpp"
#include "recall.hpp"
#include "report.hpp"
#include "results.hpp"
#include "runs.hpp"
#include "variants.hpp"

namespace {

using hymba::ArgumentError;
using hymba::detail::message;

/// Everything that is fixed before the first run.
struct Study {
  std::vector<study::Variant> variants;
  study::TrainingSettings lm, recall;
  bool with_lm = true, with_recall = true;
  std::uint64_t seeds = 3;
  int jobs = 1, recall_tests = 64;
  std::int64_t depth = study::paper_depth;

  std::string decode_settings() const {
    return message("width ", lm.size.width, ", ", lm.size.layers, " layers, window ", lm.size.window, ", ", depth,
                   " tokens deep, bf16, one thread");
  }
};

/// Which variants and tasks: those that --only names; of tasks or variants that it does not name, all.
/// @throws ArgumentError for a name that is neither.
void choose(Study& s, const study::Options& o) {
  const auto named = [&](std::string_view name) {
    return std::find(o.only.begin(), o.only.end(), name) != o.only.end();
  };
  const std::vector<study::Variant> all = study::all_variants();
  bool by_name = false;
  for (const std::string& name : o.only) {
    if (name == "lm" || name == "recall") continue;
    by_name = true;
    if (std::any_of(all.begin(), all.end(), [&](const study::Variant& v) { return v.name == name; })) continue;
    std::string names = "lm, recall";
    for (const study::Variant& v : all) names += ", " + v.name;
    throw ArgumentError(message("--only: ", hymba::detail::quote(name), " is none of ", names));
  }
  if (named("lm") || named("recall")) s.with_lm = named("lm"), s.with_recall = named("recall");
  if (by_name) {
    for (const study::Variant& v : all) {
      if (named(v.name)) s.variants.push_back(v);
    }
  } else {
    s.variants = o.quick ? study::roadmap() : all;
  }
}

Study planned(const study::Options& o, std::int64_t vocabulary) {
  Study s;
  s.lm = {{128, 7, static_cast<int>(vocabulary), 64, true}, 280, 2048, 256, 3e-3};
  s.recall = {{64, 4, study::Recall::vocabulary, 8, false}, 800, 4096, study::Recall::longest, 3e-3};
  s.seeds = static_cast<std::uint64_t>(o.seeds.value_or(o.quick || o.smoke ? 1 : 3));
  s.jobs = o.jobs.value_or(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const double scale = o.scale.value_or(1);
  double lm_scale = o.quick ? 0.2 * scale : scale;
  double recall_scale = o.quick ? 0.75 * scale : scale;  // with much less, nothing is recalled yet
  if (o.smoke) {
    s.lm.size.width = 64;
    s.lm.size.window = 8;
    s.lm.context = 32;
    s.lm.tokens = 64;
    s.recall.tokens = 1024;
    s.recall_tests = 1;
    s.depth = 64;
    lm_scale = recall_scale = 0;
  }
  const auto scaled = [](std::int64_t steps, double by) {
    return std::max<std::int64_t>(2, std::llround(static_cast<double>(steps) * by));
  };
  s.lm.steps = scaled(s.lm.steps, lm_scale);
  s.recall.steps = scaled(s.recall.steps, recall_scale);
  choose(s, o);
  return s;
}

/// Calls `body(i)` for every i below `count`, on `jobs` threads. The first exception ends it, and is thrown here.
template <class Body>
void side_by_side(int jobs, std::size_t count, Body&& body) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        body(i);
      } catch (...) {
        const std::scoped_lock lock(mutex);
        if (!failure) failure = std::current_exception();
        next = count;
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < jobs && static_cast<std::size_t>(i) < count; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

class Timer {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

void measure_decoding(const Study& s, study::Results& results) {
  const std::string settings = s.decode_settings();
  const bool done = std::all_of(s.variants.begin(), s.variants.end(), [&](const study::Variant& v) {
    return results.find("decode", v.name, 0, settings).has_value();
  });
  if (done) return;
  const Timer timer;
  const std::vector<double> speeds = study::decoding_speeds(s.variants, s.lm.size, s.depth);
  for (std::size_t i = 0; i < speeds.size(); ++i) {
    results.add({"decode", s.variants[i].name, 0, settings, {speeds[i]}, timer.seconds()});
  }
  say(message("decoding ", s.depth, " tokens deep: ", speeds.size(), " variants in ",
              hymba::detail::fixed_text(timer.seconds(), 0), " s"));
}

struct Run {
  std::string task;
  study::Variant variant;
  std::uint64_t seed;
};

/// All runs that are not in the results yet, seed by seed: a study that is stopped has compared something.
std::vector<Run> runs_to_do(const Study& s, const study::Results& results) {
  std::vector<Run> out;
  const auto want = [&](const char* task, const std::string& settings, const study::Variant& v, std::uint64_t seed) {
    if (!results.find(task, v.name, seed, settings)) out.push_back({task, v, seed});
  };
  for (std::uint64_t seed = 1; seed <= s.seeds; ++seed) {
    for (const study::Variant& v : s.variants) {
      if (s.with_lm) want("lm", s.lm.text(), v, seed);
      if (s.with_recall) want("recall", s.recall.text(), v, seed);
    }
  }
  return out;
}

template <class Arch>
void train_all(const Study& s, const hymba::TokenFile& data, const hymba::TokenFile& held_out,
               study::Results& results) {
  const std::vector<Run> runs = runs_to_do(s, results);
  std::atomic<std::size_t> finished{0};
  side_by_side(s.jobs, runs.size(), [&](std::size_t i) {
    const Run& run = runs[i];
    const bool lm = run.task == "lm";
    const Timer timer;
    study::Result result{run.task, run.variant.name, run.seed, lm ? s.lm.text() : s.recall.text(), {}, 0};
    try {
      if (lm) {
        result.values = {study::train_language_model<Arch>(run.variant, s.lm, data, held_out, run.seed)};
      } else {
        result.values = study::train_recall<Arch>(run.variant, s.recall, s.recall_tests, run.seed);
      }
    } catch (const hymba::DivergedError&) {  // a result too
      result.values.assign(lm ? 1 : study::Recall::pairs.size(), std::numeric_limits<double>::quiet_NaN());
    }
    result.seconds = timer.seconds();
    results.add(result);
    std::string line = message('[', ++finished, '/', runs.size(), "] ", run.task, ", ", run.variant.title, ", seed ",
                               run.seed, lm ? ": perplexity" : ": recall");
    for (const double v : result.values) line += message(' ', lm ? v : 100 * v);
    say(message(line, lm ? "" : " %", " (", hymba::detail::fixed_text(result.seconds, 0), " s)"));
  });
}

/// A text without meaning but not without pattern: every token has a few likely successors.
hymba::TokenFile made_up_text(const std::filesystem::path& path, std::uint64_t seed) {
  constexpr int vocabulary = 64, tokens = 600;
  std::mt19937_64 random(seed);
  std::vector<hymba::Token> text(tokens);
  for (std::size_t i = 1; i < text.size(); ++i) {
    text[i] = (text[i - 1] * 5 + static_cast<hymba::Token>(random() % 4)) % vocabulary;
  }
  hymba::TokenFileWriter file(path, vocabulary);
  file.add_document(text, tokens);
  file.commit();
  return hymba::TokenFile::open(path);
}

int run(const study::Options& o) {
  std::filesystem::create_directories(o.out);
  const auto data = o.smoke ? made_up_text(o.out / "smoke-train.tok", 1) : hymba::TokenFile::open(o.data);
  const auto held_out = o.smoke ? made_up_text(o.out / "smoke-heldout.tok", 2) : hymba::TokenFile::open(o.held_out);
  if (held_out.vocabulary() != data.vocabulary()) {
    throw ArgumentError(message(held_out.name(), " has a vocabulary of ", held_out.vocabulary(), ", but ", data.name(),
                                " one of ", data.vocabulary(), ": expected two files of one tokeniser"));
  }
  const Study s = planned(o, data.vocabulary());
  if (o.smoke) std::filesystem::remove(o.out / "results.jsonl");  // a finished one would run nothing
  study::Results results(o.out / "results.jsonl");
  for (const study::Variant& v : s.variants) {
    say(message(v.name, ": ", study::parameters(study::describe(v, s.lm.size)), " parameters for text, ",
                study::parameters(study::describe(v, s.recall.size)), " for recall"));
  }
  if (s.with_lm) say("text: " + s.lm.text());
  if (s.with_recall) say("recall: " + s.recall.text());
  measure_decoding(s, results);  // before the training, while the machine is quiet
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
  if (hymba::amx_available()) {
    train_all<hymba::arch::amx<hymba::arch::best>>(s, data, held_out, results);
  } else
#endif
  {
    train_all<hymba::arch::best>(s, data, held_out, results);
  }
  const study::Findings found(results, s.seeds, s.lm.text(), s.recall.text(), s.decode_settings());
  std::printf("\n%s", study::write_report(o.out, found, s.lm.size).c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  const study::Options o = study::options_from(argc, argv);
  if (o.help) {
    std::printf("%s", study::usage);
    return 0;
  }
  return run(o);
} catch (const std::exception& error) {
  std::fprintf(stderr, "study: %s\n", error.what());
  return 2;
}
