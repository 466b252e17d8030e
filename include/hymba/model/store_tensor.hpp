// SPDX-License-Identifier: Apache-2.0
//
// How one tensor of a checkpoint becomes a model's: which format it is kept in, and the conversion.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/kernels/rotation.hpp>
#include <hymba/variant/tensor_spec.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// The format of a tensor beside weights in `w`: vectors are always in single precision.
constexpr Weights stored_format(TensorRole role, Weights w) {
  return role == TensorRole::vector ? Weights::f32 : role == TensorRole::fine ? fine_weights(w) : w;
}

/// The checkpoint type in which a tensor's bytes are those of a weight format, unless more is known of its numbers.
/// Rotating makes products more exact where activations are rounded too (docs/numerics.md), in int4 of most matrices
/// (`type_to_store`); fine matrices are few and their rows are read as embeddings. @pre `w` is no f64.
constexpr DType stored_as(TensorRole role, Weights w) {
  switch (w) {
    case Weights::f16: return DType::f16;
    case Weights::bf16: return DType::bf16;
    case Weights::int8: return rotated_if(role == TensorRole::matrix, DType::int8);
    case Weights::int4: return rotated_if(role == TensorRole::matrix, DType::int4);
    default: return DType::f32;
  }
}
/// Whether kernels take a tensor of a checkpoint's type for one in a weight format, bytes and all.
constexpr bool serves_as(DType type, TensorRole role, Weights w) {
  return layout_of(type) == layout_of(stored_as(role, w)) && (role == TensorRole::matrix || !is_rotated(type));
}

/// Calls `f(std::integral_constant<Weights, w>{})`. @pre `w` is no f64.
template <class F>
decltype(auto) with_format(Weights w, F&& f) {
  switch (w) {
    case Weights::f16: return f(std::integral_constant<Weights, Weights::f16>{});
    case Weights::bf16: return f(std::integral_constant<Weights, Weights::bf16>{});
    case Weights::int8: return f(std::integral_constant<Weights, Weights::int8>{});
    case Weights::int4: return f(std::integral_constant<Weights, Weights::int4>{});
    default: return f(std::integral_constant<Weights, Weights::f32>{});
  }
}

/// Rows and columns of a tensor as kernels see it: a vector is one row.
struct StoredShape {
  std::int64_t rows, cols;
  constexpr explicit StoredShape(const TensorSpec& t)
      : rows(t.rank == 1 ? 1 : t.dims[0]), cols(t.elements() / rows) {}
};

/// Bytes of one tensor kept in `format`.
inline std::size_t stored_bytes(const TensorSpec& t, Weights format) {
  const StoredShape shape(t);
  return with_format(format, [&](auto w) {
    return static_cast<std::size_t>(shape.rows) * weight_format<w()>::row_bytes(shape.cols);
  });
}

/// Converts numbers [first, first + count) of a tensor of any checkpoint type to float; of a quantised one a whole row.
/// `from` need not be aligned.
inline void to_float(const TensorRef& from, std::int64_t first, std::int64_t count, float* to) {
  if (is_quantised(from.dtype)) {
    const std::byte* row =
        from.bytes.data() + static_cast<std::size_t>(first / count) * dtype_row_bytes(from.dtype, count);
    layout_of(from.dtype) == DType::int8 ? weight_format<Weights::int8>::decode_row(row, count, to)
                                         : weight_format<Weights::int4>::decode_row(row, count, to);
    if (is_rotated(from.dtype)) rotate(to, count);  // its own inverse
    return;
  }
  const std::byte* p = from.bytes.data() + static_cast<std::size_t>(first) * dtype_bytes(from.dtype);
  if (from.dtype == DType::f32) {
    std::memcpy(to, p, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, p + 2 * i, sizeof(bits));
    to[i] = from.dtype == DType::bf16 ? static_cast<float>(bf16::from_bits(bits)) : static_cast<float>(f16::from_bits(bits));
  }
}

