// SPDX-License-Identifier: Apache-2.0
//
// hymba bench: how fast a whole model runs on this machine, beside the machine's own limits measured in the same
// process.
//
//   prefill   one session reads a text of so many tokens. fraction_of_peak: operations of the weight matrices (the
//             output projection left out, which sees the last token only), over time, over the peak of the unit that
//             multiplies them.
//   decode    sessions that hold so many tokens read one more each, together. fraction_of_bandwidth: bytes of weights
//             and of every session's keys and values that a step reads, over time, over the read bandwidth of memory.
//             fraction_of_reads_in_turns: the same bytes and time, over the rate at which the weights are read, and
//             nothing else done, in turns with the steps.
//
// Every figure is the median of the repetitions, every limit the best of what was seen. What memory gives may move by
// half within a minute where others use it too; reads in turns tell that from time that steps lose. (Of a model that
// fits into the processor's caches they read those.) Attention's and the scan's own operations take their time but are
// not counted as work done, so a fraction of 1 is out of reach.
#include <hymba/core/error.hpp>
#include <hymba/variant/costs.hpp>
#include <hymba/variant/presets.hpp>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>
#include <system_error>
#include <utility>

#if !defined(_WIN32)
#include <sys/resource.h>
#endif

#include "../../bench/limits.hpp"
#include "common.hpp"

namespace cli {

namespace {

struct BenchArguments {
  CommonOptions common;
  std::string prefill = "512,2048", depths = "0,8192", batches = "1";
  int repetitions = 3;
};

// ---- models without a checkpoint

struct Preset {
  const char* name;
  hymba::Description (*describe)();
};
template <class V>
hymba::Description described() {
  return hymba::architecture<V>.describe();
}
constexpr Preset presets[] = {{"hymba-1.5b", described<hymba::presets::Hymba1_5B>},
                              {"hymba-350m", described<hymba::presets::Hymba350M>},
                              {"hymba-125m", described<hymba::presets::Hymba125M>},
                              {"barebones", described<hymba::presets::Barebones>},
                              {"llama-3.2-3b", described<hymba::presets::Llama3_2_3B>}};

const Preset* preset_named(std::string_view name) {
  const auto named = [&](const Preset& p) { return p.name == name; };
  const auto* found = std::find_if(std::begin(presets), std::end(presets), named);
  return found == std::end(presets) ? nullptr : found;
}
std::string preset_names() {
  std::string names;
  for (const Preset& p : presets) names += (names.empty() ? "" : ", ") + std::string(p.name);
  return names;
}

// ---- options

/// "0,8192" in order, each once; "none": empty, where that makes sense.
std::vector<std::int64_t> parse_list(const char* option, std::string_view text, std::int64_t least, std::int64_t most,
                                     bool none) {
  constexpr std::size_t longest = 64;
  std::vector<std::int64_t> list;
  if (none && text == "none") return list;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view word = text.substr(at, comma - at);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size() || value < least || value > most) {
      throw UsageError(message(option, ": entry ", list.size(), " is ", quoted(word, 40), ", expected ", least, " to ",
                               most, none ? ", or none in place of the list" : ""));
    }
    if (list.size() == longest) throw UsageError(message(option, ": expected at most ", longest, " entries"));
    list.push_back(value);
    at = comma + 1;
  }
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  return list;
}

struct Plan {
  std::vector<std::int64_t> prefill, depths, batches;
  std::size_t repetitions = 0;
};

Plan plan_of(const BenchArguments& a) {
  constexpr std::int64_t tokens = std::int64_t{1} << 24, sessions = 4096;
  if (a.repetitions < 1 || a.repetitions > 100) {
    throw UsageError(message("--repetitions is ", a.repetitions, ", expected 1 to 100"));
  }
  return {.prefill = parse_list("--prefill", a.prefill, 1, tokens, true),
          .depths = parse_list("--depths", a.depths, 0, tokens, true),
          .batches = parse_list("--batches", a.batches, 1, sessions, false),
          .repetitions = static_cast<std::size_t>(a.repetitions)};
}

// ---- the machine

const char* unit_name(MatrixUnit unit) {
  switch (unit) {
    case MatrixUnit::bf16_tiles:
      return "AMX bf16";
    case MatrixUnit::int8_tiles:
      return "AMX int8";
    case MatrixUnit::bf16_dot:
      return "bf16 dot products";
    case MatrixUnit::byte_dot:
      return "byte dot products";
    default:
      return "FMA f32";
  }
}

