// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/kernels/selective_scan.hpp>
#include <hymba/train/kernels/selective_scan_backward.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

namespace {

using namespace hymba_test;
using hymba::MatrixView;
using hymba::RowRange;
using hymba::ScanGradients;
using hymba::ScanOperands;
using hymba::Scratch;
namespace op = hymba::op;
namespace simd = hymba::simd;

/// A number in double with `size`, the sum of the magnitudes of what it was added up from, and `error`, a bound on what
/// an evaluation of the same formula in float is off by. A sum of n terms is allowed n roundings of its whole size, so
/// the bound holds for every order of summation. The reference run in this type yields values and tolerances together.
struct Tracked {
  double value = 0, size = 0, error = 0;
  Tracked() = default;
  Tracked(double v) : value(v), size(std::fabs(v)) {}
  Tracked(double v, double s, double e) : value(v), size(s), error(e) {}

  friend Tracked operator+(const Tracked& a, const Tracked& b) {
    const double sizes = a.size + b.size;
    return {a.value + b.value, sizes, a.error + b.error + unit_roundoff * sizes};
  }
  friend Tracked operator-(const Tracked& a, const Tracked& b) { return a + Tracked(-b.value, b.size, b.error); }
  friend Tracked operator*(const Tracked& a, const Tracked& b) {
    const double sizes = a.size * b.size;
    return {a.value * b.value, sizes, a.size * b.error + b.size * a.error + a.error * b.error + unit_roundoff * sizes};
  }
  Tracked& operator+=(const Tracked& b) { return *this = *this + b; }
};
Tracked exp(const Tracked& x) {
  const double v = std::exp(x.value);
  // The exponent carries three roundings more than its factors': log2 e, its product with A, the product with the step.
  const double in_exponent = 3 * unit_roundoff * std::fabs(x.value) + x.error;
  return {v, v, v * (simd::exp2_error * unit_roundoff + std::expm1(in_exponent))};
}
Tracked softplus(const Tracked& x) {
  const double v = hymba::reference::softplus(x.value);
  return {v, v, x.error + simd::softplus_error * unit_roundoff * v};
}
Tracked sigmoid(const Tracked& x) {
  const double v = hymba::reference::sigmoid(x.value);
  return {v, v, 0.25 * x.error + simd::sigmoid_error * unit_roundoff * v};
}
/// Sums over states and channels are grouped otherwise than in the reference: factors are multiplied in before a sum or
/// behind it, and A passes through log2 e and ln 2. No term meets more than twice the roundings that it meets there.
double tolerance(const Tracked& want) { return 2 * want.error + 0x1p-100; }

/// Operands and gradients of one problem in `T`, as columns of wider matrices. Rows that belong to no sequence lie
/// between the sequences and behind them.
template <class T>
struct Problem {
  std::vector<RowRange> sequences;
  std::int64_t total = 0, width, states;
  Matrix<T> c, dt, z, b, out, dy;
  std::vector<T> a, skip;
  Matrix<T> d_c, d_dt, d_z, d_b, d_out;
  std::vector<T> d_a, d_skip;

  Problem(std::vector<RowRange> sequences_, std::int64_t total_, std::int64_t width_, std::int64_t states_)
      : sequences(std::move(sequences_)),
        total(total_),
        width(width_),
        states(states_),
        c(total, width, 3),
        dt(total, width, 1),
        z(total, width, 2),
        b(total, states, 5),
        out(total, states, 4),
        dy(total, width, 1),
        a(static_cast<std::size_t>(states * width)),
        skip(static_cast<std::size_t>(width)),
        d_c(total, width, 2),
        d_dt(total, width, 4),
        d_z(total, width, 3),
        d_b(total, states, 1),
        d_out(total, states, 2),
        d_a(a.size()),
        d_skip(skip.size()) {}

