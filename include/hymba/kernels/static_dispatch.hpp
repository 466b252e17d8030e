// SPDX-License-Identifier: Apache-2.0
//
// From run-time sizes to templates, and from one range to tasks: what most kernels do first.
#pragma once

#include <hymba/core/extent.hpp>
#include <hymba/core/macros.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Calls `f(std::integral_constant<int, N>{})` with N = n when n is one of `Known`, with N = hymba::dynamic otherwise:
/// one test per call of a kernel instead of one per element.
template <int... Known, class F>
HYMBA_ALWAYS_INLINE void with_static(std::int64_t n, F&& f) {
  const bool known = ((n == Known && (f(std::integral_constant<int, Known>{}), true)) || ...);
  if (!known) f(std::integral_constant<int, dynamic>{});
}

template <class F, int... I>
HYMBA_ALWAYS_INLINE void unrolled(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
/// f(0), ..., f(N - 1) with constant arguments: a loop the compiler cannot leave rolled, so that arrays of vectors
/// indexed by it stay in registers.
template <int N, class F>
HYMBA_ALWAYS_INLINE void unrolled(F&& f) {
  unrolled(f, std::make_integer_sequence<int, N>{});
}

}  // namespace detail

HYMBA_NAMESPACE_END
