// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as messages, tools and contexts (separated by 0xff, which JSON text cannot hold): parsed and rendered, or
// refused with a documented exception. What is accepted must render the same again and continue exactly.
#include <hymba/text/chat_template.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

void expect(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace hymba;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const auto part = [&rest] {
    const std::size_t end = rest.find('\xff');
    const std::string_view text = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    return text.empty() ? std::string_view("[]") : text;
  };

  // Raw bytes as contents, without JSON around them.
  const std::string raw(rest);
  const std::vector<ChatMessage> plain{{Role::system, raw}, {Role::user, raw}, {Role::tool, raw}};
  const std::vector<std::string> raw_contexts{raw};
  expect(render_chat(plain, {}, raw_contexts).ends_with("\n<extra_id_1>Assistant\n"));
  const ChatContinuation c = continue_chat(raw, raw, std::span(plain).subspan(1));
  if (detail::strip(raw).size() == raw.size()) expect(c.exact);

  std::vector<ChatMessage> messages;
  try {
    messages = parse_messages(part());
  } catch (const FormatError&) {
  } catch (const ArgumentError&) {  // an unknown role
  }
  try {
    const auto tools = parse_tools(part());
    const auto contexts = parse_contexts(part());
    const std::string text = render_chat(messages, tools, contexts, size % 2 == 0);
    expect(text.starts_with("<extra_id_0>System"));
    expect(detail::is_utf8(text));  // JSON text is, so the rendering is
    for (const auto& tool : tools) {
      std::string dumped = "[";
      detail::append_python_json(dumped, tool);
      const auto again = parse_tools(dumped + "]");
      expect(again.size() == 1);
      std::string twice = "[";
      detail::append_python_json(twice, again[0]);
      expect(twice == dumped);
    }
  } catch (const FormatError&) {
  }
  return 0;
}
