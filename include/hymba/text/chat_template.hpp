// SPDX-License-Identifier: Apache-2.0
//
// The chat format of the published Hymba Instruct models, text for text what their Jinja template renders:
//
//   <extra_id_0>System
//   {each system message, wherever it stands, on a line of its own}
//   <tool> {JSON} </tool>            one line per tool
//   <context> {text} </context>      one line per context
//
//   <extra_id_1>User
//   {content}
//   <extra_id_1>Assistant
//   {content}
//
// and so on. Contents are stripped as Python's str.strip does it. The markers are ordinary text to the tokeniser.
// Encode a rendered prompt without bos: the published tokeniser adds none to chats.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/text/utf8.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

enum class Role : std::uint8_t { system, user, assistant, tool };

/// "system", "user", "assistant" or "tool".
constexpr std::string_view to_string(Role role) {
  switch (role) {
    case Role::system:
      return "system";
    case Role::user:
      return "user";
    case Role::assistant:
      return "assistant";
    case Role::tool:
      return "tool";
  }
  return "unknown";
}

/// Throws ArgumentError naming the role when it is none of the four. (The Jinja template would drop such a message.)
inline Role parse_role(std::string_view name) {
  for (const Role role : {Role::system, Role::user, Role::assistant, Role::tool}) {
    if (name == to_string(role)) return role;
  }
  throw ArgumentError(
      detail::message("role \"", std::string(name.substr(0, 100)), "\", expected system, user, assistant or tool"));
}

struct ChatMessage {
  Role role = Role::user;
  std::string content;

  friend bool operator==(const ChatMessage&, const ChatMessage&) = default;
};

/// Where generation must stop, besides at eos.
inline std::vector<std::string> chat_stop_strings() { return {"<extra_id_1>"}; }

namespace detail {

/// What Python's str.isspace accepts.
constexpr bool is_python_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/// Python's str.rstrip() on UTF-8. Bytes that are not UTF-8 are text.
inline std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    std::size_t at = text.size() - 1;
    while (at > 0 && text.size() - at < 4 && (static_cast<unsigned char>(text[at]) & 0xc0u) == 0x80u) --at;
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8::character || at + step.length != text.size() || !is_python_space(step.code_point)) break;
    text.remove_suffix(step.length);
  }
  return text;
}

/// Python's str.strip() on UTF-8.
inline std::string_view strip(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (step.kind != Utf8::character || !is_python_space(step.code_point)) break;
    text.remove_prefix(step.length);
  }
  return strip_right(text);
}

/// Nesting beyond this is refused, so that no input can exhaust the stack.
inline constexpr int kMaxJsonDepth = 128;

/// Python's repr of a float, as json.dumps writes it: the shortest digits that read back, 1e-05, 1e+16, 1.0, NaN,
/// Infinity.
inline void append_python_float(std::string& out, double value) {
  if (std::isnan(value)) {
    out += "NaN";
    return;
  }
  if (std::isinf(value)) {
    out += value < 0 ? "-Infinity" : "Infinity";
    return;
  }
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<std::size_t>(end - buffer));  // -d.ddde+xx
  if (text.starts_with('-')) {
    out += '-';
    text.remove_prefix(1);
  }
  const std::size_t e = text.find('e');
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c != '.') digits += c;
  }
  int exponent = 0;
  const std::size_t first = text[e + 1] == '+' ? e + 2 : e + 1;
  std::from_chars(text.data() + first, text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (digits.size() > 1) out.append(".").append(digits, 1);
    out += exponent < 0 ? "e-" : "e+";
    const int magnitude = exponent < 0 ? -exponent : exponent;
    if (magnitude < 10) out += '0';
    out += std::to_string(magnitude);
  } else if (exponent < 0) {
    out.append("0.").append(static_cast<std::size_t>(-exponent - 1), '0').append(digits);
  } else {
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() < whole) digits.append(whole - digits.size(), '0');
    out.append(digits, 0, whole).append(".");
    out.append(digits.size() > whole ? std::string_view(digits).substr(whole) : std::string_view("0"));
  }
}

