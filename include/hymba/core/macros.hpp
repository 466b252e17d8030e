// SPDX-License-Identifier: Apache-2.0
//
// Version, namespaces and compiler macros.
//
// Public names live in `hymba::` through an inline namespace whose name encodes the configuration that changes what a
// type or an inline function means (instruction set, OpenMP). Translation units compiled for different instruction sets
// of the list below therefore do not share symbols: the linker cannot pick an AVX-512 body for a baseline build.
#pragma once

#define HYMBA_VERSION_MAJOR 0
#define HYMBA_VERSION_MINOR 1
#define HYMBA_VERSION_PATCH 0
#define HYMBA_VERSION_STRING "0.1.0"

// Whether arch::dot multiplies bf16 weights, and what attention reads from bf16 caches, on dot products of bf16
// (vdpbf16ps, bfdot): 0 or 1, and 0 where the translation unit is compiled for none. Who knows better than the rule below
// defines it, for all translation units alike. Zen 4 does twice as many operations a cycle with vdpbf16ps as with
// multiply-adds of floats. On Intel's processors vdpbf16ps gains nothing: those from Sapphire Rapids on also have
// AVX512-FP16, by which they are told from Zen 4 and 5; Cooper Lake does not, so that the rule is wrong there.
#if (defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)) || \
    (defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC))
#if !defined(HYMBA_DOT_BF16) && defined(__AVX512FP16__)
#define HYMBA_DOT_BF16 0
#elif !defined(HYMBA_DOT_BF16)
#define HYMBA_DOT_BF16 1
#endif
#else
#undef HYMBA_DOT_BF16
#define HYMBA_DOT_BF16 0
#endif

#if defined(__AVX512BF16__) && HYMBA_DOT_BF16
#define HYMBA_ABI_ARCH avx512bf16dot
#elif defined(__AVX512BF16__)
#define HYMBA_ABI_ARCH avx512bf16
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HYMBA_ABI_ARCH avx512vnni
#elif defined(__AVX512BW__)
#define HYMBA_ABI_ARCH avx512bw
#elif defined(__AVX512F__)
#define HYMBA_ABI_ARCH avx512f
#elif defined(__AVXVNNI__)
#define HYMBA_ABI_ARCH avxvnni
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HYMBA_ABI_ARCH avx2fma_f16c
#elif defined(__AVX2__) && defined(__FMA__)
#define HYMBA_ABI_ARCH avx2fma
#elif defined(__AVX2__)
#define HYMBA_ABI_ARCH avx2
#elif defined(__AVX__)
#define HYMBA_ABI_ARCH avx
#elif defined(__SSE4_2__)
#define HYMBA_ABI_ARCH sse42
#elif defined(__x86_64__) || defined(_M_X64)
#define HYMBA_ABI_ARCH x86_64
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD) && HYMBA_DOT_BF16
#define HYMBA_ABI_ARCH aarch64bf16dot
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define HYMBA_ABI_ARCH aarch64dot
#elif defined(__aarch64__)
#define HYMBA_ABI_ARCH aarch64
#else
#define HYMBA_ABI_ARCH generic
#endif

#if defined(_OPENMP)
#define HYMBA_ABI_THREADS omp
#else
#define HYMBA_ABI_THREADS noomp
#endif

#define HYMBA_DETAIL_CONCAT3(a, b, c) a##_##b##_##c
#define HYMBA_DETAIL_ABI(arch, threads) HYMBA_DETAIL_CONCAT3(v0, arch, threads)
#define HYMBA_ABI_NAMESPACE HYMBA_DETAIL_ABI(HYMBA_ABI_ARCH, HYMBA_ABI_THREADS)

#define HYMBA_NAMESPACE_BEGIN \
  namespace hymba {           \
  inline namespace HYMBA_ABI_NAMESPACE {
#define HYMBA_NAMESPACE_END \
  }                         \
  }

#if defined(__GNUC__) || defined(__clang__)
#define HYMBA_ALWAYS_INLINE inline __attribute__((always_inline))
#define HYMBA_NEVER_INLINE __attribute__((noinline))
#define HYMBA_RESTRICT __restrict__
#elif defined(_MSC_VER)
#define HYMBA_ALWAYS_INLINE __forceinline
#define HYMBA_NEVER_INLINE __declspec(noinline)
#define HYMBA_RESTRICT __restrict
#else
#define HYMBA_ALWAYS_INLINE inline
#define HYMBA_NEVER_INLINE
#define HYMBA_RESTRICT
#endif
