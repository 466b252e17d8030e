// SPDX-License-Identifier: Apache-2.0
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/exec/amx.hpp>
#include <hymba/kernels/amx/gemm.hpp>
#include <hymba/kernels/convert.hpp>
#include <hymba/train/kernels/block_product.hpp>
#include <hymba/train/kernels/products.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "kernel_test.hpp"
#include "tolerance.hpp"

using namespace hymba;
using hymba_test::Matrix;
using hymba_test::Random;

namespace {

enum class Numbers { normal, integers };  // integers are so small that every sum is exact

/// What a kernel makes of its operands before it multiplies.
enum class Operands { as_they_are, rounded_to_bf16 };

double seen(float value, Operands operands) {
  return operands == Operands::rounded_to_bf16 ? static_cast<double>(static_cast<float>(bf16(value)))
                                               : static_cast<double>(value);
}

Matrix<float> random_matrix(Random& random, Numbers numbers, std::int64_t rows, std::int64_t cols, std::int64_t gap) {
  Matrix<float> m(rows, cols, gap);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      m(r, c) = numbers == Numbers::integers ? static_cast<float>(random.integer(-8, 8)) : random.normal();
    }
  }
  return m;
}

hymba_test::Threads executor(int threads) { return hymba_test::Threads(std::min(threads, hymba_test::max_threads)); }

/// Exactly the scratch that is asked for, full of NaN: nothing may be assumed of it.
struct ScratchMemory {
  AlignedBuffer memory, shared;
  Scratch scratch;
  ScratchMemory(std::size_t per_thread, int threads, std::size_t shared_bytes = 0)
      : memory(per_thread * static_cast<std::size_t>(threads)),
        shared(shared_bytes),
        scratch{memory.data(), per_thread, shared.data()} {
    REQUIRE(per_thread % 64 == 0);
    if (memory.size() > 0) std::memset(memory.data(), 0xff, memory.size());
    if (shared.size() > 0) std::memset(shared.data(), 0xff, shared.size());
  }
};

/// One linear layer with T rows and what flows through it, all with gaps between the rows.
template <Weights W>
struct Layer {
  using Element = typename weight_format<W>::element;
  std::int64_t rows, in, out;
  Matrix<float> x, dy, y, dx, dw;
  std::vector<Element> w;
  std::vector<float> bias, db;
  Numbers numbers;

  Layer(std::int64_t t, std::int64_t i, std::int64_t o, std::uint32_t seed, Numbers kind = Numbers::normal)
      : Layer(t, i, o, seed, kind, Random(seed)) {}

  WeightMatrix<W> weights() const { return {reinterpret_cast<const std::byte*>(w.data()), out, in}; }
  double weight(std::int64_t o, std::int64_t i, Operands operands) const {
    return seen(static_cast<float>(w[static_cast<std::size_t>(o * in + i)]), operands);
  }

  template <class Arch>
  Matrix<float> forward(int threads, bool with_bias, Store store) const {
    using Kernel = kernel_for<op::Gemm, Arch>;
    auto exec = executor(threads);
    const ScratchMemory s(Kernel::scratch_bytes(rows, in, out), threads, gemm_shared_bytes<Arch>(rows, in, out, false));
    Matrix<float> result = y;
    Kernel::run(exec, s.scratch, x.view(), weights(), with_bias ? bias.data() : nullptr, result.view(), store);
    CHECK(result.gaps_untouched());
    return result;
  }
  template <class Arch>
  Matrix<float> input_gradient(int threads, Store store) const {
    using Kernel = kernel_for<op::GemmInputGradient, Arch>;
    auto exec = executor(threads);
    const ScratchMemory s(Kernel::scratch_bytes(rows, in, out), threads);
    Matrix<float> result = dx;
    Kernel::run(exec, s.scratch, dy.view(), weights(), result.view(), store);
    CHECK(result.gaps_untouched());
    return result;
  }
  struct ParameterGradients {
    Matrix<float> dw;
    std::vector<float> db;
    bool operator==(const ParameterGradients&) const = default;
  };
  template <class Arch>
  ParameterGradients weight_gradient(int threads, bool with_bias) const {
    using Kernel = kernel_for<op::GemmWeightGradient, Arch>;
    auto exec = executor(threads);
    const ScratchMemory s(Kernel::scratch_bytes(rows, in, out), threads);
    ParameterGradients result{dw, db};
    Kernel::run(exec, s.scratch, dy.view(), x.view(), result.dw.view(), with_bias ? result.db.data() : nullptr);
    CHECK(result.dw.gaps_untouched());
    return result;
  }

