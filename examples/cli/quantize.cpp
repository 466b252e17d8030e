// SPDX-License-Identifier: Apache-2.0
//
// hymba quantize: a checkpoint with its weights in another format.
#include <hymba/io/calibrate.hpp>
#include <hymba/io/quantise.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "common.hpp"

namespace cli {

namespace {

struct QuantizeArguments {
  std::string in, out, weights, calibrate, ids;
  CLI::Option *text_option = nullptr, *ids_option = nullptr;
  std::int64_t context = 512, max_tokens = 16384;
  bool json = false, quiet = false;
};

/// A folder that is made, or was empty, and is so again unless what was written to it is kept.
class NewFolder {
 public:
  /// @throws UsageError when something is there; IoError when the folder cannot be made.
  explicit NewFolder(const std::string& path) : folder_(path) {
    namespace fs = std::filesystem;
    if (path.empty()) throw UsageError("OUT is \"\", expected the name of a folder");
    std::error_code error;
    const fs::file_status status = fs::status(folder_, error);
    if (fs::exists(status)) {
      if (!fs::is_directory(status)) throw UsageError(message("OUT is ", quoted(path), ", which is not a folder"));
      const bool empty = fs::is_empty(folder_, error);
      if (error) throw hymba::IoError(message("cannot read ", path, ": ", error.message()));
      if (!empty) throw UsageError(message("OUT is ", quoted(path), ", expected a new folder or an empty one"));
      return;
    }
    // A link to nothing is something.
    for (fs::path p = folder_; !p.empty() && !fs::exists(fs::symlink_status(p, error)); p = p.parent_path()) made_ = p;
    fs::create_directories(folder_, error);
    if (error) {
      take_back();
      throw hymba::IoError(message("cannot create ", path, ": ", error.message()));
    }
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  ~NewFolder() {
    if (!kept_) take_back();
  }
  void keep() { kept_ = true; }

 private:
  void take_back() const noexcept {
    std::error_code ignored;
    if (!made_.empty()) {
      std::filesystem::remove_all(made_, ignored);
      return;
    }
    for (std::filesystem::directory_iterator i(folder_, ignored), end; !ignored && i != end; i.increment(ignored)) {
      std::error_code stays;
      std::filesystem::remove_all(i->path(), stays);
    }
  }

  std::filesystem::path folder_, made_;  ///< made_: the outermost folder that was not there
  bool kept_ = false;
};

/// Bytes of the files of weights in a folder.
std::uintmax_t weight_file_bytes(const std::string& folder) {
  std::uintmax_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
  }
  return bytes;
}

/// What belongs to a model beside its weights and config.json.
void copy_companions(const std::string& from, const std::string& to) {
  for (const char* name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json", "generation_config.json"}) {
    const auto source = std::filesystem::path(from) / name;
    std::error_code error;
    if (!std::filesystem::exists(source, error)) continue;
    std::filesystem::copy_file(source, std::filesystem::path(to) / name,
                               std::filesystem::copy_options::overwrite_existing, error);
    if (error) throw hymba::IoError(message("cannot copy ", source.string(), " to ", to, ": ", error.message()));
  }
}

hymba::InputMoments calibrated(const QuantizeArguments& a, hymba::Weights weights) {
  const bool with_ids = a.ids_option->count() > 0, with_text = a.text_option->count() > 0;
  if (!with_ids && !with_text) return {};
  const char* const option = with_ids ? "--ids" : "--calibrate";
  if (weights != hymba::Weights::int4 && weights != hymba::Weights::int8) {
    throw UsageError(message(option, " is for int8 and int4, and changes nothing in --weights ", a.weights));
  }
  if (a.context < 1 || a.context > 65536) {
    throw UsageError(message("--context is ", a.context, ", expected 1 to 65536"));
  }
  if (a.max_tokens < 2) throw UsageError(message("--max-tokens is ", a.max_tokens, ", expected 2 or more"));
  const hymba::Description description = hymba::read_config(a.in);
  std::vector<hymba::Token> tokens;
  if (with_ids) {
    tokens = parse_ids(a.ids, description.vocabulary);
  } else {
    const std::string text = read_file(a.calibrate);
    tokens = open_tokenizer(a.in, description).encode(text);
  }
  // Beside the beginning of text that the tokeniser puts in front.
  if (tokens.size() < 2) {
    throw UsageError(message(with_ids ? option : a.calibrate, ": ", tokens.size(), " tokens, expected at least 2"));
  }
  if (static_cast<std::int64_t>(tokens.size()) > a.max_tokens) tokens.resize(static_cast<std::size_t>(a.max_tokens));
  return hymba::input_moments(a.in, std::move(tokens), a.context);
}

int quantize(const QuantizeArguments& a) {
  const hymba::Weights weights = weights_named(a.weights);
  std::error_code error;
  if (std::filesystem::exists(a.out, error) && std::filesystem::equivalent(a.in, a.out, error)) {
    throw UsageError(message("OUT is ", quoted(a.out), ", expected another folder than IN: its weights would be lost"));
  }
  const Stopwatch watch;
  NewFolder folder(a.out);
  copy_companions(a.in, a.out);
  // Writes config.json last: a folder that was left half way does not open.
  hymba::quantise_checkpoint(a.in, a.out, weights, calibrated(a, weights));
  folder.keep();
  const std::uintmax_t before = weight_file_bytes(a.in), after = weight_file_bytes(a.out);
  if (a.json) {
    put(json_line({{"in", a.in},
                   {"out", a.out},
                   {"weights", a.weights},
                   {"calibrated", a.text_option->count() + a.ids_option->count() > 0},
                   {"bytes_in", before},
                   {"bytes_out", after}}));
  } else if (!a.quiet) {
    note(message(a.out, ": ", bytes_text(after), " of weights in ", a.weights, ", from ", bytes_text(before), ", in ",
                 fixed(watch.seconds(), 1), " s"));
  }
  return 0;
}

}  // namespace

void add_quantize(CLI::App& app, Command& run) {
  CLI::App* command = app.add_subcommand("quantize", "Write a checkpoint with its weights in another format");
  command->footer(
      "int8: 8 bits and a scale for each 256 columns. int4: 4 bits; for each 32 columns how far they reach and where\n"
      "their zero is, and a scale for each row; embedding, output and the projections of the time step stay in int8.\n"
      "The files open by memory map. A text to calibrate by makes either more accurate.\n"
      "Example:\n  hymba quantize DIR DIR-int4 --weights int4 --calibrate some-text.txt\n");
  const auto a = std::make_shared<QuantizeArguments>();
  command->add_option("IN", a->in, "Folder with config.json and the weights")->required()->type_name("");
  command->add_option("OUT", a->out, "Folder to write: a new one, or an empty one")->required()->type_name("");
  command->add_option("--weights", a->weights, "Format of the matrices")
      ->required()
      ->type_name("f32|f16|bf16|int8|int4");
  a->text_option =
      command
          ->add_option("--calibrate", a->calibrate,
                       "Text like what the model will read: rounding then errs as little as it can in products there")
          ->type_name("FILE");
  a->ids_option = command->add_option("--ids", a->ids, "Token ids in place of that text, as 1,2,3")
                      ->type_name("IDS")
                      ->excludes(a->text_option);
  add_number(*command, "--context", a->context, "Tokens of a sequence of that text. Default: 512");
  add_number(*command, "--max-tokens", a->max_tokens, "Tokens of that text that are read. Default: 16384");
  command->add_flag("--json", a->json, "The result as JSON");
  command->add_flag("--quiet", a->quiet, "Nothing on standard error but errors");
  command->callback([&run, a] { run = [a] { return quantize(*a); }; });
}

}  // namespace cli
