// SPDX-License-Identifier: Apache-2.0
// expect: hymba: arch::dot needs a translation unit compiled for AVX2 with FMA, AVX-512 VNNI or the dot products of ARM
#include <hymba/kernels/gemm.hpp>

// As if compiled for a processor without them.
#undef __AVX512VNNI__
#undef __AVX2__
#undef __ARM_FEATURE_DOTPROD
#include <hymba/kernels/dot/gemm.hpp>

static_assert(sizeof(hymba::kernel_for<hymba::op::Gemm, hymba::arch::dot<hymba::arch::best>>) > 0);
