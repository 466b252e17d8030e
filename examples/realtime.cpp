// SPDX-License-Identifier: Apache-2.0
//
// A loop with deadlines: everything is allocated when the session is made, nothing while it runs. This program replaces
// the global operator new to count.
#include <hymba/hymba.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

namespace {
std::atomic<long> allocations{0};

void* counted(std::size_t size, std::size_t alignment) {
  ++allocations;
  if (void* memory =
          std::aligned_alloc(alignment, (std::max(size, std::size_t{1}) + alignment - 1) / alignment * alignment)) {
    return memory;
  }
  throw std::bad_alloc();
}
}  // namespace

// The other forms of new and delete end up in these.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return counted(size, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new(std::size_t size) { return counted(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t a) {
  return counted(size, std::max(static_cast<std::size_t>(a), alignof(std::max_align_t)));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

int main(int argc, char** argv) try {
  // Serial: no thread but the caller's, whose priority the host decides. Cpu<> would use all cores.
  using RealTime = hymba::Cpu<hymba::Weights::bf16, hymba::Cache::f32, hymba::arch::best, hymba::Serial>;
  const auto model =
      hymba::Model<hymba::DynamicHymba, RealTime>::open(argc > 1 ? argv[1] : "examples/models/random-tiny");
  auto session = model.session({.max_context = 600, .prefill_chunk = 16});
  session.configure({.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .repetition_penalty = 1.1f, .seed = 7});
  const hymba::Token prompt[] = {1, 50, 60, 70, 80};

  const long before = allocations;
  double worst = 0;
  session.prefill(prompt);
  hymba::Choice next = session.sample();
  for (int tick = 0; tick < 500; ++tick) {
    const auto begin = std::chrono::steady_clock::now();
    session.decode(next.token);
    next = session.sample();
    worst = std::max(worst, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  session.reset();  // ready for the next prompt
  session.prefill(prompt);
  const long during = allocations - before;

  std::printf("%ld allocations to set up, %ld in 500 tokens; slowest token %.0f microseconds\n", before, during,
              worst * 1e6);
  return before > 0 && during == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
