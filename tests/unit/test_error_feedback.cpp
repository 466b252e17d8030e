// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/executor.hpp>
#include <hymba/io/error_feedback.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernel_test.hpp"
#include "moments_test.hpp"

using namespace hymba;
using hymba_test::Matrix;
using hymba_test::moments_of;
using hymba_test::Random;

namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Inputs of which every column is mostly what the one before it is.
Matrix<float> correlated(Random& random, std::int64_t rows, std::int64_t cols) {
  Matrix<float> x = random.matrix(rows, cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 1; c < cols; ++c) x(r, c) = 0.9f * x(r, c - 1) + 0.4f * x(r, c);
  }
  return x;
}

template <Weights W>
struct Rounded {
  std::int64_t cols;
  std::vector<std::byte> bytes;
  bool rotated = false;
  /// What stands for a weight.
  double number(std::int64_t r, std::int64_t c) const {
    if (rotated) {
      std::vector<double> row(at(cols));
      for (std::int64_t i = 0; i < cols; ++i) {
        row[at(i)] = weight_format<W>::template number<double>(bytes.data() + at(r) * weight_format<W>::row_bytes(cols),
                                                               cols, i);
      }
      reference::rotate(row.data(), cols);
      return row[at(c)];
    }
    return weight_format<W>::template number<double>(bytes.data() + at(r) * weight_format<W>::row_bytes(cols), cols, c);
  }
  /// e^T (H + damping) e of a row, up to the factor's own arithmetic.
  double loss(const Matrix<float>& w, std::int64_t r, const Matrix<float>& moments) const {
    double trace = 0, sum = 0;
    std::vector<double> errors(at(cols));
    for (std::int64_t i = 0; i < cols; ++i) errors[at(i)] = static_cast<double>(w(r, i)) - number(r, i);
    for (std::int64_t i = 0; i < cols; ++i) trace += static_cast<double>(moments(i, i));
    for (std::int64_t i = 0; i < cols; ++i) {
      const double e = errors[at(i)];
      sum += 0.01 * trace / static_cast<double>(cols) * e * e;
      for (std::int64_t j = 0; j <= i; ++j) {
        const double f = errors[at(j)];
        sum += (i == j ? 1.0 : 2.0) * static_cast<double>(moments(i, j)) * e * f;
      }
    }
    return sum;
  }
};

template <Weights W>
Rounded<W> plainly(const Matrix<float>& w, bool rotated = false) {
  using Format = weight_format<W>;
  Rounded<W> out{w.cols(), std::vector<std::byte>(at(w.rows()) * Format::row_bytes(w.cols()))};
  out.rotated = rotated;
  std::vector<float> row(at(w.cols()));
  for (std::int64_t r = 0; r < w.rows(); ++r) {
    std::copy_n(&w(r, 0), w.cols(), row.data());
    if (rotated) reference::rotate(row.data(), w.cols());
    Format::encode_row(row.data(), w.cols(), out.bytes.data() + at(r) * Format::row_bytes(w.cols()));
  }
  return out;
}
template <Weights W>
Rounded<W> with_feedback(const Matrix<float>& w, const Matrix<float>& moments, int threads, bool rotated = false) {
  Rounded<W> out{w.cols(), std::vector<std::byte>(at(w.rows()) * weight_format<W>::row_bytes(w.cols()))};
  const auto factor = detail::FeedbackFactor::of(moments.view(), rotated);
  out.rotated = rotated;
  REQUIRE(factor);
  DefaultExecutor exec(threads);
  const TensorSpec spec = [&] {
    TensorSpec s;
    s.rank = 2;
    s.dims[0] = w.rows();
    s.dims[1] = w.cols();
    return s;
  }();
  const TensorRef from{
      DType::f32, {w.rows(), w.cols()}, {reinterpret_cast<const std::byte*>(w.data()), at(w.rows() * w.cols()) * 4}};
  detail::store_with_feedback<W>(exec, detail::StoredShape(spec), from, *factor, out.bytes.data(), rotated);
  return out;
}

