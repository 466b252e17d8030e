// SPDX-License-Identifier: Apache-2.0
//
// An executor of several threads for tests of kernels, also where there is no OpenMP.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/executor.hpp>

#include <cstdint>

namespace hymba_test {

#if defined(_OPENMP)
using TestExecutor = hymba::OpenMp;
#else
/// Splits the work as if it had threads, and runs it on one.
class TestExecutor {
 public:
  explicit TestExecutor(int threads) : threads_(threads) {}
  int threads() const { return threads_; }
  template <class Body>
  void parallel_for(std::int64_t tasks, Body&& body) const {
    for (std::int64_t i = 0; i < tasks; ++i) body(i, static_cast<int>(i % threads_));
  }

 private:
  int threads_;
};
static_assert(hymba::Executor<TestExecutor>);
#endif

}  // namespace hymba_test
