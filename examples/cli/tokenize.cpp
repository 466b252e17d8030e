// SPDX-License-Identifier: Apache-2.0
//
// hymba tokenize: plain text to a token file, as training reads it, and one of held-out text beside it.
#include <hymba/core/error.hpp>
#include <hymba/text/tokenizer.hpp>
#include <hymba/text/utf8.hpp>
#include <hymba/train/token_file.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "common.hpp"

namespace cli {

namespace {

struct TokenizeArguments {
  std::string tokenizer, out, validation_out, separator;
  std::vector<std::string> files;
  float fraction = 0.05f;
  std::int64_t held_out = 0;
  CLI::Option *validation_option = nullptr, *fraction_option = nullptr, *held_out_option = nullptr,
              *separator_option = nullptr;
  bool no_bos = false, no_eos = false, json = false, quiet = false;
};

/// Documents of one of the outputs.
struct Part {
  const char* name;
  std::string path;
  std::vector<std::string_view> documents;
};

std::string shown_name(const std::string& path) { return path == "-" ? "standard input" : path; }

void check_utf8(std::string_view text, const std::string& path) {
  for (std::size_t at = 0; at < text.size();) {
    const auto step = hymba::detail::utf8_step(text.substr(at));
    if (step.kind != hymba::detail::Utf8::character) {
      throw UsageError(message(shown_name(path), ": byte ", at, " is not UTF-8 text (\\x", std::hex,
                               int{static_cast<unsigned char>(text[at])}, "), expected a text file in UTF-8"));
    }
    at += step.length;
  }
}

/// Cuts at lines equal to `separator`, which belong to no document. Empty documents are left out.
std::vector<std::string_view> split_documents(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> out;
  std::size_t begin = 0;
  const auto add = [&](std::size_t end) {
    if (end > begin) out.push_back(text.substr(begin, end - begin));
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    const std::size_t next = std::min(end + 1, text.size());
    if (line == separator) {
      add(at);
      begin = next;
    }
    at = next;
  }
  add(text.size());
  return out;
}

/// Every document in its place: `count` of them, one from the middle of each of `count` equal stretches, go to the
/// second part.
void hold_out(const std::vector<std::string_view>& documents, std::int64_t count, Part& kept, Part& held) {
  const auto all = static_cast<std::int64_t>(documents.size());
  std::int64_t taken = 0;
  for (std::int64_t i = 0; i < all; ++i) {
    const bool take = taken < count && i == (2 * taken + 1) * all / (2 * count);
    (take ? held : kept).documents.push_back(documents[static_cast<std::size_t>(i)]);
    taken += take ? 1 : 0;
  }
}

/// The end of a single document, cut at the line's beginning nearest to the fraction asked for.
void hold_out_tail(std::string_view text, float fraction, Part& kept, Part& held) {
  const auto wanted = static_cast<std::size_t>(static_cast<double>(text.size()) * (1 - static_cast<double>(fraction)));
  const std::size_t before = wanted == 0 ? std::string_view::npos : text.rfind('\n', wanted - 1);
  const std::size_t after = text.find('\n', wanted);
  std::size_t cut = 0;
  if (before != std::string_view::npos) cut = before + 1;
  if (after != std::string_view::npos && after + 1 < text.size() && (cut == 0 || after + 1 - wanted < wanted - cut)) {
    cut = after + 1;
  }
  if (cut == 0) {
    throw UsageError(
        "--val: there is one document and it is one line, expected several documents or lines to hold some out");
  }
  kept.documents.push_back(text.substr(0, cut));
  held.documents.push_back(text.substr(cut));
}

bool same_file(const std::string& a, const std::string& b) {
  std::error_code error;
  if (std::filesystem::equivalent(a, b, error)) return true;
  const auto absolute = [&](const std::string& path) { return std::filesystem::weakly_canonical(path, error); };
  return absolute(a) == absolute(b);
}

void check_arguments(const TokenizeArguments& a) {
  const bool validation = a.validation_option->count() > 0;
  for (const CLI::Option* option : {a.fraction_option, a.held_out_option}) {
    if (option->count() > 0 && !validation) throw UsageError(option->get_name() + " needs --val FILE");
  }
  if (!(a.fraction > 0 && a.fraction < 1)) {
    throw UsageError(message("--val-fraction is ", a.fraction, ", expected more than 0 and less than 1"));
  }
  if (a.held_out_option->count() > 0 && a.held_out < 1) {
    throw UsageError(message("--val-documents is ", a.held_out, ", expected at least 1"));
  }
  if (a.separator.find_first_of("\r\n") != std::string::npos) {
    throw UsageError("--split-documents holds a line end, expected the text of one line");
  }
  if (validation && same_file(a.out, a.validation_out)) {
    throw UsageError("--val and --out are the same file " + a.out);
  }
  for (const std::string& output : {a.out, a.validation_out}) {
    if (output.empty() && !validation) continue;
    refuse_special_file(output);
    for (const std::string& input : a.files) {
      if (input != "-" && same_file(input, output)) {
        throw UsageError(message("cannot write ", output, ": it is one of the texts to read"));
      }
    }
  }
}

/// The documents of all files, in order. `texts` holds what they look into.
std::vector<std::string_view> read_documents(const TokenizeArguments& a, std::vector<std::string>& texts) {
  texts.reserve(a.files.size());
  std::vector<std::string_view> documents;
  for (const std::string& path : a.files) {
    const std::string& text = texts.emplace_back(read_file(path));
    if (text.empty()) throw UsageError(shown_name(path) + " is empty, expected text");
    check_utf8(text, path);
    if (a.separator_option->count() == 0) {
      documents.push_back(text);
      continue;
    }
    const auto found = split_documents(text, a.separator);
    if (found.empty()) throw UsageError(shown_name(path) + " holds nothing but --split-documents lines, expected text");
    documents.insert(documents.end(), found.begin(), found.end());
  }
  return documents;
}

/// One or two parts.
std::vector<Part> make_parts(const TokenizeArguments& a, const std::vector<std::string_view>& documents) {
  if (a.validation_option->count() == 0) return {{"train", a.out, documents}};
  Part train{"train", a.out, {}}, validation{"validation", a.validation_out, {}};
  const auto all = static_cast<std::int64_t>(documents.size());
  if (a.held_out_option->count() > 0) {
    if (a.held_out >= all) {
      throw UsageError(
          message("--val-documents is ", a.held_out, ", expected less than the number of documents ", all));
    }
    hold_out(documents, a.held_out, train, validation);
  } else if (all < 2) {
    hold_out_tail(documents.front(), a.fraction, train, validation);
  } else {
    const double wanted = std::round(static_cast<double>(a.fraction) * static_cast<double>(all));
    hold_out(documents, std::clamp<std::int64_t>(static_cast<std::int64_t>(wanted), 1, all - 1), train, validation);
  }
  return {std::move(train), std::move(validation)};
}

int tokenize(const TokenizeArguments& a) {
  check_arguments(a);
  const hymba::Tokenizer tokenizer = hymba::Tokenizer::open(a.tokenizer);
  std::vector<std::string> texts;
  const std::vector<std::string_view> documents = read_documents(a, texts);
  const std::vector<Part> parts = make_parts(a, documents);

  std::vector<std::unique_ptr<hymba::TokenFileWriter>> writers;
  std::int64_t bytes = 0;
  for (const Part& part : parts) {
    writers.push_back(std::make_unique<hymba::TokenFileWriter>(part.path, tokenizer.vocabulary()));
    for (const std::string_view text : part.documents) bytes += static_cast<std::int64_t>(text.size());
  }

  const CatchInterrupt guard;
  const Stopwatch watch;
  const bool bos = !a.no_bos && tokenizer.bos() >= 0, eos = !a.no_eos && tokenizer.eos() >= 0;
  std::optional<Progress> bar(std::in_place, "tokenize", bytes, stderr_is_terminal() && !a.quiet);
  std::int64_t done = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (const std::string_view text : parts[i].documents) {
      if (interrupted()) return 130;
      std::vector<hymba::Token> tokens = tokenizer.encode(text, {.add_bos = bos, .continuation = false});
      if (eos) tokens.push_back(tokenizer.eos());
      if (tokens.empty()) continue;  // a model may drop spaces, and a document be nothing else
      writers[i]->add_document(tokens, static_cast<std::int64_t>(text.size()));
      done += static_cast<std::int64_t>(text.size());
      bar->at(done);
    }
  }
  bar.reset();  // clears its line
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (writers[i]->size() == 0) throw UsageError("no tokens for " + parts[i].path + ", expected at least 1");
  }
  for (const auto& writer : writers) writer->commit();

