// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/amx.hpp>
#include <hymba/exec/dot.hpp>
#include <hymba/kernels/amx/gemm.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <type_traits>

#include "rounded_gemm_test.hpp"

#if defined(HYMBA_AMX)

using namespace hymba;
using hymba_test::Problem;

namespace {

using Amx = arch::amx<arch::best>;

bool tiles_to_test() {
  if (amx_available()) return true;
  MESSAGE("no AMX on this machine: the products on tiles are not tested");
  return false;
}

}  // namespace

TEST_CASE("amx gemm: every size class against the products of rounded operands") {
  if (!tiles_to_test()) return;
  SUBCASE("f32") { hymba_test::all_sizes<Amx, Weights::f32>(); }
  SUBCASE("bf16") { hymba_test::all_sizes<Amx, Weights::bf16>(); }
  SUBCASE("int8") { hymba_test::all_sizes<Amx, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::all_sizes<Amx, Weights::int4>(); }
}

TEST_CASE("amx gemm: several blocks; the same bits whatever the number of threads") {
  if (!tiles_to_test()) return;
  SUBCASE("f32") { hymba_test::large<Amx, Weights::f32>(); }
  SUBCASE("bf16") { hymba_test::large<Amx, Weights::bf16>(); }
  SUBCASE("int8") { hymba_test::large<Amx, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::large<Amx, Weights::int4>(); }
}

TEST_CASE("amx gemm: a row's bits do not depend on the rows it is computed with") {
  if (!tiles_to_test()) return;
  SUBCASE("f32") { hymba_test::independent_of_rows<Amx, Weights::f32>(); }
  SUBCASE("bf16") { hymba_test::independent_of_rows<Amx, Weights::bf16>(); }
  SUBCASE("f16") { hymba_test::independent_of_rows<Amx, Weights::f16>(); }
  SUBCASE("int8") { hymba_test::independent_of_rows<Amx, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::independent_of_rows<Amx, Weights::int4>(); }
}

TEST_CASE("amx gemm: rotated weights meet rotated activations") {
  if (!tiles_to_test()) return;
  SUBCASE("int8") { hymba_test::rotated_weights<Amx, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::rotated_weights<Amx, Weights::int4>(); }
}

TEST_CASE("amx gemm: sums of bytes are exact") {
  if (!tiles_to_test()) return;
  hymba_test::exact_sums<Amx>();
}

TEST_CASE("amx gemm: what is not finite shows, in its row") {
  if (!tiles_to_test()) return;
  SUBCASE("f32") { hymba_test::not_finite<Amx, Weights::f32>(); }
  SUBCASE("bf16") { hymba_test::not_finite<Amx, Weights::bf16>(); }
  SUBCASE("int8") { hymba_test::not_finite<Amx, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::not_finite<Amx, Weights::int4>(); }
}

TEST_CASE("amx gemm: the extremes of floats; zeros") {
  if (!tiles_to_test()) return;
  SUBCASE("f32") { hymba_test::extremes<Amx, Weights::f32>(); }
  SUBCASE("bf16") { hymba_test::extremes<Amx, Weights::bf16>(); }
  SUBCASE("int8") { hymba_test::extremes<Amx, Weights::int8>(); }
  SUBCASE("int4") { hymba_test::extremes<Amx, Weights::int4>(); }
}

TEST_CASE("amx gemm: f16 weights run on the base; no rows, no work") {
  if (!tiles_to_test()) return;
  hymba_test::like_base<Amx, arch::best, Weights::f16>();
  CHECK(Problem<Amx, Weights::bf16>(0, 5, 7, 1).run(2, true, Store::assign).rows() == 0);
  CHECK(Problem<Amx, Weights::int4>(0, 5, 7, 1).run(2, true, Store::assign).rows() == 0);
}

TEST_CASE("amx gemm: the bits of arch::dot") {
  if (!tiles_to_test() || !dot_available()) return;
  const auto same = [](auto format) {
    for (const std::int64_t t : {1, 3, 6, 16, 35}) {
      for (const std::int64_t in : {100, 700, 1600}) {
        const Problem<Amx, format()> tiles(t, in, 67, 11);
        const Problem<arch::dot<arch::best>, format()> dots(t, in, 67, 11);
        CHECK(tiles.run(2, true, Store::add) == dots.run(2, true, Store::add));
      }
    }
  };
  SUBCASE("int8") { same(std::integral_constant<Weights, Weights::int8>{}); }
  SUBCASE("int4") { same(std::integral_constant<Weights, Weights::int4>{}); }
}

TEST_CASE("amx gemm: scratch of the largest sizes serves smaller ones") { hymba_test::scratch_grows<Amx>(); }

#else

TEST_CASE("amx gemm: not compiled for it") { MESSAGE("not compiled for AMX: the products on tiles are not tested"); }

#endif  // HYMBA_AMX
