// SPDX-License-Identifier: Apache-2.0
//
// hymba perplexity: how well a model predicts a text.
//
// The text is cut into windows of --max-context tokens, each --stride after the one before (half a window by default).
// Every window starts from the meta tokens alone. It scores the tokens that the one before did not, so every token but
// the first is scored once, with at least max_context - stride + 1 tokens before it where the text has them.
#include <hymba/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <optional>
#include <utility>

#include "common.hpp"

namespace cli {

namespace {

struct PerplexityArguments {
  CommonOptions common;
  std::string file, ids;
  CLI::Option *file_option = nullptr, *ids_option = nullptr;
  std::int64_t stride = 0;
  bool no_bos = false, progress = false;
};

/// -log softmax(logits)[token], in nats.
double surprise(std::span<const float> logits, hymba::Token token) {
  const double top = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - top);
  return top + std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

int perplexity(const PerplexityArguments& a) {
  const bool with_ids = a.ids_option->count() > 0;
  if (with_ids == (a.file_option->count() > 0)) throw UsageError("perplexity: expected either FILE or --ids");
  const std::string text = with_ids ? std::string() : read_file(a.file);
  const OpenModel open = open_model(a.common);

  std::vector<hymba::Token> tokens;
  std::size_t bytes = 0;  // of the text that is scored
  if (with_ids) {
    tokens = parse_ids(a.ids, open.description.vocabulary);
  } else {
    const hymba::Tokenizer tokenizer = open_tokenizer(a.common.model, open.description);
    tokens = tokenizer.encode(text, {.add_bos = !a.no_bos, .continuation = false});
    bytes = tokenizer.decode(tokens).size();
    if (!tokens.empty()) bytes -= tokenizer.decode(tokens.front()).size();
  }
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count < 2) {
    throw UsageError(message(with_ids ? "--ids" : a.file, ": ", count, " tokens, expected at least 2"));
  }

  std::int64_t window = a.common.max_context;
  if (window == 0) window = open.description.max_positions > 0 ? std::min(2048, open.description.max_positions) : 2048;
  const std::int64_t stride = a.stride == 0 ? std::max(window / 2, std::int64_t{1}) : a.stride;
  if (stride < 1 || stride > window) {
    throw UsageError(message("--stride is ", stride, ", expected 1 to --max-context ", window));
  }
  const std::unique_ptr<AnySession> session =
      open.session({.max_context = std::min(window, count - 1), .threads = a.common.threads});

  const CatchInterrupt guard;
  const Stopwatch watch;
  const std::int64_t vocabulary = open.description.vocabulary, inputs = count - 1, piece = 128;
  std::vector<float> logits(static_cast<std::size_t>(std::min(piece, inputs) * vocabulary));
  double nats = 0;
  std::int64_t scored = 0, windows = 0;
  std::optional<Progress> bar(std::in_place, "perplexity", inputs,
                              (stderr_is_terminal() || a.progress) && !a.common.quiet);
  const std::span<const hymba::Token> all(tokens);
  for (std::int64_t begin = 0; scored < inputs; begin += stride, ++windows) {
    const std::int64_t end = std::min(begin + window, inputs);
    session->reset();
    session->prefill(all.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(scored - begin)));
    while (scored < end) {
      if (interrupted()) return 130;
      const std::int64_t rows = std::min(piece, end - scored);
      const auto out = std::span(logits).first(static_cast<std::size_t>(rows * vocabulary));
      session->evaluate(all.subspan(static_cast<std::size_t>(scored), static_cast<std::size_t>(rows)), out);
      for (std::int64_t i = 0; i < rows; ++i) {
        nats += surprise(out.subspan(static_cast<std::size_t>(i * vocabulary), static_cast<std::size_t>(vocabulary)),
                         tokens[static_cast<std::size_t>(scored + i + 1)]);
      }
      scored += rows;
      bar->at(scored, "perplexity " + fixed(std::exp(nats / static_cast<double>(scored)), 3));
    }
  }
  bar.reset();  // clears its line
  const double per_token = nats / static_cast<double>(scored);
  const double per_byte = bytes > 0 ? nats / std::numbers::ln2 / static_cast<double>(bytes) : 0;
  if (!std::isfinite(nats)) throw hymba::Error("the model's logits are not all finite numbers");
  if (a.common.json) {
    OrderedJson out{{"tokens", count},
                    {"scored_tokens", scored},
                    {"nats", nats},
                    {"nats_per_token", per_token},
                    {"perplexity", std::exp(per_token)}};
    if (bytes > 0) {
      out["bytes"] = bytes;
      out["bits_per_byte"] = per_byte;
    }
    out["max_context"] = window;
    out["stride"] = stride;
    out["windows"] = windows;
    out["weights"] = name_of(open.formats.weights);
    out["cache"] = name_of(open.formats.cache);
    out["seconds"] = watch.seconds();
    put(json_line(out));
    return 0;
  }
  std::string report = "tokens          " + grouped(scored) + "\nnats per token  " + fixed(per_token, 4) +
                       "\nperplexity      " + fixed(std::exp(per_token), 4) + '\n';
  if (bytes > 0) report += "bits per byte   " + fixed(per_byte, 4) + '\n';
  put(report);
  if (!a.common.quiet) {
    note(message(windows, " windows of ", window, " tokens, stride ", stride, "; ",
                 fixed(rate(scored, watch.seconds()), 1), " tokens/s; weights: ", name_of(open.formats.weights),
                 ", cache: ", name_of(open.formats.cache)));
  }
  return 0;
}

}  // namespace

void add_perplexity(CLI::App& app, Command& run) {
  CLI::App* command = app.add_subcommand("perplexity", "Measure how well a model predicts a text");
  command->footer("Example:\n  hymba perplexity --model DIR book.txt --max-context 1024\n");
  const auto a = std::make_shared<PerplexityArguments>();
  add_common(*command, a->common,
             "the config's max_position_embeddings, at most 2048. Longer texts go in windows of that many tokens");
  a->file_option = command->add_option("file", a->file, "Text; -: standard input")->type_name("FILE");
  a->ids_option = command->add_option("--ids", a->ids, "Token ids in place of text, as 1,2,3")->type_name("IDS");
  add_number(
      *command, "--stride", a->stride,
      "Tokens from one window to the next; every token is scored once, with more than max-context - stride tokens "
      "before it. Default: half of max-context");
  command->add_flag("--no-bos", a->no_bos,
                    "Do not put the beginning of text in front (the first token is never scored)");
  command->add_flag("--progress", a->progress, "Show progress on standard error even when it is no terminal");
  add_idle_seed(*command);
  command->callback([&run, a] { run = [a] { return perplexity(*a); }; });
}

}  // namespace cli
