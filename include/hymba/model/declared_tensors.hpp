// SPDX-License-Identifier: Apache-2.0
//
// Every tensor of an architecture by its full name, checked: what a model binds and a trainer trains.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_check.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/rules.hpp>
#include <hymba/variant/tensors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// A tensor's full name and its declaration.
struct DeclaredTensor {
  std::string name;
  TensorSpec spec;

  std::vector<std::int64_t> shape() const { return {spec.dims.begin(), spec.dims.begin() + spec.rank}; }
};

/// All tensors, those of no layer first, then layer by layer; and where some of them are.
struct DeclaredTensors {
  std::vector<DeclaredTensor> all;
  std::size_t final_norm = 0;
  std::size_t output = 0;  ///< the embedding when it is tied
  std::size_t first_of_layers = 0;
};

/// The tensors that the architecture declares, and that `table` holds, neither more nor fewer. `source` names the table
/// in errors.
/// @throws ConfigError when the architecture breaks a rule or a part of one's own declares what cannot be; TensorError
/// on a missing, unexpected or misshaped tensor.
template <class V>
DeclaredTensors declared_tensors(const Architecture<V>& a, const TensorTable& table, const std::string& source) {
  if (const Broken b = a.first_broken_rule(); b.rule != Rule::none) {
    throw ConfigError("the architecture is not valid: " + broken_text(b));
  }
  DeclaredTensors out;
  for_each_model_tensor(a, [&](const TensorSpec& t) {
    if (std::string_view(t.name) == "model.final_layernorm.weight") out.final_norm = out.all.size();
    if (std::string_view(t.name) == "lm_head.weight") out.output = out.all.size();
    out.all.push_back({t.name, t});
  });
  out.first_of_layers = out.all.size();
  for (int i = 0; i < a.layers; ++i) {
    for_each_layer_tensor(a, i, [&](Part, const TensorSpec& t) {
      out.all.push_back({layer_prefix(i) + t.name, t});
    });
  }
  // The library's own parts declare what the rules have checked; a part of one's own may declare anything.
  std::set<std::string_view> names;
  std::vector<ExpectedTensor> expected;
  for (const DeclaredTensor& t : out.all) {
    if (std::any_of(t.spec.dims.begin(), t.spec.dims.end(), [](std::int64_t n) { return n < 1; })) {
      throw ConfigError("tensor " + t.name + " is declared with a size below 1");
    }
    if (!names.insert(t.name).second) throw ConfigError("tensor " + t.name + " is declared twice");
    expected.push_back({t.name, t.shape()});
  }
  check_tensors(expected, table, source);
  return out;
}

HYMBA_NAMESPACE_END
