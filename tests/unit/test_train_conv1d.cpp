// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/kernels/conv1d.hpp>
#include <hymba/train/kernels/conv1d_backward.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

namespace {

using namespace hymba_test;
using hymba::MatrixView;
using hymba::RowRange;
using hymba::Scratch;
namespace op = hymba::op;
namespace simd = hymba::simd;

template <class T>
struct Problem {
  std::vector<RowRange> sequences;
  std::int64_t total, width;
  int taps;
  bool with_bias;
  Matrix<T> x, dy, dx;
  std::vector<T> weight, bias, d_weight, d_bias;

  const T* bias_or_null() const { return with_bias ? bias.data() : nullptr; }
  T* d_bias_or_null() { return with_bias ? d_bias.data() : nullptr; }
};

/// Rows that belong to no sequence lie between the sequences and behind them.
Problem<float> random_problem(const std::vector<std::int64_t>& rows, std::int64_t width, int taps, bool with_bias,
                              std::uint32_t seed) {
  std::vector<RowRange> sequences;
  std::int64_t total = 0;
  for (const std::int64_t r : rows) {
    sequences.push_back({total, r});
    total += r + static_cast<std::int64_t>(sequences.size()) % 2;
  }
  Random random(seed);
  Matrix<float> x = random.matrix(total, width, 3), dy = random.matrix(total, width, 1);
  std::vector<float> weight = random.vector(taps * width), bias = random.vector(width);
  std::vector<float> d_weight = random.vector(taps * width), d_bias = random.vector(width);
  return {sequences, total, width,    taps,  with_bias, x, dy, Matrix<float>(total, width, 2),
          weight,    bias,  d_weight, d_bias};
}

Problem<double> in_double(const Problem<float>& p) {
  const auto matrix = [](const Matrix<float>& from) {
    Matrix<double> to(from.rows(), from.cols(), 1);
    for (std::int64_t t = 0; t < from.rows(); ++t) {
      for (std::int64_t e = 0; e < from.cols(); ++e) to(t, e) = static_cast<double>(from(t, e));
    }
    return to;
  };
  const auto vector = [](const std::vector<float>& from) { return std::vector<double>(from.begin(), from.end()); };
  return {p.sequences,  p.total,      p.width,          p.taps,         p.with_bias,        matrix(p.x),
          matrix(p.dy), matrix(p.dx), vector(p.weight), vector(p.bias), vector(p.d_weight), vector(p.d_bias)};
}

template <class Arch, class Exec, class T>
void run(Exec& exec, Problem<T>& p) {
  using Kernel = hymba::kernel_for<op::Conv1dBackward, Arch>;
  const std::size_t bytes = Kernel::scratch_bytes(p.taps);
  CHECK(bytes % 64 == 0);
  hymba::AlignedBuffer memory(bytes * static_cast<std::size_t>(exec.threads()));
  std::fill_n(memory.data(), memory.size(), std::byte{0xff});  // NaN: nothing is read before it is written
  Kernel::run(exec, Scratch{memory.data(), bytes}, p.x.view(), p.weight.data(), p.bias_or_null(), p.taps,
              std::span<const RowRange>(p.sequences), p.dy.view(), p.dx.view(), p.d_weight.data(), p.d_bias_or_null());
}

/// What the float versions may be off by, from the reference's intermediate numbers in double.
struct Bounds {
  Matrix<double> dx;
  std::vector<double> weight, bias;
};
Bounds bounds_of(const Problem<double>& p) {
  const double u = unit_roundoff;
  Bounds r{Matrix<double>(p.total, p.width), std::vector<double>(p.weight.size()), std::vector<double>(p.bias.size())};
  double rows = 0;
  for (const RowRange& s : p.sequences) rows += static_cast<double>(s.rows);
  // Sums over rows in any order, what was there included.
  const double over_rows = hymba_test::gamma(rows + 2), over_taps = hymba_test::gamma(p.taps + 2);
  for (std::int64_t e = 0; e < p.width; ++e) {
    const auto at = [&](int k) { return static_cast<std::size_t>(k * p.width + e); };
    for (int k = 0; k < p.taps; ++k) r.weight[at(k)] = over_rows * std::fabs(p.d_weight[at(k)]);
    r.bias[at(0)] = over_rows * std::fabs(p.d_bias[at(0)]);
    for (const RowRange& s : p.sequences) {
      for (std::int64_t t = 0; t < s.rows; ++t) r.dx(s.first_row + t, e) = 0x1p-120;
      for (std::int64_t t = 0; t < s.rows; ++t) {
        double sum = p.with_bias ? p.bias[at(0)] : 0, size = std::fabs(sum);
        for (int k = 0; k < p.taps; ++k) {
          if (t - p.taps + 1 + k < 0) continue;
          const double product = p.weight[at(k)] * p.x(s.first_row + t - p.taps + 1 + k, e);
          sum += product, size += std::fabs(product);
        }
        // silu' = gate (1 + p (1 - gate)) has a slope of at most 1/2; both of its gates are off, and it rounds.
        const double gate = hymba::reference::sigmoid(sum);
        const double slope = gate * (1 + sum * (1 - gate));
        const double slope_error =
            0.5 * over_taps * size + (2 * simd::sigmoid_error + 4) * u * gate * (1 + std::fabs(sum));
        const double dy = p.dy(s.first_row + t, e), dp = std::fabs(dy * slope);
        const double dp_error = std::fabs(dy) * slope_error + u * dp + 0x1p-120;
        for (int k = 0; k < p.taps; ++k) {
          const std::int64_t from = t - p.taps + 1 + k;
          if (from < 0) continue;
          const double weight = std::fabs(p.weight[at(k)]), x = std::fabs(p.x(s.first_row + from, e));
          r.dx(s.first_row + from, e) += weight * (dp_error + over_taps * dp);
          r.weight[at(k)] += x * (dp_error + over_rows * dp);
        }
        r.bias[at(0)] += dp_error + over_rows * dp;
      }
    }
  }
  return r;
}

template <class Arch>
void check(const Problem<float>& start) {
  Problem<double> want = in_double(start);
  const Bounds bounds = bounds_of(want);
  std::vector<char> in_sequence(static_cast<std::size_t>(start.total));
  for (const RowRange& s : want.sequences) {
    hymba::reference::conv1d_backward<double>(want.x.view(), want.weight.data(), want.bias_or_null(), want.taps, s,
                                              want.dy.view(), want.dx.view(), want.d_weight.data(),
                                              want.d_bias_or_null());
    for (std::int64_t t = 0; t < s.rows; ++t) in_sequence[static_cast<std::size_t>(s.first_row + t)] = 1;
  }
  CAPTURE(start.width);
  CAPTURE(start.taps);
  Problem<float> first = start;
  for (int threads = 1; threads <= std::min(3, max_threads); ++threads) {
    Threads exec(threads);
    Problem<float> got = start;
    run<Arch>(exec, got);
    CHECK(got.dx.gaps_untouched());
    if (threads == 1) first = got;
    // Channels do not meet: the same bits on any number of threads.
    CHECK(got.dx == first.dx);
    CHECK(got.d_weight == first.d_weight);
    CHECK(got.d_bias == first.d_bias);
  }
  Worst worst, worst_weight, worst_bias;
  bool left_alone = true;
  for (std::int64_t t = 0; t < start.total; ++t) {
    for (std::int64_t e = 0; e < start.width; ++e) {
      if (in_sequence[static_cast<std::size_t>(t)] != 0) {
        worst.add(static_cast<double>(first.dx(t, e)), want.dx(t, e), bounds.dx(t, e), t, e);
      } else {
        left_alone = left_alone && first.dx(t, e) == start.dx(t, e);
      }
    }
  }
  for (std::size_t i = 0; i < want.weight.size(); ++i) {
    worst_weight.add(static_cast<double>(first.d_weight[i]), want.d_weight[i], bounds.weight[i],
                     static_cast<std::int64_t>(i));
  }
  for (std::size_t i = 0; i < want.bias.size(); ++i) {
    worst_bias.add(static_cast<double>(first.d_bias[i]), want.d_bias[i], bounds.bias[i], static_cast<std::int64_t>(i));
  }
  CHECK(left_alone);
  CHECK_MESSAGE(worst.ok(), "dx: " << worst);
  CHECK_MESSAGE(worst_weight.ok(), "dweight: " << worst_weight);
  CHECK_MESSAGE(worst_bias.ok(), "dbias: " << worst_bias);
}

template <class Arch>
void check_all() {
  std::uint32_t seed = 1;
  for (const auto& rows : {std::vector<std::int64_t>{1}, {2}, {3, 1, 0, 20, 2}, {17}}) {
    for (const int taps : {1, 3, 4, 6}) {
      for (const std::int64_t width : interesting_sizes()) {
        check<Arch>(random_problem(rows, width, taps, seed % 3 != 0, seed)), ++seed;
      }
    }
  }
  // Around whole tiles of rows; more taps than a tile has rows; more channels than are worked on at a time.
  for (const std::int64_t rows : {15, 16, 18, 19, 32, 49}) check<Arch>(random_problem({rows}, 23, 4, true, seed++));
  check<Arch>(random_problem({50, 3}, 21, 20, true, seed++));
  check<Arch>(random_problem({70, 1, 33}, 700, 4, true, seed++));
  check<Arch>(random_problem({40, 2}, 300, 3, false, seed++));
}

}  // namespace

