// SPDX-License-Identifier: Apache-2.0
//
// A prompt read once serves many answers: fork the session, or keep it as a blob. Recurrent state cannot be rewound, so
// this is also the way back.
#include <hymba/hymba.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

namespace {

template <class Session>
std::vector<hymba::Token> answer(Session& session, std::uint64_t seed) {
  std::vector<hymba::Token> tokens;
  for (const hymba::Token t : session.generate({.max_new_tokens = 24, .temperature = 0.8f, .seed = seed}))
    tokens.push_back(t);
  return tokens;
}

}  // namespace

int main(int argc, char** argv) try {
  const auto model = hymba::Model<hymba::DynamicHymba>::open(argc > 1 ? argv[1] : "examples/models/random-tiny");
  auto session = model.session({.max_context = 256});
  std::vector<hymba::Token> prompt(100);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<hymba::Token>((7 * i + 3) % 500);
  session.prefill(prompt);
  const std::vector<std::byte> blob = session.snapshot();  // caches, convolution tails, SSM states, tokens, sampler

  auto fork = session.fork();
  const auto first = answer(session, 1), other = answer(fork, 2);

  auto restored = model.restore(blob, {.max_context = 256});  // here, or in another run of the same program
  if (answer(restored, 1) != first) return 1;                 // bit for bit, so token for token
  if (first == other) return 1;

  std::vector<std::byte> damaged = blob;
  damaged[damaged.size() / 2] ^= std::byte{1};
  try {
    model.restore(damaged, {.max_context = 256});
    return 1;
  } catch (const hymba::SnapshotError& error) {
    std::printf("%zu bytes hold %zu tokens; a damaged blob is refused: %s\n", blob.size(), prompt.size(), error.what());
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
