// SPDX-License-Identifier: Apache-2.0
//
// Steps of training: gradients of some batches, clipped, and one update of AdamW.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/model/model.hpp>
#include <hymba/train/kernels/adamw.hpp>
#include <hymba/train/schedule.hpp>
#include <hymba/train/trained_parameters.hpp>
#include <hymba/train/training_batch.hpp>
#include <hymba/train/training_network.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Training cannot go on: a loss or a gradient is not a number or infinite. The weights are those before the step.
class DivergedError : public Error {
 public:
  using Error::Error;
};

/// How a model is trained.
struct TrainerOptions {
  TrainingLimits limits;  ///< of one batch
  Schedule schedule;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  ///< of weight matrices; norms, biases, A_log, D, convolutions, meta tokens do not decay
  double clip = 1.0;          ///< largest global norm of the gradient; 0: no clipping
  int threads = 0;            ///< 0: all cores
};

/// What one step did.
struct StepReport {
  std::int64_t step = 0;     ///< counted from 1
  double loss = 0;           ///< mean over the step's targets, nats
  double gradient_norm = 0;  ///< before clipping
  double learning_rate = 0;
  std::int64_t tokens = 0;  ///< read, meta tokens not counted
};

/// A model of variant `V` and its optimiser. Not thread-safe; uses `threads` threads itself. The same options, weights
/// and batches give the same bits for the same number of threads.
template <class V, Policy P = Cpu<Weights::f32, Cache::f32>>
class Trainer {
 public:
  using Real = activation_t<P::weights>;
  using variant = V;

  /// @param table initial weights: random_tensors(...), or a checkpoint's to go on from. `source` names it in errors.
  /// @throws ConfigError, TensorError, ArgumentError (an option out of range), std::bad_alloc.
  Trainer(const Architecture<V>& a, const TensorTable& table, const TrainerOptions& options,
          const std::string& source = "tensors")
      : options_(checked(options)),
        executor_(options.threads),
        parameters_(a, table, source),
        network_(parameters_, executor_, options.limits),
        moments_(2 * parameters_.weights().size() * sizeof(Real)) {}

  /// One update from the gradient of the mean loss over all targets of `batches`, which are run one after another: the
  /// memory is that of one, the step that of all.
  /// @throws ArgumentError for a batch beyond the limits, a token outside the vocabulary or a step without a target;
  /// DivergedError when the loss or the gradient is not finite, before any weight has changed.
  StepReport step(std::span<const TrainingBatch> batches) {
    StepReport report;
    report.step = steps_ + 1;
    report.learning_rate = options_.schedule.at(steps_);
    std::int64_t targets = 0;
    for (const TrainingBatch& b : batches) {
      for (const Token t : b.targets) targets += t != no_target ? 1 : 0;
      report.tokens += b.rows();
    }
    if (targets == 0) {
      throw ArgumentError(
          detail::message("a training step of ", report.tokens, " tokens has 0 targets, expected at least 1"));
    }
    parameters_.clear_gradients();
    LossSum sum;
    const auto scale = static_cast<Real>(1.0 / static_cast<double>(targets));
    for (const TrainingBatch& b : batches) sum += network_.accumulate(b, scale);
    report.loss = sum.mean();
    if (!std::isfinite(report.loss)) diverged(report, "the loss", report.loss);
    report.gradient_norm = gradient_norm();
    if (!std::isfinite(report.gradient_norm)) diverged(report, "the gradient's norm", report.gradient_norm);
    update(report);
    ++steps_;
    return report;
  }
  StepReport step(const TrainingBatch& batch) { return step(std::span<const TrainingBatch>(&batch, 1)); }

  /// The losses of a batch with the present weights.
  /// @throws ArgumentError as `step`.
  LossSum loss(const TrainingBatch& batch) { return network_.loss(batch); }

  /// @throws DivergedError when a weight is not finite: an update went wrong that no loss has shown yet.
  void check_weights() const {
    for (const TrainedTensor& t : parameters_.tensors()) {
      if (!std::isfinite(kernel_for<op::SumOfSquares, typename P::arch>::run(parameters_.weight(t), t.count()))) {
        throw DivergedError(detail::message("step ", steps_, ": ", t.name,
                                            " holds numbers that are not finite (a lower ",
                                            "learning rate or a longer warm-up may help)"));
      }
    }
  }