template <Weights W>
void every_size(bool rotated = false) {
  Random random(11);
  double ours = 0, plain = 0;
  for (const std::int64_t cols : {1, 2, 31, 32, 33, 100, 256, 257, 300}) {
    const Matrix<float> w = random.matrix(7, cols);
    const Matrix<float> moments = moments_of(correlated(random, 2 * cols + 3, cols));
    const Rounded<W> a = with_feedback<W>(w, moments, 1, rotated), b = plainly<W>(w, rotated);
    for (std::int64_t r = 0; r < w.rows(); ++r) {
      ours += a.loss(w, r, moments) / static_cast<double>(cols);
      plain += b.loss(w, r, moments) / static_cast<double>(cols);
    }
    CHECK(with_feedback<W>(w, moments, 3, rotated).bytes == a.bytes);
  }
  MESSAGE(std::string(weight_format<W>::name), ": ", ours / plain, " of the squared error of products");
  // What a column can't be told from the others by is a third of it here: (0.4 / 0.9)^2 and the damping.
  CHECK(ours < 0.5 * plain);
}

}  // namespace

TEST_CASE("error feedback: products err much less where inputs hang together, whatever the size and the threads") {
  SUBCASE("int8") { every_size<Weights::int8>(); }
  SUBCASE("int4") { every_size<Weights::int4>(); }
  SUBCASE("int8, rotated") { every_size<Weights::int8>(true); }
  SUBCASE("int4, rotated") { every_size<Weights::int4>(true); }
}

TEST_CASE("error feedback: inputs that do not hang together leave nothing to make up for") {
  Random random(5);
  const Matrix<float> w = random.matrix(5, 300);
  Matrix<float> moments(300, 300);
  for (std::int64_t i = 0; i < 300; ++i) {
    for (std::int64_t j = 0; j < 300; ++j) moments(i, j) = i == j ? 2.0f : 0.0f;
  }
  CHECK(with_feedback<Weights::int8>(w, moments, 1).bytes == plainly<Weights::int8>(w).bytes);
  CHECK(with_feedback<Weights::int4>(w, moments, 1).bytes == plainly<Weights::int4>(w).bytes);
}

TEST_CASE("error feedback: weights that are levels stay") {
  Random random(6);
  Matrix<float> w(4, 288);
  for (std::int64_t r = 0; r < 4; ++r) {
    for (std::int64_t i = 0; i < 288; ++i) w(r, i) = static_cast<float>(random.integer(-127, 127));
    w(r, 0) = w(r, 256) = 127.0f;  // in both blocks
  }
  const Matrix<float> moments = moments_of(correlated(random, 400, 288));
  const Rounded<Weights::int8> a = with_feedback<Weights::int8>(w, moments, 1);
  for (std::int64_t r = 0; r < 4; ++r) {
    for (std::int64_t i = 0; i < 288; ++i) CHECK(a.number(r, i) == static_cast<double>(w(r, i)));
  }
}

TEST_CASE("error feedback: what is not finite") {
  Random random(8);
  Matrix<float> w = random.matrix(3, 300);
  const Matrix<float> moments = moments_of(correlated(random, 400, 300));
  const Rounded<Weights::int4> good = with_feedback<Weights::int4>(w, moments, 1);
  w(1, 70) = std::numeric_limits<float>::infinity();
  const Rounded<Weights::int4> bad = with_feedback<Weights::int4>(w, moments, 1);
  for (std::int64_t i = 0; i < 300; ++i) {
    CHECK(std::isnan(bad.number(1, i)));
    CHECK(bad.number(0, i) == good.number(0, i));
    CHECK(bad.number(2, i) == good.number(2, i));
  }
  const Rounded<Weights::int8> one_block = with_feedback<Weights::int8>(w, moments, 1);
  CHECK(std::isnan(one_block.number(1, 70)));
  CHECK(std::isfinite(one_block.number(1, 270)));
  // Moments of nothing, or with no finite sum: no factor.
  Matrix<float> none(4, 4);
  for (std::int64_t i = 0; i < 16; ++i) none(i / 4, i % 4) = 0.0f;
  CHECK_FALSE(detail::FeedbackFactor::of(none.view(), false));
  none(2, 2) = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(detail::FeedbackFactor::of(none.view(), false));
}
