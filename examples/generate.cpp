// SPDX-License-Identifier: Apache-2.0
//
// Open a checkpoint, read a prompt, show the answer as it comes.
#include <hymba/hymba.hpp>
#include <hymba/text/text_stream.hpp>
#include <hymba/text/tokenizer.hpp>

#include <exception>
#include <iostream>
#include <string>

int main(int argc, char** argv) try {
  const std::string folder = argc > 1 ? argv[1] : "examples/models/random-tiny";
  const auto model = hymba::Model<hymba::DynamicHymba>::open(folder);  // every file, name and shape is checked
  const auto tokenizer = hymba::Tokenizer::open(folder);
  auto session = model.session({.max_context = 256});  // the only allocation
  const auto prompt = tokenizer.encode("In the beginning God created");
  session.prefill(prompt);

  std::string answer;
  hymba::TextStream text(tokenizer, /*continuation=*/true);  // whole characters only
  for (const hymba::Token token : session.generate({.max_new_tokens = 48, .temperature = 0.7f, .seed = 1})) {
    const auto piece = text.push(token);
    answer += piece;
    std::cout << piece << std::flush;
  }
  answer += text.finish();
  std::cout << '\n';

  // The session has read the prompt and the answer; together they decode to what was shown.
  return tokenizer.decode(session.tokens()) == tokenizer.decode(prompt) + answer && session.position() > 8 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 2;
}
