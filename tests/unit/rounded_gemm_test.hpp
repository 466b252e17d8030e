// SPDX-License-Identifier: Apache-2.0
//
// What the tests of op::Gemm on architectures that round operands share: problems, and their answers from the products
// of the rounded operands in double.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/kernels/gemm.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernel_test.hpp"
#include "test_executor.hpp"
#include "tolerance.hpp"

namespace hymba_test {

using namespace hymba;

inline std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// What products of bf16, on tiles or by dot products, see of a number: the nearest bf16, and zero if it is subnormal.
inline double seen_as_bf16(float value) {
  if (std::fabs(value) < 0x1p-126f) return 0.0;
  return static_cast<double>(static_cast<float>(bf16(value)));
}

/// Activations as int8 and int4 weights meet them, by the rule: the scale of each 256 columns is their largest
/// magnitude over 127, and each number is the nearest multiple of it (an even one when two are as near). Returns the
/// largest error.
inline double quantise_by_rule(const float* row, std::int64_t cols, double* integers, double* scales) {
  double worst = 0;
  for (std::int64_t first = 0; first < cols; first += 256) {
    const std::int64_t last = std::min(cols, first + 256);
    float largest = 0;
    for (std::int64_t i = first; i < last; ++i) largest = std::max(largest, std::fabs(row[i]));
    const bool tiny = largest < 0x1p-118f;
    // In single precision, as the kernel does, so that numbers near the middle of two multiples go the same way.
    const float inverse = tiny ? 0.0f : 127.0f / largest;
    const auto scale = static_cast<double>(tiny ? 0.0f : largest / 127.0f);
    scales[first / 256] = scale;
    for (std::int64_t i = first; i < last; ++i) {
      integers[i] = static_cast<double>(std::nearbyint(row[i] * inverse));
      const double error = std::fabs(scale * integers[i] - static_cast<double>(row[i]));
      if (scale > 0) worst = std::max(worst, error / scale);
    }
  }
  return worst;
}

/// How many units of roundoff a sum of products of bf16 is off after one more of them, at most.
inline constexpr double rounding_bf16 =
#if defined(__aarch64__)
    2.0;
#else
    1.0;
#endif

enum class Numbers { normal, bytes };  // bytes: integers whose scale is 1

/// One random problem, all its arrays exactly as large as needed, rows apart.
template <class Arch, Weights W>
struct Problem {
  using Kernel = kernel_for<op::Gemm, Arch>;
  using Format = weight_format<W>;
  static constexpr bool bytes = Format::quantised;
  std::int64_t rows, in, out;
  Matrix<float> x, y0;
  std::vector<float> bias;
  std::vector<std::byte> w;
  bool rotated = false;

  Problem(std::int64_t t, std::int64_t i, std::int64_t o, std::uint32_t seed, Numbers numbers = Numbers::normal)
      : rows(t), in(i), out(o), x(t, i, seed % 3), y0(t, o, seed % 5) {
    Random random(seed);
    const auto any = [&] {
      return numbers == Numbers::bytes ? static_cast<float>(random.integer(-127, 127)) : random.normal();
    };
    for (std::int64_t r = 0; r < t; ++r) {
      for (std::int64_t c = 0; c < i; ++c) x(r, c) = numbers == Numbers::bytes && c % 256 == 0 ? 127.0f : any();
      for (std::int64_t c = 0; c < o; ++c) y0(r, c) = any();
    }
    for (std::int64_t c = 0; c < o; ++c) bias.push_back(any());
    w.resize(at(o) * Format::row_bytes(i));
    std::vector<float> row(at(i));
    for (std::int64_t r = 0; r < o; ++r) {
      for (std::int64_t c = 0; c < i; ++c) row[at(c)] = numbers == Numbers::bytes && c % 256 == 0 ? -127.0f : any();
      Format::encode_row(row.data(), i, w.data() + at(r) * Format::row_bytes(i));
    }
  }
  WeightMatrix<W> weights() const { return {w.data(), out, in, rotated}; }

