// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/kernels/amx/attention.hpp>
#include <hymba/kernels/attention.hpp>
#include <hymba/kernels/dot/gemm.hpp>
#include <hymba/kernels/quantise_row.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba_test;
using hymba::AttentionSequence;
using hymba::AttentionShape;
using hymba::bf16;
using hymba::f16;
using hymba::KeyValueSegment;
using hymba::RowScale;
using hymba::Scratch;
namespace op = hymba::op;
namespace simd = hymba::simd;

namespace {

/// How positions lie in memory.
enum class Layout { whole, ring, scattered };

/// Keys and values of one sequence, every position in memory of its own where the layout says so.
template <class E>
class Cache {
 public:
  Cache(const AttentionShape& shape, std::int64_t length, Random& random) : shape_(shape), length_(length) {
    fill(random, shape.key_width, keys_, key_scales_);
    fill(random, shape.value_width, values_, value_scales_);
  }
  /// The sequence of `rows` rows from `first_position`. Keeps the copies that its segments point to.
  AttentionSequence<E> sequence(Layout layout, std::int64_t first_row, std::int64_t rows, std::int64_t first_position) {
    AttentionSequence<E> s;
    s.first_row = first_row;
    s.rows = rows;
    s.first_position = first_position;
    const std::int64_t end = first_position + rows;
    if (layout == Layout::whole) {
      add(s, 0, end);
    } else {
      // What is neither pinned nor in the window of the first row is gone.
      const std::int64_t low = shape_.window > 0 ? std::max<std::int64_t>(0, first_position - shape_.window) : 0;
      const std::int64_t pinned = std::min(shape_.pinned, end), from = std::max(low, pinned);
      const std::int64_t middle = layout == Layout::ring ? (from + first_position) / 2 : from + (end - from) / 3;
      const std::int64_t own = std::max(middle, layout == Layout::ring ? first_position : from + (end - from) / 2);
      if (layout == Layout::ring) {
        add(s, 0, pinned), add(s, from, std::max(from, middle)), add(s, std::max(from, middle), std::max(from, own));
        add(s, std::max(from, own), end);
      } else {
        add(s, own, end), add(s, middle, own), add(s, from, middle), add(s, 0, pinned);
      }
    }
    return s;
  }

  /// The scale of the key or the value of a head and position.
  RowScale& key_scale(std::int64_t head, std::int64_t position) {
    return key_scales_[static_cast<std::size_t>(head * length_ + position)];
  }
  RowScale& value_scale(std::int64_t head, std::int64_t position) {
    return value_scales_[static_cast<std::size_t>(head * length_ + position)];
  }

