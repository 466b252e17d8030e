// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/selective_scan.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::ScanInputs;
using hymba::ScanSequence;
using hymba::Scratch;
namespace op = hymba::op;
namespace simd = hymba::simd;

namespace {

/// One problem: inputs as columns of wider matrices, states of every sequence one after the other.
struct Problem {
  std::vector<std::int64_t> rows;
  std::int64_t total = 0, width, states;
  Matrix<float> c, dt, z, b, out;
  std::vector<float> a, skip, start;

  Problem(std::vector<std::int64_t> rows_, std::int64_t width_, std::int64_t states_, std::uint32_t seed)
      : rows(std::move(rows_)),
        total([&] {
          std::int64_t n = 0;
          for (const auto r : rows) n += r;
          return n;
        }()),
        width(width_),
        states(states_),
        c(total, width, 3),
        dt(total, width, 1),
        z(total, width, 2),
        b(total, states, 5),
        out(total, states, 4) {
    Random random(seed);
    for (std::int64_t t = 0; t < total; ++t) {
      for (std::int64_t e = 0; e < width; ++e) {
        c(t, e) = random.normal();
        dt(t, e) = random.normal(2.0f) - 2.0f;
        z(t, e) = random.normal(2.0f);
      }
      for (std::int64_t n = 0; n < states; ++n) {
        b(t, n) = random.normal();
        out(t, n) = random.normal();
      }
    }
    for (std::int64_t i = 0; i < states * width; ++i) a.push_back(-std::exp(random.uniform(-3.0f, 3.0f)));
    skip = random.vector(width);
    start = random.vector(states * width * static_cast<std::int64_t>(rows.size()));
  }
  ScanInputs inputs() const { return {c.view(), dt.view(), z.view(), b.view(), out.view(), a.data(), skip.data()}; }
  std::vector<ScanSequence> sequences(std::vector<float>& state) const {
    std::vector<ScanSequence> all;
    std::int64_t at = 0;
    for (std::size_t s = 0; s < rows.size(); ++s) {
      all.push_back({at, rows[s], state.data() + static_cast<std::int64_t>(s) * states * width});
      at += rows[s];
    }
    return all;
  }
};

/// The reference's numbers in double and a bound on the float version's error, carried through the recurrence.
struct Expected {
  Matrix<double> y, y_bound;
  std::vector<double> state, state_bound;
};

Expected expect(const Problem& p) {
  Expected r{Matrix<double>(p.total, p.width), Matrix<double>(p.total, p.width),
             std::vector<double>(p.start.begin(), p.start.end()), std::vector<double>(p.start.size(), 0.0)};
  const double u = unit_roundoff;
  std::int64_t t = 0;
  for (std::size_t s = 0; s < p.rows.size(); ++s) {
    double* state = r.state.data() + static_cast<std::int64_t>(s) * p.states * p.width;
    double* bound = r.state_bound.data() + static_cast<std::int64_t>(s) * p.states * p.width;
    std::vector<double> check(state, state + p.states * p.width);
    hymba::reference::selective_scan<double>(p.inputs(), t, p.rows[s], check.data(), r.y.view());
    for (std::int64_t i = 0; i < p.rows[s]; ++i, ++t) {
      for (std::int64_t e = 0; e < p.width; ++e) {
        const double delta = hymba::reference::softplus(static_cast<double>(p.dt(t, e)));
        const double c = static_cast<double>(p.c(t, e));
        double sum = static_cast<double>(p.skip[static_cast<std::size_t>(e)]) * c, size = std::fabs(sum), error = 0;
        for (std::int64_t n = 0; n < p.states; ++n) {
          const std::int64_t at = n * p.width + e;
          const double x = delta * static_cast<double>(p.a[static_cast<std::size_t>(at)]);
          const double decay = std::exp(x);
          // The exponent carries the time step's error and three roundings (log2 e, its product, the product with A).
          const double decay_error = (simd::exp2_error + std::fabs(x) * (simd::softplus_error + 3)) * u;
          const double kept = decay * std::fabs(state[at]);
          const double input = delta * c * static_cast<double>(p.b(t, n));
          bound[at] = decay * bound[at] * (1 + decay_error) + kept * (decay_error + 2 * u) +
                      std::fabs(input) * (simd::softplus_error + 4) * u + 0x1p-120;
          state[at] = decay * state[at] + input;
          const double seen = static_cast<double>(p.out(t, n));
          sum += state[at] * seen;
          size += std::fabs(state[at] * seen);
          error += std::fabs(seen) * bound[at];
        }
        const double gate = std::fabs(hymba::reference::silu(static_cast<double>(p.z(t, e))));
        r.y_bound(t, e) = gate * (error + size * hymba_test::gamma(static_cast<double>(p.states) + 2)) +
                          (simd::silu_error + 1) * u * std::fabs(r.y(t, e)) + 0x1p-120;
      }
    }
    for (std::size_t i = 0; i < check.size(); ++i)
      REQUIRE(std::fabs(check[i] - state[i]) <= 1e-12 * (1 + std::fabs(state[i])));
  }
  return r;
}

template <class Arch>
void check(const Problem& p) {
  using Kernel = hymba::kernel_for<op::SelectiveScan, Arch>;
  const Expected want = expect(p);
  Matrix<float> first(p.total, p.width);
  std::vector<float> first_state;
  for (int threads = 1; threads <= max_threads; ++threads) {
    Threads exec(threads);
    Matrix<float> y(p.total, p.width, 2);
    std::vector<float> state = p.start;
    const auto all = p.sequences(state);
    Kernel::run(exec, Scratch{}, p.inputs(), std::span<const ScanSequence>(all), y.view());
    CHECK(y.gaps_untouched());
    if (threads == 1) first = y, first_state = state;
    CHECK(y == first);
    CHECK(state == first_state);
  }
  Worst worst, worst_state;
  for (std::int64_t t = 0; t < p.total; ++t) {
    for (std::int64_t e = 0; e < p.width; ++e)
      worst.add(static_cast<double>(first(t, e)), want.y(t, e), want.y_bound(t, e), t, e);
  }
  for (std::size_t i = 0; i < first_state.size(); ++i) {
    worst_state.add(static_cast<double>(first_state[i]), want.state[i], want.state_bound[i],
                    static_cast<std::int64_t>(i));
  }
  CHECK_MESSAGE(worst.ok(), worst);
  CHECK_MESSAGE(worst_state.ok(), worst_state);

  // In pieces of random length: the same bits.
  Random random(5);
  Threads exec(max_threads);
  Matrix<float> y(p.total, p.width, 2);
  std::vector<float> state = p.start;
  for (const ScanSequence& s : p.sequences(state)) {
    for (std::int64_t done = 0; done < s.rows;) {
      const std::int64_t rows = std::min(s.rows - done, random.integer(1, 7));
      const ScanSequence piece{s.first_row + done, rows, s.state};
      Kernel::run(exec, Scratch{}, p.inputs(), std::span<const ScanSequence>(&piece, 1), y.view());
      done += rows;
    }
  }
  CHECK(y == first);
  CHECK(state == first_state);

  // In place of each of the inputs it may replace.
  for (int alias = 0; alias < 3; ++alias) {
    Problem q = p;
    Matrix<float>& to = alias == 0 ? q.c : alias == 1 ? q.dt : q.z;
    std::vector<float> states = p.start;
    const auto all = q.sequences(states);
    Kernel::run(exec, Scratch{}, q.inputs(), std::span<const ScanSequence>(all), to.view());
    CHECK(to == first);
    CHECK(to.gaps_untouched());
  }
}

template <class Arch>
void check_all() {
  std::uint32_t seed = 1;
  for (const std::int64_t states : {1, 5, 8, 16, 17}) {
    for (const std::int64_t width : interesting_sizes()) {
      for (const auto& rows : {std::vector<std::int64_t>{1}, {3, 1, 0, 12}})
        check<Arch>(Problem(rows, width, states, seed++));
    }
  }
  check<Arch>(Problem({300}, 200, 16, 99));
  check<Arch>(Problem({1, 1, 1, 1}, 500, 16, 98));
}

}  // namespace

