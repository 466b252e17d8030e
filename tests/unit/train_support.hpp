// SPDX-License-Identifier: Apache-2.0
//
// Helpers of the tests of training: goldens of the PyTorch oracle, random batches, errors of gradients.
#pragma once

#include <hymba/hymba.hpp>
#include <hymba/train/train.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace train_test {

using Plain = hymba::Cpu<hymba::Weights::f32, hymba::Cache::f32, hymba::arch::scalar, hymba::Serial>;
using Vector = hymba::Cpu<hymba::Weights::f32, hymba::Cache::f32>;
using Double = hymba::Cpu<hymba::Weights::f64, hymba::Cache::f64, hymba::arch::scalar, hymba::Serial>;

inline std::filesystem::path golden_root() { return std::filesystem::path(HYMBA_TEST_DATA) / "golden"; }

/// Folders with gradients of the oracle.
inline std::vector<std::string> gradient_goldens() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_root())) {
    if (std::filesystem::exists(entry.path() / "gradients.safetensors"))
      names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline hymba::Json read_json(const std::filesystem::path& path) {
  const hymba::FileMap file(path);
  const auto bytes = file.bytes();
  return hymba::parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

inline hymba::TrainingBatch batch_of(const hymba::Json& sequences) {
  hymba::TrainingBatch b;
  for (const auto& s : sequences) {
    for (const auto& t : s["tokens"]) b.tokens.push_back(t.get<hymba::Token>());
    for (const auto& t : s["targets"]) b.targets.push_back(t.get<hymba::Token>());
    b.lengths.push_back(static_cast<std::int64_t>(s["tokens"].size()));
  }
  return b;
}

inline hymba::TrainingLimits limits_of(const hymba::TrainingBatch& b, bool recompute = false) {
  return {b.rows(), static_cast<std::int64_t>(b.lengths.size()), recompute};
}

inline std::int64_t targets_of(const hymba::TrainingBatch& b) {
  return std::count_if(b.targets.begin(), b.targets.end(), [](hymba::Token t) { return t != hymba::no_target; });
}

/// Loss and gradients of the mean loss of one batch.
template <class V, class P>
struct Gradients {
  using Real = hymba::activation_t<P::weights>;
  typename P::executor executor;
  hymba::TrainedParameters<V, Real> parameters;
  hymba::TrainingNetwork<V, P> network;
  double loss = 0;

  Gradients(const hymba::Architecture<V>& a, const hymba::TensorTable& table, const hymba::TrainingBatch& batch,
            bool recompute = false, int threads = 1)
      : executor(threads), parameters(a, table, "test"), network(parameters, executor, limits_of(batch, recompute)) {
    loss = network.accumulate(batch, Real(1) / static_cast<Real>(targets_of(batch))).mean();
  }
};

/// The largest difference of two tensors, relative to the largest number of the second; 0 when all are zero.
template <class A, class B>
double relative_difference(std::span<A> got, std::span<B> wanted) {
  double most = 0, difference = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(wanted[i])));
    const double d = std::abs(static_cast<double>(got[i]) - static_cast<double>(wanted[i]));
    difference = d > difference || std::isnan(d) ? d : difference;
  }
  return difference == 0 ? 0 : difference / most;
}

/// Sequences of random tokens and lengths; one of length 1, some without a target here and there.
inline hymba::TrainingBatch random_batch(std::mt19937& rng, int vocabulary, int sequences, int longest) {
  hymba::TrainingBatch b;
  for (int s = 0; s < sequences; ++s) {
    const std::int64_t length = s == 1 ? 1 : 1 + static_cast<std::int64_t>(rng() % static_cast<unsigned>(longest));
    for (std::int64_t i = 0; i < length; ++i) {
      b.tokens.push_back(static_cast<hymba::Token>(rng() % static_cast<unsigned>(vocabulary)));
      const bool none = rng() % 5 == 0 && i > 0;
      b.targets.push_back(none ? hymba::no_target
                               : static_cast<hymba::Token>(rng() % static_cast<unsigned>(vocabulary)));
    }
    b.lengths.push_back(length);
  }
  return b;
}

}  // namespace train_test
