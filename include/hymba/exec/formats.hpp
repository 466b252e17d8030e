// SPDX-License-Identifier: Apache-2.0
//
// Storage formats of weights and caches. Arithmetic is single precision; a format says how numbers lie in memory.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/core/types.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// How weight matrices are stored. int8 and int4 are quantised rows (core/quantised.hpp). f64 turns all of a model's
/// arithmetic to double (through arch::scalar): the checks of gradients use it, nothing else should.
enum class Weights { f32, bf16, f64, f16, int8, int4 };
/// How keys and values are stored. int8: signed bytes, with a scale for each row of a head (core/cached_row.hpp).
enum class Cache { f32, f16, bf16, f64, int8 };

/// Describes one weight format: the bytes of a row, one number of a row, and the conversion of a row from and to float.
/// Formats whose rows are plain arrays name their `element`; quantised ones derive from their rows' layout. Everything
/// that stores weights asks here.
template <Weights W>
struct weight_format;

namespace detail {
/// A format whose rows are plain arrays of one scalar type.
template <class T>
struct PlainFormat {
  using element = T;
  static constexpr bool quantised = false;
  static constexpr std::size_t row_bytes(std::int64_t cols) { return static_cast<std::size_t>(cols) * sizeof(T); }
  template <class Real>
  static Real number(const void* row, std::int64_t, std::int64_t col) {
    return detail::number<Real>(static_cast<const T*>(row)[col]);
  }
  static void encode_row(const float* from, std::int64_t cols, void* to, const float* = nullptr) {
    auto* out = static_cast<T*>(to);
    for (std::int64_t i = 0; i < cols; ++i) out[i] = T(from[i]);
  }
  static void decode_row(const void* from, std::int64_t cols, float* to) {
    const auto* in = static_cast<const T*>(from);
    for (std::int64_t i = 0; i < cols; ++i) to[i] = static_cast<float>(in[i]);
  }
};

/// A format of quantised rows.
template <class Rows>
struct QuantisedFormat : Rows {
  static constexpr bool quantised = true;
  template <class Real>
  static Real number(const void* row, std::int64_t cols, std::int64_t col) {
    const auto* bytes = static_cast<const std::byte*>(row);
    return static_cast<Real>(Rows::scale(bytes, cols, col / quantised_block)) *
           static_cast<Real>(Rows::integer(bytes, cols, col));
  }
  static void decode_row(const void* from, std::int64_t cols, float* to) {
    for (std::int64_t i = 0; i < cols; ++i) to[i] = number<float>(from, cols, i);
  }
};
}  // namespace detail

template <>
struct weight_format<Weights::f32> : detail::PlainFormat<float> {
  static constexpr const char* name = "f32";
};
template <>
struct weight_format<Weights::bf16> : detail::PlainFormat<bf16> {
  static constexpr const char* name = "bf16";
};
template <>
struct weight_format<Weights::f16> : detail::PlainFormat<f16> {
  static constexpr const char* name = "f16";
};
template <>
struct weight_format<Weights::int8> : detail::QuantisedFormat<Int8Rows> {
  static constexpr const char* name = "int8";
};
template <>
struct weight_format<Weights::int4> : detail::QuantisedFormat<Int4Rows> {
  static constexpr const char* name = "int4";
};
template <>
struct weight_format<Weights::f64> : detail::PlainFormat<double> {
  static constexpr const char* name = "f64";
};

/// The format of the matrices that few bytes and much accuracy hang on (embedding, output, the projections that make a
/// time step), beside others in `W`: `W` itself, but int8 beside int4.
inline constexpr Weights fine_weights(Weights w) { return w == Weights::int4 ? Weights::int8 : w; }

/// Describes one cache format: `element` and its name.
template <Cache C>
struct cache_format;
template <>
struct cache_format<Cache::f32> {
  using element = float;
  static constexpr const char* name = "f32";
};
template <>
struct cache_format<Cache::f16> {
  using element = f16;
  static constexpr const char* name = "f16";
};
template <>
struct cache_format<Cache::bf16> {
  using element = bf16;
  static constexpr const char* name = "bf16";
};
template <>
struct cache_format<Cache::f64> {
  using element = double;
  static constexpr const char* name = "f64";
};
template <>
struct cache_format<Cache::int8> {
  using element = std::int8_t;
  static constexpr const char* name = "int8";
};

/// The type of activations beside weights of format `W`.
template <Weights W>
using activation_t = std::conditional_t<W == Weights::f64, double, float>;
/// The type of activations beside keys and values stored as `E`.
template <class E>
using activation_beside_t = std::conditional_t<std::is_same_v<E, double>, double, float>;

/// A read-only weight matrix [rows, cols] in format `W`; row r starts `r * row_bytes(cols)` after the first. Of a
/// `rotated` one (only quantised ones are) each row holds what reference::rotate (kernels/rotation.hpp) makes of the
/// row of weights; products are with the weights.
template <Weights W>
struct WeightMatrix {
  using format = weight_format<W>;
  const std::byte* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  bool rotated = false;

  const std::byte* row(std::int64_t r) const { return data + static_cast<std::size_t>(r) * format::row_bytes(cols); }
  WeightMatrix row_range(std::int64_t first, std::int64_t count) const { return {row(first), count, cols, rotated}; }
};

HYMBA_NAMESPACE_END
