// SPDX-License-Identifier: Apache-2.0
//
// Exponential, sigmoid, silu and softplus on vectors, with bounded error, and the same functions in plain C++.
//
// Bounds are relative, in units of u = 2^-24, and hold with and without fused multiply-add for every finite x whose
// result is a normal number; smaller results become zero or keep an absolute error below 2^-126. They follow from the
// polynomials' own errors (below 2^-27.7, found by Remez exchange) plus one or two u per rounded step; tests sample the
// functions against double. NaN stays NaN.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/simd.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

HYMBA_NAMESPACE_BEGIN

namespace reference {
/// ln(1 + e^x) without overflow.
template <class Real>
Real softplus(Real x) {
  return std::max(x, Real(0)) + std::log1p(std::exp(-std::abs(x)));
}
/// 1 / (1 + e^-x) without overflow.
template <class Real>
Real sigmoid(Real x) {
  const Real e = std::exp(-std::abs(x));
  return (x >= Real(0) ? Real(1) : e) / (Real(1) + e);
}
/// x / (1 + e^-x).
template <class Real>
Real silu(Real x) {
  return std::max(x, std::numeric_limits<Real>::lowest()) * sigmoid(x);
}
}  // namespace reference

namespace simd {

/// Relative error bounds of the functions below, in units of 2^-24.
inline constexpr double exp2_error = 4, exp_error = 4, sigmoid_error = 7, silu_error = 8, softplus_error = 12;

namespace detail {

/// Adding 1.5 * 2^23 rounds a small number to the nearest integer and leaves it in the low mantissa bits; 127 more
/// makes it the exponent field of 2^k.
inline constexpr float exponent_magic = 0x1.8p23f + 127.0f;

/// 2^k for the sum t + exponent_magic, k in [-127, 127]; k = -127 gives zero.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> power_of_two(const floats<A>& sum) {
  const auto bits = std::bit_cast<xsimd::batch<std::int32_t, A>>(sum);
  return std::bit_cast<floats<A>>(xsimd::batch<std::int32_t, A>(bits << 23));
}

}  // namespace detail

/// 2^x for x <= 0, within exp2_error; 0 below -126.5.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> exp2_nonpositive(const floats<A>& x) {
#if defined(__AVX512DQ__)
  if constexpr (lanes<A> == 16) {
    // Two instructions take x apart and put the power together: what is above the integer below x, and 2^floor(x). The
    // polynomial is for [0, 1).
    const floats<A> f(_mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    floats<A> p = simd::fma<A>(floats<A>(0x1.c72118p-13f), f, floats<A>(0x1.461954p-10f));
    p = simd::fma<A>(p, f, floats<A>(0x1.3d28p-7f));
    p = simd::fma<A>(p, f, floats<A>(0x1.c685p-5f));
    p = simd::fma<A>(p, f, floats<A>(0x1.ebfd9ep-3f));
    p = simd::fma<A>(p, f, floats<A>(0x1.62e42ap-1f));
    p = simd::fma<A>(p, f, floats<A>(1.0f));
    return floats<A>(_mm512_scalef_ps(p, x));
  }
#endif
  // The operand order of max keeps NaN on x86.
  const floats<A> t = simd::max<A>(floats<A>(-127.0f), x);
  const floats<A> magic(detail::exponent_magic);
  const floats<A> sum = t + magic;
  const floats<A> f = t - (sum - magic);
  floats<A> p = simd::fma<A>(floats<A>(0x1.41fbc2p-13f), f, floats<A>(0x1.5f3e52p-10f));
  p = simd::fma<A>(p, f, floats<A>(0x1.3b2d4cp-7f));
  p = simd::fma<A>(p, f, floats<A>(0x1.c6aee8p-5f));
  p = simd::fma<A>(p, f, floats<A>(0x1.ebfbdcp-3f));
  p = simd::fma<A>(p, f, floats<A>(0x1.62e430p-1f));
  p = simd::fma<A>(p, f, floats<A>(1.0f));
  return p * detail::power_of_two<A>(sum);
}

/// e^x for x <= 0, within exp_error; 0 below -87.7.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> exp_nonpositive(const floats<A>& x) {
  const floats<A> t = simd::max<A>(floats<A>(-88.03f), x);
  const floats<A> magic(detail::exponent_magic);
  const floats<A> sum = simd::fma<A>(t, floats<A>(1.44269504f), magic);
  const floats<A> k = sum - magic;
  // ln 2 in two parts, the first short enough for an exact product with k.
  floats<A> r = simd::fma<A>(k, floats<A>(-0x1.62e4p-1f), t);
  r = simd::fma<A>(k, floats<A>(-0x1.7f7d1cp-20f), r);
  floats<A> q = simd::fma<A>(floats<A>(0x1.6a242ep-10f), r, floats<A>(0x1.1239e2p-7f));
  q = simd::fma<A>(q, r, floats<A>(0x1.5558f2p-5f));
  q = simd::fma<A>(q, r, floats<A>(0x1.555492p-3f));
  q = simd::fma<A>(q, r, floats<A>(0x1.fffffcp-2f));
  const floats<A> p = simd::fma<A>(r * r, q, r) + floats<A>(1.0f);
  return p * detail::power_of_two<A>(sum);
}

/// 1 / (1 + e^-x), within sigmoid_error.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> sigmoid(const floats<A>& x) {
  const floats<A> one(1.0f);
  const floats<A> e = exp_nonpositive<A>(-xsimd::abs(x));
  return xsimd::select(x >= floats<A>(0.0f), one, e) / (one + e);
}

/// x / (1 + e^-x), within silu_error; -0 at minus infinity.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> silu(const floats<A>& x) {
  return simd::max<A>(floats<A>(std::numeric_limits<float>::lowest()), x) * sigmoid<A>(x);
}

/// ln(1 + e^x), within softplus_error.
template <class A>
HYMBA_ALWAYS_INLINE floats<A> softplus(const floats<A>& x) {
  const floats<A> e = exp_nonpositive<A>(-xsimd::abs(x));
  // ln(1 + e) = 2 artanh(e / (2 + e)), a series in the square of its argument.
  const floats<A> s = e / (e + floats<A>(2.0f));
  const floats<A> t = s * s;
  floats<A> q = simd::fma<A>(floats<A>(0x1.1f06bap-3f), t, floats<A>(0x1.1eb364p-3f));
  q = simd::fma<A>(q, t, floats<A>(0x1.99d2a2p-3f));
  q = simd::fma<A>(q, t, floats<A>(0x1.5555p-2f));
  const floats<A> twice = s + s;
  return simd::max<A>(floats<A>(0.0f), x) + simd::fma<A>(twice * t, q, twice);
}

}  // namespace simd

HYMBA_NAMESPACE_END
