// SPDX-License-Identifier: Apache-2.0
// expect: hymba: to train this variant its fusion needs fuse_backward
#include <hymba/hymba.hpp>
#include <hymba/train/trainer.hpp>

namespace mine {
struct Difference {
  static constexpr bool accepts(int a, int s) { return a == s; }
  static constexpr int output_width(int a, int) { return a; }
  template <class Visit>
  static constexpr void tensors(int, int, Visit&&) {}
};
template <class C>
void fuse_forward(const Difference&, const C&, hymba::MatrixView<const float> a, hymba::MatrixView<const float> s,
                  hymba::MatrixView<float> out) {
  for (std::int64_t t = 0; t < out.rows; ++t) {
    for (std::int64_t i = 0; i < out.cols; ++i) out(t, i) = a(t, i) - s(t, i);
  }
}
struct Variant {
  using attention = hymba::AttentionHeads<2, 1, 8, 16>;
  using ssm = hymba::MambaHeads<32, 4, 4, 3>;
  using fuse = Difference;
  static constexpr int width = 16, layers = 2, vocabulary = 40;
};
}  // namespace mine

int main() { hymba::Trainer<mine::Variant> trainer(hymba::architecture<mine::Variant>, {}, {}); }
