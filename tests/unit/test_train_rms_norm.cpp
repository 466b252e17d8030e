// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/kernels/rms_norm.hpp>
#include <hymba/train/kernels/rms_norm_backward.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::Scratch;
using hymba::Store;
namespace op = hymba::op;

namespace {

Matrix<double> widened(const Matrix<float>& m) {
  Matrix<double> d(m.rows(), m.cols());
  for (std::int64_t r = 0; r < m.rows(); ++r) {
    for (std::int64_t c = 0; c < m.cols(); ++c) d(r, c) = static_cast<double>(m(r, c));
  }
  return d;
}
std::vector<double> widened(const std::vector<float>& v) { return {v.begin(), v.end()}; }

/// sum(dy * rms_norm(x)).
double loss(const Matrix<double>& x, const std::vector<double>& weight, float eps, const Matrix<double>& dy) {
  Matrix<double> y(x.rows(), x.cols());
  hymba::reference::rms_norm<double, double, double>(x.view(), weight.data(), eps, y.view());
  double sum = 0;
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    for (std::int64_t c = 0; c < x.cols(); ++c) sum += dy(r, c) * y(r, c);
  }
  return sum;
}

template <class Arch>
struct Runner {
  using Kernel = hymba::kernel_for<op::RmsNormBackward, Arch>;
  Threads exec;
  std::size_t bytes;
  hymba::AlignedBuffer memory;
  Runner(int threads, std::int64_t cols)
      : exec(threads), bytes(Kernel::scratch_bytes(cols)), memory(bytes * static_cast<std::size_t>(threads)) {
    REQUIRE(bytes % hymba::alignment == 0);
    if (memory.size() > 0) std::memset(memory.data(), 0xff, memory.size());  // NaN: nothing may count on zeros
  }
  void operator()(const Matrix<float>& x, const std::vector<float>& weight, float eps, const Matrix<float>& dy,
                  Matrix<float>& dx, float* dweight, Store store) {
    Kernel::run(exec, Scratch{memory.data(), bytes}, x.view(), weight.data(), eps, dy.view(), dx.view(), dweight,
                store);
  }
};

template <class Arch>
void check(std::uint32_t seed) {
  Random random(seed);
  for (const std::int64_t rows : {0, 1, 5, 300}) {
    for (const std::int64_t cols : interesting_sizes()) {
      CAPTURE(rows);
      CAPTURE(cols);
      const auto x = random.matrix(rows, cols, 3, 2.0f), dy = random.matrix(rows, cols, 1);
      const auto before = random.matrix(rows, cols, 2);
      const auto weight = random.vector(cols), dweight_before = random.vector(cols);
      const float eps = 1e-3f;
      const auto xd = widened(x), dyd = widened(dy);
      const auto wd = widened(weight);
      Matrix<double> want(rows, cols);
      std::vector<double> want_weight(static_cast<std::size_t>(cols), 0.0);
      hymba::reference::rms_norm_backward<double>(xd.view(), wd.data(), eps, dyd.view(), want.view(),
                                                  want_weight.data(), Store::assign);
      // Roundings of r (as in the test of op::RmsNorm), of its cube, of the sum of products, of what combines them.
      const auto n = static_cast<double>(cols), t = static_cast<double>(rows);
      const double of_inverse = 0.5 * (n + 3) + 4;
      const double relative = hymba_test::gamma(3 * of_inverse + n + 10);
      const double relative_weight = hymba_test::gamma(of_inverse + t + 8);
      for (int threads = 1; threads <= std::min(3, max_threads); ++threads) {
        Runner<Arch> run(threads, cols);
        auto assigned = before, added = before, in_place = dy, again = before;
        auto dweight = dweight_before, dweight_again = dweight_before;
        run(x, weight, eps, dy, assigned, dweight.data(), Store::assign);
        run(x, weight, eps, dy, again, dweight_again.data(), Store::assign);
        run(x, weight, eps, dy, added, nullptr, Store::add);
        run(x, weight, eps, in_place, in_place, nullptr, Store::assign);
        CHECK(again == assigned);
        CHECK(dweight_again == dweight);
        CHECK(in_place == assigned);
        CHECK(assigned.gaps_untouched());
        CHECK(added.gaps_untouched());
        CHECK(in_place.gaps_untouched());
        Worst worst, worst_weight;
        std::vector<double> size_weight(static_cast<std::size_t>(cols), 0.0);
        for (std::int64_t r = 0; r < rows; ++r) {
          double products = 0;
          const double inverse = hymba::reference::inverse_rms<double>(xd.view().row(r), cols, eps);
          for (std::int64_t c = 0; c < cols; ++c) {
            products += std::fabs(wd[static_cast<std::size_t>(c)] * dyd(r, c) * xd(r, c));
          }
          for (std::int64_t c = 0; c < cols; ++c) {
            const double size = inverse * std::fabs(wd[static_cast<std::size_t>(c)] * dyd(r, c)) +
                                std::fabs(xd(r, c)) * inverse * inverse * inverse / n * products;
            const double old = static_cast<double>(before(r, c));
            size_weight[static_cast<std::size_t>(c)] += std::fabs(dyd(r, c) * xd(r, c) * inverse);
            worst.add(static_cast<double>(assigned(r, c)), want(r, c), relative * size, r, c);
            worst.add(static_cast<double>(added(r, c)), want(r, c) + old,
                      relative * size + unit_roundoff * std::fabs(want(r, c) + old), r, c);
          }
        }
        for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
          const double sum = want_weight[c] + static_cast<double>(dweight_before[c]);
          // The plain loops start from the old value: it takes part in every addition.
          const double bound = relative_weight * (size_weight[c] + std::fabs(static_cast<double>(dweight_before[c])));
          worst_weight.add(static_cast<double>(dweight[c]), sum, bound, 0, static_cast<std::int64_t>(c));
        }
        CHECK_MESSAGE(worst.ok(), worst);
        CHECK_MESSAGE(worst_weight.ok(), worst_weight);
      }
    }
  }
}

}  // namespace

TEST_CASE("RmsNormBackward in double against differences of RmsNorm") {
  Random random(1);
  for (const std::int64_t cols : {1, 2, 7, 33}) {
    auto x = widened(random.matrix(3, cols));
    const auto dy = widened(random.matrix(3, cols));
    auto weight = widened(random.vector(cols));
    const float eps = 0.1f;
    Threads exec(1);
    Matrix<double> dx(3, cols, 2);
    std::vector<double> dweight(static_cast<std::size_t>(cols), 0.0);
    hymba::kernel_for<op::RmsNormBackward, hymba::arch::scalar>::run(
        exec, Scratch{}, x.view(), weight.data(), eps, dy.view(), dx.view(), dweight.data(), Store::assign);
    double largest = 0, worst = 0;
    const auto compare = [&](double& variable, double gradient) {
      const double step = 1e-5, value = variable;
      variable = value + step;
      const double above = loss(x, weight, eps, dy);
      variable = value - step;
      const double below = loss(x, weight, eps, dy);
      variable = value;
      largest = std::max(largest, std::fabs(gradient));
      worst = std::max(worst, std::fabs((above - below) / (2 * step) - gradient));
    };
    for (std::int64_t r = 0; r < 3; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) compare(x(r, c), dx(r, c));
    }
    for (std::size_t c = 0; c < weight.size(); ++c) compare(weight[c], dweight[c]);
    CHECK(worst < 1e-7 * largest);
  }
}

TEST_CASE("RmsNormBackward against the double reference") {
  check<hymba::arch::scalar>(1);
  check<hymba::arch::best>(2);
}
