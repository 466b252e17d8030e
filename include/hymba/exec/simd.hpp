// SPDX-License-Identifier: Apache-2.0
//
// The one file that includes xsimd. It hides the differences between xsimd 8 and later versions, and adds the few
// operations that kernels need and xsimd does not have: widening loads of the 16-bit formats and of bytes, their
// inverses, widening loads of halves of bytes, partial loads and stores, and sums of several vectors at once. Intrinsics
// are chosen by the register type of `A` and by what the translation unit is compiled for; every one has a portable
// version behind it.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/arch.hpp>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own AVX-512 headers read a register that is undefined on purpose and GCC warns of it in whatever calls them
// (https://gcc.gnu.org/PR105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <xsimd/xsimd.hpp>

#if defined(__SSE2__) || defined(_M_X64)
#define HYMBA_SIMD_X86 1
#include <immintrin.h>
#elif defined(__aarch64__)
#define HYMBA_SIMD_NEON64 1
#include <arm_neon.h>
#endif

HYMBA_NAMESPACE_BEGIN

namespace arch {
/// The best instruction set the translation unit is compiled for.
using best = simd<xsimd::default_arch>;
}  // namespace arch

/// Vector helpers over one xsimd architecture `A`. No function reads or writes outside the elements it names.
namespace simd {

template <class A>
using floats = xsimd::batch<float, A>;

template <class A>
inline constexpr std::int64_t lanes = static_cast<std::int64_t>(floats<A>::size);

/// How many vector registers `A` has: what register blocking is chosen by.
template <class A>
inline constexpr int registers =
#if defined(HYMBA_SIMD_NEON64)
    32;
#else
    lanes<A> >= 16 ? 32 : 16;
#endif

// --- The parts behind the public functions ---------------------------------------------------------------------------

namespace detail {

template <class A>
using register_of = typename floats<A>::register_type;

#if defined(HYMBA_SIMD_X86)

template <class A>
inline constexpr bool is_m128 = std::is_same_v<register_of<A>, __m128>;
#if defined(__AVX__)
template <class A>
inline constexpr bool is_m256 = std::is_same_v<register_of<A>, __m256>;
#endif
#if defined(__AVX512F__)
template <class A>
inline constexpr bool is_m512 = std::is_same_v<register_of<A>, __m512>;
#endif

// bits of bf16 (four, in the low half) -> float
HYMBA_ALWAYS_INLINE __m128 widen_bf16(__m128i h) {
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), h));
}

// mask ? a : b
HYMBA_ALWAYS_INLINE __m128i select(__m128i mask, __m128i a, __m128i b) {
  return _mm_or_si128(_mm_and_si128(mask, a), _mm_andnot_si128(mask, b));
}

// bits of f16 (four, in the low half) -> float
HYMBA_ALWAYS_INLINE __m128 widen_f16(__m128i h) {
#if defined(__F16C__)
  return _mm_cvtph_ps(h);
#else
  const __m128i u = _mm_unpacklo_epi16(h, _mm_setzero_si128());
  const __m128i sign = _mm_slli_epi32(_mm_and_si128(u, _mm_set1_epi32(0x8000)), 16);
  const __m128i magnitude = _mm_and_si128(u, _mm_set1_epi32(0x7fff));
  const __m128i shifted = _mm_slli_epi32(magnitude, 13);
  const __m128i rebase = _mm_set1_epi32(112 << 23);
  const __m128i normal = _mm_add_epi32(shifted, rebase);
  const __m128i special = _mm_add_epi32(normal, rebase);  // infinities and NaN: the exponent becomes 255
  const __m128 small = _mm_mul_ps(_mm_cvtepi32_ps(magnitude), _mm_set1_ps(0x1p-24f));
  __m128i r = select(_mm_cmplt_epi32(magnitude, _mm_set1_epi32(0x0400)), _mm_castps_si128(small), normal);
  r = select(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff)), special, r);
  return _mm_castsi128_ps(_mm_or_si128(r, sign));
#endif
}

// float -> bits of bf16, sign-extended to 32 bits
HYMBA_ALWAYS_INLINE __m128i narrow_bf16(__m128 v) {
  const __m128i u = _mm_castps_si128(v);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(u, 16), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(_mm_add_epi32(u, _mm_set1_epi32(0x7fff)), odd);
  const __m128i quiet = _mm_or_si128(u, _mm_set1_epi32(0x00400000));
  return _mm_srai_epi32(select(_mm_castps_si128(_mm_cmpunord_ps(v, v)), quiet, rounded), 16);
}

