// SPDX-License-Identifier: Apache-2.0
//
// What each weight matrix is multiplied with: a model reads a text, and the products of every two columns of a matrix's
// inputs are summed. Quantising then makes the error of products small (io/quantise.hpp).
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
#include <hymba/model/store_tensor.hpp>

#include <Eigen/Core>

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
/// `Base`, but every matrix product is shown to the MomentSums of the calling thread, if there are any.
template <class Base>
struct observed {};
}  // namespace arch

namespace detail {

/// Sums of x x^T of the inputs x of some matrices while this object lives, on the thread that made it.
class MomentSums {
 public:
  using Sums = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  MomentSums() : outer_(std::exchange(current(), this)) {}
  MomentSums(const MomentSums&) = delete;
  MomentSums& operator=(const MomentSums&) = delete;
  ~MomentSums() { current() = outer_; }

  void add(const std::byte* matrix, std::int64_t cols) { sums_[matrix].setZero(cols, cols); }
  const Sums& of(const std::byte* matrix) const { return sums_.at(matrix); }

  static void see(const std::byte* matrix, MatrixView<const float> x) {
    if (current() == nullptr) return;
    const auto found = current()->sums_.find(matrix);
    if (found == current()->sums_.end()) return;
    const Eigen::Map<const Sums, 0, Eigen::OuterStride<>> rows(x.data, x.rows, x.cols, Eigen::OuterStride<>(x.stride));
    found->second.selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
  }

 private:
  static MomentSums*& current() {
    thread_local MomentSums* sums = nullptr;
    return sums;
  }
  std::map<const std::byte*, Sums> sums_;
  MomentSums* outer_;
};

}  // namespace detail

template <class Op, class Base>
struct kernel_for<Op, arch::observed<Base>> : kernel_for<Op, Base> {};

template <class Base>
struct kernel_for<op::Gemm, arch::observed<Base>> : kernel_for<op::Gemm, Base> {
  template <class Exec, Weights W>
  static void run(Exec& exec, Scratch scratch, MatrixView<const float> x, WeightMatrix<W> w, const float* bias,
                  MatrixView<float> y, Store store) {
    detail::MomentSums::see(w.data, x);
    kernel_for<op::Gemm, Base>::run(exec, scratch, x, w, bias, y, store);
  }
};

template <class Base>
struct kernel_for<op::GatedGemm, arch::observed<Base>> : gated_gemm_in_parts<arch::observed<Base>> {};

/// The moments of the inputs of every matrix of the checkpoint in `folder`, from reading `tokens` in sequences of
/// `context`. The embedding, when the output shares it, counts as the output. The text is read as often as it takes for
/// the sums of one reading (4 bytes for every two columns of a matrix) to fit `memory` bytes; those of one matrix
/// always do.
/// @throws ArgumentError when there are no tokens, one is outside the vocabulary, or `context` is below 1; the source
/// that it returns, what open_checkpoint and Model throw.
inline InputMoments input_moments(const std::filesystem::path& folder, std::vector<Token> tokens, std::int64_t context,
                                  std::size_t memory = std::size_t{3} << 30) {
  if (tokens.empty()) throw ArgumentError("calibration: the text has no tokens");
  if (context < 1) throw ArgumentError(detail::message("calibration: context is ", context, ", expected 1 or more"));
  return [folder, all = std::move(tokens), context, memory](const auto& use) {
    using Observed = Cpu<Weights::f32, Cache::f32, arch::observed<arch::best>>;
    const auto model = Model<DynamicHymba, Observed>::open(folder);
    auto session = model.session({.max_context = context});
    const std::span<const Token> text(all);
    const auto vocabulary = static_cast<std::size_t>(model.architecture().vocabulary);
    std::vector<float> logits;
    const auto read = [&] {
      for (std::size_t first = 0; first < text.size(); first += static_cast<std::size_t>(context)) {
        const auto piece = text.subspan(first, std::min(text.size() - first, static_cast<std::size_t>(context)));
        session.reset();
        logits.resize(piece.size() * vocabulary);
        session.evaluate(piece, logits);
      }
    };
    std::vector<const BoundTensor*> matrices;
    for (const BoundTensor& t : model.tensors()) {
      if (t.spec.role != TensorRole::vector) matrices.push_back(&t);
    }
    for (std::size_t next = 0; next < matrices.size();) {
      const std::size_t first = next;
      detail::MomentSums sums;
      for (std::size_t bytes = 0; next < matrices.size(); ++next) {
        const auto cols = static_cast<std::size_t>(detail::StoredShape(matrices[next]->spec).cols);
        bytes += cols * cols * sizeof(float);
        if (next > first && bytes > memory) break;
        sums.add(matrices[next]->parameter.data, static_cast<std::int64_t>(cols));
      }
      read();
      for (std::size_t i = first; i < next; ++i) {
        const auto& of = sums.of(matrices[i]->parameter.data);
        use(matrices[i]->name, MatrixView<const float>(of.data(), of.rows(), of.cols()));
      }
    }
  };
}

HYMBA_NAMESPACE_END
