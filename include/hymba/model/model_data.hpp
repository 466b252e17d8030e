// SPDX-License-Identifier: Apache-2.0
//
// A model's weights as its kernels read them, bound from a table of named tensors. Immutable once made.
#pragma once

#include <hymba/core/aligned_buffer.hpp>
#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/tensor_check.hpp>
#include <hymba/core/tensor_table.hpp>
#include <hymba/exec/policy.hpp>
#include <hymba/heads/attention_heads.hpp>
#include <hymba/heads/context.hpp>
#include <hymba/heads/fuse.hpp>
#include <hymba/heads/mamba_heads.hpp>
#include <hymba/heads/mlp.hpp>
#include <hymba/heads/rope_table.hpp>
#include <hymba/model/declared_tensors.hpp>
#include <hymba/model/store_tensor.hpp>
#include <hymba/state/session_state.hpp>
#include <hymba/variant/architecture.hpp>
#include <hymba/variant/tensors.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// One tensor of a model: its full name, its declaration and where its data lie.
struct BoundTensor {
  std::string name;
  TensorSpec spec;
  Parameter parameter;
};

/// The tensors of one layer, by part, and the numbers derived from them.
struct LayerWeights {
  std::array<std::vector<Parameter>, part_count> parts;
  std::array<const float*, part_count> derived{};

  const Parameter* of(Part part) const { return parts[static_cast<std::size_t>(part)].data(); }
  const float* derived_of(Part part) const { return derived[static_cast<std::size_t>(part)]; }
};

namespace detail {

/// 64-bit FNV-1a, to tell models apart; not a defence against forgery.
class Fingerprint {
 public:
  void add(const void* data, std::size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < bytes; ++i) hash_ = (hash_ ^ p[i]) * 0x100000001b3ull;
  }
  void add(std::string_view text) { add(text.data(), text.size()); }
  void add(std::int64_t n) { add(&n, sizeof(n)); }
  /// Large blocks are sampled, 64 bytes at 64 places spread over them: opening a model must not read all of it.
  void sample(const std::byte* data, std::size_t bytes) {
    constexpr std::size_t piece = 64, pieces = 64;
    if (bytes <= piece * pieces) return add(data, bytes);
    for (std::size_t i = 0; i < pieces; ++i) add(data + (bytes - piece) / (pieces - 1) * i, piece);
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325ull;
};

}  // namespace detail

/// Weights, plan-derived lists and the state after the meta tokens of one model under one policy.
template <class V, Policy P>
class ModelData {
 public:
  using E = typename P::cache_element;
  using format = weight_format<P::weights>;
  static_assert(std::is_same_v<activation_t<P::weights>, float>,
                "hymba: models run in single precision; Weights::f64 is for checking gradients (see train/)");

  /// Binds `table` to the architecture. Tensors already stored in the policy's format are used where they lie (the
  /// table's owner is kept alive); others are converted once into memory of the model's own.
  /// @throws TensorError on a missing, unexpected or misshaped tensor; @throws ConfigError when the architecture breaks
  /// a rule.
  ModelData(const Architecture<V>& a, TensorTable table, const std::string& source) : arch_(a), owner_(table.owner) {
    const DeclaredTensors declared = declared_tensors(arch_, table, source);
    for (const DeclaredTensor& t : declared.all) tensors_.push_back({t.name, t.spec, {}});
    final_norm_ = declared.final_norm;
    output_ = declared.output;
    first_layer_tensor_ = declared.first_of_layers;
    store(table, source);
    bind();
    plan_staging();
    rope_ = RopeTable(a.attention);
  }
  ModelData(const ModelData&) = delete;
  ModelData& operator=(const ModelData&) = delete;

