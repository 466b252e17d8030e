// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/executor.hpp>
#include <hymba/io/cost_of_rounding.hpp>
#include <hymba/io/error_feedback.hpp>
#include <hymba/kernels/quantised_activations.hpp>
#include <hymba/model/store_tensor.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernel_test.hpp"
#include "moments_test.hpp"

using namespace hymba;
using hymba_test::Matrix;
using hymba_test::moments_of;
using hymba_test::Random;

namespace {

TensorSpec spec_of(const Matrix<float>& w, TensorRole role) {
  TensorSpec s;
  s.rank = 2;
  s.dims[0] = w.rows();
  s.dims[1] = w.cols();
  s.role = role;
  return s;
}
TensorRef ref_of(const Matrix<float>& w) {
  const auto count = static_cast<std::size_t>(w.rows() * w.cols());
  return {DType::f32, {w.rows(), w.cols()}, std::as_bytes(std::span(w.data(), count))};
}
DType chosen(const Matrix<float>& w, Weights format, TensorRole role = TensorRole::matrix) {
  return detail::type_to_store(spec_of(w, role), ref_of(w), format);
}

/// On sixteen levels, as weights are that were rounded before.
Matrix<float> on_levels(Random& random, std::int64_t rows, std::int64_t cols) {
  Matrix<float> w(rows, cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) w(r, c) = static_cast<float>(random.integer(0, 15)) - 7.5f;
  }
  return w;
}

struct Cost {
  double plain, rotated;
};
Cost cost(const Matrix<float>& w, const Matrix<float>& x) {
  const Matrix<float> moments = moments_of(x);
  DefaultExecutor exec(2);
  const auto of = [&](bool rotated) {
    const auto factor = detail::FeedbackFactor::of(moments.view(), rotated);
    REQUIRE(factor);
    return detail::cost_of_rounding<Weights::int4>(exec, detail::StoredShape(spec_of(w, TensorRole::matrix)), ref_of(w),
                                                   *factor, rotated);
  };
  return {of(false), of(true)};
}

}  // namespace

TEST_CASE("type to store: int4 matrices are rotated unless that makes their error much larger; other formats as usual") {
  Random random(3);
  for (const std::int64_t cols : {64, 256, 320, 1600}) {
    CAPTURE(cols);
    for (const std::int64_t rows : {1, 5, 100}) {
      CHECK(chosen(random.matrix(rows, cols), Weights::int4) == DType::rotated_int4);
      CHECK(chosen(on_levels(random, rows, cols), Weights::int4) == DType::int4);
    }
  }
  const Matrix<float> normal = random.matrix(7, 256), levels = on_levels(random, 7, 256);
  for (const Matrix<float>* w : {&normal, &levels}) {
    CHECK(chosen(*w, Weights::int8) == DType::rotated_int8);
    CHECK(chosen(*w, Weights::bf16) == DType::bf16);
    CHECK(chosen(*w, Weights::f32) == DType::f32);
    // A fine matrix beside int4 is in int8, and not rotated.
    CHECK(chosen(*w, Weights::int8, TensorRole::fine) == DType::int8);
  }
}

TEST_CASE("type to store: what is not finite, and nothing but zeros, has a type too") {
  Random random(4);
  Matrix<float> w = random.matrix(3, 256);
  w(1, 7) = std::numeric_limits<float>::infinity();
  CHECK(layout_of(chosen(w, Weights::int4)) == DType::int4);
  for (std::int64_t r = 0; r < 3; ++r) std::fill_n(&w(r, 0), 256, 0.0f);
  CHECK(layout_of(chosen(w, Weights::int4)) == DType::int4);
}

