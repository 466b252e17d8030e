// SPDX-License-Identifier: Apache-2.0
//
// Learning rates over a run.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

HYMBA_NAMESPACE_BEGIN

/// The learning rate of every step of a run. The defaults are those of Hymba's pre-training (arXiv 2411.13676, section
/// 3.1): warm-up over 1% of the steps, a long stable phase, decay over the last 20%.
struct Schedule {
  enum class Kind {
    wsd,       ///< warm-up, stable, linear decay to `floor` (Hu et al., "MiniCPM", arXiv 2404.06395)
    cosine,    ///< warm-up, then half a cosine from `peak` to `floor`
    constant,  ///< warm-up, then `peak`
  };
  Kind kind = Kind::wsd;
  double peak = 3e-3;
  double floor = 1e-5;
  double warmup = 0.01;    ///< share of the steps
  double decay = 0.2;      ///< wsd: share of the steps
  std::int64_t steps = 0;  ///< of the whole run

  /// @throws ArgumentError naming the first value out of range.
  void check() const {
    const auto fail = [](const char* name, auto value, const char* expected) {
      throw ArgumentError(detail::message("schedule: ", name, " is ", value, ", expected ", expected));
    };
    if (steps < 1) fail("steps", steps, "at least 1");
    if (!(peak > 0) || !std::isfinite(peak)) fail("the learning rate", peak, "a positive number");
    if (!(floor >= 0) || floor > peak) fail("the lowest learning rate", floor, "0 to the highest");
    if (!(warmup >= 0) || warmup > 1) fail("the share of warm-up", warmup, "0 to 1");
    if (!(decay >= 0) || decay > 1) fail("the share of decay", decay, "0 to 1");
    if (kind == Kind::wsd && warmup + decay > 1) fail("warm-up and decay together", warmup + decay, "at most 1");
  }

  /// The rate of step `step`, counted from 0. Steps past the end have the last one's.
  double at(std::int64_t step) const {
    const double n = static_cast<double>(steps), i = static_cast<double>(std::clamp<std::int64_t>(step, 0, steps - 1));
    const double warm = std::floor(warmup * n);
    if (i < warm) return peak * (i + 1) / warm;
    if (kind == Kind::constant) return peak;
    if (kind == Kind::cosine) {
      const double part = (i - warm) / std::max(1.0, n - 1 - warm);
      return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * part));
    }
    const double length = std::floor(decay * n), left = n - 1 - i;
    return left >= length ? peak : floor + (peak - floor) * left / length;
  }
};

HYMBA_NAMESPACE_END