TEST_CASE("Conv1dBackward in plain loops against double") { check_all<hymba::arch::scalar>(); }
TEST_CASE("Conv1dBackward in vectors against double") { check_all<hymba::arch::best>(); }

TEST_CASE("Conv1dBackward against central differences of Conv1d in double") {
  for (const int taps : {1, 3, 4}) {
    for (const bool with_bias : {true, false}) {
      Problem<double> p = in_double(random_problem({1, 7, 2}, 5, taps, with_bias, 9));
      const auto loss = [&] {
        Matrix<double> y(p.total, p.width);
        double sum = 0;
        for (const RowRange& s : p.sequences) {
          std::vector<double> tail(static_cast<std::size_t>(p.taps * p.width), 0.0);
          const hymba::BasicConvSequence<double> sequence{s.first_row, s.rows, tail.data()};
          hymba::reference::conv1d<double, double, double>(p.x.view(), p.weight.data(), p.bias_or_null(), p.taps,
                                                           sequence, y.view());
          for (std::int64_t t = s.first_row; t < s.first_row + s.rows; ++t) {
            for (std::int64_t e = 0; e < p.width; ++e) sum += y(t, e) * p.dy(t, e);
          }
        }
        return sum;
      };
      const std::vector<double> start_weight = p.d_weight, start_bias = p.d_bias;
      Threads exec(1);
      run<hymba::arch::scalar>(exec, p);

      struct Pair {
        double* operand;
        double gradient;
      };
      const auto compare = [&](const char* name, const std::vector<Pair>& pairs) {
        double largest = 0;
        for (const Pair& x : pairs) largest = std::max(largest, std::fabs(x.gradient));
        CHECK(largest > 0);
        Worst worst;
        for (const Pair& x : pairs) {
          const double kept = *x.operand, step = 1e-5 * (1 + std::fabs(kept));
          *x.operand = kept + step;
          const double above = loss();
          *x.operand = kept - step;
          const double below = loss();
          *x.operand = kept;
          worst.add(x.gradient, (above - below) / (2 * step), 1e-6 * largest, worst.count());
        }
        CHECK_MESSAGE(worst.ok(), name << ": " << worst);
      };
      std::vector<Pair> pairs;
      for (const RowRange& s : p.sequences) {
        for (std::int64_t t = s.first_row; t < s.first_row + s.rows; ++t) {
          for (std::int64_t e = 0; e < p.width; ++e) pairs.push_back({&p.x(t, e), p.dx(t, e)});
        }
      }
      compare("x", pairs);
      pairs.clear();
      for (std::size_t i = 0; i < p.weight.size(); ++i) {
        pairs.push_back({&p.weight[i], p.d_weight[i] - start_weight[i]});
      }
      compare("weight", pairs);
      if (with_bias) {
        pairs.clear();
        for (std::size_t i = 0; i < p.bias.size(); ++i) pairs.push_back({&p.bias[i], p.d_bias[i] - start_bias[i]});
        compare("bias", pairs);
      } else {
        CHECK(p.d_bias == start_bias);
      }
    }
  }
}

