// SPDX-License-Identifier: Apache-2.0
//
// Runs of training on disk: resuming bit for bit, what a kill leaves behind, and files that do not fit.
#include <hymba/model/random_weights.hpp>

#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <unistd.h>
#include <utility>

#include "temp_folder.hpp"
#include "train_support.hpp"

using namespace hymba;
using namespace train_test;
using test::file_text, test::Folder;
namespace fs = std::filesystem;

namespace {

struct Small {
  using attention = AttentionHeads<2, 1, 8, 16>;
  using ssm = MambaHeads<32, 4, 4, 3>;
  using meta = MetaTokens<2>;
  using spans = GlobalAt<0>::otherwise<Window<6>>;
  static constexpr int width = 16, layers = 2, vocabulary = 40;
};

/// A text with a rule: the next token is a function of the last one, seven times in eight.
TokenFile make_tokens(const fs::path& path, int vocabulary, std::size_t count, unsigned seed) {
  std::mt19937 rng(seed);
  TokenFileWriter writer(path, vocabulary);
  for (int document = 0; document < 3; ++document) {
    std::vector<Token> tokens{1, 2};
    while (tokens.size() < count / 3) {
      const Token next = (tokens.back() * 7 + (rng() % 8 == 0 ? 1 : 3)) % vocabulary;
      tokens.push_back(next);
    }
    writer.add_document(tokens, static_cast<std::int64_t>(tokens.size()) * 3);
  }
  writer.commit();
  return TokenFile::open(path);
}

TrainerOptions trainer_options(const RunOptions& run, const TokenFile& train, const TokenFile* validation,
                               std::int64_t steps) {
  TrainerOptions o;
  o.limits = run_limits(run, train, validation);
  o.schedule = {.peak = 5e-3, .floor = 1e-5, .warmup = 0.1, .steps = steps};
  o.threads = 1;
  return o;
}

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

struct Stop {};

}  // namespace

TEST_CASE("a run interrupted anywhere and resumed ends with the bits of one that was not") {
  const Folder folder;
  const TokenFile train = make_tokens(folder.path / "train.tok", Small::vocabulary, 1500, 1);
  const TokenFile held_out = make_tokens(folder.path / "val.tok", Small::vocabulary, 300, 2);
  RunOptions run;
  run.context = 24;
  run.sequences = 3;
  run.accumulation = 2;
  run.report_every = 4;
  run.validate_every = 10;
  run.checkpoint_every = 7;
  run.seed = 5;
  const TensorTable weights = random_tensors(architecture<Small>, 5);
  const auto start_over = [&] {
    return std::make_unique<Trainer<Small>>(architecture<Small>, weights, trainer_options(run, train, &held_out, 40));
  };
  const auto ignore = [](const RunProgress&) {};

  run.out = folder.path / "whole";
  auto trainer = start_over();
  const double untrained = validate(*trainer, held_out, run).loss;
  const auto whole = run_training(*trainer, train, &held_out, run, {}, ignore);
  REQUIRE(whole.has_value());
  CHECK(whole->loss < 0.9 * untrained);
  CHECK(whole->bits_per_byte > 0);

  for (const std::int64_t stop : {8, 21, 33}) {
    CAPTURE(stop);
    run.out = folder.path / ("stopped-" + std::to_string(stop));
    trainer = start_over();
    CHECK_THROWS_AS(run_training(*trainer, train, &held_out, run, {},
                                 [&](const RunProgress& p) {
                                   if (p.step.step >= stop) throw Stop{};
                                 }),
                    Stop);
    // What a kill in the middle of a checkpoint leaves: a folder that is not whole, under a name that is not used.
    fs::create_directories(run.out / "step-00000039.part");
    std::ofstream(run.out / "step-00000039.part" / "model.safetensors") << "half";
    const auto newest = latest_checkpoint(run.out);
    REQUIRE(newest.has_value());
    CHECK(fs::exists(*newest / "optimizer.safetensors"));
    Checkpoint checkpoint = open_checkpoint(*newest);
    Trainer<Small> again(architecture_from<Small>(checkpoint.description), checkpoint.tensors,
                         trainer_options(run, train, &held_out, 40));
    const TrainingState state = resume_training(*newest, again);
    CHECK(again.steps() % 7 == 0);
    CHECK(again.steps() <= stop + 2);  // the report that stops the run may be that of a checkpoint
    const auto resumed = run_training(again, train, &held_out, run, state, ignore);
    CHECK(resumed->loss == whole->loss);
    CHECK(file_text(run.out / "model" / "model.safetensors") ==
          file_text(folder.path / "whole" / "model" / "model.safetensors"));
    // Seconds differ; steps and losses do not.
    const auto a = read_run_log(run.out), b = read_run_log(folder.path / "whole");
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      CHECK(a[i].step == b[i].step);
      CHECK(a[i].gradient_norm == b[i].gradient_norm);
    }
  }
  // Two checkpoints are kept, and the model folder opens by itself.
  int kept = 0;
  for (const auto& entry : fs::directory_iterator(folder.path / "whole")) {
    kept += entry.path().filename().string().starts_with("step-") ? 1 : 0;
  }
  CHECK(kept == 2);
  const auto model = Model<Small, Cpu<Weights::f32>>::open(folder.path / "whole" / "model");
  CHECK(model.parameters() == parameters(architecture<Small>));
  CHECK(file_text(folder.path / "whole" / "loss.svg").find("</svg>") != std::string::npos);
}

