// SPDX-License-Identifier: Apache-2.0
//
// The trait that picks a path: `kernel_for<Op, Arch>` is the implementation of operation `Op` on architecture `Arch`.
// It is the only place where one is chosen. Heads and models name operations, never instruction sets.
#pragma once

#include <hymba/core/macros.hpp>

#include <concepts>
#include <cstddef>

HYMBA_NAMESPACE_BEGIN

namespace detail {
template <class...>
inline constexpr bool always_false = false;
}

/// Implementation of `Op` on `Arch`. Specialise it, inside or outside the library, to provide or replace a path; each
/// operation's own header says which static functions a specialisation has.
template <class Op, class Arch>
struct kernel_for {
  static_assert(detail::always_false<Op, Arch>,
                "hymba: no kernel for this operation on this architecture: include the kernel's header, specialise "
                "hymba::kernel_for<Op, Arch>, or name another Arch in the policy");
};

/// Scratch memory handed to kernels: thread t may use `per_thread` bytes at `of(t)`, aligned to 64; `shared`, aligned
/// likewise, is one region that the threads of a kernel share as they agree.
struct Scratch {
  std::byte* base = nullptr;
  std::size_t per_thread = 0;
  std::byte* shared = nullptr;

  template <class T>
  T* of(int thread) const {
    return reinterpret_cast<T*>(base + static_cast<std::size_t>(thread) * per_thread);
  }
};

HYMBA_NAMESPACE_END
