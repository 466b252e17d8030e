// SPDX-License-Identifier: Apache-2.0
//
// Conversion of float arrays to the storage formats.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// `to[i] = To(from[i])` for i < n; `To` is float, bf16 or f16.
///
///     template <class To> static void run(const float* from, std::int64_t n, To* to);
///
/// Rounds to nearest, ties to even, with the bits of `bf16(float)` and `f16(float)` of core/types.hpp: NaN, infinities
/// and subnormals included. Runs on the caller; the arrays do not overlap (float to float they may be the same).
struct Convert {};
}  // namespace op

namespace reference {
/// op::Convert in plain loops.
template <class From, class To>
void convert(const From* from, std::int64_t n, To* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = To(from[i]);
}
}  // namespace reference

template <>
struct kernel_for<op::Convert, arch::scalar> {
  template <class To, class From>
  static void run(const From* from, std::int64_t n, To* to) {
    reference::convert(from, n, to);
  }
};

template <class A>
struct kernel_for<op::Convert, arch::simd<A>> {
  template <class To>
  static void run(const float* from, std::int64_t n, To* to) {
    constexpr std::int64_t L = simd::lanes<A>;
    std::int64_t i = 0;
    for (; i + L <= n; i += L) simd::store<A>(to + i, simd::load<A>(from + i));
    if (i < n) simd::store_partial<A>(to + i, simd::load_partial<A>(from + i, n - i), n - i);
  }
};

HYMBA_NAMESPACE_END