  const Architecture<V>& architecture() const { return arch_; }
  const std::vector<BoundTensor>& tensors() const { return tensors_; }
  const LayerWeights& layer(int i) const { return layers_[static_cast<std::size_t>(i)]; }
  WeightMatrix<fine_weights(P::weights)> embedding() const { return matrix(tensors_[0]); }
  WeightMatrix<fine_weights(P::weights)> output() const { return matrix(tensors_[output_]); }
  /// [M, D], or null without meta tokens.
  const float* meta_tokens() const { return arch_.meta_tokens() > 0 ? vector(tensors_[1]) : nullptr; }
  const float* final_norm() const { return vector(tensors_[final_norm_]); }
  const RopeTable& rope() const { return rope_; }
  /// Which staging buffer the window layer `i` fills or reads; -1 for global layers and layers without attention.
  int staging_slot(int i) const { return slots_[static_cast<std::size_t>(i)]; }
  int staging_slots() const { return slot_count_; }
  /// The last layer that reads the cache layer `i` produces (i itself when nobody shares it).
  int last_reader(int i) const { return last_reader_[static_cast<std::size_t>(i)]; }
  /// Tells this model (architecture, storage formats, samples of all weights) from another. Two models that differ in
  /// a few weights of one large tensor may share it.
  std::uint64_t fingerprint() const { return fingerprint_; }
  /// Bytes of weights held in memory of the model's own (the rest is the loader's, typically a mapped file).
  std::size_t owned_bytes() const { return owned_.size() + derived_.size(); }

  /// The state after the meta tokens; `compute` makes it the first time it is asked for, from whatever thread.
  template <class Compute>
  const SessionState<E>& meta_state(Compute&& compute) const {
    std::call_once(meta_once_, [&] { meta_state_ = compute(); });
    return meta_state_;
  }

 private:
  static const float* vector(const BoundTensor& t) { return reinterpret_cast<const float*>(t.parameter.data); }
  static WeightMatrix<fine_weights(P::weights)> matrix(const BoundTensor& t) {
    return {t.parameter.data, t.parameter.rows, t.parameter.cols, t.parameter.rotated};
  }

  static Weights stored_format(const TensorSpec& t) { return detail::stored_format(t.role, P::weights); }
  static std::size_t stored_bytes(const TensorSpec& t) { return detail::stored_bytes(t, stored_format(t)); }
  /// True when the table's bytes can be used as they lie: right type, aligned for it.
  static bool usable_in_place(const TensorSpec& t, const TensorRef& from) {
    const std::size_t aligned = is_quantised(from.dtype) ? sizeof(float) : dtype_bytes(from.dtype);
    return detail::serves_as(from.dtype, t.role, stored_format(t)) &&
           reinterpret_cast<std::uintptr_t>(from.bytes.data()) % aligned == 0;
  }

  void store(const TensorTable& table, const std::string& source) {
    std::size_t owned = 0;
    for (const BoundTensor& t : tensors_) {
      detail::check_type(t.name, t.spec, *table.find(t.name), source);
      if (!usable_in_place(t.spec, *table.find(t.name))) owned += aligned_size(stored_bytes(t.spec));
    }
    owned_ = AlignedBuffer(owned, Uninitialised{});
    std::byte* next = owned_.data();
    detail::Fingerprint print;
    print.add(format::name);
    print.add(cache_format<P::cache>::name);
    typename P::executor all(0);  // quantising takes long on one core
    for (BoundTensor& t : tensors_) {
      const TensorRef& from = *table.find(t.name);
      const detail::StoredShape shape(t.spec);
      t.parameter.rows = shape.rows;
      t.parameter.cols = shape.cols;
      if (usable_in_place(t.spec, from)) {
        t.parameter.data = from.bytes.data();
        t.parameter.rotated = is_rotated(from.dtype);
      } else {
        t.parameter.data = next;
        t.parameter.rotated = is_rotated(detail::type_to_store(t.spec, from, stored_format(t.spec)));
        detail::store_tensor(all, t.spec, from, stored_format(t.spec), t.parameter.rotated, next);
        next += aligned_size(stored_bytes(t.spec));
      }
      print.add(t.name);
      for (const std::int64_t d : t.spec.dims) print.add(d);
      print.add(static_cast<std::int64_t>(t.parameter.rotated));
      print.sample(t.parameter.data, stored_bytes(t.spec));
    }
    add_plan(print);
    fingerprint_ = print.value();
  }