  // Every check: a sum of n rounded products in any order, blocks included, and one more rounding for what was there
  // before: gamma_(n + 2) times the sum of magnitudes. Tiles treat subnormal sums as zero: n times the smallest normal.

  void check_forward(const Matrix<float>& got, bool with_bias, Store store, Operands operands) const {
    hymba_test::Worst worst;
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t o = 0; o < out; ++o) {
        const double start = store == Store::add ? static_cast<double>(y(t, o)) : 0.0;
        const double shift = with_bias ? static_cast<double>(bias[static_cast<std::size_t>(o)]) : 0.0;
        double sum = start + shift, magnitude = std::fabs(start) + std::fabs(shift);
        for (std::int64_t i = 0; i < in; ++i)
          add_product(seen(x(t, i), operands), weight(o, i, operands), sum, magnitude);
        add(worst, got(t, o), sum, static_cast<double>(in) + 2.0, magnitude, t, o);
      }
    }
    report("forward", worst);
  }
  void check_input_gradient(const Matrix<float>& got, Store store, Operands operands) const {
    hymba_test::Worst worst;
    std::vector<double> sum(static_cast<std::size_t>(in)), magnitude(sum.size());
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t i = 0; i < in; ++i) {
        const double start = store == Store::add ? static_cast<double>(dx(t, i)) : 0.0;
        sum[static_cast<std::size_t>(i)] = start;
        magnitude[static_cast<std::size_t>(i)] = std::fabs(start);
      }
      for (std::int64_t o = 0; o < out; ++o) {
        for (std::int64_t i = 0; i < in; ++i) {
          const auto at = static_cast<std::size_t>(i);
          add_product(seen(dy(t, o), operands), weight(o, i, operands), sum[at], magnitude[at]);
        }
      }
      for (std::int64_t i = 0; i < in; ++i) {
        const auto at = static_cast<std::size_t>(i);
        add(worst, got(t, i), sum[at], static_cast<double>(out) + 1.0, magnitude[at], t, i);
      }
    }
    report("input gradient", worst);
  }
  void check_weight_gradient(const ParameterGradients& got, bool with_bias, Operands operands) const {
    hymba_test::Worst worst, worst_bias;
    std::vector<double> sum(static_cast<std::size_t>(in)), magnitude(sum.size());
    for (std::int64_t o = 0; o < out; ++o) {
      for (std::int64_t i = 0; i < in; ++i) {
        const auto at = static_cast<std::size_t>(i);
        sum[at] = static_cast<double>(dw(o, i));
        magnitude[at] = std::fabs(sum[at]);
      }
      const auto at_bias = static_cast<std::size_t>(o);
      double bias_sum = static_cast<double>(db[at_bias]), bias_magnitude = std::fabs(bias_sum);
      for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t i = 0; i < in; ++i) {
          const auto at = static_cast<std::size_t>(i);
          add_product(seen(dy(t, o), operands), seen(x(t, i), operands), sum[at], magnitude[at]);
        }
        // The bias's gradient is summed from dy as it is on every architecture.
        if (with_bias) add_product(static_cast<double>(dy(t, o)), 1.0, bias_sum, bias_magnitude);
      }
      for (std::int64_t i = 0; i < in; ++i) {
        const auto at = static_cast<std::size_t>(i);
        add(worst, got.dw(o, i), sum[at], static_cast<double>(rows) + 1.0, magnitude[at], o, i);
      }
      add(worst_bias, got.db[at_bias], bias_sum, with_bias ? static_cast<double>(rows) + 1.0 : 0.0, bias_magnitude, o,
          0);
    }
    report("weight gradient", worst);
    report("bias gradient", worst_bias);
  }

 private:
  Layer(std::int64_t t, std::int64_t i, std::int64_t o, std::uint32_t seed, Numbers kind, Random random)
      : rows(t),
        in(i),
        out(o),
        x(random_matrix(random, kind, t, i, seed % 3)),
        dy(random_matrix(random, kind, t, o, seed % 4)),
        y(random_matrix(random, kind, t, o, seed % 5)),
        dx(random_matrix(random, kind, t, i, seed % 2)),
        dw(random_matrix(random, kind, o, i, seed % 3)),
        numbers(kind) {
    const Matrix<float> some = random_matrix(random, kind, o, i + 2, 0);
    for (std::int64_t r = 0; r < o; ++r) {
      for (std::int64_t c = 0; c < i; ++c) w.push_back(Element(some(r, c)));
      bias.push_back(some(r, i));
      db.push_back(some(r, i + 1));
    }
  }
  static void add_product(double a, double b, double& sum, double& magnitude) {
    sum += a * b;
    magnitude += std::fabs(a * b);
  }
  void add(hymba_test::Worst& worst, float got, double want, double terms, double magnitude, std::int64_t r,
           std::int64_t c) const {
    const double bound = hymba_test::gamma(terms) * magnitude + terms * 0x1p-126;
    worst.add(static_cast<double>(got), want, numbers == Numbers::integers ? 0.0 : bound, r, c);
  }
  void report(const char* what, const hymba_test::Worst& worst) const {
    const std::string text = worst.text();
    INFO(what, " T=", rows, " I=", in, " O=", out, ": ", text);
    CHECK(worst.ok());
  }
};