 private:
  void fill(Random& random, int width, std::vector<E>& rows, std::vector<RowScale>& scales) {
    std::vector<float> row(static_cast<std::size_t>(width));
    for (std::int64_t i = 0; i < length_ * shape_.kv_heads; ++i) {
      for (float& x : row) x = random.normal();
      if constexpr (hymba::scaled_rows<E>) {
        if (i % 11 == 5) std::fill(row.begin(), row.end(), 0.0f);
        rows.resize(rows.size() + row.size());
        scales.push_back(hymba::reference::quantise_row(row.data(), width, rows.data() + rows.size() - row.size()));
      } else {
        for (const float x : row) rows.push_back(E(x));
      }
    }
  }
  const RowScale* copied_scales(const std::vector<RowScale>& scales, std::int64_t first, std::int64_t count) {
    auto& copy = scale_copies_.emplace_back();
    for (std::int64_t g = 0; g < shape_.kv_heads; ++g) {
      const auto from = scales.begin() + (g * length_ + first);
      copy.insert(copy.end(), from, from + count);
    }
    return copy.data();
  }
  void add(AttentionSequence<E>& s, std::int64_t first, std::int64_t end) {
    if (first >= end) return;
    const std::int64_t count = end - first, dk = shape_.key_width, dv = shape_.value_width;
    auto& k = copies_.emplace_back(static_cast<std::size_t>(count * dk * shape_.kv_heads));
    auto& v = copies_.emplace_back(static_cast<std::size_t>(count * dv * shape_.kv_heads));
    for (int g = 0; g < shape_.kv_heads; ++g) {
      std::copy_n(keys_.data() + (g * length_ + first) * dk, count * dk,
                  copies_[copies_.size() - 2].data() + g * count * dk);
      std::copy_n(values_.data() + (g * length_ + first) * dv, count * dv, v.data() + g * count * dv);
    }
    (void)k;
    s.segments[s.segment_count++] = {
        copies_[copies_.size() - 2].data(), v.data(), count * dk, count * dv, first, count};
    if constexpr (hymba::scaled_rows<E>) {
      auto& segment = s.segments[s.segment_count - 1];
      segment.key_scales = copied_scales(key_scales_, first, count);
      segment.value_scales = copied_scales(value_scales_, first, count);
      segment.scale_head_stride = count;
    }
  }
  AttentionShape shape_;
  std::int64_t length_;
  std::vector<E> keys_, values_;
  std::vector<RowScale> key_scales_, value_scales_;
  std::vector<std::vector<E>> copies_;
  std::vector<std::vector<RowScale>> scale_copies_;
};

template <class Arch, class E>
void run(int threads, const AttentionShape& shape, const Matrix<float>& q, const std::vector<AttentionSequence<E>>& s,
         Matrix<float>& out, std::int64_t max_rows = 0) {
  using Kernel = hymba::kernel_for<op::Attention, Arch>;
  Threads exec(threads);
  std::int64_t rows = max_rows;
  for (const auto& one : s) rows = std::max(rows, one.rows);
  const std::size_t bytes = Kernel::scratch_bytes(shape, rows);
  REQUIRE(bytes % hymba::alignment == 0);
  hymba::AlignedBuffer memory(bytes * static_cast<std::size_t>(threads));
  if (memory.size() > 0) std::memset(memory.data(), 0xff, memory.size());  // NaN: nothing may count on zeros
  Kernel::template run<E>(exec, Scratch{memory.data(), bytes}, shape, q.view(),
                          std::span<const AttentionSequence<E>>(s), out.view());
}

/// What an architecture adds to the errors of single precision.
template <class Arch, class E>
struct Rounding {
  static constexpr bool narrow = false;  ///< queries are rounded to bf16, as the operation says
  static constexpr double weight = 0;    ///< relative, of a weight
  static constexpr double largest = 0;   ///< relative to a row's largest score, of all its weights in a span
  static constexpr double sums = 1;      ///< roundings for each number in a sum of products
  /// Queries are rounded to so many steps in their row's largest number, weights to as many in the largest of 64
  /// positions, and what is added up of these to 2^-24; 0: they are not.
  static constexpr double steps = 0;
};
#if defined(HYMBA_DOT)
using Dot = hymba::arch::dot<hymba::arch::best>;
#endif
#if HYMBA_DOT_BF16
template <>
struct Rounding<Dot, bf16> {
  static constexpr bool narrow = true;
  static constexpr double weight = 0x1p-8;  // bf16 has 8 significant bits
  static constexpr double largest = 0;
#if defined(__AVX512BF16__)
  static constexpr double sums = 1;
#else
  static constexpr double sums = 2;  // bfdot rounds to odd: a whole unit in the last place
#endif
  static constexpr double steps = 0;
};
#endif
#if defined(HYMBA_DOT_INT16)
template <>
struct Rounding<Dot, std::int8_t> : Rounding<Dot, float> {
  static constexpr double steps = 32767;
};
#elif HYMBA_DOT_BF16
template <>
struct Rounding<Dot, std::int8_t> : Rounding<Dot, bf16> {};
#endif
#if defined(HYMBA_AMX)
using Amx = hymba::arch::amx<hymba::arch::best>;
template <>
struct Rounding<Amx, bf16> {
  static constexpr bool narrow = true;
  // bf16 has 8 significant bits; the exponential's cubic is good to 2^-13.2 and its fixed point to 2^-16.
  static constexpr double weight = 0x1p-8 + 0x1.2p-13;
  // The largest score, and what it leaves of the exponent, are rounded once each.
  static constexpr double largest = 3 * unit_roundoff;
  static constexpr double sums = 1;
  static constexpr double steps = 0;
};
template <>
struct Rounding<Amx, std::int8_t> : Rounding<Amx, bf16> {};
#endif

/// Whether the tests on tiles can run; says so when they cannot.
bool tiles_to_test() {
#if defined(HYMBA_AMX)
  if (hymba::amx_available()) return true;
  MESSAGE("no AMX on this machine: attention on tiles is not tested");
#else
  MESSAGE("not compiled for AMX: attention on tiles is not tested");
#endif
  return false;
}

/// Whether the tests on dot products of bf16 can run; says so when they cannot.
bool dots_to_test() {
#if HYMBA_DOT_BF16
  if (hymba::dot_available()) return true;
  MESSAGE("this machine has no ", hymba::detail::dot::Bf16Unit::name, ": attention on dot products is not tested");
#else
  MESSAGE("not compiled for dot products of bf16: attention on them is not tested");
#endif
  return false;
}

/// The same for those that serve int8 caches.
bool byte_dots_to_test() {
#if HYMBA_DOT_BF16 || defined(HYMBA_DOT_INT16)
  if (hymba::dot_available()) return true;
  MESSAGE("this machine has no dot products: attention over bytes on them is not tested");
#else
  MESSAGE("not compiled for dot products: attention over bytes on them is not tested");
#endif
  return false;
}

/// Bound on the error of one output element; see the comments for where its parts come from.
template <class Arch, class E>
void compare(const AttentionShape& shape, const Matrix<float>& given, const AttentionSequence<E>& s,
             const Matrix<float>& got, Worst& worst) {
  using Extra = Rounding<Arch, E>;
  const double u = unit_roundoff;
  Matrix<float> q = given;
  if (Extra::narrow) {
    for (std::int64_t i = 0; i < q.rows(); ++i) {
      for (std::int64_t d = 0; d < q.cols(); ++d) q(i, d) = static_cast<float>(bf16(q(i, d)));
    }
  }
  const std::int64_t dk = shape.key_width, dv = shape.value_width;
  Matrix<double> want(got.rows(), got.cols());
  hymba::reference::attention<double>(shape, q.view(), s, want.view());
  for (std::int64_t row = 0; row < s.rows; ++row) {
    for (std::int64_t h = 0; h < shape.query_heads; ++h) {
      const std::int64_t g = h * shape.kv_heads / shape.query_heads;
      const float* query = q.view().row(s.first_row + row) + h * dk;
      // Scores, the sums of their terms' magnitudes, and the values.
      std::vector<double> score, size, key_size, value_scale;
      std::vector<std::int64_t> block;
      std::vector<const E*> values;
      for (int i = 0; i < s.segment_count; ++i) {
        const auto& part = s.segments[i];
        for (std::int64_t j = 0; j < part.count; ++j) {
          if (!shape.sees(s.first_position + row, part.first_position + j)) continue;
          double sum = 0, magnitude = 0, key = 0;
          const auto by = part.template key_scale<double>(g, j);
          for (std::int64_t d = 0; d < dk; ++d) {
            const double product =
                static_cast<double>(query[d]) * by *
                static_cast<double>(static_cast<float>(part.keys[g * part.key_head_stride + j * dk + d]));
            sum += product;
            magnitude += std::fabs(product);
            key += std::fabs(by * static_cast<double>(static_cast<float>(part.keys[g * part.key_head_stride + j * dk + d])));
          }
          score.push_back(sum * static_cast<double>(shape.scale));
          size.push_back(magnitude * std::fabs(static_cast<double>(shape.scale)));
          key_size.push_back(key * std::fabs(static_cast<double>(shape.scale)));
          block.push_back((part.first_position + j) / 64);
          values.push_back(part.values + g * part.value_head_stride + j * dv);
          value_scale.push_back(part.template value_scale<double>(g, j));
        }
      }
      REQUIRE(!score.empty());
      const double largest = *std::max_element(score.begin(), score.end());
      const double lowest = *std::min_element(score.begin(), score.end());
      const double blocks = static_cast<double>(score.size()) / 32 + 4;
      // Relative error of a weight: the score's (dot product, scales, units), the subtraction's, the exponential's, and
      // those of one exponential per block or merge by which it is rescaled; the value's scale.
      const double shared = u * 3 * (largest - lowest) + (simd::exp2_error + 1) * u * (blocks + 1) + Extra::weight +
                            Extra::largest * std::fabs(largest) + (hymba::scaled_rows<E> ? u : 0);
      double total = 0;
      for (const double x : score) total += std::exp(x - largest);
      // Half a step, and a little for the rounding of what is rounded.
      const double half_step = Extra::steps > 0 ? 0.51 / Extra::steps : 0;
      double query_step = 0;
      for (std::int64_t d = 0; d < dk; ++d) query_step = std::max(query_step, half_step * std::fabs(static_cast<double>(query[d])));
      std::map<std::int64_t, double> heaviest;  // of a block's weights times their values' scales
      for (std::size_t j = 0; j < score.size(); ++j) {
        double& most = heaviest[block[j]];
        most = std::max(most, std::exp(score[j] - largest) * value_scale[j]);
      }
      const double count_step = Extra::steps > 0 ? 0x1.02p-25 * static_cast<double>(score.size()) / total : 0;
      for (std::int64_t d = 0; d < dv; ++d) {
        double magnitude = 0, error = 0, all = 0;
        for (std::size_t j = 0; j < score.size(); ++j) {
          const double w = std::exp(score[j] - largest) / total,
                       relative = hymba_test::gamma(Extra::sums * static_cast<double>(dk) + 5) * size[j] +
                                  query_step * key_size[j] + shared;
          const double value = value_scale[j] * std::fabs(static_cast<double>(static_cast<float>(values[j][d])));
          magnitude += w * value;
          const double integer = std::fabs(static_cast<double>(static_cast<float>(values[j][d])));
          error += w * value * relative + half_step * 1.02 * heaviest[block[j]] * integer / total;
          all += w * relative;
        }
        all += count_step;
        const double result = std::fabs(want(s.first_row + row, h * dv + d));
        // Weights above the line, weights below it, and the two sums.
        const double bound = (error + all * result) / (1 - all) +
                             hymba_test::gamma(Extra::sums * static_cast<double>(score.size()) + 3 * blocks) *
                                 (magnitude + result) +
                             0x1p-110;
        worst.add(static_cast<double>(got(s.first_row + row, h * dv + d)), want(s.first_row + row, h * dv + d), bound,
                  s.first_row + row, h * dv + d);
      }
    }
  }
}

template <class Arch, class E>
void check(const AttentionShape& shape, std::int64_t first_position, std::int64_t rows, std::uint32_t seed,
           bool all_layouts = true) {
  CAPTURE(shape.query_heads);
  CAPTURE(shape.kv_heads);
  CAPTURE(shape.key_width);
  CAPTURE(shape.value_width);
  CAPTURE(shape.window);
  CAPTURE(shape.pinned);
  CAPTURE(first_position);
  CAPTURE(rows);
  Random random(seed);
  Cache<E> cache(shape, first_position + rows, random);
  const auto q = random.matrix(rows, shape.query_heads * shape.key_width, 3);
  const auto columns = shape.query_heads * shape.value_width;
  Matrix<float> first(rows, columns, 2);
  {
    const std::vector<AttentionSequence<E>> s = {cache.sequence(Layout::whole, 0, rows, first_position)};
    run<Arch>(1, shape, q, s, first);
    CHECK(first.gaps_untouched());
    Worst worst;
    compare<Arch>(shape, q, s[0], first, worst);
    CHECK_MESSAGE(worst.ok(), worst);
  }
  if (!all_layouts) return;
  for (const Layout layout : {Layout::whole, Layout::ring, Layout::scattered}) {
    for (int threads = 1; threads <= max_threads; ++threads) {
      Matrix<float> out(rows, columns, 2);
      run<Arch>(threads, shape, q, std::vector<AttentionSequence<E>>{cache.sequence(layout, 0, rows, first_position)},
                out);
      CAPTURE(static_cast<int>(layout));
      CAPTURE(threads);
      if constexpr (!std::is_same_v<Arch, hymba::arch::scalar>) CHECK(out == first);
      CHECK(out.gaps_untouched());
    }
  }
  // In pieces of random length, the last one row by row: the same bits.
  Matrix<float> out(rows, columns, 2);
  for (std::int64_t done = 0; done < rows;) {
    const std::int64_t n = std::min(rows - done, done + 4 >= rows ? 1 : random.integer(1, 60));
    auto s = cache.sequence(Layout::ring, done, n, first_position + done);
    run<Arch>(max_threads, shape, q, std::vector<AttentionSequence<E>>{s}, out);
    done += n;
  }
  if constexpr (!std::is_same_v<Arch, hymba::arch::scalar>) CHECK(out == first);
}

constexpr float scale_of(int width) { return width == 64 ? 0.125f : 0.3f; }

AttentionShape shape_of(int heads, int groups, int dk, int dv, std::int64_t window, std::int64_t pinned) {
  return {heads, groups, dk, dv, window, pinned, scale_of(dk)};
}

template <class Arch, class E>
void check_all() {
  std::uint32_t seed = 1;
  // Widths of every size, heads in every grouping.
  for (const int dk : {1, 3, 8, 15, 16, 17, 64}) {
    for (const int dv : {1, 7, 16, 33, 48, 80, 128}) {
      check<Arch, E>(shape_of(dk % 2 == 0 ? 6 : 5, dk % 2 == 0 ? 2 : 1, dk, dv, 0, 0), 70, 5, seed++, false);
    }
  }
  for (const int heads : {1, 2, 5, 25, 60}) {
    for (const int groups : {1, 5}) {
      if (heads % groups == 0) check<Arch, E>(shape_of(heads, groups, 8, 20, 0, 0), 30, 9, seed++);
    }
  }
  // Windows at their edges.
  for (const std::int64_t window : {1, 2, 63, 64, 65, 100, 1000}) {
    for (const std::int64_t pinned : {0, 1, 64, 150}) {
      for (const std::int64_t first : {0, 1, 64, 190}) {
        check<Arch, E>(shape_of(4, 2, 6, 10, window, pinned), first, 70, seed++, first == 190);
      }
    }
  }
  // Lengths around the block and the span.
  for (const std::int64_t first : {0, 62, 63, 64, 65, 510, 511, 512, 1030}) {
    for (const std::int64_t rows : {1, 2, 3}) check<Arch, E>(shape_of(4, 2, 6, 10, 0, 0), first, rows, seed++);
  }
  check<Arch, E>(shape_of(10, 2, 16, 24, 700, 40), 1300, 1, seed++);
  check<Arch, E>(shape_of(10, 2, 16, 24, 700, 40), 1100, 130, seed++);
}

/// A batch gives the bits of its sequences alone, on any number of threads.
template <class Arch, class E>
void check_batch() {
  for (const std::int64_t window : {0, 90}) {
    const AttentionShape shape = shape_of(10, 2, 16, 40, window, 20);
    Random random(9);
    const std::vector<std::int64_t> rows = {1, 40, 0, 1, 3, 1, 200}, first = {700, 10, 5, 0, 1100, 5000, 300};
    std::vector<Cache<E>> caches;
    std::int64_t total = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      caches.emplace_back(shape, first[i] + rows[i], random);
      total += rows[i];
    }
    const auto q = random.matrix(total, 10 * 16, 1);
    std::vector<AttentionSequence<E>> all;
    Matrix<float> alone(total, 10 * 40, 5);
    std::int64_t at = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      all.push_back(caches[i].sequence(Layout::ring, at, rows[i], first[i]));
      run<Arch>(1, shape, q, std::vector<AttentionSequence<E>>{all.back()}, alone);
      at += rows[i];
    }
    for (int threads = 1; threads <= max_threads; ++threads) {
      Matrix<float> out(total, 10 * 40, 2);
      run<Arch>(threads, shape, q, all, out, 1000);
      CHECK(out == alone);
      CHECK(out.gaps_untouched());
    }
  }
}

