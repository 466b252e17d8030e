// SPDX-License-Identifier: Apache-2.0
//
// config.json of the published layout, read and written.
//
//   key                            when absent    meaning and range
//   model_type                     "hymba"        anything else is refused
//   vocab_size                     required       1 .. 2^30
//   hidden_size                    required       D, 1 .. 2^20
//   num_hidden_layers              required       1 .. 256
//   intermediate_size              required       F; 0: no MLP
//   mlp_hidden_act                 "silu"         "silu" (gated) or "relu2"
//   hidden_act                     "silu"         only "silu"
//   num_attention_heads            required (1)   H
//   num_key_value_heads            required (1)   G; null: H
//   attn_hidden_size               -1             -1: D
//   kq_head_dim                    -1             -1: attn_hidden_size / H
//   v_head_dim                     -1             -1: E / H
//   kq_norm                        null           null or "none", "rms", "perhead-rms"
//   rope                           false          no rotary embedding unless true
//   rope_theta                     10000
//   rope_type                      null           null or "default", "ntk", "dynamic_ntk"
//   max_position_embeddings        262144
//   orig_max_position_embeddings   null           null: max_position_embeddings
//   sliding_window                 null           W >= 1; null: every layer is global
//   global_attn_idx                null           the layers without a window; null: none
//   kv_reuse_group                 null           lists of layers that share a cache; the smallest index stores it
//   kv_reuse_every_i_layer         -1             i > 0 and no kv_reuse_group: layer L reads the cache of L - L % i
//   num_memory_tokens              0              M, meta tokens
//   mamba_expand                   2              E = mamba_expand * D, a whole number
//   mamba_d_state                  16             N
//   mamba_d_conv                   4              K
//   mamba_dt_rank                  "auto"         R; "auto": D / 16, rounded up
//   mamba_conv_bias                true
//   mamba_inner_layernorms         true
//   mamba_proj_bias                false          biases of the input and output projections
//   rms_norm_eps                   1e-6           above 0, at most 1
//   tie_word_embeddings            false
//   bos_, eos_, pad_token_id       1, 2, 0        below vocab_size; null or -1: none
//   num_experts, num_mamba         1              only 1 is provided
//   kv_weight_reuse                false          only false is provided
//   memory_tokens_interspersed_every  0           only 0 is provided
//   layer_type                     all "h"        per layer "h" hybrid, "a" attention only, "m" SSM only
//
// (1) where any layer holds attention heads.
//
// These defaults are the published configuration class's, except num_experts (16 there, which nothing published uses)
// and the sizes, which are required here. Unknown keys are ignored. Keys of this library, absent from published files:
//
//   hymba_fusion                   "mean_of_norms"  or "sum", "concat", "learned_gate", a user's own name
//   hymba_windows                  null           a window per layer (0: global), in place of sliding_window and
//                                                 global_attn_idx, for stacks with windows of several sizes
//   hymba_attention, hymba_ssm     "attention", "mamba"   kinds of heads; a user's own name
//   hymba_mlp                      null           a user's own MLP, in place of mlp_hidden_act
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/file_map.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/description_diff.hpp>
#include <hymba/io/json.hpp>
#include <hymba/variant/description.hpp>
#include <hymba/variant/plan.hpp>
#include <hymba/variant/rules.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

namespace detail {

inline constexpr int widest = 1 << 20, most_positions = 1 << 30;

/// The keys of a config.json, each read with its type and range checked.
class ConfigKeys {
 public:
  ConfigKeys(std::string_view json, std::string_view file) : file_(file), root_(parse_json(json, file_)) {
    if (!root_.is_object()) throw FormatError(message(file_, ": ", shown(root_), ", expected an object"));
  }

