// SPDX-License-Identifier: Apache-2.0
//
// Quantising a matrix for what it is multiplied with: every column makes up for the errors of the columns before it,
// and is then looked at again beside those behind it.
//
// With H = X^T X of the inputs X, the squared error of the products of a row is e^T H e, e being the errors of its
// weights. H = U U^T with U upper triangular makes that a sum of squares of (U^T e)_j, which depends on e_0 ... e_j
// alone: going from the left, each number is rounded from where that square would be zero. It is the rule of GPTQ
// (Frantar and others, arXiv 2210.17323) in the form of Babai's nearest plane, which needs no inverse. Coordinate
// descent follows: each number in turn becomes the level at which e^T H e is least while all others stay.
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
  RowMajor moments;          ///< [cols, cols] H, with what is added to its diagonal
  RowMajor share;            ///< [cols, cols]: U_ij / U_jj for i < j, by which column j makes up for error i
  std::vector<float> alone;  ///< [cols] H_jj: what the squared error of a column counts if no other makes up for it
  std::vector<float> left;   ///< [cols] U_jj^2: what it counts if later columns do

  /// Nothing when the moments are those of no input, or not finite. With `rotated` what comes out is for rotated inputs,
  /// and weights. `divided_by` [cols], unless null: the moments are those of inputs before their columns are divided by
  /// these powers of two.
  static std::optional<FeedbackFactor> of(MatrixView<const float> given, bool rotated,
                                          const float* divided_by = nullptr) {
    // Only the lower half is given.
    RowMajor moments(given.rows, given.rows);
    for (Eigen::Index i = 0; i < given.rows; ++i) {
      for (Eigen::Index j = 0; j <= i; ++j) {
        const float value = given(i, j);
        moments(i, j) = moments(j, i) = divided_by == nullptr ? value : value / divided_by[i] / divided_by[j];
      }
    }
    if (rotated) {
      // R H R: the rows of H, then those of its transpose, which is R H.
      for (int side = 0; side < 2; ++side) {
        for (Eigen::Index i = 0; i < given.rows; ++i) rotate(moments.data() + i * given.rows, given.rows);
        if (side == 0) moments.transposeInPlace();
      }
    }
    const auto moment = [&](Eigen::Index i, Eigen::Index j) { return moments(i, j); };
    // Added to the diagonal, in parts of its mean: keeps errors apart from directions that the text happens to lack.
    constexpr double damping = 0.01;
    const Eigen::Index n = moments.rows();
    Eigen::MatrixXd reversed(n, n);
    double trace = 0;
    for (Eigen::Index i = 0; i < n; ++i) trace += static_cast<double>(moment(i, i));
    if (!std::isfinite(trace) || !(trace > 0)) return std::nullopt;
    for (Eigen::Index i = 0; i < n; ++i) {
      // The lower half of the moments, from the last column to the first: the lower half again.
      for (Eigen::Index j = 0; j <= i; ++j) {
        reversed(i, j) = static_cast<double>(moment(std::max(n - 1 - i, n - 1 - j), std::min(n - 1 - i, n - 1 - j)));
      }
      reversed(i, i) += damping * trace / static_cast<double>(n);
    }
    FeedbackFactor out{RowMajor(n, n), RowMajor::Zero(n, n), std::vector<float>(static_cast<std::size_t>(n)),
                       std::vector<float>(static_cast<std::size_t>(n))};
    for (Eigen::Index j = 0; j < n; ++j) {
      for (Eigen::Index i = 0; i <= j; ++i) {
        out.moments(i, j) = out.moments(j, i) = static_cast<float>(reversed(n - 1 - i, n - 1 - j));
      }
    }
    const Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>> factor(reversed);
    if (factor.info() != Eigen::Success) return std::nullopt;
    for (Eigen::Index j = 0; j < n; ++j) {
      const double own = reversed(n - 1 - j, n - 1 - j);
      out.alone[static_cast<std::size_t>(j)] = moment(j, j);
      out.left[static_cast<std::size_t>(j)] = static_cast<float>(own * own);
      for (Eigen::Index i = 0; i < j; ++i) out.share(i, j) = static_cast<float>(reversed(n - 1 - i, n - 1 - j) / own);
    }
    return out;
  }
};

