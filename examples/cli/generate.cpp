// SPDX-License-Identifier: Apache-2.0
//
// hymba generate: text from a prompt, shown as it comes.
#include <hymba/core/error.hpp>

#include <algorithm>
#include <memory>
#include <utility>

#include "common.hpp"

namespace cli {

namespace {

struct GenerateArguments {
  CommonOptions common;
  SamplingArguments sampling;
  std::string prompt, prompt_file, ids, save, load;
  CLI::Option *prompt_option = nullptr, *prompt_file_option = nullptr, *ids_option = nullptr;
  std::int64_t max_new_tokens = 128;
  std::vector<std::string> stop;
  std::vector<std::string> stop_tokens;
  bool logprobs = false, no_bos = false, ignore_eos = false;
};

OrderedJson timings(double load, double prompt, std::size_t prompt_tokens, double decode, std::size_t new_tokens) {
  return {{"load_seconds", load},
          {"prompt_seconds", prompt},
          {"prompt_tokens_per_second", rate(static_cast<std::int64_t>(prompt_tokens), prompt)},
          {"decode_seconds", decode},
          {"decode_tokens_per_second", rate(static_cast<std::int64_t>(new_tokens), decode)}};
}

int generate(const GenerateArguments& a) {
  const bool with_ids = a.ids_option->count() > 0;
  const bool with_text = a.prompt_option->count() > 0 || a.prompt_file_option->count() > 0;
  const bool loading = !a.load.empty();
  if (!with_ids && !with_text && !loading) {
    throw UsageError("generate: no prompt, expected --prompt, --prompt-file, --ids or --load-session");
  }
  if (a.max_new_tokens < 0) {
    throw UsageError(message("--max-new-tokens is ", a.max_new_tokens, ", expected 0 or more"));
  }
  if (a.logprobs && !a.common.json) throw UsageError("--logprobs needs --json");
  if (with_ids && !a.stop.empty()) throw UsageError("--stop needs text, but the prompt is given by --ids");
  if (!a.save.empty()) refuse_special_file(a.save);
  a.sampling.check();
  const hymba::StopStrings checked_now(a.stop);

  std::optional<SavedSession> saved;
  if (loading) saved = load_session(a.load, "generate");
  const OpenModel open = open_model(a.common, saved ? std::optional(saved->formats) : std::nullopt);
  std::optional<hymba::Tokenizer> tokenizer;
  if (!with_ids) tokenizer = open_tokenizer(a.common.model, open.description);

  std::vector<hymba::Token> prompt;
  if (with_ids) {
    prompt = parse_ids(a.ids, open.description.vocabulary);
  } else if (with_text) {
    const std::string text = a.prompt_file_option->count() > 0 ? read_file(a.prompt_file) : a.prompt;
    prompt = tokenizer->encode(text, {.add_bos = !a.no_bos, .continuation = loading});
  }
  if (prompt.empty() && !loading) throw UsageError("the prompt is empty, expected at least one token");
  std::vector<hymba::Token> stop_tokens;
  for (const std::string& text : a.stop_tokens) {
    stop_tokens.push_back(parse_number<hymba::Token>("--stop-token", text));
    if (stop_tokens.back() < 0 || stop_tokens.back() >= open.description.vocabulary) {
      throw UsageError("--stop-token is " + text + ", expected 0 to " +
                       std::to_string(open.description.vocabulary - 1));
    }
  }

  SessionSettings settings{
      .max_context = a.common.max_context, .prefill_chunk = a.common.prefill_chunk, .threads = a.common.threads};
  if (settings.max_context == 0) {
    const std::int64_t before = saved ? saved->position : 0;
    settings.max_context =
        std::max(before + static_cast<std::int64_t>(prompt.size()) + a.max_new_tokens, std::int64_t{1});
  }
  const Stopwatch load_watch;
  const std::unique_ptr<AnySession> session =
      open.session(settings, saved ? std::span<const std::byte>(saved->blob) : std::span<const std::byte>());
  if (!loading || a.sampling.given()) session->configure(a.sampling.options);
  const double load_seconds = open.seconds + load_watch.seconds();

  const CatchInterrupt guard;
  const Stopwatch prompt_watch;
  const bool read = read_prompt(*session, prompt, stderr_is_terminal() && !a.common.quiet);
  const double prompt_seconds = prompt_watch.seconds();

  AnswerLimits limits{
      .max_new_tokens = a.max_new_tokens, .stop_tokens = std::move(stop_tokens), .stop_strings = a.stop};
  if (!a.ignore_eos) {
    for (const hymba::Token t : end_tokens(open.description, tokenizer ? &*tokenizer : nullptr)) {
      limits.stop_tokens.push_back(t);
    }
  }
  Answer answer;
  if (read) {
    answer = generate_answer(*session, limits, tokenizer ? &*tokenizer : nullptr, [&](std::string_view text) {
      if (!a.common.json) put(text);
    });
    if (!a.common.json) put("\n");
  } else {
    answer.finish = "interrupted";
  }

  if (!a.save.empty()) {
    if (answer.unread && session->room() > 0) session->decode(*answer.unread);
    save_session(a.save, {"generate", open.formats, session->position(), session->max_context(), OrderedJson::object(),
                          session->snapshot()});
  }
  const std::size_t cache = open.cache_bytes(settings.max_context);
  if (a.common.json) {
    OrderedJson out;
    if (tokenizer) out["text"] = answer.text;
    out["tokens"] = answer.tokens;
    if (a.logprobs) out["logprobs"] = answer.logprobs;
    out["finish"] = answer.finish;
    if (!answer.stop.empty()) out["stop"] = answer.stop;
    out["prompt_tokens"] = prompt.size();
    out["prompt_ids"] = prompt;
    out["position"] = session->position();
    out["weights"] = name_of(open.formats.weights);
    out["cache"] = name_of(open.formats.cache);
    out["cache_bytes"] = cache;
    out["threads"] = session->threads();
    out["timings"] = timings(load_seconds, prompt_seconds, prompt.size(), answer.seconds, answer.tokens.size());
    put(json_line(out));
  } else if (!a.common.quiet) {
    note(message("prompt: ", grouped(static_cast<std::int64_t>(prompt.size())), " tokens, ",
                 fixed(rate(static_cast<std::int64_t>(prompt.size()), prompt_seconds), 1),
                 " tokens/s; generated: ", grouped(static_cast<std::int64_t>(answer.tokens.size())), " tokens, ",
                 fixed(rate(static_cast<std::int64_t>(answer.tokens.size()), answer.seconds), 1), " tokens/s; cache: ",
                 bytes_text(cache), " (", name_of(open.formats.cache), "); weights: ", name_of(open.formats.weights),
                 "; loaded in ", fixed(load_seconds, 2), " s; finish: ", answer.finish));
  }
  return answer.finish == "interrupted" ? 130 : 0;
}

}  // namespace

void add_generate(CLI::App& app, Command& run) {
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt");
  command->footer(
      "Example:\n  hymba generate --model DIR --prompt \"The capital of France is\" --temperature 0.7 --seed 1\n");
  const auto a = std::make_shared<GenerateArguments>();
  add_common(*command, a->common, "prompt and --max-new-tokens together");
  add_prefill_chunk(*command, a->common);
  a->prompt_option = command->add_option("--prompt", a->prompt, "Text to continue")->type_name("TEXT");
  a->prompt_file_option =
      command->add_option("--prompt-file", a->prompt_file, "The same from a file; -: standard input")
          ->type_name("FILE")
          ->excludes(a->prompt_option);
  a->ids_option = command
                      ->add_option("--ids", a->ids,
                                   "Token ids in place of text, as 1,2,3: nothing is added to them, no tokenizer is "
                                   "needed, and ids are printed")
                      ->type_name("IDS")
                      ->excludes(a->prompt_option)
                      ->excludes(a->prompt_file_option);
  add_number(*command, "--max-new-tokens", a->max_new_tokens, "Default: 128");
  command->add_option("--stop", a->stop, "End before this text; may be given more than once")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command->add_option("--stop-token", a->stop_tokens, "End before this token; may be given more than once")
      ->type_name("ID")
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", a->ignore_eos, "Do not end at the model's end of text");
  command->add_flag("--no-bos", a->no_bos, "Do not put the beginning of text in front of the prompt");
  command->add_flag("--logprobs", a->logprobs, "Log-probabilities of the generated tokens; with --json");
  command->add_option("--save-session", a->save, "Write the session at the end")->type_name("FILE");
  command
      ->add_option("--load-session", a->load,
                   "Go on from a saved session, with its formats and sampler; a prompt continues its text, and any "
                   "sampling option starts the sampler anew")
      ->type_name("FILE");
  add_sampling(*command, a->sampling);
  command->callback([&run, a] { run = [a] { return generate(*a); }; });
}

}  // namespace cli
