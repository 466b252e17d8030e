// SPDX-License-Identifier: Apache-2.0
//
// Whether this process may use AMX tiles: a question to the processor and to the operating system, asked at run time.
#pragma once

#include <hymba/core/macros.hpp>

#include <cstdint>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

#include <cpuid.h>
#endif

HYMBA_NAMESPACE_BEGIN

namespace detail {

#if defined(__linux__) && defined(__x86_64__)
inline bool ask_for_amx() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned osxsave = 1u << 27, amx_bf16 = 1u << 22, amx_tile = 1u << 24, amx_int8 = 1u << 25;
  constexpr unsigned units = amx_bf16 | amx_tile | amx_int8;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & osxsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & units) != units) return false;
  // The state components the system saves: tile configuration (17) and tile data (18).
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr std::uint32_t tiles = 3u << 17;
  if ((low & tiles) != tiles) return false;
  // Linux gives tile data only to a process that asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). It holds
  // for all threads, those that run already included.
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#else
inline bool ask_for_amx() noexcept { return false; }
#endif

}  // namespace detail

/// Whether the processor has AMX tiles for bf16 and bytes and the system lets this process use them. The first call asks
/// Linux for permission, for all threads of the process; until a call has returned true, nothing may run on arch::amx.
/// False on other systems.
inline bool amx_available() noexcept {
  static const bool available = detail::ask_for_amx();
  return available;
}

HYMBA_NAMESPACE_END
