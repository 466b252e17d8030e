// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/train/kernels/attention_backward.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::AttentionGradientSequence;
using hymba::AttentionShape;
using hymba::Scratch;
namespace op = hymba::op;
namespace simd = hymba::simd;

namespace {

/// The operands of sequences of the given lengths, row blocks in reverse order, a gap behind each head's cache.
template <class T>
struct Problem {
  AttentionShape shape;
  std::vector<std::int64_t> lengths;
  Matrix<T> q, out, dout, dq;
  std::vector<Matrix<T>> keys, values, d_keys, d_values;  ///< [kv_heads, rows * width] per sequence

  Problem(const AttentionShape& s, std::vector<std::int64_t> l, std::int64_t total)
      : shape(s),
        lengths(std::move(l)),
        q(total, s.query_heads * s.key_width, 3),
        out(total, s.query_heads * s.value_width, 1),
        dout(total, s.query_heads * s.value_width, 2),
        dq(total, s.query_heads * s.key_width, 5) {}

  std::int64_t first_row(std::size_t i) const {
    std::int64_t first = 0;
    for (std::size_t j = i + 1; j < lengths.size(); ++j) first += lengths[j];
    return first;
  }
  std::vector<AttentionGradientSequence<T>> sequences() {
    std::vector<AttentionGradientSequence<T>> all;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      all.push_back({first_row(i), lengths[i], keys[i].data(), values[i].data(), d_keys[i].data(), d_values[i].data(),
                     keys[i].view().stride, values[i].view().stride});
    }
    return all;
  }
  /// Runs the plain forward pass in double.
  void forward(Matrix<T>& to) const {
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      hymba::AttentionSequence<T> s;
      s.first_row = first_row(i);
      s.rows = lengths[i];
      s.segment_count = 1;
      s.segments[0] = {keys[i].data(), values[i].data(), keys[i].view().stride, values[i].view().stride, 0, lengths[i]};
      hymba::reference::attention<double, T, T, T>(shape, q.view(), s, to.view());
    }
  }
};

Problem<float> random_problem(const AttentionShape& shape, const std::vector<std::int64_t>& lengths,
                              std::uint32_t seed) {
  Random random(seed);
  std::int64_t total = 0;
  for (const std::int64_t n : lengths) total += n;
  Problem<float> p(shape, lengths, total);
  const auto fill = [&](Matrix<float>& m) {
    for (std::int64_t r = 0; r < m.rows(); ++r) {
      for (std::int64_t c = 0; c < m.cols(); ++c) m(r, c) = random.normal();
    }
  };
  for (const std::int64_t n : lengths) {
    for (auto* matrices : {&p.keys, &p.d_keys}) fill(matrices->emplace_back(shape.kv_heads, n * shape.key_width, 6));
    for (auto* matrices : {&p.values, &p.d_values}) {
      fill(matrices->emplace_back(shape.kv_heads, n * shape.value_width, 3));
    }
  }
  fill(p.q);
  fill(p.dout);
  p.forward(p.out);
  return p;
}

Matrix<double> widened(const Matrix<float>& m) {
  Matrix<double> d(m.rows(), m.cols(), m.view().stride - m.cols());
  for (std::int64_t r = 0; r < m.rows(); ++r) {
    for (std::int64_t c = 0; c < m.cols(); ++c) d(r, c) = static_cast<double>(m(r, c));
  }
  return d;
}
Problem<double> widened(const Problem<float>& p) {
  Problem<double> d(p.shape, p.lengths, p.q.rows());
  d.q = widened(p.q), d.out = widened(p.out), d.dout = widened(p.dout);
  for (std::size_t i = 0; i < p.lengths.size(); ++i) {
    d.keys.push_back(widened(p.keys[i]));
    d.values.push_back(widened(p.values[i]));
    d.d_keys.push_back(widened(p.d_keys[i]));
    d.d_values.push_back(widened(p.d_values[i]));
  }
  return d;
}

template <class Arch, class T>
void run(int threads, Problem<T>& p) {
  using Kernel = hymba::kernel_for<op::AttentionBackward, Arch>;
  Threads exec(threads);
  const std::int64_t longest = p.lengths.empty() ? 0 : *std::max_element(p.lengths.begin(), p.lengths.end());
  const std::size_t bytes = Kernel::scratch_bytes(p.shape, longest);
  REQUIRE(bytes % hymba::alignment == 0);
  hymba::AlignedBuffer memory(bytes * static_cast<std::size_t>(threads));
  if (memory.size() > 0) std::memset(memory.data(), 0xff, memory.size());  // NaN: nothing may count on zeros
  Kernel::run(exec, Scratch{memory.data(), bytes}, p.shape, p.q.view(), p.out.view(), p.dout.view(), p.sequences(),
              p.dq.view());
}

