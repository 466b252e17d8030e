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

/// Work below which a task is not worth a thread, counted in simple operations on one float each: a few microseconds.
inline constexpr std::int64_t task_work = 32768;

/// Splits [0, n) into at most one contiguous part per thread and runs `body(first, last, thread)` on each. Parts start
/// at multiples of `unit`; `work` is the work of one element of the range. A small job stays on the caller.
template <class Exec, class Body>
void for_parts(Exec& exec, std::int64_t n, std::int64_t unit, std::int64_t work, Body&& body) {
  if (n <= 0) return;
  const std::int64_t units = (n + unit - 1) / unit;
  const std::int64_t worth = std::max<std::int64_t>(1, n * work / task_work);
  const std::int64_t parts = std::min({units, worth, static_cast<std::int64_t>(exec.threads())});
  exec.parallel_for(parts, [&](std::int64_t part, int thread) noexcept {
    const std::int64_t first = units * part / parts * unit;
    const std::int64_t last = std::min(n, units * (part + 1) / parts * unit);
    body(first, last, thread);
  });
}

}  // namespace detail

HYMBA_NAMESPACE_END
