// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of the fusions of variant/fuse.hpp.
//
// A fusion of one's own supplies, in its own namespace,
//
//   template <class Context>
//   void fuse_forward(const MyFusion&, const Context&, MatrixView<const float> attention, MatrixView<const float> ssm,
//                     MatrixView<float> out);
//
// attention [T, H*dv], ssm [T, E], out [T, output_width], one row per token, perhaps further apart than they are wide; no
// aliasing.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/context.hpp>
#include <hymba/kernels/fuse_norms.hpp>
#include <hymba/variant/fuse.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>

HYMBA_NAMESPACE_BEGIN

// Both norm fusions are ca * rmsn(attention) + cs * rmsn(ssm) with coefficients that depend on the weights alone:
// derived holds ca, then cs.

constexpr std::int64_t derived_floats(const MeanOfNorms&, int attention, int ssm) { return attention + ssm; }
template <class C>
void derive(const MeanOfNorms&, const C& c, int attention, int ssm, typename C::real* out) {
  for (int i = 0; i < attention; ++i) out[i] = 0.5f * c.vector(0)[i];
  for (int i = 0; i < ssm; ++i) out[attention + i] = 0.5f * c.vector(1)[i];
}
template <class C>
void fuse_forward(const MeanOfNorms&, const C& c, MatrixView<const typename C::real> attention,
                  MatrixView<const typename C::real> ssm, MatrixView<typename C::real> out) {
  run<op::FuseNorms>(c, attention, ssm, c.derived, c.derived + attention.cols, c.eps, out);
}

constexpr std::int64_t derived_floats(const LearnedGate&, int attention, int ssm) { return attention + ssm; }
template <class C>
void derive(const LearnedGate&, const C& c, int attention, int ssm, typename C::real* out) {
  using Real = typename C::real;
  for (int i = 0; i < attention; ++i) {
    const Real gate = Real(1) / (Real(1) + std::exp(-c.vector(2)[i]));
    out[i] = gate * c.vector(0)[i];
  }
  for (int i = 0; i < ssm; ++i) {
    const Real rest = Real(1) / (Real(1) + std::exp(c.vector(2)[i]));
    out[attention + i] = rest * c.vector(1)[i];
  }
}
template <class C>
void fuse_forward(const LearnedGate&, const C& c, MatrixView<const typename C::real> attention,
                  MatrixView<const typename C::real> ssm, MatrixView<typename C::real> out) {
  run<op::FuseNorms>(c, attention, ssm, c.derived, c.derived + attention.cols, c.eps, out);
}

template <class C>
void fuse_forward(const SumOfHeads&, const C&, MatrixView<const typename C::real> attention,
                  MatrixView<const typename C::real> ssm, MatrixView<typename C::real> out) {
  for (std::int64_t t = 0; t < out.rows; ++t) {
    for (std::int64_t i = 0; i < out.cols; ++i) out(t, i) = attention(t, i) + ssm(t, i);
  }
}

template <class C>
void fuse_forward(const ConcatHeads&, const C&, MatrixView<const typename C::real> attention,
                  MatrixView<const typename C::real> ssm, MatrixView<typename C::real> out) {
  for (std::int64_t t = 0; t < out.rows; ++t) {
    std::memcpy(out.row(t), attention.row(t), static_cast<std::size_t>(attention.cols) * sizeof(*out.data));
    std::memcpy(out.row(t) + attention.cols, ssm.row(t), static_cast<std::size_t>(ssm.cols) * sizeof(*out.data));
  }
}

constexpr std::int64_t derived_floats(const RuntimeFusion& fusion, int attention, int ssm) {
  return fusion.visit([&](auto f) -> std::int64_t {
    if constexpr (requires { derived_floats(f, attention, ssm); }) return derived_floats(f, attention, ssm);
    return 0;
  });
}
template <class C>
void derive(const RuntimeFusion& fusion, const C& c, int attention, int ssm, typename C::real* out) {
  fusion.visit([&](auto f) {
    if constexpr (requires { derive(f, c, attention, ssm, out); }) derive(f, c, attention, ssm, out);
  });
}
template <class C>
void fuse_forward(const RuntimeFusion& fusion, const C& c, MatrixView<const typename C::real> attention,
                  MatrixView<const typename C::real> ssm, MatrixView<typename C::real> out) {
  fusion.visit([&](auto f) { fuse_forward(f, c, attention, ssm, out); });
}

HYMBA_NAMESPACE_END
