// SPDX-License-Identifier: Apache-2.0
//
// Writes a checkpoint with its weights in another format: quantised rows that open by memory map, ready for use.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/model/declared_tensors.hpp>
#include <hymba/model/store_tensor.hpp>
#include <hymba/variant/presets.hpp>

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// How much an error in each column of a matrix counts: the mean square of what the column is multiplied with, by full
/// tensor name. A matrix that is not listed counts all its columns alike.
using ColumnImportance = std::map<std::string, std::vector<float>, std::less<>>;

/// The tensors of a checkpoint as a model with weights in `format` holds them: matrices in the format, the fine ones in
/// fine_weights of it, everything else in F32.
/// @param source names the table in errors.
/// @throws ConfigError, TensorError as a model would; ArgumentError when the format is f64, or `importance` does not
/// fit.
template <class V>
TensorTable stored_tensors(const Architecture<V>& a, const TensorTable& table, const std::string& source,
                           Weights format, const ColumnImportance& importance = {}) {
  if (format == Weights::f64) throw ArgumentError("weights are not stored as f64");
  const DeclaredTensors declared = declared_tensors(a, table, source);
  std::size_t bytes = 0;
  for (const DeclaredTensor& t : declared.all) {
    detail::check_type(t.name, t.spec, *table.find(t.name), source);
    bytes += aligned_size(detail::stored_bytes(t.spec, detail::stored_format(t.spec.role, format)));
  }
  auto memory = std::make_shared<AlignedBuffer>(bytes, Uninitialised{});
  std::byte* next = memory->data();
  DefaultExecutor exec(0);
  TensorTable out;
  for (const DeclaredTensor& t : declared.all) {
    const Weights kept = detail::stored_format(t.spec.role, format);
    const float* columns = nullptr;
    if (const auto found = importance.find(t.name); found != importance.end()) {
      if (static_cast<std::int64_t>(found->second.size()) != detail::StoredShape(t.spec).cols) {
        throw ArgumentError(detail::message("importance of ", found->second.size(), " columns for tensor ", t.name,
                                            ", which has ", detail::StoredShape(t.spec).cols));
      }
      columns = found->second.data();
    }
    detail::store_tensor(exec, t.spec, *table.find(t.name), kept, columns, next);
    const std::size_t size = detail::stored_bytes(t.spec, kept);
    out.tensors[t.name] = {*detail::stored_as(kept), t.shape(), {next, size}};
    next += aligned_size(size);
  }
  out.owner = std::move(memory);
  return out;
}

/// Reads the checkpoint in `from` and writes it to `to` with its weights in `format`. Files beside the weights (the
/// tokeniser's) are the caller's to copy. Quantised rows become plain numbers again, but not other quantised rows: they
/// would be rounded twice.
/// @throws TensorError for a tensor that would be; what open_checkpoint, stored_tensors and save_checkpoint throw.
inline void quantise_checkpoint(const std::filesystem::path& from, const std::filesystem::path& to, Weights format,
                                const ColumnImportance& importance = {}) {
  const Checkpoint checkpoint = open_checkpoint(from);
  const auto architecture = architecture_from<DynamicHymba>(checkpoint.description);
  for (const auto& [name, t] : checkpoint.tensors.tensors) {
    if (is_quantised(t.dtype) && is_quantised(*detail::stored_as(format))) {
      throw TensorError(detail::message(from.string(), ": tensor ", detail::quote(name), " is ", dtype_name(t.dtype),
                                        " already, expected the checkpoint it was quantised from"));
    }
  }
  const TensorTable table = stored_tensors(architecture, checkpoint.tensors, from.string(), format, importance);
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, t] : table.tensors) tensors.push_back({name, t.dtype, t.shape, t.bytes});
  save_checkpoint(to, checkpoint.description, tensors);
}

HYMBA_NAMESPACE_END