TEST_CASE("a run that diverges keeps the last good checkpoint") {
  const Folder folder;
  const TokenFile train = make_tokens(folder.path / "train.tok", Small::vocabulary, 900, 1);
  RunOptions run;
  run.out = folder.path / "run";
  run.context = 24;
  run.sequences = 3;
  run.report_every = 1;
  run.checkpoint_every = 5;
  Trainer<Small> trainer(architecture<Small>, random_tensors(architecture<Small>, 5),
                         trainer_options(run, train, nullptr, 40));
  const std::string message = error_of([&] {
    run_training(trainer, train, nullptr, run, {}, [&](const RunProgress& p) {
      if (p.step.step == 12) trainer.parameters().weight(trainer.parameters().embedding())[0] = HUGE_VALF;
    });
  });
  CHECK(message.find("step 13: the loss is") != std::string::npos);
  const auto newest = latest_checkpoint(run.out);
  REQUIRE(newest.has_value());
  CHECK(newest->filename() == "step-00000010");
  CHECK_NOTHROW(Model<Small>::open(*newest));
}

TEST_CASE("files that do not fit are refused with the value and what was expected") {
  const Folder folder;
  const TokenFile train = make_tokens(folder.path / "train.tok", 50, 900, 1);
  const TokenFile fitting = make_tokens(folder.path / "fitting.tok", Small::vocabulary, 900, 1);
  RunOptions run;
  run.out = folder.path / "run";
  run.context = 24;
  run.sequences = 3;
  const auto ignore = [](const RunProgress&) {};
  Trainer<Small> trainer(architecture<Small>, random_tensors(architecture<Small>, 5),
                         trainer_options(run, train, nullptr, 2));
  CHECK(error_of([&] {
          run_training(trainer, train, nullptr, run, {}, ignore);
        }).find("made with a vocabulary of 50, but the model has one of 40") != std::string::npos);
  RunOptions wide = run;
  wide.context = 5000;
  CHECK(error_of([&] { run_limits(wide, train, nullptr); }).find("expected at least 5001") != std::string::npos);

  // An optimiser file that is cut, foreign or missing.
  run_training(trainer, fitting, nullptr, run, {}, ignore);
  const fs::path newest = *latest_checkpoint(run.out);
  const std::string whole = file_text(newest / "optimizer.safetensors");
  const auto rewrite = [&](const std::string& content) {
    std::ofstream(newest / "optimizer.safetensors", std::ios::binary | std::ios::trunc) << content;
  };
  const auto resume = [&] { return error_of([&] { resume_training(newest, trainer); }); };
  CHECK(resume().empty());
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() / 2, whole.size() - 1}) {
    rewrite(whole.substr(0, length));
    CHECK(resume().find("optimizer.safetensors") != std::string::npos);
  }
  std::string renamed = whole;
  renamed.replace(renamed.find("hymba-optimizer"), 5, "other");
  rewrite(renamed);
  CHECK(resume().find("format") != std::string::npos);
  std::string poisoned = whole;  // the last number of the last tensor, a second moment
  const float negative = -1, none = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {negative, none}) {
    std::memcpy(poisoned.data() + poisoned.size() - sizeof(float), &bad, sizeof(float));
    rewrite(poisoned);
    CHECK(resume().find("expected finite numbers, the second not below 0") != std::string::npos);
  }
  renamed = whole;
  renamed.replace(renamed.find("first_moment"), 5, "fifth");
  rewrite(renamed);
  CHECK(resume().find("missing") != std::string::npos);
  fs::remove(newest / "optimizer.safetensors");
  CHECK(resume().find("optimizer.safetensors") != std::string::npos);

  // Another text, or other windows, than those of the run to go on with.
  const TrainingState state{{5, 0, 0}, 24, fitting.size(), 0};
  RunOptions other = run;
  other.context = 25;
  CHECK(error_of([&] { run_training(trainer, fitting, nullptr, other, state, ignore); }).find("windows of 24 tokens") !=
        std::string::npos);
  const TokenFile longer = make_tokens(folder.path / "longer.tok", Small::vocabulary, 1200, 1);
  CHECK(error_of([&] { run_training(trainer, longer, nullptr, run, state, ignore); }).find("over a file of ") !=
        std::string::npos);
  for (const auto& [member, word] : {std::pair{&RunOptions::accumulation, "batches a step is -1"},
                                     std::pair{&RunOptions::report_every, "report_every is -1"},
                                     std::pair{&RunOptions::validate_every, "validate_every is -1"},
                                     std::pair{&RunOptions::validation_tokens, "validation_tokens is -1"},
                                     std::pair{&RunOptions::checkpoint_every, "checkpoint_every is -1"}}) {
    RunOptions bad = run;
    bad.*member = -1;
    const std::string message = error_of([&] { run_training(trainer, fitting, nullptr, bad, {}, ignore); });
    CHECK_MESSAGE(message.find(word) != std::string::npos, message);
  }
  RunOptions beside = run;
  beside.companions = {{folder.path / "none.model", "tokenizer.model"}};
  CHECK(error_of([&] { run_training(trainer, fitting, nullptr, beside, {}, ignore); }).find("none.model") !=
        std::string::npos);
  beside.companions = {{folder.path / "fitting.tok", "config.json"}};
  CHECK(error_of([&] { run_training(trainer, fitting, nullptr, beside, {}, ignore); }).find("the model's own file") !=
        std::string::npos);

  // A folder that cannot be made, because a file has its name.
  std::ofstream(folder.path / "file") << "x";
  run.out = folder.path / "file" / "run";
  CHECK_THROWS_AS(run_training(trainer, fitting, nullptr, run, {}, ignore), IoError);
}

