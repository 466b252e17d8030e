// SPDX-License-Identifier: Apache-2.0
//
// op::GatedGemm gives the bits of two op::Gemm and an op::SwiGlu, whatever the sizes, formats and threads: all three
// are checked against the double reference elsewhere.
#include <hymba/exec/dot.hpp>
#include <hymba/exec/simd.hpp>
#include <hymba/kernels/amx/gemm.hpp>
#include <hymba/kernels/gated_gemm.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "test_executor.hpp"

using namespace hymba;

namespace {

template <Weights W>
struct Matrix {
  std::int64_t rows, cols;
  AlignedBuffer bytes;
  Matrix(std::int64_t r, std::int64_t c, std::mt19937& random)
      : rows(r), cols(c), bytes(static_cast<std::size_t>(r) * weight_format<W>::row_bytes(c)) {
    std::normal_distribution<float> normal(0, 0.3f);
    std::vector<float> row(static_cast<std::size_t>(c));
    for (std::int64_t i = 0; i < r; ++i) {
      for (float& v : row) v = normal(random);
      weight_format<W>::encode_row(row.data(), c,
                                   bytes.data() + static_cast<std::size_t>(i) * weight_format<W>::row_bytes(c));
    }
  }
  WeightMatrix<W> view(bool rotated) const { return {bytes.data(), rows, cols, rotated}; }
};

template <class Arch, Weights W>
void check(std::int64_t tokens, std::int64_t in, std::int64_t hidden, int threads, bool rotated = false,
           bool both = true) {
  CAPTURE(tokens);
  CAPTURE(in);
  CAPTURE(hidden);
  CAPTURE(threads);
  std::mt19937 random(static_cast<unsigned>(tokens * 31 + in * 7 + hidden));
  std::normal_distribution<float> normal;
  const Matrix<W> gate(hidden, in, random), up(hidden, in, random);
  const auto n = static_cast<std::size_t>(tokens * hidden);
  std::vector<float> x(static_cast<std::size_t>(tokens * in)), got(n, 7), spare(n, 7), want(n), other(n);
  for (float& v : x) v = normal(random);

  using Gemm = kernel_for<op::Gemm, Arch>;
  const std::size_t bytes = aligned_size(Gemm::scratch_bytes(tokens, in, hidden));
  AlignedBuffer mine(bytes * static_cast<std::size_t>(threads)), shared(gemm_shared_bytes<Arch>(tokens, in, hidden, true));
  const Scratch scratch{mine.data(), bytes, shared.data()};
  hymba_test::TestExecutor exec(threads);
  const MatrixView<const float> rows(x.data(), tokens, in);
  kernel_for<op::GatedGemm, Arch>::run(exec, scratch, rows, gate.view(rotated), up.view(rotated && both),
                                       MatrixView<float>(got.data(), tokens, hidden),
                                       MatrixView<float>(spare.data(), tokens, hidden));
  gated_gemm_in_parts<Arch>::run(exec, scratch, rows, gate.view(rotated), up.view(rotated && both),
                                 MatrixView<float>(want.data(), tokens, hidden),
                                 MatrixView<float>(other.data(), tokens, hidden));
  CHECK(std::memcmp(got.data(), want.data(), n * sizeof(float)) == 0);
}

template <class Arch>
void check_all() {
  constexpr std::int64_t sizes[][2] = {{1, 1}, {31, 15}, {64, 16}, {257, 17}, {96, 33}, {1100, 48}, {576, 130}};
  for (const std::int64_t tokens : {1, 2, 16, 33, 70}) {
    for (const auto& [in, hidden] : sizes) {
      for (const int threads : {1, 2, 5}) {
        check<Arch, Weights::f32>(tokens, in, hidden, threads);
        check<Arch, Weights::bf16>(tokens, in, hidden, threads);
        check<Arch, Weights::f16>(tokens, in, hidden, threads);
        check<Arch, Weights::int8>(tokens, in, hidden, threads);
        check<Arch, Weights::int4>(tokens, in, hidden, threads);
      }
    }
  }
  for (const std::int64_t tokens : {1, 5, 33}) {
    for (const bool both : {false, true}) {
      check<Arch, Weights::int8>(tokens, 257, 33, 2, true, both);
      check<Arch, Weights::int4>(tokens, 257, 33, 2, true, both);
    }
  }
  check<Arch, Weights::bf16>(600, 64, 48, 2);
  check<Arch, Weights::int8>(600, 64, 48, 3);
}

}  // namespace

TEST_CASE("gated gemm: vectors") { check_all<arch::best>(); }

#if defined(HYMBA_DOT)
TEST_CASE("gated gemm: dot products") {
  if (!dot_available()) {
    MESSAGE("dot products are not available here: not tested");
    return;
  }
  check_all<arch::dot<arch::best>>();
}
#endif

#if defined(HYMBA_AMX)
TEST_CASE("gated gemm: tiles") {
  if (!amx_available()) {
    MESSAGE("AMX is not available here: not tested");
    return;
  }
  check_all<arch::amx<arch::best>>();
}
#endif
