// SPDX-License-Identifier: Apache-2.0
//
// Float rows to signed bytes with one scale: keys and values on their way into an int8 cache.
#pragma once

#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// Rounds a row to multiples of one scale, which it returns: `from[i]` is nearly `scale * to[i]`, i < n.
///
///     static RowScale run(const float* from, std::int64_t n, std::int8_t* to);
///
/// The scale is the largest magnitude over 127, rounded to bf16; the bytes are nearest to the numbers over the scale as
/// rounded, from -127 to 127, so that no number is off by more than half a scale (and some roundings of float). A row
/// that holds NaN or an infinity becomes zeros with a scale of NaN, which shows in all that the row is multiplied to. A
/// row of numbers below 2^-118 becomes zeros with a scale of zero. Same bits on every architecture. Runs on the caller;
/// the arrays do not overlap.
struct QuantiseRow {};
}  // namespace op

namespace detail {

/// The scale of a row whose largest magnitude is `largest`, NaN if one of its numbers is not finite.
inline RowScale row_scale(float largest) {
  if (!(largest <= std::numeric_limits<float>::max())) return RowScale(std::numeric_limits<float>::quiet_NaN());
  return largest < least_quantised ? RowScale() : RowScale(largest / 127.0f);
}
/// What the row's numbers are multiplied by: zero where the bytes are to be zero.
inline float inverse_of(RowScale scale) {
  const auto value = static_cast<float>(scale);
  return value > 0 ? 1.0f / value : 0.0f;
}

}  // namespace detail

namespace reference {
/// op::QuantiseRow in plain loops. A scale rounded down by 1/256 leaves 127.5 (1 - 2^-14) at most: bytes need no clamp.
template <class Real>
RowScale quantise_row(const Real* from, std::int64_t n, std::int8_t* to) {
  float largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto value = static_cast<float>(from[i]);
    if (!std::isfinite(value)) largest = std::numeric_limits<float>::quiet_NaN();
    if (std::fabs(value) > largest) largest = std::fabs(value);  // false for NaN
  }
  const RowScale scale = hymba::detail::row_scale(largest);
  const float inverse = hymba::detail::inverse_of(scale);
  for (std::int64_t i = 0; i < n; ++i) {
    to[i] =
        inverse > 0 ? static_cast<std::int8_t>(std::nearbyint(static_cast<float>(from[i]) * inverse)) : std::int8_t{0};
  }
  return scale;
}
}  // namespace reference

template <>
struct kernel_for<op::QuantiseRow, arch::scalar> {
  template <class Real>
  static RowScale run(const Real* from, std::int64_t n, std::int8_t* to) {
    return reference::quantise_row(from, n, to);
  }
};

template <class A>
struct kernel_for<op::QuantiseRow, arch::simd<A>> {
  static RowScale run(const float* from, std::int64_t n, std::int8_t* to) {
    constexpr std::int64_t L = simd::lanes<A>;
    using V = simd::floats<A>;
    V most = simd::zero<A>(), wrong = simd::zero<A>();
    std::int64_t i = 0;
    const auto look = [&](const V& v) {
      most = simd::max<A>(most, xsimd::abs(v));
      wrong = wrong + v * simd::zero<A>();  // NaN once a number was not finite: a maximum may lose it
    };
    for (; i + L <= n; i += L) look(simd::load<A>(from + i));
    if (i < n) look(simd::load_partial<A>(from + i, n - i));
    const float lost = simd::sum<A>(wrong);
    const RowScale scale = detail::row_scale(lost == 0 ? simd::max_lane<A>(most) : lost);
    const float inverse = detail::inverse_of(scale);
    if (!(inverse > 0)) {
      std::fill_n(to, n, std::int8_t{0});
      return scale;
    }
    const V by(inverse);
    for (i = 0; i + L <= n; i += L) simd::store<A>(to + i, simd::load<A>(from + i) * by);
    if (i < n) {
      std::int8_t all[static_cast<std::size_t>(L)];
      simd::store<A>(all, simd::load_partial<A>(from + i, n - i) * by);
      std::copy_n(all, n - i, to + i);
    }
    return scale;
  }
};

HYMBA_NAMESPACE_END
