// SPDX-License-Identifier: Apache-2.0
//
// Dot products of bf16 as a unit of attention over bf16 caches, and where there are none of 16-bit integers, int8 ones.
#pragma once

#include <hymba/core/macros.hpp>

#if HYMBA_DOT_BF16

#include <hymba/core/cached_row.hpp>
#include <hymba/core/types.hpp>
#include <hymba/exec/simd.hpp>
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
  static constexpr bool exact = false;
  static constexpr std::int64_t L = Bf16Unit::lanes;

  static HYMBA_ALWAYS_INLINE Sums no_sums() { return Bf16Unit::no_sums(); }
  static HYMBA_ALWAYS_INLINE Sums floats(const Sums& sums) { return sums; }
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
      return Bf16Unit::round(wide(from, count), count > L ? wide(from + L, count - L) : Bf16Unit::no_sums());
    } else {
      return count >= 2 * L ? Bf16Unit::load(from) : Bf16Unit::load_partial(from, count);
    }
  }
  template <class T>
  static HYMBA_ALWAYS_INLINE Operand columns(const T* const* rows, std::int64_t d, std::int64_t count) {
    if constexpr (std::is_same_v<T, bf16>) {
      if (count >= L) return Bf16Unit::neighbours(rows[0] + d, rows[1] + d);
    }
    return together({wide(rows[0] + d, count), wide(rows[1] + d, count)});
  }
  static HYMBA_ALWAYS_INLINE Operand together(const Sums (&v)[2]) {
    return Bf16Unit::interleave(Bf16Unit::round(v[0], v[1]));
  }

 private:
  /// L numbers of a row, zeros from the `count`-th on.
  template <class T>
  static HYMBA_ALWAYS_INLINE Sums wide(const T* from, std::int64_t count) {
    return count >= L ? simd::load<A>(from) : simd::load_partial<A>(from, count);
  }
};

}  // namespace detail::dot

HYMBA_NAMESPACE_END

#endif  // HYMBA_DOT_BF16
