// SPDX-License-Identifier: Apache-2.0
//
// What the kernels' tests share: seeded random matrices with padding between rows, and a guard over that padding.
#pragma once

#include <hymba/core/view.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/simd.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace hymba_test {

/// A matrix whose rows are `gap` elements apart, in exactly the memory it needs: the sanitizer sees a step outside. The
/// gaps hold a known value, so that a write into them is seen without the sanitizer too.
template <class T>
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0)
      : rows_(rows),
        cols_(cols),
        stride_(cols + gap),
        data_(static_cast<std::size_t>(rows > 0 ? (rows - 1) * stride_ + cols : 0), T(mark)) {}
  hymba::MatrixView<T> view() { return {data_.data(), rows_, cols_, stride_}; }
  hymba::MatrixView<const T> view() const { return {data_.data(), rows_, cols_, stride_}; }
  T& operator()(std::int64_t r, std::int64_t c) { return data_[static_cast<std::size_t>(r * stride_ + c)]; }
  const T& operator()(std::int64_t r, std::int64_t c) const { return data_[static_cast<std::size_t>(r * stride_ + c)]; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  T* data() { return data_.data(); }
  const T* data() const { return data_.data(); }
  bool gaps_untouched() const {
    for (std::int64_t r = 0; r + 1 < rows_; ++r) {
      for (std::int64_t c = cols_; c < stride_; ++c) {
        if ((*this)(r, c) != T(mark)) return false;
      }
    }
    return true;
  }
  /// Same bits.
  bool operator==(const Matrix& o) const {
    for (std::int64_t r = 0; r < rows_; ++r) {
      if (std::memcmp(&(*this)(r, 0), &o(r, 0), static_cast<std::size_t>(cols_) * sizeof(T)) != 0) return false;
    }
    return rows_ == o.rows_ && cols_ == o.cols_;
  }

 private:
  static constexpr float mark = 12345.0f;
  std::int64_t rows_, cols_, stride_;
  std::vector<T> data_;
};

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  float normal(float scale = 1.0f) { return scale * normal_(engine_); }
  float uniform(float low, float high) { return low + (high - low) * uniform_(engine_); }
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  Matrix<float> matrix(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0, float scale = 1.0f) {
    Matrix<float> m(rows, cols, gap);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) m(r, c) = normal(scale);
    }
    return m;
  }
  std::vector<float> vector(std::int64_t n, float scale = 1.0f) {
    std::vector<float> v(static_cast<std::size_t>(n));
    for (float& x : v) x = normal(scale);
    return v;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
  std::uniform_real_distribution<float> uniform_;
};

#if defined(_OPENMP)
inline constexpr int max_threads = 4;
using Threads = hymba::OpenMp;
#else
inline constexpr int max_threads = 1;
using Threads = hymba::Serial;
#endif

/// Sizes around the width of a vector, and some that are a multiple of nothing.
inline std::vector<std::int64_t> interesting_sizes() {
  const std::int64_t lanes = hymba::simd::lanes<xsimd::default_arch>;
  return {1, 2, 3, lanes - 1, lanes, lanes + 1, 2 * lanes, 4 * lanes + 3, 100, 5 * lanes, 257};
}

}  // namespace hymba_test
