// SPDX-License-Identifier: Apache-2.0
#include <hymba/kernels/conv1d.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::ConvSequence;
using hymba::Scratch;
namespace op = hymba::op;

namespace {

struct Layout {
  std::vector<std::int64_t> rows;  ///< of each sequence
  std::int64_t total() const {
    std::int64_t n = 0;
    for (const auto r : rows) n += r;
    return n;
  }
};

template <class Arch>
void check(const Layout& layout, std::int64_t width, int taps, bool with_bias, std::uint32_t seed) {
  using Kernel = hymba::kernel_for<op::Conv1d, Arch>;
  Random random(seed);
  const std::int64_t total = layout.total(), kept = taps - 1;
  const auto x = random.matrix(total, width, 3);
  const auto weight = random.vector(taps * width), bias = random.vector(width);
  const float* b = with_bias ? bias.data() : nullptr;
  const auto tails =
      random.vector(std::max<std::int64_t>(1, kept * width * static_cast<std::int64_t>(layout.rows.size())));
  const auto sequences = [&](std::vector<float>& t) {
    std::vector<ConvSequence> all;
    std::int64_t at = 0;
    for (std::size_t s = 0; s < layout.rows.size(); ++s) {
      all.push_back({at, layout.rows[s], kept > 0 ? t.data() + static_cast<std::int64_t>(s) * kept * width : nullptr});
      at += layout.rows[s];
    }
    return all;
  };

  Matrix<double> want(total, width), size(total, width), sum(total, width);
  std::vector<float> want_tails = tails;
  for (const ConvSequence& s : sequences(want_tails)) {
    hymba::reference::conv1d<double>(x.view(), weight.data(), b, taps, s, want.view());
    for (std::int64_t i = 0; i < s.rows; ++i) {
      for (std::int64_t e = 0; e < width; ++e) {
        double magnitude = with_bias ? std::fabs(static_cast<double>(bias[static_cast<std::size_t>(e)])) : 0.0;
        double exact = with_bias ? static_cast<double>(bias[static_cast<std::size_t>(e)]) : 0.0;
        for (int k = 0; k < taps; ++k) {
          const std::int64_t at = i - taps + 1 + k;
          const double in = static_cast<double>(at >= 0 ? x(s.first_row + at, e) : s.tail[(at + kept) * width + e]);
          const double product = in * static_cast<double>(weight[static_cast<std::size_t>(k * width + e)]);
          exact += product;
          magnitude += std::fabs(product);
        }
        size(s.first_row + i, e) = magnitude;
        sum(s.first_row + i, e) = exact;
      }
    }
    std::vector<float> history(s.tail, s.tail + kept * width);
    for (std::int64_t i = 0; i < s.rows; ++i) {
      for (std::int64_t e = 0; e < width; ++e) history.push_back(x(s.first_row + i, e));
    }
    std::copy(history.end() - kept * width, history.end(), s.tail);
  }

  Matrix<float> first(total, width);
  for (int threads = 1; threads <= max_threads; ++threads) {
    Threads exec(threads);
    Matrix<float> y(total, width, 2);
    std::vector<float> t = tails;
    const auto all = sequences(t);
    Kernel::run(exec, Scratch{}, x.view(), weight.data(), b, taps, std::span<const ConvSequence>(all), y.view());
    CHECK(t == want_tails);
    CHECK(y.gaps_untouched());
    if (threads == 1) first = y;
    CHECK(first == y);
    Worst worst;
    for (std::int64_t r = 0; r < total; ++r) {
      for (std::int64_t e = 0; e < width; ++e) {
        // The slope of silu is at most 1.1; the function itself and its result round.
        const double bound = 1.1 * hymba_test::gamma(taps + 1) * size(r, e) +
                             hymba::simd::silu_error * unit_roundoff * std::fabs(want(r, e)) + 0x1p-120;
        worst.add(static_cast<double>(y(r, e)), want(r, e), bound, r, e);
      }
    }
    CHECK_MESSAGE(worst.ok(), worst);
  }

  // Every sequence cut in pieces of random length, and each piece alone in its call: the same bits.
  Threads exec(max_threads);
  Matrix<float> y(total, width, 2);
  std::vector<float> t = tails;
  for (const ConvSequence& s : sequences(t)) {
    for (std::int64_t done = 0; done < s.rows;) {
      const std::int64_t rows = std::min(s.rows - done, random.integer(1, 5));
      const ConvSequence piece{s.first_row + done, rows, s.tail};
      Kernel::run(exec, Scratch{}, x.view(), weight.data(), b, taps, std::span<const ConvSequence>(&piece, 1),
                  y.view());
      done += rows;
    }
  }
  CHECK(y == first);
  CHECK(t == want_tails);
}

template <class Arch>
void check_all() {
  std::uint32_t seed = 1;
  for (const auto& layout :
       {Layout{{1}}, Layout{{2}}, Layout{{7}}, Layout{{1, 3, 1, 9, 2}}, Layout{{0, 4, 0}}, Layout{{64}}}) {
    for (const int taps : {1, 2, 3, 4, 6}) {
      for (const std::int64_t width : interesting_sizes())
        check<Arch>(layout, width, taps, seed % 2 == 0, seed), ++seed;
    }
  }
  check<Arch>(Layout{{300, 200}}, 700, 4, true, 77);
}

}  // namespace

TEST_CASE("Conv1d in plain loops against double") { check_all<hymba::arch::scalar>(); }
TEST_CASE("Conv1d in vectors against double") { check_all<hymba::arch::best>(); }

TEST_CASE("Conv1d without sequences does nothing") {
  Threads exec(max_threads);
  Matrix<float> x(0, 5), y(0, 5);
  const float weight[5] = {};
  hymba::kernel_for<op::Conv1d, hymba::arch::best>::run(exec, Scratch{}, x.view(), weight, nullptr, 1,
                                                        std::span<const ConvSequence>(), y.view());
}