  Matrix<T>* operands_of_rows(int i) {
    Matrix<T>* const all[] = {&c, &dt, &z, &b, &out, &dy};
    return all[i];
  }
  const Matrix<T>* gradients_of_rows(int i) const {
    const Matrix<T>* const all[] = {&d_c, &d_dt, &d_z, &d_b, &d_out};
    return all[i];
  }
  ScanOperands<T> operands() const {
    return {c.view(), dt.view(), z.view(), b.view(), out.view(), a.data(), skip.data()};
  }
  ScanGradients<T> gradients() {
    return {d_c.view(), d_dt.view(), d_z.view(), d_b.view(), d_out.view(), d_a.data(), d_skip.data()};
  }
  std::span<const RowRange> ranges() const { return sequences; }

  /// The same problem in another type.
  template <class To>
  Problem<To> as() const {
    Problem<To> r(sequences, total, width, states);
    for (int i = 0; i < 6; ++i) {
      const Matrix<T>& from = *const_cast<Problem*>(this)->operands_of_rows(i);
      Matrix<To>& to = *r.operands_of_rows(i);
      for (std::int64_t t = 0; t < total; ++t) {
        for (std::int64_t e = 0; e < from.cols(); ++e) to(t, e) = To(static_cast<double>(from(t, e)));
      }
    }
    const auto copy = [](const std::vector<T>& from, std::vector<To>& to) {
      std::transform(from.begin(), from.end(), to.begin(), [](T x) { return To(static_cast<double>(x)); });
    };
    copy(a, r.a), copy(skip, r.skip), copy(d_a, r.d_a), copy(d_skip, r.d_skip);
    return r;
  }
};

Problem<float> random_problem(const std::vector<std::int64_t>& rows, std::int64_t width, std::int64_t states,
                              std::uint32_t seed) {
  std::vector<RowRange> sequences;
  std::int64_t at = 0;
  for (const std::int64_t r : rows) {
    sequences.push_back({at, r});
    at += r + static_cast<std::int64_t>(sequences.size()) % 2;
  }
  // Their order is the caller's affair.
  if (seed % 2 == 0) std::reverse(sequences.begin(), sequences.end());
  Problem<float> p(sequences, at, width, states);
  Random random(seed);
  for (std::int64_t t = 0; t < p.total; ++t) {
    for (std::int64_t e = 0; e < width; ++e) {
      p.c(t, e) = random.normal();
      p.dt(t, e) = random.normal(2.0f) - 2.0f;
      p.z(t, e) = random.normal(2.0f);
      p.dy(t, e) = random.normal();
    }
    for (std::int64_t n = 0; n < states; ++n) {
      p.b(t, n) = random.normal();
      p.out(t, n) = random.normal();
    }
  }
  for (float& a : p.a) a = -std::exp(random.uniform(-3.0f, 3.0f));
  p.skip = random.vector(width);
  p.d_a = random.vector(states * width);
  p.d_skip = random.vector(width);
  return p;
}

/// Runs the kernel with exactly the scratch memory it asks for.
template <class Arch, class Exec, class T>
void run(Exec& exec, Problem<T>& p) {
  using Kernel = hymba::kernel_for<op::SelectiveScanBackward, Arch>;
  std::int64_t longest = 0;
  for (const RowRange& s : p.sequences) longest = std::max(longest, s.rows);
  const std::size_t bytes = Kernel::scratch_bytes(longest, p.total, p.states);
  CHECK(bytes % 64 == 0);
  hymba::AlignedBuffer memory(bytes * static_cast<std::size_t>(exec.threads()));
  std::fill_n(memory.data(), memory.size(), std::byte{0xff});  // NaN: nothing is read before it is written
  Kernel::run(exec, Scratch{memory.data(), bytes}, p.operands(), p.ranges(), p.dy.view(), p.gradients());
}

template <class T>
bool same(const Problem<T>& x, const Problem<T>& y) {
  for (int i = 0; i < 5; ++i) {
    if (!(*x.gradients_of_rows(i) == *y.gradients_of_rows(i))) return false;
  }
  return x.d_a == y.d_a && x.d_skip == y.d_skip;
}

/// As many threads as it is told, but one does everything, last task first.
struct Backwards {
  int count;
  explicit Backwards(int n) : count(n) {}
  int threads() const { return count; }
  template <class Body>
  void parallel_for(std::int64_t tasks, Body&& body) const {
    for (std::int64_t i = tasks; i-- > 0;) body(i, 0);
  }
};
static_assert(hymba::Executor<Backwards>);

template <class Arch>
void check(const Problem<float>& start, int threads_to = 3) {
  static const char* const names[] = {"dc", "d(dt)", "dz", "dB", "dC"};
  Problem<Tracked> want = start.as<Tracked>();
  std::vector<char> in_sequence(static_cast<std::size_t>(start.total));
  std::vector<Tracked> history;
  for (const RowRange& s : start.sequences) {
    history.resize(static_cast<std::size_t>((s.rows + 1) * start.states));
    hymba::reference::selective_scan_backward(want.operands(), s, want.dy.view(), want.gradients(), history.data());
    for (std::int64_t t = 0; t < s.rows; ++t) in_sequence[static_cast<std::size_t>(s.first_row + t)] = 1;
  }
  CAPTURE(start.width);
  CAPTURE(start.states);
  for (int threads = 1; threads <= std::min(threads_to, max_threads); ++threads) {
    CAPTURE(threads);
    Threads exec(threads);
    Problem<float> got = start;
    run<Arch>(exec, got);
    for (int i = 0; i < 5; ++i) {
      const Matrix<float>& g = *got.gradients_of_rows(i);
      const Matrix<float>& untouched = *start.gradients_of_rows(i);
      const Matrix<Tracked>& w = *want.gradients_of_rows(i);
      CHECK(g.gaps_untouched());
      Worst worst;
      bool left_alone = true;
      for (std::int64_t t = 0; t < start.total; ++t) {
        for (std::int64_t e = 0; e < g.cols(); ++e) {
          if (in_sequence[static_cast<std::size_t>(t)] != 0) {
            worst.add(static_cast<double>(g(t, e)), w(t, e).value, tolerance(w(t, e)), t, e);
          } else {
            left_alone = left_alone && g(t, e) == untouched(t, e);
          }
        }
      }
      CHECK_MESSAGE(worst.ok(), names[i] << ": " << worst);
      CHECK_MESSAGE(left_alone, names[i]);
    }
    Worst worst_a, worst_skip;
    for (std::size_t i = 0; i < got.d_a.size(); ++i) {
      worst_a.add(static_cast<double>(got.d_a[i]), want.d_a[i].value, tolerance(want.d_a[i]),
                  static_cast<std::int64_t>(i));
    }
    for (std::size_t i = 0; i < got.d_skip.size(); ++i) {
      worst_skip.add(static_cast<double>(got.d_skip[i]), want.d_skip[i].value, tolerance(want.d_skip[i]),
                     static_cast<std::int64_t>(i));
    }
    CHECK_MESSAGE(worst_a.ok(), "dA: " << worst_a);
    CHECK_MESSAGE(worst_skip.ok(), "dD: " << worst_skip);

    // Whoever runs which part when: the number of threads decides.
    Problem<float> again = start;
    Backwards other(threads);
    run<Arch>(other, again);
    CHECK(same(again, got));
  }
}

template <class Arch>
void check_all() {
  std::uint32_t seed = 1;
  for (const std::int64_t states : {1, 3, 8, 16, 17}) {
    for (const std::int64_t width : interesting_sizes()) {
      const std::vector<std::int64_t> rows = seed % 3 == 0   ? std::vector<std::int64_t>{1}
                                             : seed % 3 == 1 ? std::vector<std::int64_t>{3, 1, 0, 12}
                                                             : std::vector<std::int64_t>{2, 35};
      check<Arch>(random_problem(rows, width, states, seed), width == 100 ? 3 : 2);
      ++seed;
    }
  }
  // Around whole chunks.
  for (const std::int64_t rows : {31, 32, 33, 64, 65, 97}) check<Arch>(random_problem({rows}, 19, 5, seed++), 1);
  // More channels than are worked on at a time.
  check<Arch>(random_problem({40, 5}, 1043, 3, seed++));
  check<Arch>(random_problem({200, 1, 70}, 150, 16, seed++));
}

}  // namespace

