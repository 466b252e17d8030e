// SPDX-License-Identifier: Apache-2.0
#if __has_include(<hymba/hymba.hpp>)
#include <hymba/hymba.hpp>
#endif
#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/view.hpp>

int sum_elsewhere(const float* data, int count) {
  hymba::MatrixView<const float> view(data, 1, count);
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += view(0, i);
  return static_cast<int>(sum);
}