inline void append_python_string(std::string& out, std::string_view text) {
  if (!is_utf8(text)) throw ArgumentError("a string of a tool is not valid UTF-8, expected text");
  constexpr char hex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out.append("\\u00").append(1, hex[c >> 4]).append(1, hex[c & 15]);
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

/// Python's json.dumps(value, ensure_ascii=False), keys in their order: the template's tojson (Jinja's own, which
/// escapes
/// <, >, & and ', is replaced by the tokeniser library).
inline void append_python_json(std::string& out, const nlohmann::ordered_json& value, int depth = 0) {
  using Type = nlohmann::ordered_json::value_t;
  if (depth > kMaxJsonDepth) throw ArgumentError(message("a tool is nested more than ", kMaxJsonDepth, " deep"));
  switch (value.type()) {
    case Type::null:
      out += "null";
      break;
    case Type::boolean:
      out += value.get<bool>() ? "true" : "false";
      break;
    case Type::number_integer:
      out += std::to_string(value.get<std::int64_t>());
      break;
    case Type::number_unsigned:
      out += std::to_string(value.get<std::uint64_t>());
      break;
    case Type::number_float:
      append_python_float(out, value.get<double>());
      break;
    case Type::string:
      append_python_string(out, value.get_ref<const std::string&>());
      break;
    case Type::array: {
      out += '[';
      const char* separator = "";
      for (const auto& element : value) {
        out += separator;
        append_python_json(out, element, depth + 1);
        separator = ", ";
      }
      out += ']';
      break;
    }
    case Type::object: {
      out += '{';
      const char* separator = "";
      for (const auto& [key, element] : value.items()) {
        out += separator;
        append_python_string(out, key);
        out += ": ";
        append_python_json(out, element, depth + 1);
        separator = ", ";
      }
      out += '}';
      break;
    }
    case Type::binary:
    case Type::discarded:
      throw ArgumentError(message("a tool holds a JSON ", value.type_name(), ", expected plain JSON"));
  }
}

/// Builds a value from parser events, with limits: the library's own reader would round integers beyond 64 bits, which
/// Python keeps, and look keys up in a time that grows with the square of their number.
class ChatJsonReader : public nlohmann::json_sax<nlohmann::ordered_json> {
 public:
  using Json = nlohmann::ordered_json;
  static constexpr std::size_t kMaxKeys = 4096;

  explicit ChatJsonReader(const char* what) : what_(what) {}
  Json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool v) override { return put(v); }
  bool number_integer(number_integer_t v) override { return put(v); }
  bool number_unsigned(number_unsigned_t v) override { return put(v); }
  bool number_float(number_float_t v, const string_t& text) override {
    if (text.find_first_of(".eE") == std::string::npos) {
      throw FormatError(message(what_, ": integer ", text.substr(0, 40), " does not fit 64 bits"));
    }
    return put(v);
  }
  bool string(string_t& v) override { return put(std::move(v)); }
  bool binary(binary_t&) override { throw FormatError(message(what_, ": holds binary data, expected JSON text")); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& v) override {
    Json& object = *stack_.back();
    if (object.size() >= kMaxKeys)
      throw FormatError(message(what_, ": an object has more than ", std::size_t{kMaxKeys}, " keys"));
    slot_ = &object[v];  // a repeated key keeps its first place and takes its last value, as in Python
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    std::string reason = e.what();
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    throw FormatError(message(what_, ": not JSON at byte ", position, ": ", reason.substr(0, 200)));
  }

 private:
  Json* place(Json&& value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    *slot_ = std::move(value);
    return slot_;
  }
  template <class T>
  bool put(T&& value) {
    place(Json(std::forward<T>(value)));
    return true;
  }
  // A pointer on the stack stays good: its parent takes no further element before this one is closed.
  bool open(Json&& value) {
    if (stack_.size() >= static_cast<std::size_t>(kMaxJsonDepth)) {
      throw FormatError(message(what_, ": nested more than ", kMaxJsonDepth, " deep"));
    }
    stack_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  const char* what_;
  Json root_;
  std::vector<Json*> stack_;
  Json* slot_ = nullptr;
};

inline nlohmann::ordered_json parse_chat_json(std::string_view text, const char* what) {
  ChatJsonReader reader(what);
  nlohmann::ordered_json::sax_parse(text, &reader);
  nlohmann::ordered_json json = reader.take();
  if (!json.is_array()) throw FormatError(message(what, ": is a JSON ", json.type_name(), ", expected an array"));
  return json;
}

inline void append_turn(std::string& out, const ChatMessage& m) {
  switch (m.role) {
    case Role::system:
      return;
    case Role::user:
      out += "<extra_id_1>User\n";
      break;
    case Role::assistant:
      out += "<extra_id_1>Assistant\n";
      break;
    case Role::tool:
      out += "<extra_id_1>Tool\n";
      break;
  }
  out.append(strip(m.content)).append("\n");
}

inline constexpr std::string_view kGenerationPrompt = "<extra_id_1>Assistant\n";

}  // namespace detail