  /// The present weights as a model, e.g. `model<Cpu<Weights::bf16>>()`; a copy, training may go on.
  template <Policy Q = Cpu<Weights::f32, Cache::f32>>
  Model<V, Q> model() const {
    return Model<V, Q>(parameters_.architecture(), parameters_.table(), "the model in training");
  }

  const Architecture<V>& architecture() const { return parameters_.architecture(); }
  const TrainerOptions& options() const { return options_; }
  TrainedParameters<V, Real>& parameters() { return parameters_; }
  const TrainedParameters<V, Real>& parameters() const { return parameters_; }
  TrainingNetwork<V, P>& network() { return network_; }
  int threads() const { return executor_.threads(); }
  /// Steps done, over all runs that led here.
  std::int64_t steps() const { return steps_; }
  /// First and second moments, laid out as the weights. For checkpoints.
  std::span<Real> first_moments() { return {reinterpret_cast<Real*>(moments_.data()), parameters_.weights().size()}; }
  std::span<Real> second_moments() { return {first_moments().data() + first_moments().size(), first_moments().size()}; }
  /// Goes on after `steps` steps; the caller has set weights and moments.
  void resume_at(std::int64_t steps) { steps_ = steps; }

 private:
  static const TrainerOptions& checked(const TrainerOptions& o) {
    o.schedule.check();
    const auto fail = [](const char* name, double value, const char* expected) {
      throw ArgumentError(detail::message("training: ", name, " is ", value, ", expected ", expected));
    };
    if (!(o.beta1 >= 0 && o.beta1 < 1)) fail("beta1", o.beta1, "0 to below 1");
    if (!(o.beta2 >= 0 && o.beta2 < 1)) fail("beta2", o.beta2, "0 to below 1");
    if (!(std::isfinite(o.eps) && static_cast<Real>(o.eps) > 0)) {
      fail("eps", o.eps, "a positive number that the weights' type can hold");
    }
    if (!(o.weight_decay >= 0 && std::isfinite(o.weight_decay))) fail("weight decay", o.weight_decay, "0 or more");
    if (!(o.clip >= 0 && std::isfinite(o.clip))) fail("the clipping norm", o.clip, "0 (none) or more");
    return o;
  }
  [[noreturn]] static void diverged(const StepReport& report, const char* what, double value) {
    throw DivergedError(detail::message("step ", report.step, ": ", what, " is ", value,
                                        ", expected a finite number; the weights are those of step ", report.step - 1,
                                        " (a lower learning rate or a longer warm-up may help)"));
  }

  double gradient_norm() {
    double sum = 0;
    for (const TrainedTensor& t : parameters_.tensors()) {
      sum += kernel_for<op::SumOfSquares, typename P::arch>::run(parameters_.gradient(t), t.count());
    }
    return std::sqrt(sum);
  }

  void update(const StepReport& report) {
    AdamWUpdate u;
    u.learning_rate = report.learning_rate;
    u.beta1 = options_.beta1;
    u.beta2 = options_.beta2;
    u.eps = options_.eps;
    u.step = steps_ + 1;
    if (options_.clip > 0) u.gradient_scale = std::min(1.0, options_.clip / (report.gradient_norm + 1e-6));
    for (const TrainedTensor& t : parameters_.tensors()) {
      u.weight_decay = t.spec.role != TensorRole::vector ? options_.weight_decay : 0;
      kernel_for<op::AdamW, typename P::arch>::run(executor_, Scratch{}, u, t.count(), parameters_.weight(t),
                                                   parameters_.gradient(t), first_moments().data() + t.offset,
                                                   second_moments().data() + t.offset);
    }
  }

  TrainerOptions options_;
  typename P::executor executor_;
  TrainedParameters<V, Real> parameters_;
  TrainingNetwork<V, P> network_;
  AlignedBuffer moments_;
  std::int64_t steps_ = 0;
};

HYMBA_NAMESPACE_END