// float -> bits of f16, sign-extended to 32 bits
HYMBA_ALWAYS_INLINE __m128i narrow_f16_portable(__m128 v) {
  const __m128i u = _mm_castps_si128(v);
  const __m128i sign = _mm_and_si128(_mm_srli_epi32(u, 16), _mm_set1_epi32(0x8000));
  const __m128i magnitude = _mm_and_si128(u, _mm_set1_epi32(0x7fffffff));
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(magnitude, 13), _mm_set1_epi32(1));
  const __m128i rebased = _mm_sub_epi32(magnitude, _mm_set1_epi32(0x38000000 - 0x0fff));
  const __m128i normal = _mm_srli_epi32(_mm_add_epi32(rebased, odd), 13);
  // Adding 0.5 leaves the subnormal's mantissa, rounded to nearest even, in the low bits of the sum.
  const __m128 half = _mm_set1_ps(0.5f);
  const __m128i small = _mm_sub_epi32(_mm_castps_si128(_mm_add_ps(_mm_castsi128_ps(magnitude), half)),
                                      _mm_castps_si128(half));
  __m128i r = select(_mm_cmplt_epi32(magnitude, _mm_set1_epi32(0x38800000)), small, normal);
  r = select(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x477fefff)), _mm_set1_epi32(0x7c00), r);
  r = select(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7f800000)), _mm_set1_epi32(0x7e00), r);
  return _mm_srai_epi32(_mm_slli_epi32(_mm_or_si128(r, sign), 16), 16);
}

#if defined(__F16C__)
// NaN with its payload removed, as f16(float) does; the conversion instruction would keep the payload's upper bits.
HYMBA_ALWAYS_INLINE __m256 canonical_nan(__m256 v) {
  const __m256 nan = _mm256_or_ps(_mm256_and_ps(v, _mm256_set1_ps(-0.0f)),
                                  _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
  return _mm256_blendv_ps(v, nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
HYMBA_ALWAYS_INLINE __m128 canonical_nan(__m128 v) {
  const __m128 nan = _mm_or_ps(_mm_and_ps(v, _mm_set1_ps(-0.0f)), _mm_castsi128_ps(_mm_set1_epi32(0x7fc00000)));
  return _mm_blendv_ps(v, nan, _mm_cmpunord_ps(v, v));
}
#endif

HYMBA_ALWAYS_INLINE void store_narrow(std::uint16_t* to, __m128 v, bf16) {
  const __m128i r = narrow_bf16(v);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi32(r, r));
}
HYMBA_ALWAYS_INLINE void store_narrow(std::uint16_t* to, __m128 v, f16) {
#if defined(__F16C__)
  const __m128i h = _mm_cvtps_ph(canonical_nan(v), _MM_FROUND_TO_NEAREST_INT);
#else
  const __m128i r = narrow_f16_portable(v);
  const __m128i h = _mm_packs_epi32(r, r);
#endif
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), h);
}
HYMBA_ALWAYS_INLINE __m128 load_wide(const std::uint16_t* from, __m128, bf16) {
  return widen_bf16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
HYMBA_ALWAYS_INLINE __m128 load_wide(const std::uint16_t* from, __m128, f16) {
  return widen_f16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

// four signed bytes -> float
HYMBA_ALWAYS_INLINE __m128 load_bytes(const std::int8_t* from, __m128) {
  int four = 0;
  std::memcpy(&four, from, sizeof(four));
  const __m128i bytes = _mm_cvtsi32_si128(four);
#if defined(__SSE4_1__)
  return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(bytes));
#else
  const __m128i pairs = _mm_unpacklo_epi8(bytes, bytes);
  return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
#endif
}

// float -> four signed bytes, to nearest even and saturated
HYMBA_ALWAYS_INLINE void store_bytes(std::int8_t* to, __m128 v) {
  const __m128i pairs = _mm_packs_epi32(_mm_cvtps_epi32(v), _mm_setzero_si128());
  const int four = _mm_cvtsi128_si32(_mm_packs_epi16(pairs, pairs));
  std::memcpy(to, &four, sizeof(four));
}

// The sums of the lanes of four vectors: lanes 0 + 2 and 1 + 3 first.
HYMBA_ALWAYS_INLINE __m128 sums4(__m128 a, __m128 b, __m128 c, __m128 d) {
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

// The sum of the lanes of one vector, folded by halves.
HYMBA_ALWAYS_INLINE float sum1(__m128 v) {
  const __m128 pair = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

#if defined(__AVX__)
HYMBA_ALWAYS_INLINE __m128 fold(__m256 v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
HYMBA_ALWAYS_INLINE float sum1(__m256 v) { return sum1(fold(v)); }
HYMBA_ALWAYS_INLINE __m256 load_wide(const std::uint16_t* from, __m256, bf16) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
#if defined(__AVX2__)
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
#else
  return _mm256_insertf128_ps(_mm256_castps128_ps256(widen_bf16(h)), widen_bf16(_mm_unpackhi_epi64(h, h)), 1);
#endif
}
HYMBA_ALWAYS_INLINE __m256 load_wide(const std::uint16_t* from, __m256, f16) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
#if defined(__F16C__)
  return _mm256_cvtph_ps(h);
#else
  return _mm256_insertf128_ps(_mm256_castps128_ps256(widen_f16(h)), widen_f16(_mm_unpackhi_epi64(h, h)), 1);
#endif
}
HYMBA_ALWAYS_INLINE __m256 load_bytes(const std::int8_t* from, __m256) {
#if defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return _mm256_insertf128_ps(_mm256_castps128_ps256(load_bytes(from, __m128{})), load_bytes(from + 4, __m128{}), 1);
#endif
}
HYMBA_ALWAYS_INLINE void store_bytes(std::int8_t* to, __m256 v) {
  const __m256i integers = _mm256_cvtps_epi32(v);
  const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extractf128_si256(integers, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(pairs, pairs));
}
HYMBA_ALWAYS_INLINE void store_narrow(std::uint16_t* to, __m256 v, bf16) {
#if defined(__AVX2__)
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i r = _mm256_srai_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packs_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1)));
#else
  store_narrow(to, _mm256_castps256_ps128(v), bf16{});
  store_narrow(to + 4, _mm256_extractf128_ps(v, 1), bf16{});