/// Messages from JSON text: [{"role": "user", "content": "..."}, ...]; other keys are ignored, as the template does.
/// Throws FormatError when it is not that, naming the message; ArgumentError when a role is unknown, naming it.
inline std::vector<ChatMessage> parse_messages(std::string_view json_text) {
  const nlohmann::ordered_json json = detail::parse_chat_json(json_text, "messages");
  std::vector<ChatMessage> messages;
  messages.reserve(json.size());
  for (const auto& m : json) {
    const std::size_t index = messages.size();
    if (!m.is_object())
      throw FormatError(detail::message("messages[", index, "]: is a JSON ", m.type_name(), ", expected an object"));
    const auto field = [&](const char* name) -> const std::string& {
      const auto found = m.find(name);
      if (found == m.end())
        throw FormatError(detail::message("messages[", index, "]: has no \"", name, "\", expected a string"));
      if (!found->is_string()) {
        throw FormatError(
            detail::message("messages[", index, "].", name, ": is a JSON ", found->type_name(), ", expected a string"));
      }
      return found->get_ref<const std::string&>();
    };
    const std::string& role = field("role");
    const std::string& content = field("content");
    try {
      messages.push_back({parse_role(role), content});
    } catch (const ArgumentError& e) {
      throw ArgumentError(detail::message("messages[", index, "]: ", e.what()));
    }
  }
  return messages;
}

/// Tools from JSON text: an array of objects, keys kept in order. Throws FormatError.
inline std::vector<nlohmann::ordered_json> parse_tools(std::string_view json_text) {
  nlohmann::ordered_json json = detail::parse_chat_json(json_text, "tools");
  std::vector<nlohmann::ordered_json> tools;
  tools.reserve(json.size());
  for (auto& tool : json) {
    if (!tool.is_object())
      throw FormatError(
          detail::message("tools[", tools.size(), "]: is a JSON ", tool.type_name(), ", expected an object"));
    tools.push_back(std::move(tool));
  }
  return tools;
}

/// Contexts from JSON text: an array of strings. Throws FormatError.
inline std::vector<std::string> parse_contexts(std::string_view json_text) {
  const nlohmann::ordered_json json = detail::parse_chat_json(json_text, "contexts");
  std::vector<std::string> contexts;
  contexts.reserve(json.size());
  for (const auto& context : json) {
    if (!context.is_string()) {
      throw FormatError(
          detail::message("contexts[", contexts.size(), "]: is a JSON ", context.type_name(), ", expected a string"));
    }
    contexts.push_back(context.get<std::string>());
  }
  return contexts;
}

