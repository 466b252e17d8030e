// SPDX-License-Identifier: Apache-2.0
//
// Comparison of float results with a double reference under bounds derived from the arithmetic.
#pragma once

#include <cmath>
#include <cstdint>
#include <ostream>
#include <sstream>
#include <string>

namespace hymba_test {

/// Unit roundoff of float, round to nearest.
inline constexpr double unit_roundoff = 0x1p-24;

/// Higham's gamma_n = n u / (1 - n u): the relative bound of n roundings in a row.
inline constexpr double gamma(double n) { return n * unit_roundoff / (1.0 - n * unit_roundoff); }

/// Collects |got - want| / bound over many elements and remembers the worst.
class Worst {
 public:
  /// `bound` >= 0 is the error allowed; an element that is NaN only matches NaN, an infinity only itself.
  void add(double got, double want, double bound, std::int64_t row, std::int64_t col = 0) {
    ++count_;
    double ratio = 0.0;
    if (std::isnan(got) || std::isnan(want)) {
      ratio = std::isnan(got) && std::isnan(want) ? 0.0 : HUGE_VAL;
    } else if (got != want) {
      const double error = std::fabs(got - want);
      ratio = bound > 0.0 && std::isfinite(error) ? error / bound : HUGE_VAL;
    }
    if (ratio > ratio_ || count_ == 1) {
      ratio_ = ratio;
      got_ = got;
      want_ = want;
      bound_ = bound;
      row_ = row;
      col_ = col;
    }
  }
  bool ok() const { return ratio_ <= 1.0; }
  double ratio() const { return ratio_; }
  std::int64_t count() const { return count_; }
  std::string text() const {
    std::ostringstream out;
    out.precision(9);
    out << "worst of " << count_ << " at (" << row_ << ", " << col_ << "): got " << got_ << ", expected " << want_
        << ", error " << std::fabs(got_ - want_) << " = " << ratio_ << " of the bound " << bound_;
    return out.str();
  }
  friend std::ostream& operator<<(std::ostream& out, const Worst& w) { return out << w.text(); }

 private:
  double ratio_ = 0.0, got_ = 0.0, want_ = 0.0, bound_ = 0.0;
  std::int64_t row_ = 0, col_ = 0, count_ = 0;
};

}  // namespace hymba_test