  template <class... What>
  [[noreturn]] void fail(const What&... what) const {
    throw ConfigError(message(file_, ": ", what...));
  }
  [[noreturn]] void refuse(const char* key, const Json& value, std::string_view expected) const {
    fail(key, " is ", shown(value), ", expected ", expected);
  }
  /// nullptr when the key is absent.
  const Json* find(const char* key) const {
    const auto it = root_.find(key);
    return it == root_.end() ? nullptr : &*it;
  }
  /// The same, null counting as absent; only for the keys whose table entry allows null.
  const Json* find_set(const char* key) const {
    const Json* value = find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  /// @param or_also a further value that is allowed outside of the range, as text.
  int integer(const char* key, const Json& value, int least, int most, std::string_view or_also = {}) const {
    const std::optional<std::int64_t> number = whole(value);
    if (!number || *number < least || *number > most) {
      refuse(key, value, message("an integer from ", least, " to ", most, or_also));
    }
    return static_cast<int>(*number);
  }
  int required(const char* key, int least, int most) const {
    const Json* value = find(key);
    if (value == nullptr) fail("the key ", key, " is missing");
    return integer(key, *value, least, most);
  }
  int integer(const char* key, int absent, int least, int most) const {
    const Json* value = find(key);
    return value == nullptr ? absent : integer(key, *value, least, most);
  }
  /// -1, or a size.
  int size_or_auto(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr || whole(*value) == -1) return -1;
    return integer(key, *value, 1, widest, ", or -1");
  }
  double number(const char* key, double absent, double most) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    const std::string expected = "a number above 0, at most " + number_text(most);
    if (!value->is_number()) refuse(key, *value, expected);
    const auto x = value->get<double>();
    if (!(x > 0 && x <= most)) refuse(key, *value, expected);
    return x;
  }
  bool flag(const char* key, bool absent) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) refuse(key, *value, "true or false");
    return value->get<bool>();
  }
  /// Which of `choices` the key names.
  std::size_t choice(const char* key, const Json& value, std::initializer_list<std::string_view> choices,
                     std::string_view expected) const {
    if (value.is_string()) {
      const auto at = std::find(choices.begin(), choices.end(), value.get_ref<const std::string&>());
      if (at != choices.end()) return static_cast<std::size_t>(at - choices.begin());
    }
    refuse(key, value, expected);
  }
  /// A name of a part, a user's own included.
  Name name(const char* key, const char* absent) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_string() || !is_part_name(value->get_ref<const std::string&>())) {
      refuse(key, *value, "a name of 1 to 47 letters, digits and _ . : - characters");
    }
    return std::string_view(value->get_ref<const std::string&>());
  }
  static bool is_part_name(std::string_view text) {
    return !text.empty() && text.size() < sizeof(Name::text) && std::all_of(text.begin(), text.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
             c == ':' || c == '-';
    });
  }
  /// A list of layer indices, each once.
  std::vector<int> layer_list(const char* key, const Json& list, int layers) const {
    if (!list.is_array()) refuse(key, list, "a list of layer indices");
    std::vector<int> out;
    for (const Json& value : list) {
      if (!value.is_number_integer()) refuse(key, list, "a list of layer indices");
      const std::optional<std::int64_t> index = whole(value);
      if (!index || *index < 0 || *index >= layers) {
        fail(key, " names layer ", shown(value), ", expected 0 to ", layers - 1);
      }
      const int layer = static_cast<int>(*index);
      if (std::find(out.begin(), out.end(), layer) != out.end()) fail(key, " names layer ", layer, " twice");
      out.push_back(layer);
    }
    return out;
  }

 private:
  /// Nothing when the value is no integer, or one beyond every range. (The JSON library's own == takes 2^64-1 for -1.)
  static std::optional<std::int64_t> whole(const Json& value) {
    if (!value.is_number_integer()) return std::nullopt;
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{1} << 62) return std::nullopt;
    return value.get<std::int64_t>();
  }

  std::string file_;
  Json root_;
};

/// Features that the published configuration class knows and this library does not provide.
inline void refuse_what_is_not_provided(const ConfigKeys& keys) {
  if (const Json* type = keys.find("model_type"); type != nullptr && *type != Json("hymba")) {
    keys.refuse("model_type", *type, "\"hymba\"");
  }
  if (const Json* act = keys.find("hidden_act"); act != nullptr && *act != Json("silu")) {
    keys.refuse("hidden_act", *act, "\"silu\"; other activations are not provided");
  }
  auto only = [&](const char* key, int provided, const char* expected) {
    const Json* value = keys.find(key);
    if (value == nullptr) return;
    if (!value->is_number_integer() || *value != Json(provided)) keys.refuse(key, *value, expected);
  };
  only("num_experts", 1, "1; mixtures of experts are not provided");
  only("num_mamba", 1, "1; several SSM branches are not provided");
  only("memory_tokens_interspersed_every", 0, "0; interspersed memory tokens are not provided");
  if (keys.flag("kv_weight_reuse", false)) {
    keys.fail("kv_weight_reuse is true, expected false; sharing of key and value weights is not provided");
  }
}

