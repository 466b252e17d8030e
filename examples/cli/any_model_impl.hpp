// SPDX-License-Identifier: Apache-2.0
//
// What instances/model.cpp instantiates.
#pragma once

#include <hymba/exec/arch.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/exec/policy.hpp>
#include <hymba/exec/team.hpp>
#include <hymba/kernels/amx/gemm.hpp>
#include <hymba/kernels/dot/gemm.hpp>
#include <hymba/model/model.hpp>

#include <utility>
#include <vector>

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
  std::unique_ptr<AnySession> fork() const override { return std::make_unique<SessionOf>(session_.fork()); }
  Session& get() { return session_; }

 private:
  Session session_;
};

template <class Model>
class BatchOf final : public AnyBatch {
 public:
  explicit BatchOf(typename Model::batch_type batch) : batch_(std::move(batch)) {}
  void prefill(AnySession& session, std::span<const hymba::Token> tokens) override {
    const typename Model::batch_type::Item item{&session_of(session), tokens};
    batch_.step(std::span(&item, 1));
  }
  void decode(std::span<const std::unique_ptr<AnySession>> sessions, std::span<const hymba::Token> tokens) override {
    pointers_.clear();
    for (const auto& s : sessions) pointers_.push_back(&session_of(*s));
    batch_.decode(pointers_, tokens);
  }

 private:
  using Session = typename Model::session_type;
  static Session& session_of(AnySession& session) { return static_cast<SessionOf<Session>&>(session).get(); }
  typename Model::batch_type batch_;
  std::vector<Session*> pointers_;
};

/// Whether products run on AMX tiles.
template <class Arch>
inline constexpr bool on_tiles = false;
template <class Base>
inline constexpr bool on_tiles<hymba::arch::amx<Base>> = true;

/// Whether tiles take the weights without rounding them.
template <hymba::Weights W>
inline constexpr bool tiles_take =
    W == hymba::Weights::bf16 || W == hymba::Weights::int8 || W == hymba::Weights::int4;

/// Whether products run on dot products.
template <class Arch>
inline constexpr bool on_dots = false;
template <class Base>
inline constexpr bool on_dots<hymba::arch::dot<Base>> = true;

/// What a policy's matrix products of many rows run on.
template <class Policy>
constexpr MatrixUnit matrix_unit() {
  if (on_tiles<typename Policy::arch>) {
    return hymba::weight_format<Policy::weights>::quantised ? MatrixUnit::int8_tiles : MatrixUnit::bf16_tiles;
  }
  if (on_dots<typename Policy::arch>) {
    return hymba::weight_format<Policy::weights>::quantised ? MatrixUnit::byte_dot : MatrixUnit::bf16_dot;
  }
  return MatrixUnit::multiply_add;
}

template <hymba::Weights W, hymba::Cache C, class Arch>
class ModelOf final : public AnyModel {
 public:
  using Model = hymba::Model<hymba::DynamicHymba, hymba::Cpu<W, C, Arch, hymba::Team>>;
  ModelOf(const AnyArchitecture& architecture, hymba::TensorTable tensors, const std::string& source)
      : model_(architecture, std::move(tensors), source) {}
  std::unique_ptr<AnySession> session(const SessionSettings& settings) const override {
    return wrap(model_.session(options(settings)));
  }
  std::unique_ptr<AnySession> restore(std::span<const std::byte> blob, const SessionSettings& settings) const override {
    return wrap(model_.restore(blob, options(settings)));
  }
  std::unique_ptr<AnyBatch> batch(std::int64_t max_sessions, std::int64_t max_rows, int threads) const override {
    return std::make_unique<BatchOf<Model>>(
        model_.batch({.max_sessions = max_sessions, .threads = threads, .max_rows = max_rows}));
  }
  WeightCosts weight_costs() const override {
    const bool tied = model_.architecture().tied_embeddings;
    WeightCosts costs{.unit = matrix_unit<typename Model::policy>()};
    for (const hymba::BoundTensor& t : model_.tensors()) {
      if (t.spec.role == hymba::TensorRole::vector) continue;
      const bool embedding = t.name == "model.embed_tokens.weight";
      if (embedding && !tied) continue;  // rows are looked up
      const auto elements = static_cast<double>(t.spec.elements());
      costs.step_elements += elements;
      const std::size_t bytes = static_cast<std::size_t>(t.spec.dims[0]) * row_bytes(t.spec);
      costs.step_bytes += static_cast<double>(bytes);
      costs.step_blocks.emplace_back(t.parameter.data, bytes);
      if (!embedding && t.name != "lm_head.weight") costs.row_elements += elements;
    }
    return costs;
  }

 private:
  using Session = typename Model::session_type;
  static std::size_t row_bytes(const hymba::TensorSpec& t) {
    return t.role == hymba::TensorRole::matrix
               ? hymba::weight_format<W>::row_bytes(t.dims[1])
               : hymba::weight_format<hymba::fine_weights(W)>::row_bytes(t.dims[1]);
  }
  static hymba::SessionOptions options(const SessionSettings& s) {
    return {.max_context = s.max_context, .threads = s.threads, .prefill_chunk = s.prefill_chunk};
  }
  static std::unique_ptr<AnySession> wrap(Session session) {
    return std::make_unique<SessionOf<Session>>(std::move(session));
  }
  Model model_;
};

template <hymba::Weights W, hymba::Cache C>
std::unique_ptr<AnyModel> make_model([[maybe_unused]] Path path, const AnyArchitecture& architecture,
                                     hymba::TensorTable tensors, const std::string& source) {
#if defined(HYMBA_AMX)
  if constexpr (tiles_take<W>) {
    if (path == Path::amx) {
      using Tiles = hymba::arch::amx<hymba::arch::best>;
      return std::make_unique<ModelOf<W, C, Tiles>>(architecture, std::move(tensors), source);
    }
  }
#endif
#if defined(HYMBA_DOT)
  if constexpr (hymba::dot_takes(W)) {
    if (path == Path::dot) {
      using Dots = hymba::arch::dot<hymba::arch::best>;
      return std::make_unique<ModelOf<W, C, Dots>>(architecture, std::move(tensors), source);
    }
  }
#endif
  return std::make_unique<ModelOf<W, C, hymba::arch::best>>(architecture, std::move(tensors), source);
}

}  // namespace cli
