// SPDX-License-Identifier: Apache-2.0
//
// Activations as signed bytes with a scale for each block of 256 columns: what int8 and int4 weights are multiplied by
// where integers are. One rule for every architecture that does, so that their products are of the same numbers.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/quantised.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/rotation.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Quantises `count` <= 256 numbers to multiples of their largest magnitude over 127 and returns that multiple; writes
/// whole lines of 64 bytes, zeros behind the last number. A NaN or an infinity makes the result NaN or infinite, so
/// that it shows in what the row is multiplied to; the bytes are then any. With `rotated` they are rotated before
/// (kernels/rotation.hpp).
template <class A = xsimd::default_arch>
float quantise_activations(const float* from, std::int64_t count, std::int8_t* to, bool rotated) {
  alignas(64) float turned[quantised_block];
  if (rotated) {
    std::memcpy(turned, from, static_cast<std::size_t>(count) * sizeof(float));
    rotate<A>(turned, count);
    from = turned;
  }
  // As integers: the larger magnitude has the larger bits, and NaN the largest.
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, from + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  const auto peak = std::bit_cast<float>(largest);
  // What is so small counts as zero: its inverse would be infinite.
  const bool tiny = peak < least_quantised;
  const simd::floats<A> inverse = simd::broadcast<A>(tiny ? 0.0f : 127.0f / peak);
  std::int64_t i = 0;
  for (; i + simd::lanes<A> <= count; i += simd::lanes<A>) simd::store<A>(to + i, simd::load<A>(from + i) * inverse);
  if (i < count) {
    simd::store<A>(to + i, simd::load_partial<A>(from + i, count - i) * inverse);
    i += simd::lanes<A>;
  }
  const auto lines = static_cast<std::int64_t>(whole_lines(count));
  if (i < lines) std::memset(to + i, 0, static_cast<std::size_t>(lines - i));
  return tiny ? 0.0f : peak / 127.0f;
}

}  // namespace detail

HYMBA_NAMESPACE_END
