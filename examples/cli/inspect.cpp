// SPDX-License-Identifier: Apache-2.0
//
// hymba inspect: what a folder holds, what it costs, and its C++ type. Works without weights.
#include <hymba/core/cached_row.hpp>
#include <hymba/core/error.hpp>
#include <hymba/core/tensor_check.hpp>
#include <hymba/io/architecture_from.hpp>
#include <hymba/io/checkpoint.hpp>
#include <hymba/io/config.hpp>
#include <hymba/io/emit_variant.hpp>
#include <hymba/variant/costs.hpp>

#include <algorithm>
#include <map>
#include <memory>
#include <system_error>
#include <utility>

#include "common.hpp"

namespace cli {

namespace {

struct InspectArguments {
  std::string folder, model, emit;
  std::int64_t max_context = 0;
  bool json = false, tensors = false, quiet = false;
};

std::string kind_text(hymba::LayerKind kind) {
  return kind == hymba::LayerKind::hybrid ? "hybrid" : kind == hymba::LayerKind::attention ? "attention" : "ssm";
}
std::string rope_text(hymba::RopeKind kind) {
  switch (kind) {
    case hymba::RopeKind::standard:
      return "default";
    case hymba::RopeKind::ntk:
      return "ntk";
    case hymba::RopeKind::dynamic_ntk:
      return "dynamic_ntk";
    default:
      return "none";
  }
}
std::string norm_text(hymba::QkNorm norm) {
  return norm == hymba::QkNorm::rms ? "rms" : norm == hymba::QkNorm::per_head_rms ? "perhead-rms" : "none";
}

std::int64_t layer_parameters(const AnyArchitecture& a, int i) {
  std::int64_t total = 0;
  hymba::for_each_layer_tensor(a, i, [&](hymba::Part, const hymba::TensorSpec& t) { total += t.elements(); });
  return total;
}

constexpr hymba::CacheElementBytes bytes_in_int8 =
    hymba::cache_element_bytes<hymba::cache_format<hymba::Cache::int8>::element>;

/// Everything inspect knows, computed before anything is printed.
struct Inspection {
  std::string folder;
  AnyArchitecture a;
  hymba::Description d;
  bool has_weights = false;
  hymba::TensorTable tensors;
  std::map<std::string, std::pair<std::int64_t, std::size_t>> by_type;  // count and bytes of tensors
  std::size_t tensor_bytes = 0;
  std::vector<std::int64_t> contexts{1024, 2048, 8192, 32768, 131072};
};

Inspection look(const std::string& folder, std::int64_t max_context) {
  Inspection x;
  x.folder = folder;
  const hymba::Description description = hymba::read_config(folder);
  x.a = hymba::architecture_from<hymba::DynamicHymba>(description,
                                                      (std::filesystem::path(folder) / "config.json").string());
  x.d = x.a.describe();
  x.d.bos = description.bos;
  x.d.eos = description.eos;
  x.d.pad = description.pad;
  if (max_context > 0 && std::find(x.contexts.begin(), x.contexts.end(), max_context) == x.contexts.end()) {
    x.contexts.push_back(max_context);
    std::sort(x.contexts.begin(), x.contexts.end());
  }
  std::error_code error;
  x.has_weights = std::filesystem::exists(std::filesystem::path(folder) / "model.safetensors", error) ||
                  std::filesystem::exists(std::filesystem::path(folder) / "model.safetensors.index.json", error);
  if (x.has_weights) {
    x.tensors = hymba::open_tensors(folder);
    check_checkpoint(x.a, x.tensors, folder);
    for (const auto& [name, t] : x.tensors.tensors) {
      auto& [count, bytes] = x.by_type[hymba::dtype_name(t.dtype)];
      ++count;
      bytes += t.bytes.size();
      x.tensor_bytes += t.bytes.size();
    }
  }
  return x;
}

OrderedJson as_json(const Inspection& x, bool tensors) {
  const AnyArchitecture& a = x.a;
  const hymba::Description& d = x.d;
  bool attention = false, ssm = false, hybrid = false;
  OrderedJson layers = OrderedJson::array();
  for (int i = 0; i < a.layers; ++i) {
    const hymba::LayerPlan& row = a.plan[i];
    attention = attention || row.has_attention();
    ssm = ssm || row.has_ssm();
    hybrid = hybrid || row.kind == hymba::LayerKind::hybrid;
    OrderedJson layer{{"layer", i}, {"kind", kind_text(row.kind)}};
    layer["window"] = row.has_attention() && row.window > 0 ? OrderedJson(row.window) : OrderedJson();
    layer["cache_source"] = row.has_attention() ? OrderedJson(row.source) : OrderedJson();
    layer["input_rows"] = a.input_rows(i);
    layer["mixed_width"] = a.mixed_width(i);
    layer["parameters"] = layer_parameters(a, i);
    layers.push_back(std::move(layer));
  }
  OrderedJson out{{"folder", x.folder},
                  {"parameters", hymba::parameters(a)},
                  {"width", a.width},
                  {"vocabulary", a.vocabulary},
                  {"meta_tokens", a.meta_tokens()},
                  {"tied_embeddings", a.tied_embeddings},
                  {"projection_bias", a.projection_bias},
                  {"rms_eps", a.rms_eps}};
  if (attention) {
    out["attention"] = {{"query_heads", d.query_heads},
                        {"kv_heads", d.kv_heads},
                        {"key_width", d.key_width},
                        {"value_width", d.value_width},
                        {"qk_norm", norm_text(d.qk_norm)},
                        {"rope", rope_text(d.rope)},
                        {"rope_base", d.rope_base},
                        {"max_positions", d.max_positions},
                        {"original_positions", d.original_positions}};
  }
  if (ssm) {
    out["ssm"] = {{"kind", d.ssm.view()},     {"inner", d.inner},     {"state", d.d_state},
                  {"conv_taps", d.conv_taps}, {"dt_rank", d.dt_rank}, {"inner_norms", d.inner_norms},
                  {"conv_bias", d.conv_bias}};
  }
  if (hybrid) out["fusion"] = d.fusion.view();
  out["mlp"] = {{"kind", d.mlp.view()}, {"width", d.mlp_width}};
  out["layers"] = std::move(layers);
  OrderedJson costs = OrderedJson::array();
  for (const std::int64_t context : x.contexts) {
    costs.push_back({{"context", context},
                     {"cache_bytes", hymba::cache_bytes(a, 2, context)},
                     {"cache_bytes_int8", hymba::cache_bytes(a, bytes_in_int8, context)},
                     {"transformer_cache_bytes", hymba::transformer_cache_bytes(a, 2, context)}});
  }
  out["cache_element_bytes"] = 2;
  out["cache"] = std::move(costs);
  out["state_bytes"] = hymba::state_bytes(a);
  if (x.has_weights) {
    OrderedJson types = OrderedJson::object();
    for (const auto& [name, total] : x.by_type) types[name] = {{"tensors", total.first}, {"bytes", total.second}};
    out["weights"] = {{"tensors", x.tensors.tensors.size()}, {"bytes", x.tensor_bytes}, {"types", types}};
  } else {
    out["weights"] = nullptr;
  }
  if (tensors && x.has_weights) {
    OrderedJson table = OrderedJson::array();
    for (const auto& [name, t] : x.tensors.tensors) {
      table.push_back({{"name", name}, {"type", hymba::dtype_name(t.dtype)}, {"shape", t.shape}});
    }
    out["tensors"] = std::move(table);
  }
  return out;
}

/// Columns padded to their widest cell; numbers to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> head) : rows_{std::move(head)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const {
    std::vector<std::size_t> widths(rows_.front().size());
    for (const auto& row : rows_) {
      for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
    }
    std::string out;
    for (const auto& row : rows_) {
      std::string line = " ";
      for (std::size_t c = 0; c < row.size(); ++c) {
        const std::string space(widths[c] - row[c].size(), ' ');
        // A column is numbers when its last row begins with a digit.
        const std::string& last = rows_.back()[c];
        const bool number = !last.empty() && last[0] >= '0' && last[0] <= '9';
        line += ' ' + (number ? space + row[c] : row[c] + space) + ' ';
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out += line + '\n';
    }
    return out;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string as_text(const Inspection& x, bool tensors) {
  const AnyArchitecture& a = x.a;
  const hymba::Description& d = x.d;
  const OrderedJson json = as_json(x, false);
  std::string out = x.folder + '\n';
  const auto line = [&](const char* name, const std::string& what) {
    out += "  " + std::string(name) + std::string(12 - std::string_view(name).size(), ' ') + what + '\n';
  };
  line("parameters", grouped(hymba::parameters(a)));
  line("model", message("width ", a.width, ", ", a.layers, " layers, vocabulary ", a.vocabulary, ", ", a.meta_tokens(),
                        " meta tokens, ", a.tied_embeddings ? "tied" : "untied", " output",
                        a.projection_bias ? ", projection biases" : "", ", eps ", a.rms_eps));
  if (json.contains("attention")) {
    std::string rope = rope_text(d.rope);
    if (d.rope != hymba::RopeKind::none) rope += message(" (base ", d.rope_base);
    if (d.rope == hymba::RopeKind::ntk)
      rope += message(", ", d.max_positions, " positions from ", d.original_positions);
    if (d.rope == hymba::RopeKind::dynamic_ntk) rope += message(", past ", d.original_positions);
    if (d.rope != hymba::RopeKind::none) rope += ")";
    line("attention", message(d.query_heads, " query heads, ", d.kv_heads, " key/value heads, keys ", d.key_width,
                              ", values ", d.value_width, ", q/k norm ", norm_text(d.qk_norm), ", rope ", rope));
  }
  if (json.contains("ssm")) {
    line("ssm", message(d.ssm.view(), ", ", d.inner, " channels, state ", d.d_state, ", ", d.conv_taps,
                        " convolution taps", d.conv_bias ? " with bias" : "", ", dt rank ", d.dt_rank, ", inner norms ",
                        d.inner_norms ? "yes" : "no"));
  }
  if (json.contains("fusion")) line("fusion", std::string(d.fusion.view()));
  line("mlp", d.mlp == hymba::Name("none") ? "none" : message(d.mlp.view(), ", width ", d.mlp_width));

  out += "\nlayers\n";
  Table layers({"layer", "kind", "span", "cache", "input projection", "output projection", "parameters"});
  for (int i = 0; i < a.layers; ++i) {
    const hymba::LayerPlan& row = a.plan[i];
    layers.add({std::to_string(i), kind_text(row.kind),
                !row.has_attention() ? "-"
                : row.window == 0    ? "global"
                                     : "window " + std::to_string(row.window),
                !row.has_attention() ? "-"
                : row.source == i    ? "own"
                                     : "of layer " + std::to_string(row.source),
                message(a.input_rows(i), " x ", a.width), message(a.width, " x ", a.mixed_width(i)),
                grouped(layer_parameters(a, i))});
  }
  out += layers.text();

  out += "\nkeys and values of one session, in 16 bits and in int8\n";
  Table costs({"context", "this model", "equal transformer", "ratio", "in int8"});
  for (const std::int64_t context : x.contexts) {
    const std::size_t mine = hymba::cache_bytes(a, 2, context), its = hymba::transformer_cache_bytes(a, 2, context);
    costs.add({grouped(context), bytes_text(mine), bytes_text(its),
               mine > 0 ? fixed(static_cast<double>(its) / static_cast<double>(mine), 2) : "-",
               bytes_text(hymba::cache_bytes(a, bytes_in_int8, context))});
  }
  out += costs.text();
  out += "  recurrent state of one session, in f32: " + bytes_text(hymba::state_bytes(a)) + '\n';

  out += "\nweights\n";
  if (!x.has_weights) {
    out += "  none in this folder; they would take " + bytes_text(static_cast<std::size_t>(hymba::parameters(a)) * 2) +
           " in 16 bits\n";
    return out;
  }
  out += message("  ", x.tensors.tensors.size(), " tensors, ", bytes_text(x.tensor_bytes),
                 "; every name and shape fits\n");
  for (const auto& [name, total] : x.by_type) {
    out += message("  ", name, ": ", total.first, " tensors, ", bytes_text(total.second), '\n');
  }
  if (tensors) {
    Table table({"tensor", "type", "shape"});
    for (const auto& [name, t] : x.tensors.tensors)
      table.add({name, hymba::dtype_name(t.dtype), hymba::shape_text(t.shape)});
    out += '\n' + table.text();
  }
  return out;
}

int inspect(const InspectArguments& a) {
  if (a.folder.empty() == a.model.empty()) throw UsageError("inspect: expected one folder, as DIR or as --model DIR");
  if (a.max_context < 0 || a.max_context > (std::int64_t{1} << 30)) {
    throw UsageError(message("--max-context is ", a.max_context, ", expected 1 to ", 1 << 30));
  }
  const std::string& folder = a.folder.empty() ? a.model : a.folder;
  if (!a.emit.empty()) {
    std::string type = hymba::emit_variant(hymba::read_config(folder), a.emit);
    if (!type.ends_with('\n')) type += '\n';
    put(a.json ? json_line({{"variant", type}}) : type);
    return 0;
  }
  const Inspection x = look(folder, a.max_context);
  put(a.json ? json_line(as_json(x, a.tensors)) : as_text(x, a.tensors));
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Command& run) {
  CLI::App* command =
      app.add_subcommand("inspect", "Show shapes, costs and the C++ type of a model; config.json is enough");
  command->footer("Examples:\n  hymba inspect DIR\n  hymba inspect DIR --emit-variant MyModel > my_model.hpp\n");
  const auto a = std::make_shared<InspectArguments>();
  command->add_option("dir", a->folder, "Folder with config.json, and weights or none")->type_name("DIR");
  command->add_option("--model", a->model, "The same")->type_name("DIR");
  command->add_option("--emit-variant", a->emit, "Print the C++ type for this config.json under this name instead")
      ->type_name("NAME");
  add_number(*command, "--max-context", a->max_context, "One more context length in the table of costs");
  command->add_flag("--tensors", a->tensors, "List every tensor of the checkpoint");
  command->add_flag("--json", a->json, "Results as JSON");
  command->add_flag("--quiet", a->quiet, "Nothing on standard error but errors");
  command->callback([&run, a] { run = [a] { return inspect(*a); }; });
}

}  // namespace cli
