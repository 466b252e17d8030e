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
#include <functional>
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
  std::filesystem::path out{};      ///< empty: nothing is written
  std::int64_t context = 256;       ///< tokens of a window
  std::int64_t sequences = 8;       ///< windows of a batch, which is what memory is taken for
  std::int64_t accumulation = 1;    ///< batches of a step
  bool split_documents = true;      ///< sequences end where documents do
  std::uint64_t seed = 0;           ///< of the order of windows
  std::int64_t report_every = 10;   ///< steps
  std::int64_t validate_every = 0;  ///< steps; 0: at the end only
  std::int64_t validation_tokens =
      0;  ///< a validation but the last stops behind the batch that reaches it; 0: reads all
  std::int64_t checkpoint_every = 0;  ///< steps; 0: at the end only
  int keep_checkpoints = 2;
  DType model_type = DType::f32;        ///< of the finished model's matrices: F32 or BF16
  std::string title = "Loss";           ///< of the curve
  std::vector<Companion> companions{};  ///< files copied beside every model: a tokeniser
  std::function<bool()> stop{};         ///< asked after every step; true: write a checkpoint and return. Null: never
};

/// The loss of held-out text: every token but the first of each document is predicted once, in windows of `context`.
struct Validation {
  double loss = 0;  ///< nats per token
  /// Of the text the tokens were made from; 0 when unknown, or when only a part was read. A document's first token is
  /// not predicted: where documents do not begin with bos, its bytes come for free.
  double bits_per_byte = 0;
};

/// Reported every `report_every` steps, after every validation and at the end.
struct RunProgress {
  StepReport step;         ///< the last one; its loss is the mean since the last report
  std::int64_t steps = 0;  ///< of the whole run
  double tokens_per_second = 0;
  double seconds_left = 0;
  std::optional<Validation> validation;
  bool checkpoint = false;  ///< one was just written
};

/// The most sequences that batches of these windows have: what TrainingLimits::sequences must allow.
inline std::int64_t most_sequences(const TokenFile& file, std::int64_t context, std::int64_t sequences,
                                   bool split_documents = true) {
  if (!split_documents) return sequences;
  // A window of `context` tokens holds one part more than there are document starts behind its first token. Windows run
  // over the file's end to its beginning.
  const std::int64_t n = file.documents();
  const auto start = [&](std::int64_t i) {
    return i < n ? file.document(i).first : file.document(i - n).first + file.size();
  };
  std::int64_t most = 1;
  for (std::int64_t first = 0, last = 0; last < 2 * n; ++last) {
    while (start(last) - start(first) >= context) ++first;
    most = std::max(most, last - first + 2);
  }
  return std::min(context, most) * sequences;
}

/// @throws ArgumentError unless the file was made with a vocabulary of this size.
inline void check_vocabulary(const TokenFile& file, int vocabulary) {
  if (file.vocabulary() != vocabulary) {
    throw ArgumentError(detail::message(file.name(), ": made with a vocabulary of ", file.vocabulary(),
                                        ", but the model has one of ", vocabulary));
  }
}

/// What can be wrong with a run before its first step.
/// @throws ArgumentError, IoError.
inline void check_run_options(const RunOptions& o, std::int64_t rows) {
  const auto fail = [](const char* name, std::int64_t value, const char* expected) {
    throw ArgumentError(detail::message("run: ", name, " is ", value, ", expected ", expected));
  };
  if (o.accumulation < 1 || o.accumulation > (std::int64_t{1} << 40) / rows) {
    fail("the number of batches a step", o.accumulation, "at least 1 and at most 2^40 tokens a step");
  }
  if (o.report_every < 1) fail("report_every", o.report_every, "at least 1");
  if (o.validate_every < 0) fail("validate_every", o.validate_every, "0 (at the end) or more");
  if (o.validation_tokens < 0) fail("validation_tokens", o.validation_tokens, "0 (all) or more");
  if (o.checkpoint_every < 0) fail("checkpoint_every", o.checkpoint_every, "0 (at the end) or more");
  if (o.keep_checkpoints < 1) fail("keep_checkpoints", o.keep_checkpoints, "at least 1");
  if (o.model_type == DType::f16) throw ArgumentError("run: the model's type is F16, expected F32 or BF16");
  check_companions(o.companions);
}

