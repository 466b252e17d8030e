// SPDX-License-Identifier: Apache-2.0
//
// Sizes that are either part of a type or carried at run time, in the manner of Eigen and std::mdspan.
#pragma once

#include <hymba/core/macros.hpp>

HYMBA_NAMESPACE_BEGIN

/// As a template argument: "this size is known at run time only".
inline constexpr int dynamic = -1;

/// One size. `Extent<64>` is an empty type that converts to 64; `Extent<dynamic>` holds an int.
template <int N>
struct Extent {
  static_assert(N >= 0, "hymba: an extent is a number >= 0, or hymba::dynamic");
  constexpr Extent() = default;
  /// A static extent ignores the value, so that static and dynamic parts are built by the same code; who cares compares
  /// afterwards (see io/architecture_from.hpp).
  constexpr explicit Extent(int) {}
  static constexpr bool is_static = true;
  constexpr operator int() const { return N; }
};

template <>
struct Extent<dynamic> {
  int value = 0;
  constexpr Extent() = default;
  constexpr explicit Extent(int n) : value(n) {}
  static constexpr bool is_static = false;
  constexpr operator int() const { return value; }
};

HYMBA_NAMESPACE_END
