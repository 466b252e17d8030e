// SPDX-License-Identifier: Apache-2.0
//
// config.json: the published values, defaults, every refusal, and the way back.
#include <hymba/io/config.hpp>
#include <hymba/variant/presets.hpp>

#include <doctest/doctest.h>

#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

using namespace hymba;
namespace fs = std::filesystem;

namespace {
using Keys = std::map<std::string, std::string>;  // key -> JSON text

std::string text_of(const Keys& keys) {
  std::string text = "{";
  for (const auto& [key, value] : keys) text += (text.size() > 1 ? ", \"" : "\"") + key + "\": " + value;
  return text + "}";
}

/// The values of the published 1.5B configuration that decide something.
const Keys published{
    {"model_type", "\"hymba\""},
    {"vocab_size", "32001"},
    {"hidden_size", "1600"},
    {"intermediate_size", "5504"},
    {"num_hidden_layers", "32"},
    {"num_attention_heads", "25"},
    {"num_key_value_heads", "5"},
    {"attn_hidden_size", "-1"},
    {"kq_head_dim", "-1"},
    {"v_head_dim", "128"},
    {"kq_norm", "\"none\""},
    {"rope", "true"},
    {"rope_theta", "10000.0"},
    {"rope_type", "\"ntk\""},
    {"max_position_embeddings", "8192"},
    {"orig_max_position_embeddings", "2048"},
    {"sliding_window", "1024"},
    {"global_attn_idx", "[0, 15, 31]"},
    {"kv_reuse_group",
     "[[1,2],[3,4],[5,6],[7,8],[9,10],[11,12],[13,14],[16,17,18],[19,20],[21,22],[23,24],[25,26],[27,28],[29,30]]"},
    {"kv_reuse_every_i_layer", "-1"},
    {"num_memory_tokens", "128"},
    {"memory_tokens_interspersed_every", "0"},
    {"mamba_expand", "2"},
    {"mamba_d_state", "16"},
    {"mamba_d_conv", "4"},
    {"mamba_dt_rank", "100"},
    {"mamba_conv_bias", "true"},
    {"mamba_proj_bias", "false"},
    {"mamba_inner_layernorms", "true"},
    {"rms_norm_eps", "1e-06"},
    {"tie_word_embeddings", "true"},
    {"hidden_act", "\"silu\""},
    {"mlp_hidden_act", "\"silu\""},
    {"num_experts", "1"},
    {"num_mamba", "1"},
    {"kv_weight_reuse", "false"},
    {"torch_dtype", "\"bfloat16\""},
    {"bos_token_id", "1"},
    {"eos_token_id", "2"},
    {"pad_token_id", "0"},
    {"conv_dim", "{\"0\": 3200, \"1\": 3200}"},
};
/// Four layers; only what is required.
const Keys small{{"vocab_size", "32"},         {"hidden_size", "16"},        {"num_hidden_layers", "4"},
                 {"num_attention_heads", "4"}, {"num_key_value_heads", "2"}, {"intermediate_size", "24"}};

Keys with(Keys keys, const Keys& changes) {
  for (const auto& [key, value] : changes) keys[key] = value;
  return keys;
}
Description parse(const Keys& keys) { return parse_config(text_of(keys), "c.json"); }

std::string refusal(const Keys& keys) {
  try {
    parse(keys);
  } catch (const ConfigError& e) {
    const std::string what = e.what();
    CHECK(what.find('\n') == std::string::npos);
    CHECK(what.size() < 300);
    return what;
  }
  return "accepted";
}
/// `key` with `value` is refused with an error that names both.
void refuses(const std::string& key, const std::string& value, std::string_view shown = {}) {
  const std::string said = refusal(with(small, {{key, value}}));
  INFO(key << " = " << value << ": " << said);
  CHECK(said.starts_with("c.json: "));
  CHECK(said.find(key) != std::string::npos);
  CHECK(said.find(shown.empty() ? value.substr(0, 60) : std::string(shown)) != std::string::npos);
  CHECK(said.find("expected") != std::string::npos);
}
}  // namespace