  /// Rows [first, first + count), in exactly the scratch that the kernel asks for, full of NaN.
  Matrix<float> run(int threads, bool with_bias, Store store, std::int64_t first, std::int64_t count) const {
    const std::size_t per_thread = Kernel::scratch_bytes(count, in, out);
    const std::size_t all = gemm_shared_bytes<Arch>(count, in, out, rotated);
    REQUIRE(per_thread % 64 == 0);
    AlignedBuffer memory(per_thread * static_cast<std::size_t>(threads)), shared(all);
    if (memory.size() > 0) std::memset(memory.data(), 0xff, memory.size());
    if (shared.size() > 0) std::memset(shared.data(), 0xff, shared.size());
    Matrix<float> y(count, out, y0.view().stride - out);
    for (std::int64_t r = 0; r < count; ++r) {
      for (std::int64_t c = 0; c < out; ++c) y(r, c) = y0(first + r, c);
    }
    TestExecutor exec(threads);
    Kernel::run(exec, Scratch{memory.data(), per_thread, shared.data()}, x.view().row_range(first, count), weights(),
                with_bias ? bias.data() : nullptr, y.view(), store);
    CHECK(y.gaps_untouched());
    return y;
  }
  Matrix<float> run(int threads, bool with_bias, Store store) const { return run(threads, with_bias, store, 0, rows); }

