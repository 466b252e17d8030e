// SPDX-License-Identifier: Apache-2.0
//
// What every model_*.cpp instantiates.
#pragma once

#include <hymba/exec/policy.hpp>
#include <hymba/model/model.hpp>

#include <utility>

#include "any_model.hpp"

namespace cli {

template <class Session>
class SessionOf final : public AnySession {
 public:
  explicit SessionOf(Session session) : session_(std::move(session)) {}
  void prefill(std::span<const hymba::Token> tokens) override { session_.prefill(tokens); }
  void evaluate(std::span<const hymba::Token> tokens, std::span<float> logits) override {
    session_.evaluate(tokens, logits);
  }
  std::span<const float> decode(hymba::Token token) override { return session_.decode(token); }
  hymba::Choice sample() override { return session_.sample(); }
  void configure(const hymba::SamplingOptions& options) override { session_.configure(options); }
  void reset() override { session_.reset(); }
  std::vector<std::byte> snapshot() const override { return session_.snapshot(); }
  std::int64_t position() const override { return session_.position(); }
  std::int64_t max_context() const override { return session_.max_context(); }
  std::int64_t room() const override { return session_.room(); }
  std::size_t state_bytes() const override { return session_.memory_bytes(); }
  int threads() const override { return session_.threads(); }

 private:
  Session session_;
};

template <hymba::Weights W, hymba::Cache C>
class ModelOf final : public AnyModel {
 public:
  using Model = hymba::Model<hymba::DynamicHymba, hymba::Cpu<W, C>>;
  ModelOf(const AnyArchitecture& architecture, hymba::TensorTable tensors, const std::string& source)
      : model_(architecture, std::move(tensors), source) {}
  std::unique_ptr<AnySession> session(const SessionSettings& settings) const override {
    return wrap(model_.session(options(settings)));
  }
  std::unique_ptr<AnySession> restore(std::span<const std::byte> blob, const SessionSettings& settings) const override {
    return wrap(model_.restore(blob, options(settings)));
  }

 private:
  using Session = typename Model::session_type;
  static hymba::SessionOptions options(const SessionSettings& s) {
    return {.max_context = s.max_context, .threads = s.threads, .prefill_chunk = s.prefill_chunk};
  }
  static std::unique_ptr<AnySession> wrap(Session session) {
    return std::make_unique<SessionOf<Session>>(std::move(session));
  }
  Model model_;
};

template <hymba::Weights W, hymba::Cache C>
std::unique_ptr<AnyModel> make_model(const AnyArchitecture& architecture, hymba::TensorTable tensors,
                                     const std::string& source) {
  return std::make_unique<ModelOf<W, C>>(architecture, std::move(tensors), source);
}

}  // namespace cli