/// Large scores neither overflow nor lose the largest.
template <class Arch, class E>
void check_large_scores() {
  const AttentionShape shape{1, 1, 4, 4, 0, 0, 1.0f};
  Random random(3);
  Cache<E> cache(shape, 200, random);
  auto q = random.matrix(1, 4);
  for (int i = 0; i < 4; ++i) q(0, i) *= 1e4f;
  Matrix<float> out(1, 4);
  const std::vector<AttentionSequence<E>> s = {cache.sequence(Layout::whole, 0, 1, 199)};
  run<Arch>(1, shape, q, s, out);
  Worst worst;
  compare<Arch>(shape, q, s[0], out, worst);
  CHECK_MESSAGE(worst.ok(), worst);
}

/// A value that was not finite shows in the rows that see it, and a key or value of zeros is one like others.
template <class Arch>
void check_special_rows() {
  const AttentionShape shape = shape_of(2, 1, 16, 24, 40, 4);
  Random random(6);
  Cache<std::int8_t> cache(shape, 100, random);
  const auto q = random.matrix(1, 2 * 16);
  const auto result = [&] {
    Matrix<float> out(1, 2 * 24);
    run<Arch>(1, shape, q, std::vector<AttentionSequence<std::int8_t>>{cache.sequence(Layout::ring, 0, 1, 99)}, out);
    return out;
  };
  const Matrix<float> before = result();
  cache.key_scale(0, 30) = cache.value_scale(0, 30) = RowScale(1e30f);  // neither pinned nor in the window: gone
  CHECK(result() == before);
  for (std::int64_t p = 0; p < 100; ++p) cache.key_scale(0, p) = RowScale();
  Matrix<float> mean = result();  // all scores are zero
  for (std::int64_t p = 0; p < 100; ++p) cache.value_scale(0, p) = RowScale();
  const Matrix<float> nothing = result();
  for (std::int64_t d = 0; d < nothing.cols(); ++d) {
    CHECK(std::isfinite(mean(0, d)));
    CHECK(nothing(0, d) == 0.0f);
  }
  cache.value_scale(0, 80) = RowScale(std::numeric_limits<float>::quiet_NaN());
  const Matrix<float> spoilt = result();
  for (std::int64_t d = 0; d < spoilt.cols(); ++d) CHECK(std::isnan(spoilt(0, d)));
}

