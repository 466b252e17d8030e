// SPDX-License-Identifier: Apache-2.0
//
// Dot products of integers of 16 bits as a unit of attention over caches of bytes.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/dot/units.hpp>

#if defined(HYMBA_DOT_AVX512) || defined(HYMBA_DOT_AVX2)
#define HYMBA_DOT_INT16 1

#include <algorithm>
#include <cstdint>
#include <limits>

HYMBA_NAMESPACE_BEGIN

namespace detail::dot {

/// A unit of AttentionInVectors (kernels/attention.hpp): keys and values are bytes made longer, which takes one
/// instruction where bf16 of them takes six; queries and weights are rounded to 16 bits of their row's largest, so to
/// less than bf16 rounds all but the smallest; and integer sums are exact.
struct AttentionInt16 {
  using A = xsimd::default_arch;
  using Number = std::int16_t;
  static constexpr int step = 2;
  static constexpr bool exact = true;
  static constexpr std::int64_t L = simd::lanes<A>;
  using V = simd::floats<A>;

  /// A sum of `width` products with bytes fits.
  static float largest(std::int64_t width) {
    return static_cast<float>(
        std::min<std::int64_t>(32767, std::numeric_limits<std::int32_t>::max() / (128 * std::max<std::int64_t>(width, 1))));
  }

  using Operand = Best::Bytes;
  using Sums = Best::Ints;

  static HYMBA_ALWAYS_INLINE Operand load(const Number* from) { return Best::load(static_cast<const void*>(from)); }
  static HYMBA_ALWAYS_INLINE void store(Number* to, Operand v) { Best::store(static_cast<void*>(to), v); }
  static HYMBA_ALWAYS_INLINE Operand same(const Number* two) {
    return Best::broadcast(reinterpret_cast<const std::int8_t*>(two));
  }
  static HYMBA_ALWAYS_INLINE Sums no_sums() { return Best::same(0); }
  static HYMBA_ALWAYS_INLINE float total(Sums sums) { return static_cast<float>(Best::sum(sums)); }

#if defined(HYMBA_DOT_AVX512)
  static HYMBA_ALWAYS_INLINE Sums multiply_add(Operand a, Operand b, Sums sums) {
#if defined(__GNUC__) && !defined(__clang__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));  // see Avx512Vnni
    return sums;
#else
    return _mm512_dpwssd_epi32(sums, a, b);
#endif
  }
  static HYMBA_ALWAYS_INLINE V floats(Sums sums) { return V(_mm512_cvtepi32_ps(sums)); }
  static HYMBA_ALWAYS_INLINE Sums integers(const V& v) { return _mm512_cvtps_epi32(v.data); }
  static HYMBA_ALWAYS_INLINE Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
  static HYMBA_ALWAYS_INLINE Operand together(const V (&v)[2]) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, integers(v[0]), _mm512_slli_epi32(integers(v[1]), 16));
  }

 private:
  static HYMBA_ALWAYS_INLINE Operand widened(const std::int8_t* from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static HYMBA_ALWAYS_INLINE Operand narrowed(const V& low, const V& high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(integers(low))),
                              _mm512_cvtepi32_epi16(integers(high)), 1);
  }
  static HYMBA_ALWAYS_INLINE Operand interleaved(const std::int8_t* first, const std::int8_t* second) {
    const auto wide = [](const std::int8_t* p) {
      return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    };
    return _mm512_mask_blend_epi16(0xaaaaaaaa, wide(first), _mm512_slli_epi32(wide(second), 16));
  }
#else
  static HYMBA_ALWAYS_INLINE Sums multiply_add(Operand a, Operand b, Sums sums) {
#if defined(__AVXVNNI__) && defined(__GNUC__) && !defined(__clang__)
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b));  // as above
    return sums;
#elif defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sums, a, b);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
#endif
  }
  static HYMBA_ALWAYS_INLINE V floats(Sums sums) { return V(_mm256_cvtepi32_ps(sums)); }
  static HYMBA_ALWAYS_INLINE Sums integers(const V& v) { return _mm256_cvtps_epi32(v.data); }
  static HYMBA_ALWAYS_INLINE Sums add(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
  static HYMBA_ALWAYS_INLINE Operand together(const V (&v)[2]) {
    return _mm256_blend_epi16(integers(v[0]), _mm256_slli_epi32(integers(v[1]), 16), 0xaa);
  }

 private:
  static HYMBA_ALWAYS_INLINE Operand widened(const std::int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static HYMBA_ALWAYS_INLINE Operand narrowed(const V& low, const V& high) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(integers(low), integers(high)), 0xd8);
  }
  static HYMBA_ALWAYS_INLINE Operand interleaved(const std::int8_t* first, const std::int8_t* second) {
    const auto wide = [](const std::int8_t* p) {
      return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    };
    return _mm256_blend_epi16(wide(first), _mm256_slli_epi32(wide(second), 16), 0xaa);
  }
#endif

 public:
  static HYMBA_ALWAYS_INLINE Operand pinned(Operand v) { return v; }
  static HYMBA_ALWAYS_INLINE Operand row(const std::int8_t* from, std::int64_t count) {
    if (count >= 2 * L) return widened(from);
    std::int8_t padded[2 * L] = {};
    std::copy_n(from, count, padded);
    return widened(padded);
  }
  static HYMBA_ALWAYS_INLINE Operand columns(const std::int8_t* const* rows, std::int64_t d, std::int64_t count) {
    if (count >= L) return interleaved(rows[0] + d, rows[1] + d);
    std::int8_t padded[2][L] = {};
    for (int i = 0; i < 2; ++i) std::copy_n(rows[i] + d, count, padded[i]);
    return interleaved(padded[0], padded[1]);
  }
  static HYMBA_ALWAYS_INLINE Operand rounded(const float* from, std::int64_t count, const V& by) {
    const auto some = [&](std::int64_t first) {
      return simd::load_partial<A>(from + std::min(first, count), std::clamp<std::int64_t>(count - first, 0, L)) * by;
    };
    return narrowed(some(0), some(L));
  }
};
static_assert(AttentionInt16::L == Best::lanes);

}  // namespace detail::dot

HYMBA_NAMESPACE_END

#endif