TEST_CASE("largest of a block: its mean square, where that is known") {
  using detail::mean_square_of_largest;
  // Of one number its variance, of two with variance v: v (1 + 2 / pi).
  CHECK(mean_square_of_largest(std::array{1.0f}) == doctest::Approx(1.0).epsilon(1e-3));
  CHECK(mean_square_of_largest(std::array{4.0f}) == doctest::Approx(4.0).epsilon(1e-3));
  CHECK(mean_square_of_largest(std::array{3.0f, 3.0f}) == doctest::Approx(3 * (1 + 2 / 3.14159265)).epsilon(1e-3));
  // One far larger than the others is the largest.
  std::vector<float> one_large(256, 1.0f);
  one_large[9] = 1e8f;
  CHECK(mean_square_of_largest(one_large) == doctest::Approx(1e8).epsilon(1e-3));
  CHECK(mean_square_of_largest(std::array{0.0f, 0.0f}) == 0.0);
  // Of 256 by counting.
  Random random(2);
  double sum = 0;
  constexpr int times = 2000;
  for (int i = 0; i < times; ++i) {
    const std::vector<float> v = random.vector(256);
    float largest = 0;
    for (const float x : v) largest = std::max(largest, std::fabs(x));
    sum += static_cast<double>(largest) * static_cast<double>(largest) / times;
  }
  CHECK(mean_square_of_largest(std::vector<float>(256, 1.0f)) == doctest::Approx(sum).epsilon(0.02));
}

TEST_CASE("cost of rounding: what products lose where both sides are rounded") {
  Random random(5);
  constexpr std::int64_t rows = 24, cols = 320, tokens = 1500;
  const Matrix<float> w = random.matrix(rows, cols);
  Matrix<float> x = random.matrix(tokens, cols);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (const std::int64_t c : {3, 270}) x(t, c) *= 40.0f;
  }
  const Cost estimate = cost(w, x);
  CHECK(estimate.rotated < 0.6 * estimate.plain);

  // The same by rounding everything, in the errors of weights from feedback and those of activations.
  DefaultExecutor exec(1);
  const Matrix<float> moments = moments_of(x);
  for (const bool rotated : {false, true}) {
    CAPTURE(rotated);
    const auto factor = detail::FeedbackFactor::of(moments.view(), rotated);
    std::vector<std::byte> stored(static_cast<std::size_t>(rows) * Int4Rows::row_bytes(cols));
    detail::store_with_feedback<Weights::int4>(exec, detail::StoredShape(spec_of(w, TensorRole::matrix)), ref_of(w),
                                               *factor, stored.data(), rotated);
    Matrix<float> weights = w, found(rows, cols);
    for (std::int64_t r = 0; r < rows; ++r) {
      if (rotated) detail::rotate(&weights(r, 0), cols);
      weight_format<Weights::int4>::decode_row(
          stored.data() + static_cast<std::size_t>(r) * Int4Rows::row_bytes(cols), cols, &found(r, 0));
    }
    double sum = 0;
    std::vector<float> exact(cols);
    alignas(64) std::int8_t bytes[quantised_block];
    std::vector<double> rounded(cols);
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::copy_n(&x(t, 0), cols, exact.data());
      if (rotated) detail::rotate(exact.data(), cols);
      for (std::int64_t first = 0; first < cols; first += quantised_block) {
        const std::int64_t count = std::min(quantised_block, cols - first);
        const float scale = detail::quantise_activations(exact.data() + first, count, bytes, false);
        for (std::int64_t i = 0; i < count; ++i) {
          rounded[static_cast<std::size_t>(first + i)] = static_cast<double>(scale) * bytes[i];
        }
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        double error = 0;
        for (std::int64_t i = 0; i < cols; ++i) {
          const auto c = static_cast<std::size_t>(i);
          error += static_cast<double>(weights(r, i)) * static_cast<double>(exact[c]) -
                   static_cast<double>(found(r, i)) * rounded[c];
        }
        sum += error * error;
      }
    }
    // The factor adds a hundredth of the inputs' mean square, here mostly two columns', to each column's moment.
    const double estimated = rotated ? estimate.rotated : estimate.plain;
    CHECK(estimated / sum > 0.9);
    CHECK(estimated / sum < 1.25);
  }
}

TEST_CASE("cost of rounding: weights on levels, met by even activations, are cheaper as they are") {
  Random random(6);
  const Cost of = cost(on_levels(random, 40, 256), random.matrix(600, 256));
  CHECK(of.plain < of.rotated);
  CHECK(!detail::better_rotated(of.rotated, of.plain));
}
