// SPDX-License-Identifier: Apache-2.0
//
// Quantising a matrix for what it is multiplied with: every column makes up for the errors of the columns before it.
//
// With H = X^T X of the inputs X, the squared error of the products of a row is e^T H e, e being the errors of its
// weights. H = U U^T with U upper triangular makes that a sum of squares of (U^T e)_j, which depends on e_0 ... e_j
// alone: going from the left, each number is rounded from where that square would be zero. It is the rule of GPTQ
// (Frantar and others, arXiv 2210.17323) in the form of Babai's nearest plane, which needs no inverse.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/model/store_tensor.hpp>

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// What error feedback takes from the inputs' moments.
struct FeedbackFactor {
  RowMajor share;            ///< [cols, cols]: U_ij / U_jj for i < j, by which column j makes up for error i
  std::vector<float> alone;  ///< [cols] H_jj: what the squared error of a column counts if no other makes up for it
  std::vector<float> left;   ///< [cols] U_jj^2: what it counts if later columns do

  /// Nothing when the moments are those of no input, or not finite.
  static std::optional<FeedbackFactor> of(MatrixView<const float> moments) {
    // Added to the diagonal, in parts of its mean: keeps errors apart from directions that the text happens to lack.
    constexpr double damping = 0.01;
    const Eigen::Index n = moments.rows;
    Eigen::MatrixXd reversed(n, n);
    double trace = 0;
    for (Eigen::Index i = 0; i < n; ++i) trace += static_cast<double>(moments(i, i));
    if (!std::isfinite(trace) || !(trace > 0)) return std::nullopt;
    for (Eigen::Index i = 0; i < n; ++i) {
      // The lower half of the moments, from the last column to the first: the lower half again.
      for (Eigen::Index j = 0; j <= i; ++j) {
        reversed(i, j) = static_cast<double>(moments(std::max(n - 1 - i, n - 1 - j), std::min(n - 1 - i, n - 1 - j)));
      }
      reversed(i, i) += damping * trace / static_cast<double>(n);
    }
    const Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>> factor(reversed);
    if (factor.info() != Eigen::Success) return std::nullopt;
    FeedbackFactor out{RowMajor::Zero(n, n), std::vector<float>(static_cast<std::size_t>(n)),
                       std::vector<float>(static_cast<std::size_t>(n))};
    for (Eigen::Index j = 0; j < n; ++j) {
      const double own = reversed(n - 1 - j, n - 1 - j);
      out.alone[static_cast<std::size_t>(j)] = moments(j, j);
      out.left[static_cast<std::size_t>(j)] = static_cast<float>(own * own);
      for (Eigen::Index i = 0; i < j; ++i) out.share(i, j) = static_cast<float>(reversed(n - 1 - i, n - 1 - j) / own);
    }
    return out;
  }
};

/// Writes a matrix as rows of quantised format `W` to `to`. Each row is rounded without feedback, with half of it and
/// with all, and the one of least e^T H e stays: feedback moves numbers away from where they are near a level, which
/// hardly matters to weights as training leaves them, and does to those that were quantised before.
/// @pre the factor has the matrix's columns.
template <Weights W, class Exec>
requires(weight_format<W>::quantised) void store_with_feedback(Exec& exec, const StoredShape& shape,
                                                               const TensorRef& from, const FeedbackFactor& factor,
                                                               std::byte* to) {
  using Format = weight_format<W>;
  using Encoder = typename Format::Encoder;
  constexpr std::int64_t rows_most = 4096, block = quantised_block;
  static_assert(block % Encoder::group == 0);
  const std::int64_t cols = shape.cols;
  const std::size_t row_bytes = Format::row_bytes(cols);
  RowMajor weights, errors, made_up;  // made_up: for one block of columns, what they owe to the errors before them
  std::vector<std::optional<Encoder>> encoders;
  std::vector<std::byte> tried;
  std::vector<double> least, sum;
  std::vector<float> importance(static_cast<std::size_t>(cols));
  for (std::int64_t first_row = 0; first_row < shape.rows; first_row += rows_most) {
    const std::int64_t rows = std::min(rows_most, shape.rows - first_row);
    const auto count_of_rows = static_cast<std::size_t>(rows);
    std::byte* const out = to + static_cast<std::size_t>(first_row) * row_bytes;
    const auto for_rows = [&](auto&& body) {
      const std::int64_t parts = std::min<std::int64_t>(rows, 4 * exec.threads());
      exec.parallel_for(parts, [&](std::int64_t part, int) noexcept {
        for (std::int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r) {
          body(r, static_cast<std::size_t>(r));
        }
      });
    };
    weights.resize(rows, cols);
    for_rows(
        [&](std::int64_t r, std::size_t) { to_float(from, (first_row + r) * cols, cols, weights.data() + r * cols); });
    tried.resize(count_of_rows * row_bytes);
    least.assign(count_of_rows, 0.0);
    for (const float strength : {0.0f, 0.5f, 1.0f}) {
      for (std::size_t j = 0; j < importance.size(); ++j) {
        importance[j] = (1.0f - strength) * factor.alone[j] + strength * factor.left[j];
      }
      errors.setZero(rows, cols);
      sum.assign(count_of_rows, 0.0);
      encoders.assign(count_of_rows, std::nullopt);
      for_rows([&](std::int64_t r, std::size_t i) {
        encoders[i].emplace(weights.data() + r * cols, cols, tried.data() + i * row_bytes, importance.data());
      });
      for (std::int64_t first = 0; first < cols; first += block) {
        const std::int64_t count = std::min(block, cols - first);
        made_up.setZero(rows, count);
        if (first > 0) made_up.noalias() = errors.leftCols(first) * factor.share.block(0, first, first, count);
        for_rows([&](std::int64_t r, std::size_t i) {
          const float* const weight = weights.data() + r * cols + first;
          float* const error = errors.data() + r * cols + first;
          float* const made = made_up.data() + r * count;
          for (std::int64_t j = 0; j < count; ++j) {
            if (j % Encoder::group == 0) {
              float target[Encoder::group];
              const std::int64_t last = std::min(count, j + Encoder::group);
              for (std::int64_t k = j; k < last; ++k) target[k - j] = weight[k] + strength * made[k];
              encoders[i]->begin(first + j, target);
            }
            error[j] = weight[j] - encoders[i]->put(first + j, weight[j] + strength * made[j]);
            const auto off = static_cast<double>(error[j] + made[j]);
            sum[i] += static_cast<double>(factor.left[static_cast<std::size_t>(first + j)]) * off * off;
            const float* const share = factor.share.data() + (first + j) * cols + first;
            for (std::int64_t k = j + 1; k < count; ++k) made[k] += error[j] * share[k];
          }
        });
      }
      for_rows([&](std::int64_t, std::size_t i) {
        // The first try also stays where nothing compares, as in a row that is not finite.
        if (strength > 0 && !(sum[i] < least[i])) return;
        least[i] = sum[i];
        std::memcpy(out + i * row_bytes, tried.data() + i * row_bytes, row_bytes);
      });
    }
  }
}

}  // namespace detail

HYMBA_NAMESPACE_END
