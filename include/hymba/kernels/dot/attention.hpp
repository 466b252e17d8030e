// SPDX-License-Identifier: Apache-2.0
//
// op::Attention on dot products: over int8 caches on those of 16-bit integers, over bf16 ones on those of bf16.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/attention_engine.hpp>
#include <hymba/kernels/dot/attention_bf16.hpp>
#include <hymba/kernels/dot/int16_unit.hpp>

#include <cstdint>

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
struct kernel_for<op::Attention, arch::dot<Base>>
    : detail::AttentionByCache<typename detail::dot::AttentionOver<std::int8_t, Base>::type,
                               typename detail::dot::AttentionOver<bf16, Base>::type, Base> {};

#endif  // HYMBA_DOT

HYMBA_NAMESPACE_END