/// @throws ArgumentError when a run is to go on with windows that are not those it was made with.
inline void check_training_state(const TrainingState& state, const RunOptions& o, const TokenFile& train) {
  if (state.context != o.context) {
    throw ArgumentError(detail::message("the checkpoint is of a run with windows of ", state.context,
                                        " tokens, expected the same, not ", o.context));
  }
  if (state.file_tokens != train.size()) {
    throw ArgumentError(detail::message(train.name(), ": ", train.size(),
                                        " tokens, but the checkpoint is of a run over a file of ", state.file_tokens));
  }
}

/// The limits a trainer needs for a run over these files.
/// @throws ArgumentError when a size is out of range or a file is too short for one window.
inline TrainingLimits run_limits(const RunOptions& o, const TokenFile& train, const TokenFile* validation,
                                 bool recompute_layers = false) {
  const WindowSampler windows(train, o.context, o.sequences, 0);  // checks the sizes
  check_run_options(o, windows.rows());
  TrainingLimits limits{windows.rows(), 0, recompute_layers};
  limits.sequences = std::min(most_sequences(train, o.context, o.sequences, o.split_documents), limits.tokens);
  if (validation != nullptr) {
    EvaluationWindows held_out(*validation, o.context, o.sequences, {o.split_documents});
    for (TrainingBatch b; held_out.next(b);) {
      limits.sequences = std::max(limits.sequences, static_cast<std::int64_t>(b.lengths.size()));
    }
  }
  return limits;
}

/// The loss of a token file under the trainer's present weights. Whole batches are read until `enough_tokens` have been
/// predicted (0: all).
/// @throws ArgumentError when there is nothing to predict, or a batch is beyond the trainer's limits.
template <class V, class P>
Validation validate(Trainer<V, P>& trainer, const TokenFile& file, const RunOptions& o,
                    std::int64_t enough_tokens = 0) {
  EvaluationWindows windows(file, o.context, o.sequences, {o.split_documents});
  LossSum sum;
  TrainingBatch batch;
  while ((enough_tokens == 0 || sum.targets < enough_tokens) && windows.next(batch)) sum += trainer.loss(batch);
  Validation v{sum.mean(), 0};
  if (sum.targets == windows.predictions() && file.text_bytes() > 0) {
    v.bits_per_byte = sum.nats / std::numbers::ln2 / static_cast<double>(file.text_bytes());
  }
  return v;
}

namespace detail {
/// OUT/loss.svg, from OUT/log.jsonl.
inline void write_curve(const RunOptions& o) {
  const std::vector<RunLogRow> rows = read_run_log(o.out);
  LossCurveOptions style;
  style.title = o.title;
  AtomicFile file(o.out / "loss.svg");
  file.write(loss_curve_svg(
      {run_series("training", rows, &RunLogRow::loss), run_series("held out", rows, &RunLogRow::validation_loss)},
      style));
  file.commit();
}
}  // namespace detail