#endif
}
HYMBA_ALWAYS_INLINE void store_narrow(std::uint16_t* to, __m256 v, f16) {
#if defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(canonical_nan(v), _MM_FROUND_TO_NEAREST_INT));
#else
  store_narrow(to, _mm256_castps256_ps128(v), f16{});
  store_narrow(to + 4, _mm256_extractf128_ps(v, 1), f16{});
#endif
}
#endif  // AVX

#if defined(__AVX512F__)
HYMBA_ALWAYS_INLINE float sum1(__m512 v) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
  return sum1(_mm256_add_ps(_mm512_castps512_ps256(v), high));
}
// Four vectors folded to four lanes each: quarter i of the result belongs to vector i.
HYMBA_ALWAYS_INLINE __m512 fold4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(1, 0, 1, 0)),
                                  _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 2, 3, 2)));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(1, 0, 1, 0)),
                                  _mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(3, 2, 3, 2)));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_f32x4(ab, cd, _MM_SHUFFLE(3, 1, 3, 1)));
}
HYMBA_ALWAYS_INLINE __m512 widen(__m256i h, bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
HYMBA_ALWAYS_INLINE __m512 widen(__m256i h, f16) { return _mm512_cvtph_ps(h); }
HYMBA_ALWAYS_INLINE __m256i narrow(__m512 v, bf16) {
  // Not vcvtneps2bf16: it flushes subnormals.
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i r = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
HYMBA_ALWAYS_INLINE __m256i narrow(__m512 v, f16) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i nan = _mm512_or_si512(_mm512_and_si512(u, _mm512_set1_epi32(static_cast<int>(0x80000000u))),
                                      _mm512_set1_epi32(0x7fc00000));
  const __m512i r = _mm512_mask_mov_epi32(u, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan);
  return _mm512_cvtps_ph(_mm512_castsi512_ps(r), _MM_FROUND_TO_NEAREST_INT);
}
template <class Half>
HYMBA_ALWAYS_INLINE __m512 load_wide(const std::uint16_t* from, __m512, Half) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), Half{});
}
HYMBA_ALWAYS_INLINE __m512 load_bytes(const std::int8_t* from, __m512) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
HYMBA_ALWAYS_INLINE void store_bytes(std::int8_t* to, __m512 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}
template <class Half>
HYMBA_ALWAYS_INLINE void store_narrow(std::uint16_t* to, __m512 v, Half) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(v, Half{}));
}
#endif  // AVX512F

