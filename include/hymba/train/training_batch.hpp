// SPDX-License-Identifier: Apache-2.0
//
// What one forward and backward pass reads.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>

#include <cstdint>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Stands in TrainingBatch::targets where no loss is wanted.
inline constexpr Token no_target = -1;

/// Sequences of any lengths, back to back. Neither attention nor recurrent states cross from one to the next, and every
/// one starts behind the model's meta tokens, which are not listed here.
struct TrainingBatch {
  std::vector<Token> tokens;
  std::vector<Token> targets;         ///< what follows each token, or no_target
  std::vector<std::int64_t> lengths;  ///< of the sequences, each at least 1; they sum to tokens.size()

  std::int64_t rows() const { return static_cast<std::int64_t>(tokens.size()); }
  void clear() {
    tokens.clear();
    targets.clear();
    lengths.clear();
  }
};

HYMBA_NAMESPACE_END
