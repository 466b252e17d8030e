// SPDX-License-Identifier: Apache-2.0
//
// What the commands share: their common options, opening a model, reading a prompt, generating an answer.
#pragma once

#include <hymba/text/stop_strings.hpp>
#include <hymba/text/tokenizer.hpp>
#include <hymba/variant/description.hpp>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "any_model.hpp"
#include "terminal.hpp"

namespace cli {

using OrderedJson = nlohmann::ordered_json;

/// What runs once the command line is read; returns the exit code.
using Command = std::function<int()>;

void add_generate(CLI::App& app, Command& run);
void add_chat(CLI::App& app, Command& run);
void add_perplexity(CLI::App& app, Command& run);
void add_inspect(CLI::App& app, Command& run);
void add_logits(CLI::App& app, Command& run);
void add_tokenize(CLI::App& app, Command& run);
void add_quantize(CLI::App& app, Command& run);
void add_train(CLI::App& app, Command& run);
void add_bench(CLI::App& app, Command& run);

/// The whole of `text` as a number. @throws UsageError naming the option. Instantiated for float and the integers in
/// use.
template <class Number>
Number parse_number(const std::string& option, const std::string& text);

/// An option that takes one number, decimal and in range. @throws UsageError while parsing, naming option and value.
template <class Number>
CLI::Option* add_number(CLI::App& command, const std::string& name, Number& value, const std::string& what) {
  static_assert(std::is_arithmetic_v<Number>);
  return command
      .add_option_function<std::string>(
          name, [name, &value](const std::string& text) { value = parse_number<Number>(name, text); }, what)
      ->type_name(std::is_floating_point_v<Number> ? "X" : "N");
}

/// Options of every command that runs a model.
struct CommonOptions {
  std::string model;
  int threads = 0;
  std::string weights, cache;    ///< empty: not given
  std::string arch = "auto";
  std::int64_t max_context = 0;  ///< 0: not given
  std::int64_t prefill_chunk = SessionSettings{}.prefill_chunk;
  bool json = false, quiet = false;
};
/// @param max_context_default null: the command has no --max-context.
void add_common(CLI::App& command, CommonOptions& options, const char* max_context_default);

/// --prefill-chunk, for commands that prefill.
void add_prefill_chunk(CLI::App& command, CommonOptions& options);

/// --seed for a command that draws nothing, so that scripts can pass one set of options everywhere.
void add_idle_seed(CLI::App& command);

/// Options that choose tokens. `given()` tells whether any was on the command line.
struct SamplingArguments {
  hymba::SamplingOptions options;
  bool greedy = false;
  std::vector<CLI::Option*> all;

  bool given() const;
  /// @throws hymba::ArgumentError naming an option out of range.
  void check() const { hymba::Sampler(1).configure(options); }
};
void add_sampling(CLI::App& command, SamplingArguments& arguments);

struct Formats {
  hymba::Weights weights = hymba::Weights::bf16;
  hymba::Cache cache = hymba::Cache::f32;
  Path path = Path::simd;
};
std::string name_of(hymba::Weights w);
std::string name_of(hymba::Cache c);
/// @throws UsageError.
hymba::Weights weights_named(std::string_view name);
hymba::Cache cache_named(std::string_view name);

/// An opened checkpoint.
struct OpenModel {
  hymba::Description description;
  AnyArchitecture architecture;
  Formats formats;
  std::unique_ptr<AnyModel> model;
  double seconds = 0;

  /// A session, refused with a sentence when its caches alone exceed the machine's memory. `blob`: restore from it.
  std::unique_ptr<AnySession> session(SessionSettings settings, std::span<const std::byte> blob = {}) const;
  std::size_t cache_bytes(std::int64_t max_context) const;
  /// Bytes of keys and values that a session behind `context` tokens reads to add one, every reader of a shared cache
  /// counted.
  double cache_read_bytes(std::int64_t context) const;
};
/// @param saved formats to use where the command line names none (those of a saved session).
OpenModel open_model(const CommonOptions& options, const std::optional<Formats>& saved = {});
/// A model of random weights, always the same ones; `options.model` names it. Making them does not count as opening.
OpenModel random_model(const CommonOptions& options, const hymba::Description& description);
/// What of the options is wrong whatever the model is. @throws UsageError.
void check_common(const CommonOptions& options);
/// Refuses what takes more memory than the machine has. @throws UsageError.
void check_fits(std::size_t bytes, const std::string& what);

/// The tokeniser of the folder.
/// @throws hymba::Error, also when it has more tokens than the model.
hymba::Tokenizer open_tokenizer(const std::string& folder, const hymba::Description& description);

/// Every tensor the architecture needs, by its full name.
std::vector<std::pair<std::string, hymba::TensorSpec>> tensor_specs(const AnyArchitecture& architecture);

/// @throws hymba::TensorError unless the table holds exactly the architecture's tensors.
void check_checkpoint(const AnyArchitecture& architecture, const hymba::TensorTable& table, const std::string& folder);

/// "1,2,3" as tokens. @throws UsageError naming what is not a token of the vocabulary.
std::vector<hymba::Token> parse_ids(std::string_view text, int vocabulary);

/// A whole file; "-": standard input. @throws UsageError.
std::string read_file(const std::string& path);

/// Ids of the config's and the tokeniser's end of text.
std::vector<hymba::Token> end_tokens(const hymba::Description& description, const hymba::Tokenizer* tokenizer);

/// Reads a prompt piece by piece, so that it can be interrupted and shows how far it is. Returns false when
/// interrupted.
bool read_prompt(AnySession& session, std::span<const hymba::Token> tokens, bool progress);

struct AnswerLimits {
  std::int64_t max_new_tokens = 128;
  std::vector<hymba::Token> stop_tokens;
  std::vector<std::string> stop_strings;
};

/// What was generated, and how it ended.
struct Answer {
  std::string text;                  ///< as shown
  std::string held;                  ///< the text of the tokens that the session has read
  std::vector<hymba::Token> tokens;  ///< all sampled ones but a stop token
  std::vector<float> logprobs;
  std::string finish;                  ///< length, stop_token, stop_string, context, interrupted
  std::string stop;                    ///< the stop string
  std::optional<hymba::Token> unread;  ///< the last token, when the session has not read it
  double seconds = 0;
};
/// Generates with the session's sampler as it stands. `show` gets whole characters; without a tokeniser, ids.
Answer generate_answer(AnySession& session, const AnswerLimits& limits, const hymba::Tokenizer* tokenizer,
                       const std::function<void(std::string_view)>& show);

/// One line of JSON; text that is not UTF-8 is repaired.
std::string json_line(const OrderedJson& json);

/// A session on disk: formats, what the command wants to keep, and the library's snapshot.
struct SavedSession {
  std::string kind;  ///< the command that wrote it
  Formats formats;
  std::int64_t position = 0, max_context = 0;
  OrderedJson extra;
  std::vector<std::byte> blob;
};
/// Files are replaced, never written into: a device, pipe or folder is refused. @throws UsageError.
void refuse_special_file(const std::string& path);
void save_session(const std::string& path, const SavedSession& saved);
/// @throws hymba::Error when the file is none, or of another command.
SavedSession load_session(const std::string& path, std::string_view kind);

}  // namespace cli
