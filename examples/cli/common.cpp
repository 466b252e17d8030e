// SPDX-License-Identifier: Apache-2.0
#include "common.hpp"

#include <hymba/core/error.hpp>
#include <hymba/core/tensor_check.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/atomic_file.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/kernels/amx/tiles.hpp>
#include <hymba/kernels/dot/units.hpp>
#include <hymba/model/generation.hpp>
#include <hymba/model/random_weights.hpp>
#include <hymba/model/store_tensor.hpp>
#include <hymba/text/text_stream.hpp>
#include <hymba/variant/costs.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <system_error>
#include <type_traits>
#include <utility>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace cli {

// ---- options
// ----------------------------------------------------------------------------------------------------------

template <class Number>
Number parse_number(const std::string& option, const std::string& text) {
  const auto refuse = [&](const std::string& expected) {
    throw UsageError(message(option, " is ", quoted(text, 40), ", expected ", expected));
  };
  Number value{};
  if constexpr (std::is_floating_point_v<Number>) {
    char* end = nullptr;
    if constexpr (std::is_same_v<Number, float>) {
      value = std::strtof(text.c_str(), &end);
    } else {
      value = std::strtod(text.c_str(), &end);
    }
    if (text.empty() || end != text.c_str() + text.size() || text.front() == ' ') refuse("a number");
  } else {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
      refuse(message("a whole number from ", std::numeric_limits<Number>::min(), " to ",
                     std::numeric_limits<Number>::max()));
    }
  }
  return value;
}
template float parse_number<float>(const std::string&, const std::string&);
template double parse_number<double>(const std::string&, const std::string&);
template std::int32_t parse_number<std::int32_t>(const std::string&, const std::string&);
template std::int64_t parse_number<std::int64_t>(const std::string&, const std::string&);
template std::uint64_t parse_number<std::uint64_t>(const std::string&, const std::string&);

void add_common(CLI::App& command, CommonOptions& o, const char* max_context_default) {
  command.add_option("--model", o.model, "Folder with config.json and the weights")->required()->type_name("DIR");
  add_number(command, "--threads", o.threads, "Threads; 0: all cores");
  command
      .add_option(
          "--weights", o.weights,
          "Weights in memory. Default: as every matrix of the checkpoint is stored, else f32, so that nothing is "
          "lost")
      ->type_name("f32|f16|bf16|int8|int4");
  command.add_option("--cache", o.cache, "Keys and values in memory. Default: f32")->type_name("f32|f16|bf16|int8");
  command
      .add_option(
          "--arch", o.arch,
          "What runs it. simd: vectors, nothing but the formats is rounded; dot: beside int8 and int4, dot products "
          "of bytes (VNNI and its like), which round activations to 8 bits, and beside bf16 those of bf16 where they "
          "are faster than vectors, which round activations to bf16; amx: tiles, which round activations to bf16, or "
          "to 8 bits beside int8 and int4. Over a bf16 or int8 cache tiles and dot products also round queries and "
          "softmax weights, to bf16, or dot products over int8 to 16 bits. Default: amx where the machine has it, else dot where that is for such "
          "weights, else simd")
      ->type_name("auto|simd|dot|amx");
  if (max_context_default != nullptr) {
    add_number(command, "--max-context", o.max_context,
               std::string("Tokens a session can hold. Default: ") + max_context_default);
  }
  command.add_flag("--json", o.json, "Results as JSON");
  command.add_flag("--quiet", o.quiet, "Nothing on standard error but errors");
}

void add_prefill_chunk(CLI::App& command, CommonOptions& o) {
  add_number(command, "--prefill-chunk", o.prefill_chunk,
             message("Tokens that go through the layers at once: fewer need less working memory, and more time. Default: ",
                     o.prefill_chunk));
}

void add_idle_seed(CLI::App& command) {
  static std::uint64_t unused = 0;
  add_number(command, "--seed", unused, "Accepted, without effect");
}

bool SamplingArguments::given() const {
  return std::any_of(all.begin(), all.end(), [](const CLI::Option* o) { return o->count() > 0; });
}