TEST_CASE("the published configuration is the preset") {
  const Description d = parse(published);
  CHECK(description_difference(d, architecture<presets::Hymba1_5B>.describe()) == "");
  CHECK(parameters(architecture_from<presets::Hymba1_5B>(d)) == 1'522'797'824);
  CHECK(parameters(architecture_from<DynamicHymba>(d)) == 1'522'797'824);
  CHECK(cache_bytes(architecture_from<DynamicHymba>(d), 2, 8192) == 78'915'840);
  CHECK(d.plan == architecture<presets::Hymba1_5B>.plan);
  CHECK(d.bos == 1);
  CHECK(d.eos == 2);
  CHECK(d.pad == 0);
  CHECK_THROWS_WITH_AS(architecture_from<presets::Hymba350M>(d),
                       "config.json: hidden_size is 1600, the variant has 768", ConfigError);
}

TEST_CASE("defaults of a file with the required keys only") {
  const Description d = parse(small);
  CHECK(d.attention == Name("attention"));
  CHECK(d.key_width == 4);
  CHECK(d.value_width == 8);
  CHECK(d.qk_norm == QkNorm::none);
  CHECK(d.rope == RopeKind::none);
  CHECK(d.rope_base == 0);
  CHECK(d.ssm == Name("mamba"));
  CHECK(d.inner == 32);
  CHECK(d.d_state == 16);
  CHECK(d.conv_taps == 4);
  CHECK(d.dt_rank == 1);
  CHECK(d.conv_bias);
  CHECK(d.inner_norms);
  CHECK(d.fusion == Name("mean_of_norms"));
  CHECK(d.mlp == Name("silu"));
  CHECK(d.meta_tokens == 0);
  CHECK(!d.projection_bias);
  CHECK(!d.tied_embeddings);
  CHECK(d.rms_eps == 1e-6);
  for (int i = 0; i < 4; ++i) CHECK(d.plan[i] == LayerPlan{LayerKind::hybrid, 0, i});
  architecture_from<DynamicHymba>(d);
  for (const auto& [key, value] : small) {
    Keys less = small;
    less.erase(key);
    CHECK(refusal(less) == "c.json: the key " + key + " is missing");
  }
  // null where the published class knows None
  const Keys nulls = {
      {"num_key_value_heads", "null"}, {"sliding_window", "null"}, {"global_attn_idx", "null"},
      {"kv_reuse_group", "null"},      {"rope_type", "null"},      {"kq_norm", "null"},
      {"layer_type", "null"},          {"torch_dtype", "null"},    {"orig_max_position_embeddings", "null"},
      {"bos_token_id", "null"},        {"eos_token_id", "null"},   {"pad_token_id", "null"}};
  const Description n = parse(with(small, nulls));
  CHECK(n.kv_heads == 4);
  CHECK(n.bos == -1);
  CHECK(n.eos == -1);
  CHECK(n.pad == -1);
}

TEST_CASE("head widths") {
  CHECK(parse(with(small, {{"kq_head_dim", "6"}})).key_width == 6);
  CHECK(parse(with(small, {{"attn_hidden_size", "24"}})).key_width == 6);
  CHECK(parse(with(small, {{"v_head_dim", "5"}})).value_width == 5);
  CHECK(parse(with(small, {{"mamba_expand", "3"}})).value_width == 12);
  CHECK(parse(with(small, {{"mamba_expand", "1.5"}})).inner == 24);
  CHECK(refusal(with(small, {{"hidden_size", "18"}})) ==
        "c.json: kq_head_dim is -1, but hidden_size 18 is not a multiple of num_attention_heads 4");
  CHECK(refusal(with(small, {{"attn_hidden_size", "18"}})) ==
        "c.json: kq_head_dim is -1, but attn_hidden_size 18 is not a multiple of num_attention_heads 4");
  CHECK(refusal(with(small, {{"hidden_size", "15"}, {"kq_head_dim", "4"}})) ==
        "c.json: v_head_dim is -1, but mamba_expand * hidden_size 30 is not a multiple of num_attention_heads 4");
  CHECK(refusal(with(small, {{"mamba_expand", "1.51"}})).find("whole number") != std::string::npos);
  CHECK(parse(with(small, {{"hidden_size", "100"}, {"mamba_dt_rank", "\"auto\""}})).dt_rank == 7);
}

TEST_CASE("rotary embeddings, norms, MLPs") {
  auto rope = [](const std::string& type) { return parse(with(small, {{"rope", "true"}, {"rope_type", type}})).rope; };
  CHECK(rope("null") == RopeKind::standard);
  CHECK(rope("\"default\"") == RopeKind::standard);
  CHECK(rope("\"ntk\"") == RopeKind::ntk);
  CHECK(rope("\"dynamic_ntk\"") == RopeKind::dynamic_ntk);
  const Description ntk =
      parse(with(small, {{"rope", "true"}, {"rope_type", "\"ntk\""}, {"max_position_embeddings", "64"}}));
  CHECK(ntk.max_positions == 64);
  CHECK(ntk.original_positions == 64);
  CHECK(parse(with(small, {{"rope", "true"}, {"rope_theta", "500"}})).rope_base == 500.0);
  CHECK(parse(with(small, {{"kq_norm", "\"rms\""}})).qk_norm == QkNorm::rms);
  CHECK(parse(with(small, {{"kq_norm", "\"perhead-rms\""}})).qk_norm == QkNorm::per_head_rms);
  CHECK(parse(with(small, {{"mlp_hidden_act", "\"relu2\""}})).mlp == Name("relu2"));
  CHECK(parse(with(small, {{"intermediate_size", "0"}})).mlp == Name("none"));
  CHECK(parse(with(small, {{"hymba_mlp", "\"mine\""}})).mlp == Name("mine"));
  CHECK(parse(with(small, {{"hymba_fusion", "\"my::fusion\""}})).fusion == Name("my::fusion"));
}

TEST_CASE("layers: kinds, windows, sharing") {
  auto plan = [](const Keys& changes) { return parse(with(small, changes)).plan; };
  auto windows = [&](const Keys& changes) {
    const Plan p = plan(changes);
    return std::vector<int>{p[0].window, p[1].window, p[2].window, p[3].window};
  };
  auto sources = [&](const Keys& changes) {
    const Plan p = plan(changes);
    return std::vector<int>{p[0].source, p[1].source, p[2].source, p[3].source};
  };
  using Ints = std::vector<int>;
  CHECK(windows({{"sliding_window", "8"}}) == Ints{8, 8, 8, 8});
  CHECK(windows({{"sliding_window", "8"}, {"global_attn_idx", "[]"}}) == Ints{8, 8, 8, 8});
  CHECK(windows({{"sliding_window", "8"}, {"global_attn_idx", "[3, 0]"}}) == Ints{0, 8, 8, 0});
  CHECK(windows({{"sliding_window", "null"}, {"global_attn_idx", "[3, 0]"}}) == Ints{0, 0, 0, 0});
  CHECK(windows({{"sliding_window", "8"}, {"layer_type", R"(["h", "m", "a", "m"])"}}) == Ints{8, 0, 8, 0});
  CHECK(windows({{"sliding_window", "8"}, {"hymba_windows", "[0, 3, 4, 5]"}}) == Ints{0, 3, 4, 5});
  CHECK(sources({{"kv_reuse_group", "[[2, 1]]"}}) == Ints{0, 1, 1, 3});
  CHECK(sources({{"kv_reuse_group", "[[3, 0], [1, 2]]"}}) == Ints{0, 1, 1, 0});
  CHECK(sources({{"kv_reuse_group", "[]"}}) == Ints{0, 1, 2, 3});
  CHECK(sources({{"kv_reuse_group", "[[2]]"}}) == Ints{0, 1, 2, 3});
  CHECK(sources({{"kv_reuse_every_i_layer", "0"}}) == Ints{0, 1, 2, 3});
  CHECK(sources({{"kv_reuse_every_i_layer", "1"}}) == Ints{0, 1, 2, 3});
  CHECK(sources({{"kv_reuse_every_i_layer", "2"}}) == Ints{0, 0, 2, 2});
  CHECK(sources({{"kv_reuse_every_i_layer", "3"}}) == Ints{0, 0, 0, 3});
  CHECK(sources({{"kv_reuse_every_i_layer", "2"}, {"kv_reuse_group", "[[0, 1, 2]]"}}) == Ints{0, 0, 0, 3});
  CHECK(sources({{"kv_reuse_every_i_layer", "2"}, {"layer_type", R"(["a", "m", "a", "h"])"}}) == Ints{0, -1, 2, 2});
  // whether sources make sense is for the rules to say
  CHECK_THROWS_WITH_AS(
      architecture_from<DynamicHymba>(
          parse(with(small, {{"sliding_window", "8"}, {"global_attn_idx", "[0]"}, {"kv_reuse_every_i_layer", "2"}}))),
      "config.json: layers that share a cache must have the same span: no mixing of global and window "
      "layers (layer 1)",
      ConfigError);
  CHECK_THROWS_WITH_AS(architecture_from<DynamicHymba>(parse(
                           with(small, {{"kv_reuse_every_i_layer", "2"}, {"layer_type", R"(["m", "a", "a", "h"])"}}))),
                       "config.json: the source of a shared cache must hold attention heads (layer 1)", ConfigError);
}

TEST_CASE("stacks of one kind of heads hold no numbers of the other") {
  Keys attention = with(small, {{"layer_type", R"(["a", "a", "a", "a"])"}});
  const Description a = parse(attention);
  CHECK(a.ssm == Name("none"));
  CHECK(a.inner == 0);
  CHECK(a.d_state == 0);
  CHECK(!a.conv_bias);
  CHECK(a.fusion == Name("none"));
  CHECK(a.value_width == 8);
  architecture_from<DynamicHymba>(a);

  const Description m = parse(with(small, {{"layer_type", R"(["m", "m", "m", "m"])"}, {"hidden_size", "18"}}));
  CHECK(m.attention == Name("none"));
  CHECK(m.query_heads == 0);
  CHECK(m.value_width == 0);
  CHECK(m.rope == RopeKind::none);
  CHECK(m.inner == 36);
  CHECK(m.plan[2] == LayerPlan{LayerKind::ssm, 0, -1});
  Keys less = with(small, {{"layer_type", R"(["m", "m", "m", "m"])"}});
  less.erase("num_attention_heads");
  less.erase("num_key_value_heads");
  architecture_from<DynamicHymba>(parse(less));
}

TEST_CASE("wrong types and ranges name key, value and what was expected") {
  for (const char* key : {"vocab_size",
                          "hidden_size",
                          "num_hidden_layers",
                          "num_attention_heads",
                          "num_key_value_heads",
                          "intermediate_size",
                          "attn_hidden_size",
                          "kq_head_dim",
                          "v_head_dim",
                          "max_position_embeddings",
                          "orig_max_position_embeddings",
                          "sliding_window",
                          "kv_reuse_every_i_layer",
                          "num_memory_tokens",
                          "mamba_d_state",
                          "mamba_d_conv",
                          "mamba_dt_rank",
                          "bos_token_id",
                          "eos_token_id",
                          "pad_token_id",
                          "num_experts",
                          "num_mamba",
                          "memory_tokens_interspersed_every"}) {
    for (const char* wrong : {"-2", "2147483648", "-9223372036854775808", "9223372036854775808", "18446744073709551615",
                              "18446744073709551616", "1.5", "1.0", "1e3", "\"1\"", "true", "[]", "[1]"}) {
      const Json shown = Json::parse(wrong);
      refuses(key, wrong, detail::shown(shown));
    }
    refuses(key, "{}", "an object");
    refuses(key, "\"" + std::string(500, 'x') + "\"");
  }
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "kq_head_dim", "sliding_window", "mamba_d_state", "mamba_d_conv",
                          "mamba_dt_rank", "max_position_embeddings", "num_experts", "num_mamba"}) {
    refuses(key, "0");
  }
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
                          "num_memory_tokens", "mamba_d_state", "kq_head_dim", "mamba_expand", "rms_norm_eps"}) {
    refuses(key, "null");
  }
  refuses("num_hidden_layers", "257");
  refuses("hidden_size", "1048577");
  refuses("vocab_size", "1073741825");
  refuses("bos_token_id", "32");
  refuses("eos_token_id", "[2]");
  for (const char* key : {"rope", "kv_weight_reuse", "mamba_conv_bias", "mamba_proj_bias", "mamba_inner_layernorms",
                          "tie_word_embeddings"}) {
    for (const char* wrong : {"0", "1", "\"true\"", "null", "[]"}) refuses(key, wrong);
  }
  for (const char* key : {"rope_theta", "rms_norm_eps", "mamba_expand"}) {
    for (const char* wrong : {"0", "-1", "0.0", "-0.5", "\"1\"", "true", "[]"}) refuses(key, wrong);
  }
  refuses("rms_norm_eps", "1.5");
  refuses("rope_theta", "1e19", "1e+19");
  refuses("mamba_expand", "1048577");
  refuses("mamba_expand", "1048576");
  for (const char* key : {"kq_norm", "rope_type", "mlp_hidden_act", "hidden_act", "model_type"}) {
    for (const char* wrong : {"\"other\"", "\"\"", "1", "true", "[]", "\"SILU\""}) refuses(key, wrong);
  }
  for (const char* key : {"hymba_fusion", "hymba_mlp", "hymba_attention", "hymba_ssm"}) {
    for (const char* wrong : {"\"\"", "\"two words\"", "1", "[]", "\"semi;colon\"", "true"}) refuses(key, wrong);
    refuses(key, "\"" + std::string(48, 'x') + "\"");
  }
  CHECK(refusal(with(small, {{"hymba_fusion", "\"none\""}})) ==
        "c.json: hymba_fusion is \"none\", but layer_type asks for it");
  CHECK(refusal(with(small, {{"hymba_attention", "\"none\""}})).find("hymba_attention is \"none\"") !=
        std::string::npos);
  CHECK(refusal(with(small, {{"hymba_ssm", "\"none\""}})).find("hymba_ssm is \"none\"") != std::string::npos);
}

