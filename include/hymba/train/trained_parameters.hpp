// SPDX-License-Identifier: Apache-2.0
//
// The weights of a model in training, and their gradients: master copies in single precision (in double for checks), in
// the layout and under the names of the published files.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/heads/context.hpp>
#include <hymba/model/declared_tensors.hpp>
#include <hymba/model/model_data.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/tensors.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// One tensor, and where its numbers start in the blocks of weights and gradients.
struct TrainedTensor : DeclaredTensor {
  std::int64_t offset = 0;

  std::int64_t count() const { return spec.elements(); }
  std::int64_t rows() const { return spec.rank == 1 ? 1 : spec.dims[0]; }
  std::int64_t cols() const { return count() / rows(); }
};

/// Weights and gradients of all tensors, each one block in the same order. Padding between tensors is zero in both.
template <class V, class Real = float>
class TrainedParameters {
 public:
  /// @param table initial weights, in any scalar type: of a checkpoint, or random_tensors. `source` names it in errors.
  /// @throws ConfigError when the architecture breaks a rule; TensorError on a missing, unexpected or misshaped tensor.
  TrainedParameters(const Architecture<V>& a, const TensorTable& table, const std::string& source) : arch_(a) {
    const DeclaredTensors declared = declared_tensors(a, table, source);
    for (const DeclaredTensor& t : declared.all) {
      tensors_.push_back({t, size_});
      size_ += static_cast<std::int64_t>(aligned_size(static_cast<std::size_t>(t.spec.elements()) * sizeof(Real)) /
                                         sizeof(Real));
    }
    final_norm_ = declared.final_norm;
    output_ = declared.output;
    first_layer_tensor_ = declared.first_of_layers;
    weights_ = AlignedBuffer(static_cast<std::size_t>(size_) * sizeof(Real));
    gradients_ = AlignedBuffer(static_cast<std::size_t>(size_) * sizeof(Real));
    std::vector<float> row;
    for (const TrainedTensor& t : tensors_) {
      row.resize(static_cast<std::size_t>(t.count()));
      detail::to_float(*table.find(t.name), 0, t.count(), row.data());
      std::copy(row.begin(), row.end(), weight(t));
    }
    bind();
  }
  TrainedParameters(const TrainedParameters&) = delete;
  TrainedParameters& operator=(const TrainedParameters&) = delete;

  const Architecture<V>& architecture() const { return arch_; }
  std::span<const TrainedTensor> tensors() const { return tensors_; }
  Real* weight(const TrainedTensor& t) { return weights().data() + t.offset; }
  Real* gradient(const TrainedTensor& t) { return gradients().data() + t.offset; }
  const Real* weight(const TrainedTensor& t) const { return reinterpret_cast<const Real*>(weights_.data()) + t.offset; }
  std::span<Real> weights() { return {reinterpret_cast<Real*>(weights_.data()), static_cast<std::size_t>(size_)}; }
  std::span<Real> gradients() { return {reinterpret_cast<Real*>(gradients_.data()), static_cast<std::size_t>(size_)}; }
  void clear_gradients() { std::fill(gradients().begin(), gradients().end(), Real(0)); }

  /// The tensors of one part of one layer, in the order in which the part declares them.
  const Parameter* of(int layer, Part part) const { return bound(layer, part).parameters.data(); }
  Real* const* gradients_of(int layer, Part part) const { return bound(layer, part).gradients.data(); }

  const TrainedTensor& embedding() const { return tensors_[0]; }
  const TrainedTensor& output() const { return tensors_[output_]; }
  const TrainedTensor& meta_tokens() const { return tensors_[1]; }  ///< @pre the variant has meta tokens
  const TrainedTensor& final_norm() const { return tensors_[final_norm_]; }

  /// A copy of the weights, as models and files take it. @throws std::bad_alloc.
  TensorTable table() const requires std::same_as<Real, float> {
    auto copy = std::make_shared<AlignedBuffer>(weights_.size(), Uninitialised{});
    std::copy_n(weights_.data(), weights_.size(), copy->data());
    TensorTable out;
    for (const TrainedTensor& t : tensors_) {
      out.tensors[t.name] = {DType::f32,
                             t.shape(),
                             {copy->data() + t.offset * static_cast<std::int64_t>(sizeof(Real)),
                              static_cast<std::size_t>(t.count()) * sizeof(Real)}};
    }
    out.owner = std::move(copy);
    return out;
  }

 private:
  struct Bound {
    std::vector<Parameter> parameters;
    std::vector<Real*> gradients;
  };
  const Bound& bound(int layer, Part part) const {
    return bound_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(part)];
  }

  void bind() {
    bound_.resize(static_cast<std::size_t>(arch_.layers));
    std::size_t next = first_layer_tensor_;
    for (int i = 0; i < arch_.layers; ++i) {
      for_each_layer_tensor(arch_, i, [&](Part part, const TensorSpec&) {
        const TrainedTensor& t = tensors_[next++];
        Bound& b = bound_[static_cast<std::size_t>(i)][static_cast<std::size_t>(part)];
        b.parameters.push_back({reinterpret_cast<const std::byte*>(weight(t)), t.rows(), t.cols()});
        b.gradients.push_back(gradient(t));
      });
    }
  }

  Architecture<V> arch_;
  std::vector<TrainedTensor> tensors_;
  std::size_t final_norm_ = 0, output_ = 0, first_layer_tensor_ = 0;
  std::int64_t size_ = 0;
  AlignedBuffer weights_, gradients_;
  std::vector<std::array<Bound, part_count>> bound_;
};

HYMBA_NAMESPACE_END