void add_sampling(CLI::App& command, SamplingArguments& a) {
  hymba::SamplingOptions& o = a.options;
  const auto add = [&](const char* name, auto& value, const char* what) {
    a.all.push_back(add_number(command, name, value, what)->group("Sampling"));
    return a.all.back();
  };
  CLI::Option* temperature = add("--temperature", o.temperature, "0: greedy, the default; 0.7 is usual for text");
  add("--top-k", o.top_k, "Draw from the k most likely tokens; 0: all");
  add("--top-p", o.top_p, "Draw from the most likely tokens up to this probability; 1: all");
  add("--min-p", o.min_p, "Draw from tokens at least this fraction as likely as the best; 0: all");
  add("--repetition-penalty", o.repetition_penalty, "Divides the logits of tokens already there; 1: none");
  add("--presence-penalty", o.presence_penalty, "Subtracted once from the logit of a token already there");
  add("--frequency-penalty", o.frequency_penalty, "Subtracted for each time the token is already there");
  add("--penalty-window", o.penalty_window, "Penalties see the last N tokens; -1: all");
  add("--seed", o.seed, "Same seed, same text. Default: 0");
  a.all.push_back(
      command.add_flag("--greedy", a.greedy, "Always the most likely token")->excludes(temperature)->group("Sampling"));
}

std::string name_of(hymba::Weights w) {
  return hymba::detail::with_format(w, [](auto format) { return std::string(hymba::weight_format<format()>::name); });
}
namespace {
/// `use(std::integral_constant<Cache, C>)` for the C that `c` is.
template <class Use>
auto with_cache(hymba::Cache c, Use&& use) {
  switch (c) {
    case hymba::Cache::f16:
      return use(std::integral_constant<hymba::Cache, hymba::Cache::f16>{});
    case hymba::Cache::bf16:
      return use(std::integral_constant<hymba::Cache, hymba::Cache::bf16>{});
    case hymba::Cache::int8:
      return use(std::integral_constant<hymba::Cache, hymba::Cache::int8>{});
    default:
      return use(std::integral_constant<hymba::Cache, hymba::Cache::f32>{});
  }
}
}  // namespace

std::string name_of(hymba::Cache c) {
  return with_cache(c, [](auto format) { return std::string(hymba::cache_format<format()>::name); });
}
hymba::Weights weights_named(std::string_view name) {
  for (const auto w :
       {hymba::Weights::f32, hymba::Weights::f16, hymba::Weights::bf16, hymba::Weights::int8, hymba::Weights::int4}) {
    if (name == name_of(w)) return w;
  }
  throw UsageError(message("--weights is ", quoted(name), ", expected f32, f16, bf16, int8 or int4"));
}
hymba::Cache cache_named(std::string_view name) {
  for (const auto c : {hymba::Cache::f32, hymba::Cache::f16, hymba::Cache::bf16, hymba::Cache::int8}) {
    if (name == name_of(c)) return c;
  }
  throw UsageError(message("--cache is ", quoted(name), ", expected f32, f16, bf16 or int8"));
}

// ---- model and tokeniser
// -----------------------------------------------------------------------------------------------

