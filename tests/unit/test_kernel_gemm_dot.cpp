// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/dot.hpp>
#include <hymba/kernels/dot/gemm.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "rounded_gemm_test.hpp"

#if defined(HYMBA_DOT)

using namespace hymba;
using hymba_test::Problem;

namespace {

using Dot = arch::dot<arch::best>;

bool dots_to_test() {
  if (dot_available()) return true;
  MESSAGE("this machine has no ", detail::dot::Best::name, ": the dot products of bytes are not tested");
  return false;
}

}  // namespace

TEST_CASE("dot gemm: every size class against the products of rounded operands") {
  if (!dots_to_test()) return;
  SUBCASE("int8") { hymba_test::all_sizes<Dot, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::all_sizes<Dot, Weights::int4>(); }
}

TEST_CASE("dot gemm: several blocks; the same bits whatever the number of threads") {
  if (!dots_to_test()) return;
  SUBCASE("int8") { hymba_test::large<Dot, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::large<Dot, Weights::int4>(); }
}

TEST_CASE("dot gemm: a row's bits do not depend on the rows it is computed with") {
  if (!dots_to_test()) return;
  SUBCASE("int8") { hymba_test::independent_of_rows<Dot, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::independent_of_rows<Dot, Weights::int4>(); }
}

template <Weights W>
void one_by_one_or_side_by_side() {
  const auto run = [](const Problem<Dot, W>& p, auto gemm, bool with_bias, Store store) {
    using Gemm = decltype(gemm);
    const std::size_t bytes = Gemm::scratch_bytes(p.rows, p.in);
    AlignedBuffer memory(2 * bytes), shared(Gemm::shared_bytes(p.rows, p.in));
    hymba_test::Matrix<float> y = p.y0;
    hymba_test::TestExecutor exec(2);
    Gemm::run(exec, Scratch{memory.data(), bytes, shared.data()}, p.x.view(), p.weights(),
              with_bias ? p.bias.data() : nullptr, y.view(), store);
    CHECK(y.gaps_untouched());
    return y;
  };
  for (const std::int64_t rows : {1, 2, 3}) {
    for (const std::int64_t in : {1, 63, 64, 65, 255, 256, 257, 1600, 5504, 16391}) {
      for (const std::int64_t out : {1, 15, 16, 37}) {
        const Problem<Dot, W> p(rows, in, out, static_cast<std::uint32_t>(in + out));
        for (const bool with_bias : {false, true}) {
          const Store store = with_bias ? Store::add : Store::assign;
          CHECK(run(p, detail::dot::DotGemm<detail::dot::Best, W, true>{}, with_bias, store) ==
                run(p, detail::dot::DotGemm<detail::dot::Best, W, false>{}, with_bias, store));
        }
      }
    }
  }
}

TEST_CASE("dot gemm: rows read one by one or side by side, the same bits") {
  if (!dots_to_test()) return;
  SUBCASE("int8") { one_by_one_or_side_by_side<Weights::int8>(); }
  SUBCASE("int4") { one_by_one_or_side_by_side<Weights::int4>(); }
}

TEST_CASE("dot gemm: rotated weights meet rotated activations") {
  if (!dots_to_test()) return;
  SUBCASE("int8") { hymba_test::rotated_weights<Dot, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::rotated_weights<Dot, Weights::int4>(); }
}

TEST_CASE("dot gemm: sums of bytes are exact") {
  if (!dots_to_test()) return;
  hymba_test::exact_sums<Dot>();
}

TEST_CASE("dot gemm: bytes of the largest magnitude, which rows from elsewhere may hold") {
  if (!dots_to_test()) return;
  // Products of -128 and 127 everywhere: what sums in 16 bits would not hold.
  constexpr std::int64_t in = 600, out = 70;
  std::vector<std::byte> w(static_cast<std::size_t>(out) * Int8Rows::row_bytes(in), std::byte{0x80});
  for (std::int64_t o = 0; o < out; ++o) {
    std::byte* const scales =
        w.data() + static_cast<std::size_t>(o) * Int8Rows::row_bytes(in) + Int8Rows::value_bytes(in);
    const float one[3] = {1.0f, 1.0f, 1.0f};
    std::memcpy(scales, one, sizeof(one));
  }
  for (const std::int64_t rows : {1, 3, 20}) {
    for (const float sign : {1.0f, -1.0f}) {
      hymba_test::Matrix<float> x(rows, in), y(rows, out);
      for (std::int64_t t = 0; t < rows; ++t) std::fill_n(&x(t, 0), in, 127.0f * sign);
      using Kernel = kernel_for<op::Gemm, Dot>;
      const std::size_t bytes = Kernel::scratch_bytes(rows, in, out);
      AlignedBuffer memory(bytes), shared(gemm_shared_bytes<Dot>(rows, in, out, true));
      Serial exec;
      Kernel::run(exec, Scratch{memory.data(), bytes, shared.data()}, x.view(),
                  WeightMatrix<Weights::int8>{w.data(), out, in}, nullptr, y.view(), Store::assign);
      for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t o = 0; o < out; ++o) CHECK(y(t, o) == -128.0f * 127.0f * 600.0f * sign);
      }
    }
  }
}

TEST_CASE("dot gemm: what is not finite shows, in its row") {
  if (!dots_to_test()) return;
  SUBCASE("int8") { hymba_test::not_finite<Dot, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::not_finite<Dot, Weights::int4>(); }
}

TEST_CASE("dot gemm: the extremes of floats; zeros") {
  if (!dots_to_test()) return;
  SUBCASE("int8") { hymba_test::extremes<Dot, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::extremes<Dot, Weights::int4>(); }
}

TEST_CASE("dot gemm: other weights run on the base; no rows, no work") {
  if (!dots_to_test()) return;
  hymba_test::like_base<Dot, arch::best, Weights::f32>();
#if !HYMBA_DOT_BF16
  hymba_test::like_base<Dot, arch::best, Weights::bf16>();
#endif
  hymba_test::like_base<Dot, arch::best, Weights::f16>();
  CHECK(Problem<Dot, Weights::int8>(0, 5, 7, 1).run(2, true, Store::assign).rows() == 0);
  CHECK(Problem<Dot, Weights::int4>(0, 5, 7, 1).run(2, true, Store::assign).rows() == 0);
}

TEST_CASE("dot gemm: scratch of the largest sizes serves smaller ones") { hymba_test::scratch_grows<Dot>(); }

#else

TEST_CASE("dot gemm: not compiled for it") {
  MESSAGE("compiled for no unit: the dot products of bytes are not tested");
}

#endif  // HYMBA_DOT
