// SPDX-License-Identifier: Apache-2.0
//
// Several sessions over one model, each in a thread of its own. The model is immutable and shared; a session belongs to
// one thread at a time.
#include <hymba/hymba.hpp>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <vector>

int main(int argc, char** argv) try {
  const auto model = hymba::Model<hymba::DynamicHymba>::open(argc > 1 ? argv[1] : "examples/models/random-tiny");
  const auto answer = [&model](int user) {
    auto session = model.session({.max_context = 128, .threads = 1});
    session.prefill({1, 100 + user, 200 + user});
    std::vector<hymba::Token> tokens;
    for (const hymba::Token token :
         session.generate({.max_new_tokens = 64, .temperature = 0.9f, .seed = static_cast<std::uint64_t>(user)})) {
      tokens.push_back(token);
    }
    return tokens;
  };

  constexpr int users = 6;
  std::vector<std::vector<hymba::Token>> together(users);
  std::vector<std::thread> threads;
  for (int user = 0; user < users; ++user) {
    threads.emplace_back([&, user] { together[static_cast<std::size_t>(user)] = answer(user); });
  }
  for (std::thread& thread : threads) thread.join();

  for (int user = 0; user < users; ++user) {
    if (together[static_cast<std::size_t>(user)] != answer(user)) return 1;
  }
  std::printf("%d threads answered as one after the other does\n", users);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
