// SPDX-License-Identifier: Apache-2.0
//
// The product of activations and bf16 weights on dot products of bf16.
#pragma once

#include <hymba/core/macros.hpp>

#if HYMBA_DOT_BF16

#include <hymba/core/types.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/block_grid.hpp>
#include <hymba/kernels/dot/bf16_unit.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/kernels/step_shares.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail::dot {

/// op::Gemm by Bf16Unit: the product on vectors of floats (kernels/gemm.hpp) with another multiplication, but that
/// activations are rounded. A few rows of them are rounded before the product, many when they are packed for it.
struct Bf16Gemm {
  using Impl = GemmAlongColumns<Bf16Unit>;
  using One = GemmAlongColumns<Bf16Unit, 8>;
  static constexpr std::int64_t few = Impl::direct_rows<Weights::bf16>;
  static constexpr std::int64_t line = 64 / sizeof(bf16);  ///< numbers in a cache line, with which rounded rows begin

  static constexpr std::size_t rounded_bytes(std::int64_t rows, std::int64_t in) {
    return static_cast<std::size_t>(rows * round_up(in, line)) * sizeof(bf16);
  }
  static constexpr std::size_t shared_bytes(std::int64_t rows, std::int64_t in) {
    return rows <= 1 ? 0 : rounded_bytes(std::min(rows, few), in);
  }
  static constexpr std::size_t scratch_bytes(std::int64_t rows, std::int64_t in, std::int64_t out) {
    return std::max(rounded_bytes(1, in), Impl::scratch_bytes(rows, in, out));
  }

  template <class Exec>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, const WeightMatrix<Weights::bf16>& w,
                  const float* bias, MatrixView<float> y, Store store) {
    if (x.rows > few) {
      Impl::run_packed(exec, scratch, x, w, bias, y, store);
    } else if (x.rows == 1) {
      // Every thread rounds the token for itself: less work than to wait for one that does.
      const auto own = [&](int thread) { return rounded(scratch.of<bf16>(thread), x); };
      One::run_direct(exec, 1, own, w, bias, y, store);
    } else {
      auto* const memory = reinterpret_cast<bf16*>(scratch.shared);
      const std::int64_t stride = round_up(x.cols, line);
      for_parts(exec, x.rows, 1, x.cols, [&](std::int64_t first, std::int64_t last, int) {
        rounded(memory + first * stride, x.row_range(first, last - first));
      });
      const MatrixView<const bf16> all(memory, x.rows, x.cols, stride);
      const auto same = [&](int) { return all; };
      Impl::run_direct(exec, x.rows, same, w, bias, y, store);
    }
  }

 private:
  /// x rounded, in `memory` [rows][whole lines].
  static MatrixView<const bf16> rounded(bf16* memory, MatrixView<const float> x) {
    constexpr std::int64_t C = Bf16Unit::columns;
    static_assert(line % C == 0);
    const std::int64_t stride = round_up(x.cols, line);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const float* const from = x.row(t);
      bf16* const to = memory + t * stride;
      std::int64_t k = 0;
      for (; k + C <= x.cols; k += C) Bf16Unit::store(to + k, Bf16Unit::load(from + k));
      if (k < x.cols) Bf16Unit::store(to + k, Bf16Unit::load_partial(from + k, x.cols - k));
    }
    return {memory, x.rows, x.cols, stride};
  }
};

}  // namespace detail::dot

HYMBA_NAMESPACE_END

#endif  // HYMBA_DOT_BF16
