// SPDX-License-Identifier: Apache-2.0
//
// hymba train: trains any variant that config.json can describe, from token files, with log, curve and checkpoints.
#include <hymba/core/error.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/io/config.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>

#include "common.hpp"
#include "train_impl.hpp"

namespace cli {

namespace {

#if defined(HYMBA_AMX)
constexpr bool has_bf16_products = true;
#else
constexpr bool has_bf16_products = false;
#endif

struct TrainArguments {
  std::string config, data, validation, out, init, tokenizer, products = "auto", schedule = "wsd", dtype = "bf16";
  std::int64_t steps = 0, context = 256, batch = 8, accumulate = 1, report_every = 10, validate_every = 0;
  std::int64_t validation_tokens = 0, checkpoint_every = -1, keep = 2;
  double epochs = 0, learning_rate = 3e-3, lowest = 1e-5, warmup = 0.01, decay = 0.2;
  double weight_decay = 0.1, clip = 1.0, beta1 = 0.9, beta2 = 0.95;
  std::uint64_t seed = 0;
  int threads = 0;
  bool resume = false, recompute = false, run_on = false, quiet = false, json = false;
  CLI::Option *steps_option = nullptr, *epochs_option = nullptr, *min_lr_option = nullptr, *checkpoint_option = nullptr;
};

/// config.json, or a folder that holds one.
hymba::Description description_at(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return hymba::read_config(path);
  const std::string text = read_file(path);
  return hymba::parse_config(text, path);
}

double tokens_per_step(const TrainArguments& a) {
  return static_cast<double>(a.context) * static_cast<double>(a.batch) * static_cast<double>(a.accumulate);
}

hymba::Schedule schedule_of(const TrainArguments& a, const hymba::TokenFile& file) {
  hymba::Schedule s;
  if (a.schedule == "wsd") {
    s.kind = hymba::Schedule::Kind::wsd;
  } else if (a.schedule == "cosine") {
    s.kind = hymba::Schedule::Kind::cosine;
  } else if (a.schedule == "constant") {
    s.kind = hymba::Schedule::Kind::constant;
  } else {
    throw UsageError("--schedule is " + cli::quoted(a.schedule) + ", expected wsd, cosine or constant");
  }
  s.peak = a.learning_rate;
  s.floor = a.min_lr_option->count() > 0 ? a.lowest : std::min(a.lowest, a.learning_rate);
  s.warmup = a.warmup;
  s.decay = a.decay;
  if ((a.steps_option->count() > 0) == (a.epochs_option->count() > 0)) {
    throw UsageError("give either --steps N or --epochs X");
  }
  s.steps = a.steps;
  if (a.epochs_option->count() > 0) {
    if (!(a.epochs > 0 && a.epochs < 1e6)) {
      throw UsageError(message("--epochs is ", a.epochs, ", expected more than 0 and less than 1000000"));
    }
    // Sizes out of range are refused later, by name.
    const double per_step = std::max(1.0, tokens_per_step(a));
    s.steps = std::max<std::int64_t>(1, std::llround(a.epochs * static_cast<double>(file.size()) / per_step));
  }
  return s;
}

bool bf16_products(const std::string& wanted) {
  const bool possible = has_bf16_products && hymba::amx_available();
  if (wanted == "f32") return false;
  if (wanted == "auto") return possible;
  if (wanted != "bf16") throw UsageError("--products is " + cli::quoted(wanted) + ", expected auto, f32 or bf16");
  if (!has_bf16_products) {
    throw UsageError("--products bf16 needs a program compiled for a CPU with AMX tiles (-march=native on one)");
  }
  if (!possible) throw UsageError("--products bf16 needs a CPU with AMX tiles, and a system that allows their use");
  return true;
}

std::string duration(double seconds) {
  const auto s = static_cast<std::int64_t>(std::max(0.0, seconds));
  char text[32];
  if (s >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", static_cast<long long>(s / 3600),
                  static_cast<long long>(s / 60 % 60), static_cast<long long>(s % 60));
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", static_cast<long long>(s / 60), static_cast<long long>(s % 60));
  }
  return text;
}

int train(const TrainArguments& a) {
  const bool bf16 = bf16_products(a.products);
  if (a.out.empty()) throw UsageError("--out is empty, expected a folder");
  if (a.resume && !a.init.empty()) throw UsageError("--resume goes on from a checkpoint; it takes no --init");
  std::optional<std::filesystem::path> resume;
  if (a.resume) {
    resume = hymba::latest_checkpoint(a.out);
    if (!resume) throw UsageError("--resume: there is no checkpoint (step-...) in " + a.out);
  } else if (hymba::latest_checkpoint(a.out)) {
    throw UsageError(a.out + " holds checkpoints of another run: go on with --resume, or name another --out");
  }
  TrainRequest request{.description = description_at(a.config),
                       .source = a.config,
                       .weights = {},
                       .resume = resume,
                       .train = hymba::TokenFile::open(a.data),
                       .validation = {},
                       .trainer = {},
                       .run = {},
                       .recompute = a.recompute};
  if (!a.validation.empty()) request.validation = hymba::TokenFile::open(a.validation);
  if (resume || !a.init.empty()) {
    const std::filesystem::path folder = resume ? *resume : std::filesystem::path(a.init);
    hymba::Checkpoint checkpoint = hymba::open_checkpoint(folder);
    if (const std::string d = hymba::description_difference(request.description, checkpoint.description); !d.empty()) {
      throw UsageError(message(folder.string(), " is another variant than ", a.config, ": ", d));
    }
    request.source = folder.string();
    request.weights = std::move(checkpoint.tensors);
  }
  request.trainer.schedule = schedule_of(a, request.train);
  request.trainer.beta1 = a.beta1;
  request.trainer.beta2 = a.beta2;
  request.trainer.weight_decay = a.weight_decay;
  request.trainer.clip = a.clip;
  request.trainer.threads = a.threads;
  hymba::RunOptions& run = request.run;
  run.out = a.out;
  run.context = a.context;
  run.sequences = a.batch;
  run.accumulation = a.accumulate;
  run.split_documents = !a.run_on;
  run.seed = a.seed;
  run.report_every = a.report_every;
  run.validate_every = a.validate_every;
  run.validation_tokens = a.validation_tokens;
  run.checkpoint_every = a.checkpoint_every;
  if (a.checkpoint_option->count() == 0) {
    run.checkpoint_every = std::max<std::int64_t>(1, request.trainer.schedule.steps / 20);
  }
  run.keep_checkpoints = static_cast<int>(std::clamp<std::int64_t>(a.keep, -1, 1'000'000));
  run.stop = [] { return interrupted(); };
  run.title = "Loss of " + std::filesystem::path(a.out).filename().string();
  if (a.dtype != "f32" && a.dtype != "bf16")
    throw UsageError("--dtype is " + cli::quoted(a.dtype) + ", expected f32 or bf16");
  run.model_type = a.dtype == "bf16" ? hymba::DType::bf16 : hymba::DType::f32;
  if (!a.tokenizer.empty()) {
    std::error_code error;
    const std::filesystem::path path(a.tokenizer);
    const bool folder = std::filesystem::is_directory(path, error);
    run.companions.push_back({folder ? path / "tokenizer.model" : path, "tokenizer.model"});
    for (const char* name : {"added_tokens.json", "tokenizer_config.json"}) {
      const std::filesystem::path beside = (folder ? path : path.parent_path()) / name;
      if (std::filesystem::exists(beside, error)) run.companions.push_back({beside, name});
    }
    if (const hymba::Tokenizer tokenizer = hymba::Tokenizer::open(a.tokenizer);
        tokenizer.vocabulary() > request.description.vocabulary) {
      throw UsageError(message(a.tokenizer, " has ", tokenizer.vocabulary(), " tokens, but the model's vocabulary is ",
                               request.description.vocabulary));
    }
  }

  const CatchInterrupt guard;
  const ReportStart start = [&](std::int64_t parameters, std::size_t weights, std::size_t activations,
                                std::int64_t done) {
    if (a.quiet) return;
    note(message(grouped(parameters), " parameters; weights, gradients and moments ", bytes_text(weights),
                 ", activations ", bytes_text(activations), "; ", bf16 ? "bf16" : "f32", " products"));
    const double tokens = static_cast<double>(request.trainer.schedule.steps) * tokens_per_step(a);
    note(message(request.trainer.schedule.steps, " steps of ", fixed(tokens_per_step(a), 0),
                 " tokens: ", fixed(tokens / static_cast<double>(request.train.size()), 2), " epochs of ",
                 grouped(request.train.size()), " tokens", done > 0 ? message("; from step ", done) : ""));
  };
  const ReportProgress report = [&](const hymba::RunProgress& p) {
    if (a.json) {
      OrderedJson line{{"step", p.step.step},
                       {"loss", p.step.loss},
                       {"learning_rate", p.step.learning_rate},
                       {"gradient_norm", p.step.gradient_norm},
                       {"tokens_per_second", p.tokens_per_second}};
      if (p.validation) line["validation_loss"] = p.validation->loss;
      put(json_line(line));
    } else if (!a.quiet) {
      std::string text = message("step ", p.step.step, "/", p.steps, "  loss ", fixed(p.step.loss, 4));
      if (p.validation) {
        text += "  held out " + fixed(p.validation->loss, 4);
        if (p.validation->bits_per_byte > 0) text += " (" + fixed(p.validation->bits_per_byte, 4) + " bits/byte)";
      }
      text += message("  norm ", fixed(p.step.gradient_norm, 2), "  lr ", p.step.learning_rate, "  ",
                      grouped(static_cast<std::int64_t>(p.tokens_per_second)), " tokens/s  ", duration(p.seconds_left),
                      " left");
      if (p.checkpoint) text += "  [checkpoint]";
      put(text + '\n');
    }
  };
  std::optional<hymba::Validation> last;
#if defined(HYMBA_AMX)
  if (bf16) {
    last = train_with<hymba::arch::amx<hymba::arch::best>>(request, start, report);
  } else
#endif
  {
    last = train_with<hymba::arch::best>(request, start, report);
  }
  if (interrupted()) {
    note("interrupted; --resume goes on from the checkpoint in " + a.out);
    return 130;
  }
  if (!a.quiet && !a.json) put("the model is in " + (std::filesystem::path(a.out) / "model").string() + '\n');
  if (a.json) {
    OrderedJson line{{"model", (std::filesystem::path(a.out) / "model").string()}};
    if (last) line["validation_loss"] = last->loss, line["bits_per_byte"] = last->bits_per_byte;
    put(json_line(line));
  }
  return 0;
}

}  // namespace