TEST_CASE("Conv1dBackward: a gradient of the bias without a bias, and the other way round") {
  for (const bool with_bias : {true, false}) {
    const Problem<float> start = random_problem({20}, 37, 4, true, 7);
    Problem<float> both = start;
    if (!with_bias) std::fill(both.bias.begin(), both.bias.end(), 0.0f);
    Problem<float> one = both;
    Threads exec(1);
    using Kernel = hymba::kernel_for<op::Conv1dBackward, hymba::arch::best>;
    run<hymba::arch::best>(exec, both);
    const std::size_t bytes = Kernel::scratch_bytes(4);
    hymba::AlignedBuffer memory(bytes);
    Kernel::run(exec, Scratch{memory.data(), bytes}, one.x.view(), one.weight.data(),
                with_bias ? one.bias.data() : nullptr, 4, std::span<const RowRange>(one.sequences), one.dy.view(),
                one.dx.view(), one.d_weight.data(), with_bias ? nullptr : one.d_bias.data());
    CHECK(one.dx == both.dx);
    CHECK(one.d_weight == both.d_weight);
    CHECK(one.d_bias == (with_bias ? start.d_bias : both.d_bias));
  }
}

TEST_CASE("Conv1dBackward without rows leaves everything alone") {
  for (const auto& rows : {std::vector<std::int64_t>{}, {0}, {0, 0}}) {
    const Problem<float> start = random_problem(rows, 20, 4, true, 5);
    Problem<float> p = start;
    Threads exec(max_threads);
    run<hymba::arch::best>(exec, p);
    CHECK(p.dx == start.dx);
    CHECK(p.d_weight == start.d_weight);
    CHECK(p.d_bias == start.d_bias);
  }
}
