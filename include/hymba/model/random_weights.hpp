// SPDX-License-Identifier: Apache-2.0
//
// Random weights for a model that has none: to try a variant, to measure speed, to test.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/core/types.hpp>
#include <hymba/model/sampler.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/tensors.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Uniform numbers in [-1, 1), 16 bits each: enough for weights, and a model of billions is made in seconds.
class UniformStream {
 public:
  explicit UniformStream(std::uint64_t seed) : state_(seed) {}
  float next() {
    if (left_ == 0) {
      bits_ = splitmix64(state_);
      left_ = 4;
    }
    const auto piece = static_cast<std::int32_t>(bits_ & 0xffffu) - 0x8000;
    bits_ >>= 16;
    --left_;
    return static_cast<float>(piece) * 0x1p-15f;
  }

 private:
  std::uint64_t state_, bits_ = 0;
  int left_ = 0;
};

/// How one tensor is filled: `centre + spread * uniform`, or one of Mamba's two recipes.
struct RandomFill {
  enum class Kind { uniform, log_states, time_step_bias } kind = Kind::uniform;
  float centre = 0, spread = 0;
};

inline RandomFill random_fill(const TensorSpec& t, int layers) {
  const std::string_view name = t.name;
  const auto deviation = [](double d) {
    return RandomFill{RandomFill::Kind::uniform, 0, static_cast<float>(d * std::sqrt(3.0))};
  };
  const double inputs = static_cast<double>(t.dims[1]);
  if (name.ends_with("A_log.0")) return {RandomFill::Kind::log_states};
  if (name.ends_with("dt_proj.0.bias")) return {RandomFill::Kind::time_step_bias};
  if (name.ends_with("conv1d.weight")) return deviation(1.0 / std::sqrt(static_cast<double>(t.dims[2])));
  if (name.ends_with(".bias")) return {RandomFill::Kind::uniform, 0, 0.1f};
  if (name == "model.memory_tokens") return deviation(1.0 / std::sqrt(inputs));
  if (t.role == TensorRole::vector) return {RandomFill::Kind::uniform, 1, 0.1f};  // norms, D, scales
  // What is added to the residual stream is kept small enough for its sum over all layers to stay of order one.
  const bool adds = name.ends_with("out_proj.weight") || name.ends_with("down_proj.weight");
  return deviation(1.0 / std::sqrt(inputs * (adds ? 2.0 * layers : 1.0)));
}

/// Writes the numbers of one tensor: `put(i, value)`.
template <class Put>
void fill_random(const TensorSpec& t, RandomFill fill, std::uint64_t seed, Put&& put) {
  UniformStream random(seed);
  const std::int64_t count = t.elements(), states = t.dims[1];
  switch (fill.kind) {
    case RandomFill::Kind::uniform:
      for (std::int64_t i = 0; i < count; ++i) put(i, fill.centre + fill.spread * random.next());
      return;
    case RandomFill::Kind::log_states:  // A = -(1, 2, ... N) in every channel
      for (std::int64_t i = 0; i < count; ++i) put(i, std::log(static_cast<float>(i % states + 1)));
      return;
    case RandomFill::Kind::time_step_bias:  // softplus(bias) is log-uniform in [1e-3, 1e-1]
      for (std::int64_t i = 0; i < count; ++i) {
        const float step = 1e-3f * std::pow(100.0f, 0.5f + 0.5f * random.next());
        put(i, step + std::log(-std::expm1(-step)));
      }
      return;
  }
}

