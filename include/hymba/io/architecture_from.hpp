// SPDX-License-Identifier: Apache-2.0
//
// From a description to the architecture of a variant: the rules checked, the sizes compared.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/io/description_diff.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/costs.hpp>
#include <hymba/variant/rules.hpp>

#include <cstdint>
#include <string>
#include <string_view>

HYMBA_NAMESPACE_BEGIN

/// Models of more parameters than this are refused.
inline constexpr std::int64_t parameter_limit = std::int64_t{1} << 42;

/// The architecture of variant `V` for a model described by `d`: what `V` leaves open is taken from `d`, the rules are
/// checked, and what `V` fixes must be what `d` says.
/// @param source named in errors.
/// @throws ConfigError with the sentence of the first broken rule; or the first key in which the variant differs; or
/// that the model exceeds 2^42 parameters.
template <class V>
Architecture<V> architecture_from(const Description& d, std::string_view source = "config.json") {
  const Architecture<V> a(d);
  if (const Broken broken = a.first_broken_rule(); broken.rule != Rule::none) {
    throw ConfigError(detail::message(source, ": ", broken_text(broken)));
  }
  if (const std::string difference = description_difference(d, a.describe()); !difference.empty()) {
    throw ConfigError(detail::message(source, ": ", difference));
  }
  if (const std::int64_t count = parameters(a); count > parameter_limit) {
    throw ConfigError(detail::message(source, ": ", count, " parameters, expected at most ", parameter_limit));
  }
  return a;
}

HYMBA_NAMESPACE_END
