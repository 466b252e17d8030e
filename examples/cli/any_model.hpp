// SPDX-License-Identifier: Apache-2.0
//
// A model and its sessions behind virtual functions, so that one program holds every pair of weight and cache formats
// and the commands are compiled once. Each pair is one compilation of instances/model.cpp.
#pragma once

#include <hymba/core/tensor_table.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/model/sampler.hpp>
#include <hymba/variant/presets.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace cli {

struct SessionSettings {
  std::int64_t max_context = 0;
  std::int64_t prefill_chunk = 512;
  int threads = 0;
};

/// The functions are those of hymba::Session.
class AnySession {
 public:
  virtual ~AnySession() = default;
  virtual void prefill(std::span<const hymba::Token> tokens) = 0;
  virtual void evaluate(std::span<const hymba::Token> tokens, std::span<float> logits) = 0;
  virtual std::span<const float> decode(hymba::Token token) = 0;
  virtual hymba::Choice sample() = 0;
  virtual void configure(const hymba::SamplingOptions& options) = 0;
  virtual void reset() = 0;
  virtual std::vector<std::byte> snapshot() const = 0;
  virtual std::int64_t position() const = 0;
  virtual std::int64_t max_context() const = 0;
  virtual std::int64_t room() const = 0;
  virtual std::size_t state_bytes() const = 0;
  virtual int threads() const = 0;
  virtual std::unique_ptr<AnySession> fork() const = 0;
};

/// The functions are those of hymba::Batch. The sessions are of the model that made it.
class AnyBatch {
 public:
  virtual ~AnyBatch() = default;
  /// One session reads all of `tokens`, with the batch's working memory in place of its own.
  virtual void prefill(AnySession& session, std::span<const hymba::Token> tokens) = 0;
  /// Every session reads one token.
  virtual void decode(std::span<const std::unique_ptr<AnySession>> sessions, std::span<const hymba::Token> tokens) = 0;
};

/// What multiplies a model's matrices with many rows.
enum class MatrixUnit {
  multiply_add,  ///< vectors in single precision
  bf16_tiles,    ///< AMX, tdpbf16ps
  int8_tiles,    ///< AMX, tdpbssd
  bf16_dot,      ///< vectors of bf16, vdpbf16ps or bfdot
  byte_dot,      ///< vectors of bytes, vpdpbusd or its like
};

/// What running a model takes, as far as its weights say.
struct WeightCosts {
  double step_bytes = 0;     ///< bytes of weight matrices that a step reads, the output projection included
  double step_elements = 0;  ///< numbers in these
  double row_elements = 0;   ///< those that every row of a prefill is multiplied with: without the output projection
  MatrixUnit unit = MatrixUnit::multiply_add;
  std::vector<std::span<const std::byte>> step_blocks = {};  ///< where what a step reads lies
};

class AnyModel {
 public:
  virtual ~AnyModel() = default;
  virtual std::unique_ptr<AnySession> session(const SessionSettings& settings) const = 0;
  virtual std::unique_ptr<AnySession> restore(std::span<const std::byte> blob,
                                              const SessionSettings& settings) const = 0;
  virtual std::unique_ptr<AnyBatch> batch(std::int64_t max_sessions, std::int64_t max_rows, int threads) const = 0;
  virtual WeightCosts weight_costs() const = 0;
};

using AnyArchitecture = hymba::Architecture<hymba::DynamicHymba>;

/// What runs a model, all of it beside vectors in single precision. On `simd` nothing but the formats is rounded.
enum class Path {
  simd,  ///< arch::best
  dot,   ///< arch::dot, whose products round activations; there is none with weights that hymba::dot_takes denies
  amx,   ///< arch::amx, whose products round activations
};

/// Instantiated in instances/model.cpp.
/// @pre `path` is available here (common.cpp).
template <hymba::Weights W, hymba::Cache C>
std::unique_ptr<AnyModel> make_model(Path path, const AnyArchitecture& architecture, hymba::TensorTable tensors,
                                     const std::string& source);

}  // namespace cli