/// Trains until the schedule's last step, from wherever the trainer and `start` stand (nothing, or what resume_training
/// returned).
/// @param report called with RunProgress; it may throw, which ends the run with the checkpoints written so far.
/// @throws ArgumentError for options out of range, files that do not fit the variant (vocabulary), are too short, or
/// are not those of the run to go on with; IoError when something cannot be read or written; DivergedError when a loss
/// or a weight is not finite: no checkpoint of such weights is written.
/// @returns the last validation, when there was one.
template <class V, class P, class Report>
std::optional<Validation> run_training(Trainer<V, P>& trainer, const TokenFile& train, const TokenFile* validation,
                                       const RunOptions& o, const std::optional<TrainingState>& start,
                                       Report&& report) {
  using Clock = std::chrono::steady_clock;
  check_vocabulary(train, trainer.architecture().vocabulary);
  if (validation != nullptr) check_vocabulary(*validation, trainer.architecture().vocabulary);
  WindowSampler sampler(train, o.context, o.sequences, o.seed, {o.split_documents});
  check_run_options(o, sampler.rows());
  if (train.size() == train.documents() && o.split_documents) {
    throw ArgumentError(detail::message(train.name(), ": every document is one token, expected some to predict"));
  }
  TrainingState state{sampler.state(), o.context, train.size(), 0};
  if (start) {
    check_training_state(*start, o, train);
    sampler.restore(start->sampler);
    state = *start;
  }
  const bool writes = !o.out.empty();
  std::optional<RunLog> log;
  if (writes) {
    std::error_code error;
    std::filesystem::create_directories(o.out, error);
    if (error) throw IoError(detail::message("cannot create ", o.out.string(), ": ", error.message()));
    log = start ? RunLog::resume(o.out, trainer.steps()) : RunLog::start(o.out);
  }

  const std::int64_t steps = trainer.options().schedule.steps, per_step = sampler.rows() * o.accumulation;
  std::vector<TrainingBatch> batches(static_cast<std::size_t>(o.accumulation));
  std::optional<Validation> last;
  const auto began = Clock::now();
  const auto seconds_since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  const auto every = [](std::int64_t step, std::int64_t n) { return n > 0 && step % n == 0; };
  // A stretch of documents of one token each has nothing to predict.
  const auto draw = [&] {
    for (bool any = false; !any;) {
      for (TrainingBatch& b : batches) {
        sampler.next(b);
        any = any || std::any_of(b.targets.begin(), b.targets.end(), [](Token t) { return t != no_target; });
      }
      state.tokens += per_step;
    }
  };
  double training_seconds = 0, loss_sum = 0;
  std::int64_t since_report = 0, done = 0;
  bool stopped = false;
  while (trainer.steps() < steps && !stopped) {
    draw();
    const auto step_began = Clock::now();
    RunProgress progress;
    progress.step = trainer.step(batches);
    training_seconds += seconds_since(step_began);
    ++done, ++since_report;
    loss_sum += progress.step.loss;
    const std::int64_t step = trainer.steps();
    const bool finished = step == steps;
    stopped = !finished && o.stop && o.stop();
    if (validation != nullptr && (finished || every(step, o.validate_every))) {
      last = validate(trainer, *validation, o, finished ? 0 : o.validation_tokens);
      if (!std::isfinite(last->loss)) {
        throw DivergedError(detail::message("step ", step, ": the loss of ", validation->name(), " is ", last->loss,
                                            ", expected a finite number"));
      }
      progress.validation = last;
    }
    const bool checkpoint = writes && (finished || stopped || every(step, o.checkpoint_every));
    if (!finished && !stopped && !every(step, o.report_every) && !progress.validation && !checkpoint) continue;
    progress.steps = steps;
    progress.step.loss = loss_sum / static_cast<double>(since_report);
    progress.tokens_per_second = static_cast<double>(done * per_step) / training_seconds;
    progress.seconds_left = seconds_since(began) / static_cast<double>(done) * static_cast<double>(steps - step);
    if (log) {
      RunLogRow row;
      row.step = step;
      row.tokens = state.tokens;
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
      state.sampler = sampler.state();
      save_training_checkpoint(o.out, trainer, state, o.companions, o.keep_checkpoints);
      progress.checkpoint = true;
      detail::write_curve(o);
    }
    report(static_cast<const RunProgress&>(progress));
  }
  if (writes && !stopped) save_trained_model(o.out / "model", trainer, o.model_type, o.companions);
  return last;
}

HYMBA_NAMESPACE_END