TEST_CASE("what is not provided has an error of its own") {
  auto says = [](const std::string& key, const std::string& value, std::string_view what) {
    const std::string said = refusal(with(small, {{key, value}}));
    INFO(said);
    CHECK(said.find(what) != std::string::npos);
  };
  says("num_experts", "16", "c.json: num_experts is 16, expected 1; mixtures of experts are not provided");
  says("num_mamba", "2", "c.json: num_mamba is 2, expected 1; several SSM branches are not provided");
  says("memory_tokens_interspersed_every", "4", "is 4, expected 0; interspersed memory tokens are not provided");
  says("kv_weight_reuse", "true", "c.json: kv_weight_reuse is true, expected false");
  says("model_type", "\"llama\"", "c.json: model_type is \"llama\", expected \"hymba\"");
  says("hidden_act", "\"gelu\"", "c.json: hidden_act is \"gelu\", expected \"silu\"");
  says("mlp_hidden_act", "\"gelu\"", "c.json: mlp_hidden_act is \"gelu\", expected \"silu\" or \"relu2\"");
  says("rope_type", "\"yarn\"", "rope_type is \"yarn\", expected null, \"default\", \"ntk\" or \"dynamic_ntk\"");
  says("kq_norm", "\"layernorm\"", "kq_norm is \"layernorm\", expected \"none\", \"rms\" or \"perhead-rms\"");
}

