// SPDX-License-Identifier: Apache-2.0
//
// A run of training with everything the command line can say about it; instantiated once per kind of matrix product.
#pragma once

#include <hymba/hymba.hpp>
#include <hymba/train/train.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace cli {

/// What `hymba train` was asked for, read and checked as far as it goes without weights.
struct TrainRequest {
  hymba::Description description;
  std::string source;                         ///< named in errors about tensors
  std::optional<hymba::TensorTable> weights;  ///< none: random ones of `seed`
  std::optional<std::filesystem::path> resume;
  hymba::TokenFile train;
  std::optional<hymba::TokenFile> validation;
  hymba::TrainerOptions trainer;
  hymba::RunOptions run;
  bool recompute = false;
};

using ReportProgress = std::function<void(const hymba::RunProgress&)>;
/// Called once before the first step: parameters, bytes of weights with gradients and moments, bytes of activations,
/// steps done before.
using ReportStart = std::function<void(std::int64_t, std::size_t, std::size_t, std::int64_t)>;

template <class Arch>
std::optional<hymba::Validation> train_with(const TrainRequest& request, const ReportStart& start,
                                            const ReportProgress& report);

template <class Arch>
std::optional<hymba::Validation> train_with_impl(const TrainRequest& request, const ReportStart& start,
                                                 const ReportProgress& report) {
  using namespace hymba;
  using Policy = Cpu<Weights::f32, Cache::f32, Arch>;
  const auto architecture = architecture_from<DynamicHymba>(request.description, request.source);
  TrainerOptions options = request.trainer;
  const TokenFile* validation = request.validation ? &*request.validation : nullptr;
  check_vocabulary(request.train, architecture.vocabulary);
  if (validation != nullptr) check_vocabulary(*validation, architecture.vocabulary);
  options.limits = run_limits(request.run, request.train, validation, request.recompute);
  const TensorTable weights = request.weights ? *request.weights : random_tensors(architecture, request.run.seed);
  Trainer<DynamicHymba, Policy> trainer(architecture, weights, options, request.source);
  std::optional<TrainingState> state;
  if (request.resume) {
    state = resume_training(*request.resume, trainer);
    check_training_state(*state, request.run, request.train);
  }
  start(parameters(architecture), 4 * trainer.parameters().weights().size_bytes(), trainer.network().bytes(),
        trainer.steps());
  return run_training(trainer, request.train, validation, request.run, state, report);
}

}  // namespace cli