/// Both gradients of one layer, with what varies chosen by the seed.
template <class Arch, Weights W>
void check_gradients(const Layer<W>& layer, std::uint32_t seed, Operands operands) {
  const int threads = static_cast<int>(1 + seed % 3);
  const Store store = seed % 2 == 0 ? Store::assign : Store::add;
  const bool with_bias = seed % 4 < 2;
  layer.check_input_gradient(layer.template input_gradient<Arch>(threads, store), store, operands);
  layer.check_weight_gradient(layer.template weight_gradient<Arch>(threads, with_bias), with_bias, operands);
}

template <class Arch, Weights W>
void check_forward(const Layer<W>& layer, std::uint32_t seed, Operands operands) {
  const int threads = static_cast<int>(1 + seed % 3);
  const Store store = seed % 2 == 0 ? Store::assign : Store::add;
  const bool with_bias = seed % 4 < 2;
  layer.check_forward(layer.template forward<Arch>(threads, with_bias, store), with_bias, store, operands);
}

/// Sizes around those of a vector, of an outer product in registers and of tiles.
std::vector<std::int64_t> sizes() {
  const std::int64_t lanes = simd::lanes<xsimd::default_arch>;
  constexpr std::int64_t rows = detail::OuterProduct<xsimd::default_arch>::rows;
  std::vector<std::int64_t> all{1, 2, 15, 16, 17, 31, 33, lanes - 1, 2 * lanes + 1, rows, rows + 1};
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

/// Sizes beyond every block of every path, in turn in each dimension; the last three where a sum is so long that the
/// columns are cut as well.
struct Shape {
  std::int64_t rows, in, out;
};
constexpr Shape large_shapes[] = {{1100, 35, 37}, {37, 35, 1100}, {33, 1061, 530}, {530, 75, 290},
                                  {512, 1060, 9}, {5, 1060, 512}, {5, 512, 1060}};

#if defined(HYMBA_AMX)
using Amx = arch::amx<arch::best>;
#endif

/// Whether the tests on tiles can run; says so when they cannot.
bool tiles_to_test() {
#if defined(HYMBA_AMX)
  if (amx_available()) return true;
  MESSAGE("no AMX on this machine: the products on tiles are not tested");
#else
  MESSAGE("not compiled for AMX: the products on tiles are not tested");
#endif
  return false;
}

}  // namespace