  /// Against sums in double of what the kernel multiplies.
  void check(const Matrix<float>& y, bool with_bias, Store store, bool exact = false) const {
    hymba_test::Worst worst;
    const std::int64_t block = bytes ? 256 : in, blocks = (in + block - 1) / block;
    std::vector<double> left(at(out * in)), left_scale(at(out * blocks), 1.0), right(at(in)),
        right_scale(at(blocks), 1.0);
    for (std::int64_t o = 0; o < out; ++o) {
      const std::byte* row = weights().row(o);
      for (std::int64_t i = 0; i < in; ++i) {
        if constexpr (bytes) {
          left[at(o * in + i)] = static_cast<double>(Format::integer(row, in, i));
          left_scale[at(o * blocks + i / 256)] = static_cast<double>(Format::scale(row, in, i / 256));
        } else {
          left[at(o * in + i)] = seen_as_bf16(Format::template number<float>(row, in, i));
        }
      }
    }
    for (std::int64_t t = 0; t < rows; ++t) {
      if constexpr (bytes) {
        const double off = quantise_by_rule(&x(t, 0), in, right.data(), right_scale.data());
        // Half a step, and the roundings of scale, inverse and product.
        CHECK(off <= 0.5 + 4 * 127 * hymba_test::unit_roundoff);
      } else {
        for (std::int64_t i = 0; i < in; ++i) right[at(i)] = seen_as_bf16(x(t, i));
      }
      for (std::int64_t o = 0; o < out; ++o) {
        double sum = (with_bias ? static_cast<double>(bias[at(o)]) : 0.0) +
                     (store == Store::add ? static_cast<double>(y0(t, o)) : 0.0);
        double magnitude = (with_bias ? std::fabs(static_cast<double>(bias[at(o)])) : 0.0) +
                           (store == Store::add ? std::fabs(static_cast<double>(y0(t, o))) : 0.0);
        for (std::int64_t b = 0; b < blocks; ++b) {
          const double scale = left_scale[at(o * blocks + b)] * right_scale[at(b)];
          double part = 0, part_magnitude = 0;
          for (std::int64_t i = b * block; i < std::min(in, (b + 1) * block); ++i) {
            const double product = left[at(o * in + i)] * right[at(i)];
            part += product;
            part_magnitude += std::fabs(product);
          }
          sum += part * scale;
          magnitude += bytes ? std::fabs(part * scale) : part_magnitude;
        }
        // Bytes: the sum of a block is exact; one rounding of its scale, one of each addition of a block, one each for
        // the bias and the old value. bf16: a sum of n products in any order, and the same two; subnormal sums are
        // zero. bfdot rounds to odd: off by twice as much as the nearest.
        const double roundings = (static_cast<double>(bytes ? blocks : in) + 3.0) * (bytes ? 1.0 : rounding_bf16);
        const double bound = hymba_test::gamma(roundings) * magnitude + roundings * 0x1p-126;
        worst.add(static_cast<double>(y(t, o)), sum, exact ? 0.0 : bound, t, o);
      }
    }
    const std::string text = worst.text();
    INFO(Format::name, " T=", rows, " I=", in, " O=", out, ": ", text);
    CHECK(worst.ok());
  }
};

template <class Arch, Weights W>
void all_sizes() {
  // Around a tile and two, along k for bf16 (32) and bytes (64), around a block (256), and beyond what is kept near.
  const std::int64_t deep[] = {1, 31, 32, 33, 63, 64, 65, 100, 127, 129, 191, 255, 256, 257, 450, 600, 1025, 1733};
  std::uint32_t seed = 0;
  for (const std::int64_t t : {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 31, 32, 33, 48, 65}) {
    for (const std::int64_t i : deep) {
      for (const std::int64_t o : {1, 2, 15, 16, 17, 31, 32, 33, 67}) {
        // A third of the combinations, which ones differing from row to row; all of few columns.
        if (++seed % 3 != 0 && i > 129) continue;
        const Problem<Arch, W> p(t, i, o, seed);
        const bool with_bias = seed % 2 == 0;
        const Store store = seed % 8 < 4 ? Store::assign : Store::add;
        p.check(p.run(static_cast<int>(1 + seed % 4), with_bias, store), with_bias, store);
      }
    }
  }
}

template <class Arch, Weights W>
void large() {
  struct Shape {
    std::int64_t rows, in, out;
  };
  // More tokens than are packed at once; more panels of weights than have their sums held at once; both.
  for (const Shape& shape : {Shape{530, 300, 37}, Shape{530, 1100, 290}, Shape{33, 2049, 530}, Shape{1, 5504, 530},
                             Shape{1, 3000, 1600}, Shape{11, 5504, 530}, Shape{17, 1733, 131}}) {
    const Problem<Arch, W> p(shape.rows, shape.in, shape.out, 77);
    const Matrix<float> one = p.run(1, true, Store::add);
    p.check(one, true, Store::add);
    for (int threads = 2; threads <= 4; ++threads) CHECK(p.run(threads, true, Store::add) == one);
  }
}

template <class Arch, Weights W>
void independent_of_rows() {
  for (const std::int64_t in : {7, 100, 600, 1600, 2500}) {
    for (const bool with_bias : {false, true}) {
      const Store store = with_bias == (in % 200 == 0) ? Store::assign : Store::add;
      const Problem<Arch, W> all(530, in, 37, 5);
      const Matrix<float> want = all.run(2, with_bias, store);
      for (const std::int64_t chunk : {1, 2, 3, 4, 5, 8, 9, 13, 15, 16, 17, 33, 64, 513}) {
        for (std::int64_t t = 0; t < all.rows; t += chunk * (chunk < 10 ? 7 : 2)) {
          const std::int64_t count = std::min(chunk, all.rows - t);
          const Matrix<float> got = all.run(1, with_bias, store, t, count);
          std::int64_t wrong = 0;
          for (std::int64_t r = 0; r < count; ++r) {
            wrong += std::memcmp(&got(r, 0), &want(t + r, 0), at(all.out) * sizeof(float)) != 0;
          }
          CHECK(wrong == 0);
        }
      }
    }
  }
}

template <class Arch, Weights W>
void not_finite() {
  for (const std::int64_t rows : {1, 2, 6, 35}) {
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      for (const std::int64_t column : {0, 299}) {
        Problem<Arch, W> p(rows, 300, 37, 2);
        const Matrix<float> before = p.run(1, true, Store::assign);
        const std::int64_t row = rows - 1;
        p.x(row, column) = bad;
        const Matrix<float> y = p.run(2, true, Store::assign);
        for (std::int64_t o = 0; o < p.out; ++o) CHECK(!std::isfinite(y(row, o)));
        for (std::int64_t t = 0; t < row; ++t) CHECK(std::memcmp(&y(t, 0), &before(t, 0), at(p.out) * 4) == 0);
      }
    }
  }
}

