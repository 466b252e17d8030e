// SPDX-License-Identifier: Apache-2.0
//
// A model: weights bound to a variant under a policy. Immutable, shared between threads; a handle, cheap to copy.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/model/batch.hpp>
#include <hymba/model/model_data.hpp>
#include <hymba/model/session.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/costs.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>

HYMBA_NAMESPACE_BEGIN

namespace detail {
/// A static variant is checked by the compiler; one with sizes left to a config.json when it is opened.
template <class V>
consteval bool check_if_static() {
  if constexpr (is_static_variant<V>) return ValidVariant<V>;
  return true;
}
}  // namespace detail

/// A model of variant `V` under policy `P`, e.g. `Model<presets::Hymba1_5B, Cpu<Weights::bf16>>`.
template <class V, Policy P = Cpu<>>
class Model {
  static_assert(detail::check_if_static<V>());

 public:
  using variant = V;
  using policy = P;
  using session_type = Session<V, P>;
  using batch_type = Batch<V, P>;

  /// Opens a folder in the published layout: config.json and model.safetensors, or shards with their index. Defined in
  /// hymba/io/open.hpp.
  /// @throws IoError, FormatError, ConfigError, TensorError: see there.
  static Model open(const std::filesystem::path& folder);

  /// Binds tensors to an architecture. `source` names them in errors.
  /// @throws ConfigError when the architecture breaks a rule; @throws TensorError on a missing, unexpected or misshaped
  /// tensor.
  explicit Model(const Architecture<V>& architecture, TensorTable tensors, const std::string& source = "tensors")
      : data_(std::make_shared<const ModelData<V, P>>(architecture, std::move(tensors), source)) {}

  /// Writes config.json and model.safetensors; loads again with `open`. Defined in hymba/io/open.hpp.
  /// @throws IoError when a file cannot be written; what was there before is then still there.
  void save(const std::filesystem::path& folder) const;

  const Architecture<V>& architecture() const { return data_->architecture(); }
  std::int64_t parameters() const { return hymba::parameters(architecture()); }
  /// Every tensor as the model holds it, in a fixed order.
  std::span<const BoundTensor> tensors() const { return data_->tensors(); }
  /// Tells this model and its storage formats from others; snapshots carry it. Large tensors are sampled: two models
  /// that differ in a few weights of one may share it.
  std::uint64_t fingerprint() const { return data_->fingerprint(); }
  /// Bytes of weights in memory of the model's own; what lies in the mapped file is not counted.
  std::size_t owned_bytes() const { return data_->owned_bytes(); }

  /// A new session behind the meta tokens, whose state is copied in. The first session of a model computes that state.
  /// @throws ArgumentError on an option out of range; @throws std::bad_alloc.
  session_type session(const SessionOptions& options = {}) const { return session_type(data_, options); }

  /// A session that goes on where `snapshot` was taken, bit for bit.
  /// @throws SnapshotError when the blob is of another model, of another version, damaged, or longer than max_context.
  session_type restore(std::span<const std::byte> snapshot, const SessionOptions& options = {}) const {
    session_type session(data_, options);
    session.restore(snapshot);
    return session;
  }

  /// Steps many sessions together.
  /// @throws ArgumentError on an option out of range.
  batch_type batch(const BatchOptions& options = {}) const { return batch_type(data_, options); }

 private:
  std::shared_ptr<const ModelData<V, P>> data_;
};

HYMBA_NAMESPACE_END