namespace {

/// Bytes of memory of the machine, 0 when unknown.
std::size_t machine_memory() {
#if defined(_WIN32)
  return 0;
#else
  const long pages = ::sysconf(_SC_PHYS_PAGES), size = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<std::size_t>(pages) * static_cast<std::size_t>(size) : 0;
#endif
}

hymba::CacheElementBytes element_bytes(hymba::Cache c) {
  return with_cache(
      c, [](auto format) { return hymba::cache_element_bytes<typename hymba::cache_format<format()>::element>; });
}

/// The format of weights in which every matrix of a checkpoint is used where it lies; f32 when there is none.
hymba::Weights stored_format(const AnyArchitecture& a, const hymba::TensorTable& table) {
  const auto specs = tensor_specs(a);
  for (const auto w : {hymba::Weights::bf16, hymba::Weights::f16, hymba::Weights::int8, hymba::Weights::int4}) {
    if (std::all_of(specs.begin(), specs.end(), [&](const auto& t) {
          return t.second.role == hymba::TensorRole::vector ||
                 hymba::detail::serves_as(table.find(t.first)->dtype, t.second.role,
                                          hymba::detail::stored_format(t.second.role, w));
        })) {
      return w;
    }
  }
  return hymba::Weights::f32;
}

/// The type that random weights are made in for a format.
hymba::DType stored_type(hymba::Weights weights) { return hymba::detail::stored_as(hymba::TensorRole::matrix, weights); }

/// Bytes of matrices that are not stored in the format asked for and will be converted into memory.
std::size_t converted_bytes(const AnyArchitecture& a, const hymba::TensorTable& table, hymba::Weights weights) {
  std::size_t bytes = 0;
  for (const auto& [name, t] : tensor_specs(a)) {
    const hymba::Weights kept = hymba::detail::stored_format(t.role, weights);
    if (t.role != hymba::TensorRole::vector && !hymba::detail::serves_as(table.find(name)->dtype, t.role, kept)) {
      bytes += hymba::detail::stored_bytes(t, kept);
    }
  }
  return bytes;
}

template <hymba::Weights W>
std::unique_ptr<AnyModel> make_with(const Formats& formats, const AnyArchitecture& a, hymba::TensorTable table,
                                    const std::string& source) {
  return with_cache(formats.cache,
                    [&](auto c) { return make_model<W, c()>(formats.path, a, std::move(table), source); });
}

std::unique_ptr<AnyModel> make_in(const Formats& formats, const AnyArchitecture& a, hymba::TensorTable table,
                                  const std::string& source) {
  return hymba::detail::with_format(formats.weights,
                                    [&](auto w) { return make_with<w()>(formats, a, std::move(table), source); });
}

/// Whether this program was compiled for tiles and the machine has them.
bool tiles_available() {
#if defined(HYMBA_AMX)
  return hymba::amx_available();
#else
  return false;
#endif
}

/// Whether this program was compiled for dot products and the machine has them.
bool dots_available() {
#if defined(HYMBA_DOT)
  return hymba::dot_available();
#else
  return false;
#endif
}

/// What is wrong with --arch whatever the weights are. @throws UsageError.
void check_arch(const CommonOptions& o) {
  if (o.arch == "auto" || o.arch == "simd") return;
  if (o.arch != "amx" && o.arch != "dot") {
    throw UsageError(message("--arch is ", quoted(o.arch), ", expected auto, simd, dot or amx"));
  }
  if (o.arch == "amx" && !tiles_available()) {
    throw UsageError("--arch is amx, but this program was not compiled for AMX, or the machine has none");
  }
  if (o.arch == "dot" && !dots_available()) {
    throw UsageError(
        "--arch is dot, but this program was not compiled for dot products, or the machine has not those it was "
        "compiled for");
  }
}

/// What --arch, checked, asks for. @throws UsageError.
Path path_asked_for(const CommonOptions& o, hymba::Weights weights) {
  const bool dots = hymba::dot_takes(weights);
  if (o.arch == "dot" && !dots) {
    throw UsageError(message("--arch is dot, which is here for weights in ",
                             HYMBA_DOT_BF16 != 0 ? "bf16, int8 and int4" : "int8 and int4", "; these are ",
                             name_of(weights)));
  }
  if (o.arch == "dot") return Path::dot;
  if (o.arch == "amx") return Path::amx;
  if (o.arch == "simd") return Path::simd;
  return tiles_available() ? Path::amx : dots && dots_available() ? Path::dot : Path::simd;
}

}  // namespace

void check_fits(std::size_t bytes, const std::string& what) {
  const std::size_t memory = machine_memory();
  if (memory != 0 && bytes > memory) {
    throw UsageError(
        message(what, " takes ", bytes_text(bytes), ", the machine has ", bytes_text(memory), " of memory"));
  }
}

std::vector<std::pair<std::string, hymba::TensorSpec>> tensor_specs(const AnyArchitecture& a) {
  std::vector<std::pair<std::string, hymba::TensorSpec>> out;
  hymba::for_each_model_tensor(a, [&](const hymba::TensorSpec& t) { out.emplace_back(t.name, t); });
  for (int i = 0; i < a.layers; ++i) {
    hymba::for_each_layer_tensor(a, i, [&](hymba::Part, const hymba::TensorSpec& t) {
      out.emplace_back("model.layers." + std::to_string(i) + '.' + t.name, t);
    });
  }
  return out;
}

void check_checkpoint(const AnyArchitecture& a, const hymba::TensorTable& table, const std::string& folder) {
  std::vector<hymba::ExpectedTensor> expected;
  for (const auto& [name, t] : tensor_specs(a)) expected.push_back({name, {t.dims.begin(), t.dims.begin() + t.rank}});
  hymba::check_tensors(expected, table, folder);
}

