// SPDX-License-Identifier: Apache-2.0
//
// Index and scalar types: token ids, and the 16-bit floating-point formats that weights and caches are stored in.
#pragma once

#include <hymba/core/macros.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

/// A token id, as the tokeniser numbers them. Signed so that -1 can be diagnosed rather than wrapped.
using Token = std::int32_t;

/// bfloat16: the upper half of an IEEE-754 single. A storage type: arithmetic happens in float.
struct bf16 {
  std::uint16_t bits = 0;

  constexpr bf16() = default;
  /// Rounds to nearest, ties to even. NaN stays NaN (made quiet), infinities stay.
  constexpr explicit bf16(float value) {
    const auto u = std::bit_cast<std::uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<std::uint16_t>((u >> 16) | 0x0040u);
    } else {
      bits = static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }
  constexpr explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
  static constexpr bf16 from_bits(std::uint16_t b) {
    bf16 r;
    r.bits = b;
    return r;
  }
  friend constexpr bool operator==(bf16 a, bf16 b) { return a.bits == b.bits; }
};

/// IEEE-754 binary16. A storage type: arithmetic happens in float.
struct f16 {
  std::uint16_t bits = 0;

  constexpr f16() = default;
  /// Rounds to nearest, ties to even; values beyond 65504 become infinities; subnormals are kept.
  constexpr explicit f16(float value) {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
    const std::uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {  // NaN
      bits = static_cast<std::uint16_t>(sign | 0x7e00u);
    } else if (magnitude >= 0x477ff000u) {  // rounds to 65520 or more: infinity
      bits = static_cast<std::uint16_t>(sign | 0x7c00u);
    } else if (magnitude >= 0x38800000u) {  // normal in binary16
      const std::uint32_t rebased = magnitude - 0x38000000u;
      bits = static_cast<std::uint16_t>(sign | ((rebased + 0x0fffu + ((rebased >> 13) & 1u)) >> 13));
    } else if (magnitude < 0x33000000u) {  // at most half of the smallest subnormal: zero (the tie goes to even)
      bits = sign;
    } else {  // subnormal: shift the mantissa with its hidden bit into place, rounding to nearest even
      const std::uint32_t shift = 126u - (magnitude >> 23);
      const std::uint32_t mantissa = (magnitude & 0x007fffffu) | 0x00800000u;
      const std::uint32_t kept = mantissa >> shift;
      const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
      const std::uint32_t half = 1u << (shift - 1u);
      bits = static_cast<std::uint16_t>(sign | (kept + ((rest > half || (rest == half && (kept & 1u))) ? 1u : 0u)));
    }
  }
  constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fu;
    const std::uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 31u) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0u) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
  }
  static constexpr f16 from_bits(std::uint16_t b) {
    f16 r;
    r.bits = b;
    return r;
  }
  friend constexpr bool operator==(f16 a, f16 b) { return a.bits == b.bits; }
};

static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2);

namespace detail {
/// A stored number as `Real`: exact for every storage type that is no wider.
template <class Real, class T>
constexpr Real number(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    return static_cast<Real>(value);
  } else {
    return static_cast<Real>(static_cast<float>(value));
  }
}
}  // namespace detail

constexpr std::size_t operator""_KiB(unsigned long long n) { return static_cast<std::size_t>(n) << 10; }
constexpr std::size_t operator""_MiB(unsigned long long n) { return static_cast<std::size_t>(n) << 20; }
constexpr std::size_t operator""_GiB(unsigned long long n) { return static_cast<std::size_t>(n) << 30; }

HYMBA_NAMESPACE_END
