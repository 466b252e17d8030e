// SPDX-License-Identifier: Apache-2.0
//
// Gradients of the fusions of variant/fuse.hpp.
//
// A fusion of one's own supplies, in its own namespace,
//
//   template <class Context, class Real>
//   void fuse_backward(const MyFusion&, const Context&, MatrixView<const Real> attention, MatrixView<const Real> ssm,
//                      MatrixView<const Real> d_out, MatrixView<Real> d_attention, MatrixView<Real> d_ssm, Real* work);
//
// attention [T, H*dv] and ssm [T, E] are what fuse_forward got, d_out [T, output_width] the gradient of what it made;
// d_attention and d_ssm are assigned. `work` has room for attention.cols + ssm.cols numbers.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>
#include <hymba/heads/fuse.hpp>
#include <hymba/train/gradient_context.hpp>
#include <hymba/train/kernels/rms_norm_backward.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

HYMBA_NAMESPACE_BEGIN

namespace detail {
/// Both norm fusions: gradients of the inputs, and into `work` those of the coefficients that `derive` made.
template <class C, class Real>
void fuse_norms_backward(const C& c, MatrixView<const Real> attention, MatrixView<const Real> ssm,
                         MatrixView<const Real> d_out, MatrixView<Real> d_attention, MatrixView<Real> d_ssm,
                         Real* work) {
  std::fill_n(work, attention.cols + ssm.cols, Real(0));
  run<op::RmsNormBackward>(c, attention, c.derived, c.eps, d_out, d_attention, work, Store::assign);
  run<op::RmsNormBackward>(c, ssm, c.derived + attention.cols, c.eps, d_out, d_ssm, work + attention.cols,
                           Store::assign);
}
}  // namespace detail

template <class C, class Real>
void fuse_backward(const MeanOfNorms&, const C& c, MatrixView<const Real> attention, MatrixView<const Real> ssm,
                   MatrixView<const Real> d_out, MatrixView<Real> d_attention, MatrixView<Real> d_ssm, Real* work) {
  detail::fuse_norms_backward(c, attention, ssm, d_out, d_attention, d_ssm, work);
  for (std::int64_t i = 0; i < attention.cols; ++i) c.gradient(0)[i] += Real(0.5) * work[i];
  for (std::int64_t i = 0; i < ssm.cols; ++i) c.gradient(1)[i] += Real(0.5) * work[attention.cols + i];
}

template <class C, class Real>
void fuse_backward(const LearnedGate&, const C& c, MatrixView<const Real> attention, MatrixView<const Real> ssm,
                   MatrixView<const Real> d_out, MatrixView<Real> d_attention, MatrixView<Real> d_ssm, Real* work) {
  detail::fuse_norms_backward(c, attention, ssm, d_out, d_attention, d_ssm, work);
  for (std::int64_t i = 0; i < attention.cols; ++i) {
    const Real gate = Real(1) / (Real(1) + std::exp(-c.vector(2)[i]));
    const Real d_a = work[i], d_s = work[attention.cols + i];
    c.gradient(0)[i] += gate * d_a;
    c.gradient(1)[i] += (Real(1) - gate) * d_s;
    c.gradient(2)[i] += gate * (Real(1) - gate) * (c.vector(0)[i] * d_a - c.vector(1)[i] * d_s);
  }
}

template <class C, class Real>
void fuse_backward(const SumOfHeads&, const C&, MatrixView<const Real>, MatrixView<const Real>,
                   MatrixView<const Real> d_out, MatrixView<Real> d_attention, MatrixView<Real> d_ssm, Real*) {
  for (std::int64_t t = 0; t < d_out.rows; ++t) {
    std::copy_n(d_out.row(t), d_out.cols, d_attention.row(t));
    std::copy_n(d_out.row(t), d_out.cols, d_ssm.row(t));
  }
}

template <class C, class Real>
void fuse_backward(const ConcatHeads&, const C&, MatrixView<const Real>, MatrixView<const Real>,
                   MatrixView<const Real> d_out, MatrixView<Real> d_attention, MatrixView<Real> d_ssm, Real*) {
  for (std::int64_t t = 0; t < d_out.rows; ++t) {
    std::copy_n(d_out.row(t), d_attention.cols, d_attention.row(t));
    std::copy_n(d_out.row(t) + d_attention.cols, d_ssm.cols, d_ssm.row(t));
  }
}

template <class C, class Real>
void fuse_backward(const RuntimeFusion& fusion, const C& c, MatrixView<const Real> attention,
                   MatrixView<const Real> ssm, MatrixView<const Real> d_out, MatrixView<Real> d_attention,
                   MatrixView<Real> d_ssm, Real* work) {
  fusion.visit([&](auto f) { fuse_backward(f, c, attention, ssm, d_out, d_attention, d_ssm, work); });
}

HYMBA_NAMESPACE_END
