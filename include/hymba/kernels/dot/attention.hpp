// SPDX-License-Identifier: Apache-2.0
//
// op::Attention over bf16 and int8 caches on dot products of bf16, for prefill and decode.
#pragma once

#include <hymba/core/macros.hpp>

#if HYMBA_DOT_BF16

#include <hymba/core/cached_row.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/attention_engine.hpp>
#include <hymba/kernels/dot/bf16_unit.hpp>

#include <cstdint>
#include <type_traits>

HYMBA_NAMESPACE_BEGIN

namespace detail::dot {

/// Dot products of bf16 as a unit of AttentionInVectors (kernels/attention.hpp): queries, keys, values and weights in
/// bf16, pairs of them in a lane; scores, softmax and sums in single precision. Keys of a bf16 cache are operands as
/// they lie; two rows of values are interleaved. Signed bytes are bf16 exactly.
struct AttentionBf16 {
  using A = Bf16Unit::A;
  using Number = bf16;
  using Operand = Bf16Unit::Vector;
  using Sums = Bf16Unit::Sums;
  static constexpr int step = 2;
  static constexpr std::int64_t L = Bf16Unit::lanes;

  static HYMBA_ALWAYS_INLINE Operand load(const bf16* from) { return Bf16Unit::load(from); }
  static HYMBA_ALWAYS_INLINE void store(bf16* to, Operand v) { Bf16Unit::store(to, v); }
  static HYMBA_ALWAYS_INLINE Operand same(const bf16* two) { return Bf16Unit::same(two); }
  static HYMBA_ALWAYS_INLINE Operand pinned(Operand v) { return Bf16Unit::pinned(v); }
  static HYMBA_ALWAYS_INLINE Sums multiply_add(Operand a, Operand b, const Sums& sums) {
    return Bf16Unit::multiply_add(a, b, sums);
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Operand row(const T* from, std::int64_t count) {
    if constexpr (scaled_rows<T>) {
      return Bf16Unit::round(floats(from, count), count > L ? floats(from + L, count - L) : Bf16Unit::no_sums());
    } else {
      return count >= 2 * L ? Bf16Unit::load(from) : Bf16Unit::load_partial(from, count);
    }
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Operand columns(const T* const* rows, std::int64_t d, std::int64_t count) {
    if constexpr (std::is_same_v<T, bf16>) {
      if (count >= L) return Bf16Unit::neighbours(rows[0] + d, rows[1] + d);
    }
    return together({floats(rows[0] + d, count), floats(rows[1] + d, count)});
  }
  static HYMBA_ALWAYS_INLINE Operand together(const Sums (&v)[2]) {
    return Bf16Unit::interleave(Bf16Unit::round(v[0], v[1]));
  }

 private:
  /// L numbers of a row, zeros from the `count`-th on.
  template <class T>
  static HYMBA_ALWAYS_INLINE Sums floats(const T* from, std::int64_t count) {
    return count >= L ? simd::load<A>(from) : simd::load_partial<A>(from, count);
  }
};

}  // namespace detail::dot

/// op::Attention over bf16 and int8 caches with queries and weights rounded to bf16 too (nearest even; subnormals
/// become zero), as on tiles (kernels/amx/attention.hpp), but that weights below the line are not; scores, softmax and
/// sums are in single precision, sums as the instruction forms them. Over other caches it is that of Base.
template <class Base>
struct kernel_for<op::Attention, arch::dot<Base>>
    : detail::AttentionInBf16<detail::AttentionEngine<detail::dot::AttentionBf16::A,
                                                      detail::AttentionInVectors<detail::dot::AttentionBf16>>,
                              Base> {};

HYMBA_NAMESPACE_END

#endif  // HYMBA_DOT_BF16
