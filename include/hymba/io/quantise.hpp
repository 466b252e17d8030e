// SPDX-License-Identifier: Apache-2.0
//
// Writes a checkpoint with its weights in another format: quantised rows that open by memory map, ready for use.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/balance.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/io/cost_of_rounding.hpp>
#include <hymba/io/error_feedback.hpp>
#include <hymba/model/declared_tensors.hpp>
#include <hymba/model/store_tensor.hpp>
#include <hymba/variant/presets.hpp>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Moments of what matrices are multiplied with: calls `use(name, moments)` for each matrix that it knows by full
/// tensor name, with sums of x x^T over inputs x in the lower half of `moments` [columns, columns]; they last for that
/// call.
using InputMoments = std::function<void(const std::function<void(const std::string&, MatrixView<const float>)>& use)>;

namespace detail {

/// Divides the elements of a stored vector, or the rows of a matrix stored in int8, by powers of two.
inline void divide_rows(const TensorSpec& spec, std::byte* stored, const float* by) {
  const std::int64_t rows = spec.dims[0], cols = spec.elements() / rows;
  if (spec.role == TensorRole::vector) {
    auto* const numbers = reinterpret_cast<float*>(stored);
    for (std::int64_t i = 0; i < spec.elements(); ++i) numbers[i] /= by[i / cols];
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    Int8Rows::divide_row(stored + static_cast<std::size_t>(r) * Int8Rows::row_bytes(cols), cols, by[r]);
  }
}

}  // namespace detail

/// The tensors of a checkpoint as a model with weights in `format` holds them: matrices in the format, the fine ones in
/// fine_weights of it, everything else in F32. Quantised matrices whose moments are given are rounded for the least
/// error of their products (io/error_feedback.hpp), others for the least error of their numbers. With int8 and moments
/// large columns of activations are made smaller (io/balance.hpp), which changes other tensors too; int4 lost more by
/// that than it gained where it was tried (docs/numerics.md). Matrices in int4 are rotated unless that makes the products'
/// error clearly larger (io/cost_of_rounding.hpp), without moments unless it makes the weights' much larger.
/// @param source names the table in errors.
/// @throws ConfigError, TensorError as a model would; ArgumentError when the format is f64, or moments do not fit;
/// whatever `moments` throws.
template <class V>
TensorTable stored_tensors(const Architecture<V>& a, const TensorTable& table, const std::string& source,
                           Weights format, const InputMoments& moments = {}) {
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
  struct Place {
    const DeclaredTensor* tensor;
    std::byte* to;
    bool done = false;
  };
  std::map<std::string, Place, std::less<>> places;
  for (const DeclaredTensor& t : declared.all) {
    const Weights kept = detail::stored_format(t.spec.role, format);
    const std::size_t size = detail::stored_bytes(t.spec, kept);
    out.tensors[t.name] = {detail::type_to_store(t.spec, *table.find(t.name), kept), t.shape(), {next, size}};
    places.emplace(t.name, Place{&t, next});
    next += aligned_size(size);
  }
  detail::Balance balance(a, declared);
  std::map<std::size_t, bool> group_rotated;  // by Balance's groups
  const auto with_feedback = [&](const std::string& name, MatrixView<const float> of) {
    const auto found = places.find(name);
    if (found == places.end()) return;
    const TensorSpec& spec = found->second.tensor->spec;
    const detail::StoredShape shape(spec);
    if (of.rows != shape.cols || of.cols != shape.cols) {
      throw ArgumentError(detail::message("moments of ", of.rows, " x ", of.cols, " for tensor ", name, ", which has ",
                                          shape.cols, " columns"));
    }
    detail::with_format(detail::stored_format(spec.role, format), [&](auto w) {
      if constexpr (weight_format<w()>::quantised) {
        if (format == Weights::int8) balance.choose(name, of);
        const float* const by = balance.multiplied(name);
        const TensorRef& from = *table.find(name);
        DType& type = out.tensors[name].dtype;
        std::optional<detail::FeedbackFactor> factors[2];
        const auto factor = [&](bool rotated) -> const std::optional<detail::FeedbackFactor>& {
          if (!factors[rotated]) factors[rotated] = detail::FeedbackFactor::of(of, rotated, by);
          return factors[rotated];
        };
        bool rotated = is_rotated(type);
        if constexpr (w() == Weights::int4) {
          const auto cost = [&](bool r) { return detail::cost_of_rounding<w()>(exec, shape, from, *factor(r), r); };
          // Matrices that read the same are rotated alike, as the first of them: their products then share what they read.
          const auto group = balance.group(name);
          const auto decided = group ? group_rotated.find(*group) : group_rotated.end();
          if (decided != group_rotated.end()) {
            rotated = decided->second;
          } else if (factor(false) && factor(true)) {
            rotated = detail::better_rotated(cost(true), cost(false));
            if (group) group_rotated.emplace(*group, rotated);
          }
        }
        if (!factor(rotated)) return;
        detail::store_with_feedback<w()>(exec, shape, from, *factor(rotated), found->second.to, rotated, by);
        type = rotated_if(rotated, layout_of(type));
        found->second.done = true;
      }
    });
  };
  if (moments) moments(with_feedback);
  for (const auto& [name, place] : places) {
    const TensorSpec& spec = place.tensor->spec;
    const Weights kept = detail::stored_format(spec.role, format);
    if (!place.done) {
      detail::store_tensor(exec, spec, *table.find(name), kept, is_rotated(out.tensors[name].dtype), place.to,
                           balance.multiplied(name));
    }
    if (const float* const by = balance.divided(name)) detail::divide_rows(spec, place.to, by);
  }
  out.owner = std::move(memory);
  return out;
}

/// Reads the checkpoint in `from` and writes it to `to` with its weights in `format`. Files beside the weights (the
/// tokeniser's) are the caller's to copy. Quantised rows become plain numbers again, but not other quantised rows: they
/// would be rounded twice.
/// @throws TensorError for a tensor that would be; what open_checkpoint, stored_tensors and save_checkpoint throw.
inline void quantise_checkpoint(const std::filesystem::path& from, const std::filesystem::path& to, Weights format,
                                const InputMoments& moments = {}) {
  const Checkpoint checkpoint = open_checkpoint(from);
  const auto architecture = architecture_from<DynamicHymba>(checkpoint.description);
  for (const auto& [name, t] : checkpoint.tensors.tensors) {
    if (is_quantised(t.dtype) && is_quantised(detail::stored_as(TensorRole::matrix, format))) {
      throw TensorError(detail::message(from.string(), ": tensor ", detail::quote(name), " is ", dtype_name(t.dtype),
                                        " already, expected the checkpoint it was quantised from"));
    }
  }
  const TensorTable table = stored_tensors(architecture, checkpoint.tensors, from.string(), format, moments);
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, t] : table.tensors) tensors.push_back({name, t.dtype, t.shape, t.bytes});
  save_checkpoint(to, checkpoint.description, tensors);
}

HYMBA_NAMESPACE_END
