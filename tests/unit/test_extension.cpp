// SPDX-License-Identifier: Apache-2.0
//
// Every door for a user's own part, used from outside the library: recurrent heads, attention heads, a fusion, an MLP, a
// sharing rule, spans, a mix, a kernel. If one of them closes, this file does not compile.
#include <hymba/hymba.hpp>
#include <hymba/model/random_weights.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace outside {

using hymba::MatrixView;

/// Recurrent heads: an exponential moving average with a learned decay per channel, gated. One float of state a channel.
struct AverageHeads {
  static constexpr const char* kind_name = "average";
  int width = 12;
  constexpr int output_width() const { return width; }
  constexpr int input_rows() const { return 2 * width; }
  constexpr std::int64_t state_floats() const { return width; }
  constexpr std::int64_t workspace_floats(std::int64_t) const { return 0; }
  constexpr void describe(hymba::Description& d) const {
    d.ssm = kind_name;
    d.inner = width;
  }
  template <class Visit>
  constexpr void tensors(Visit&& visit) const {
    visit(hymba::vector_tensor("average.decay.weight", width));
  }
};
constexpr std::int64_t derived_floats(const AverageHeads& h) { return h.width; }
template <class Context>
void derive(const AverageHeads& h, const Context& c, float* out) {
  for (int e = 0; e < h.width; ++e) out[e] = 1.0f / (1.0f + std::exp(-c.vector(0)[e]));
}
template <class Context>
void ssm_forward(const AverageHeads& h, const Context& c, const hymba::SsmStep& step) {
  for (const hymba::SsmSequence& s : step.sequences) {
    for (std::int64_t t = s.first_row; t < s.first_row + s.rows; ++t) {
      for (int e = 0; e < h.width; ++e) {
        s.state[e] = c.derived[e] * s.state[e] + (1 - c.derived[e]) * step.input(t, e);
        step.output(t, e) = s.state[e] * std::tanh(step.input(t, h.width + e));
      }
    }
  }
}

/// Attention heads: the library's, with outputs scaled by a learned number per channel.
struct ScaledHeads : hymba::AttentionHeads<3, 1, 4, 4> {
  template <class Visit>
  constexpr void tensors(bool, Visit&& visit) const {
    visit(hymba::vector_tensor("scale.weight", output_width()));
  }
};
template <class Context, class E>
void attention_forward(const ScaledHeads& h, const Context& c, const hymba::AttentionStep<E>& step) {
  attention_forward(static_cast<const hymba::AttentionHeads<3, 1, 4, 4>&>(h), c, step);
  for (std::int64_t t = 0; t < step.output.rows; ++t) {
    for (int e = 0; e < h.output_width(); ++e) step.output(t, e) *= c.vector(0)[e];
  }
}

struct MaxOfHeads {
  static constexpr const char* kind_name = "max";
  static constexpr bool accepts(int a, int s) { return a == s; }
  static constexpr int output_width(int a, int) { return a; }
  template <class Visit>
  static constexpr void tensors(int, int, Visit&&) {}
};
template <class Context>
void fuse_forward(const MaxOfHeads&, const Context&, MatrixView<const float> a, MatrixView<const float> s,
                  MatrixView<float> out) {
  for (std::int64_t t = 0; t < out.rows; ++t) {
    for (std::int64_t i = 0; i < out.cols; ++i) out(t, i) = std::max(a(t, i), s(t, i));
  }
}

/// An MLP of two matrices and a tanh, with a slope that is derived from a tensor.
struct TanhMlp {
  static constexpr const char* kind_name = "tanh";
  int width = 8;
  constexpr int hidden() const { return width; }
  template <class Visit>
  constexpr void tensors(int model_width, Visit&& visit) const {
    visit(hymba::matrix_tensor("mlp.in.weight", width, model_width));
    visit(hymba::matrix_tensor("mlp.out.weight", model_width, width));
    visit(hymba::vector_tensor("mlp.slope.weight", 1));
  }
};
constexpr std::int64_t derived_floats(const TanhMlp&) { return 1; }
template <class Context>
void derive(const TanhMlp&, const Context& c, float* out) {
  *out = std::exp(c.vector(2)[0]);
}
template <class Context>
void mlp_forward(const TanhMlp& mlp, const Context& c, MatrixView<const float> in, MatrixView<float> out, float* work) {
  const MatrixView<float> hidden(work, in.rows, mlp.width);
  hymba::run<hymba::op::Gemm>(c, in, c.matrix(0), static_cast<const float*>(nullptr), hidden, hymba::Store::assign);
  for (std::int64_t i = 0; i < in.rows * mlp.width; ++i) work[i] = std::tanh(*c.derived * work[i]);
  hymba::run<hymba::op::Gemm>(c, hidden, c.matrix(1), static_cast<const float*>(nullptr), out, hymba::Store::add);
}