#elif defined(HYMBA_SIMD_NEON64)

HYMBA_ALWAYS_INLINE float32x4_t load_wide(const std::uint16_t* from, float32x4_t, bf16) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
}
HYMBA_ALWAYS_INLINE float32x4_t load_wide(const std::uint16_t* from, float32x4_t, f16) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
HYMBA_ALWAYS_INLINE float32x4_t load_bytes(const std::int8_t* from, float32x4_t) {
  std::uint32_t four = 0;
  std::memcpy(&four, from, sizeof(four));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
}
HYMBA_ALWAYS_INLINE void store_bytes(std::int8_t* to, float32x4_t v) {
  const int16x4_t pairs = vqmovn_s32(vcvtnq_s32_f32(v));
  const int8x8_t bytes = vqmovn_s16(vcombine_s16(pairs, pairs));
  const std::uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
  std::memcpy(to, &four, sizeof(four));
}
HYMBA_ALWAYS_INLINE void store_narrow(std::uint16_t* to, float32x4_t v, bf16) {
  const uint32x4_t u = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x00400000));
  vst1_u16(to, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
}
HYMBA_ALWAYS_INLINE void store_narrow(std::uint16_t* to, float32x4_t v, f16) {
  const uint32x4_t u = vreinterpretq_u32_f32(v);
  const uint32x4_t nan = vorrq_u32(vandq_u32(u, vdupq_n_u32(0x80000000u)), vdupq_n_u32(0x7fc00000u));
  const float32x4_t clean = vreinterpretq_f32_u32(vbslq_u32(vceqq_f32(v, v), u, nan));
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(clean)));
}

#endif

template <class Half>
inline constexpr bool is_half = std::is_same_v<Half, bf16> || std::is_same_v<Half, f16>;

// Whether load_wide, load_bytes, store_bytes and store_narrow exist for A's register.
template <class A>
inline constexpr bool has_narrow =
#if defined(HYMBA_SIMD_X86)
#if defined(__AVX512F__)
    is_m512<A> ||
#endif
#if defined(__AVX__)
    is_m256<A> ||
#endif
    is_m128<A>;
#elif defined(HYMBA_SIMD_NEON64)
    std::is_same_v<register_of<A>, float32x4_t>;
#else
    false;
#endif

}  // namespace detail

// --- Loads and stores ------------------------------------------------------------------------------------------------

template <class A>
HYMBA_ALWAYS_INLINE floats<A> broadcast(float value) {
  return floats<A>(value);
}
template <class A>
HYMBA_ALWAYS_INLINE floats<A> zero() {
  return floats<A>(0.0f);
}

/// Loads lanes<A> consecutive elements, widened to float. Exact; a signalling NaN may become quiet.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> load(const float* from) {
  return floats<A>::load_unaligned(from);
}
template <class A, class Half>
  requires(detail::is_half<Half>)
HYMBA_ALWAYS_INLINE floats<A> load(const Half* from) {
  if constexpr (detail::has_narrow<A>) {
    return floats<A>(detail::load_wide(&from->bits, detail::register_of<A>{}, Half{}));
  } else {
    alignas(64) float wide[static_cast<std::size_t>(lanes<A>)];
    for (std::int64_t i = 0; i < lanes<A>; ++i) wide[i] = static_cast<float>(from[i]);
    return floats<A>::load_aligned(wide);
  }
}
template <class A>
HYMBA_ALWAYS_INLINE floats<A> load(const std::int8_t* from) {
  if constexpr (detail::has_narrow<A>) {
    return floats<A>(detail::load_bytes(from, detail::register_of<A>{}));
  } else {
    alignas(64) float wide[static_cast<std::size_t>(lanes<A>)];
    for (std::int64_t i = 0; i < lanes<A>; ++i) wide[i] = static_cast<float>(from[i]);
    return floats<A>::load_aligned(wide);
  }
}