/// Multiplies the numbers of a row by `by` [cols], unless that is null.
inline void multiply_columns(float* row, std::int64_t cols, const float* by) {
  for (std::int64_t i = 0; by != nullptr && i < cols; ++i) row[i] *= by[i];
}

/// Calls f(r) for the rows that stand for all of a matrix where looking at each would take long: evenly spread.
template <class F>
void for_sample_rows(std::int64_t rows, F&& f) {
  const std::int64_t count = std::min<std::int64_t>(rows, 32);
  for (std::int64_t i = 0; i < count; ++i) f(rows * (2 * i + 1) / (2 * count));
}

/// The type that a tensor in `format` is best stored as when nothing is known of what it is multiplied with: `stored_as`,
/// but int4 matrices are rotated unless that makes their error much larger.
///
/// Rotated weights are as good as normally distributed, and in sixteen levels all such are off by the same part of
/// themselves. Weights as training leaves them lose nothing by that, and what they are multiplied with is rounded better.
/// Those that were rounded to a few levels before lie near sixteen of them again, and would lose what that is worth.
inline DType type_to_store(const TensorSpec& t, const TensorRef& from, Weights format) {
  const DType usual = stored_as(t.role, format);
  if (format != Weights::int4 || t.role != TensorRole::matrix) return usual;
  constexpr double much = 1.5;
  using Format = weight_format<Weights::int4>;
  const StoredShape shape(t);
  const auto cols = static_cast<std::size_t>(shape.cols);
  std::vector<float> row(cols), rounded(cols);
  std::vector<std::byte> stored(Format::row_bytes(shape.cols));
  const auto squared_error = [&] {
    Format::encode_row(row.data(), shape.cols, stored.data());
    Format::decode_row(stored.data(), shape.cols, rounded.data());
    double sum = 0;
    for (std::size_t i = 0; i < cols; ++i) {
      const double e = static_cast<double>(row[i]) - static_cast<double>(rounded[i]);
      sum += e * e;
    }
    return sum;
  };
  double plain = 0, turned = 0;
  for_sample_rows(shape.rows, [&](std::int64_t r) {
    to_float(from, r * shape.cols, shape.cols, row.data());
    plain += squared_error();
    rotate(row.data(), shape.cols);
    turned += squared_error();
  });
  // Not finite: either is as good.
  return rotated_if(turned <= much * plain, layout_of(usual));
}

/// Writes a tensor in `format` to `to`, stored_bytes of it, rotated or not. Its columns are multiplied by `by` first,
/// unless that is null.
template <class Exec>
void store_tensor(Exec& exec, const TensorSpec& t, const TensorRef& from, Weights format, bool rotated, std::byte* to,
                  const float* by = nullptr) {
  const StoredShape shape(t);
  with_format(format, [&](auto w) {
    using Format = weight_format<w()>;
    const std::int64_t parts = std::min<std::int64_t>(shape.rows, 4 * exec.threads());
    std::vector<float> rows(static_cast<std::size_t>(exec.threads() * shape.cols));
    exec.parallel_for(parts, [&](std::int64_t part, int thread) noexcept {
      float* const row = rows.data() + thread * shape.cols;
      for (std::int64_t r = shape.rows * part / parts; r < shape.rows * (part + 1) / parts; ++r) {
        to_float(from, r * shape.cols, shape.cols, row);
        multiply_columns(row, shape.cols, by);
        if (rotated) rotate(row, shape.cols);
        Format::encode_row(row, shape.cols, to + static_cast<std::size_t>(r) * Format::row_bytes(shape.cols));
      }
    });
  });
}

/// @throws TensorError for a tensor whose type cannot hold what it is for.
inline void check_type(const std::string& name, const TensorSpec& t, const TensorRef& from, const std::string& source) {
  if (t.role == TensorRole::vector && is_quantised(from.dtype)) {
    throw TensorError(message(source, ": tensor ", quote(name), " is ", dtype_name(from.dtype),
                              ", expected F32, F16 or BF16: only matrices are quantised"));
  }
}

}  // namespace detail

HYMBA_NAMESPACE_END