/// Kinds and windows of the layers.
inline void read_layers(const ConfigKeys& keys, Description& d) {
  if (const Json* types = keys.find_set("layer_type")) {
    if (!types->is_array() || types->size() != static_cast<std::size_t>(d.layers)) {
      keys.refuse("layer_type", *types, message("a list of ", d.layers, " strings, one per layer"));
    }
    for (int i = 0; i < d.layers; ++i) {
      constexpr LayerKind kinds[] = {LayerKind::hybrid, LayerKind::attention, LayerKind::ssm};
      d.plan[i].kind = kinds[keys.choice("layer_type", (*types)[static_cast<std::size_t>(i)], {"h", "a", "m"},
                                         message("\"h\", \"a\" or \"m\" for layer ", i))];
    }
  }
  int window = 0;
  if (const Json* value = keys.find_set("sliding_window"))
    window = keys.integer("sliding_window", *value, 1, most_positions);
  for (int i = 0; i < d.layers; ++i) d.plan[i].window = window;
  if (const Json* list = keys.find_set("global_attn_idx")) {
    for (const int i : keys.layer_list("global_attn_idx", *list, d.layers)) d.plan[i].window = 0;
  }
  if (const Json* list = keys.find_set("hymba_windows")) {
    if (!list->is_array() || list->size() != static_cast<std::size_t>(d.layers)) {
      keys.refuse("hymba_windows", *list, message("a list of ", d.layers, " windows, one per layer"));
    }
    for (int i = 0; i < d.layers; ++i) {
      d.plan[i].window = keys.integer("hymba_windows", (*list)[static_cast<std::size_t>(i)], 0, most_positions);
    }
  }
}

/// Cache sources of the layers; needs their kinds.
inline void read_sharing(const ConfigKeys& keys, Description& d) {
  for (int i = 0; i < d.layers; ++i) d.plan[i].source = d.plan[i].has_attention() ? i : -1;
  const int every = keys.integer("kv_reuse_every_i_layer", -1, -1, max_layers);
  const Json* groups = keys.find_set("kv_reuse_group");
  if (groups == nullptr) {
    for (int i = 0; every > 0 && i < d.layers; ++i) {
      if (d.plan[i].has_attention()) d.plan[i].source = i - i % every;
    }
    return;
  }
  if (!groups->is_array()) keys.refuse("kv_reuse_group", *groups, "null or a list of lists of layer indices");
  std::vector<bool> taken(static_cast<std::size_t>(d.layers));
  for (const Json& group : *groups) {
    const std::vector<int> members = keys.layer_list("kv_reuse_group", group, d.layers);
    if (members.empty()) keys.fail("kv_reuse_group holds an empty list, expected lists of layer indices");
    const int producer = *std::min_element(members.begin(), members.end());
    for (const int i : members) {
      if (taken[static_cast<std::size_t>(i)]) keys.fail("kv_reuse_group names layer ", i, " in two groups");
      if (!d.plan[i].has_attention()) keys.fail("kv_reuse_group names layer ", i, ", which holds no attention heads");
      taken[static_cast<std::size_t>(i)] = true;
      d.plan[i].source = producer;
    }
  }
}

