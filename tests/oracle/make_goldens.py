# SPDX-License-Identifier: Apache-2.0
"""Builds small random checkpoints in the published folder layout, with the oracle's logits beside them.

    python make_goldens.py [--out ../golden] [--only NAME ...]

Every folder NAME holds config.json, the weights (model.safetensors, or shards with an index) and golden.safetensors with
`ids` (I32 [T]) and `logits` (F32 [T, V]). Everything follows from the seeds. The script checks what it writes and stops at
the first check that fails; see README.md for the list.
"""
import argparse
import hashlib
import json
import math
import os
import shutil
import zlib

import torch
from safetensors.torch import load_file, save_file

import hymba_oracle as oracle

FOLDER_LIMIT, TOTAL_LIMIT = 120_000, 2_000_000
ROUNDING_LIMIT = 4e-6               # plain float32 arithmetic must stay this near, relative to max|logit|; SALT moves a seed that does not
SALT = {"mixed_kinds": 1}

# What every configuration starts from: the published model's keys, scaled down.
BASE = {
    "architectures": ["HymbaForCausalLM"], "model_type": "hymba", "vocab_size": 37, "hidden_size": 16, "intermediate_size": 14,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "kq_head_dim": -1, "v_head_dim": -1,
    "attn_hidden_size": -1, "mamba_expand": 2, "mamba_d_state": 4, "mamba_d_conv": 4, "mamba_dt_rank": 3, "mamba_conv_bias": True,
    "mamba_proj_bias": False, "mamba_inner_layernorms": True, "kq_norm": "none", "sliding_window": 9, "global_attn_idx": [1],
    "kv_reuse_group": None, "kv_reuse_every_i_layer": -1, "num_memory_tokens": 5, "memory_tokens_interspersed_every": 0,
    "rope": True, "rope_theta": 10000.0, "rope_type": "ntk", "max_position_embeddings": 128, "orig_max_position_embeddings": 32,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "mlp_hidden_act": "silu", "num_experts": 1, "torch_dtype": "float32",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}