void check_common(const CommonOptions& o) {
  if (!o.weights.empty()) weights_named(o.weights);
  if (!o.cache.empty()) cache_named(o.cache);
  check_arch(o);
  if (o.threads < 0 || o.threads > 4096) {
    throw UsageError(message("--threads is ", o.threads, ", expected 0 (all cores) to 4096"));
  }
  if (o.prefill_chunk < 1 || o.prefill_chunk > 65536) {
    throw UsageError(message("--prefill-chunk is ", o.prefill_chunk, ", expected 1 to 65536"));
  }
  if (o.max_context < 0) throw UsageError(message("--max-context is ", o.max_context, ", expected 1 or more"));
}

namespace {
std::size_t random_bytes(const AnyArchitecture& a, hymba::Weights weights) {
  std::size_t bytes = 0;
  for (const auto& [name, t] : tensor_specs(a)) {
    bytes += hymba::detail::stored_bytes(t, hymba::detail::stored_format(t.role, weights));
  }
  return bytes;
}
}  // namespace

OpenModel random_model(const CommonOptions& o, const hymba::Description& description) {
  check_common(o);
  OpenModel open{.description = description,
                 .architecture = hymba::architecture_from<hymba::DynamicHymba>(description, o.model),
                 .formats = {},
                 .model = nullptr};
  if (!o.weights.empty()) open.formats.weights = weights_named(o.weights);
  if (!o.cache.empty()) open.formats.cache = cache_named(o.cache);
  open.formats.path = path_asked_for(o, open.formats.weights);
  const hymba::DType type = stored_type(open.formats.weights);
  check_fits(random_bytes(open.architecture, open.formats.weights), o.model);
  hymba::TensorTable tensors = hymba::random_tensors(open.architecture, 1, type);
  const Stopwatch watch;
  open.model = make_in(open.formats, open.architecture, std::move(tensors), o.model);
  open.seconds = watch.seconds();
  return open;
}

OpenModel open_model(const CommonOptions& o, const std::optional<Formats>& saved) {
  const Stopwatch watch;
  // Options first: a wrong one is told before gigabytes are read.
  check_common(o);
  std::optional<hymba::Weights> weights = saved ? std::optional(saved->weights) : std::nullopt;
  hymba::Cache cache = saved ? saved->cache : hymba::Cache::f32;
  if (!o.weights.empty()) weights = weights_named(o.weights);
  if (!o.cache.empty()) cache = cache_named(o.cache);

  hymba::Checkpoint checkpoint = hymba::open_checkpoint(o.model);
  OpenModel open{.description = checkpoint.description,
                 .architecture = hymba::architecture_from<hymba::DynamicHymba>(
                     checkpoint.description, (std::filesystem::path(o.model) / "config.json").string()),
                 .formats = {},
                 .model = nullptr};
  check_checkpoint(open.architecture, checkpoint.tensors, o.model);
  const hymba::Weights kept = weights ? *weights : stored_format(open.architecture, checkpoint.tensors);
  open.formats = {kept, cache, path_asked_for(o, kept)};
  check_fits(converted_bytes(open.architecture, checkpoint.tensors, open.formats.weights),
             "the model in " + name_of(open.formats.weights));
  open.model = make_in(open.formats, open.architecture, std::move(checkpoint.tensors), o.model);
  open.seconds = watch.seconds();
  return open;
}

std::size_t OpenModel::cache_bytes(std::int64_t max_context) const {
  return hymba::cache_bytes(architecture, element_bytes(formats.cache), max_context);
}

double OpenModel::cache_read_bytes(std::int64_t context) const {
  double positions = 0;
  for (int i = 0; i < architecture.layers; ++i) {
    if (!architecture.plan[i].has_attention()) continue;
    positions +=
        static_cast<double>(hymba::cached_positions(architecture.plan[i].window, architecture.meta_tokens(), context));
  }
  return positions * static_cast<double>(hymba::position_bytes(architecture, element_bytes(formats.cache)));
}

