// SPDX-License-Identifier: Apache-2.0
//
// Squares of 32-bit lanes in registers: transposed, or each register folded to its sum, in two steps.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>

HYMBA_NAMESPACE_BEGIN

namespace detail {

#if defined(__AVX512F__)
/// Transposes the 4 x 4 lanes of each 128 bits: lane t of those of v[c] becomes what lane c of those of v[t] was.
HYMBA_ALWAYS_INLINE void transpose_quads(__m512i* v) {
  const __m512i t[4] = {_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]),
                        _mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3])};
  v[0] = _mm512_unpacklo_epi64(t[0], t[2]);
  v[1] = _mm512_unpackhi_epi64(t[0], t[2]);
  v[2] = _mm512_unpacklo_epi64(t[1], t[3]);
  v[3] = _mm512_unpackhi_epi64(t[1], t[3]);
}
/// Transposes 16 x 16 lanes.
HYMBA_ALWAYS_INLINE void transpose(__m512i (&v)[16]) {
  __m512i t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) transpose_quads(v + i);
  // Now lane q of v[4 g + c] holds column 4 q + c of rows 4 g to 4 g + 3.
#pragma GCC unroll 8
  for (int c = 0; c < 4; ++c) {
    t[c] = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xdd);
    t[8 + c] = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xdd);
  }
#pragma GCC unroll 8
  for (int c = 0; c < 4; ++c) {
    v[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
    v[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
    v[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
    v[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
  }
}

/// Lane i of each 128 bits of the result is the sum of the integers in those 128 bits of v[i].
HYMBA_ALWAYS_INLINE __m512i fold_to_quads(const __m512i (&v)[4]) {
  const __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}
/// The sums of 16 registers, folded by fours: lane 4 q + i of the result is the sum of lanes i in quads[q].
HYMBA_ALWAYS_INLINE __m512i fold_quads(const __m512i (&quads)[4]) {
  const __m512i low = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[0], quads[1], 0x88),
                                       _mm512_shuffle_i32x4(quads[0], quads[1], 0xdd));
  const __m512i high = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[2], quads[3], 0x88),
                                        _mm512_shuffle_i32x4(quads[2], quads[3], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xdd));
}
#endif

#if defined(__AVX2__)
/// As for 16 lanes.
HYMBA_ALWAYS_INLINE void transpose_quads(__m256i* v) {
  const __m256i t[4] = {_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]),
                        _mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3])};
  v[0] = _mm256_unpacklo_epi64(t[0], t[2]);
  v[1] = _mm256_unpackhi_epi64(t[0], t[2]);
  v[2] = _mm256_unpacklo_epi64(t[1], t[3]);
  v[3] = _mm256_unpackhi_epi64(t[1], t[3]);
}
/// Transposes 8 x 8 lanes.
HYMBA_ALWAYS_INLINE void transpose(__m256i (&v)[8]) {
  __m256i t[8];
  transpose_quads(v);
  transpose_quads(v + 4);
#pragma GCC unroll 8
  for (int c = 0; c < 4; ++c) {
    t[c] = _mm256_permute2x128_si256(v[c], v[4 + c], 0x20);
    t[4 + c] = _mm256_permute2x128_si256(v[c], v[4 + c], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = t[i];
}

/// As for 16 lanes.
HYMBA_ALWAYS_INLINE __m256i fold_to_quads(const __m256i (&v)[4]) {
  return _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
}
HYMBA_ALWAYS_INLINE __m256i fold_quads(const __m256i (&quads)[2]) {
  return _mm256_add_epi32(_mm256_permute2x128_si256(quads[0], quads[1], 0x20),
                          _mm256_permute2x128_si256(quads[0], quads[1], 0x31));
}
#endif

#if defined(HYMBA_SIMD_NEON64)
/// As for 16 lanes.
HYMBA_ALWAYS_INLINE void transpose_quads(int32x4_t* v) {
  const int64x2_t t[4] = {vreinterpretq_s64_s32(vtrn1q_s32(v[0], v[1])), vreinterpretq_s64_s32(vtrn2q_s32(v[0], v[1])),
                          vreinterpretq_s64_s32(vtrn1q_s32(v[2], v[3])), vreinterpretq_s64_s32(vtrn2q_s32(v[2], v[3]))};
  v[0] = vreinterpretq_s32_s64(vtrn1q_s64(t[0], t[2]));
  v[1] = vreinterpretq_s32_s64(vtrn1q_s64(t[1], t[3]));
  v[2] = vreinterpretq_s32_s64(vtrn2q_s64(t[0], t[2]));
  v[3] = vreinterpretq_s32_s64(vtrn2q_s64(t[1], t[3]));
}
/// Transposes 4 x 4 lanes.
HYMBA_ALWAYS_INLINE void transpose(int32x4_t (&v)[4]) { transpose_quads(v); }

/// As for 16 lanes.
HYMBA_ALWAYS_INLINE int32x4_t fold_to_quads(const int32x4_t (&v)[4]) {
  return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}
HYMBA_ALWAYS_INLINE int32x4_t fold_quads(const int32x4_t (&quads)[1]) { return quads[0]; }
#endif

}  // namespace detail

HYMBA_NAMESPACE_END