/// Everything about the attention heads. `inner` is E; it decides the width of the values where v_head_dim does not.
inline void read_attention(const ConfigKeys& keys, int inner, bool present, Description& d) {
  const int attn_hidden = keys.size_or_auto("attn_hidden_size");
  const int key_width = keys.size_or_auto("kq_head_dim");
  const int value_width = keys.size_or_auto("v_head_dim");
  if (present || keys.find("num_attention_heads") != nullptr) {
    d.query_heads = keys.required("num_attention_heads", 1, widest);
  }
  d.kv_heads = d.query_heads;
  if (keys.find_set("num_key_value_heads") != nullptr || (present && keys.find("num_key_value_heads") == nullptr)) {
    d.kv_heads = keys.required("num_key_value_heads", 1, widest);
  }
  auto share = [&](const char* key, const char* of, int total) {
    if (present && total % d.query_heads != 0) {
      keys.fail(key, " is -1, but ", of, " ", total, " is not a multiple of num_attention_heads ", d.query_heads);
    }
    return present ? total / d.query_heads : 0;
  };
  d.key_width = key_width > 0     ? key_width
                : attn_hidden > 0 ? share("kq_head_dim", "attn_hidden_size", attn_hidden)
                                  : share("kq_head_dim", "hidden_size", d.width);
  d.value_width = value_width > 0 ? value_width : share("v_head_dim", "mamba_expand * hidden_size", inner);

  if (const Json* norm = keys.find_set("kq_norm")) {
    constexpr QkNorm norms[] = {QkNorm::none, QkNorm::rms, QkNorm::per_head_rms};
    d.qk_norm =
        norms[keys.choice("kq_norm", *norm, {"none", "rms", "perhead-rms"}, "\"none\", \"rms\" or \"perhead-rms\"")];
  }
  RopeKind kind = RopeKind::standard;
  if (const Json* type = keys.find_set("rope_type")) {
    constexpr RopeKind kinds[] = {RopeKind::standard, RopeKind::ntk, RopeKind::dynamic_ntk};
    kind = kinds[keys.choice("rope_type", *type, {"default", "ntk", "dynamic_ntk"},
                             "null, \"default\", \"ntk\" or \"dynamic_ntk\"")];
  }
  d.rope = keys.flag("rope", false) ? kind : RopeKind::none;
  d.rope_base = keys.number("rope_theta", 10000.0, 1e18);
  d.max_positions = keys.integer("max_position_embeddings", 262144, 1, most_positions);
  d.original_positions = d.max_positions;
  if (const Json* value = keys.find_set("orig_max_position_embeddings")) {
    d.original_positions = keys.integer("orig_max_position_embeddings", *value, 1, most_positions);
  }
}

/// Everything about the SSM heads but E.
inline void read_ssm(const ConfigKeys& keys, Description& d) {
  d.d_state = keys.integer("mamba_d_state", 16, 1, widest);
  d.conv_taps = keys.integer("mamba_d_conv", 4, 1, widest);
  const Json* rank = keys.find("mamba_dt_rank");
  d.dt_rank = rank == nullptr || *rank == Json("auto")
                  ? (d.width + 15) / 16
                  : keys.integer("mamba_dt_rank", *rank, 1, widest, " or \"auto\"");
  d.conv_bias = keys.flag("mamba_conv_bias", true);
  d.inner_norms = keys.flag("mamba_inner_layernorms", true);
}

/// E = mamba_expand * hidden_size.
inline int read_inner(const ConfigKeys& keys, int width) {
  const double inner = keys.number("mamba_expand", 2, widest) * width;
  const double whole = std::round(inner);
  if (whole < 1 || whole > widest || std::abs(inner - whole) > 1e-6 * whole) {
    const Json* expand = keys.find("mamba_expand");
    keys.fail("mamba_expand is ", expand == nullptr ? "2" : shown(*expand),
              ", expected a number whose product with hidden_size ", width, " is a whole number from 1 to ", widest);
  }
  return static_cast<int>(whole);
}

inline Token read_token(const ConfigKeys& keys, const char* key, Token absent, int vocabulary) {
  const Json* value = keys.find(key);
  if (value == nullptr) return absent < vocabulary ? absent : -1;
  return value->is_null() ? -1 : keys.integer(key, *value, -1, vocabulary - 1, " (a token id), or null");
}
}  // namespace detail