TEST_CASE("block_product: every orientation and size against double") {
  using A = xsimd::default_arch;
  Random random(1);
  const std::int64_t most = detail::OuterProduct<A>::rows;
  std::vector<std::int64_t> heights{2 * most + 1, 64};
  for (std::int64_t m = 1; m <= most; ++m) heights.push_back(m);
  std::uint32_t seed = 0;
  for (const std::int64_t m : heights) {
    for (const std::int64_t n : sizes()) {
      for (const std::int64_t k : {0, 1, 7, 40}) {
        ++seed;
        // Rows in memory, columns in memory, or neither side by side.
        const std::int64_t kind = seed % 3;
        const std::int64_t row_stride = kind == 0 ? k + seed % 5 : kind == 1 ? 1 : 2;
        const std::int64_t col_stride = kind == 0 ? 1 : kind == 1 ? m + seed % 5 : 2 * m + 1;
        const std::vector<float> a = random.vector(k == 0 ? 0 : (m - 1) * row_stride + (k - 1) * col_stride + 1);
        const Matrix<float> b = random.matrix(k, n, seed % 3);
        const Matrix<float> before = random.matrix(m, n, seed % 4);
        const bool add = seed % 2 == 0;
        Matrix<float> c = before;
        detail::block_product<A>(m, n, k, a.data(), row_stride, col_stride, b.data(), b.view().stride, c.data(),
                                 c.view().stride, add);
        CHECK(c.gaps_untouched());
        hymba_test::Worst worst;
        for (std::int64_t r = 0; r < m; ++r) {
          for (std::int64_t j = 0; j < n; ++j) {
            double sum = add ? static_cast<double>(before(r, j)) : 0.0, magnitude = std::fabs(sum);
            for (std::int64_t i = 0; i < k; ++i) {
              const double product = static_cast<double>(a[static_cast<std::size_t>(r * row_stride + i * col_stride)]) *
                                     static_cast<double>(b(i, j));
              sum += product;
              magnitude += std::fabs(product);
            }
            worst.add(static_cast<double>(c(r, j)), sum, hymba_test::gamma(static_cast<double>(k) + 1.0) * magnitude, r,
                      j);
          }
        }
        const std::string text = worst.text();
        INFO("m=", m, " n=", n, " k=", k, ": ", text);
        CHECK(worst.ok());
      }
    }
  }
}

TEST_CASE("products: the reference in double is the formula") {
  const Layer<Weights::f32> layer(5, 7, 3, 11);
  Matrix<double> dy(5, 3), x(5, 7), dx(5, 7), dw(3, 7);
  std::vector<double> db(3, 0.25);
  for (std::int64_t t = 0; t < 5; ++t) {
    for (std::int64_t o = 0; o < 3; ++o) dy(t, o) = static_cast<double>(layer.dy(t, o));
    for (std::int64_t i = 0; i < 7; ++i) {
      x(t, i) = static_cast<double>(layer.x(t, i));
      dx(t, i) = 0.5;
    }
  }
  for (std::int64_t o = 0; o < 3; ++o) {
    for (std::int64_t i = 0; i < 7; ++i) dw(o, i) = 2.0;
  }
  hymba_test::Threads exec(1);
  kernel_for<op::GemmInputGradient, arch::scalar>::run(exec, Scratch{}, dy.view(), layer.weights(), dx.view(),
                                                       Store::add);
  kernel_for<op::GemmWeightGradient, arch::scalar>::run(exec, Scratch{}, dy.view(), x.view(), dw.view(), db.data());
  const double tolerance = 1e-14;
  for (std::int64_t i = 0; i < 7; ++i) {
    for (std::int64_t t = 0; t < 5; ++t) {
      double want = 0.5;
      for (std::int64_t o = 0; o < 3; ++o) want += dy(t, o) * layer.weight(o, i, Operands::as_they_are);
      CHECK(std::fabs(dx(t, i) - want) < tolerance);
    }
    for (std::int64_t o = 0; o < 3; ++o) {
      double want = 2.0;
      for (std::int64_t t = 0; t < 5; ++t) want += dy(t, o) * x(t, i);
      CHECK(std::fabs(dw(o, i) - want) < tolerance);
    }
  }
  for (std::int64_t o = 0; o < 3; ++o) {
    double want = 0.25;
    for (std::int64_t t = 0; t < 5; ++t) want += dy(t, o);
    CHECK(std::fabs(db[static_cast<std::size_t>(o)] - want) < tolerance);
  }
}

TEST_CASE("products: every size class against double") {
  std::uint32_t seed = 0;
  for (const std::int64_t t : sizes()) {
    for (const std::int64_t i : sizes()) {
      for (const std::int64_t o : sizes()) {
        // A third of the combinations, which ones differing from row to row.
        if (++seed % 3 != 0) continue;
        if (seed % 2 == 0) {
          const Layer<Weights::f32> layer(t, i, o, seed);
          check_gradients<arch::best>(layer, seed / 3, Operands::as_they_are);
          if (seed % 5 == 0) check_gradients<arch::scalar>(layer, seed / 3, Operands::as_they_are);
        } else {
          const Layer<Weights::bf16> layer(t, i, o, seed);
          check_gradients<arch::best>(layer, seed / 3, Operands::as_they_are);
          if (seed % 5 == 0) check_gradients<arch::scalar>(layer, seed / 3, Operands::as_they_are);
        }
      }
    }
  }
}

