// SPDX-License-Identifier: Apache-2.0
//
// Moments of inputs, as calibration gives them.
#pragma once

#include <cstdint>
#include <limits>

#include "kernel_test.hpp"

namespace hymba_test {

/// The sums of x x^T over the rows of x. Only the lower half may be read: the upper one is NaN.
inline Matrix<float> moments_of(const Matrix<float>& x) {
  Matrix<float> out(x.cols(), x.cols());
  for (std::int64_t i = 0; i < x.cols(); ++i) {
    for (std::int64_t j = 0; j < x.cols(); ++j) {
      double sum = 0;
      for (std::int64_t r = 0; r < x.rows(); ++r) sum += static_cast<double>(x(r, i)) * static_cast<double>(x(r, j));
      out(i, j) = j <= i ? static_cast<float>(sum) : std::numeric_limits<float>::quiet_NaN();
    }
  }
  return out;
}

}  // namespace hymba_test