template <class Arch, class E>
void check_nothing() {
  Matrix<float> q(0, 8), out(0, 8);
  run<Arch>(max_threads, AttentionShape{1, 1, 8, 8, 0, 0, 1.0f}, q, std::vector<AttentionSequence<E>>{}, out);
  run<Arch>(max_threads, AttentionShape{1, 1, 8, 8, 0, 0, 1.0f}, q, std::vector<AttentionSequence<E>>(2), out);
}

}  // namespace

TEST_CASE("Attention in plain loops against double, cache f32") { check_all<hymba::arch::scalar, float>(); }
TEST_CASE("Attention in vectors against double, cache f32") { check_all<hymba::arch::best, float>(); }
TEST_CASE("Attention in vectors against double, cache f16") { check_all<hymba::arch::best, f16>(); }
TEST_CASE("Attention in vectors against double, cache bf16") { check_all<hymba::arch::best, bf16>(); }
TEST_CASE("Attention in plain loops against double, cache int8") { check_all<hymba::arch::scalar, std::int8_t>(); }
TEST_CASE("Attention in vectors against double, cache int8") { check_all<hymba::arch::best, std::int8_t>(); }

#if defined(HYMBA_AMX) || HYMBA_DOT_BF16 || defined(HYMBA_DOT_INT16)
namespace {
template <class Arch, class E>
void check_narrow() {
  check_all<Arch, E>();
  // Every part of a step of positions, of a register or tile of rows and of columns.
  std::uint32_t seed = 1000;
  for (const int dk : {31, 32, 33, 40, 96}) {
    for (const int dv : {15, 17, 31, 32, 65, 96}) check<Arch, E>(shape_of(3, 1, dk, dv, 0, 0), 50, 14, seed++, false);
  }
  for (const std::int64_t window : {15, 31, 32, 33, 480, 511, 512, 513}) {
    for (const std::int64_t pinned : {0, 31, 33, 530}) {
      check<Arch, E>(shape_of(5, 1, 8, 20, window, pinned), 1000, 40, seed++);
    }
  }
  check<Arch, E>(shape_of(25, 5, 64, 128, 1024, 128), 1500, 60, seed++);
  check<Arch, E>(shape_of(25, 5, 64, 128, 0, 128), 1500, 1, seed++);
}

/// Over other caches an architecture that multiplies bf16 is its base.
template <class Arch>
void check_other_cache() {
  const AttentionShape shape = shape_of(6, 2, 16, 24, 40, 8);
  Random random(4);
  Cache<f16> cache(shape, 100, random);
  const auto q = random.matrix(30, 6 * 16);
  const std::vector<AttentionSequence<f16>> s = {cache.sequence(Layout::ring, 0, 30, 70)};
  Matrix<float> got(30, 6 * 24), base(30, 6 * 24);
  run<Arch>(1, shape, q, s, got);
  run<hymba::arch::best>(1, shape, q, s, base);
  CHECK(got == base);
}
}  // namespace
#endif
TEST_CASE("Attention on tiles against double, cache bf16") {
  if (!tiles_to_test()) return;
#if defined(HYMBA_AMX)
  check_narrow<Amx, bf16>();
#endif
}
TEST_CASE("Attention on tiles against double, cache int8") {
  if (!tiles_to_test()) return;
#if defined(HYMBA_AMX)
  check_narrow<Amx, std::int8_t>();
#endif
}
TEST_CASE("Attention on tiles is that of the base over other caches") {
  if (!tiles_to_test()) return;
#if defined(HYMBA_AMX)
  check_other_cache<Amx>();
#endif
}