TEST_CASE("products: several blocks in every dimension; the same bits whatever the number of threads") {
  std::uint32_t seed = 5;
  for (const Shape& shape : large_shapes) {
    ++seed;
    const Layer<Weights::f32> layer(shape.rows, shape.in, shape.out, seed);
    check_gradients<arch::best>(layer, seed, Operands::as_they_are);
    const auto dx = layer.input_gradient<arch::best>(1, Store::add);
    const auto dw = layer.weight_gradient<arch::best>(1, true);
    for (int threads = 2; threads <= 3; ++threads) {
      CHECK(layer.input_gradient<arch::best>(threads, Store::add) == dx);
      CHECK(layer.weight_gradient<arch::best>(threads, true) == dw);
    }
  }
}

TEST_CASE("products: sums of small integers are exact") {
  const Layer<Weights::f32> layer(83, 301, 75, 3, Numbers::integers);
  for (std::uint32_t seed = 0; seed < 4; ++seed) {
    check_gradients<arch::best>(layer, seed, Operands::as_they_are);
    check_gradients<arch::scalar>(layer, seed, Operands::as_they_are);
  }
}

TEST_CASE("products: no rows") {
  const Layer<Weights::f32> layer(0, 5, 7, 1);
  CHECK(layer.input_gradient<arch::best>(2, Store::assign).rows() == 0);
  CHECK(layer.input_gradient<arch::scalar>(2, Store::assign).rows() == 0);
  const Layer<Weights::f32>::ParameterGradients before{layer.dw, layer.db};
  CHECK(layer.weight_gradient<arch::best>(2, true) == before);
  CHECK(layer.weight_gradient<arch::scalar>(2, true) == before);
}

namespace {
template <class Kernel>
void scratch_grows() {
  std::size_t before[3] = {};
  for (std::int64_t n = 1; n < 3000; n += 7) {
    const std::size_t now[3] = {Kernel::scratch_bytes(n, 200, 300), Kernel::scratch_bytes(200, n, 300),
                                Kernel::scratch_bytes(200, 300, n)};
    for (int i = 0; i < 3; ++i) {
      CHECK(now[i] >= before[i]);
      before[i] = now[i];
    }
  }
}
}  // namespace

TEST_CASE("products: scratch of the largest sizes serves smaller ones") {
  scratch_grows<kernel_for<op::GemmInputGradient, arch::best>>();
  scratch_grows<kernel_for<op::GemmWeightGradient, arch::best>>();
#if defined(HYMBA_AMX)
  scratch_grows<kernel_for<op::Gemm, Amx>>();
  scratch_grows<kernel_for<op::GemmInputGradient, Amx>>();
  scratch_grows<kernel_for<op::GemmWeightGradient, Amx>>();
#endif
}

#if defined(HYMBA_AMX)

TEST_CASE("amx: every size class against the products of rounded operands") {
  static_assert(std::is_base_of_v<kernel_for<op::Convert, arch::best>, kernel_for<op::Convert, Amx>>,
                "other operations are those of the base");
  if (!tiles_to_test()) return;
  std::uint32_t seed = 0;
  for (const std::int64_t t : sizes()) {
    for (const std::int64_t i : sizes()) {
      for (const std::int64_t o : sizes()) {
        if (++seed % 3 != 0) continue;
        if (seed % 2 == 0) {
          const Layer<Weights::f32> layer(t, i, o, seed);
          check_gradients<Amx>(layer, seed / 3, Operands::rounded_to_bf16);
          check_forward<Amx>(layer, seed / 3, Operands::rounded_to_bf16);
        } else {
          const Layer<Weights::bf16> layer(t, i, o, seed);
          check_gradients<Amx>(layer, seed / 3, Operands::rounded_to_bf16);
          check_forward<Amx>(layer, seed / 3, Operands::rounded_to_bf16);
        }
      }
    }
  }
}

