// SPDX-License-Identifier: Apache-2.0
//
// Whether the processor has the dot products that a translation unit was compiled for: asked at run time.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/formats.hpp>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

HYMBA_NAMESPACE_BEGIN

namespace detail {

inline bool ask_for_dot() noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  // Also asks whether the system saves the registers.
#if HYMBA_DOT_BF16
  if (!__builtin_cpu_supports("avx512bf16")) return false;
#endif
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__) && defined(__FMA__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
#if defined(__AVXVNNI__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned avx_vnni = 1u << 4;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & avx_vnni) != 0;
#else
  return true;
#endif
#else
  return false;
#endif
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#if defined(__linux__)
#if HYMBA_DOT_BF16
  constexpr unsigned long bf16_products = 1ul << 14;  // HWCAP2_BF16
  if ((getauxval(AT_HWCAP2) & bf16_products) == 0) return false;
#endif
  constexpr unsigned long dot_products = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & dot_products) != 0;
#else
  return true;  // Apple's processors of 64 bits have those of bytes from the A13 on, those of bf16 from the M2 on
#endif
#else
  return false;
#endif
}

}  // namespace detail

/// Whether the processor has the dot products that arch::dot uses in this translation unit, those of bytes and, where
/// HYMBA_DOT_BF16 is 1, those of bf16; until a call has returned true, nothing may run on it. False where the unit is
/// compiled for none.
inline bool dot_available() noexcept {
  static const bool available = detail::ask_for_dot();
  return available;
}

/// Whether arch::dot has products of its own, in this translation unit, with weights in format `w`; with others it is
/// its base.
constexpr bool dot_takes(Weights w) noexcept {
  return w == Weights::int8 || w == Weights::int4 || (HYMBA_DOT_BF16 != 0 && w == Weights::bf16);
}

HYMBA_NAMESPACE_END