TEST_CASE("a run that is asked to stop leaves a checkpoint to go on from, and no finished model") {
  const Folder folder;
  const TokenFile train = make_tokens(folder.path / "train.tok", Small::vocabulary, 900, 1);
  RunOptions run;
  run.out = folder.path / "run";
  run.context = 24;
  run.sequences = 3;
  int asked = 0;
  run.stop = [&] { return ++asked == 7; };
  Trainer<Small> trainer(architecture<Small>, random_tensors(architecture<Small>, 5),
                         trainer_options(run, train, nullptr, 40));
  run_training(trainer, train, nullptr, run, {}, [](const RunProgress&) {});
  CHECK(trainer.steps() == 7);
  CHECK(latest_checkpoint(run.out)->filename() == "step-00000007");
  CHECK(!fs::exists(run.out / "model"));
}

TEST_CASE("no batch has more sequences than its limits say, wherever documents and windows are cut") {
  const Folder folder;
  std::mt19937 rng(4);
  for (int round = 0; round < 60; ++round) {
    TokenFileWriter writer(folder.path / "t.tok", 9);
    // Clusters of short documents, at the file's ends too.
    const int documents = 1 + static_cast<int>(rng() % 30);
    for (int d = 0; d < documents; ++d) {
      const std::size_t length = rng() % 3 == 0 ? 30 : 1 + rng() % 3;
      writer.add_document(std::vector<Token>(length, 3), static_cast<std::int64_t>(length));
    }
    writer.commit();
    const TokenFile file = TokenFile::open(folder.path / "t.tok");
    for (const std::int64_t context : {1, 2, 7, 10}) {
      if (file.size() <= context) continue;
      const std::int64_t most = most_sequences(file, context, 2);
      WindowSampler windows(file, context, 2, rng());
      TrainingBatch batch;
      for (int i = 0; i < 40; ++i) {
        windows.next(batch);
        REQUIRE(static_cast<std::int64_t>(batch.lengths.size()) <= most);
      }
    }
  }
}
