// SPDX-License-Identifier: Apache-2.0
//
// A model and its sessions behind virtual functions, so that one program holds every pair of weight and cache formats
// and the commands are compiled once. Each pair is one source file, model_*.cpp.
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
};

class AnyModel {
 public:
  virtual ~AnyModel() = default;
  virtual std::unique_ptr<AnySession> session(const SessionSettings& settings) const = 0;
  virtual std::unique_ptr<AnySession> restore(std::span<const std::byte> blob,
                                              const SessionSettings& settings) const = 0;
};

using AnyArchitecture = hymba::Architecture<hymba::DynamicHymba>;

/// Instantiated in model_*.cpp.
template <hymba::Weights W, hymba::Cache C>
std::unique_ptr<AnyModel> make_model(const AnyArchitecture& architecture, hymba::TensorTable tensors,
                                     const std::string& source);

}  // namespace cli