/// Looks 64 values of 4 bits up, which are the low halves of 64 bytes, or the high ones if `High`: to[i] = t0[half of
/// from[i]] for i < 32, then t1[...]. Both tables have 16 bytes, aligned to 16.
template <bool High>
HYMBA_ALWAYS_INLINE void look_up_halves(const std::byte* from, const std::int8_t* t0, const std::int8_t* t1,
                                        std::int8_t* to) {
#if defined(__SSSE3__)
  const __m128i first = _mm_load_si128(reinterpret_cast<const __m128i*>(t0));
  const __m128i second = _mm_load_si128(reinterpret_cast<const __m128i*>(t1));
#if defined(__AVX512BW__)
  const __m512i tables = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(first), 0xff00, second);
  __m512i v = _mm512_loadu_si512(from);
  if constexpr (High) v = _mm512_srli_epi16(v, 4);
  _mm512_storeu_si512(to, _mm512_shuffle_epi8(tables, _mm512_and_si512(v, _mm512_set1_epi8(15))));
#elif defined(__AVX2__)
  for (int i = 0; i < 64; i += 32) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    if constexpr (High) v = _mm256_srli_epi16(v, 4);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(i == 0 ? first : second),
                                            _mm256_and_si256(v, _mm256_set1_epi8(15))));
  }
#else
  for (int i = 0; i < 64; i += 16) {
    __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    if constexpr (High) v = _mm_srli_epi16(v, 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_shuffle_epi8(i < 32 ? first : second, _mm_and_si128(v, _mm_set1_epi8(15))));
  }
#endif
#elif defined(HYMBA_SIMD_NEON64)
  const int8x16_t first = vld1q_s8(t0), second = vld1q_s8(t1);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  for (int i = 0; i < 64; i += 16) {
    uint8x16_t v = vld1q_u8(bytes + i);
    v = High ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15));
    vst1q_s8(to + i, vqtbl1q_s8(i < 32 ? first : second, v));
  }
#else
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  for (int i = 0; i < 64; ++i) to[i] = (i < 32 ? t0 : t1)[High ? bytes[i] >> 4 : bytes[i] & 15];
#endif
}

/// Loads the first `count` (0 to lanes<A>) elements, widened to float; the other lanes are +0.
template <class A, class T>
HYMBA_ALWAYS_INLINE floats<A> load_partial(const T* from, std::int64_t count) {
#if defined(__AVX512F__)
  if constexpr (detail::is_m512<A>) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1u);
    if constexpr (std::is_same_v<T, float>) return floats<A>(_mm512_maskz_loadu_ps(mask, from));
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (detail::is_half<T>) return floats<A>(detail::widen(_mm256_maskz_loadu_epi16(mask, from), T{}));
    if constexpr (std::is_same_v<T, std::int8_t>) {
      return floats<A>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from))));
    }
#endif
  }
#endif
  T padded[static_cast<std::size_t>(lanes<A>)] = {};
  for (std::int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return load<A>(padded);
}

/// Stores lanes<A> consecutive elements, rounded to nearest even: the same bits as T(float).
template <class A>
HYMBA_ALWAYS_INLINE void store(float* to, const floats<A>& v) {
  v.store_unaligned(to);
}
template <class A, class Half>
  requires(detail::is_half<Half>)
HYMBA_ALWAYS_INLINE void store(Half* to, const floats<A>& v) {
  if constexpr (detail::has_narrow<A>) {
    detail::store_narrow(&to->bits, v.data, Half{});
  } else {
    alignas(64) float wide[static_cast<std::size_t>(lanes<A>)];
    v.store_aligned(wide);
    for (std::int64_t i = 0; i < lanes<A>; ++i) to[i] = Half(wide[i]);
  }
}

/// Stores lanes<A> signed bytes: the nearest integers, the even one of two as near, none beyond what a byte holds. A NaN
/// becomes any number.
template <class A>
HYMBA_ALWAYS_INLINE void store(std::int8_t* to, const floats<A>& v) {
  if constexpr (detail::has_narrow<A>) {
    detail::store_bytes(to, v.data);
  } else {
    alignas(64) float wide[static_cast<std::size_t>(lanes<A>)];
    v.store_aligned(wide);
    for (std::int64_t i = 0; i < lanes<A>; ++i) {
      const float whole = std::nearbyint(wide[i]);
      to[i] = static_cast<std::int8_t>(whole >= -128.0f ? (whole <= 127.0f ? whole : 127.0f) : -128.0f);
    }
  }
}

