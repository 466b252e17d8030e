// SPDX-License-Identifier: Apache-2.0
//
// Neighbours in a row as a register of 32 bf16, for the instructions of AVX-512 that multiply these.
#pragma once

#include <hymba/core/macros.hpp>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <hymba/core/types.hpp>
#include <hymba/exec/simd.hpp>

#include <algorithm>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

constexpr __mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<std::int64_t>(count, 0, 16)) - 1u);
}

/// Two vectors of float as 32 bf16, `low` first: rounded to nearest even, subnormals to zero (as the products treat
/// them anyway).
HYMBA_ALWAYS_INLINE __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/// 32 consecutive numbers as bf16; with `Partial` only the first `count` exist and the others are zero.
template <bool Partial>
HYMBA_ALWAYS_INLINE __m512i load_row(const float* from, std::int64_t count) {
  if constexpr (Partial) {
    return narrow(_mm512_maskz_loadu_ps(first_lanes(count), from),
                  count > 16 ? _mm512_maskz_loadu_ps(first_lanes(count - 16), from + 16) : _mm512_setzero_ps());
  } else {
    return narrow(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16));
  }
}
template <bool Partial>
HYMBA_ALWAYS_INLINE __m512i load_row(const bf16* from, std::int64_t count) {
  if constexpr (Partial) {
    const std::uint64_t mask = count >= 32 ? 0xffffffffu : (std::uint64_t{1} << count) - 1u;
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), from);
  } else {
    return _mm512_loadu_si512(from);
  }
}

}  // namespace detail

HYMBA_NAMESPACE_END

#endif  // AVX512BF16