/// Bounds of the errors of sequence `i`: those of each weight, score gradient and sum, one behind the other.
struct Bounds {
  std::vector<double> dq, dk, dv;  ///< [rows, H * dk], [kv_heads, rows * dk], [kv_heads, rows * dv]
};
Bounds bounds_of(const Problem<double>& p, std::size_t i) {
  using hymba_test::gamma;
  const AttentionShape& shape = p.shape;
  const std::int64_t dk = shape.key_width, dv = shape.value_width, rows = p.lengths[i], first = p.first_row(i);
  const double u = unit_roundoff, scale = std::fabs(static_cast<double>(shape.scale)), n = static_cast<double>(rows);
  const auto size = [](std::int64_t k) { return static_cast<std::size_t>(k); };
  Bounds b{std::vector<double>(size(rows * shape.query_heads * dk)),
           std::vector<double>(size(rows * shape.kv_heads * dk)),
           std::vector<double>(size(rows * shape.kv_heads * dv))};
  // Terms of a sum over the rows of a cache head, some of them read and written between blocks.
  const double sum_of_rows = gamma(2 * n * shape.query_heads / shape.kv_heads + 2);
  std::vector<double> score(size(rows)), relative(size(rows));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t h = 0; h < shape.query_heads; ++h) {
      const std::int64_t g = h * shape.kv_heads / shape.query_heads;
      const double *q = &p.q(first + row, h * dk), *dout = &p.dout(first + row, h * dv),
                   *out = &p.out(first + row, h * dv), *keys = &p.keys[i](g, 0), *values = &p.values[i](g, 0);
      double largest = -HUGE_VAL, lowest = HUGE_VAL, total = 0, all = 0, mean = 0, mean_size = 0;
      for (std::int64_t j = 0; j <= row; ++j) {
        double sum = 0, magnitude = 0;
        for (std::int64_t d = 0; d < dk; ++d) {
          sum += q[d] * keys[j * dk + d];
          magnitude += std::fabs(q[d] * keys[j * dk + d]);
        }
        score[size(j)] = sum * static_cast<double>(shape.scale);
        relative[size(j)] = gamma(static_cast<double>(dk) + 5) * magnitude * scale;
        if (!shape.sees(row, j)) continue;
        largest = std::max(largest, score[size(j)]);
        lowest = std::min(lowest, score[size(j)]);
      }
      // Of an exponential: the difference from the largest, itself.
      const double shared = 3 * u * (largest - lowest) + (simd::exp2_error + 1) * u;
      for (std::int64_t j = 0; j <= row; ++j) {
        if (!shape.sees(row, j)) continue;
        const double e = std::exp(score[size(j)] - largest);
        total += e;
        all += e * (relative[size(j)] + shared);
      }
      all /= total;
      for (std::int64_t d = 0; d < dv; ++d) {
        mean += dout[d] * out[d];
        mean_size += std::fabs(dout[d] * out[d]);
      }
      for (std::int64_t j = 0; j <= row; ++j) {
        if (!shape.sees(row, j)) continue;
        const double weight = std::exp(score[size(j)] - largest) / total;
        const double of_weight = relative[size(j)] + shared + all + gamma(n + 4);
        double product = 0, product_size = 0;
        for (std::int64_t d = 0; d < dv; ++d) {
          product += dout[d] * values[j * dv + d];
          product_size += std::fabs(dout[d] * values[j * dv + d]);
        }
        const double gradient = weight * std::fabs(product - mean);
        const double error =
            gradient * (of_weight + 4 * u) + weight * (product_size + mean_size) * gamma(static_cast<double>(dv) + 6);
        for (std::int64_t d = 0; d < dv; ++d) {
          b.dv[size(g * rows * dv + j * dv + d)] += weight * std::fabs(dout[d]) * (of_weight + sum_of_rows);
        }
        for (std::int64_t d = 0; d < dk; ++d) {
          b.dk[size(g * rows * dk + j * dk + d)] +=
              scale * std::fabs(q[d]) * (error + gradient * (sum_of_rows + 4 * u));
          b.dq[size((row * shape.query_heads + h) * dk + d)] +=
              scale * std::fabs(keys[j * dk + d]) * (error + gradient * (gamma(2 * n + 4)));
        }
      }
    }
  }
  return b;
}

