// SPDX-License-Identifier: Apache-2.0
//
// Which columns of each weight matrix matter: a model reads a text, and what every column is multiplied with is squared
// and summed. Quantising then weights errors by it (io/quantise.hpp).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>
#include <hymba/core/view.hpp>
#include <hymba/exec/arch.hpp>
#include <hymba/exec/kernel.hpp>
#include <hymba/exec/policy.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/open.hpp>
#include <hymba/io/quantise.hpp>
#include <hymba/kernels/gated_gemm.hpp>
#include <hymba/kernels/gemm.hpp>
#include <hymba/model/model.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace arch {
/// `Base`, but every matrix product is shown to the ColumnSums of the calling thread, if there are any.
template <class Base>
struct observed {};
}  // namespace arch

namespace detail {

/// Sums of squares of what each matrix was multiplied with, column by column, while this object lives, on the thread
/// that made it.
class ColumnSums {
 public:
  ColumnSums() : outer_(std::exchange(current(), this)) {}
  ColumnSums(const ColumnSums&) = delete;
  ColumnSums& operator=(const ColumnSums&) = delete;
  ~ColumnSums() { current() = outer_; }

  static void see(const std::byte* matrix, MatrixView<const float> x) {
    if (current() == nullptr) return;
    std::vector<double>& sums = current()->sums_[matrix];
    sums.resize(static_cast<std::size_t>(x.cols));
    for (std::int64_t r = 0; r < x.rows; ++r) {
      const float* const row = x.row(r);
      for (std::int64_t i = 0; i < x.cols; ++i) sums[static_cast<std::size_t>(i)] += double{row[i]} * double{row[i]};
    }
  }
  /// Empty for a matrix that was never used.
  std::vector<float> of(const std::byte* matrix) const {
    const auto found = sums_.find(matrix);
    return found == sums_.end() ? std::vector<float>() : std::vector<float>(found->second.begin(), found->second.end());
  }

 private:
  static ColumnSums*& current() {
    thread_local ColumnSums* sums = nullptr;
    return sums;
  }
  std::map<const std::byte*, std::vector<double>> sums_;
  ColumnSums* outer_;
};

}  // namespace detail

template <class Op, class Base>
struct kernel_for<Op, arch::observed<Base>> : kernel_for<Op, Base> {};

template <class Base>
struct kernel_for<op::Gemm, arch::observed<Base>> : kernel_for<op::Gemm, Base> {
  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    detail::ColumnSums::see(w.data, x);
    kernel_for<op::Gemm, Base>::run(exec, scratch, x, w, bias, y, store);
  }
};

template <class Base>
struct kernel_for<op::GatedGemm, arch::observed<Base>> : gated_gemm_in_parts<arch::observed<Base>> {};

/// The importance of every column of every matrix of the checkpoint in `folder`, from reading `tokens` in sequences of
/// `context`. The embedding, when the output shares it, counts as the output.
/// @throws ArgumentError when there are no tokens, one is outside the vocabulary, or `context` is below 1; what
/// open_checkpoint and Model throw.
inline ColumnImportance column_importance(const std::filesystem::path& folder, std::span<const Token> tokens,
                                          std::int64_t context) {
  if (tokens.empty()) throw ArgumentError("calibration: the text has no tokens");
  if (context < 1) throw ArgumentError(detail::message("calibration: context is ", context, ", expected 1 or more"));
  using Observed = Cpu<Weights::f32, Cache::f32, arch::observed<arch::best>>;
  const auto model = Model<DynamicHymba, Observed>::open(folder);
  auto session = model.session({.max_context = context});
  const auto vocabulary = static_cast<std::size_t>(model.architecture().vocabulary);
  std::vector<float> logits;
  detail::ColumnSums sums;
  for (std::size_t first = 0; first < tokens.size(); first += static_cast<std::size_t>(context)) {
    const auto piece = tokens.subspan(first, std::min(tokens.size() - first, static_cast<std::size_t>(context)));
    session.reset();
    logits.resize(piece.size() * vocabulary);
    session.evaluate(piece, logits);
  }
  ColumnImportance out;
  for (const BoundTensor& t : model.tensors()) {
    if (t.spec.role == TensorRole::vector) continue;
    if (std::vector<float> of = sums.of(t.parameter.data); !of.empty()) out.emplace(t.name, std::move(of));
  }
  return out;
}

HYMBA_NAMESPACE_END
