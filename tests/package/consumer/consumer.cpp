// SPDX-License-Identifier: Apache-2.0
//
// Uses hymba from outside its repository. Takes all of the library when it is there.
#if __has_include(<hymba/hymba.hpp>)
#include <hymba/hymba.hpp>
#endif
#include <hymba/core/macros.hpp>
#include <hymba/core/view.hpp>

#include <cstdio>

int sum_elsewhere(const float* data, int count);

int main() {
  const float values[] = {1, 2, 3, 4, 5, 6};
  hymba::MatrixView<const float> view(values, 2, 3);
  const bool good = view(1, 2) == 6 && sum_elsewhere(values, 6) == 21;
  std::printf("hymba %s, consumed from outside: %s\n", HYMBA_VERSION_STRING, good ? "ok" : "wrong");
  return good ? 0 : 1;
}
