// SPDX-License-Identifier: Apache-2.0
//
// Architecture tags: what a kernel is specialised for. A tag is part of the type of everything that uses it, so code
// compiled for two instruction sets never shares a symbol.
#pragma once

#include <hymba/core/macros.hpp>

HYMBA_NAMESPACE_BEGIN

namespace arch {

/// Plain C++ loops: the reference of every kernel run in single precision. Runs anywhere, fast nowhere.
struct scalar {};

/// Vector code through xsimd; `A` is an xsimd architecture such as xsimd::avx2 (see exec/simd.hpp for `arch::best`).
template <class A>
struct simd {};

/// Matrix products and, over bf16 and int8 caches, attention on AMX tiles, everything else as on `Base`. Operands are
/// rounded to bf16, or, beside int8 and int4 weights, activations to signed bytes; sums are in single precision.
/// Needs kernels/amx/gemm.hpp (for training train/kernels/products.hpp), a translation unit compiled for AMX, and
/// amx_available() (exec/amx.hpp) at run time.
template <class Base>
struct amx {};

/// Matrix products with int8 and int4 weights on dot products of bytes (AVX-512 VNNI, AVX-VNNI, AVX2, NEON), attention
/// over int8 caches on those of 16-bit integers (but for NEON) and, where HYMBA_DOT_BF16 (core/macros.hpp) is 1, products
/// with bf16 weights and attention over bf16 caches on those of bf16 (AVX-512 BF16; NEON over int8 caches too);
/// everything else as on `Base`. Beside bytes activations are rounded to signed bytes, and the products have the bits of
/// arch::amx; on dot products of bf16 activations, or queries and softmax weights, are rounded to bf16, on those of
/// 16-bit integers queries and softmax weights to 16 bits. Needs kernels/dot/gemm.hpp, a translation unit compiled for one of them, and dot_available()
/// (exec/dot.hpp) at run time.
template <class Base>
struct dot {};

/// The architecture of products that leave activations as they are beside every format: what lies under tiles and dot
/// products.
template <class Arch>
struct unrounded {
  using type = Arch;
};
template <class Base>
struct unrounded<amx<Base>> : unrounded<Base> {};
template <class Base>
struct unrounded<dot<Base>> : unrounded<Base> {};
template <class Arch>
using unrounded_t = typename unrounded<Arch>::type;

}  // namespace arch

HYMBA_NAMESPACE_END