/// Stores the first `count` (0 to lanes<A>) lanes only.
template <class A, class T>
HYMBA_ALWAYS_INLINE void store_partial(T* to, const floats<A>& v, std::int64_t count) {
#if defined(__AVX512F__)
  if constexpr (detail::is_m512<A>) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1u);
    if constexpr (std::is_same_v<T, float>) {
      _mm512_mask_storeu_ps(to, mask, v.data);
      return;
    }
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (detail::is_half<T>) {
      _mm256_mask_storeu_epi16(to, mask, detail::narrow(v.data, T{}));
      return;
    }
#endif
  }
#endif
  T all[static_cast<std::size_t>(lanes<A>)];
  store<A>(all, v);
  for (std::int64_t i = 0; i < count; ++i) to[i] = all[i];
}

/// `v`, which the compiler holds in a register from here on. Without it GCC repeats a load in each operation that uses
/// the value when registers run short (and, with 32 of them, in each operation that takes an operand from memory), and
/// loads become the limit.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> pinned(floats<A> v) {
#if defined(HYMBA_SIMD_X86) && defined(__GNUC__) && !defined(__clang__)
  if constexpr (registers<A> == 16) {
    __asm__("" : "+x"(v.data));
  } else {
    __asm__("" : "+v"(v.data));
  }
#endif
  return v;
}

/// Hints that the cache line at `p` is read soon, into cache level `Level` (1 or 2). Any address is allowed.
template <int Level = 1>
HYMBA_ALWAYS_INLINE void prefetch([[maybe_unused]] const void* p) {
  static_assert(Level == 1 || Level == 2);
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(p, 0, 4 - Level);
#endif
}

// --- Arithmetic ------------------------------------------------------------------------------------------------------

/// a * b + c: rounded once where the architecture has the instruction.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> fma(const floats<A>& a, const floats<A>& b, const floats<A>& c) {
  // Spelt out because xsimd 8 multiplies and adds on AVX-512.
#if defined(__AVX512F__)
  if constexpr (detail::is_m512<A>) return floats<A>(_mm512_fmadd_ps(a.data, b.data, c.data));
#endif
#if defined(HYMBA_SIMD_X86) && defined(__FMA__)
  if constexpr (detail::is_m256<A>) return floats<A>(_mm256_fmadd_ps(a.data, b.data, c.data));
  if constexpr (detail::is_m128<A>) return floats<A>(_mm_fmadd_ps(a.data, b.data, c.data));
#endif
  return xsimd::fma(a, b, c);
}
template <class A>
HYMBA_ALWAYS_INLINE floats<A> max(const floats<A>& a, const floats<A>& b) {
  return xsimd::max(a, b);
}
template <class A>
HYMBA_ALWAYS_INLINE floats<A> min(const floats<A>& a, const floats<A>& b) {
  return xsimd::min(a, b);
}

/// The sum of all lanes (in an order that depends on `A` only).
template <class A>
HYMBA_ALWAYS_INLINE float sum(const floats<A>& v) {
#if XSIMD_VERSION_MAJOR >= 9
  return xsimd::reduce_add(v);
#else
  return xsimd::hadd(v);
#endif
}

