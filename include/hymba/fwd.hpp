// SPDX-License-Identifier: Apache-2.0
//
// Declarations only: for headers that name hymba's types without including their definitions (no Eigen, no xsimd, no
// JSON).
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/core/types.hpp>

HYMBA_NAMESPACE_BEGIN

enum class Weights;
enum class Cache;
struct Description;
struct DynamicHymba;
struct GenerateOptions;
struct SamplingOptions;
struct SessionOptions;
struct BatchOptions;
class Error;
class Tokenizer;
template <class V>
struct Architecture;

namespace presets {
struct Hymba1_5B;
struct Hymba350M;
struct Hymba125M;
struct Barebones;
}  // namespace presets

HYMBA_NAMESPACE_END