/// The architecture that a config.json describes, in canonical form (see `canonical`): no value stands where it has no
/// effect. Types, ranges and what is provided are checked here; the rules of a valid model by `architecture_from`.
/// @param file_name named in errors.
/// @throws FormatError when `json` is not JSON; ConfigError of one line with key, value and what was expected.
inline Description parse_config(std::string_view json, std::string_view file_name) {
  using detail::widest;
  const detail::ConfigKeys keys(json, file_name);
  detail::refuse_what_is_not_provided(keys);

  Description d;
  d.vocabulary = keys.required("vocab_size", 1, detail::most_positions);
  d.width = keys.required("hidden_size", 1, widest);
  d.layers = d.plan.layers = keys.required("num_hidden_layers", 1, max_layers);
  detail::read_layers(keys, d);
  detail::read_sharing(keys, d);
  bool attention = false, ssm = false;
  for (int i = 0; i < d.layers; ++i) {
    attention = attention || d.plan[i].has_attention();
    ssm = ssm || d.plan[i].has_ssm();
  }

  d.inner = detail::read_inner(keys, d.width);
  d.attention = keys.name("hymba_attention", "attention");
  detail::read_attention(keys, d.inner, attention, d);
  d.ssm = keys.name("hymba_ssm", "mamba");
  detail::read_ssm(keys, d);
  d.fusion = keys.name("hymba_fusion", "mean_of_norms");
  for (const auto& [part, key, used] :
       {std::tuple{d.attention, "hymba_attention", attention}, std::tuple{d.ssm, "hymba_ssm", ssm},
        std::tuple{d.fusion, "hymba_fusion", attention && ssm}}) {
    if (used && part == Name("none")) keys.fail(key, " is \"none\", but layer_type asks for it");
  }

  d.mlp_width = keys.required("intermediate_size", 0, widest);
  d.mlp = "silu";
  if (const Json* act = keys.find("mlp_hidden_act")) {
    d.mlp = keys.choice("mlp_hidden_act", *act, {"silu", "relu2"}, "\"silu\" or \"relu2\"") == 0 ? "silu" : "relu2";
  }
  if (keys.find_set("hymba_mlp") != nullptr) d.mlp = keys.name("hymba_mlp", "silu");
  if (d.mlp_width == 0) d.mlp = "none";

  d.meta_tokens = keys.integer("num_memory_tokens", 0, 0, widest);
  d.projection_bias = keys.flag("mamba_proj_bias", false);
  d.tied_embeddings = keys.flag("tie_word_embeddings", false);
  d.rms_eps = keys.number("rms_norm_eps", 1e-6, 1.0);
  d.bos = detail::read_token(keys, "bos_token_id", 1, d.vocabulary);
  d.eos = detail::read_token(keys, "eos_token_id", 2, d.vocabulary);
  d.pad = detail::read_token(keys, "pad_token_id", 0, d.vocabulary);
  return canonical(d);
}

/// The config.json in `folder`.
/// @throws IoError when there is none; otherwise as `parse_config`.
inline Description read_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  const FileMap file(path);
  const std::span<const std::byte> bytes = file.bytes();
  return parse_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

