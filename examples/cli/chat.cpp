// SPDX-License-Identifier: Apache-2.0
//
// hymba chat: a conversation of many turns over one session. Only the text a turn adds is read; history never is again.
#include <hymba/core/error.hpp>
#include <hymba/text/chat_template.hpp>

#include <iostream>
#include <memory>
#include <utility>

#include "common.hpp"

namespace cli {

namespace {

struct ChatArguments {
  CommonOptions common;
  SamplingArguments sampling;
  std::string system, save, load;
  std::vector<std::string> tools, contexts;
  std::int64_t max_new_tokens = 512;
  std::vector<std::string> stop;
};

std::vector<nlohmann::ordered_json> read_tools(const std::string& path) {
  try {
    return hymba::parse_tools(read_file(path));
  } catch (const hymba::Error& e) {
    throw hymba::FormatError(path + ": " + e.what());
  }
}

/// A conversation and the session that holds it.
class Conversation {
 public:
  Conversation(const ChatArguments& a, const OpenModel& open, const hymba::Tokenizer& tokenizer,
               const std::optional<SavedSession>& saved)
      : arguments_(a), open_(open), tokenizer_(tokenizer), system_(a.system) {
    settings_.max_context = a.common.max_context;
    if (settings_.max_context == 0) settings_.max_context = saved ? saved->max_context : 4096;
    settings_.prefill_chunk = a.common.prefill_chunk;
    settings_.threads = a.common.threads;
    for (const std::string& path : a.tools) add_tools(path);
    for (const std::string& path : a.contexts) contexts_.push_back(read_file(path));
    if (saved) {
      restore(*saved);
      if (a.sampling.given()) session_->configure(a.sampling.options);
    } else {
      session_ = open_.session(settings_);
      session_->configure(a.sampling.options);
    }
  }

  /// One turn: reads what it adds, then answers. Says so on standard error.
  void turn(hymba::Role role, std::string content) {
    const hymba::ChatMessage said{role, std::move(content)};
    std::vector<hymba::Token> ids;
    if (begun_) {
      const hymba::ChatContinuation next = hymba::continue_chat(answer_, held_, std::span(&said, 1));
      ids = tokenizer_.encode(next.text, {.add_bos = false, .continuation = true});
    } else {
      std::vector<hymba::ChatMessage> messages;
      if (!system_.empty()) messages.push_back({hymba::Role::system, system_});
      messages.push_back(said);
      ids =
          tokenizer_.encode(hymba::render_chat(messages, tools_, contexts_), {.add_bos = false, .continuation = false});
    }
    if (static_cast<std::int64_t>(ids.size()) >= session_->room()) {
      throw hymba::ContextError(message("the context is full: this turn needs ", ids.size(), " tokens and an answer, ",
                                        session_->room(), " of ", session_->max_context(),
                                        " are left (/reset starts anew; --max-context makes room)"));
    }

    const CatchInterrupt guard;
    const Stopwatch watch;
    const auto before = session_->position();
    const bool read = read_prompt(*session_, ids, stderr_is_terminal() && !arguments_.common.quiet);
    const double read_seconds = watch.seconds();
    begun_ = true;
    ++turns_;
    Answer answer;
    if (read) {
      AnswerLimits limits{.max_new_tokens = arguments_.max_new_tokens,
                          .stop_tokens = end_tokens(open_.description, &tokenizer_),
                          .stop_strings = hymba::chat_stop_strings()};
      limits.stop_strings.insert(limits.stop_strings.end(), arguments_.stop.begin(), arguments_.stop.end());
      answer = generate_answer(*session_, limits, &tokenizer_, [&](std::string_view text) {
        if (!arguments_.common.json) put(text);
      });
    } else {
      answer.finish = "interrupted";  // part of the turn was read, which nothing can take back
    }
    answer_ = answer.text;
    held_ = answer.held;
    report(answer,
           session_->position() - before - static_cast<std::int64_t>(answer.tokens.size()) + (answer.unread ? 1 : 0),
           read_seconds);
  }

  void reset() {
    session_->reset();
    begun_ = false;
    turns_ = 0;
    answer_.clear();
    held_.clear();
  }

