// SPDX-License-Identifier: Apache-2.0
//
// hymba logits: the logits behind every given token, as a safetensors file.
#include <hymba/core/error.hpp>
#include <hymba/io/safetensors.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common.hpp"

namespace cli {

namespace {

struct LogitsArguments {
  CommonOptions common;
  std::string ids, out;
  std::optional<std::int64_t> prefill;
};

int logits(const LogitsArguments& a) {
  refuse_special_file(a.out);
  const OpenModel open = open_model(a.common);
  const std::vector<hymba::Token> ids = parse_ids(a.ids, open.description.vocabulary);
  const auto count = static_cast<std::int64_t>(ids.size());
  const std::int64_t first = a.prefill.value_or(count);
  if (first < 0 || first > count) {
    throw UsageError(message("--prefill is ", first, ", expected 0 to the number of ids, ", count));
  }
  if (first > 65536) {
    throw UsageError(message(first, " ids in one chunk, expected at most 65536: use --prefill"));
  }
  const std::int64_t vocabulary = open.description.vocabulary;
  const std::unique_ptr<AnySession> session =
      open.session({.max_context = a.common.max_context == 0 ? count : a.common.max_context,
                    .prefill_chunk = std::max(first, std::int64_t{1}),
                    .threads = a.common.threads});
  const CatchInterrupt guard;
  std::vector<float> all(static_cast<std::size_t>(count * vocabulary));
  Progress bar("logits", count, stderr_is_terminal() && !a.common.quiet);
  const std::span<const hymba::Token> tokens(ids);
  session->evaluate(tokens.first(static_cast<std::size_t>(first)),
                    std::span(all).first(static_cast<std::size_t>(first * vocabulary)));
  for (std::int64_t i = first; i < count; ++i) {
    if (interrupted()) return 130;
    const std::span<const float> row = session->decode(ids[static_cast<std::size_t>(i)]);
    std::copy(row.begin(), row.end(), all.begin() + i * vocabulary);
    bar.at(i + 1);
  }
  const std::vector<hymba::TensorToWrite> tensors{
      {"logits", hymba::DType::f32, {count, vocabulary}, std::as_bytes(std::span<const float>(all))}};
  hymba::write_safetensors(a.out, tensors);
  if (a.common.json) {
    put(json_line({{"out", a.out},
                   {"ids", count},
                   {"vocabulary", vocabulary},
                   {"prefill", first},
                   {"weights", name_of(open.formats.weights)},
                   {"cache", name_of(open.formats.cache)}}));
  }
  return 0;
}

}  // namespace

void add_logits(CLI::App& app, Command& run) {
  CLI::App* command = app.add_subcommand("logits", "Write the logits behind every token to a file");
  command->footer("Example:\n  hymba logits --model DIR --ids 1,450,7483 --out logits.safetensors\n");
  const auto a = std::make_shared<LogitsArguments>();
  add_common(*command, a->common, "the number of ids");
  command->add_option("--ids", a->ids, "Token ids, as 1,2,3; nothing is added to them")->type_name("IDS")->required();
  command->add_option("--out", a->out, "Gets the tensor logits, F32, [ids, vocabulary]")->type_name("FILE")->required();
  command
      ->add_option_function<std::string>(
          "--prefill", [a](const std::string& text) { a->prefill = parse_number<std::int64_t>("--prefill", text); },
          "The first N ids in one chunk, the rest one by one through the cache. Default: all in one chunk")
      ->type_name("N");
  add_idle_seed(*command);
  command->callback([&run, a] { run = [a] { return logits(*a); }; });
}

}  // namespace cli