void add_train(CLI::App& app, Command& run) {
  auto a = std::make_shared<TrainArguments>();
  CLI::App& c = *app.add_subcommand("train", "Train a variant from token files");
  c.add_option("--config", a->config, "config.json of the variant, or a folder that holds one")
      ->required()
      ->type_name("PATH");
  c.add_option("--data", a->data, "token file to train on (hymba tokenize)")->required()->type_name("FILE");
  c.add_option("--val", a->validation, "token file of held-out text")->type_name("FILE");
  c.add_option("--out", a->out, "folder for checkpoints, log, curve and the finished model")
      ->required()
      ->type_name("FOLDER");
  c.add_option("--tokenizer", a->tokenizer, "tokenizer.model to put beside the model, or its folder")
      ->type_name("PATH");
  c.add_option("--init", a->init, "start from this model instead of random weights")->type_name("FOLDER");
  c.add_flag("--resume", a->resume, "go on from the newest checkpoint in --out");
  a->steps_option = add_number(c, "--steps", a->steps, "optimiser steps of the whole run");
  a->epochs_option = add_number(c, "--epochs", a->epochs, "or: passes over the data");
  add_number(c, "--context", a->context, "tokens of a window (default 256)");
  add_number(c, "--batch", a->batch, "windows of a batch (default 8)");
  add_number(c, "--accumulate", a->accumulate, "batches of a step (default 1)");
  add_number(c, "--lr", a->learning_rate, "peak learning rate (default 0.003)");
  a->min_lr_option = add_number(c, "--min-lr", a->lowest, "last learning rate (default 1e-5)");
  c.add_option("--schedule", a->schedule, "wsd (warm-up, stable, decay), cosine or constant (default wsd)")
      ->type_name("NAME");
  add_number(c, "--warmup", a->warmup, "share of the steps that warm up (default 0.01)");
  add_number(c, "--decay", a->decay, "wsd: share of the steps that decay (default 0.2)");
  add_number(c, "--weight-decay", a->weight_decay, "of weight matrices (default 0.1)");
  add_number(c, "--clip", a->clip, "largest gradient norm; 0: none (default 1)");
  add_number(c, "--beta1", a->beta1, "of AdamW (default 0.9)");
  add_number(c, "--beta2", a->beta2, "of AdamW (default 0.95)");
  add_number(c, "--seed", a->seed, "of the weights and the order of windows (default 0)");
  add_number(c, "--threads", a->threads, "0: all cores (default)");
  c.add_option("--products", a->products, "matrix products in f32 or bf16 (AMX); auto: bf16 where the CPU has it")
      ->type_name("NAME");
  c.add_flag("--recompute", a->recompute, "keep only the layers' inputs: less memory, a third more work");
  c.add_flag("--run-on", a->run_on, "let sequences run across documents (default: they end where documents do)");
  add_number(c, "--report-every", a->report_every, "steps (default 10)");
  add_number(c, "--validate-every", a->validate_every, "steps; 0: at the end only (default)");
  add_number(c, "--validation-tokens", a->validation_tokens,
             "most tokens of a validation but the last; 0: all (default)");
  a->checkpoint_option = add_number(c, "--checkpoint-every", a->checkpoint_every,
                                    "steps; 0: at the end only (default: a twentieth of the steps)");
  add_number(c, "--keep", a->keep, "checkpoints to keep (default 2)");
  c.add_option("--dtype", a->dtype, "matrices of the finished model: bf16 or f32 (default bf16)")->type_name("NAME");
  c.add_flag("--json", a->json, "one JSON object a line");
  c.add_flag("--quiet", a->quiet, "no progress");
  c.footer(
      "Example:\n  hymba tokenize --tokenizer tokenizer.model --out train.tok --val val.tok book.txt\n"
      "  hymba train --config config.json --data train.tok --val val.tok --tokenizer tokenizer.model --out run "
      "--epochs 4\n");
  c.callback([a, &run] { run = [a] { return train(*a); }; });
}

}  // namespace cli
