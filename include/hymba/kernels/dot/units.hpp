// SPDX-License-Identifier: Apache-2.0
//
// The instructions that multiply bytes and sum four products in a lane of 32 bits: one unit for each instruction set,
// and `Best`, that of the translation unit. A unit is a struct of static functions:
//
//   name                    for people
//   lanes                   32-bit lanes L of a register; each takes four bytes
//   offset                  what is added to each weight before it is multiplied: 128 where weights must be unsigned,
//                           else 0. The sum is then too large by offset times the sum of the other operand's bytes.
//   many_registers          whether there are 32
//   panel_vectors, panel_tokens   how many sums of L rows times tokens stay in registers
//   Bytes, Ints, Floats     registers of 4 L bytes, of L integers, of L floats
//   load, store, broadcast  4 L bytes; four bytes in every lane
//   shifted(w)              signed weights, the offset added
//   dot(sum, w, x)          sum + four products of shifted weights and signed bytes in each lane; exact as long as no
//                           weight is beyond [-128, 127] and no x beyond [-127, 127]
//   dot_levels(sum, w, x)   the same, of weights from int4_table: none is -128
//   low_halves, high_halves the halves of 4 L bytes, each a byte
//   look_up(table, halves)  table[half] for every byte; table(part, p, q) makes one of the 16 bytes at p for the first
//                           half of a line of 64 bytes and of those at q for the second, in register `part` of the line
//   spread<i>(v)            lane i of each four to all of them
//   words(v)                the bytes' registers as integers' ones, for kernels/transpose.hpp
//   floats(v)               the lanes of integers' registers as floats, bit for bit
//   scales(p, stride, n)    L floats `stride` bytes apart, of which the first n exist; any number for the others
//   add_scaled(t, v, s)     t + s * v, rounded once
//   sum(v)                  of the lanes of integers
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

// AVX-VNNI is the extension of AVX2; a processor may have that of AVX-512, both or none.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HYMBA_DOT 1
#define HYMBA_DOT_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define HYMBA_DOT 1
#define HYMBA_DOT_AVX2 1
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define HYMBA_DOT 1
#define HYMBA_DOT_NEON 1
#endif

#if defined(HYMBA_DOT)

HYMBA_NAMESPACE_BEGIN

namespace detail::dot {

HYMBA_ALWAYS_INLINE std::int32_t four_bytes(const std::int8_t* from) {
  std::int32_t four = 0;
  std::memcpy(&four, from, sizeof(four));
  return four;
}

#if defined(HYMBA_DOT_AVX512)

/// vpdpbusd on 512 bits: unsigned by signed bytes.
struct Avx512Vnni {
  static constexpr const char* name = "AVX-512 VNNI";
  static constexpr std::int64_t lanes = 16;
  static constexpr bool many_registers = true;
  static constexpr int offset = 128;
  static constexpr int panel_vectors = 4, panel_tokens = 6;
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  static HYMBA_ALWAYS_INLINE Bytes load(const void* p) { return _mm512_loadu_si512(p); }
  static HYMBA_ALWAYS_INLINE void store(void* p, Bytes v) { _mm512_storeu_si512(p, v); }
  static HYMBA_ALWAYS_INLINE Bytes broadcast(const std::int8_t* p) { return _mm512_set1_epi32(four_bytes(p)); }
  static HYMBA_ALWAYS_INLINE Bytes shifted(Bytes w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
  static HYMBA_ALWAYS_INLINE Ints dot(Ints sum, Bytes w, Bytes x) {
#if defined(__GNUC__) && !defined(__clang__)
    // GCC copies the sums before the intrinsic overwrites them, and runs out of registers.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, w, x);
#endif
  }
  static HYMBA_ALWAYS_INLINE Ints dot_levels(Ints sum, Bytes w, Bytes x) { return dot(sum, w, x); }

  static HYMBA_ALWAYS_INLINE Bytes low_halves(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static HYMBA_ALWAYS_INLINE Bytes high_halves(Bytes v) { return low_halves(_mm512_srli_epi16(v, 4)); }
  static HYMBA_ALWAYS_INLINE Bytes table(int, const std::int8_t* p, const std::int8_t* q) {
    const auto at = [](const std::int8_t* t) { return _mm_load_si128(reinterpret_cast<const __m128i*>(t)); };
    return _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(at(p)), 0xff00, at(q));
  }
  static HYMBA_ALWAYS_INLINE Bytes look_up(Bytes table, Bytes halves) { return _mm512_shuffle_epi8(table, halves); }

  template <int I>
  static HYMBA_ALWAYS_INLINE Bytes spread(Bytes v) {
    return _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0x55 * I));
  }
  static HYMBA_ALWAYS_INLINE Ints words(Bytes v) { return v; }
  static HYMBA_ALWAYS_INLINE Bytes bytes(Ints v) { return v; }
  static HYMBA_ALWAYS_INLINE Floats floats(Ints v) { return _mm512_castsi512_ps(v); }
  static HYMBA_ALWAYS_INLINE Ints same(std::int32_t v) { return _mm512_set1_epi32(v); }
  static HYMBA_ALWAYS_INLINE Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }

  static HYMBA_ALWAYS_INLINE std::int32_t sum(Ints v) { return _mm512_reduce_add_epi32(v); }

  static HYMBA_ALWAYS_INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static HYMBA_ALWAYS_INLINE void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static HYMBA_ALWAYS_INLINE Floats same(float v) { return _mm512_set1_ps(v); }
  static HYMBA_ALWAYS_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static HYMBA_ALWAYS_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static HYMBA_ALWAYS_INLINE Floats add_scaled(Floats total, Ints v, Floats scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), scale, total);
  }
  static HYMBA_ALWAYS_INLINE Floats scales(const std::byte* p, std::int64_t stride, int count) {
    const __m512i line = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_mullo_epi32(line, _mm512_set1_epi32(static_cast<int>(stride / 4)));
    const auto mask = static_cast<__mmask16>((1u << count) - 1u);
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, p, 4);
  }
};
using Best = Avx512Vnni;

