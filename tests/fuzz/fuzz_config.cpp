// SPDX-License-Identifier: Apache-2.0
//
// config.json: any bytes give a FormatError, a ConfigError, or a description that is canonical; one that breaks no rule
// has a parameter count, comes back from its own text, and has a type.
//
// An input that starts with 'K' picks keys and values from the lists below, two bytes each: so that mutations reach
// what lies behind the JSON parser.
#include <hymba/io/config.hpp>
#include <hymba/io/emit_variant.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <string_view>

namespace {
void require(bool holds) {
  if (!holds) std::abort();
}
void require_one_line(const char* what) { require(std::strchr(what, '\n') == nullptr && std::strlen(what) < 1000); }

constexpr std::string_view keys[] = {"vocab_size",
                                     "hidden_size",
                                     "num_hidden_layers",
                                     "intermediate_size",
                                     "mlp_hidden_act",
                                     "num_attention_heads",
                                     "num_key_value_heads",
                                     "attn_hidden_size",
                                     "kq_head_dim",
                                     "v_head_dim",
                                     "kq_norm",
                                     "rope",
                                     "rope_theta",
                                     "rope_type",
                                     "max_position_embeddings",
                                     "orig_max_position_embeddings",
                                     "sliding_window",
                                     "global_attn_idx",
                                     "kv_reuse_group",
                                     "kv_reuse_every_i_layer",
                                     "num_memory_tokens",
                                     "mamba_expand",
                                     "mamba_d_state",
                                     "mamba_d_conv",
                                     "mamba_dt_rank",
                                     "mamba_conv_bias",
                                     "mamba_inner_layernorms",
                                     "mamba_proj_bias",
                                     "rms_norm_eps",
                                     "tie_word_embeddings",
                                     "bos_token_id",
                                     "eos_token_id",
                                     "pad_token_id",
                                     "num_experts",
                                     "num_mamba",
                                     "kv_weight_reuse",
                                     "memory_tokens_interspersed_every",
                                     "layer_type",
                                     "hymba_fusion",
                                     "hymba_windows",
                                     "hymba_attention",
                                     "hymba_ssm",
                                     "hymba_mlp",
                                     "model_type",
                                     "hidden_act"};
constexpr std::string_view values[] = {"-2",
                                       "-1",
                                       "0",
                                       "1",
                                       "2",
                                       "3",
                                       "4",
                                       "5",
                                       "6",
                                       "7",
                                       "8",
                                       "9",
                                       "16",
                                       "32",
                                       "64",
                                       "100",
                                       "255",
                                       "256",
                                       "257",
                                       "1048576",
                                       "1048577",
                                       "1073741824",
                                       "2147483647",
                                       "2147483648",
                                       "-2147483648",
                                       "-2147483649",
                                       "4294967297",
                                       "9223372036854775808",
                                       "18446744073709551615",
                                       "18446744073709551616",
                                       "-9223372036854775809",
                                       "1e300",
                                       "0.5",
                                       "1.5",
                                       "-0.0",
                                       "1e-6",
                                       "1e-320",
                                       "10000.5",
                                       "true",
                                       "false",
                                       "null",
                                       "\"auto\"",
                                       "\"silu\"",
                                       "\"relu2\"",
                                       "\"ntk\"",
                                       "\"dynamic_ntk\"",
                                       "\"default\"",
                                       "\"rms\"",
                                       "\"perhead-rms\"",
                                       "\"none\"",
                                       "\"sum\"",
                                       "\"concat\"",
                                       "\"learned_gate\"",
                                       "\"mine\"",
                                       "\"hymba\"",
                                       "\"attention\"",
                                       "\"mamba\"",
                                       "\"\"",
                                       "\"two words\"",
                                       "{}",
                                       "[]",
                                       "[0]",
                                       "[0,3]",
                                       "[3,0,3]",
                                       "[1,2]",
                                       "[4]",
                                       "[[]]",
                                       "[[0,1]]",
                                       "[[1,2]]",
                                       "[[2,1]]",
                                       "[[1,2,3]]",
                                       "[[0,1],[2,3]]",
                                       "[[0,1],[1,2]]",
                                       "[[0,9]]",
                                       "[[0,2]]",
                                       "[[3]]",
                                       "[null]",
                                       "[0,0,8,8]",
                                       "[8,8,9,9]",
                                       "[0,8,8,0]",
                                       "[8,-1,8,8]",
                                       "[\"h\"]",
                                       "[\"a\",\"a\",\"a\",\"a\"]",
                                       "[\"m\",\"m\",\"m\",\"m\"]",
                                       "[\"h\",\"a\",\"m\",\"h\"]",
                                       "[\"m\",\"a\",\"m\",\"a\"]",
                                       "[\"h\",\"h\",\"h\",\"h\"]",
                                       "[\"h\",\"h\",\"x\",\"h\"]",
                                       "[\"m\",\"h\",\"h\",\"m\"]"};

/// A valid configuration of four layers with some of its values replaced.
std::string from_lists(const std::uint8_t* data, std::size_t size) {
  std::map<std::string_view, std::string_view> config{{"vocab_size", "32"},         {"hidden_size", "16"},
                                                      {"num_hidden_layers", "4"},   {"intermediate_size", "24"},
                                                      {"num_attention_heads", "4"}, {"num_key_value_heads", "2"},
                                                      {"num_memory_tokens", "3"},   {"rope", "true"},
                                                      {"sliding_window", "8"},      {"global_attn_idx", "[0]"},
                                                      {"kv_reuse_group", "[[1,2]]"}};
  for (std::size_t i = 0; i + 1 < size; i += 2)
    config[keys[data[i] % std::size(keys)]] = values[data[i + 1] % std::size(values)];
  std::string text = "{";
  for (const auto& [key, value] : config) {
    text += text.size() > 1 ? ",\"" : "\"";
    text += key;
    text += "\":";
    text += value;
  }
  return text + "}";
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string json = size > 0 && data[0] == 'K' ? from_lists(data + 1, size - 1)
                                                      : std::string(reinterpret_cast<const char*>(data), size);
  hymba::Description d;
  try {
    d = hymba::parse_config(json, "fuzz");
  } catch (const hymba::FormatError& e) {
    require_one_line(e.what());
    return 0;
  } catch (const hymba::ConfigError& e) {
    require_one_line(e.what());
    return 0;
  }
  require(hymba::description_difference(hymba::canonical(d), d).empty());
  try {
    const auto a = hymba::architecture_from<hymba::DynamicHymba>(d);
    require(hymba::parameters(a) > 0 && hymba::cache_bytes(a, 2, 1 << 20) + hymba::state_bytes(a) > 0);
  } catch (const hymba::ConfigError& e) {
    require_one_line(e.what());
    return 0;
  }
  // A valid one is written and read back unchanged.
  const std::string text = hymba::config_text(d);
  const hymba::Description again = hymba::parse_config(text, "again");
  require(hymba::same_architecture(again, d) && again.bos == d.bos && again.eos == d.eos && again.pad == d.pad);
  try {
    require(hymba::emit_variant(d, "Fuzz").size() > 50);
  } catch (const hymba::ConfigError& e) {
    require_one_line(e.what());
  }
  return 0;
}