  /// Shapes do not tell everything: windows, sharing, rotary embedding and norms change what the weights mean.
  void add_plan(detail::Fingerprint& print) const {
    const Description d = arch_.describe();
    for (int i = 0; i < d.layers; ++i) {
      for (const int n : {static_cast<int>(d.plan[i].kind), d.plan[i].window, d.plan[i].source}) print.add(n);
    }
    for (const int n : {d.query_heads, d.kv_heads, static_cast<int>(d.rope), d.max_positions, d.original_positions}) {
      print.add(n);
    }
    for (const double x : {d.rope_base, d.rms_eps}) print.add(&x, sizeof(x));
    for (const Name& n : {d.attention, d.ssm, d.fusion, d.mlp}) print.add(n.view());
  }

  void bind() {
    layers_.resize(static_cast<std::size_t>(arch_.layers));
    std::size_t next = first_layer_tensor_;
    for (int i = 0; i < arch_.layers; ++i) {
      for_each_layer_tensor(arch_, i, [&](Part part, const TensorSpec&) {
        layers_[static_cast<std::size_t>(i)].parts[static_cast<std::size_t>(part)].push_back(tensors_[next++].parameter);
      });
    }
    typename P::executor caller(1);
    Arena measure;
    derive_all(measure, caller);
    derived_ = AlignedBuffer(measure.used());
    Arena place(derived_);
    derive_all(place, caller);
  }

  void derive_all(Arena& arena, typename P::executor& caller) {
    for (int i = 0; i < arch_.layers; ++i) {
      for_each_layer_part(arch_, i, [&](Part part, const auto& shape, auto... sizes) {
        derive_part(i, part, arena, caller, shape, sizes...);
      });
    }
  }
  template <class PartType, class... Sizes>
  void derive_part(int i, Part part, Arena& arena, typename P::executor& caller, const PartType& shape,
                   Sizes... sizes) {
    if constexpr (requires { derived_floats(shape, sizes...); }) {
      LayerWeights& layer = layers_[static_cast<std::size_t>(i)];
      float* out = arena.take<float>(static_cast<std::size_t>(derived_floats(shape, sizes...)));
      if (arena.measuring()) return;
      layer.derived[static_cast<std::size_t>(part)] = out;
      const Context<P> context{caller, {}, static_cast<float>(arch_.rms_eps), layer.of(part), nullptr};
      if constexpr (requires { derive(shape, context, sizes..., out); }) derive(shape, context, sizes..., out);
    }
  }

  /// Window layers whose keys and values are alive at the same time get different staging buffers.
  void plan_staging() {
    const int n = arch_.layers;
    slots_.assign(static_cast<std::size_t>(n), -1);
    for (int i = 0; i < n; ++i) last_reader_.push_back(arch_.plan.last_reader(i));
    std::vector<int> busy_until;
    for (int i = 0; i < n; ++i) {
      const LayerPlan& row = arch_.plan[i];
      if (!row.has_attention() || row.window == 0) continue;
      if (row.source != i) {
        slots_[static_cast<std::size_t>(i)] = slots_[static_cast<std::size_t>(row.source)];
        continue;
      }
      std::size_t slot = 0;
      while (slot < busy_until.size() && busy_until[slot] >= i) ++slot;
      if (slot == busy_until.size()) busy_until.push_back(0);
      busy_until[slot] = last_reader(i);
      slots_[static_cast<std::size_t>(i)] = static_cast<int>(slot);
    }
    slot_count_ = static_cast<int>(busy_until.size());
  }

  Architecture<V> arch_;
  std::shared_ptr<const void> owner_;
  std::vector<BoundTensor> tensors_;
  std::size_t final_norm_ = 0, output_ = 0, first_layer_tensor_ = 0;
  AlignedBuffer owned_, derived_;
  std::vector<LayerWeights> layers_;
  std::vector<int> slots_, last_reader_;
  int slot_count_ = 0;
  RopeTable rope_;
  std::uint64_t fingerprint_ = 0;
  mutable std::once_flag meta_once_;
  mutable SessionState<E> meta_state_;
};

HYMBA_NAMESPACE_END