#elif defined(HYMBA_DOT_AVX2)

/// What both units of 256 bits have in common.
struct Avx2Registers {
  static constexpr std::int64_t lanes = 8;
  static constexpr bool many_registers = false;
  using Bytes = __m256i;
  using Ints = __m256i;
  using Floats = __m256;

  static HYMBA_ALWAYS_INLINE Bytes load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static HYMBA_ALWAYS_INLINE void store(void* p, Bytes v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static HYMBA_ALWAYS_INLINE Bytes broadcast(const std::int8_t* p) { return _mm256_set1_epi32(four_bytes(p)); }

  static HYMBA_ALWAYS_INLINE Bytes low_halves(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static HYMBA_ALWAYS_INLINE Bytes high_halves(Bytes v) { return low_halves(_mm256_srli_epi16(v, 4)); }
  static HYMBA_ALWAYS_INLINE Bytes table(int part, const std::int8_t* p, const std::int8_t* q) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(part == 0 ? p : q)));
  }
  static HYMBA_ALWAYS_INLINE Bytes look_up(Bytes table, Bytes halves) { return _mm256_shuffle_epi8(table, halves); }

  template <int I>
  static HYMBA_ALWAYS_INLINE Bytes spread(Bytes v) {
    return _mm256_shuffle_epi32(v, 0x55 * I);
  }
  static HYMBA_ALWAYS_INLINE Ints words(Bytes v) { return v; }
  static HYMBA_ALWAYS_INLINE Bytes bytes(Ints v) { return v; }
  static HYMBA_ALWAYS_INLINE Floats floats(Ints v) { return _mm256_castsi256_ps(v); }
  static HYMBA_ALWAYS_INLINE Ints same(std::int32_t v) { return _mm256_set1_epi32(v); }
  static HYMBA_ALWAYS_INLINE Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }

  static HYMBA_ALWAYS_INLINE std::int32_t sum(Ints v) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
  }

  static HYMBA_ALWAYS_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static HYMBA_ALWAYS_INLINE void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static HYMBA_ALWAYS_INLINE Floats same(float v) { return _mm256_set1_ps(v); }
  static HYMBA_ALWAYS_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static HYMBA_ALWAYS_INLINE Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static HYMBA_ALWAYS_INLINE Floats add_scaled(Floats total, Ints v, Floats scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), scale, total);
  }
  static HYMBA_ALWAYS_INLINE Floats scales(const std::byte* p, std::int64_t stride, int count) {
    alignas(32) float all[8];
    for (int i = 0; i < 8; ++i) std::memcpy(all + i, p + std::min(i, count - 1) * stride, sizeof(float));
    return _mm256_load_ps(all);
  }
};

#if defined(__AVXVNNI__)
/// vpdpbusd on 256 bits.
struct AvxVnni : Avx2Registers {
  static constexpr const char* name = "AVX-VNNI";
  static constexpr int offset = 128;
  static constexpr int panel_vectors = 2, panel_tokens = 6;
  static HYMBA_ALWAYS_INLINE Bytes shifted(Bytes w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
  static HYMBA_ALWAYS_INLINE Ints dot(Ints sum, Bytes w, Bytes x) {
#if defined(__GNUC__) && !defined(__clang__)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));  // see Avx512Vnni
    return sum;
#else
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#endif
  }
  static HYMBA_ALWAYS_INLINE Ints dot_levels(Ints sum, Bytes w, Bytes x) { return dot(sum, w, x); }
};
using Best = AvxVnni;
#else
/// Without dot products: vpmaddubsw sums two of unsigned by signed bytes in 16 bits, where 255 * 127 twice does not
/// fit, but 128 * 127 twice does. So the sign goes from one operand to the other: from x, whose magnitudes several
/// weights share, unless a weight may be -128, which has no opposite.
struct Avx2 : Avx2Registers {
  static constexpr const char* name = "AVX2";
  static constexpr int offset = 0;
  static constexpr int panel_vectors = 2, panel_tokens = 4;
  static HYMBA_ALWAYS_INLINE Bytes shifted(Bytes w) { return w; }
  static HYMBA_ALWAYS_INLINE Ints dot(Ints sum, Bytes w, Bytes x) {
    return add_products(sum, _mm256_abs_epi8(w), x, w);
  }
  static HYMBA_ALWAYS_INLINE Ints dot_levels(Ints sum, Bytes w, Bytes x) {
    return add_products(sum, _mm256_abs_epi8(x), w, x);
  }

