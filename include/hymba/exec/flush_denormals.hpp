// SPDX-License-Identifier: Apache-2.0
//
// Denormal numbers: x86 cores take a detour of some hundred cycles for each operation that reads or makes one, which
// slows a product of fading states and small weights several times over. Nothing a model computes needs them. The mode
// belongs to a thread, so whoever runs the work sets it, and gives the host's thread back as it was.
#pragma once

#include <hymba/core/macros.hpp>

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

HYMBA_NAMESPACE_BEGIN

/// While it lives, the thread that made it reads denormal operands as zero and makes zeros of denormal results, of its
/// sign, in vector and scalar arithmetic; then the thread's floating-point control is what it was. A few nanoseconds,
/// fewer where the mode is set already. Does nothing where neither x86-64's nor AArch64's control register is at hand.
class FlushDenormals {
 public:
  FlushDenormals() noexcept : before_(read()) {
    if ((before_ & bits) != bits) write(before_ | bits);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
  ~FlushDenormals() {
    if ((before_ & bits) != bits) write(before_);
  }

  /// Whether the calling thread is in this mode.
  static bool set() noexcept { return bits != 0 && (read() & bits) == bits; }

 private:
#if defined(__x86_64__) || defined(_M_X64)
  using Control = unsigned;
  static constexpr Control bits = 0x8040;  // MXCSR: results (FTZ, bit 15) and operands (DAZ, bit 6)
  static Control read() noexcept { return _mm_getcsr(); }
  static void write(Control control) noexcept {
    fence();
    _mm_setcsr(control);
    fence();
  }
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
  using Control = std::uint64_t;
  static constexpr Control bits = std::uint64_t{1} << 24;  // FPCR.FZ: results and operands, single and double precision
  static Control read() noexcept {
    Control control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void write(Control control) noexcept { __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory"); }
#else
  using Control = unsigned;
  static constexpr Control bits = 0;
  static Control read() noexcept { return 0; }
  static void write(Control) noexcept {}
#endif

  /// Keeps the compiler from moving what the mode is for across the change.
  static void fence() noexcept {
#if defined(__GNUC__) || defined(__clang__)
    __asm__ volatile("" : : : "memory");
#endif
  }

  Control before_;
};

HYMBA_NAMESPACE_END
