// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/quantise_row.hpp>
#include <hymba/kernels/rotate_heads.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::Scratch;
namespace op = hymba::op;

namespace {

/// Every head by itself, in plain loops.
template <class Arch>
void check(std::uint32_t seed) {
  Random random(seed);
  for (const std::int64_t rows : {0, 1, 3, 100}) {
    for (const std::int64_t width : interesting_sizes()) {
      for (const int heads : {1, 5}) {
        const auto x = random.matrix(rows, heads * width, 5);
        auto want = x;
        for (std::int64_t r = 0; r < rows; ++r) {
          for (int h = 0; h < heads; ++h) hymba::reference::rotate(want.view().row(r) + h * width, width);
        }
        for (int threads = 1; threads <= max_threads; ++threads) {
          Threads exec(threads);
          auto y = x;
          hymba::kernel_for<op::RotateHeads, Arch>::run(exec, Scratch{}, y.view(), heads, static_cast<int>(width));
          CHECK(y.gaps_untouched());
          const bool same = y == want;
          CHECK_MESSAGE(same, rows << " rows, " << heads << " heads of " << width << ", " << threads << " threads");
        }
      }
    }
  }
}

double product(const Matrix<float>& a, const Matrix<float>& b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.cols(); ++i) sum += static_cast<double>(a(0, i)) * static_cast<double>(b(0, i));
  return sum;
}
double length(const Matrix<float>& a) { return std::sqrt(product(a, a)); }

/// A row after rounding to signed bytes with one scale.
Matrix<float> rounded(const Matrix<float>& row) {
  const std::int64_t n = row.cols();
  std::vector<std::int8_t> bytes(static_cast<std::size_t>(n));
  const auto scale = static_cast<float>(hymba::reference::quantise_row(row.view().row(0), n, bytes.data()));
  Matrix<float> out(1, n);
  for (std::int64_t i = 0; i < n; ++i) out(0, i) = scale * static_cast<float>(bytes[static_cast<std::size_t>(i)]);
  return out;
}

Matrix<float> rotated(const Matrix<float>& row) {
  Threads exec(1);
  auto out = row;
  hymba::kernel_for<op::RotateHeads, hymba::arch::best>::run(exec, Scratch{}, out.view(), 1,
                                                             static_cast<int>(row.cols()));
  return out;
}

}  // namespace

TEST_CASE("RotateHeads: each head as reference::rotate") {
  check<hymba::arch::scalar>(1);
  check<hymba::arch::best>(2);
}

TEST_CASE("RotateHeads: queries and keys keep their products") {
  Random random(3);
  for (const std::int64_t width : interesting_sizes()) {
    const auto q = random.matrix(1, width, 0), k = random.matrix(1, width, 0);
    // A rotated number is off by gamma times the length of its piece at most, which has up to 256 of them.
    const double bound = 2 * hymba_test::gamma(10) * 16 * length(q) * length(k);
    CHECK(std::fabs(product(rotated(q), rotated(k)) - product(q, k)) <= bound);
  }
}

TEST_CASE("RotateHeads: a key with one large column loses less to rounding") {
  Random random(4);
  double plain = 0, turned = 0;
  for (int i = 0; i < 200; ++i) {
    const auto q = random.matrix(1, 64, 0);
    auto k = random.matrix(1, 64, 0);
    k(0, 5) = 30;
    plain += std::pow(product(q, rounded(k)) - product(q, k), 2);
    turned += std::pow(product(rotated(q), rounded(rotated(k))) - product(q, k), 2);
  }
  // Its scale is the column's over 127; rotated, the column is an eighth of that in all of the 64, and the others' share
  // is added.
  CHECK(turned < plain / 4);
}