/// Against the double reference. `worst` is over all elements of all gradients.
void compare(const Problem<float>& got, const Problem<float>& before, Worst& worst) {
  auto want = widened(before);
  run<hymba::arch::scalar>(1, want);
  for (std::size_t i = 0; i < got.lengths.size(); ++i) {
    const std::int64_t rows = got.lengths[i], first = got.first_row(i);
    if (rows == 0) continue;
    const Bounds bounds = bounds_of(want, i);
    const auto add = [&](const Matrix<float>& m, const Matrix<double>& w, const std::vector<double>& bound,
                         const Matrix<float>* old, std::int64_t from, std::int64_t count) {
      for (std::int64_t r = 0; r < count; ++r) {
        for (std::int64_t c = 0; c < m.cols(); ++c) {
          // What the sums were added to takes part in every addition.
          const double more = old == nullptr
                                  ? 0.0
                                  : hymba_test::gamma(2 * static_cast<double>(rows) * got.shape.query_heads) *
                                        std::fabs(static_cast<double>((*old)(r, c)));
          worst.add(static_cast<double>(m(from + r, c)), w(from + r, c),
                    bound[static_cast<std::size_t>(r * m.cols() + c)] + more + 0x1p-110, from + r, c);
        }
      }
    };
    add(got.dq, want.dq, bounds.dq, nullptr, first, rows);
    add(got.d_keys[i], want.d_keys[i], bounds.dk, &before.d_keys[i], 0, got.shape.kv_heads);
    add(got.d_values[i], want.d_values[i], bounds.dv, &before.d_values[i], 0, got.shape.kv_heads);
  }
}

template <class Arch>
void check(const AttentionShape& shape, const std::vector<std::int64_t>& lengths, std::uint32_t seed,
           int most_threads = 1) {
  CAPTURE(shape.query_heads);
  CAPTURE(shape.kv_heads);
  CAPTURE(shape.key_width);
  CAPTURE(shape.value_width);
  CAPTURE(shape.window);
  CAPTURE(shape.pinned);
  CAPTURE(lengths.size());
  CAPTURE(lengths.empty() ? 0 : lengths[0]);
  const auto before = random_problem(shape, lengths, seed);
  auto first = before;
  for (int threads = 1; threads <= std::min(most_threads, max_threads); ++threads) {
    auto p = before;
    run<Arch>(threads, p);
    if (threads == 1) {
      first = p;
      Worst worst;
      compare(p, before, worst);
      CHECK_MESSAGE(worst.ok(), worst);
    }
    CHECK(p.dq == first.dq);
    CHECK(p.dq.gaps_untouched());
    CHECK(p.d_keys == first.d_keys);
    CHECK(p.d_values == first.d_values);
    for (const auto& m : p.d_keys) CHECK(m.gaps_untouched());
    for (const auto& m : p.d_values) CHECK(m.gaps_untouched());
  }
}

AttentionShape shape_of(int heads, int groups, int dk, int dv, std::int64_t window, std::int64_t pinned) {
  return {heads, groups, dk, dv, window, pinned, 0.3f};
}

template <class Arch>
void check_all() {
  std::uint32_t seed = 1;
  // Widths of every size, heads in every grouping.
  for (const int dk : {1, 3, 8, 16, 17, 33}) {
    for (const int dv : {1, 7, 16, 40}) check<Arch>(shape_of(4, 2, dk, dv, 0, 0), {11}, seed++);
  }
  check<Arch>(shape_of(2, 1, 64, 128, 0, 0), {40}, seed++);
  for (const int heads : {1, 2, 3, 6, 70}) {
    for (const int groups : {1, 2, 3}) {
      if (heads % groups == 0) check<Arch>(shape_of(heads, groups, 4, 6, 3, 1), {9}, seed++);
    }
  }
  // Lengths around vectors, panels and blocks.
  for (const std::int64_t rows : {1, 2, 15, 16, 17, 47, 48, 55, 56, 57, 63, 64, 65, 130}) {
    check<Arch>(shape_of(1, 1, 6, 10, 0, 0), {rows}, seed++);
    check<Arch>(shape_of(3, 1, 5, 4, 0, 0), {rows}, seed++);
  }
  // Windows at their edges.
  for (const std::int64_t window : {1, 2, 30, 56, 64, 129, 1000}) {
    for (const std::int64_t pinned : {0, 1, 20, 64, 500}) {
      check<Arch>(shape_of(2, 1, 4, 6, window, pinned), {100}, seed++);
    }
    check<Arch>(shape_of(1, 1, 4, 6, window, 3), {150}, seed++);
  }
  check<Arch>(shape_of(2, 2, 4, 6, 20, 100), {300}, seed++);
  check<Arch>(shape_of(70, 1, 2, 1, 100, 0), {120}, seed++);  // one or two tokens to a panel, several blocks
  // Batches.
  for (const std::int64_t window : {0, 12}) {
    check<Arch>(shape_of(4, 2, 8, 12, window, 5), {1, 70, 0, 3, 1, 33}, seed++, 3);
    check<Arch>(shape_of(2, 2, 8, 12, window, 0), {100, 90, 80}, seed++, 3);
    check<Arch>(shape_of(3, 3, 16, 8, window, 0), {160}, seed++, 3);
  }
}

}  // namespace

