// SPDX-License-Identifier: Apache-2.0
//
// A whole run of training: batches from token files, validation, log, loss curve, checkpoints, the finished model.
//
// OUT/step-NNNNNNNN   checkpoints (training_checkpoint.hpp)       OUT/log.jsonl, OUT/log.csv   one row per report
// OUT/model           the finished model's folder                 OUT/loss.svg                 the curves so far
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/io/atomic_file.hpp>
#include <hymba/train/curve.hpp>
#include <hymba/train/run_log.hpp>
#include <hymba/train/token_file.hpp>
#include <hymba/train/trainer.hpp>
#include <hymba/train/training_batch.hpp>
#include <hymba/train/training_checkpoint.hpp>
#include <hymba/train/windows.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <numbers>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// What a run reads, how it cuts it into steps, and what it writes.
struct RunOptions {
  std::filesystem::path out;           ///< empty: nothing is written
  std::int64_t context = 256;          ///< tokens of a window
  std::int64_t sequences = 8;          ///< windows of a batch, which is what memory is taken for
  std::int64_t accumulation = 1;       ///< batches of a step
  bool split_documents = true;         ///< sequences end where documents do
  std::uint64_t seed = 0;              ///< of the order of windows
  std::int64_t report_every = 10;      ///< steps
  std::int64_t validate_every = 0;     ///< steps; 0: at the end only
  std::int64_t validation_tokens = 0;  ///< most tokens of a validation but the last, which reads all; 0: all
  std::int64_t checkpoint_every = 0;   ///< steps; 0: at the end only
  int keep_checkpoints = 2;
  DType model_type = DType::f32;       ///< of the finished model's matrices: F32 or BF16
  std::string title = "Loss";          ///< of the curve
  std::vector<std::filesystem::path> companions;  ///< files copied beside every model: a tokeniser
};

/// The loss of held-out text: every token but the first of each document is predicted once, in windows of `context`.
struct Validation {
  double loss = 0;           ///< nats per token
  double bits_per_byte = 0;  ///< of the text the tokens were made from; 0 when unknown, or when only a part was read
};

/// Reported every `report_every` steps, after every validation and at the end.
struct RunProgress {
  StepReport step;           ///< the last one; its loss is the mean since the last report
  std::int64_t steps = 0;    ///< of the whole run
  double tokens_per_second = 0;
  double seconds_left = 0;
  std::optional<Validation> validation;
  bool checkpoint = false;   ///< one was just written
};

/// The most sequences that batches of these windows have: what TrainingLimits::sequences must allow.
inline std::int64_t most_sequences(const TokenFile& file, const RunOptions& o) {
  std::int64_t most = o.sequences;
  if (o.split_documents) {
    // A window of `context` tokens holds one part more than there are document starts behind its first token.
    std::int64_t in_window = 1, first = 0;
    for (std::int64_t last = 0; last < file.documents(); ++last) {
      while (file.document(last).first - file.document(first).first >= o.context) ++first;
      in_window = std::max(in_window, last - first + 2);
    }
    most = std::min(o.context, in_window + 1) * o.sequences;  // + 1: a window may run over the file's end
  }
  return most;
}

/// @throws ArgumentError unless the file was made with a vocabulary of this size.
inline void check_vocabulary(const TokenFile& file, int vocabulary) {
  if (file.vocabulary() != vocabulary) {
    throw ArgumentError(detail::message(file.name(), ": made with a vocabulary of ", file.vocabulary(),
                                        ", but the model has one of ", vocabulary));
  }
}

/// The limits a trainer needs for a run over these files.
/// @throws ArgumentError when a size is out of range or a file is too short for one window.
inline TrainingLimits run_limits(const RunOptions& o, const TokenFile& train, const TokenFile* validation,
                                 bool recompute_layers = false) {
  TrainingLimits limits{o.context * o.sequences, 0, recompute_layers};
  WindowSampler(train, o.context, o.sequences, 0);  // checks sizes before anything large is asked for
  limits.sequences = std::min(most_sequences(train, o), limits.tokens);
  if (validation != nullptr) {
    EvaluationWindows windows(*validation, o.context, o.sequences, {o.split_documents});
    for (TrainingBatch b; windows.next(b);) {
      limits.sequences = std::max(limits.sequences, static_cast<std::int64_t>(b.lengths.size()));
    }
  }
  return limits;
}

/// The loss of a token file under the trainer's present weights, over at most `most_tokens` tokens (0: all).
template <class V, class P>
Validation validate(Trainer<V, P>& trainer, const TokenFile& file, const RunOptions& o, std::int64_t most_tokens = 0) {
  EvaluationWindows windows(file, o.context, o.sequences, {o.split_documents});
  LossSum sum;
  TrainingBatch batch;
  while ((most_tokens == 0 || sum.targets < most_tokens) && windows.next(batch)) sum += trainer.loss(batch);
  Validation v{sum.mean(), 0};
  if (sum.targets == windows.predictions() && file.text_bytes() > 0) {
    v.bits_per_byte = sum.nats / std::numbers::ln2 / static_cast<double>(file.text_bytes());
  }
  return v;
}