TEST_CASE("amx: several blocks in every dimension; the same bits whatever the number of threads") {
  if (!tiles_to_test()) return;
  std::uint32_t seed = 5;
  for (const Shape& shape : large_shapes) {
    ++seed;
    const Layer<Weights::f32> layer(shape.rows, shape.in, shape.out, seed);
    check_gradients<Amx>(layer, seed, Operands::rounded_to_bf16);
    check_forward<Amx>(layer, seed, Operands::rounded_to_bf16);
    const auto y = layer.forward<Amx>(1, true, Store::add);
    const auto dx = layer.input_gradient<Amx>(1, Store::add);
    const auto dw = layer.weight_gradient<Amx>(1, true);
    for (int threads = 2; threads <= 3; ++threads) {
      CHECK(layer.forward<Amx>(threads, true, Store::add) == y);
      CHECK(layer.input_gradient<Amx>(threads, Store::add) == dx);
      CHECK(layer.weight_gradient<Amx>(threads, true) == dw);
    }
  }
}

TEST_CASE("amx: sums of small integers are exact") {
  if (!tiles_to_test()) return;
  const Layer<Weights::f32> layer(83, 301, 75, 3, Numbers::integers);
  for (std::uint32_t seed = 0; seed < 4; ++seed) {
    check_gradients<Amx>(layer, seed, Operands::rounded_to_bf16);
    check_forward<Amx>(layer, seed, Operands::rounded_to_bf16);
  }
}

TEST_CASE("amx: a row's bits do not depend on the rows it is computed with") {
  if (!tiles_to_test()) return;
  const std::int64_t rows = 70, in = 600, out = 37;
  for (const bool with_bias : {false, true}) {
    for (const Store store : {Store::assign, Store::add}) {
      const Layer<Weights::f32> all(rows, in, out, 21);
      const Matrix<float> want = all.forward<Amx>(2, with_bias, store);
      for (const std::int64_t chunk : {1, 5, 17, 32}) {
        for (std::int64_t t = 0; t < rows; t += chunk) {
          const std::int64_t count = std::min(chunk, rows - t);
          Matrix<float> got(count, out);
          for (std::int64_t r = 0; r < count; ++r) {
            for (std::int64_t o = 0; o < out; ++o) got(r, o) = all.y(t + r, o);
          }
          using Kernel = kernel_for<op::Gemm, Amx>;
          const ScratchMemory s(Kernel::scratch_bytes(count, in, out), 1, gemm_shared_bytes<Amx>(count, in, out, false));
          hymba_test::Threads exec(1);
          Kernel::run(exec, s.scratch, all.x.view().row_range(t, count), all.weights(),
                      with_bias ? all.bias.data() : nullptr, got.view(), store);
          for (std::int64_t r = 0; r < count; ++r) {
            CHECK(std::memcmp(&got(r, 0), &want(t + r, 0), static_cast<std::size_t>(out) * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("amx: no rows; special values stay in their rows") {
  if (!tiles_to_test()) return;
  const Layer<Weights::f32> none(0, 5, 7, 1);
  CHECK(none.forward<Amx>(2, true, Store::assign).rows() == 0);
  CHECK(none.input_gradient<Amx>(2, Store::assign).rows() == 0);
  const Layer<Weights::f32>::ParameterGradients before{none.dw, none.db};
  CHECK(none.weight_gradient<Amx>(2, true) == before);

  Layer<Weights::f32> layer(35, 33, 18, 2);
  layer.x(3, 32) = NAN;
  layer.x(20, 0) = INFINITY;
  layer.x(34, 5) = 1e-40f;  // subnormal: counts as zero
  const Matrix<float> y = layer.forward<Amx>(1, false, Store::assign);
  for (std::int64_t t = 0; t < 35; ++t) {
    for (std::int64_t o = 0; o < 18; ++o) {
      if (t == 3) {
        CHECK(std::isnan(y(t, o)));
      } else if (t == 20) {
        CHECK(std::isinf(y(t, o)));
      } else {
        CHECK(std::isfinite(y(t, o)));
      }
    }
  }
  layer.x(34, 5) = 0.0f;
  CHECK(layer.forward<Amx>(1, false, Store::assign)(34, 7) == y(34, 7));
}

#else

TEST_CASE("amx: not compiled for it") { CHECK(!tiles_to_test()); }

#endif  // HYMBA_AMX
