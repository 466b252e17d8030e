// SPDX-License-Identifier: Apache-2.0
//
// Named tensors as a loader hands them over: views into memory that someone keeps alive. No file format, no model.
#pragma once

#include <hymba/core/macros.hpp>
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

/// Scalar types a checkpoint's tensors may have.
enum class DType { f32, f16, bf16 };

constexpr std::size_t dtype_bytes(DType t) { return t == DType::f32 ? 4 : 2; }
constexpr const char* dtype_name(DType t) { return t == DType::f32 ? "F32" : t == DType::f16 ? "F16" : "BF16"; }

/// One tensor: row-major, `bytes.size()` equals the product of `shape` times dtype_bytes(dtype). The data need not be
/// aligned to its scalar type.
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
