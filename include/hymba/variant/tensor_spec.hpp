// SPDX-License-Identifier: Apache-2.0
//
// How a part of a model names the tensors it needs: the single source of parameter counts, of what a loader expects in
// a checkpoint and of what saving writes.
#pragma once

#include <hymba/core/macros.hpp>

#include <array>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

/// How a tensor is stored in a model.
enum class TensorRole {
  matrix,  ///< in the policy's weight format; the two-dimensional operands of matrix products
  fine,    ///< a matrix in the format that fine_weights (exec/formats.hpp) names: few bytes, on which much depends
  vector,  ///< always in single precision: norms, biases, convolution taps, A_log, D
};

/// Name (relative to the layer, or to the model) and shape of one tensor. Row-major; unused trailing sizes are 1.
struct TensorSpec {
  const char* name = "";
  TensorRole role = TensorRole::vector;
  int rank = 1;
  std::array<std::int64_t, 3> dims{1, 1, 1};

  constexpr std::int64_t elements() const { return dims[0] * dims[1] * dims[2]; }
};

constexpr TensorSpec vector_tensor(const char* name, std::int64_t n) { return {name, TensorRole::vector, 1, {n, 1, 1}}; }
constexpr TensorSpec vector_tensor(const char* name, std::int64_t a, std::int64_t b) {
  return {name, TensorRole::vector, 2, {a, b, 1}};
}
constexpr TensorSpec vector_tensor(const char* name, std::int64_t a, std::int64_t b, std::int64_t c) {
  return {name, TensorRole::vector, 3, {a, b, c}};
}
/// A matrix [out, in]: y = x w^T.
constexpr TensorSpec matrix_tensor(const char* name, std::int64_t out, std::int64_t in) {
  return {name, TensorRole::matrix, 2, {out, in, 1}};
}
/// A matrix [out, in] that is stored more finely than others where others are stored coarsely.
constexpr TensorSpec fine_matrix_tensor(const char* name, std::int64_t out, std::int64_t in) {
  return {name, TensorRole::fine, 2, {out, in, 1}};
}

/// Stands where a variant has no part of some kind.
struct None {};

HYMBA_NAMESPACE_END