/// Trains until the schedule's last step, from wherever the trainer and `start` stand (`resume_training`, or a new
/// trainer and a sampler state that holds the seed alone).
/// @param report called with RunProgress; it may throw, which ends the run with the checkpoints written so far.
/// @throws ArgumentError for files that do not fit the variant (vocabulary) or are too short; IoError when something
/// cannot be written; DivergedError when the loss is not finite: the last checkpoint is then the last good one.
/// @returns the last validation, when there is a validation file.
template <class V, class P, class Report>
std::optional<Validation> run_training(Trainer<V, P>& trainer, const TokenFile& train, const TokenFile* validation,
                                       const RunOptions& o, std::optional<WindowSamplerState> start, Report&& report) {
  using Clock = std::chrono::steady_clock;
  check_vocabulary(train, trainer.architecture().vocabulary);
  if (validation != nullptr) check_vocabulary(*validation, trainer.architecture().vocabulary);
  if (o.accumulation < 1 || o.report_every < 1) {
    throw ArgumentError(detail::message("run: ", o.accumulation, " batches a step, a report every ", o.report_every,
                                        " steps, expected at least 1"));
  }
  const bool writes = !o.out.empty();
  if (writes) {
    std::error_code error;
    std::filesystem::create_directories(o.out, error);
    if (error) throw IoError(detail::message("cannot create ", o.out.string(), ": ", error.message()));
  }
  WindowSampler sampler(train, o.context, o.sequences, o.seed, {o.split_documents});
  if (start) sampler.restore(*start);
  std::optional<RunLog> log;
  if (writes) log = start ? RunLog::resume(o.out, trainer.steps()) : RunLog::start(o.out);

  const std::int64_t steps = trainer.options().schedule.steps, per_step = sampler.rows() * o.accumulation;
  std::vector<TrainingBatch> batches(static_cast<std::size_t>(o.accumulation));
  std::optional<Validation> last;
  const auto began = Clock::now();
  const auto seconds_since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
  double training_seconds = 0, loss_sum = 0;
  std::int64_t since_report = 0, done = 0;
  const auto curve = [&] {
    if (!writes) return;
    const std::vector<RunLogRow> rows = read_run_log(o.out);
    LossCurveOptions style;
    style.title = o.title;
    AtomicFile file(o.out / "loss.svg");
    file.write(loss_curve_svg({run_series("training", rows, &RunLogRow::loss),
                               run_series("held out", rows, &RunLogRow::validation_loss)},
                              style));
    file.commit();
  };
  const auto every = [](std::int64_t step, std::int64_t n) { return n > 0 && step % n == 0; };

  while (trainer.steps() < steps) {
    for (TrainingBatch& b : batches) sampler.next(b);
    const auto step_began = Clock::now();
    RunProgress progress;
    progress.step = trainer.step(batches);
    training_seconds += seconds_since(step_began);
    ++done, ++since_report;
    loss_sum += progress.step.loss;
    const std::int64_t step = trainer.steps();
    const bool finished = step == steps;
    if (validation != nullptr && (finished || every(step, o.validate_every))) {
      last = validate(trainer, *validation, o, finished ? 0 : o.validation_tokens);
      progress.validation = last;
    }
    const bool checkpoint = writes && (finished || every(step, o.checkpoint_every));
    if (!every(step, o.report_every) && !progress.validation && !checkpoint) continue;
    progress.steps = steps;
    progress.step.loss = loss_sum / static_cast<double>(since_report);
    progress.tokens_per_second = static_cast<double>(done * per_step) / training_seconds;
    progress.seconds_left = seconds_since(began) / static_cast<double>(done) * static_cast<double>(steps - step);
    if (log) {
      RunLogRow row;
      row.step = step;
      row.tokens = step * per_step;
      row.loss = progress.step.loss;
      if (progress.validation) row.validation_loss = progress.validation->loss;
      row.learning_rate = progress.step.learning_rate;
      row.gradient_norm = progress.step.gradient_norm;
      row.tokens_per_second = progress.tokens_per_second;
      row.seconds = seconds_since(began);
      log->append(row);
    }
    loss_sum = 0, since_report = 0;
    if (checkpoint) {
      save_training_checkpoint(o.out, trainer, sampler.state(), o.companions, o.keep_checkpoints);
      progress.checkpoint = true;
      curve();
    }
    report(static_cast<const RunProgress&>(progress));
  }
  if (writes) {
    save_trained_model(o.out / "model", trainer, o.model_type, o.companions);
    curve();
  }
  return last;
}

HYMBA_NAMESPACE_END
