// SPDX-License-Identifier: Apache-2.0
//
// What the study found: Markdown tables and charts, from whatever results there are.
#pragma once

#include <hymba/io/atomic_file.hpp>
#include <hymba/train/curve.hpp>
#include <hymba/variant/costs.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "recall.hpp"
#include "results.hpp"
#include "runs.hpp"
#include "variants.hpp"

namespace study {

/// The depth at which caches are counted and decoding is timed, as in the paper.
inline constexpr std::int64_t paper_depth = 8192;

/// Mean and sample standard deviation over the seeds.
struct Summary {
  double mean = std::numeric_limits<double>::quiet_NaN(), spread = 0;
  std::size_t count = 0;

  /// Values that are not numbers, of runs that diverged, make the mean none.
  explicit Summary(const std::vector<double>& values) : count(values.size()) {
    if (values.empty()) return;
    mean = 0;
    for (const double v : values) mean += v / static_cast<double>(count);
    double squares = 0;
    for (const double v : values) squares += (v - mean) * (v - mean);
    if (count > 1) spread = std::sqrt(squares / static_cast<double>(count - 1));
  }
  std::string text(int digits) const {
    if (count == 0) return "";
    if (!std::isfinite(mean)) return "diverged";
    std::string out = hymba::detail::fixed_text(mean, digits);
    if (count > 1) out += " ± " + hymba::detail::fixed_text(spread, digits);
    return out;
  }
};

/// One question: its variants in order, and where each stands on the axis of a chart.
struct Question {
  std::string file, title, axis;
  std::vector<Variant> variants;
  std::vector<double> places;
};

inline std::vector<Question> questions() {
  Question road{"roadmap", "Design roadmap", "step of the roadmap", roadmap(), {}};
  for (std::size_t i = 0; i < road.variants.size(); ++i) road.places.push_back(static_cast<double>(i + 1));
  Question meta{"meta", "Meta tokens", "meta tokens", meta_sweep(), {}};
  for (const Variant& v : meta.variants) meta.places.push_back(v.meta_tokens);
  Question ratio{
      "ratio", "Attention heads : SSM heads", "attention's share of the heads' channels (%)", ratio_sweep(), {}};
  for (const Variant& v : ratio.variants) ratio.places.push_back(12.5 * v.attention_eighths);
  return {road, meta, ratio};
}

/// Looks results up under the settings of this study.
class Findings {
 public:
  Findings(const Results& results, std::uint64_t seeds, std::string lm, std::string recall, std::string decode)
      : results_(results), seeds_(seeds), lm_(std::move(lm)), recall_(std::move(recall)), decode_(std::move(decode)) {}

  Summary perplexity(const Variant& v) const {
    return over_seeds("lm", lm_, v, [](const Result& r) { return r.values.at(0); });
  }
  /// In percent, with `pairs[index]` pairs.
  Summary recall(const Variant& v, std::size_t index) const {
    return over_seeds("recall", recall_, v, [&](const Result& r) { return 100 * r.values.at(index); });
  }
  /// In percent, the mean over all numbers of pairs.
  Summary recall(const Variant& v) const {
    return over_seeds("recall", recall_, v, [](const Result& r) {
      double sum = 0;
      for (const double x : r.values) sum += x;
      return 100 * sum / static_cast<double>(r.values.size());
    });
  }
  bool anything(const Variant& v) const {
    return perplexity(v).count + recall(v).count + speed(v).count > 0;
  }
  Summary speed(const Variant& v) const {
    const auto r = results_.find("decode", v.name, 0, decode_);
    return Summary(r ? r->values : std::vector<double>());
  }

 private:
  template <class Value>
  Summary over_seeds(const char* task, const std::string& settings, const Variant& v, Value&& value) const {
    std::vector<double> values;
    for (std::uint64_t seed = 1; seed <= seeds_; ++seed) {
      if (const auto r = results_.find(task, v.name, seed, settings)) values.push_back(value(*r));
    }
    return Summary(values);
  }