/// The text of a whole conversation. Every system message goes to the System block in front; with none the block is
/// there, empty. `add_generation_prompt`: end with the opening of the assistant's turn, for the model to write it.
/// Throws ArgumentError when a tool holds a string that is not UTF-8, binary data, or is nested too deep.
inline std::string render_chat(std::span<const ChatMessage> messages,
                               std::span<const nlohmann::ordered_json> tools = {},
                               std::span<const std::string> contexts = {}, bool add_generation_prompt = true) {
  std::string out = "<extra_id_0>System";
  for (const ChatMessage& m : messages) {
    if (m.role != Role::system) continue;
    out.append("\n").append(detail::strip(m.content));
    if (!tools.empty() || !contexts.empty()) out += '\n';
  }
  for (const auto& tool : tools) {
    out += "\n<tool> ";
    detail::append_python_json(out, tool);
    out += " </tool>";
  }
  if (!contexts.empty() && !tools.empty()) out += '\n';
  for (const std::string& context : contexts)
    out.append("\n<context> ").append(detail::strip(context)).append(" </context>");
  out += "\n\n";
  for (const ChatMessage& m : messages) detail::append_turn(out, m);
  if (add_generation_prompt) out += detail::kGenerationPrompt;
  return out;
}

/// What to feed a session that already holds a conversation.
struct ChatContinuation {
  std::string text;  ///< to encode with EncodeOptions::continuation and prefill
  bool exact;        ///< history + text is, character for character, what render_chat makes of the whole conversation
};

/// The next turns of a conversation that a session holds, without reading its history again.
///
/// The session was given `render_chat(..., add_generation_prompt = true)` and has since taken in some generated tokens.
/// `held`: the text of those tokens, exactly the ones the session was *fed* (TextStream with `continuation`), not the
/// ones that were only sampled. `assistant`: the answer as it was shown, that is the generated text before
/// `<extra_id_1>` or eos. Both in whole characters, from the same stream. Depending on how generation ended, `held` is
///   - `assistant`, or a little less: eos or the token limit came. Do not feed eos itself: the format has none. When
///   the
///     last sampled token was shown but not fed, the text returned here contains it;
///   - `assistant` and the beginning of `<extra_id_1>`, often with a newline between: the stop string was completed by
///   a
///     token that was sampled and not fed. The rest of the marker is then in the text returned here.
/// `next`: the new turns, usually one user message, or tool messages. Then
///     render_chat(history) + held + text == render_chat(history, {assistant, its answer}, next)
/// whenever that is possible: the template strips the answer, so when the model wrote white space in front of it or
/// more than one newline after it, the session has seen text that the whole rendering lacks. A recurrent state cannot
/// forget it; `exact` is false then, and the text continues from what is there, as close to the format as appending
/// allows.
///
/// Throws ArgumentError when `next` has a system message (the template would put it in front of the history) or when
/// `held` and `assistant` contradict each other.
inline ChatContinuation continue_chat(std::string_view assistant, std::string_view held,
                                      std::span<const ChatMessage> next, bool add_generation_prompt = true) {
  std::string after = "\n";  // what follows the stripped answer
  for (const ChatMessage& m : next) {
    if (m.role == Role::system) {
      throw ArgumentError(
          "next turn has a system message, expected user, assistant or tool: the System block is part of the history");
    }
    detail::append_turn(after, m);
  }
  if (add_generation_prompt) after += detail::kGenerationPrompt;

  const std::string whole = std::string(detail::strip(assistant)) + after;
  if (whole.starts_with(held)) return {whole.substr(held.size()), true};

  const std::string_view answer = detail::strip_right(assistant);
  if (answer.starts_with(held)) return {std::string(answer.substr(held.size())) + after, false};
  if (!held.starts_with(answer)) {
    throw ArgumentError(
        detail::message("held text of ", held.size(), " bytes does not begin with the assistant's answer of ",
                        answer.size(), " bytes, expected the text of the tokens the session was fed since the prompt"));
  }
  // Join where the held tail already is the beginning of what follows, with or without its newline.
  const std::string_view tail = held.substr(answer.size());
  const auto overlap = [tail](std::string_view text) {
    std::size_t n = std::min(tail.size(), text.size());
    while (n > 0 && !tail.ends_with(text.substr(0, n))) --n;
    return n;
  };
  const std::string_view with_newline = after;
  const std::string_view without = with_newline.substr(1);
  const std::size_t a = overlap(with_newline);
  const std::size_t b = overlap(without);
  return {std::string(a > b ? with_newline.substr(a) : b > 0 ? without.substr(b) : with_newline.substr(a)), false};
}

HYMBA_NAMESPACE_END