/// A config.json that `parse_config` reads back as `canonical(d)`.
/// @param torch_dtype the scalar type of the weights as the published files name it ("bfloat16"), or empty to leave it
/// out.
/// @throws ConfigError when `d` breaks a rule, or holds what the layout cannot express.
inline std::string config_text(const Description& description, std::string_view torch_dtype = {}) {
  if (const Broken broken = first_broken_rule(description, {}); broken.rule != Rule::none) {
    throw ConfigError(detail::message("cannot write config.json: ", broken_text(broken)));
  }
  const Description d = canonical(description);
  const Description none{};
  bool attention = false, ssm = false, one_window = true;
  int window = 0;
  for (int i = 0; i < d.layers; ++i) {
    const LayerPlan& row = d.plan[i];
    attention = attention || row.has_attention();
    ssm = ssm || row.has_ssm();
    one_window = one_window && (row.window == 0 || window == 0 || row.window == window);
    if (row.window != 0) window = row.window;
  }
  for (const Name* part : {&d.attention, &d.ssm, &d.fusion, &d.mlp}) {
    if (!detail::ConfigKeys::is_part_name(part->view())) {
      throw ConfigError(detail::message("cannot write config.json: the name ", detail::quote(part->view()),
                                        " of a part is not 1 to 47 letters, digits and _ . : - characters"));
    }
  }

  Json j = {{"architectures", {"HymbaForCausalLM"}},
            {"model_type", "hymba"},
            {"vocab_size", d.vocabulary},
            {"hidden_size", d.width},
            {"num_hidden_layers", d.layers},
            {"intermediate_size", d.mlp_width},
            {"hidden_act", "silu"},
            {"mlp_hidden_act", d.mlp == Name("relu2") ? "relu2" : "silu"},
            {"num_experts", 1},
            {"num_experts_per_tok", 1},
            {"num_mamba", 1},
            {"kv_weight_reuse", false},
            {"kv_reuse_every_i_layer", -1},
            {"num_memory_tokens", d.meta_tokens},
            {"memory_tokens_interspersed_every", 0},
            {"mamba_proj_bias", d.projection_bias},
            {"tie_word_embeddings", d.tied_embeddings},
            {"rms_norm_eps", d.rms_eps}};
  if (!torch_dtype.empty()) j["torch_dtype"] = torch_dtype;
  for (const auto& [key, token] :
       {std::pair{"bos_token_id", d.bos}, {"eos_token_id", d.eos}, {"pad_token_id", d.pad}}) {
    j[key] = token < 0 || token >= d.vocabulary ? Json(nullptr) : Json(token);
  }

  j["layer_type"] = Json::array();
  Json global = Json::array(), windows = Json::array();
  std::vector<Json> members(static_cast<std::size_t>(d.layers), Json::array());
  for (int i = 0; i < d.layers; ++i) {
    const LayerPlan& row = d.plan[i];
    j["layer_type"].push_back(layer_kind_name(row.kind));
    if (row.has_attention() && row.window == 0) global.push_back(i);
    windows.push_back(row.window);
    if (row.has_attention()) members[static_cast<std::size_t>(row.source)].push_back(i);
  }
  j["sliding_window"] = window == 0 ? Json(nullptr) : Json(window);
  j["global_attn_idx"] = window == 0 ? Json(nullptr) : global;
  if (!one_window) j["hymba_windows"] = windows;
  Json groups = Json::array();
  for (Json& group : members) {
    if (group.size() > 1) groups.push_back(std::move(group));
  }
  j["kv_reuse_group"] = groups.empty() ? Json(nullptr) : groups;

  if (attention) {
    j["num_attention_heads"] = d.query_heads;
    j["num_key_value_heads"] = d.kv_heads;
    j["attn_hidden_size"] = -1;
    j["kq_head_dim"] = d.key_width * d.query_heads == d.width ? -1 : d.key_width;
    j["v_head_dim"] = d.value_width;
    j["kq_norm"] = qk_norm_name(d.qk_norm);
    j["rope"] = d.rope != RopeKind::none;
    if (d.rope != RopeKind::none) {
      j["rope_type"] = rope_name(d.rope);
      j["rope_theta"] = d.rope_base;
    }
    if (d.max_positions > 0) j["max_position_embeddings"] = d.max_positions;
    if (d.original_positions > 0) j["orig_max_position_embeddings"] = d.original_positions;
    if (d.attention != Name("attention")) j["hymba_attention"] = d.attention.view();
  }
  if (!attention) {  // other readers ask for these even where no layer looks at them
    j["num_attention_heads"] = j["num_key_value_heads"] = 1;
    j["rope"] = false;
  }
  if (ssm) {
    // A whole number as the published files have it, where there is one.
    j["mamba_expand"] = d.inner % d.width == 0 ? Json(d.inner / d.width) : Json(static_cast<double>(d.inner) / d.width);
    j["mamba_d_state"] = d.d_state;
    j["mamba_d_conv"] = d.conv_taps;
    j["mamba_dt_rank"] = d.dt_rank;
    j["mamba_conv_bias"] = d.conv_bias;
    j["mamba_inner_layernorms"] = d.inner_norms;
    if (d.ssm != Name("mamba")) j["hymba_ssm"] = d.ssm.view();
  }
  if (d.fusion != none.fusion && d.fusion != Name("mean_of_norms")) j["hymba_fusion"] = d.fusion.view();
  if (d.mlp != none.mlp && d.mlp != Name("silu") && d.mlp != Name("relu2")) j["hymba_mlp"] = d.mlp.view();

  std::string text = j.dump(2) + "\n";
  if (const std::string lost = description_difference(parse_config(text, "config.json"), d); !lost.empty()) {
    throw ConfigError(detail::message("cannot write config.json: read back, ", lost));
  }
  return text;
}

HYMBA_NAMESPACE_END