TEST_CASE("Attention on dot products of bf16 against double, cache bf16") {
  if (!dots_to_test()) return;
#if HYMBA_DOT_BF16
  check_narrow<Dot, bf16>();
#endif
}
TEST_CASE("Attention on dot products against double, cache int8") {
  if (!byte_dots_to_test()) return;
#if HYMBA_DOT_BF16 || defined(HYMBA_DOT_INT16)
  check_narrow<Dot, std::int8_t>();
#endif
}
TEST_CASE("Attention on dot products: one token has the bits it has among others, cache int8") {
  if (!byte_dots_to_test()) return;
#if HYMBA_DOT_BF16 || defined(HYMBA_DOT_INT16)
  // Widths of whole registers, and few rows or too many of them, to be computed otherwise than many tokens.
  std::uint32_t seed = 3000;
  for (const int heads : {1, 2, 3, 4, 5, 6, 7, 12}) {
    check<Dot, std::int8_t>(shape_of(heads, 1, 32, 16, 40, 3), 100, 5, seed++);
  }
  for (const int dk : {16, 32, 64, 96}) {
    for (const int dv : {8, 16, 32, 80, 128}) check<Dot, std::int8_t>(shape_of(5, 1, dk, dv, 0, 0), 70, 4, seed++);
  }
  for (const std::int64_t window : {1, 63, 64, 65, 513}) {
    for (const std::int64_t pinned : {0, 1, 64, 530}) {
      for (const std::int64_t first : {0, 1, 62, 64, 510, 512, 1030}) {
        check<Dot, std::int8_t>(shape_of(4, 2, 32, 32, window, pinned), first, 4, seed++);
      }
    }
  }
#endif
}
TEST_CASE("Attention on dot products of bf16 is that of the base over other caches") {
  if (!dots_to_test()) return;
#if HYMBA_DOT_BF16
  check_other_cache<Dot>();
#endif
}