TEST_CASE("AttentionBackward in double against differences of Attention") {
  const std::vector<std::int64_t> lengths = {9, 1, 5};
  std::uint32_t seed = 1;
  for (const AttentionShape& shape :
       {shape_of(1, 1, 3, 4, 0, 0), shape_of(4, 2, 2, 3, 0, 0), shape_of(2, 1, 3, 2, 1, 0), shape_of(4, 2, 3, 2, 3, 2),
        shape_of(2, 2, 1, 5, 100, 1)}) {
    auto p = widened(random_problem(shape, lengths, seed++));
    p.forward(p.out);
    const auto before = p;
    run<hymba::arch::scalar>(1, p);
    Matrix<double> out(p.out.rows(), p.out.cols());
    double largest = 0, worst = 0;
    const auto loss = [&] {
      p.forward(out);
      double sum = 0;
      for (std::int64_t r = 0; r < out.rows(); ++r) {
        for (std::int64_t c = 0; c < out.cols(); ++c) sum += p.dout(r, c) * out(r, c);
      }
      return sum;
    };
    const auto differences = [&](Matrix<double>& of, const Matrix<double>& gradient, const Matrix<double>* added_to) {
      for (std::int64_t r = 0; r < of.rows(); ++r) {
        for (std::int64_t c = 0; c < of.cols(); ++c) {
          const double step = 1e-5, value = of(r, c);
          of(r, c) = value + step;
          const double above = loss();
          of(r, c) = value - step;
          const double below = loss();
          of(r, c) = value;
          const double want = gradient(r, c) - (added_to != nullptr ? (*added_to)(r, c) : 0.0);
          largest = std::max(largest, std::fabs(want));
          worst = std::max(worst, std::fabs((above - below) / (2 * step) - want));
        }
      }
    };
    differences(p.q, p.dq, nullptr);
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      differences(p.keys[i], p.d_keys[i], &before.d_keys[i]);
      differences(p.values[i], p.d_values[i], &before.d_values[i]);
    }
    CHECK(worst < 1e-7 * largest);
  }
}

TEST_CASE("AttentionBackward in plain loops against double") { check_all<hymba::arch::scalar>(); }
TEST_CASE("AttentionBackward in vectors against double") { check_all<hymba::arch::best>(); }

TEST_CASE("AttentionBackward with large scores neither overflows nor loses the largest") {
  const auto shape = AttentionShape{2, 1, 4, 4, 0, 0, 1.0f};
  auto p = random_problem(shape, {70}, 5);
  for (std::int64_t r = 0; r < p.q.rows(); ++r) {
    for (std::int64_t c = 0; c < p.q.cols(); ++c) p.q(r, c) *= 300.0f;
  }
  p.forward(p.out);
  const auto before = p;
  run<hymba::arch::best>(1, p);
  Worst worst;
  compare(p, before, worst);
  CHECK_MESSAGE(worst.ok(), worst);
}

TEST_CASE("AttentionBackward leaves rows of no sequence alone, and does nothing for nothing") {
  for (const std::vector<std::int64_t>& lengths : {std::vector<std::int64_t>{}, std::vector<std::int64_t>{0, 0}}) {
    Problem<float> p(shape_of(2, 1, 4, 4, 0, 0), lengths, 3);
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      for (auto* m : {&p.keys, &p.values, &p.d_keys, &p.d_values}) m->emplace_back(1, 0);
    }
    const auto before = p.dq;
    run<hymba::arch::best>(max_threads, p);
    CHECK(p.dq == before);
  }
}