/// Coordinate descent on one row: `error` [cols] of its numbers, `slope` = H error.
template <class Encoder>
void descend(const FeedbackFactor& factor, std::int64_t cols, const float* weight, Encoder& encoder, float* error,
             float* slope) {
  constexpr int sweeps = 4;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    bool changed = false;
    for (std::int64_t j = 0; j < cols; ++j) {
      if (j % Encoder::group == 0) encoder.resume(j);
      const float* const row = factor.moments.data() + j * cols;
      const float now = weight[j] - error[j];
      float moved = encoder.put(j, now + slope[j] / row[j]) - now;
      // Less the error by what the number moved: e^T H e changes by moved (moved H_jj - 2 slope).
      if (!(moved * (moved * row[j] - 2 * slope[j]) < 0)) moved = encoder.put(j, now) - now;
      // Two numbers of a row are a 127th of the largest apart at least: what is less is rounding.
      if (!(std::fabs(moved) > 1e-3f * std::fabs(now))) continue;
      changed = true;
      error[j] -= moved;
      for (std::int64_t k = 0; k < cols; ++k) slope[k] -= moved * row[k];
    }
    if (!changed) return;
  }
}

/// Writes a matrix as rows of quantised format `W` to `to`. Each row is rounded without feedback, with half of it and
/// with all, goes down from there, and the one of least e^T H e stays: feedback moves numbers away from where they are
/// near a level, which hardly matters to weights as training leaves them, and does to those that were quantised before.
/// Columns are multiplied by `by` [cols] first, unless that is null, and then rows rotated where `rotated` says so.
/// Returns the sum of e^T H e over the rows. @pre the factor has the matrix's columns, and was made for rotated ones or
/// not likewise.
template <Weights W, class Exec>
requires(weight_format<W>::quantised) double store_with_feedback(Exec& exec, const StoredShape& shape,
                                                                 const TensorRef& from, const FeedbackFactor& factor,
                                                                 std::byte* to, bool rotated,
                                                                 const float* by = nullptr) {
  using Format = weight_format<W>;
  using Encoder = typename Format::Encoder;
  constexpr std::int64_t rows_most = 4096, block = quantised_block;
  static_assert(block % Encoder::group == 0);
  const std::int64_t cols = shape.cols;
  const std::size_t row_bytes = Format::row_bytes(cols);
  RowMajor weights, errors, slopes;
  RowMajor made_up;  // for one block of columns, what they owe to the errors before them
  std::vector<std::optional<Encoder>> encoders;
  std::vector<std::byte> tried;
  std::vector<double> least;
  std::vector<float> importance(static_cast<std::size_t>(cols));
  double total = 0;
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
    for_rows([&](std::int64_t r, std::size_t) {
      to_float(from, (first_row + r) * cols, cols, weights.data() + r * cols);
      multiply_columns(weights.data() + r * cols, cols, by);
      if (rotated) rotate(weights.data() + r * cols, cols);
    });
    tried.resize(count_of_rows * row_bytes);
    least.assign(count_of_rows, 0.0);
    for (const float strength : {0.0f, 0.5f, 1.0f}) {
      for (std::size_t j = 0; j < importance.size(); ++j) {
        importance[j] = (1.0f - strength) * factor.alone[j] + strength * factor.left[j];
      }
      errors.setZero(rows, cols);
      encoders.assign(count_of_rows, std::nullopt);
      for_rows([&](std::int64_t r, std::size_t i) {
        const float* const row = weights.data() + r * cols;
        if (std::isfinite(largest_magnitude(row, cols))) {
          encoders[i].emplace(row, cols, tried.data() + i * row_bytes, importance.data());
        } else {
          Format::encode_row(row, cols, out + i * row_bytes);
        }
      });
      for (std::int64_t first = 0; first < cols; first += block) {
        const std::int64_t count = std::min(block, cols - first);
        made_up.setZero(rows, count);
        if (first > 0) made_up.noalias() = errors.leftCols(first) * factor.share.block(0, first, first, count);
        for_rows([&](std::int64_t r, std::size_t i) {
          if (!encoders[i]) return;
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
            const float* const share = factor.share.data() + (first + j) * cols + first;
            for (std::int64_t k = j + 1; k < count; ++k) made[k] += error[j] * share[k];
          }
        });
      }
      slopes.noalias() = errors * factor.moments;
      for_rows([&](std::int64_t r, std::size_t i) {
        if (!encoders[i]) return;
        float* const error = errors.data() + r * cols;
        float* const slope = slopes.data() + r * cols;
        descend(factor, cols, weights.data() + r * cols, *encoders[i], error, slope);
        double sum = 0;
        for (std::int64_t j = 0; j < cols; ++j) sum += static_cast<double>(error[j]) * static_cast<double>(slope[j]);
        if (strength > 0 && !(sum < least[i])) return;
        least[i] = sum;
        std::memcpy(out + i * row_bytes, tried.data() + i * row_bytes, row_bytes);
      });
    }
    for (const double of_row : least) total += of_row;
  }
  return total;
}

}  // namespace detail

HYMBA_NAMESPACE_END