# name -> (changes to BASE, T, storage). A value DROP leaves the key out, so that its default is what is tested.
DROP = "drop this key"
PURE_ATTENTION = {"mamba_expand": 1, "num_memory_tokens": 0, "rope_type": "default", "sliding_window": None, "global_attn_idx": None}
CONFIGURATIONS = {
    # the published model in small: globals first, middle and last; shared caches in the window layers between; meta tokens; ntk
    "hymba_tiny": ({"num_hidden_layers": 6, "global_attn_idx": [0, 3, 5], "kv_reuse_group": [[1, 2]], "vocab_size": 53,
                    "sliding_window": 8, "num_memory_tokens": 4, "layer_type": ["h"] * 6, "intermediate_size": 16,
                    "mamba_dt_rank": 2, "conv_dim": {str(i): 32 for i in range(6)}}, 44, "F32"),
    "groups_of_three": ({"num_hidden_layers": 4, "global_attn_idx": [3], "kv_reuse_group": [[0, 1, 2]], "rope_type": "default"},
                        48, "F32"),
    "global_group": ({"num_hidden_layers": 2, "global_attn_idx": [0, 1], "kv_reuse_group": [[0, 1]]}, 41, "F32"),
    "window_smaller_than_meta": ({"num_memory_tokens": 13, "sliding_window": 5, "kv_reuse_group": [[1, 2]], "global_attn_idx": [0]},
                                 50, "F32"),
    "window_one": ({"num_hidden_layers": 2, "sliding_window": 1, "num_memory_tokens": 2, "global_attn_idx": []}, 40, "F32"),
    "no_meta": ({"num_memory_tokens": 0, "kv_reuse_group": [[1, 2]], "global_attn_idx": [0]}, 55, "F32"),
    "no_sharing": ({"global_attn_idx": [0], "kv_reuse_group": DROP, "layer_type": DROP}, 52, "F32"),
    "all_windows": ({"num_hidden_layers": 2, "global_attn_idx": None, "sliding_window": 7, "kv_reuse_group": [[0, 1]]}, 64, "F32"),
    "all_global": ({"num_hidden_layers": 2, "sliding_window": None, "global_attn_idx": None, "rms_norm_eps": 1e-5}, 48, "F32"),
    "untied_output": ({"num_hidden_layers": 2, "tie_word_embeddings": False}, 42, "F32"),
    "attention_only": ({**PURE_ATTENTION, "num_hidden_layers": 2, "layer_type": ["a"] * 2, "hidden_size": 24, "num_attention_heads": 6,
                        "num_key_value_heads": 2, "v_head_dim": 4, "intermediate_size": 36, "rope_theta": 100000.0,
                        "mamba_expand": 2, "rms_norm_eps": 1e-5}, 48, "F32"),
    "attention_only_windows": ({"layer_type": ["a"] * 4, "num_hidden_layers": 4, "global_attn_idx": [0, 3], "sliding_window": 6,
                                "kv_reuse_group": [[1, 2]], "num_memory_tokens": 3}, 50, "F32"),
    "ssm_only": ({"layer_type": ["m"] * 2, "num_hidden_layers": 2, "intermediate_size": 0, "mamba_inner_layernorms": False,
                  "mamba_conv_bias": False, "num_memory_tokens": 0, "sliding_window": None, "global_attn_idx": None, "rope": False,
                  "mamba_dt_rank": "auto", "hidden_size": 20, "mamba_d_state": 6}, 60, "F32"),
    "ssm_only_mlp": ({"layer_type": ["m"] * 2, "num_hidden_layers": 2, "num_memory_tokens": 6, "mamba_dt_rank": "auto"}, 50, "F32"),
    "sequential_mix": ({"layer_type": ["m", "a", "m", "a"], "num_hidden_layers": 4, "global_attn_idx": [1]}, 52, "F32"),
    "mixed_kinds": ({"layer_type": ["h", "a", "m", "a", "h"], "num_hidden_layers": 5, "global_attn_idx": [0],
                     "kv_reuse_group": [[3, 4]], "mamba_dt_rank": 2}, 50, "F32"),
    "fusion_sum": ({"num_hidden_layers": 2, "hymba_fusion": "sum"}, 48, "F32"),
    "fusion_concat": ({"hymba_fusion": "concat", "v_head_dim": 5, "kv_reuse_group": [[1, 2]], "global_attn_idx": [0]}, 48, "F32"),
    "fusion_gate": ({"num_hidden_layers": 2, "hymba_fusion": "learned_gate", "kv_reuse_group": [[0, 1]], "global_attn_idx": []}, 48, "F32"),
    "relu2": ({"num_hidden_layers": 2, "mlp_hidden_act": "relu2", "intermediate_size": 27}, 48, "F32"),
    "no_mlp": ({"num_hidden_layers": 2, "intermediate_size": 0}, 48, "F32"),
    "kq_norm_rms": ({"num_hidden_layers": 2, "kq_norm": "rms", "kv_reuse_group": [[0, 1]], "global_attn_idx": []}, 48, "F32"),
    "kq_norm_perhead": ({"kq_norm": "perhead-rms", "kv_reuse_group": [[1, 2]], "global_attn_idx": [0]}, 48, "F32"),
    "no_rope": ({"num_hidden_layers": 2, "rope": False, "kv_reuse_group": [[0, 1]], "global_attn_idx": []}, 48, "F32"),
    "dynamic_ntk": ({"rope_type": "dynamic_ntk", "orig_max_position_embeddings": 12, "max_position_embeddings": 96,
                     "kq_head_dim": 6, "kv_reuse_group": [[1, 2]], "global_attn_idx": [0], "rope_theta": 500.0}, 56, "F32"),
    "proj_bias": ({"num_hidden_layers": 2, "mamba_proj_bias": True, "mamba_d_conv": 3, "mamba_dt_rank": 2, "kq_head_dim": 8,
                   "v_head_dim": 8, "kv_reuse_group": [[0, 1]], "global_attn_idx": [], "rope_type": None, "mamba_expand": 2}, 48, "F32"),
    "proj_bias_kinds": ({"mamba_proj_bias": True, "mamba_conv_bias": False, "layer_type": ["m", "a", "a", "h"],
                         "num_hidden_layers": 4, "kv_reuse_group": [[1, 2]], "global_attn_idx": [3],
                         "kq_norm": "rms", "mlp_hidden_act": "relu2"}, 45, "F32"),
    "odd_sizes": ({"hidden_size": 21, "num_attention_heads": 3, "num_key_value_heads": 1, "kq_head_dim": 10, "v_head_dim": 14,
                   "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_dt_rank": 7, "intermediate_size": 29, "vocab_size": 101,
                   "num_hidden_layers": 2, "num_memory_tokens": 3, "sliding_window": 11, "global_attn_idx": [0]}, 43, "F32"),
    "odd_widths": ({"hidden_size": 33, "mamba_expand": 1, "num_attention_heads": 3, "num_key_value_heads": 3, "kq_head_dim": 6,
                    "mamba_d_state": 3, "mamba_d_conv": 5, "mamba_dt_rank": 1, "intermediate_size": 23, "vocab_size": 53,
                    "num_hidden_layers": 2, "num_memory_tokens": 1, "sliding_window": 7, "global_attn_idx": [1]}, 41, "F32"),
    "mqa": ({"num_hidden_layers": 2, "num_key_value_heads": 1, "kv_reuse_group": [[0, 1]], "global_attn_idx": []}, 48, "F32"),
    "mha": ({"num_hidden_layers": 2, "num_key_value_heads": 4}, 48, "F32"),
    "conv_taps_2": ({"mamba_d_conv": 2, "mamba_d_state": 7, "num_hidden_layers": 2, "global_attn_idx": [0]}, 48, "F32"),
    "states_16": ({"mamba_d_state": 16, "num_hidden_layers": 2, "global_attn_idx": [1], "attn_hidden_size": 24}, 48, "F32"),
    "bf16_checkpoint": ({"torch_dtype": "bfloat16", "kv_reuse_group": [[1, 2]], "global_attn_idx": [0]}, 48, "BF16"),
    "f16_checkpoint": ({"torch_dtype": "float16", "kv_reuse_group": [[1, 2]], "global_attn_idx": [0]}, 48, "F16"),
    "mixed_dtypes": ({"kv_reuse_group": [[1, 2]], "global_attn_idx": [0], "tie_word_embeddings": False}, 48, "mixed"),
    "sharded": ({"num_hidden_layers": 2, "kv_reuse_group": [[0, 1]], "global_attn_idx": []}, 48, "shards"),
}