  void set_system(std::string text) {
    head_is_open("/system");
    system_ = std::move(text);
  }
  void set_tools(const std::string& path) {
    head_is_open("/tools");
    std::vector<nlohmann::ordered_json> none;
    tools_.swap(none);
    if (!path.empty()) tools_ = read_tools(path);
  }
  void set_context(const std::string& path) {
    head_is_open("/context");
    if (path.empty()) {
      contexts_.clear();
    } else {
      contexts_.push_back(read_file(path));
    }
  }

  void save(const std::string& path) const {
    const OrderedJson extra = {{"system", system_},     {"tools", OrderedJson(tools_).dump()},
                               {"contexts", contexts_}, {"begun", begun_},
                               {"turns", turns_},       {"answer", answer_},
                               {"held", held_}};
    save_session(path,
                 {"chat", open_.formats, session_->position(), session_->max_context(), extra, session_->snapshot()});
  }
  void load(const std::string& path) {
    const SavedSession saved = load_session(path, "chat");
    if (saved.formats.weights != open_.formats.weights || saved.formats.cache != open_.formats.cache) {
      throw hymba::SnapshotError(path + ": was saved with weights " + name_of(saved.formats.weights) + " and cache " +
                                 name_of(saved.formats.cache) + "; start hymba chat with --load-session");
    }
    restore(saved);
  }

 private:
  void add_tools(const std::string& path) {
    for (auto& tool : read_tools(path)) tools_.push_back(std::move(tool));
  }
  void head_is_open(const char* command) const {
    if (begun_) throw UsageError(std::string(command) + ": the conversation has begun; /reset starts a new one");
  }

  /// Takes over a saved conversation; on any error the one at hand stays.
  void restore(const SavedSession& saved) {
    std::unique_ptr<AnySession> session = open_.session(settings_, saved.blob);
    try {
      const OrderedJson& e = saved.extra;
      auto tools = hymba::parse_tools(e.at("tools").get<std::string>());
      auto contexts = e.at("contexts").get<std::vector<std::string>>();
      auto system = e.at("system").get<std::string>();
      auto answer = e.at("answer").get<std::string>(), held = e.at("held").get<std::string>();
      const bool begun = e.at("begun").get<bool>();
      turns_ = e.at("turns").get<int>();
      system_ = std::move(system);
      tools_ = std::move(tools);
      contexts_ = std::move(contexts);
      answer_ = std::move(answer);
      held_ = std::move(held);
      begun_ = begun;
      session_ = std::move(session);
    } catch (const OrderedJson::exception&) {
      throw hymba::FormatError("the saved session's header is damaged");
    }
  }

  void report(const Answer& answer, std::int64_t read, double read_seconds) const {
    const auto written = static_cast<std::int64_t>(answer.tokens.size());
    if (arguments_.common.json) {
      put(json_line({{"turn", turns_},
                     {"text", answer.text},
                     {"finish", answer.finish},
                     {"read_tokens", read},
                     {"new_tokens", written},
                     {"position", session_->position()},
                     {"max_context", session_->max_context()},
                     {"read_seconds", read_seconds},
                     {"decode_seconds", answer.seconds}}));
      return;
    }
    if (!answer.text.ends_with('\n')) put("\n");
    if (arguments_.common.quiet) return;
    note(message("[turn ", turns_, ": read ", grouped(read), " tokens, ", fixed(rate(read, read_seconds), 1),
                 "/s; wrote ", grouped(written), ", ", fixed(rate(written, answer.seconds), 1), "/s; holds ",
                 grouped(session_->position()), " of ", grouped(session_->max_context()), "; ", answer.finish, "]"));
  }