std::unique_ptr<AnySession> OpenModel::session(SessionSettings settings, std::span<const std::byte> blob) const {
  if (settings.max_context > 0 && settings.max_context <= (std::int64_t{1} << 30)) {
    check_fits(
        cache_bytes(settings.max_context) + static_cast<std::size_t>(settings.max_context) * sizeof(hymba::Token),
        "a context of " + grouped(settings.max_context) + " tokens");
  }
  return blob.empty() ? model->session(settings) : model->restore(blob, settings);
}

hymba::Tokenizer open_tokenizer(const std::string& folder, const hymba::Description& description) {
  hymba::Tokenizer tokenizer = hymba::Tokenizer::open(folder);
  if (tokenizer.vocabulary() > description.vocabulary) {
    throw hymba::ConfigError(message(folder, ": the tokenizer has ", tokenizer.vocabulary(),
                                     " tokens, more than the model's vocab_size ", description.vocabulary));
  }
  return tokenizer;
}

std::vector<hymba::Token> end_tokens(const hymba::Description& d, const hymba::Tokenizer* tokenizer) {
  std::vector<hymba::Token> out;
  if (d.eos >= 0) out.push_back(d.eos);
  if (tokenizer != nullptr && tokenizer->eos() >= 0 && tokenizer->eos() != d.eos) out.push_back(tokenizer->eos());
  return out;
}

// ---- input
// ------------------------------------------------------------------------------------------------------------

std::vector<hymba::Token> parse_ids(std::string_view text, int vocabulary) {
  std::vector<hymba::Token> ids;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    std::string_view word = text.substr(at, comma - at);
    while (!word.empty() && word.front() == ' ') word.remove_prefix(1);
    while (!word.empty() && word.back() == ' ') word.remove_suffix(1);
    hymba::Token id = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0 || id >= vocabulary) {
      throw UsageError(message("--ids: id ", ids.size(), " is ", quoted(word, 40), ", expected 0 to ", vocabulary - 1));
    }
    ids.push_back(id);
    at = comma + 1;
  }
  return ids;
}

std::string read_file(const std::string& path) {
  const bool standard = path == "-";
  std::error_code error;
  if (!standard && std::filesystem::is_directory(path, error))
    throw UsageError("cannot read " + path + ": it is a folder");
  errno = 0;
  std::FILE* file = standard ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) throw UsageError("cannot open " + path + ": " + std::strerror(errno));
  constexpr std::size_t most = std::size_t{1} << 30;
  std::string out;
  std::vector<char> buffer(std::size_t{1} << 16);
  for (std::size_t n; out.size() <= most && (n = std::fread(buffer.data(), 1, buffer.size(), file)) > 0;) {
    out.append(buffer.data(), n);
  }
  const bool failed = std::ferror(file) != 0;
  const int why = errno;
  if (!standard) std::fclose(file);
  const std::string name = standard ? "standard input" : path;
  if (failed) throw UsageError("cannot read " + name + ": " + std::strerror(why != 0 ? why : EIO));
  if (out.size() > most) throw UsageError(name + " is longer than 2^30 bytes");
  return out;
}

// ---- generating
// -------------------------------------------------------------------------------------------------------

bool read_prompt(AnySession& session, std::span<const hymba::Token> tokens, bool progress) {
  constexpr std::size_t piece = 512;
  if (tokens.size() > static_cast<std::size_t>(session.room())) session.prefill(tokens);  // throws, unchanged
  Progress bar("prompt", static_cast<std::int64_t>(tokens.size()), progress && tokens.size() > piece);
  for (std::size_t at = 0; at < tokens.size(); at += piece) {
    if (interrupted()) return false;
    session.prefill(tokens.subspan(at, std::min(piece, tokens.size() - at)));
    bar.at(static_cast<std::int64_t>(std::min(at + piece, tokens.size())));
  }
  return true;
}