# ------------------------------------------------------------------------------------------------------------ random weights

def make_tensors(config, seed):
    """Random weights under which every part of the model has work to do."""
    s = oracle.settings(config)
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    uniform = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    norm = lambda *shape: 1 + 0.2 * normal(*shape)
    tensors = {"model.embed_tokens.weight": normal(s.vocab, s.hidden) * 0.7}
    if s.meta:
        tensors["model.memory_tokens"] = normal(s.meta, s.hidden) * 0.7
    for layer in range(s.layers):
        p, m = f"model.layers.{layer}.", f"model.layers.{layer}.mamba."
        kind, producer = s.kinds[layer], s.producer[layer] == layer
        tensors[p + "input_layernorm.weight"] = norm(s.hidden)
        rows = []                                                       # u has elements of order 1, so has rows / sqrt(D) times u
        if kind in "ha":
            sharp = 1.5 if s.kq_norm == "none" else 1.0                 # scores get a spread of about sharp^2
            rows.append(normal(s.heads * s.dk, s.hidden) * sharp)
            if producer:
                rows += [normal(s.kv_heads * s.dk, s.hidden) * sharp, normal(s.kv_heads * s.dv, s.hidden)]
        if kind in "hm":
            rows += [normal(s.inner, s.hidden), normal(s.inner, s.hidden) * 1.3]
        tensors[m + "in_proj.weight"] = torch.cat(rows) / math.sqrt(s.hidden)
        count = tensors[m + "in_proj.weight"].shape[0]
        width = {"h": s.heads * s.dv, "a": s.heads * s.dv, "m": s.inner}[kind]
        if kind == "h" and s.fusion == "concat":
            width += s.inner
        gain = 1.2 if kind == "h" and s.fusion in ("mean_of_norms", "learned_gate") else 1.6
        tensors[m + "out_proj.weight"] = normal(s.hidden, width) * gain / math.sqrt(width)
        if s.proj_bias:
            tensors[m + "in_proj.bias"] = normal(count) * 0.3
            tensors[m + "out_proj.bias"] = normal(s.hidden) * 0.3
        if kind in "ha" and s.kq_norm != "none":
            per_head = s.kq_norm == "perhead-rms"
            tensors[m + "self_attn.q_norm.weight"] = 1.5 * norm(*((s.heads, s.dk) if per_head else (s.dk,)))
            if producer:
                tensors[m + "self_attn.k_norm.weight"] = 1.5 * norm(*((s.kv_heads, s.dk) if per_head else (s.dk,)))
        if kind in "hm":
            tensors[m + "conv1d.weight"] = normal(s.inner, 1, s.taps) * 1.2 / math.sqrt(s.taps)
            if s.conv_bias:
                tensors[m + "conv1d.bias"] = normal(s.inner) * 0.4
            tensors[m + "x_proj.0.weight"] = normal(s.rank + 2 * s.states, s.inner) * 2.0 / math.sqrt(s.inner)
            tensors[m + "dt_proj.0.weight"] = (2 * uniform(s.inner, s.rank) - 1) / math.sqrt(s.rank)
            # Mamba's recipe: softplus(bias) is log-uniform in [1e-3, 1e-1]; here up to 0.5 for every other channel
            top = torch.where(torch.arange(s.inner) % 2 == 0, 0.1, 0.5).to(torch.float64)
            dt = torch.exp(math.log(1e-3) + uniform(s.inner) * (torch.log(top) - math.log(1e-3)))
            tensors[m + "dt_proj.0.bias"] = dt + torch.log(-torch.expm1(-dt))
            steps = torch.arange(1, s.states + 1, dtype=torch.float64).repeat(s.inner, 1)
            tensors[m + "A_log.0"] = torch.log(steps) + 0.2 * normal(s.inner, s.states)
            tensors[m + "D.0"] = 1 + 0.3 * normal(s.inner)
            if s.inner_norms:
                tensors[m + "dt_layernorm.weight"] = norm(s.rank)
                tensors[m + "B_layernorm.weight"] = norm(s.states)
                tensors[m + "C_layernorm.weight"] = norm(s.states)
        if kind == "h" and s.fusion in ("mean_of_norms", "learned_gate"):
            tensors[m + "pre_avg_layernorm1.weight"] = norm(s.inner)
            tensors[m + "pre_avg_layernorm2.weight"] = norm(s.inner)
            if s.fusion == "learned_gate":
                tensors[m + "fusion_gate.weight"] = normal(s.inner)
        if s.mlp_width:
            e = p + "moe.experts.0."
            tensors[p + "pre_moe_layernorm.weight"] = norm(s.hidden)
            if s.act == "silu":
                tensors[e + "gate_proj.weight"] = normal(s.mlp_width, s.hidden) * 1.2 / math.sqrt(s.hidden)
            tensors[e + "up_proj.weight"] = normal(s.mlp_width, s.hidden) * 1.2 / math.sqrt(s.hidden)
            tensors[e + "down_proj.weight"] = normal(s.hidden, s.mlp_width) * 0.9 / math.sqrt(s.mlp_width)
    tensors["model.final_layernorm.weight"] = norm(s.hidden)
    if not s.tied:
        tensors["lm_head.weight"] = normal(s.vocab, s.hidden) * 0.7
    return tensors