/// The limits in 1e9 bytes and operations a second, the best of all looks so far: other work on the machine, and clocks
/// that vary, make single looks too low.
class Limits {
 public:
  Limits(int threads, MatrixUnit unit) : threads_(threads), executor_(threads), unit_(unit) {}
  void look_at_memory() {
    const hymba_bench::ReadLimit seen = hymba_bench::read_limit(threads_);
    if (seen.gb_s > read_.gb_s) read_ = seen;
  }
  /// GB/s at which `blocks` are read now, for some `seconds`: the better of the way that read fastest before and of one
  /// stream left to the processor, whichever other work on the machine now leaves more.
  double look_at_blocks(std::span<const std::span<const std::byte>> blocks, double seconds) {
    return std::max(hymba_bench::rate_of_reading(executor_, blocks, read_.way, seconds / 2),
                    hymba_bench::rate_of_reading(executor_, blocks, {}, seconds / 2));
  }
  void look_at_products() { peak_ = std::max(peak_, peak()); }
  double bandwidth() const { return read_.gb_s; }
  double matrix_peak() const { return peak_; }

 private:
  double peak() const {
    switch (unit_) {
      case MatrixUnit::bf16_tiles:
        return hymba_bench::bf16_tile_peak(threads_, 30);
      case MatrixUnit::int8_tiles:
        return hymba_bench::int8_tile_peak(threads_, 30);
      case MatrixUnit::bf16_dot:
        return hymba_bench::bf16_dot_peak(threads_, 30);
      case MatrixUnit::byte_dot:
        return hymba_bench::byte_dot_peak(threads_, 30);
      default:
        return hymba_bench::multiply_add_peak(threads_, 30);
    }
  }
  int threads_;
  hymba::DefaultExecutor executor_;
  MatrixUnit unit_;
  hymba_bench::ReadLimit read_;
  double peak_ = 0;
};

/// The most memory this process has held since it began, or since `forget_peak_memory`; 0 when unknown.
std::size_t peak_memory() {
#if defined(__linux__)
  if (std::FILE* file = std::fopen("/proc/self/status", "r"); file != nullptr) {
    unsigned long long kilobytes = 0;
    char line[256];
    while (std::fgets(line, sizeof line, file) != nullptr && std::sscanf(line, "VmHWM: %llu", &kilobytes) != 1) {
    }
    std::fclose(file);
    if (kilobytes > 0) return static_cast<std::size_t>(kilobytes) * 1024;
  }
#endif
#if defined(_WIN32)
  return 0;
#else
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#if defined(__APPLE__)
  return static_cast<std::size_t>(usage.ru_maxrss);
#else
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
#endif
#endif
}

/// Where the system can: measuring the bandwidth holds a gigabyte that is not the model's.
void forget_peak_memory() {
#if defined(__linux__)
  if (std::FILE* file = std::fopen("/proc/self/clear_refs", "w"); file != nullptr) {
    std::fputs("5\n", file);
    std::fclose(file);
  }
#endif
}

// ---- measuring

struct PrefillResult {
  std::int64_t tokens = 0;
  double seconds = 0;
};
struct DecodeResult {
  std::int64_t depth = 0, batch = 0;
  double step_seconds = 0;
  double step_bytes = 0;         ///< mean over the steps: the sessions grow
  double reads_in_turns = 0;     ///< GB/s
  double of_reads_in_turns = 0;  ///< what steps reach of it
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

std::vector<hymba::Token> some_tokens(std::int64_t count, int vocabulary) {
  std::vector<hymba::Token> ids(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<hymba::Token>((i * 7919 + 13) % static_cast<std::size_t>(vocabulary));
  }
  return ids;
}

/// Thrown by Ctrl-C between two measurements.
struct Interrupted {};

class Bench {
 public:
  Bench(const OpenModel& open, const BenchArguments& a, Plan plan)
      : open_(open), a_(a), plan_(std::move(plan)), costs_(open.model->weight_costs()) {
    if (!plan_.depths.empty()) {
      const std::int64_t batch = plan_.batches.back(), context = plan_.depths.back() + growth();
      const std::size_t one = open_.cache_bytes(context) + hymba::state_bytes(open_.architecture);
      check_fits(static_cast<std::size_t>(costs_.step_bytes) + one * static_cast<std::size_t>(batch),
                 message("a batch of ", batch, " sessions of ", grouped(context), " tokens, with the weights,"));
    }
  }

  const WeightCosts& costs() const { return costs_; }