  const Results& results_;
  std::uint64_t seeds_;
  std::string lm_, recall_, decode_;
};

inline std::string table(const Question& question, const Findings& found, const Size& lm_size) {
  using hymba::detail::fixed_text;
  std::string out = "### " + question.title + "\n\n| variant | parameters | perplexity |";
  for (const int pairs : Recall::pairs) out += hymba::detail::message(" recall, ", pairs, " pairs (%) |");
  out += hymba::detail::message(" recall, mean (%) | cache at ", paper_depth,
                                " (KiB) | SSM state (KiB) | decode (tokens/s) |\n|---|");
  for (std::size_t i = 0; i < Recall::pairs.size() + 6; ++i) out += "---:|";
  out += '\n';
  for (const Variant& v : question.variants) {
    const auto a = architecture(v, lm_size);
    out +=
        hymba::detail::message("| ", v.title, " | ", hymba::parameters(a), " | ", found.perplexity(v).text(1), " | ");
    for (std::size_t i = 0; i < Recall::pairs.size(); ++i) out += found.recall(v, i).text(1) + " | ";
    out += hymba::detail::message(found.recall(v).text(1), " | ",
                                  fixed_text(static_cast<double>(hymba::cache_bytes(a, 2, paper_depth)) / 1024, 0),
                                  " | ", fixed_text(static_cast<double>(hymba::state_bytes(a)) / 1024, 0), " | ",
                                  found.speed(v).text(0), " |\n");
  }
  return out + '\n';
}

/// Charts of one question: perplexity, and recall for each number of pairs.
inline std::vector<std::pair<std::string, hymba::Chart>> charts(const Question& question, const Findings& found) {
  hymba::Chart perplexity{question.title + ": perplexity", question.axis, "held-out perplexity", {}};
  hymba::Chart recall{question.title + ": recall", question.axis, "queries answered (%)", {}};
  const auto point = [](double x, const Summary& s) { return hymba::ChartPoint{x, s.mean, s.spread}; };
  if (question.file == "roadmap") {  // its steps have names, not numbers: a series for each
    recall.x_label = "pairs of a sequence";
    recall.log_x = true;
    for (std::size_t i = 0; i < question.variants.size(); ++i) {
      const Variant& v = question.variants[i];
      perplexity.series.push_back(
          {hymba::detail::message(i + 1, ' ', v.title), {point(question.places[i], found.perplexity(v))}});
      recall.series.push_back({v.title, {}});
      for (std::size_t n = 0; n < Recall::pairs.size(); ++n) {
        recall.series.back().points.push_back(point(Recall::pairs[n], found.recall(v, n)));
      }
    }
  } else {
    perplexity.series.resize(1);
    for (std::size_t i = 0; i < question.variants.size(); ++i) {
      perplexity.series[0].points.push_back(point(question.places[i], found.perplexity(question.variants[i])));
    }
    for (std::size_t n = 0; n < Recall::pairs.size(); ++n) {
      recall.series.push_back({hymba::detail::message(Recall::pairs[n], " pairs"), {}});
      for (std::size_t i = 0; i < question.variants.size(); ++i) {
        recall.series.back().points.push_back(point(question.places[i], found.recall(question.variants[i], n)));
      }
    }
  }
  return {{question.file + "_perplexity.svg", perplexity}, {question.file + "_recall.svg", recall}};
}

/// The question without the variants of which nothing is known.
inline Question answered(const Question& question, const Findings& found) {
  Question out{question.file, question.title, question.axis, {}, {}};
  for (std::size_t i = 0; i < question.variants.size(); ++i) {
    if (!found.anything(question.variants[i])) continue;
    out.variants.push_back(question.variants[i]);
    out.places.push_back(question.places[i]);
  }
  return out;
}

/// Writes OUT/table.md and OUT/*.svg, of the questions that there are two answers to at least; returns the tables.
inline std::string write_report(const std::filesystem::path& out, const Findings& found, const Size& lm_size) {
  const auto write = [&](const std::string& name, const std::string& text) {
    hymba::AtomicFile file(out / name);
    file.write(text);
    file.commit();
  };
  std::string tables;
  for (const Question& whole : questions()) {
    const Question question = answered(whole, found);
    if (question.variants.size() < 2) continue;
    tables += table(question, found, lm_size);
    for (const auto& [name, chart] : charts(question, found)) write(name, hymba::chart_svg(chart));
  }
  write("table.md", tables);
  return tables;
}

}  // namespace study