TEST_CASE("lists of layers") {
  auto says = [](const std::string& key, const std::string& value, std::string_view what) {
    const std::string said = refusal(with(small, {{key, value}}));
    INFO(key << " = " << value << ": " << said);
    CHECK(said.find("c.json: " + key) == 0);
    CHECK(said.find(what) != std::string::npos);
  };
  for (const char* wrong : {"4", "-1", "2147483648", "18446744073709551615", "-9223372036854775808"}) {
    says("global_attn_idx", "[0, " + std::string(wrong) + "]",
         "names layer " + std::string(wrong) + ", expected 0 to 3");
    says("kv_reuse_group", "[[0, " + std::string(wrong) + "]]",
         "names layer " + std::string(wrong) + ", expected 0 to 3");
  }
  for (const char* wrong : {"1", "\"0\"", "{}", "[\"0\"]", "[0.0]", "[null]", "[[0]]", "true"}) {
    says("global_attn_idx", wrong, "expected a list of layer indices");
    says("kv_reuse_group", "[" + std::string(wrong) + "]", "expected a list of layer indices");
  }
  says("global_attn_idx", "[1, 2, 1]", "names layer 1 twice");
  says("kv_reuse_group", "[[1, 1]]", "names layer 1 twice");
  says("kv_reuse_group", "[[0, 1], [1, 2]]", "names layer 1 in two groups");
  says("kv_reuse_group", "[[]]", "holds an empty list");
  says("kv_reuse_group", "3", "expected null or a list of lists");
  says("kv_reuse_group", "{}", "expected null or a list of lists");
  CHECK(refusal(with(small, {{"layer_type", R"(["h", "m", "a", "h"])"}, {"kv_reuse_group", "[[0, 1]]"}})) ==
        "c.json: kv_reuse_group names layer 1, which holds no attention heads");
  says("layer_type", "[\"h\"]", "expected a list of 4 strings");
  says("layer_type", "\"h\"", "expected a list of 4 strings");
  says("layer_type", "[\"h\", \"h\", \"h\", \"h\", \"h\"]", "expected a list of 4 strings");
  says("layer_type", "[\"h\", \"h\", \"x\", \"h\"]", "is \"x\", expected \"h\", \"a\" or \"m\" for layer 2");
  says("layer_type", "[\"h\", \"h\", \"h\", 1]", "is 1, expected \"h\", \"a\" or \"m\" for layer 3");
  says("hymba_windows", "[1, 2, 3]", "expected a list of 4 windows");
  says("hymba_windows", "[1, 2, 3, -1]", "is -1, expected an integer from 0");
  says("hymba_windows", "7", "expected a list of 4 windows");
}