TEST_CASE("SelectiveScanBackward in plain loops against double") { check_all<hymba::arch::scalar>(); }
TEST_CASE("SelectiveScanBackward in vectors against double") { check_all<hymba::arch::best>(); }

TEST_CASE("SelectiveScanBackward against central differences of SelectiveScan in double") {
  for (const std::int64_t states : {1, 3}) {
    Problem<double> p = random_problem({1, 6, 3}, 5, states, 11).as<double>();
    const auto loss = [&] {
      const hymba::BasicScanInputs<double> in{p.c.view(),   p.dt.view(), p.z.view(),   p.b.view(),
                                              p.out.view(), p.a.data(),  p.skip.data()};
      Matrix<double> y(p.total, p.width);
      double sum = 0;
      for (const RowRange& s : p.sequences) {
        std::vector<double> state(static_cast<std::size_t>(p.states * p.width), 0.0);
        hymba::reference::selective_scan<double, double, double>(in, s.first_row, s.rows, state.data(), y.view());
        for (std::int64_t t = s.first_row; t < s.first_row + s.rows; ++t) {
          for (std::int64_t e = 0; e < p.width; ++e) sum += y(t, e) * p.dy(t, e);
        }
      }
      return sum;
    };
    const std::vector<double> start_a = p.d_a, start_skip = p.d_skip;
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
        worst.add(x.gradient, (above - below) / (2 * step), 1e-6 * largest, static_cast<std::int64_t>(worst.count()));
      }
      CHECK_MESSAGE(worst.ok(), name << ": " << worst);
    };
    static const char* const names[] = {"c", "dt", "z", "B", "C"};
    for (int i = 0; i < 5; ++i) {
      std::vector<Pair> pairs;
      Matrix<double>& operand = *p.operands_of_rows(i);
      for (const RowRange& s : p.sequences) {
        for (std::int64_t t = s.first_row; t < s.first_row + s.rows; ++t) {
          for (std::int64_t e = 0; e < operand.cols(); ++e) {
            pairs.push_back({&operand(t, e), (*p.gradients_of_rows(i))(t, e)});
          }
        }
      }
      compare(names[i], pairs);
    }
    std::vector<Pair> pairs;
    for (std::size_t i = 0; i < p.a.size(); ++i) pairs.push_back({&p.a[i], p.d_a[i] - start_a[i]});
    compare("A", pairs);
    pairs.clear();
    for (std::size_t i = 0; i < p.skip.size(); ++i) pairs.push_back({&p.skip[i], p.d_skip[i] - start_skip[i]});
    compare("D", pairs);
  }
}

TEST_CASE("SelectiveScanBackward of steps of length zero and of long ones, through closed and open gates") {
  Problem<float> p = random_problem({40}, 37, 16, 3);
  for (std::int64_t t = 0; t < p.total; ++t) {
    for (std::int64_t e = 0; e < p.width; ++e) {
      p.dt(t, e) = (t + e) % 3 == 0 ? -200.0f : (t + e) % 3 == 1 ? 200.0f : p.dt(t, e);
      p.z(t, e) = (t + e) % 5 == 0 ? -150.0f : (t + e) % 5 == 1 ? 150.0f : p.z(t, e);
    }
  }
  check<hymba::arch::scalar>(p);
  check<hymba::arch::best>(p);
}

TEST_CASE("SelectiveScanBackward without rows leaves everything alone") {
  for (const auto& rows : {std::vector<std::int64_t>{}, {0}, {0, 0}}) {
    const Problem<float> start = random_problem(rows, 20, 4, 5);
    Problem<float> p = start;
    Threads exec(max_threads);
    run<hymba::arch::best>(exec, p);
    CHECK(same(p, start));
  }
}
