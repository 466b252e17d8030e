// SPDX-License-Identifier: Apache-2.0
//
// Variants as types: costs as constant expressions, plans, users' own parts, and every rule at run time.
#include <hymba/exec/policy.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/variant/costs.hpp>
#include <hymba/variant/presets.hpp>

#include <doctest/doctest.h>

#include <array>
#include <string>
#include <vector>

using namespace hymba;

// ---- the published model
// ----------------------------------------------------------------------------------------------

static_assert(ValidVariant<presets::Hymba1_5B> && ValidVariant<presets::Hymba350M> &&
              ValidVariant<presets::Hymba125M> && ValidVariant<presets::Barebones> &&
              ValidVariant<presets::Llama3_2_3B>);
static_assert(is_static_variant<presets::Hymba1_5B> && !is_static_variant<DynamicHymba>);
static_assert(parameters<presets::Hymba1_5B>() == 1'522'797'824);
static_assert(cache_bytes(architecture<presets::Hymba1_5B>, 2, 8192) == 78'915'840);
static_assert(cache_bytes<presets::Hymba1_5B, Cpu<Weights::bf16, Cache::bf16>>(8192) == 78'915'840);
// A byte for each number, and two more for each of a position's 5 keys and 5 values of 64 and 128.
static_assert(cache_bytes<presets::Hymba1_5B, Cpu<Weights::bf16, Cache::int8>>(8192) ==
              78'915'840 / 2 / (64 + 128) * (64 + 128 + 4));
// 32 layers of [3 convolution taps + 16 states] x 3200 channels in single precision
static_assert(state_bytes<presets::Hymba1_5B>() == std::size_t{32} * (3 + 16) * 3200 * 4);
// 5 heads of 64 + 128 per position, layer and 16-bit element, without sharing, windows or meta tokens
static_assert(transformer_cache_bytes(architecture<presets::Hymba1_5B>, 2, 8192) ==
              std::size_t{32} * 8192 * 5 * 192 * 2);
// A window layer stops growing at W + 1 positions behind the meta tokens.
static_assert(cached_positions(1024, 128, 8192) == 128 + 1025 && cached_positions(1024, 128, 10) == 138 &&
              cached_positions(0, 128, 8192) == 128 + 8192);

// The transformer that the paper compares with: every layer caches 8 heads of 128 + 128 for every token.
static_assert(parameters<presets::Llama3_2_3B>() == 3'212'749'824);
static_assert(cache_bytes(architecture<presets::Llama3_2_3B>, 2, 1) == 114'688);
static_assert(cache_bytes(architecture<presets::Llama3_2_3B>, 2, 8192) == 939'524'096);
static_assert(cache_bytes(architecture<presets::Llama3_2_3B>, 2, 8192) ==
              transformer_cache_bytes(architecture<presets::Llama3_2_3B>, 2, 8192));
static_assert(state_bytes<presets::Llama3_2_3B>() == 0);

struct PublishedGroups : presets::Hymba1_5B {
  using sharing = Groups<Group<1, 2>, Group<3, 4>, Group<5, 6>, Group<7, 8>, Group<9, 10>, Group<11, 12>, Group<13, 14>,
                         Group<16, 17, 18>, Group<19, 20>, Group<21, 22>, Group<23, 24>, Group<25, 26>, Group<27, 28>,
                         Group<29, 30>>;
};
static_assert(same_architecture(architecture<PublishedGroups>.describe(), architecture<presets::Hymba1_5B>.describe()));
static_assert(!same_architecture(architecture<presets::Hymba125M>.describe(),
                                 architecture<presets::Hymba350M>.describe()));
static_assert(architecture<PublishedGroups>.plan == architecture<presets::Hymba1_5B>.plan);
static_assert(architecture<presets::Hymba1_5B>.plan[0] == LayerPlan{LayerKind::hybrid, 0, 0});
static_assert(architecture<presets::Hymba1_5B>.plan[18] == LayerPlan{LayerKind::hybrid, 1024, 16});
// The rows of a layer's input projection: a reader has no k and v.
static_assert(architecture<presets::Hymba1_5B>.input_rows(1) == 25 * 64 + 5 * 64 + 5 * 128 + 2 * 3200);
static_assert(architecture<presets::Hymba1_5B>.input_rows(2) == 25 * 64 + 2 * 3200);

// ---- other stacks
// -----------------------------------------------------------------------------------------------------

struct Transformer {  // a plain Llama
  using attention = AttentionHeads<8, 2, 16>;
  using mlp = SwiGlu<96>;
  static constexpr int width = 64, layers = 3, vocabulary = 50;
  static constexpr bool tied_embeddings = false;
};
static_assert(ValidVariant<Transformer>);
static_assert(architecture<Transformer>.mixed_width(0) == 128 && architecture<Transformer>.ssm_state_floats() == 0);
static_assert(parameters<Transformer>() ==
              2 * 50 * 64 + 64 + 3 * (64 + (128 + 32 + 32) * 64 + 64 * 128 + 64 + 3 * 96 * 64));
static_assert(state_bytes<Transformer>() == 0);
static_assert(cache_bytes(architecture<Transformer>, 4, 100) ==
              transformer_cache_bytes(architecture<Transformer>, 4, 100));

struct PureMamba {
  using ssm = MambaHeads<32, 8, 4, 2, MambaOptions{.inner_norms = false, .conv_bias = false}>;
  static constexpr int width = 16, layers = 2, vocabulary = 50;
};
static_assert(ValidVariant<PureMamba>);
static_assert(cache_bytes(architecture<PureMamba>, 2, 100) == 0 && state_bytes<PureMamba>() == 2 * 4 * (3 + 8) * 32);
static_assert(parameters<PureMamba>() ==
              50 * 16 + 16 + 2 * (16 + 64 * 16 + 16 * 32 + 32 * 4 + (2 + 16) * 32 + 32 * 2 + 32 + 32 * 8 + 32));
static_assert(architecture<PureMamba>.plan[1] == LayerPlan{LayerKind::ssm, 0, -1});

struct Sequential {  // SSM and attention layers in turn
  using attention = AttentionHeads<4, 1, 8, 8, NoRope, QkNorm::per_head_rms>;
  using ssm = MambaHeads<48, 8, 4, 2>;
  using mix = Cycle<LayerKind::ssm, LayerKind::attention>;
  using spans = Window<7>;
  static constexpr int width = 16, layers = 4, vocabulary = 50;
};
static_assert(ValidVariant<Sequential>);  // widths 32 and 48 never meet
static_assert(architecture<Sequential>.mixed_width(0) == 48 && architecture<Sequential>.mixed_width(1) == 32);
static_assert(architecture<Sequential>.plan[0] == LayerPlan{LayerKind::ssm, 0, -1});
static_assert(architecture<Sequential>.plan[3] == LayerPlan{LayerKind::attention, 7, 3});

struct Concatenated {
  using attention = AttentionHeads<4, 2, 6, 5>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using fuse = ConcatHeads;
  using mlp = Relu2<27>;
  static constexpr int width = 16, layers = 2, vocabulary = 50;
};
static_assert(ValidVariant<Concatenated> && architecture<Concatenated>.mixed_width(0) == 20 + 32);

// ---- a user's own parts
// -----------------------------------------------------------------------------------------------

struct WidenWithDepth {  // own spans
  static constexpr int window(int layer) { return layer == 3 ? 0 : 4 << (layer / 2); }
};
struct ShareInPairs {  // own sharing rule
  static constexpr int source(int layer, const Plan& plan) {
    return layer % 2 == 1 && plan[layer - 1].window == plan[layer].window ? layer - 1 : layer;
  }
};
struct FirstIsAttention {  // own mix
  static constexpr LayerKind kind(int layer) { return layer == 0 ? LayerKind::attention : LayerKind::hybrid; }
};
struct Weighted {  // own fusion, with a tensor of its own
  static constexpr const char* kind_name = "weighted";
  static constexpr bool accepts(int attention, int ssm) { return attention <= ssm; }
  static constexpr int output_width(int, int ssm) { return ssm; }
  template <class Visit>
  static constexpr void tensors(int attention, int, Visit&& visit) {
    visit(vector_tensor("mamba.weighted.weight", attention));
  }
};
struct OwnParts {
  using attention = AttentionHeads<4, 2, 8, 6>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using fuse = Weighted;
  using mix = FirstIsAttention;
  using spans = WidenWithDepth;
  using sharing = ShareInPairs;
  static constexpr int width = 16, layers = 5, vocabulary = 50;
};
static_assert(ValidVariant<OwnParts>);
constexpr auto rows_of(const Plan& plan) {
  std::array<LayerPlan, 5> out;
  for (int i = 0; i < 5; ++i) out[static_cast<std::size_t>(i)] = plan[i];
  return out;
}
static_assert(rows_of(architecture<OwnParts>.plan) == std::array<LayerPlan, 5>{{{LayerKind::attention, 4, 0},
                                                                                {LayerKind::hybrid, 4, 0},
                                                                                {LayerKind::hybrid, 8, 2},
                                                                                {LayerKind::hybrid, 0, 3},
                                                                                {LayerKind::hybrid, 16, 4}}});
static_assert(architecture<OwnParts>.describe().fusion == Name("weighted"));

TEST_CASE("ShareAdjacentWindows cuts runs as published") {
  Plan plan;
  plan.layers = 9;
  for (int i = 0; i < 9; ++i) plan[i] = {LayerKind::hybrid, i == 4 ? 0 : 8, -1};
  plan[8].kind = LayerKind::ssm;
  std::vector<int> twos, threes;
  for (int i = 0; i < 8; ++i) twos.push_back(ShareAdjacentWindows<2>::source(i, plan));
  for (int i = 0; i < 8; ++i) threes.push_back(ShareAdjacentWindows<3>::source(i, plan));
  CHECK(twos == std::vector<int>{0, 0, 2, 2, 4, 5, 5, 5});
  CHECK(threes == std::vector<int>{0, 0, 0, 0, 4, 5, 5, 5});
}

TEST_CASE("names are cut, compared by value and hold no rest") {
  CHECK(Name("abc") == Name(std::string_view("abc")));
  CHECK(Name("abc") != Name("ab"));
  CHECK(Name(std::string_view(std::string(100, 'x'))).view().size() == 47);
}

// ---- rules at run time
// ------------------------------------------------------------------------------------------------

namespace {
/// A valid hybrid of four layers, as config.json would describe it.
Description valid() {
  Description d;
  d.width = 16, d.layers = 4, d.vocabulary = 32;
  d.attention = "attention", d.query_heads = 4, d.kv_heads = 2, d.key_width = 8, d.value_width = 8;
  d.rope = RopeKind::ntk, d.rope_base = 10000, d.max_positions = 128, d.original_positions = 32;
  d.ssm = "mamba", d.inner = 32, d.d_state = 4, d.conv_taps = 4, d.dt_rank = 2, d.conv_bias = d.inner_norms = true;
  d.fusion = "mean_of_norms", d.mlp = "silu", d.mlp_width = 24, d.meta_tokens = 3;
  d.plan.layers = 4;
  for (int i = 0; i < 4; ++i) d.plan[i] = {LayerKind::hybrid, i == 0 ? 0 : 8, i == 2 ? 1 : i};
  return d;
}
Rule broken(const Description& d) { return Architecture<DynamicHymba>(d).first_broken_rule().rule; }

template <class Change>
void expect(Rule rule, Change change) {
  Description d = valid();
  change(d);
  INFO(std::string(sentence(rule)));
  CHECK(broken(d) == rule);
  std::string said;
  try {
    architecture_from<DynamicHymba>(d, "here");
  } catch (const ConfigError& e) {
    said = e.what();
  }
  CHECK(said.find("here: " + std::string(sentence(rule))) == 0);
}
}  // namespace

TEST_CASE("every rule is reached by a description that breaks it") {
  REQUIRE(broken(valid()) == Rule::none);
  architecture_from<DynamicHymba>(valid());
  expect(Rule::sizes_positive, [](Description& d) { d.width = 0; });
  expect(Rule::sizes_positive, [](Description& d) { d.layers = 0; });
  expect(Rule::sizes_positive, [](Description& d) { d.vocabulary = -5; });
  expect(Rule::layers_in_plan, [](Description& d) { d.layers = 257; });
  for (int Description::*size :
       {&Description::width, &Description::query_heads, &Description::kv_heads, &Description::key_width,
        &Description::value_width, &Description::inner, &Description::d_state, &Description::conv_taps,
        &Description::dt_rank, &Description::mlp_width, &Description::meta_tokens}) {
    expect(Rule::sizes_sane, [&](Description& d) { d.*size = (1 << 20) + 1; });
    expect(Rule::sizes_sane, [&](Description& d) { d.*size = 2147483647; });
  }
  expect(Rule::sizes_sane, [](Description& d) { d.vocabulary = 2147483647; });
  expect(Rule::sizes_sane, [](Description& d) { d.query_heads = d.value_width = 1 << 20; });
  expect(Rule::sizes_sane, [](Description& d) { d.query_heads = d.key_width = 1 << 12; });
  expect(Rule::attention_sizes, [](Description& d) { d.query_heads = 0; });
  expect(Rule::attention_sizes, [](Description& d) { d.kv_heads = 0; });
  expect(Rule::attention_sizes, [](Description& d) { d.query_heads = -4; });
  expect(Rule::sizes_sane, [](Description& d) { d.query_heads = d.value_width = -2147483647; });
  expect(Rule::attention_sizes, [](Description& d) { d.key_width = 0; });
  expect(Rule::attention_sizes, [](Description& d) { d.value_width = 0; });
  expect(Rule::query_heads_multiple, [](Description& d) { d.kv_heads = 3; });
  expect(Rule::key_width_even, [](Description& d) { d.key_width = 7; });
  expect(Rule::rope_positions, [](Description& d) { d.rope_base = 0; });
  expect(Rule::rope_positions, [](Description& d) { d.original_positions = 0; });
  expect(Rule::rope_positions, [](Description& d) { d.max_positions = 31; });
  expect(Rule::rope_positions, [](Description& d) { d.key_width = 2; });
  expect(Rule::ssm_sizes, [](Description& d) { d.inner = 0; });
  expect(Rule::ssm_sizes, [](Description& d) { d.d_state = 0; });
  expect(Rule::ssm_sizes, [](Description& d) { d.conv_taps = -1; });
  expect(Rule::ssm_sizes, [](Description& d) { d.dt_rank = 0; });
  expect(Rule::fusion_known, [](Description& d) { d.fusion = "weighted"; });
  expect(Rule::fusion_widths, [](Description& d) { d.inner = 33; });
  expect(Rule::mlp_known, [](Description& d) { d.mlp = "maxout"; });
  expect(Rule::mlp_width, [](Description& d) { d.mlp_width = 0; });
  expect(Rule::meta_count, [](Description& d) { d.meta_tokens = -1; });
  expect(Rule::window_size, [](Description& d) { d.plan[1].window = d.plan[2].window = -8; });
  expect(Rule::window_size, [](Description& d) { d.plan[3].window = 2147483647; });
  expect(Rule::source_exists, [](Description& d) { d.plan[3].source = -1; });
  expect(Rule::source_exists, [](Description& d) { d.plan[3].source = 4; });
  expect(Rule::source_exists, [](Description& d) { d.plan[3].source = 1000000; });
  expect(Rule::source_early, [](Description& d) { d.plan[1].source = 2; });
  expect(Rule::source_attends, [](Description& d) { d.plan[1] = {LayerKind::ssm, 0, -1}; });
  expect(Rule::source_produces, [](Description& d) { d.plan[3].source = 2; });
  expect(Rule::group_spans, [](Description& d) { d.plan[3].source = 0; });
  expect(Rule::group_spans, [](Description& d) { d.plan[2].window = 9; });
  expect(Rule::eps_positive, [](Description& d) { d.rms_eps = 0; });
  expect(Rule::eps_positive, [](Description& d) { d.rms_eps = -1e-6; });
}

TEST_CASE("rules that only a variant's own parts can break") {
  const Description d = valid();
  PartAnswers answers;
  CHECK(first_broken_rule(d, answers).rule == Rule::none);
  answers = {.spans_fit = false};
  CHECK(first_broken_rule(d, answers).rule == Rule::spans_fit);
  answers = {.mix_fits = false};
  CHECK(first_broken_rule(d, answers).rule == Rule::mix_fits);
  answers = {.sharing_fits = false};
  CHECK(first_broken_rule(d, answers).rule == Rule::sharing_fits);
  Description lacking = d;
  lacking.attention = "none";
  CHECK(first_broken_rule(lacking, {}).rule == Rule::attention_present);
  lacking = d;
  lacking.ssm = "none";
  CHECK(first_broken_rule(lacking, {}).rule == Rule::ssm_present);
}

TEST_CASE("an error names layer and value") {
  Description d = valid();
  d.plan[3].source = 7;
  CHECK_THROWS_WITH_AS(
      architecture_from<DynamicHymba>(d),
      "config.json: a sharing rule must name an existing layer as the source of a cache (layer 3, value 7)",
      ConfigError);
}

TEST_CASE("a model of absurd size is refused without overflow") {
  Description d = valid();
  d.width = 1 << 20, d.vocabulary = 1 << 23;
  CHECK_THROWS_AS(architecture_from<DynamicHymba>(d), ConfigError);
  // the largest that the sizes allow: no overflow in the count
  d.layers = d.plan.layers = max_layers;
  for (int i = 0; i < max_layers; ++i) d.plan[i] = {LayerKind::hybrid, 0, i};
  d.query_heads = d.kv_heads = 1, d.key_width = d.value_width = d.inner = d.d_state = d.conv_taps = d.dt_rank = 1 << 20;
  d.mlp_width = d.meta_tokens = 1 << 20;
  REQUIRE(broken(d) == Rule::none);
  CHECK(parameters(Architecture<DynamicHymba>(d)) > parameter_limit);
  CHECK_THROWS_AS(architecture_from<DynamicHymba>(d), ConfigError);
}

TEST_CASE("a static variant accepts its own description and names what differs in another") {
  const Description d = architecture<presets::Hymba125M>.describe();
  architecture_from<presets::Hymba125M>(d);
  CHECK(architecture_from<DynamicHymba>(d).plan == d.plan);
  auto difference = [&](auto change) {
    Description other = d;
    change(other);
    try {
      architecture_from<presets::Hymba125M>(other, "c");
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(difference([](Description& o) { o.width = 513; }) == "c: hidden_size is 513, the variant has 512");
  CHECK(difference([](Description& o) { o.layers = 23; }) == "c: num_hidden_layers is 23, the variant has 24");
  CHECK(difference([](Description& o) { o.plan[3].window = 5; }) ==
        "c: the window (0: global) of layer 3 is 5, the variant has 1024");
  CHECK(difference([](Description& o) { o.plan[2].source = 2; }) ==
        "c: the source of the cache of layer 2 is 2, the variant has 1");
  CHECK(difference([](Description& o) { o.plan[2].kind = LayerKind::attention; }) ==
        "c: layer_type of layer 2 is \"a\", the variant has \"h\"");
  CHECK(difference([](Description& o) { o.fusion = "sum"; }) ==
        "c: hymba_fusion is \"sum\", the variant has \"mean_of_norms\"");
  CHECK(difference([](Description& o) { o.rms_eps = 1.0000000001e-6; }) ==
        "c: rms_norm_eps is 1.0000000001e-06, the variant has 1e-06");
  CHECK(difference([](Description& o) { o.tied_embeddings = false; }) ==
        "c: tie_word_embeddings is false, the variant has true");
  CHECK(difference([](Description& o) { o.rope = RopeKind::standard; }) ==
        "c: rope_type is \"default\", the variant has \"ntk\"");
  CHECK(difference([](Description& o) { o.qk_norm = QkNorm::rms; }) ==
        "c: kq_norm is \"rms\", the variant has \"none\"");
  for (int Description::*size :
       {&Description::vocabulary, &Description::query_heads, &Description::kv_heads, &Description::key_width,
        &Description::value_width, &Description::max_positions, &Description::original_positions, &Description::inner,
        &Description::d_state, &Description::conv_taps, &Description::dt_rank, &Description::mlp_width,
        &Description::meta_tokens}) {
    CHECK(difference([&](Description& o) { o.*size += 1; }) != "");
  }
  for (bool Description::*flag : {&Description::conv_bias, &Description::inner_norms, &Description::projection_bias}) {
    CHECK(difference([&](Description& o) { o.*flag = !(o.*flag); }) != "");
  }
  for (Name Description::*name : {&Description::attention, &Description::ssm, &Description::mlp}) {
    CHECK(difference([&](Description& o) { o.*name = "other"; }) != "");
  }
  // what does not matter is not compared
  CHECK(difference([](Description& o) { o.bos = 7, o.eos = 8, o.pad = 9; }) == "");
}

TEST_CASE("what has no effect does not tell two descriptions apart") {
  const Description mamba = architecture<PureMamba>.describe();
  CHECK(description_difference(Architecture<DynamicHymba>(mamba).describe(), mamba) == "");
  Description d = mamba;
  d.query_heads = 3, d.rope = RopeKind::ntk, d.fusion = "sum", d.plan[0].window = 9;
  CHECK(description_difference(d, mamba) == "");
  const Description transformer = architecture<Transformer>.describe();
  CHECK(description_difference(Architecture<DynamicHymba>(transformer).describe(), transformer) == "");
  d = transformer;
  d.max_positions = 77, d.original_positions = 5, d.inner = 3;
  CHECK(description_difference(d, transformer) == "");
  const Description sequential = architecture<Sequential>.describe();
  CHECK(description_difference(Architecture<DynamicHymba>(sequential).describe(), sequential) == "");
}

TEST_CASE("a user's fusion in a static variant is loaded by its name") {
  const Description d = architecture<OwnParts>.describe();
  architecture_from<OwnParts>(d);
  CHECK_THROWS_WITH_AS(architecture_from<DynamicHymba>(d),
                       "config.json: the fusion is none of mean_of_norms, sum, concat, learned_gate", ConfigError);
}
