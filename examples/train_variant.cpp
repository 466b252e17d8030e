// SPDX-License-Identifier: Apache-2.0
//
// Train a variant of one's own, then let it speak: train_variant TOKENIZER_FOLDER [TEXT_FILE [STEPS]]
#include <hymba/hymba.hpp>
#include <hymba/model/random_weights.hpp>
#include <hymba/text/tokenizer.hpp>
#include <hymba/train/train.hpp>

#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

struct Mine {
  using attention = hymba::AttentionHeads<4, 2, 16, 32>;
  using ssm = hymba::MambaHeads<128, 16, 4, 8>;
  using mlp = hymba::SwiGlu<160>;
  using meta = hymba::MetaTokens<4>;
  using spans = hymba::GlobalAt<0, 3>::otherwise<hymba::Window<16>>;
  using sharing = hymba::ShareAdjacentWindows<2>;
  static constexpr int width = 64, layers = 4, vocabulary = 512;
};

int main(int argc, char** argv) try {
  const auto tokenizer = hymba::Tokenizer::open(argc > 1 ? argv[1] : "examples/models/random-tiny");
  std::string text;
  for (int i = 0; i < 50; ++i) text += "In the beginning God created the heaven and the earth.\n";
  if (argc > 2) text.assign(std::istreambuf_iterator<char>(std::ifstream(argv[2]).rdbuf()), {});

  const auto out = std::filesystem::temp_directory_path() / ("train_variant_" + std::to_string(text.size()));
  const hymba::RunOptions run{.out = out, .context = 64, .sequences = 4};  // what a run reads and writes
  std::filesystem::create_directories(out);
  hymba::TokenFileWriter writer(out / "train.tok", Mine::vocabulary);
  writer.add_document(tokenizer.encode(text), static_cast<std::int64_t>(text.size()));
  writer.commit();
  const auto data = hymba::TokenFile::open(out / "train.tok");

  hymba::TrainerOptions options;  // how a step is made
  options.limits = hymba::run_limits(run, data, nullptr);
  options.schedule = {.peak = 1e-2, .steps = argc > 3 ? std::stol(argv[3]) : 60};
  hymba::Trainer<Mine> trainer(hymba::architecture<Mine>, random_tensors(hymba::architecture<Mine>, /*seed=*/1), options);
  double loss = 0;
  hymba::run_training(trainer, data, nullptr, run, {}, [&](const hymba::RunProgress& p) {
    loss = p.step.loss;
    std::cout << "step " << p.step.step << "  loss " << loss << "  " << p.tokens_per_second << " tokens/s\n";
  });

  auto session = hymba::Model<Mine>::open(out / "model").session({.max_context = 128});
  session.prefill(tokenizer.encode("In the beginning"));
  for (const hymba::Token t : session.generate({.max_new_tokens = 16})) (void)t;
  std::cout << tokenizer.decode(session.tokens()) << '\n';
  std::filesystem::remove_all(out);
  return argc > 2 || loss < 1 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 2;
}
