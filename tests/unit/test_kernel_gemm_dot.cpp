// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/dot.hpp>
#include <hymba/kernels/dot/gemm.hpp>

#include <doctest/doctest.h>

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

TEST_CASE("dot gemm: sums of bytes are exact") {
  if (!dots_to_test()) return;
  hymba_test::exact_sums<Dot>();
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
  hymba_test::like_base<Dot, arch::best, Weights::bf16>();
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