/// Even layers see 3 back, odd ones everything; layers of one span read the first of their kind; layer 4 has no SSM.
struct Alternating {
  static constexpr int window(int layer) { return layer % 2 == 0 ? 3 : 0; }
};
struct FirstOfItsSpan {
  static constexpr int source(int layer, const hymba::Plan& plan) {
    for (int i = 0; i < layer; ++i) {
      if (plan[i].has_attention() && plan[i].window == plan[layer].window) return plan[i].source;
    }
    return layer;
  }
};
struct LastIsAttention {
  static constexpr hymba::LayerKind kind(int layer) {
    return layer == 4 ? hymba::LayerKind::attention : hymba::LayerKind::hybrid;
  }
};

struct Variant {
  using attention = ScaledHeads;
  using ssm = AverageHeads;
  using fuse = MaxOfHeads;
  using mlp = TanhMlp;
  using meta = hymba::MetaTokens<2>;
  using spans = Alternating;
  using sharing = FirstOfItsSpan;
  using mix = LastIsAttention;
  static constexpr int width = 10, layers = 5, vocabulary = 17;
};
static_assert(hymba::ValidVariant<Variant>);
static_assert(hymba::architecture<Variant>.plan[4].source == 0 && hymba::architecture<Variant>.plan[3].source == 1);

/// An architecture of one's own: everything as on the scalar one, but matrix products are counted.
struct CountingArch {};
inline thread_local int products = 0;

}  // namespace outside

HYMBA_NAMESPACE_BEGIN
template <class Op>
struct kernel_for<Op, outside::CountingArch> : kernel_for<Op, arch::scalar> {};
template <>
struct kernel_for<op::Gemm, outside::CountingArch> : kernel_for<op::Gemm, arch::scalar> {
  template <class... Args>
  static void run(Args&&... args) {
    ++outside::products;
    kernel_for<op::Gemm, arch::scalar>::run(std::forward<Args>(args)...);
  }
};
HYMBA_NAMESPACE_END

using namespace hymba;

TEST_CASE("a variant made of a user's own parts: one pass equals token by token, and snapshots hold its state") {
  const Model<outside::Variant, Cpu<Weights::f32>> model(architecture<outside::Variant>,
                                                         random_tensors(architecture<outside::Variant>, 3));
  std::vector<Token> ids;
  for (int i = 0; i < 20; ++i) ids.push_back((i * 5 + 2) % 17);
  std::vector<float> whole(ids.size() * 17);
  auto session = model.session({.max_context = 20, .threads = 2});
  session.evaluate(ids, whole);
  session.reset();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto logits = session.decode(ids[i]);
    for (std::size_t v = 0; v < 17; ++v) REQUIRE(logits[v] == doctest::Approx(whole[i * 17 + v]).epsilon(1e-4));
    if (i == 9) session = model.restore(session.snapshot(), {.max_context = 20, .threads = 1});
  }
  double spread = 0;
  for (const float v : whole) spread = std::max(spread, static_cast<double>(std::abs(v - whole[0])));
  CHECK(spread > 0.1);
}

namespace outside {
/// Static but for one size in each part: it takes those, and those alone, from a description.
struct HalfDynamic {
  using attention = hymba::AttentionHeads<hymba::dynamic, 1, 4, 4>;
  using ssm = hymba::MambaHeads<8, hymba::dynamic, 2, 1>;
  using mlp = hymba::SwiGlu<hymba::dynamic>;
  using meta = hymba::MetaTokens<hymba::dynamic>;
  static constexpr int width = 6, layers = 2, vocabulary = 9;
};
static_assert(!hymba::is_static_variant<HalfDynamic>);
}  // namespace outside

TEST_CASE("a variant with some sizes dynamic takes them from a description, and refuses others than its own") {
  Description d = Architecture<outside::HalfDynamic>(Description{}).describe();
  d.query_heads = 2;
  d.d_state = 3;
  d.mlp_width = 5;
  d.meta_tokens = 2;
  const auto a = architecture_from<outside::HalfDynamic>(d);
  const Model<outside::HalfDynamic, Cpu<Weights::f32>> model(a, random_tensors(a, 1));
  auto session = model.session({.max_context = 4, .threads = 1});
  CHECK(session.decode(3).size() == 9);
  d.kv_heads = 2;
  CHECK_THROWS_AS(architecture_from<outside::HalfDynamic>(d), ConfigError);
}

TEST_CASE("a user's own kernel and architecture run a whole model") {
  const Model<outside::Variant, Cpu<Weights::f32, Cache::f32, outside::CountingArch, Serial>> model(
      architecture<outside::Variant>, random_tensors(architecture<outside::Variant>, 3));
  auto session = model.session({.max_context = 20});
  outside::products = 0;
  session.decode(1);
  CHECK(outside::products == 5 * 4 + 1);  // in, out and two of the MLP in each layer, and the logits
}
