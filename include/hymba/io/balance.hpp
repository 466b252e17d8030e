// SPDX-License-Identifier: Apache-2.0
//
// Columns of activations that are much larger than others make these coarse where blocks of activations are rounded
// with one scale. What makes such columns (a norm's weights, or a matrix's rows) is divided, and the columns of the
// matrices that read them are multiplied, by factors that lie half way. Nothing but rounding changes. The idea of
// SmoothQuant (Xiao and others, arXiv 2211.10438), with factors from the activations alone.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/core/view.hpp>
#include <hymba/model/declared_tensors.hpp>
#include <hymba/model/store_tensor.hpp>
#include <hymba/variant/tensors.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Factors for columns whose moments (sums of x x^T, of which the diagonal is read) are given: the square root of a
/// column's root mean square over their geometric mean, from 1/64 to 64. Powers of two, by which nothing is rounded.
/// One for a column that was never anything but zero, and for all where moments are not finite.
inline std::vector<float> balancing_factors(MatrixView<const float> moments) {
  constexpr double most = 6;  // octaves
  std::vector<float> factors(static_cast<std::size_t>(moments.rows), 1.0f);
  const auto octaves = [&](std::int64_t j) { return std::log2(static_cast<double>(moments(j, j))) / 4; };
  double sum = 0, count = 0;
  for (std::int64_t j = 0; j < moments.rows; ++j) {
    if (!std::isfinite(moments(j, j))) return factors;
    if (moments(j, j) > 0) sum += octaves(j), ++count;
  }
  for (std::int64_t j = 0; j < moments.rows; ++j) {
    if (!(moments(j, j) > 0)) continue;
    const double nearest = std::round(std::clamp(octaves(j) - sum / count, -most, most));
    factors[static_cast<std::size_t>(j)] = static_cast<float>(std::exp2(nearest));
  }
  return factors;
}

/// Which tensors can be scaled against each other (for_each_scaling, full names), and the factors chosen for them.
class Balance {
 public:
  /// @throws ConfigError where a part of one's own names a tensor that is not declared, or two that do not fit.
  template <class V>
  Balance(const Architecture<V>& a, const DeclaredTensors& declared) {
    std::map<std::string_view, const TensorSpec*> specs;
    for (const DeclaredTensor& t : declared.all) specs.emplace(t.name, &t.spec);
    const auto spec_of = [&](const std::string& name) -> const TensorSpec& {
      const auto found = specs.find(name);
      if (found == specs.end()) {
        throw ConfigError(message("scalings name tensor ", quote(name), ", which the architecture does not declare"));
      }
      return *found->second;
    };
    for (int i = 0; i < a.layers; ++i) {
      const std::string layer = layer_prefix(i);
      for_each_scaling(a, i, [&](const char* made_by, const char* read_by) {
        const std::string maker = layer + made_by, reader = layer + read_by;
        const TensorSpec &made = spec_of(maker), &read = spec_of(reader);
        if (read.role != TensorRole::matrix || made.dims[0] != StoredShape(read).cols) {
          throw ConfigError(message("scalings name tensor ", quote(maker), " with ", made.dims[0], " rows for ",
                                    quote(reader), ", expected a matrix of as many columns"));
        }
        if (made.role == TensorRole::fine) {
          throw ConfigError(message("scalings name tensor ", quote(maker),
                                    " as a factor, expected a vector or a matrix that is not fine"));
        }
        add(maker, reader);
      });
    }
  }

  /// Chooses what the columns of a matrix are multiplied by, from the moments of what it reads, unless that was done
  /// for another reader of the same.
  void choose(const std::string& reader, MatrixView<const float> moments) {
    const auto found = readers_.find(reader);
    if (found == readers_.end()) return;
    std::vector<float>& factors = factors_[found->second];
    if (factors.empty()) factors = balancing_factors(moments);
  }
  /// The number of the matrices that read the same as this one, if it is known what it reads.
  std::optional<std::size_t> group(const std::string& reader) const {
    const auto found = readers_.find(reader);
    return found == readers_.end() ? std::nullopt : std::optional(found->second);
  }
  /// What the columns of a matrix are multiplied by; null: by nothing.
  const float* multiplied(const std::string& reader) const { return factors_of(readers_, reader); }
  /// What the elements of a vector, or the rows of a matrix, are divided by; null: by nothing.
  const float* divided(const std::string& maker) const { return factors_of(makers_, maker); }

 private:
  using Groups = std::map<std::string, std::size_t>;

  void add(const std::string& maker, const std::string& reader) {
    const auto by_maker = makers_.find(maker), by_reader = readers_.find(reader);
    std::size_t group = factors_.size();
    if (by_maker != makers_.end()) {
      group = by_maker->second;
    } else if (by_reader != readers_.end()) {
      group = by_reader->second;
    } else {
      factors_.emplace_back();
    }
    makers_.emplace(maker, group);
    readers_.emplace(reader, group);
  }
  const float* factors_of(const Groups& groups, const std::string& name) const {
    const auto found = groups.find(name);
    return found == groups.end() || factors_[found->second].empty() ? nullptr : factors_[found->second].data();
  }

  Groups makers_, readers_;
  std::vector<std::vector<float>> factors_;  ///< of groups; empty where none are chosen
};

}  // namespace detail

HYMBA_NAMESPACE_END