/// out[i] = sum of the lanes of v[i]. Every vector is folded by halves (lane i plus lane i + L/2, and so on), whatever
/// R is: a sum does not depend on which vectors it is computed with.
template <class A, int R>
HYMBA_ALWAYS_INLINE void sums(const floats<A> (&v)[R], float* out) {
#if defined(HYMBA_SIMD_X86)
  if constexpr (R == 1 && requires { detail::sum1(v[0].data); }) {
    out[0] = detail::sum1(v[0].data);
    return;
  }
  if constexpr (detail::is_m128<A> && R == 4) {
    _mm_storeu_ps(out, detail::sums4(v[0].data, v[1].data, v[2].data, v[3].data));
    return;
  }
#if defined(__AVX__)
  if constexpr (detail::is_m256<A> && R == 4) {
    _mm_storeu_ps(out, detail::sums4(detail::fold(v[0].data), detail::fold(v[1].data), detail::fold(v[2].data),
                                     detail::fold(v[3].data)));
    return;
  }
#endif
#if defined(__AVX512F__)
  if constexpr (detail::is_m512<A> && R == 4) {
    __m512 s = detail::fold4(v[0].data, v[1].data, v[2].data, v[3].data);
    s = _mm512_add_ps(s, _mm512_shuffle_ps(s, s, _MM_SHUFFLE(1, 0, 3, 2)));
    s = _mm512_add_ps(s, _mm512_shuffle_ps(s, s, _MM_SHUFFLE(2, 3, 0, 1)));
    const __m512i pick = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(pick, s)));
    return;
  }
  if constexpr (detail::is_m512<A> && R == 8) {
    const __m512 p = detail::fold4(v[0].data, v[1].data, v[2].data, v[3].data);
    const __m512 q = detail::fold4(v[4].data, v[5].data, v[6].data, v[7].data);
    __m512 s = _mm512_add_ps(_mm512_shuffle_ps(p, q, _MM_SHUFFLE(1, 0, 1, 0)),
                             _mm512_shuffle_ps(p, q, _MM_SHUFFLE(3, 2, 3, 2)));
    s = _mm512_add_ps(s, _mm512_shuffle_ps(s, s, _MM_SHUFFLE(2, 3, 0, 1)));
    const __m512i pick = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(pick, s)));
    return;
  }
#endif
#endif
  for (int r = 0; r < R; ++r) {
    alignas(64) float all[static_cast<std::size_t>(lanes<A>)];
    v[r].store_aligned(all);
    for (std::int64_t half = lanes<A> / 2; half > 0; half /= 2) {
      for (std::int64_t i = 0; i < half; ++i) all[i] += all[i + half];
    }
    out[r] = all[0];
  }
}

/// Lane i becomes lane i ^ Stride.
template <class A, int Stride>
HYMBA_ALWAYS_INLINE floats<A> exchange(const floats<A>& v) {
  static_assert(Stride == 1 || Stride == 2 || Stride == 4 || Stride == 8);
  static_assert(Stride < lanes<A>);
#if defined(HYMBA_SIMD_X86)
  constexpr int pairs = Stride == 1 ? _MM_SHUFFLE(2, 3, 0, 1) : _MM_SHUFFLE(1, 0, 3, 2);
  if constexpr (detail::is_m128<A>) return floats<A>(_mm_shuffle_ps(v.data, v.data, pairs));
#if defined(__AVX__)
  if constexpr (detail::is_m256<A>) {
    if constexpr (Stride < 4) return floats<A>(_mm256_permute_ps(v.data, pairs));
    return floats<A>(_mm256_permute2f128_ps(v.data, v.data, 1));
  }
#endif
#if defined(__AVX512F__)
  if constexpr (detail::is_m512<A>) {
    if constexpr (Stride < 4) return floats<A>(_mm512_permute_ps(v.data, pairs));
    constexpr int quarters = Stride == 4 ? _MM_SHUFFLE(2, 3, 0, 1) : _MM_SHUFFLE(1, 0, 3, 2);
    return floats<A>(_mm512_shuffle_f32x4(v.data, v.data, quarters));
  }
#endif
#elif defined(HYMBA_SIMD_NEON64)
  if constexpr (lanes<A> == 4) {
    return floats<A>(Stride == 1 ? vrev64q_f32(v.data) : vextq_f32(v.data, v.data, 2));
  }
#endif
  alignas(64) float from[static_cast<std::size_t>(lanes<A>)], to[static_cast<std::size_t>(lanes<A>)];
  v.store_aligned(from);
  for (std::int64_t i = 0; i < lanes<A>; ++i) to[i] = from[i ^ Stride];
  return floats<A>::load_aligned(to);
}

/// The largest lane. NaN lanes: unspecified which operand wins.
template <class A>
HYMBA_ALWAYS_INLINE float max_lane(const floats<A>& v) {
#if defined(__AVX512F__)
  if constexpr (lanes<A> == 16) return _mm512_reduce_max_ps(v.data);
#endif
  alignas(64) float all[static_cast<std::size_t>(lanes<A>)];
  v.store_aligned(all);
  for (std::int64_t half = lanes<A> / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) all[i] = all[i] < all[i + half] ? all[i + half] : all[i];
  }
  return all[0];
}

}  // namespace simd

HYMBA_NAMESPACE_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
