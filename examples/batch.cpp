// SPDX-License-Identifier: Apache-2.0
//
// Many sessions of different lengths and ages stepped together: the weights are read once for all of them.
#include <hymba/hymba.hpp>

#include <cmath>
#include <cstdio>
#include <exception>
#include <span>
#include <utility>
#include <vector>

int main(int argc, char** argv) try {
  using Model = hymba::Model<hymba::DynamicHymba, hymba::Cpu<hymba::Weights::f32>>;
  const Model model = Model::open(argc > 1 ? argv[1] : "examples/models/random-tiny");
  const std::vector<std::vector<hymba::Token>> prompts{{1, 20, 30}, {1, 7, 7, 7, 9, 300, 4, 8, 15, 16, 23, 42}, {1}};

  auto batch = model.batch({.max_sessions = 8});
  std::vector<Model::session_type> sessions;
  for (std::size_t i = 0; i < prompts.size(); ++i) sessions.push_back(model.session({.max_context = 64}));

  std::vector<Model::batch_type::Item> items;
  for (std::size_t i = 0; i < prompts.size(); ++i) items.push_back({&sessions[i], prompts[i]});
  batch.step(items);  // prompts of any lengths in one go

  std::vector<Model::session_type*> active;
  for (auto& session : sessions) active.push_back(&session);
  for (int step = 0; step < 20; ++step) {
    if (step == 10) active.erase(active.begin());  // sessions come and go between steps
    std::vector<hymba::Token> next;
    for (auto* session : active) next.push_back(session->sample().token);
    batch.decode(active, next);
  }

  // The same tokens, one session at a time, give the same logits up to rounding.
  for (const auto& session : sessions) {
    auto alone = model.session({.max_context = 64});
    alone.prefill(session.tokens());
    for (std::size_t i = 0; i < alone.logits().size(); ++i) {
      if (std::abs(alone.logits()[i] - session.logits()[i]) > 1e-3f) return 1;
    }
    std::printf("%lld tokens\n", static_cast<long long>(session.position()));
  }
  return sessions[0].position() == 13 && sessions[1].position() == 32 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