TEST_CASE("SelectiveScan in plain loops against double") { check_all<hymba::arch::scalar>(); }
TEST_CASE("SelectiveScan in vectors against double") { check_all<hymba::arch::best>(); }

TEST_CASE("SelectiveScan keeps its state over steps of length zero and forgets over long ones") {
  // delta is 0 to rounding for dt = -200 and 200 for dt = 200: the state is kept, or replaced by the input.
  for (const float dt : {-200.0f, 200.0f}) {
    Problem p({1}, 40, 16, 3);
    for (std::int64_t e = 0; e < p.width; ++e) p.dt(0, e) = dt;
    std::fill(p.a.begin(), p.a.end(), -1.0f);
    std::vector<float> state = p.start;
    const auto all = p.sequences(state);
    Threads exec(1);
    Matrix<float> y(1, p.width);
    hymba::kernel_for<op::SelectiveScan, hymba::arch::best>::run(exec, Scratch{}, p.inputs(),
                                                                 std::span<const ScanSequence>(all), y.view());
    for (std::int64_t n = 0; n < p.states; ++n) {
      for (std::int64_t e = 0; e < p.width; ++e) {
        const auto i = static_cast<std::size_t>(n * p.width + e);
        CHECK(state[i] == (dt < 0 ? p.start[i] : dt * p.c(0, e) * p.b(0, n)));
      }
    }
  }
}