  std::vector<PrefillResult> prefill(Limits& limits) {
    std::vector<PrefillResult> results;
    if (plan_.prefill.empty()) return results;
    const auto ids = some_tokens(plan_.prefill.back(), open_.description.vocabulary);
    const auto session =
        open_.session({.max_context = plan_.prefill.back(), .prefill_chunk = chunk_, .threads = a_.common.threads});
    // Once unmeasured: pages of a mapped file come in, and clocks go up.
    session->prefill(std::span(ids).first(std::min<std::size_t>(ids.size(), 16)));
    for (const std::int64_t tokens : plan_.prefill) {
      say(message("prefill of ", tokens, " tokens"));
      std::vector<double> seconds;
      while (seconds.size() < plan_.repetitions) {
        session->reset();
        const Stopwatch watch;
        session->prefill(std::span(ids).first(static_cast<std::size_t>(tokens)));
        seconds.push_back(watch.seconds());
        limits.look_at_products();
        pause();
      }
      results.push_back({tokens, median(seconds)});
    }
    return results;
  }

  std::vector<DecodeResult> decode(Limits& limits) {
    std::vector<DecodeResult> results;
    if (plan_.depths.empty()) return results;
    const auto ids = some_tokens(plan_.depths.back(), open_.description.vocabulary);
    // The text is read once, by one session; the sessions of a batch begin as copies of it. The batch's working memory
    // serves them all.
    const auto batch = open_.model->batch(plan_.batches.back(), chunk_, a_.common.threads);
    std::unique_ptr<AnySession> reader = open_.session(
        {.max_context = plan_.depths.back() + growth(), .prefill_chunk = 1, .threads = a_.common.threads});
    for (const std::int64_t depth : plan_.depths) {
      say(message("reading to depth ", depth));
      while (reader->position() < depth) {
        const std::int64_t at = reader->position();
        batch->prefill(*reader, std::span(ids).subspan(static_cast<std::size_t>(at),
                                                       static_cast<std::size_t>(std::min(chunk_, depth - at))));
        pause();
      }
      for (const std::int64_t count : plan_.batches) {
        say(message("decoding at depth ", depth, ", batch of ", count));
        // In the end the reader is one of the batch, so that memory holds no session too many.
        const bool last = depth == plan_.depths.back() && count == plan_.batches.back();
        std::vector<std::unique_ptr<AnySession>> sessions;
        for (std::int64_t i = last ? 1 : 0; i < count; ++i) sessions.push_back(reader->fork());
        if (last) sessions.push_back(std::move(reader));
        results.push_back(decode(*batch, sessions, limits));
        results.back().depth = depth;
        limits.look_at_products();
      }
    }
    return results;
  }

  double prefill_flop(std::int64_t tokens) const { return 2 * costs_.row_elements * static_cast<double>(tokens); }
  /// Bytes of weights and caches: every chunk reads the weights anew, and the cache as far as it goes.
  double prefill_bytes(std::int64_t tokens) const {
    double bytes = 0;
    for (std::int64_t at = 0; at < tokens; at += chunk_) {
      bytes += costs_.step_bytes + open_.cache_read_bytes(std::min(at + chunk_, tokens));
    }
    return bytes;
  }

 private:
  /// Most steps of all repetitions at one depth: few, since every step makes the sessions longer.
  static constexpr std::size_t steps_most = 192;
  /// For each of the two looks beside a repetition.
  static constexpr double read_seconds = 0.2;
  std::int64_t growth() const { return static_cast<std::int64_t>(std::max(steps_most, plan_.repetitions)) + 2; }

  DecodeResult decode(AnyBatch& batch, std::span<const std::unique_ptr<AnySession>> sessions, Limits& limits) const {
    const std::vector<hymba::Token> next(sessions.size(), 17 % open_.description.vocabulary);
    batch.decode(sessions, next);  // once unmeasured
    const Stopwatch one;
    batch.decode(sessions, next);
    // Half a second for each repetition, as far as the sessions may grow.
    const double most = std::max(1.0, static_cast<double>(steps_most / plan_.repetitions));
    const auto steps = static_cast<std::size_t>(std::clamp(0.5 / std::max(one.seconds(), 1e-6), 1.0, most));
    std::vector<double> seconds, reads, of_reads;
    double all_bytes = 0;
    while (seconds.size() < plan_.repetitions) {
      const std::int64_t position = sessions[0]->position() + 1;  // its own keys and values are read too
      double bytes = 0;
      for (std::size_t i = 0; i < steps; ++i) {
        const double cache = open_.cache_read_bytes(position + static_cast<std::int64_t>(i));
        bytes += costs_.step_bytes + static_cast<double>(sessions.size()) * cache;
      }
      all_bytes += bytes;
      // One look before and one after: what memory gives may change in between.
      const double before = limits.look_at_blocks(costs_.step_blocks, read_seconds);
      const Stopwatch watch;
      for (std::size_t i = 0; i < steps; ++i) batch.decode(sessions, next);
      const double taken = watch.seconds();
      seconds.push_back(taken / static_cast<double>(steps));
      reads.push_back((before + limits.look_at_blocks(costs_.step_blocks, read_seconds)) / 2);
      of_reads.push_back(reads.back() > 0 ? bytes / taken / (reads.back() * 1e9) : 0);
      pause();
    }
    return {.batch = static_cast<std::int64_t>(sessions.size()),
            .step_seconds = median(seconds),
            .step_bytes = all_bytes / static_cast<double>(steps * plan_.repetitions),
            .reads_in_turns = median(reads),
            .of_reads_in_turns = median(of_reads)};
  }