 private:
  /// sum + the sums of four of magnitude times `with`, on which the sign of `of` goes.
  static HYMBA_ALWAYS_INLINE Ints add_products(Ints sum, Bytes magnitude, Bytes with, Bytes of) {
    const __m256i ones = _mm256_set1_epi16(1);
#if defined(__GNUC__) && !defined(__clang__)
    // GCC adds the products of many lines in an order of its own, with more of them waiting than there are registers.
    __m256i products;
    __asm__("vpsignb %3, %2, %1\n\tvpmaddubsw %1, %4, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(sum), "=&x"(products)
            : "x"(with), "x"(of), "x"(magnitude), "x"(ones));
    return sum;
#else
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(with, of));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
#endif
  }
};
using Best = Avx2;
#endif

#elif defined(HYMBA_DOT_NEON)

/// sdot: signed by signed bytes.
struct NeonDot {
  static constexpr const char* name = "NEON dot product";
  static constexpr std::int64_t lanes = 4;
  static constexpr bool many_registers = true;
  static constexpr int offset = 0;
  static constexpr int panel_vectors = 4, panel_tokens = 6;
  using Bytes = int8x16_t;
  using Ints = int32x4_t;
  using Floats = float32x4_t;

  static HYMBA_ALWAYS_INLINE Bytes load(const void* p) { return vld1q_s8(static_cast<const std::int8_t*>(p)); }
  static HYMBA_ALWAYS_INLINE void store(void* p, Bytes v) { vst1q_s8(static_cast<std::int8_t*>(p), v); }
  static HYMBA_ALWAYS_INLINE Bytes broadcast(const std::int8_t* p) {
    return vreinterpretq_s8_s32(vdupq_n_s32(four_bytes(p)));
  }
  static HYMBA_ALWAYS_INLINE Bytes shifted(Bytes w) { return w; }
  static HYMBA_ALWAYS_INLINE Ints dot(Ints sum, Bytes w, Bytes x) { return vdotq_s32(sum, w, x); }
  static HYMBA_ALWAYS_INLINE Ints dot_levels(Ints sum, Bytes w, Bytes x) { return dot(sum, w, x); }

  static HYMBA_ALWAYS_INLINE Bytes low_halves(Bytes v) { return vandq_s8(v, vdupq_n_s8(15)); }
  static HYMBA_ALWAYS_INLINE Bytes high_halves(Bytes v) {
    return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4));
  }
  static HYMBA_ALWAYS_INLINE Bytes table(int part, const std::int8_t* p, const std::int8_t* q) {
    return vld1q_s8(part < 2 ? p : q);
  }
  static HYMBA_ALWAYS_INLINE Bytes look_up(Bytes table, Bytes halves) {
    return vqtbl1q_s8(table, vreinterpretq_u8_s8(halves));
  }

  template <int I>
  static HYMBA_ALWAYS_INLINE Bytes spread(Bytes v) {
    return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(v), I));
  }
  static HYMBA_ALWAYS_INLINE Ints words(Bytes v) { return vreinterpretq_s32_s8(v); }
  static HYMBA_ALWAYS_INLINE Bytes bytes(Ints v) { return vreinterpretq_s8_s32(v); }
  static HYMBA_ALWAYS_INLINE Floats floats(Ints v) { return vreinterpretq_f32_s32(v); }
  static HYMBA_ALWAYS_INLINE Ints same(std::int32_t v) { return vdupq_n_s32(v); }
  static HYMBA_ALWAYS_INLINE Ints subtract(Ints a, Ints b) { return vsubq_s32(a, b); }

  static HYMBA_ALWAYS_INLINE std::int32_t sum(Ints v) { return vaddvq_s32(v); }

  static HYMBA_ALWAYS_INLINE Floats load(const float* p) { return vld1q_f32(p); }
  static HYMBA_ALWAYS_INLINE void store(float* p, Floats v) { vst1q_f32(p, v); }
  static HYMBA_ALWAYS_INLINE Floats same(float v) { return vdupq_n_f32(v); }
  static HYMBA_ALWAYS_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static HYMBA_ALWAYS_INLINE Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
  static HYMBA_ALWAYS_INLINE Floats add_scaled(Floats total, Ints v, Floats scale) {
    return vfmaq_f32(total, vcvtq_f32_s32(v), scale);
  }
  static HYMBA_ALWAYS_INLINE Floats scales(const std::byte* p, std::int64_t stride, int count) {
    alignas(16) float all[4];
    for (int i = 0; i < 4; ++i) std::memcpy(all + i, p + std::min(i, count - 1) * stride, sizeof(float));
    return vld1q_f32(all);
  }
};
using Best = NeonDot;

#endif

}  // namespace detail::dot

HYMBA_NAMESPACE_END

#endif  // HYMBA_DOT
