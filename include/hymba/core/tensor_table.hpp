// SPDX-License-Identifier: Apache-2.0
//
// Named tensors as a loader hands them over: views into memory that someone keeps alive. No file format, no model.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/core/types.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Types a checkpoint's tensors may have: scalars, and the quantised rows of core/quantised.hpp, as they are or of
/// numbers that were rotated (kernels/rotation.hpp) before they were rounded.
enum class DType { f32, f16, bf16, int8, int4, rotated_int8, rotated_int4 };

constexpr bool is_rotated(DType t) { return t == DType::rotated_int8 || t == DType::rotated_int4; }
/// The layout of quantised rows, rotated or not; any other type as it is.
constexpr DType layout_of(DType t) {
  return t == DType::rotated_int8 ? DType::int8 : t == DType::rotated_int4 ? DType::int4 : t;
}
/// The type of quantised rows of a layout that are rotated, or not.
constexpr DType rotated_if(bool rotated, DType layout) {
  if (!rotated) return layout;
  return layout == DType::int8 ? DType::rotated_int8 : DType::rotated_int4;
}
constexpr bool is_quantised(DType t) { return layout_of(t) == DType::int8 || layout_of(t) == DType::int4; }
/// Bytes of one scalar. @pre not quantised: rows are no arrays of scalars.
constexpr std::size_t dtype_bytes(DType t) { return t == DType::f32 ? 4 : 2; }
constexpr const char* dtype_name(DType t) {
  switch (t) {
    case DType::f32: return "F32";
    case DType::f16: return "F16";
    case DType::bf16: return "BF16";
    case DType::int8: return "int8";
    case DType::int4: return "int4";
    case DType::rotated_int8: return "rotated int8";
    default: return "rotated int4";
  }
}
/// Bytes of a row of `cols` numbers.
constexpr std::size_t dtype_row_bytes(DType t, std::int64_t cols) {
  if (layout_of(t) == DType::int8) return Int8Rows::row_bytes(cols);
  if (layout_of(t) == DType::int4) return Int4Rows::row_bytes(cols);
  return static_cast<std::size_t>(cols) * dtype_bytes(t);
}

/// One tensor: row-major. `shape` counts numbers, whatever their type; `bytes` holds as many rows of its last size as
/// the other sizes multiply to (quantised tensors have two sizes). The data need not be aligned to its scalar type.
struct TensorRef {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Tensors by name, and whoever owns their memory.
struct TensorTable {
  std::map<std::string, TensorRef, std::less<>> tensors;
  std::shared_ptr<const void> owner;

  /// nullptr when there is none of that name.
  const TensorRef* find(std::string_view name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second;
  }
};

HYMBA_NAMESPACE_END