  static void pause() {
    if (interrupted()) throw Interrupted{};
  }
  void say(const std::string& what) const {
    if (stderr_is_terminal() && !a_.common.quiet) note(what);
  }

  const OpenModel& open_;
  const BenchArguments& a_;
  const std::int64_t chunk_ = a_.common.prefill_chunk;  ///< tokens of a prefill that go through the layers at once
  Plan plan_;
  WeightCosts costs_;
};

// ---- results

/// Rows of cells, every column to the right.
std::string columns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string out;
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) out += std::string(2 + widths[c] - row[c].size(), ' ') + row[c];
    out += '\n';
  }
  return out;
}

std::string percent(double fraction) { return fixed(100 * fraction, 1) + '%'; }

std::string as_text(const OrderedJson& j) {
  const auto number = [](const OrderedJson& from, const char* key) { return from.at(key).get<double>(); };
  const auto whole = [](const OrderedJson& from, const char* key) { return grouped(from.at(key).get<std::int64_t>()); };
  const auto text = [](const OrderedJson& from, const char* key) { return from.at(key).get<std::string>(); };
  const OrderedJson& limits = j.at("limits");
  std::string out = text(j, "model") + (j.at("random_weights").get<bool>() ? " (random weights), " : ", ") +
                    whole(j, "parameters") + " parameters\n";
  out += "  weights " + text(j, "weights") + ", cache " + text(j, "cache") + ", " + whole(j, "threads") + " threads, " +
         text(j, "instruction_set") + "; opened in " + fixed(number(j, "open_seconds"), 2) + " s; peak memory " +
         bytes_text(j.at("peak_memory_bytes").get<std::size_t>()) + '\n';
  out += "  limits: reads " + fixed(number(limits, "read_bandwidth_gb_s"), 1) + " GB/s, " + text(j, "matrix_unit") +
         ' ' + fixed(number(limits, "matrix_peak_gflop_s"), 0) + " GFLOP/s\n";
  if (!j.at("prefill").empty()) {
    std::vector<std::vector<std::string>> rows{{"tokens", "tokens/s", "GFLOP/s", "of peak"}};
    for (const OrderedJson& r : j.at("prefill")) {
      rows.push_back({whole(r, "tokens"), fixed(number(r, "tokens_per_s"), 1), fixed(number(r, "gflop_s"), 1),
                      percent(number(r, "fraction_of_peak"))});
    }
    out += "\nprefill\n" + columns(rows);
  }
  if (!j.at("decode").empty()) {
    std::vector<std::vector<std::string>> rows{
        {"depth", "batch", "tokens/s", "GB/s", "of bandwidth", "of reads in turns", "cache of a session"}};
    for (const OrderedJson& r : j.at("decode")) {
      const double fraction = number(r, "fraction_of_bandwidth");
      rows.push_back({whole(r, "depth"), whole(r, "batch"), fixed(number(r, "tokens_per_s"), 1),
                      fixed(fraction * number(limits, "read_bandwidth_gb_s"), 1), percent(fraction),
                      percent(number(r, "fraction_of_reads_in_turns")),
                      bytes_text(r.at("cache_bytes").get<std::size_t>())});
    }
    out += "\ndecode\n" + columns(rows);
  }
  return out;
}