/// Writes a matrix as quantised rows of uniform integers whose scales make them spread as far as `fill` says.
inline void fill_random_rows(const TensorSpec& t, RandomFill fill, std::uint64_t seed, DType type, std::byte* to) {
  const std::int64_t cols = t.dims[1];
  const bool halves = layout_of(type) == DType::int4;
  const std::size_t values = halves ? Int4Rows::value_bytes(cols) : Int8Rows::value_bytes(cols);
  // Half bytes of int4 are uniform under codes around this one, like those of real weights.
  constexpr int middle_code = 0xc8;
  const float scale = fill.spread / (halves ? Int4Levels::largest(middle_code) : 127.0f);
  for (std::int64_t r = 0; r < t.dims[0]; ++r, to += dtype_row_bytes(type, cols)) {
    std::memset(to, 0, dtype_row_bytes(type, cols));
    for (std::size_t i = 0; i < values; i += 8) {
      const std::uint64_t bits = splitmix64(seed);
      std::memcpy(to + i, &bits, 8);
    }
    if (halves) {
      std::memcpy(to + values, &scale, sizeof(scale));
      for (std::int64_t i = 0; i < quantised_blocks(cols); ++i) {
        const std::uint64_t codes = 0x8484848484848484u + (splitmix64(seed) & 0x7777777777777777u);
        std::memcpy(to + values + sizeof(scale) + 8 * i, &codes, sizeof(codes));
      }
    } else {
      std::memset(to + cols, 0, values - static_cast<std::size_t>(cols));
      for (std::int64_t b = 0; b < quantised_blocks(cols); ++b) {
        std::memcpy(to + values + static_cast<std::size_t>(b) * sizeof(scale), &scale, sizeof(scale));
      }
    }
  }
}

}  // namespace detail

/// Random weights for an architecture, of the size an untrained model starts with: matrices of variance 1 / inputs,
/// norms and scales near 1, biases near 0, Mamba's own recipe for A and the time steps. Every tensor of the published
/// layout is there; a tensor of a part of one's own is filled by its role (matrix, or vector near 1; near 0 when its
/// name ends in ".bias"). The same seed gives the same numbers, up to the last bit of std::log and std::pow.
/// @param dtype the scalar type of all tensors; with a quantised one that of the matrices, the fine ones being int8 and
/// everything else F32.
/// @throws std::bad_alloc.
template <class V>
TensorTable random_tensors(const Architecture<V>& a, std::uint64_t seed, DType dtype = DType::f32) {
  std::vector<std::pair<std::string, TensorSpec>> specs;
  for_each_model_tensor(a, [&](const TensorSpec& t) { specs.emplace_back(t.name, t); });
  for (int i = 0; i < a.layers; ++i) {
    const std::string prefix = layer_prefix(i);
    for_each_layer_tensor(a, i, [&](Part, const TensorSpec& t) { specs.emplace_back(prefix + t.name, t); });
  }
  const auto type_of = [&](const TensorSpec& t) {
    if (!is_quantised(dtype)) return dtype;
    return t.role == TensorRole::vector ? DType::f32 : t.role == TensorRole::fine ? DType::int8 : dtype;
  };
  const auto size_of = [&](const TensorSpec& t) {
    const std::int64_t cols = t.dims[static_cast<std::size_t>(t.rank - 1)];
    return static_cast<std::size_t>(t.elements() / cols) * dtype_row_bytes(type_of(t), cols);
  };
  std::size_t bytes = 0;
  for (const auto& [name, t] : specs) bytes += aligned_size(size_of(t));
  auto memory = std::make_shared<AlignedBuffer>(bytes, Uninitialised{});

  TensorTable table;
  std::byte* next = memory->data();
  std::uint64_t state = seed;
  for (const auto& named : specs) {
    const std::string& name = named.first;  // clang 14 lets no lambda capture a structured binding
    const TensorSpec& t = named.second;
    const std::uint64_t tensor_seed = detail::splitmix64(state);
    const detail::RandomFill fill = detail::random_fill(t, a.layers);
    const auto filled_as = [&](auto convert) {
      detail::fill_random(t, fill, tensor_seed, [&](std::int64_t i, float value) {
        const auto stored = convert(value);
        std::memcpy(next + static_cast<std::size_t>(i) * sizeof(stored), &stored, sizeof(stored));
      });
    };
    switch (type_of(t)) {
      case DType::f32:
        filled_as([](float v) { return v; });
        break;
      case DType::f16:
        filled_as([](float v) { return f16(v); });
        break;
      case DType::bf16:
        filled_as([](float v) { return bf16(v); });
        break;
      case DType::int8:
      case DType::int4:
      case DType::rotated_int8:
      case DType::rotated_int4:
        detail::fill_random_rows(t, fill, tensor_seed, type_of(t), next);
        break;
    }
    const std::size_t size = size_of(t);
    table.tensors[name] = {type_of(t), {t.dims.begin(), t.dims.begin() + t.rank}, {next, size}};
    next += aligned_size(size);
  }
  table.owner = std::move(memory);
  return table;
}

HYMBA_NAMESPACE_END