TEST_CASE("what is not a JSON object is a FormatError that names the file") {
  for (const char* text :
       {"", "[]", "1", "null", "{\"a\": 1", "{\"vocab_size\": 1, \"vocab_size\": 2}", "\"hymba\"", "{} {}"}) {
    INFO(std::string(text));
    try {
      parse_config(text, "c.json");
      CHECK(false);
    } catch (const FormatError& e) {
      CHECK(std::string(e.what()).starts_with("c.json: "));
    }
  }
  CHECK_THROWS_AS(parse_config(std::string(2 << 20, ' '), "c.json"), FormatError);
  CHECK_THROWS_AS(read_config("/nonexistent"), IoError);
}

TEST_CASE("a config with any byte changed is refused or read, never more") {
  const std::string good = text_of(with(small, {{"layer_type", R"(["h","a","m","h"])"}, {"rms_norm_eps", "1e-6"}}));
  parse_config(good, "c.json");
  auto try_it = [](const std::string& text) {
    try {
      architecture_from<DynamicHymba>(parse_config(text, "c.json"));
    } catch (const FormatError&) {
    } catch (const ConfigError&) {
    }
  };
  for (std::size_t at = 0; at < good.size(); ++at) {
    try_it(good.substr(0, at));
    for (const char c : std::string("09-.e\"[]{},:x \n\x80")) {
      std::string changed = good;
      changed[at] = c;
      try_it(changed);
    }
  }
}