  OrderedJson json{{"vocabulary", tokenizer.vocabulary()}};
  std::string report;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const hymba::TokenFileWriter& w = *writers[i];
    const double ratio = static_cast<double>(w.text_bytes()) / static_cast<double>(w.size());
    json[parts[i].name] = {{"path", parts[i].path},
                           {"documents", w.documents()},
                           {"bytes", w.text_bytes()},
                           {"tokens", w.size()},
                           {"bytes_per_token", ratio}};
    report +=
        message(parts[i].path, ": ", grouped(w.documents()), w.documents() == 1 ? " document, " : " documents, ",
                grouped(w.text_bytes()), " bytes, ", grouped(w.size()), " tokens, ", fixed(ratio, 3), " bytes/token\n");
  }
  put(a.json ? json_line(json) : report);
  if (!a.quiet && !a.json) {
    note(message(fixed(rate(bytes, watch.seconds()) / 1e6, 1), " MB/s; vocabulary ", tokenizer.vocabulary()));
  }
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Command& run) {
  CLI::App* command = app.add_subcommand("tokenize", "Turn plain text into token files for training");
  command->footer(
      "Each document gets the beginning of text in front and the end of text behind, as far as the tokeniser has them. "
      "A document is encoded as a whole, which takes some 100 bytes of memory for each of its bytes.\n\n"
      "Example:\n  hymba tokenize --tokenizer DIR --out train.tok --val val.tok --split-documents '<|document|>' "
      "corpus.txt\n");
  const auto a = std::make_shared<TokenizeArguments>();
  command->add_option("--tokenizer", a->tokenizer, "A tokenizer.model, or the folder of one")
      ->required()
      ->type_name("PATH");
  command->add_option("--out", a->out, "Token file to write")->required()->type_name("FILE");
  a->validation_option =
      command->add_option("--val", a->validation_out, "Token file for held-out documents")->type_name("FILE");
  a->fraction_option = add_number(
      *command, "--val-fraction", a->fraction,
      "Documents to hold out, of all, evenly spread; of a single document, its end from a line on. Default: 0.05");
  a->held_out_option = add_number(*command, "--val-documents", a->held_out, "Number of documents to hold out")
                           ->excludes(a->fraction_option);
  a->separator_option =
      command
          ->add_option("--split-documents", a->separator,
                       "Cut files into documents at lines equal to TEXT; '': at empty lines. Default: a file is one")
          ->type_name("TEXT");
  command->add_flag("--no-bos", a->no_bos, "No beginning of text in front of a document");
  command->add_flag("--no-eos", a->no_eos, "No end of text behind a document");
  command->add_flag("--json", a->json, "Results as JSON");
  command->add_flag("--quiet", a->quiet, "Nothing on standard error but errors");
  command->add_option("files", a->files, "Texts in UTF-8; -: standard input")->required()->type_name("FILE");
  command->callback([&run, a] { run = [a] { return tokenize(*a); }; });
}

}  // namespace cli
