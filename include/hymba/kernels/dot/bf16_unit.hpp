// SPDX-License-Identifier: Apache-2.0
//
// The instructions that multiply bf16 and sum two products in a lane of 32 bits, as a unit of GemmAlongColumns
// (kernels/gemm.hpp). They treat subnormals, of operands and of sums, as zeros. vdpbf16ps adds the products one after
// the other and rounds to nearest each time; bfdot rounds the sum of both, and then what it adds to, to odd.
//
// Besides, what the unit of AttentionInVectors is made of (kernels/dot/attention.hpp):
//
//   same(p)            the two numbers at p, in every lane
//   round(a, b)        two vectors of floats as bf16, one behind the other
//   interleave(v)      the first number of each half of v, then the second of each, and so on
//   neighbours(p, q)   as many numbers as there are lanes from each of p and q, interleaved
#pragma once

#include <hymba/core/macros.hpp>

#if HYMBA_DOT_BF16

#include <hymba/core/types.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/bf16_vectors.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>

HYMBA_NAMESPACE_BEGIN

namespace detail::dot {

#if defined(__AVX512BF16__)

/// vdpbf16ps on 512 bits.
struct Bf16Unit {
  static constexpr const char* name = "AVX-512 BF16";
  using A = xsimd::default_arch;
  using Number = bf16;
  using Vector = __m512i;
  using Sums = simd::floats<A>;
  static constexpr std::int64_t columns = 32, lanes = 16;
  static constexpr bool wide = true;

  template <class T>
  static HYMBA_ALWAYS_INLINE Vector load(const T* from) {
    return load_row<false>(from, columns);
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Vector load_partial(const T* from, std::int64_t count) {
    return load_row<true>(from, count);
  }
  static HYMBA_ALWAYS_INLINE Vector load_aligned(const bf16* from) { return _mm512_load_si512(from); }
  static HYMBA_ALWAYS_INLINE void store(bf16* to, Vector v) { _mm512_storeu_si512(to, v); }
  static HYMBA_ALWAYS_INLINE Vector zero() { return _mm512_setzero_si512(); }
  static HYMBA_ALWAYS_INLINE Sums no_sums() { return simd::zero<A>(); }
  static HYMBA_ALWAYS_INLINE Sums multiply_add(Vector w, Vector x, const Sums& sums) {
#if defined(__GNUC__) && !defined(__clang__)
    // As for vpdpbusd (dot/units.hpp): GCC copies the sums before the intrinsic overwrites them.
    __m512 to = sums.data;
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(to) : "v"(w), "v"(x));
    return Sums(to);
#else
    return Sums(_mm512_dpbf16_ps(sums.data, (__m512bh)w, (__m512bh)x));
#endif
  }
  static HYMBA_ALWAYS_INLINE Vector pinned(const Vector& v) { return v; }

  static HYMBA_ALWAYS_INLINE Vector same(const bf16* two) {
    std::int32_t both = 0;
    std::memcpy(&both, two, sizeof(both));
    return _mm512_set1_epi32(both);
  }
  static HYMBA_ALWAYS_INLINE Vector round(const Sums& low, const Sums& high) { return narrow(low.data, high.data); }
  static HYMBA_ALWAYS_INLINE Vector interleave(Vector v) {
    const auto lane = [](int i) { return (16 + i) << 16 | i; };
    return _mm512_permutexvar_epi16(
        _mm512_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7), lane(8), lane(9),
                          lane(10), lane(11), lane(12), lane(13), lane(14), lane(15)),
        v);
  }
  static HYMBA_ALWAYS_INLINE Vector neighbours(const bf16* first, const bf16* second) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
    return interleave(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
};
static_assert(simd::lanes<Bf16Unit::A> == Bf16Unit::lanes);

#else

/// bfdot.
struct Bf16Unit {
  static constexpr const char* name = "NEON BF16";
  using A = xsimd::default_arch;
  using Number = bf16;
  using Vector = bfloat16x8_t;
  using Sums = simd::floats<A>;
  static constexpr std::int64_t columns = 8, lanes = 4;
  static constexpr bool wide = true;

  static HYMBA_ALWAYS_INLINE Vector load(const bf16* from) { return vreinterpretq_bf16_u16(vld1q_u16(&from->bits)); }
  static HYMBA_ALWAYS_INLINE Vector load(const float* from) {
    return round(Sums(vld1q_f32(from)), Sums(vld1q_f32(from + 4)));
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Vector load_partial(const T* from, std::int64_t count) {
    T padded[columns] = {};
    std::copy_n(from, count, padded);
    return load(padded);
  }
  static HYMBA_ALWAYS_INLINE Vector load_aligned(const bf16* from) { return load(from); }
  static HYMBA_ALWAYS_INLINE void store(bf16* to, Vector v) { vst1q_u16(&to->bits, vreinterpretq_u16_bf16(v)); }
  static HYMBA_ALWAYS_INLINE Vector zero() { return vreinterpretq_bf16_u16(vdupq_n_u16(0)); }
  static HYMBA_ALWAYS_INLINE Sums no_sums() { return simd::zero<A>(); }
  static HYMBA_ALWAYS_INLINE Sums multiply_add(Vector w, Vector x, const Sums& sums) {
    return Sums(vbfdotq_f32(sums.data, w, x));
  }
  static HYMBA_ALWAYS_INLINE Vector pinned(const Vector& v) { return v; }

  static HYMBA_ALWAYS_INLINE Vector same(const bf16* two) {
    std::uint32_t both = 0;
    std::memcpy(&both, two, sizeof(both));
    return vreinterpretq_bf16_u32(vdupq_n_u32(both));
  }
  static HYMBA_ALWAYS_INLINE Vector round(const Sums& low, const Sums& high) {
    return vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(normal(low.data)), normal(high.data));
  }
  static HYMBA_ALWAYS_INLINE Vector interleave(Vector v) {
    const uint16x8_t bits = vreinterpretq_u16_bf16(v);
    return vreinterpretq_bf16_u16(vzip1q_u16(bits, vextq_u16(bits, bits, 4)));
  }
  static HYMBA_ALWAYS_INLINE Vector neighbours(const bf16* first, const bf16* second) {
    const uint16x8_t both = vcombine_u16(vld1_u16(&first->bits), vld1_u16(&second->bits));
    return interleave(vreinterpretq_bf16_u16(both));
  }

 private:
  /// Zeros in place of subnormals, of which the nearest bf16 may be normal: as the other units do.
  static HYMBA_ALWAYS_INLINE float32x4_t normal(float32x4_t v) {
    const uint32x4_t tiny = vcaltq_f32(v, vdupq_n_f32(0x1p-126f));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), tiny));
  }
};
static_assert(simd::lanes<Bf16Unit::A> == Bf16Unit::lanes);

#endif

}  // namespace detail::dot

HYMBA_NAMESPACE_END

#endif  // HYMBA_DOT_BF16
