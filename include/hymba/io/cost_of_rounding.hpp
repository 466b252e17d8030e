// SPDX-License-Identifier: Apache-2.0
//
// What rounding costs the products of a matrix, estimated from a few of its rows: of the weights, and of what they are
// multiplied with where that becomes bytes. It tells whether a matrix is better rotated (kernels/rotation.hpp).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/io/error_feedback.hpp>
#include <hymba/kernels/rotation.hpp>
#include <hymba/model/store_tensor.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// The mean square of the largest magnitude among independent, normally distributed numbers of these variances.
inline double mean_square_of_largest(std::span<const float> variances) {
  const double most = std::max(0.0, static_cast<double>(*std::max_element(variances.begin(), variances.end())));
  if (!(most > 0) || !std::isfinite(most)) return most;
  // The integral of P(largest^2 > s) over s = m^2, by the trapezoid rule over m: behind six deviations nothing is left.
  constexpr int steps = 256;
  const double width = 6 * std::sqrt(most) / steps;
  double sum = 0;
  for (int i = 1; i < steps; ++i) {
    const double m = width * i;
    double none_larger = 1;
    for (const float v : variances) {
      if (v > 0) none_larger *= std::erf(m / std::sqrt(2.0 * static_cast<double>(v)));
    }
    sum += 2 * m * (1 - none_larger);
  }
  return sum * width;
}

/// The squared error of the products of some rows of a matrix, plain or `rotated` as `factor` was made for: what its
/// weights in format `W` have after error feedback, and what follows from rounding activations to bytes, whose blocks have
/// their largest magnitude for a scale. Both over the inputs that the factor was made from.
template <Weights W, class Exec>
double cost_of_rounding(Exec& exec, const StoredShape& shape, const TensorRef& from, const FeedbackFactor& factor,
                        bool rotated) {
  const std::int64_t cols = shape.cols;
  const auto length = static_cast<std::size_t>(cols);
  std::vector<float> sample;
  for_sample_rows(shape.rows, [&](std::int64_t r) {
    sample.resize(sample.size() + length);
    float* const row = sample.data() + sample.size() - length;
    to_float(from, r * cols, cols, row);
    if (rotated) rotate(row, cols);
  });
  StoredShape some = shape;
  some.rows = static_cast<std::int64_t>(sample.size() / length);
  const TensorRef numbers{DType::f32, {some.rows, cols}, std::as_bytes(std::span<const float>(sample))};
  std::vector<std::byte> stored(static_cast<std::size_t>(some.rows) * weight_format<W>::row_bytes(cols));
  double cost = store_with_feedback<W>(exec, some, numbers, factor, stored.data(), false);  // rotated they are already
  for (std::int64_t first = 0; first < cols; first += quantised_block) {
    const std::int64_t count = std::min(quantised_block, cols - first);
    const double largest = mean_square_of_largest(
        std::span(factor.alone).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)));
    double weights = 0;
    for (std::int64_t r = 0; r < some.rows; ++r) {
      for (std::int64_t i = first; i < first + count; ++i) {
        const double w = sample[static_cast<std::size_t>(r * cols + i)];
        weights += w * w;
      }
    }
    cost += weights * largest / (127.0 * 127.0 * 12.0);  // an error is spread evenly over a step
  }
  return cost;
}

/// Whether a matrix is better rotated, by the squared errors of its products (cost_of_rounding). It may cost somewhat more:
/// the estimate takes activations for normally distributed, but theirs are rarer and larger numbers, which rotation spreads
/// and plain bytes pay for. Of 1, 1.3 and 1.6 times as much, 1.3 gave the lowest perplexities (docs/numerics.md).
inline bool better_rotated(double rotated, double plain) {
  constexpr double much = 1.3;
  return rotated < much * plain;
}

}  // namespace detail

HYMBA_NAMESPACE_END
