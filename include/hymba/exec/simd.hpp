// SPDX-License-Identifier: Apache-2.0
//
// The one file that includes xsimd. It hides the differences between xsimd 8 and later versions, and adds the few
// operations that kernels need and xsimd does not have: widening loads of the 16-bit formats and their inverse.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/arch.hpp>

#include <xsimd/xsimd.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace arch {
/// The best instruction set the translation unit is compiled for.
using best = simd<xsimd::default_arch>;
}  // namespace arch

/// Vector helpers over one xsimd architecture `A`.
namespace simd {

template <class A>
using floats = xsimd::batch<float, A>;

template <class A>
inline constexpr std::int64_t lanes = static_cast<std::int64_t>(floats<A>::size);

template <class A>
HYMBA_ALWAYS_INLINE float sum(const floats<A>& v) {
#if XSIMD_VERSION_MAJOR >= 9
  return xsimd::reduce_add(v);
#else
  return xsimd::hadd(v);
#endif
}

/// Loads lanes<A> consecutive elements, widened to float.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> load(const float* from) {
  return floats<A>::load_unaligned(from);
}
template <class A, class Half>
HYMBA_ALWAYS_INLINE floats<A> load(const Half* from) {
  alignas(64) float wide[static_cast<std::size_t>(lanes<A>)];
  for (std::int64_t i = 0; i < lanes<A>; ++i) wide[i] = static_cast<float>(from[i]);
  return floats<A>::load_aligned(wide);
}

}  // namespace simd

HYMBA_NAMESPACE_END