// ---- writing
// ----------------------------------------------------------------------------------------------------------

namespace {
bool returns(const Description& d) {
  const Description again = parse_config(config_text(d), "again");
  const std::string difference = description_difference(again, d);
  INFO(difference);
  CHECK(difference == "");
  CHECK(again.bos == d.bos);
  CHECK(again.eos == d.eos);
  CHECK(again.pad == d.pad);
  return difference.empty();
}
}  // namespace

TEST_CASE("the presets and every golden configuration come back from their own text") {
  CHECK(returns(architecture<presets::Hymba1_5B>.describe()));
  CHECK(returns(architecture<presets::Hymba350M>.describe()));
  CHECK(returns(architecture<presets::Hymba125M>.describe()));
  CHECK(returns(architecture<presets::Barebones>.describe()));
  int count = 0;
  for (const auto& entry : fs::directory_iterator(std::string(HYMBA_TEST_DATA) + "/golden")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    ++count;
    CHECK(returns(read_config(entry.path())));
  }
  CHECK(count >= 10);
  const Json j = Json::parse(config_text(architecture<presets::Hymba1_5B>.describe(), "bfloat16"));
  for (const auto& entry : published) {
    if (entry.first == "conv_dim") continue;
    INFO(entry.first);
    REQUIRE(j.contains(entry.first));
    CHECK(j[entry.first] == Json::parse(entry.second));
  }
}