int bench(const BenchArguments& a) {
  check_common(a.common);
  const Plan plan = plan_of(a);
  const Preset* preset = preset_named(a.common.model);
  std::error_code error;
  if (preset == nullptr && !std::filesystem::is_directory(a.common.model, error)) {
    throw UsageError(message("--model is ", quoted(a.common.model), ", expected a folder with config.json and the ",
                             "weights, or one of ", preset_names()));
  }
  OpenModel open = preset != nullptr ? random_model(a.common, preset->describe()) : open_model(a.common);
  Bench bench(open, a, plan);
  const Stopwatch first_session;  // reads the meta tokens
  const int threads = open.session({.max_context = 1, .prefill_chunk = 1, .threads = a.common.threads})->threads();
  const double open_seconds = open.seconds + first_session.seconds();
  const std::size_t open_peak = peak_memory();

  const CatchInterrupt guard;
  Limits limits(threads, bench.costs().unit);
  limits.look_at_memory();
  limits.look_at_products();
  forget_peak_memory();
  std::vector<PrefillResult> prefill;
  std::vector<DecodeResult> decode;
  try {
    prefill = bench.prefill(limits);
    decode = bench.decode(limits);
  } catch (const Interrupted&) {
    return 130;
  }
  const std::size_t peak = std::max(open_peak, peak_memory());
  limits.look_at_memory();
  limits.look_at_products();

  const double bandwidth = limits.bandwidth() * 1e9, matrix_peak = limits.matrix_peak() * 1e9;
  const double step_flop = 2 * bench.costs().step_elements;
  OrderedJson out{
      {"model", a.common.model},
      {"random_weights", preset != nullptr},
      {"parameters", hymba::parameters(open.architecture)},
      {"weights", name_of(open.formats.weights)},
      {"cache", name_of(open.formats.cache)},
      {"threads", threads},
      {"instruction_set", xsimd::default_arch::name()},
      {"matrix_unit", unit_name(bench.costs().unit)},
      {"repetitions", a.repetitions},
      {"prefill_chunk", a.common.prefill_chunk},
      {"weight_bytes", static_cast<std::int64_t>(bench.costs().step_bytes)},
      {"state_bytes", hymba::state_bytes(open.architecture)},
      {"limits", {{"read_bandwidth_gb_s", limits.bandwidth()}, {"matrix_peak_gflop_s", limits.matrix_peak()}}},
      {"prefill", OrderedJson::array()},
      {"decode", OrderedJson::array()},
      {"peak_memory_bytes", peak},
      {"open_seconds", open_seconds}};
  for (const PrefillResult& r : prefill) {
    const double flop = bench.prefill_flop(r.tokens);
    out["prefill"].push_back({{"tokens", r.tokens},
                              {"tokens_per_s", static_cast<double>(r.tokens) / r.seconds},
                              {"fraction_of_peak", flop / r.seconds / matrix_peak},
                              {"gflop_s", flop / r.seconds * 1e-9},
                              {"flop_per_byte", flop / bench.prefill_bytes(r.tokens)}});
  }
  for (const DecodeResult& r : decode) {
    const double flop = step_flop * static_cast<double>(r.batch);
    out["decode"].push_back({{"depth", r.depth},
                             {"batch", r.batch},
                             {"tokens_per_s", static_cast<double>(r.batch) / r.step_seconds},
                             {"fraction_of_bandwidth", r.step_bytes / r.step_seconds / bandwidth},
                             {"reads_in_turns_gb_s", r.reads_in_turns},
                             {"fraction_of_reads_in_turns", r.of_reads_in_turns},
                             {"gflop_s", flop / r.step_seconds * 1e-9},
                             {"flop_per_byte", flop / r.step_bytes},
                             {"cache_bytes", open.cache_bytes(r.depth)}});
  }
  put(a.common.json ? json_line(out) : as_text(out));
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Command& run) {
  CLI::App* command = app.add_subcommand("bench", "Measure how fast a model runs, beside this machine's own limits");
  command->footer(
      "Examples:\n  hymba bench --model DIR\n  hymba bench --model hymba-1.5b --weights bf16 --cache bf16 --batches "
      "1,8 "
      "--json > run.json\n");
  const auto a = std::make_shared<BenchArguments>();
  add_common(*command, a->common, nullptr);
  command->get_option("--model")
      ->description("Folder with config.json and the weights; or, with random weights, " + preset_names())
      ->type_name("PRESET|DIR");
  command->add_option("--prefill", a->prefill, "Lengths of text to read, or none. Default: 512,2048")
      ->type_name("LIST");
  command->add_option("--depths", a->depths, "Tokens before those that are decoded, or none. Default: 0,8192")
      ->type_name("LIST");
  command->add_option("--batches", a->batches, "Sessions that decode together, at every depth. Default: 1")
      ->type_name("LIST");
  add_prefill_chunk(*command, a->common);
  add_number(*command, "--repetitions", a->repetitions, "Of every measurement; the median counts. Default: 3");
  add_idle_seed(*command);
  command->callback([&run, a] { run = [a] { return bench(*a); }; });
}

}  // namespace cli