TEST_CASE("Attention with the published model's heads") {
  check<hymba::arch::best, float>(shape_of(25, 5, 64, 128, 1024, 128), 1500, 60, 1);
  check<hymba::arch::best, bf16>(shape_of(25, 5, 64, 128, 0, 128), 1500, 1, 2);
  check<hymba::arch::best, std::int8_t>(shape_of(25, 5, 64, 128, 1024, 128), 1500, 60, 3);
  check<hymba::arch::best, std::int8_t>(shape_of(25, 5, 64, 128, 0, 128), 1500, 1, 4);
}

TEST_CASE("Attention of a batch is that of its sequences alone, on any number of threads") {
  check_batch<hymba::arch::best, f16>();
  check_batch<hymba::arch::best, std::int8_t>();
#if defined(HYMBA_AMX)
  if (tiles_to_test()) check_batch<Amx, bf16>(), check_batch<Amx, std::int8_t>();
#endif
#if HYMBA_DOT_BF16
  if (dots_to_test()) check_batch<Dot, bf16>();
#endif
#if HYMBA_DOT_BF16 || defined(HYMBA_DOT_INT16)
  if (byte_dots_to_test()) check_batch<Dot, std::int8_t>();
#endif
}

TEST_CASE("Attention with large scores neither overflows nor loses the largest") {
  check_large_scores<hymba::arch::best, float>();
  check_large_scores<hymba::arch::best, std::int8_t>();
#if defined(HYMBA_AMX)
  if (tiles_to_test()) check_large_scores<Amx, bf16>(), check_large_scores<Amx, std::int8_t>();
#endif
#if HYMBA_DOT_BF16
  if (dots_to_test()) check_large_scores<Dot, bf16>();
#endif
#if HYMBA_DOT_BF16 || defined(HYMBA_DOT_INT16)
  if (byte_dots_to_test()) check_large_scores<Dot, std::int8_t>();
#endif
}

TEST_CASE("Attention over rows of zeros, and over one that was not finite, cache int8") {
  check_special_rows<hymba::arch::scalar>();
  check_special_rows<hymba::arch::best>();
#if defined(HYMBA_AMX)
  if (tiles_to_test()) check_special_rows<Amx>();
#endif
#if HYMBA_DOT_BF16 || defined(HYMBA_DOT_INT16)
  if (byte_dots_to_test()) check_special_rows<Dot>();
#endif
}

TEST_CASE("Attention of nothing does nothing") {
  check_nothing<hymba::arch::best, float>();
#if defined(HYMBA_AMX)
  if (tiles_to_test()) check_nothing<Amx, bf16>();
#endif
#if HYMBA_DOT_BF16
  if (dots_to_test()) check_nothing<Dot, bf16>();
#endif
}