Answer generate_answer(AnySession& session, const AnswerLimits& limits, const hymba::Tokenizer* tokenizer,
                       const std::function<void(std::string_view)>& show) {
  const Stopwatch watch;
  Answer answer;
  std::optional<hymba::TextStream> stream;
  if (tokenizer != nullptr) stream.emplace(*tokenizer, /*continuation=*/true);
  hymba::StopStrings stop(limits.stop_strings);
  std::string decoded;  // text of all tokens so far
  const auto deliver = [&](std::string_view text) {
    if (text.empty()) return;
    answer.text += text;
    show(text);
  };

  hymba::Generation<AnySession> generation(session, limits.max_new_tokens, limits.stop_tokens);
  for (auto it = generation.begin(); it != hymba::Generation<AnySession>::end();) {
    const hymba::Choice choice = generation.choice();
    answer.tokens.push_back(choice.token);
    answer.logprobs.push_back(choice.log_probability);
    answer.held = decoded;
    answer.unread = choice.token;
    if (stream) {
      // A model may have more rows than its tokeniser has tokens.
      const std::string_view text =
          choice.token < tokenizer->vocabulary() ? stream->push(choice.token) : std::string_view("\xef\xbf\xbd");
      decoded += text;
      deliver(stop.push(text));
    } else {
      show((answer.tokens.size() > 1 ? " " : "") + std::to_string(choice.token));
    }
    if (stop.stopped()) {
      answer.finish = "stop_string";
      answer.stop = limits.stop_strings[static_cast<std::size_t>(stop.matched())];
      break;
    }
    if (interrupted()) {
      answer.finish = "interrupted";
      break;
    }
    ++it;
    if (generation.finish() != hymba::Finish::context) {
      answer.held = decoded;
      answer.unread.reset();
    }
  }
  switch (generation.finish()) {
    case hymba::Finish::stop_token:
      answer.finish = "stop_token";
      break;
    case hymba::Finish::length:
      answer.finish = "length";
      break;
    case hymba::Finish::context:
      answer.finish = "context";
      break;
    case hymba::Finish::running:
      break;
  }
  if (stream && !stop.stopped()) {
    deliver(stop.push(stream->finish()));
    if (!stop.stopped()) deliver(stop.finish());
  }
  answer.seconds = watch.seconds();
  return answer;
}

std::string json_line(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + '\n';
}

// ---- saved sessions
// ---------------------------------------------------------------------------------------------------

// A line that names the format, a line of JSON, then the library's snapshot.
namespace {
constexpr std::string_view session_magic = "hymba session 1\n";
}

void save_session(const std::string& path, const SavedSession& saved) {
  refuse_special_file(path);
  const OrderedJson header = {{"kind", saved.kind},
                              {"weights", name_of(saved.formats.weights)},
                              {"cache", name_of(saved.formats.cache)},
                              {"position", saved.position},
                              {"max_context", saved.max_context},
                              {"extra", saved.extra}};
  hymba::AtomicFile file(path);
  file.write(session_magic);
  file.write(json_line(header));
  file.write(saved.blob);
  file.commit();
}

SavedSession load_session(const std::string& path, std::string_view kind) {
  const std::string content = read_file(path);
  const auto fail = [&](const std::string& what) -> hymba::FormatError {
    return hymba::FormatError(path + ": " + what);
  };
  std::string_view rest = content;
  if (!rest.starts_with(session_magic)) throw fail("is not a session saved by hymba");
  rest.remove_prefix(session_magic.size());
  const std::size_t line = rest.find('\n');
  if (line == std::string_view::npos) throw fail("is cut short");
  // Checked by the strict reader (depth, size, one-line errors) before any use.
  const hymba::Json header =
      hymba::parse_json(rest.substr(0, line), path, {.bytes = std::size_t{64} << 20, .depth = 16});
  rest.remove_prefix(line + 1);
  SavedSession saved;
  try {
    saved.kind = header.at("kind").get<std::string>();
    saved.formats = {weights_named(header.at("weights").get<std::string>()),
                     cache_named(header.at("cache").get<std::string>())};
    saved.position = header.at("position").get<std::int64_t>();
    saved.max_context = header.at("max_context").get<std::int64_t>();
    saved.extra = header.at("extra");
  } catch (const hymba::Json::exception&) {
    throw fail("its header lacks a field or has one of another type");
  }
  if (saved.kind != kind)
    throw fail("was saved by hymba " + saved.kind + ", expected one of hymba " + std::string(kind));
  if (saved.position < 0 || saved.max_context < saved.position || saved.max_context > (std::int64_t{1} << 30)) {
    throw fail("its header holds a position or max_context out of range");
  }
  const auto* bytes = reinterpret_cast<const std::byte*>(rest.data());
  saved.blob.assign(bytes, bytes + rest.size());
  return saved;
}

void refuse_special_file(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw UsageError("cannot write " + path + ": it is there and not a regular file");
  }
}

}  // namespace cli
