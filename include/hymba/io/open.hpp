// SPDX-License-Identifier: Apache-2.0
//
// Model::open and Model::save: where the published file layout meets a model.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/model/model.hpp>

#include <cstddef>
#include <filesystem>
#include <span>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Opens a folder in the published layout. Tensors already in the policy's weight format are used where they lie in the
/// mapped file.
/// @throws IoError when a file is missing or cannot be read; FormatError when one is malformed; ConfigError when
/// config.json names something that is not provided, breaks a rule, or differs from a static variant; TensorError on a
/// missing, unexpected or misshaped tensor.
template <class V, Policy P>
Model<V, P> Model<V, P>::open(const std::filesystem::path& folder) {
  Checkpoint checkpoint = open_checkpoint(folder);
  return Model(architecture_from<V>(checkpoint.description), std::move(checkpoint.tensors), folder.string());
}

/// Writes config.json and model.safetensors: matrices as the model holds them, everything else in F32.
/// @throws IoError when a file cannot be written.
template <class V, Policy P>
void Model<V, P>::save(const std::filesystem::path& folder) const {
  std::vector<TensorToWrite> tensors;
  for (const BoundTensor& t : data_->tensors()) {
    const Weights format = detail::stored_format(t.spec.role, P::weights);
    tensors.push_back({t.name,
                       rotated_if(t.parameter.rotated, layout_of(detail::stored_as(t.spec.role, format))),
                       {t.spec.dims.begin(), t.spec.dims.begin() + t.spec.rank},
                       {t.parameter.data, detail::stored_bytes(t.spec, format)}});
  }
  save_checkpoint(folder, architecture().describe(), tensors);
}

HYMBA_NAMESPACE_END
