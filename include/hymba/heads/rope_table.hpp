// SPDX-License-Identifier: Apache-2.0
//
// Angles of the rotary embedding for given positions, under each of the base's scalings.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/variant/description.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Fills rows of cosines and sines [key_width / 2]. Immutable after construction.
///
/// Angles are formed in double: in single precision the error of position * frequency grows with the position (2^-24
/// relative, half a milliradian at position 8192).
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(RopeKind kind, double base, int key_width, int max_positions, int original_positions)
      : kind_(kind), base_(base), width_(key_width), original_(original_positions) {
    if (kind == RopeKind::none) return;
    frequencies_ = frequencies(kind == RopeKind::ntk ? scaled_base(max_positions) : base);
  }

  /// The table of attention heads; one that is not active for heads without a rotary embedding.
  template <class Heads>
  explicit RopeTable(const Heads& heads) {
    if constexpr (requires { heads.rope.kind; }) {
      const auto& rope = heads.rope;
      *this = RopeTable(rope.kind, rope.base, heads.key_width, rope.max_positions, rope.original_positions);
    }
  }

  bool active() const { return kind_ != RopeKind::none; }
  int half() const { return width_ / 2; }

  /// cos and sin of the angles at `position` (meta tokens counted), `half()` numbers each.
  template <class Real>
  void fill(std::int64_t position, Real* cosines, Real* sines) const {
    const bool scaled = kind_ == RopeKind::dynamic_ntk && position + 1 > original_;
    const double base = scaled ? scaled_base(position + 1) : 0;
    for (int i = 0; i < half(); ++i) {
      const double frequency = scaled ? std::pow(base, -2.0 * i / width_) : frequencies_[static_cast<std::size_t>(i)];
      const double angle = static_cast<double>(position) * frequency;
      cosines[i] = static_cast<Real>(std::cos(angle));
      sines[i] = static_cast<Real>(std::sin(angle));
    }
  }

 private:
  double scaled_base(std::int64_t length) const {
    const double stretch = 2.0 * static_cast<double>(length) / original_ - 1.0;
    return base_ * std::pow(stretch, width_ / (width_ - 2.0));
  }
  std::vector<double> frequencies(double base) const {
    std::vector<double> f(static_cast<std::size_t>(half()));
    for (std::size_t i = 0; i < f.size(); ++i) f[i] = std::pow(base, -2.0 * static_cast<double>(i) / width_);
    return f;
  }

  RopeKind kind_ = RopeKind::none;
  double base_ = 0;
  int width_ = 0;
  int original_ = 1;
  std::vector<double> frequencies_;
};

HYMBA_NAMESPACE_END
