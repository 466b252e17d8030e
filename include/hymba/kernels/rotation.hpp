// SPDX-License-Identifier: Apache-2.0
//
// Rotations that make blocks of numbers even, so that rounding them with one scale costs less: orthonormal Hadamard
// matrices. Rows of weights are stored rotated and activations are rotated before the product, which leaves it as it
// is: (R w) . (R x) = w . x. The idea of QuIP (arXiv 2307.13304) and QuaRot (arXiv 2404.00456).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/exec/simd.hpp>

#include <bit>
#include <cmath>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Columns that are rotated together where `left` are left: as many as a scale has, then the largest power of two that
/// there are. A row of any length thus falls into pieces, each within a quantised block.
constexpr std::int64_t rotated_piece(std::int64_t left) {
  return left >= quantised_block ? quantised_block
                                 : static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(left)));
}
static_assert(std::has_single_bit(static_cast<std::uint64_t>(quantised_block)));

}  // namespace detail

namespace reference {

/// Rotates a row in place: every piece of n numbers is multiplied by the Hadamard matrix of n rows over the square root
/// of n. It is symmetric and its own inverse.
template <class Real>
void rotate(Real* row, std::int64_t cols) {
  for (std::int64_t first = 0, n = 0; first < cols; first += n) {
    n = hymba::detail::rotated_piece(cols - first);
    Real* const x = row + first;
    for (std::int64_t stride = 1; stride < n; stride *= 2) {
      for (std::int64_t i = 0; i < n; ++i) {
        if ((i & stride) != 0) continue;
        const Real a = x[i], b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
      }
    }
    const Real scale = static_cast<Real>(1 / std::sqrt(static_cast<double>(n)));
    for (std::int64_t i = 0; i < n; ++i) x[i] *= scale;
  }
}

}  // namespace reference

namespace detail {

/// One step of a Hadamard matrix within a register: lane i becomes the sum of lanes i and i ^ Stride where i has no bit
/// Stride, else their difference.
template <class A, int Stride>
HYMBA_ALWAYS_INLINE simd::floats<A> sums_and_differences(const simd::floats<A>& v) {
  constexpr std::int64_t L = simd::lanes<A>;
  struct Signs {
    alignas(64) float at[L] = {};
    constexpr Signs() {
      for (std::int64_t i = 0; i < L; ++i) at[i] = (i & Stride) != 0 ? -1.0f : 1.0f;
    }
  };
  static constexpr Signs signs{};
  // The product with one is exact.
  return simd::fma<A>(v, simd::floats<A>::load_aligned(signs.at), simd::exchange<A, Stride>(v));
}

/// Rotates `n` numbers, a power of two up to N registers full.
template <class A, int N = static_cast<int>(quantised_block / simd::lanes<A>)>
void rotate_piece(float* x, std::int64_t n, float scale) {
  constexpr std::int64_t L = simd::lanes<A>;
  static_assert(L <= 16);
  if (n < N * L) {
    if constexpr (N > 1) {
      rotate_piece<A, N / 2>(x, n, scale);
    } else {
      reference::rotate(x, n);
    }
    return;
  }
  simd::floats<A> v[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    v[i] = sums_and_differences<A, 1>(simd::load<A>(x + i * L));
    v[i] = sums_and_differences<A, 2>(v[i]);
    if constexpr (L > 4) v[i] = sums_and_differences<A, 4>(v[i]);
    if constexpr (L > 8) v[i] = sums_and_differences<A, 8>(v[i]);
  }
#pragma GCC unroll 8
  for (int stride = 1; stride < N; stride *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if ((i & stride) != 0) continue;
      const simd::floats<A> a = v[i], b = v[i + stride];
      v[i] = a + b;
      v[i + stride] = a - b;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) simd::store<A>(x + i * L, v[i] * simd::broadcast<A>(scale));
}

/// reference::rotate in single precision: the same bits on every architecture.
template <class A = xsimd::default_arch>
void rotate(float* row, std::int64_t cols) {
  for (std::int64_t first = 0, n = 0; first < cols; first += n) {
    n = rotated_piece(cols - first);
    rotate_piece<A>(row + first, n, static_cast<float>(1 / std::sqrt(static_cast<double>(n))));
  }
}

}  // namespace detail

HYMBA_NAMESPACE_END
