// SPDX-License-Identifier: Apache-2.0
//
// A policy says how a model runs: storage of weights and caches, instruction set, executor. It is a type, so that the
// choice is made once, by the compiler.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/exec/formats.hpp>
#include <hymba/exec/simd.hpp>

#include <concepts>

HYMBA_NAMESPACE_BEGIN

/// Runs on the CPU. Activations and SSM states are float; `W` and `C` say how weights and keys/values are stored.
template <Weights W = Weights::bf16, Cache C = Cache::f32, class Arch = arch::best, Executor Exec = DefaultExecutor>
struct Cpu {
  static constexpr Weights weights = W;
  static constexpr Cache cache = C;
  using arch = Arch;
  using executor = Exec;
  using cache_element = typename cache_format<C>::element;
  using real = activation_t<W>;
  static_assert(std::is_same_v<real, activation_beside_t<cache_element>>, "hymba: weights and caches are both f64, or neither is");
};

/// What a policy must provide; a user's own may derive from Cpu or be written from scratch.
template <class P>
concept Policy = requires {
  { P::weights } -> std::convertible_to<Weights>;
  { P::cache } -> std::convertible_to<Cache>;
  typename P::arch;
  typename P::executor;
  typename P::cache_element;
} && Executor<typename P::executor>;

HYMBA_NAMESPACE_END