template <class Arch, Weights W>
void extremes() {
  for (const std::int64_t rows : {1, 5, 20}) {
    for (const float size : {1e-45f, 1e-40f, 1e-37f, 2e-36f, 1e-30f, 1e20f, 1e36f}) {
      Problem<Arch, W> p(rows, 300, 37, 4);
      for (std::int64_t t = 0; t < rows; ++t) {
        // The largest is as large as said: none may overflow, and none but tiny ones vanish.
        for (std::int64_t i = 0; i < p.in; ++i) p.x(t, i) = size * (static_cast<float>((i + t) % 19) / 18.0f);
        for (std::int64_t o = 0; o < p.out; ++o) p.y0(t, o) *= size;
      }
      for (float& b : p.bias) b *= size;
      p.check(p.run(1, true, Store::add), true, Store::add);
      for (std::int64_t t = 0; t < rows; ++t) std::fill_n(&p.x(t, 0), p.in, -0.0f);
      p.check(p.run(1, false, Store::assign), false, Store::assign, true);
    }
  }
}

/// Rotated weights give the bits of the same rows with rotated activations.
template <class Arch, Weights W>
void rotated_weights() {
  for (const std::int64_t rows : {1, 2, 4, 6, 33}) {
    for (const std::int64_t in : {1, 16, 100, 255, 256, 320, 1600}) {
      Problem<Arch, W> p(rows, in, 37, static_cast<std::uint32_t>(in));
      p.rotated = true;
      const Matrix<float> got = p.run(2, true, Store::add);
      p.rotated = false;
      if (in > 1) CHECK(!(got == p.run(2, true, Store::add)));
      for (std::int64_t t = 0; t < rows; ++t) reference::rotate(&p.x(t, 0), in);
      CHECK(got == p.run(2, true, Store::add));
    }
  }
}

/// Integers whose scales are 1: sums without any rounding.
template <class Arch>
void exact_sums() {
  for (const std::int64_t t : {1, 2, 35}) {
    const Problem<Arch, Weights::int8> p(t, 700, 50, 9, Numbers::bytes);
    p.check(p.run(2, true, Store::add), true, Store::add, true);
  }
}

/// Weights in `W` give the bits of `Base`.
template <class Arch, class Base, Weights W>
void like_base() {
  using Kernel = kernel_for<op::Gemm, Base>;
  const Problem<Arch, W> p(20, 300, 37, 3);
  const Matrix<float> got = p.run(2, true, Store::add);
  AlignedBuffer memory(Kernel::scratch_bytes(20, 300, 37));
  Matrix<float> want = p.y0;
  TestExecutor exec(1);
  Kernel::run(exec, Scratch{memory.data(), memory.size()}, p.x.view(), p.weights(), p.bias.data(), want.view(),
              Store::add);
  CHECK(got == want);
}

/// Scratch of the largest sizes serves smaller ones.
template <class Arch>
void scratch_grows() {
  using Kernel = kernel_for<op::Gemm, Arch>;
  const std::int64_t some_rows[] = {1, 2, 7, 16, 33, 512}, some_in[] = {1, 100, 1024, 1025, 2048, 5504};
  for (const std::int64_t rows : some_rows) {
    std::size_t before = 0, before_shared = 0;
    for (std::int64_t in = 1; in < 6000; ++in) {
      const std::size_t now = Kernel::scratch_bytes(rows, in, 100), shared = Kernel::shared_bytes(rows, in, 100);
      if (now < before || shared < before_shared) FAIL_CHECK("rows ", rows, " in ", in);
      before = now;
      before_shared = shared;
    }
  }
  for (const std::int64_t in : some_in) {
    std::size_t before = 0, before_shared = 0;
    for (std::int64_t rows = 0; rows < 1100; ++rows) {
      const std::size_t now = Kernel::scratch_bytes(rows, in, 100), shared = Kernel::shared_bytes(rows, in, 100);
      if (now < before || shared < before_shared) FAIL_CHECK("rows ", rows, " in ", in);
      before = now;
      before_shared = shared;
    }
  }
}

}  // namespace hymba_test