TEST_CASE("random valid descriptions come back from their own text") {
  std::mt19937 random(7);
  auto upto = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  int valid = 0;
  for (int round = 0; round < 3000; ++round) {
    Description d;
    d.width = 1 + upto(40), d.layers = d.plan.layers = 1 + upto(9), d.vocabulary = 3 + upto(50);
    d.attention = "attention", d.kv_heads = 1 + upto(3), d.query_heads = d.kv_heads * (1 + upto(3));
    d.key_width = 4 + 2 * upto(4), d.value_width = 1 + upto(9);
    d.qk_norm = static_cast<QkNorm>(upto(3));
    d.rope = static_cast<RopeKind>(upto(4));
    d.rope_base = upto(2) == 0 ? 10000 : 1.0 / (1 + upto(1000)) + upto(100000);
    d.original_positions = 1 + upto(50), d.max_positions = d.original_positions + upto(100);
    d.ssm = upto(8) == 0 ? "my.heads" : "mamba";
    d.inner = upto(3) == 0 ? 1 + upto(90) : d.query_heads * d.value_width;
    d.d_state = 1 + upto(9), d.conv_taps = 1 + upto(5), d.dt_rank = 1 + upto(9);
    d.conv_bias = upto(2) == 0, d.inner_norms = upto(2) == 0;
    const char* fusions[] = {"mean_of_norms", "sum", "concat", "learned_gate", "weighted"};
    const char* mlps[] = {"none", "silu", "relu2", "mine"};
    d.fusion = fusions[upto(5)], d.mlp = mlps[upto(4)], d.mlp_width = 1 + upto(50);
    d.meta_tokens = upto(5), d.projection_bias = upto(2) == 0, d.tied_embeddings = upto(2) == 0;
    d.rms_eps = upto(2) == 0 ? 1e-6 : 1.0 / (1 + upto(100000));
    d.bos = upto(d.vocabulary), d.eos = -1, d.pad = upto(d.vocabulary);
    for (int i = 0; i < d.layers; ++i) {
      d.plan[i].kind = static_cast<LayerKind>(upto(3));
      d.plan[i].window = round % 2 == 0 ? 5 * upto(2) : upto(4);
      d.plan[i].source = i > 0 && upto(2) == 0 ? d.plan[i - 1].source : i;
    }
    d = canonical(d);
    if (first_broken_rule(d, {}).rule != Rule::none) {
      CHECK_THROWS_AS(config_text(d), ConfigError);
      continue;
    }
    ++valid;
    if (!returns(d)) break;
  }
  CHECK(valid > 300);
}

TEST_CASE("what the layout cannot express is refused") {
  Description d = architecture<presets::Hymba125M>.describe();
  d.fusion = "two words";
  CHECK_THROWS_AS(config_text(d), ConfigError);
  d.fusion = "sum";
  d.kv_heads = 3;
  CHECK_THROWS_WITH_AS(config_text(d), "cannot write config.json: query_heads must be a multiple of kv_heads (value 8)",
                       ConfigError);
  // a token id outside of a tiny vocabulary means none
  d = architecture<presets::Hymba125M>.describe();
  d.vocabulary = 2;
  CHECK(parse_config(config_text(d), "again").eos == -1);
}
