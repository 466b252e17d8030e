// SPDX-License-Identifier: Apache-2.0
//
// op::Attention on dot products: over int8 caches on those of 16-bit integers, over bf16 ones on those of bf16.
#pragma once

#include <hymba/core/cached_row.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/attention_engine.hpp>
#include <hymba/kernels/dot/attention_bf16.hpp>
#include <hymba/kernels/dot/int16_unit.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

#if defined(HYMBA_DOT)

namespace detail::dot {

/// What attention over rows of E runs on: a kernel for op::Attention.
template <class E, class Base>
struct AttentionOver {
  using type = kernel_for<op::Attention, Base>;
};
#if HYMBA_DOT_BF16
template <class Base>
struct AttentionOver<bf16, Base> {
  using type = AttentionEngine<AttentionBf16::A, AttentionInVectors<AttentionBf16>>;
};
#endif
#if defined(HYMBA_DOT_INT16)
template <class Base>
struct AttentionOver<std::int8_t, Base> {
  using type = AttentionEngine<AttentionInt16::A, AttentionInVectors<AttentionInt16>>;
};
#elif HYMBA_DOT_BF16
template <class Base>
struct AttentionOver<std::int8_t, Base> : AttentionOver<bf16, Base> {};
#endif

}  // namespace detail::dot

/// op::Attention over int8 caches with queries and weights rounded to integers of 16 bits (nearest even), each row's
/// with a scale, weights' with one for each block of positions; sums of products are exact. Over bf16 caches, where
/// HYMBA_DOT_BF16 is 1, and on NEON over both, queries and weights are rounded to bf16 (nearest even; subnormals become
/// zero), and sums are in single precision as the instruction forms them. Scores and softmax are in single precision.
/// Over other caches it is that of Base.
template <class Base>
struct kernel_for<op::Attention, arch::dot<Base>> {
  static constexpr std::size_t scratch_bytes(const AttentionShape& shape, std::int64_t max_rows) {
    return std::max({detail::dot::AttentionOver<std::int8_t, Base>::type::scratch_bytes(shape, max_rows),
                     detail::dot::AttentionOver<bf16, Base>::type::scratch_bytes(shape, max_rows),
                     kernel_for<op::Attention, Base>::scratch_bytes(shape, max_rows)});
  }

  template <class E, class Exec>
  static void run(Exec& exec, Scratch scratch, const AttentionShape& shape, MatrixView<const float> q,
                  std::span<const AttentionSequence<E>> sequences, MatrixView<float> out) {
    detail::dot::AttentionOver<E, Base>::type::template run<E>(exec, scratch, shape, q, sequences, out);
  }
};

#endif  // HYMBA_DOT

HYMBA_NAMESPACE_END
