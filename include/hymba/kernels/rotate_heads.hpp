// SPDX-License-Identifier: Apache-2.0
//
// Rotation of queries and keys before keys are rounded with one scale each (kernels/rotation.hpp).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/rotation.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace op {
/// Rotates every head of x [T, heads * width] in place, as reference::rotate does a row of `width` numbers: a query and
/// a key that are both rotated have the product that they had. Of a head with a number that is not finite, or beyond
/// 2^123 or so, none is finite behind it.
///
///     static void run(E& exec, Scratch scratch, MatrixView<float> x, int heads, int width);
///
/// Same bits on every architecture, on any number of threads. Source: QuaRot (arXiv 2404.00456), section 4, of its
/// rotations the one of queries and keys behind their rotary embedding.
struct RotateHeads {};
}  // namespace op

template <>
struct kernel_for<op::RotateHeads, arch::scalar> {
  template <class Exec, class T>
  static void run(Exec&, Scratch, MatrixView<T> x, int heads, int width) {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) reference::rotate(x.row(t) + h * width, width);
    }
  }
};

template <class A>
struct kernel_for<op::RotateHeads, arch::simd<A>> {
  template <class Exec>
  static void run(Exec& exec, Scratch, MatrixView<float> x, int heads, int width) {
    detail::for_parts(exec, x.rows, 1, 2 * static_cast<std::int64_t>(heads) * width,
                      [&](std::int64_t first, std::int64_t last, int) {
                        for (std::int64_t t = first; t < last; ++t) {
                          for (std::int64_t h = 0; h < heads; ++h) detail::rotate<A>(x.row(t) + h * width, width);
                        }
                      });
  }
};

HYMBA_NAMESPACE_END