  const ChatArguments& arguments_;
  const OpenModel& open_;
  const hymba::Tokenizer& tokenizer_;
  SessionSettings settings_;
  std::unique_ptr<AnySession> session_;
  std::string system_;
  std::vector<nlohmann::ordered_json> tools_;
  std::vector<std::string> contexts_;
  bool begun_ = false;
  int turns_ = 0;
  std::string answer_, held_;  // of the last answer: as shown, and as far as the session has read it
};

constexpr const char* commands =
    "/system TEXT, /tools FILE.json, /context FILE (before the first turn; without an argument they clear), /tool "
    "TEXT, "
    "/reset, /save FILE, /load FILE, /exit; //text is the text /text";

/// One line of input. Returns false at the end of the conversation.
bool take_line(Conversation& conversation, std::string line) {
  if (!line.empty() && line.back() == '\r') line.pop_back();
  if (line.starts_with("//")) {
    conversation.turn(hymba::Role::user, line.substr(1));
    return true;
  }
  if (!line.starts_with('/')) {
    if (line.find_first_not_of(" \t") != std::string::npos) conversation.turn(hymba::Role::user, std::move(line));
    return true;
  }
  const std::size_t space = line.find(' ');
  const std::string name = line.substr(0, space);
  std::string rest = space == std::string::npos ? std::string() : line.substr(space + 1);
  const auto needs_argument = [&] {
    if (rest.empty()) throw UsageError(name + " needs an argument");
  };
  if (name == "/exit") return false;
  if (name == "/reset") {
    conversation.reset();
  } else if (name == "/system") {
    conversation.set_system(std::move(rest));
  } else if (name == "/tools") {
    conversation.set_tools(rest);
  } else if (name == "/context") {
    conversation.set_context(rest);
  } else if (name == "/tool") {
    needs_argument();
    conversation.turn(hymba::Role::tool, std::move(rest));
  } else if (name == "/save") {
    needs_argument();
    conversation.save(rest);
  } else if (name == "/load") {
    needs_argument();
    conversation.load(rest);
  } else if (name == "/help") {
    note(commands);
  } else {
    throw UsageError(name + " is no command, expected " + commands);
  }
  return true;
}

int chat(const ChatArguments& a) {
  if (a.max_new_tokens < 1) {
    throw UsageError(message("--max-new-tokens is ", a.max_new_tokens, ", expected 1 or more"));
  }
  if (!a.save.empty()) refuse_special_file(a.save);
  a.sampling.check();
  const hymba::StopStrings checked_now(a.stop);
  std::optional<SavedSession> saved;
  if (!a.load.empty()) {
    if (!a.system.empty() || !a.tools.empty() || !a.contexts.empty()) {
      throw UsageError("--load-session brings its own system text, tools and contexts: give none beside it");
    }
    saved = load_session(a.load, "chat");
  }
  const OpenModel open = open_model(a.common, saved ? std::optional(saved->formats) : std::nullopt);
  const hymba::Tokenizer tokenizer = open_tokenizer(a.common.model, open.description);
  Conversation conversation(a, open, tokenizer, saved);

  const bool terminal = stdin_is_terminal();
  if (terminal && !a.common.quiet) note(std::string("One turn per line. ") + commands);
  for (std::string line;;) {
    if (terminal) std::cerr << "> " << std::flush;
    if (!std::getline(std::cin, line)) break;
    // A turn or command that fails is told in one line; the conversation goes on.
    try {
      if (!take_line(conversation, std::move(line))) break;
    } catch (const hymba::Error& e) {
      note(std::string("hymba: ") + e.what());
    } catch (const UsageError& e) {
      note(std::string("hymba: ") + e.what());
    }
  }
  if (!a.save.empty()) conversation.save(a.save);
  return 0;
}

}  // namespace

void add_chat(CLI::App& app, Command& run) {
  CLI::App* command =
      app.add_subcommand("chat", "Talk with a model; from a terminal, or one user turn per line of input");
  command->footer(std::string("While it runs: ") + commands +
                  "\n\nExample:\n  hymba chat --model DIR --system \"You are terse.\" --temperature 0.7\n");
  const auto a = std::make_shared<ChatArguments>();
  add_common(*command, a->common, "4096, or that of the loaded session");
  add_prefill_chunk(*command, a->common);
  command->add_option("--system", a->system, "System message")->type_name("TEXT");
  command->add_option("--tools", a->tools, "JSON array of tools the model may call")
      ->type_name("FILE")
      ->allow_extra_args(false);
  command->add_option("--context", a->contexts, "Text the model may use; may be given more than once")
      ->type_name("FILE")
      ->allow_extra_args(false);
  add_number(*command, "--max-new-tokens", a->max_new_tokens, "For each answer. Default: 512");
  command->add_option("--stop", a->stop, "End an answer before this text; may be given more than once")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command->add_option("--save-session", a->save, "Write the conversation at the end")->type_name("FILE");
  command
      ->add_option("--load-session", a->load,
                   "Go on with a saved conversation, with its formats and sampler; any sampling option starts the "
                   "sampler anew")
      ->type_name("FILE");
  add_sampling(*command, a->sampling);
  command->callback([&run, a] { run = [a] { return chat(*a); }; });
}

}  // namespace cli