def store(tensors, storage):
    kinds = {"F32": [torch.float32], "shards": [torch.float32], "BF16": [torch.bfloat16], "F16": [torch.float16],
             "mixed": [torch.float32, torch.bfloat16, torch.float16]}[storage]
    return {name: tensors[name].to(kinds[i % len(kinds)]).contiguous() for i, name in enumerate(sorted(tensors))}


def write_checkpoint(folder, config, tensors, storage):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")
    if storage != "shards":
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    count, weight_map = 3, {}
    for i in range(count):                                              # dealt out, so that each layer lies in several shards
        shard = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::count]}
        weight_map.update({name: shard for name in part})
        save_file(part, os.path.join(folder, shard), metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file, indent=1, sort_keys=True)
        file.write("\n")


# -------------------------------------------------------------------------------------------------------------------- checks

def check(condition, *message):
    if not condition:
        raise SystemExit("check failed: " + " ".join(str(part) for part in message))


def difference(a, b):
    return (a - b).abs().max().item()


def check_weights_matter(name, config, tensors, ids, logits):
    """Each tensor, moved a little in its last quarter of rows, must move the logits; and every config switch must bite."""
    weakest = (math.inf, None)
    for tensor_name in tensors:
        moved = dict(tensors)
        changed = tensors[tensor_name].to(torch.float64).clone()
        changed.view(-1)[-max(1, changed.numel() // 4):] *= 1.05
        moved[tensor_name] = changed
        delta = difference(oracle.forward(config, moved, ids), logits)
        weakest = min(weakest, (delta, tensor_name))
        check(delta > 1e-4 * logits.abs().max().item(), name, tensor_name, "hardly reaches the logits:", delta)
    return weakest


def check_conventions_matter(name, config, tensors, ids, logits):
    """Mistakes an implementation could make must show: each is tried here and must move the logits far beyond rounding."""
    s, scale, tried = oracle.settings(config), logits.abs().max().item(), {}
    attends = any(kind in "ha" for kind in s.kinds)

    def attempt(what, patched=None, **changes):
        saved = {key: getattr(oracle, key) for key in (patched or {})}
        for key, value in (patched or {}).items():
            setattr(oracle, key, value)
        try:
            tried[what] = difference(oracle.forward({**config, **changes}, tensors, ids), logits) / scale
        finally:
            for key, value in saved.items():
                setattr(oracle, key, value)

    windowed = any(kind in "ha" and oracle.window_of(s, i) is not None for i, kind in enumerate(s.kinds))
    if windowed:
        attempt("window + 1", sliding_window=s.window + 1)
        attempt("window - 1", sliding_window=s.window - 1)
        attempt("no window", sliding_window=None)
        if s.meta:
            attempt("meta tokens evicted", {"sees": lambda s, layer, i, j: j <= i and (
                oracle.window_of(s, layer) is None or i - j <= oracle.window_of(s, layer))})
            attempt("one more position kept", {"sees": lambda s, layer, i, j: j <= i and (
                oracle.window_of(s, layer) is None or i - j <= oracle.window_of(s, layer) or j < s.meta + 1)})
    if attends and s.rope:
        attempt("no rotary", rope=False)
        for other in ("default", "ntk", "dynamic_ntk"):
            if other != s.rope_type and s.orig_positions != s.max_positions:
                length_matters = other != "dynamic_ntk" and s.rope_type != "dynamic_ntk" or len(ids) + s.meta > s.orig_positions
                if length_matters:
                    attempt("rope " + other, rope_type=other)

        def interleaved(s, x, position):
            order = [i // 2 + (i % 2) * (s.dk // 2) for i in range(s.dk)]      # pairs (2i, 2i+1) in place of (i, i + dk/2)
            inverse = [order.index(i) for i in range(s.dk)]
            return plain(s, x[:, inverse], position)[:, order]
        plain = oracle.rotate
        attempt("rotary in interleaved pairs", {"rotate": interleaved})
        if s.meta:
            attempt("meta tokens without positions", {"rotate": lambda s, x, t: plain(s, x, max(0, t - s.meta))})
        if s.rope_type == "dynamic_ntk":
            base = oracle.rotary_base
            attempt("base of p, not p + 1", {"rotary_base": lambda s, t: base(s, t - 1)})
            attempt("base of the whole length", {"rotary_base": lambda s, t: base(s, s.meta + len(ids) - 1)})
    attempt("eps times ten", rms_norm_eps=s.eps * 10)
    for what, moved in tried.items():
        limit = 1e-7 if what == "eps times ten" else 2e-4
        check(moved > limit, name, "would not notice:", what, moved)
    return {what: moved for what, moved in tried.items() if what != "eps times ten"}


def make(name, out):
    changes, count, storage = CONFIGURATIONS[name]
    config = {key: value for key, value in {**BASE, **changes}.items() if value != DROP}
    seed = zlib.crc32(name.encode()) + 1000 * SALT.get(name, 0)
    s = oracle.settings(config)
    folder = os.path.join(out, name)
    write_checkpoint(folder, config, store(make_tensors(config, seed), storage), storage)

    # from here on only what was written counts
    config, tensors = oracle.load(folder)
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(0, s.vocab, (count,), generator=generator)
    ids[0] = config["bos_token_id"]
    ids[count // 2] = s.vocab - 1                                       # the last row of the embedding is looked up
    ids[count // 2 + 1] = ids[count // 2]                               # and a token is repeated
    ids = ids.tolist()
    probe = []
    logits = oracle.forward(config, tensors, ids, probe=probe)
    largest, spread = logits.abs().max().item(), logits.std().item()
    check(list(logits.shape) == [count, s.vocab] and torch.isfinite(logits).all(), name, "shape or non-finite logits")
    check(0.7 < spread < 6 and largest < 40, name, "logits out of range", spread, largest)

    # the second evaluation
    incremental = oracle.forward_incremental(config, tensors, ids)
    check(difference(incremental, logits) < 1e-10, name, "token by token differs by", difference(incremental, logits))
    # causality, and early tokens reach the end
    other = list(ids)
    other[2] = (ids[2] + 17) % s.vocab
    moved = oracle.forward(config, tensors, other)
    check(difference(moved[:2], logits[:2]) == 0, name, "the future reaches the past")
    reach = (moved - logits).abs().amax(dim=1)
    if any(kind != "a" or oracle.window_of(s, layer) is None for layer, kind in enumerate(s.kinds)):
        check(reach[3:].min().item() > 1e-9 and reach[-1].item() > 1e-7, name, "an early id does not reach the end", reach)
    # attention is neither uniform nor one-hot
    entropies = []
    for layer, head, p in probe:
        rows = p[s.meta + 8:]
        seen = (rows > 0).sum(dim=1).double()
        entropy = -(rows * torch.log(rows.clamp(min=1e-300))).sum(dim=1) / torch.log(seen.clamp(min=2))
        entropies.append(entropy.mean().item())
        check(0.02 < entropies[-1] < 0.985, name, "degenerate attention in layer", layer, "head", head, entropies[-1])
    weakest = check_weights_matter(name, config, tensors, ids, logits)
    tried = check_conventions_matter(name, config, tensors, ids, logits)
    # how far plain float32 arithmetic strays: what a tolerance must leave room for
    rounding = difference(oracle.forward(config, tensors, ids, dtype=torch.float32).double(), logits) / largest
    check(rounding < ROUNDING_LIMIT, name, "is too sensitive to rounding", rounding)

    save_file({"ids": torch.tensor(ids, dtype=torch.int32), "logits": logits.to(torch.float32).contiguous()},
              os.path.join(folder, "golden.safetensors"))
    size = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
    check(size <= FOLDER_LIMIT, name, "takes", size, "bytes")
    written = load_file(os.path.join(folder, "golden.safetensors"))
    digest = hashlib.sha256(written["logits"].numpy().tobytes()).hexdigest()[:12]
    least = min(tried.items(), key=lambda item: item[1]) if tried else ("-", 0)
    print(f"{name:26} T {count:3} V {s.vocab:3} max|logit| {largest:6.2f} std {spread:5.2f} entropy "
          f"{min(entropies, default=0):.2f}..{max(entropies, default=0):.2f} f32 {rounding:.1e} "
          f"weakest tensor {weakest[0] / largest:.1e} least mistake {least[1]:.1e} ({least[0]}) {size:6} bytes {digest}", flush=True)
    return size


def main():
    parser = argparse.ArgumentParser(description="write and check the golden checkpoints")
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
    parser.add_argument("--only", nargs="*", choices=list(CONFIGURATIONS), metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        total = sum(make(name, arguments.out) for name in (arguments.only or CONFIGURATIONS))
    check(total < TOTAL_LIMIT, "all folders together take", total, "bytes")
    print(f"{len(arguments.only or CONFIGURATIONS)} configurations, {total} bytes")


if __name__ == "__main__":
    main()
