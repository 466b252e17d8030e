# SPDX-License-Identifier: Apache-2.0
"""A plain PyTorch oracle for hybrid-head language models: the whole forward pass in float64.

It is meant to be read and to be right, not to be fast: one pass over the whole sequence, with an explicit attention mask and an
explicit loop over tokens for the state-space scan. `forward_incremental` is a second evaluation, one token at a time with an explicit
state per layer (cached keys and values that are evicted, convolution tail, SSM state); the two must agree.

    python hymba_oracle.py FOLDER --ids 1,2,3 --out FILE.safetensors
"""
import argparse
import json
import math
import os
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file


# ---------------------------------------------------------------------------------------------------------------------- loading

def load(folder):
    """-> (config: dict from config.json, tensors: name -> stored tensor in its stored type)."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        tensors = {}
        for shard in sorted(set(weight_map.values())):
            for name, tensor in load_file(os.path.join(folder, shard)).items():
                assert weight_map[name] == shard, f"{name} lies in {shard}, the index says {weight_map.get(name)}"
                tensors[name] = tensor
        assert set(tensors) == set(weight_map)
    else:
        tensors = load_file(os.path.join(folder, "model.safetensors"))
    return config, tensors


def settings(config):
    """The configuration with every default filled in and every derived size worked out."""
    get = lambda key, default: default if config.get(key) is None else config[key]
    s = SimpleNamespace()
    s.vocab = config["vocab_size"]
    s.hidden = config["hidden_size"]
    s.mlp_width = get("intermediate_size", 0)
    s.layers = config["num_hidden_layers"]
    s.heads = config["num_attention_heads"]
    s.kv_heads = get("num_key_value_heads", s.heads)
    s.inner = int(round(get("mamba_expand", 2) * s.hidden))
    s.states = get("mamba_d_state", 16)
    s.taps = get("mamba_d_conv", 4)
    rank = get("mamba_dt_rank", "auto")
    s.rank = math.ceil(s.hidden / 16) if rank == "auto" else rank
    attn_hidden = get("attn_hidden_size", -1)
    attn_hidden = s.hidden if attn_hidden == -1 else attn_hidden
    s.dk = get("kq_head_dim", -1)
    s.dk = attn_hidden // s.heads if s.dk == -1 else s.dk
    s.dv = get("v_head_dim", -1)
    s.dv = s.inner // s.heads if s.dv == -1 else s.dv
    s.kinds = get("layer_type", ["h"] * s.layers)
    s.fusion = get("hymba_fusion", "mean_of_norms")
    s.conv_bias = get("mamba_conv_bias", True)
    s.proj_bias = get("mamba_proj_bias", False)
    s.inner_norms = get("mamba_inner_layernorms", True)
    s.kq_norm = get("kq_norm", "none")
    s.meta = get("num_memory_tokens", 0)
    s.window = config.get("sliding_window")
    s.global_layers = get("global_attn_idx", [])
    s.producer = list(range(s.layers))                      # the layer whose keys and values layer i reads
    for group in get("kv_reuse_group", []):
        for layer in group:
            s.producer[layer] = min(group)
    s.rope = get("rope", True)
    s.rope_theta = float(get("rope_theta", 10000.0))
    s.rope_type = get("rope_type", "default")
    s.max_positions = get("max_position_embeddings", 0)
    s.orig_positions = get("orig_max_position_embeddings", s.max_positions)
    s.eps = get("rms_norm_eps", 1e-6)
    s.tied = get("tie_word_embeddings", True)
    s.act = get("mlp_hidden_act", "silu")

    assert len(s.kinds) == s.layers and set(s.kinds) <= set("ham"), s.kinds
    assert s.fusion in ("mean_of_norms", "sum", "concat", "learned_gate"), s.fusion
    assert s.kq_norm in ("none", "rms", "perhead-rms"), s.kq_norm
    assert s.rope_type in ("default", "ntk", "dynamic_ntk"), s.rope_type
    assert s.act in ("silu", "relu2"), s.act
    if set(s.kinds) & set("ha"):                            # a model without attention may name any head counts and widths
        assert s.heads % s.kv_heads == 0 and (s.dk % 2 == 0 or not s.rope)
    for layer in range(s.layers):                           # a reader sees exactly the positions that its producer keeps
        if s.producer[layer] != layer:
            assert s.kinds[layer] in "ha" and s.kinds[s.producer[layer]] in "ha"
            assert window_of(s, layer) == window_of(s, s.producer[layer])
    if "h" in s.kinds and s.fusion != "concat":
        assert s.heads * s.dv == s.inner, "these fusions need branches of one width"
    return s


def window_of(s, layer):
    """The window of a layer, None when the layer is global."""
    return None if s.window is None or layer in s.global_layers else s.window


# ---------------------------------------------------------------------------------------------------------------------- pieces

def rms_norm(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


def silu(x):
    return x * torch.sigmoid(x)


def rotary_base(s, position):
    theta, power = s.rope_theta, s.dk / (s.dk - 2)
    if s.rope_type == "ntk":
        return theta * (2 * s.max_positions / s.orig_positions - 1) ** power
    if s.rope_type == "dynamic_ntk":
        length = position + 1
        if length > s.orig_positions:
            return theta * (2 * length / s.orig_positions - 1) ** power
    return theta


def rotate(s, x, position):
    """Rotary embedding of one token's heads x [heads, dk] at a position; the first half is paired with the second half."""
    if not s.rope:
        return x
    half = s.dk // 2
    base = rotary_base(s, position)
    angle = torch.tensor([position * base ** (-2.0 * i / s.dk) for i in range(half)], dtype=torch.float64).to(x.dtype)
    first, second = x[:, :half], x[:, half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=1)


def sees(s, layer, i, j):
    """Does position i see position j in this layer?"""
    if j > i:
        return False
    window = window_of(s, layer)
    return window is None or i - j <= window or j < s.meta


def split_projection(s, layer, rows):
    """in_proj's output rows [..., rows] -> the named parts that this kind of layer has."""
    kind, parts = s.kinds[layer], []
    if kind in "ha":
        parts.append(("q", s.heads * s.dk))
        if s.producer[layer] == layer:
            parts += [("k", s.kv_heads * s.dk), ("v", s.kv_heads * s.dv)]
    if kind in "hm":
        parts += [("x_ssm", s.inner), ("z", s.inner)]
    assert rows.shape[-1] == sum(size for _, size in parts), (layer, rows.shape, parts)
    out, at = {}, 0
    for name, size in parts:
        out[name] = rows[..., at:at + size]
        at += size
    return out


class Weights:
    """The tensors upcast to the computing type; remembers which were asked for."""

    def __init__(self, tensors, dtype):
        self.tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        self.used = set()

    def __call__(self, name):
        self.used.add(name)
        return self.tensors[name]


def fuse(s, w, p, attn, ssm):
    """p: prefix of the layer's mamba tensors; attn and ssm: the branches' outputs, None where the layer lacks one."""
    if attn is None:
        return ssm
    if ssm is None:
        return attn
    if s.fusion == "sum":
        return attn + ssm
    if s.fusion == "concat":
        return torch.cat([attn, ssm], dim=-1)
    attn = rms_norm(attn, w(p + "pre_avg_layernorm1.weight"), s.eps)
    ssm = rms_norm(ssm, w(p + "pre_avg_layernorm2.weight"), s.eps)
    if s.fusion == "learned_gate":
        gate = torch.sigmoid(w(p + "fusion_gate.weight"))
        return gate * attn + (1 - gate) * ssm
    return (attn + ssm) / 2


def linear(s, w, name, x):
    y = x @ w(name + ".weight").T
    return y + w(name + ".bias") if s.proj_bias else y


def mlp(s, w, p, v):
    p += "moe.experts.0."
    up = v @ w(p + "up_proj.weight").T
    if s.act == "relu2":
        mid = torch.clamp(up, min=0) ** 2
    else:
        mid = silu(v @ w(p + "gate_proj.weight").T) * up
    return mid @ w(p + "down_proj.weight").T


# --------------------------------------------------------------------------------------------------------------- one full pass

def attention_full(s, w, p, layer, part, shared, probe):
    total = part["q"].shape[0]
    q = part["q"].reshape(total, s.heads, s.dk)
    if s.kq_norm != "none":
        q = rms_norm(q, w(p + "self_attn.q_norm.weight"), s.eps)                 # weight [dk] or [H, dk]
    q = torch.stack([rotate(s, q[t], t) for t in range(total)])
    if s.producer[layer] == layer:
        k = part["k"].reshape(total, s.kv_heads, s.dk)
        if s.kq_norm != "none":
            k = rms_norm(k, w(p + "self_attn.k_norm.weight"), s.eps)
        k = torch.stack([rotate(s, k[t], t) for t in range(total)])
        shared[layer] = (k, part["v"].reshape(total, s.kv_heads, s.dv))
    k, v = shared[s.producer[layer]]
    mask = torch.tensor([[sees(s, layer, i, j) for j in range(total)] for i in range(total)])
    outputs = []
    for head in range(s.heads):
        kv = head * s.kv_heads // s.heads
        scores = q[:, head] @ k[:, kv].T / math.sqrt(s.dk)
        scores = scores.masked_fill(~mask, float("-inf"))
        probabilities = torch.softmax(scores, dim=-1)
        if probe is not None:
            probe.append((layer, head, probabilities))
        outputs.append(probabilities @ v[:, kv])
    return torch.cat(outputs, dim=-1)                                              # [T, H*dv]


def ssm_full(s, w, p, part):
    x, z = part["x_ssm"], part["z"]
    total = x.shape[0]
    taps = w(p + "conv1d.weight")                                                  # [E, 1, K]; the last tap meets the newest token
    c = torch.zeros_like(x)
    for t in range(total):
        for tap in range(s.taps):
            source = t - (s.taps - 1) + tap
            if source >= 0:
                c[t] += taps[:, 0, tap] * x[source]
    if s.conv_bias:
        c = c + w(p + "conv1d.bias")
    c = silu(c)
    dt, b, cc = torch.split(c @ w(p + "x_proj.0.weight").T, [s.rank, s.states, s.states], dim=-1)
    if s.inner_norms:
        dt = rms_norm(dt, w(p + "dt_layernorm.weight"), s.eps)
        b = rms_norm(b, w(p + "B_layernorm.weight"), s.eps)
        cc = rms_norm(cc, w(p + "C_layernorm.weight"), s.eps)
    delta = dt @ w(p + "dt_proj.0.weight").T + w(p + "dt_proj.0.bias")
    delta = torch.logaddexp(delta, torch.zeros_like(delta))                        # softplus
    a = -torch.exp(w(p + "A_log.0"))                                               # [E, N]
    h = torch.zeros_like(a)
    y = torch.zeros_like(x)
    for t in range(total):
        h = torch.exp(delta[t][:, None] * a) * h + (delta[t] * c[t])[:, None] * b[t][None, :]
        y[t] = h @ cc[t] + w(p + "D.0") * c[t]
    return y * silu(z)


def forward(config, tensors, ids, dtype=torch.float64, probe=None):
    """Logits [T, V] of every prompt position. A list given as `probe` receives (layer, head, attention probabilities)."""
    s = settings(config)
    w = Weights(tensors, dtype)
    embed = w("model.embed_tokens.weight")
    x = embed[torch.as_tensor(ids, dtype=torch.long)]
    if s.meta:
        x = torch.cat([w("model.memory_tokens"), x])
    shared = {}
    for layer in range(s.layers):
        p = f"model.layers.{layer}."
        m = p + "mamba."
        u = rms_norm(x, w(p + "input_layernorm.weight"), s.eps)
        part = split_projection(s, layer, linear(s, w, m + "in_proj", u))
        attn = attention_full(s, w, m, layer, part, shared, probe) if s.kinds[layer] in "ha" else None
        ssm = ssm_full(s, w, m, part) if s.kinds[layer] in "hm" else None
        x = x + linear(s, w, m + "out_proj", fuse(s, w, m, attn, ssm))
        if s.mlp_width:
            x = x + mlp(s, w, p, rms_norm(x, w(p + "pre_moe_layernorm.weight"), s.eps))
    x = rms_norm(x[s.meta:], w("model.final_layernorm.weight"), s.eps)
    logits = x @ (embed if s.tied else w("lm_head.weight")).T
    unused = set(tensors) - w.used
    assert not unused, f"tensors that the forward pass never reads: {sorted(unused)}"
    return logits


# ------------------------------------------------------------------------------------------------------------- token by token

def forward_incremental(config, tensors, ids, dtype=torch.float64):
    """The same logits, one token at a time: nothing but each layer's state is carried from one token to the next."""
    s = settings(config)
    w = Weights(tensors, dtype)
    embed = w("model.embed_tokens.weight")
    states = [SimpleNamespace(keys={}, values={},                                  # position -> [G, dk], [G, dv]
                              tail=torch.zeros(s.taps - 1, s.inner, dtype=dtype),  # the last K-1 inputs of the convolution
                              h=torch.zeros(s.inner, s.states, dtype=dtype)) for _ in range(s.layers)]

    def attention_step(m, layer, part, position):
        own = states[s.producer[layer]]
        q = part["q"].reshape(s.heads, s.dk)
        if s.kq_norm != "none":
            q = rms_norm(q, w(m + "self_attn.q_norm.weight"), s.eps)
        q = rotate(s, q, position)
        if s.producer[layer] == layer:
            k = part["k"].reshape(s.kv_heads, s.dk)
            if s.kq_norm != "none":
                k = rms_norm(k, w(m + "self_attn.k_norm.weight"), s.eps)
            own.keys[position] = rotate(s, k, position)
            own.values[position] = part["v"].reshape(s.kv_heads, s.dv)
            window = window_of(s, layer)
            expired = position - window - 1 if window is not None else -1
            if expired >= s.meta:                                                  # exactly one position leaves the window
                del own.keys[expired], own.values[expired]
        kept = sorted(own.keys)
        out = []
        for head in range(s.heads):
            kv = head // (s.heads // s.kv_heads)
            keys = torch.stack([own.keys[j][kv] for j in kept])
            values = torch.stack([own.values[j][kv] for j in kept])
            out.append(torch.softmax(keys @ q[head] / math.sqrt(s.dk), dim=0) @ values)
        return torch.cat(out)

    def ssm_step(m, layer, part):
        state = states[layer]
        inputs = torch.cat([state.tail, part["x_ssm"][None]])                      # [K, E], newest last
        state.tail = inputs[1:]
        c = (inputs * w(m + "conv1d.weight")[:, 0].T).sum(dim=0)
        if s.conv_bias:
            c = c + w(m + "conv1d.bias")
        c = silu(c)
        low = w(m + "x_proj.0.weight") @ c
        dt, b, cc = low[:s.rank], low[s.rank:s.rank + s.states], low[s.rank + s.states:]
        if s.inner_norms:
            dt = rms_norm(dt, w(m + "dt_layernorm.weight"), s.eps)
            b = rms_norm(b, w(m + "B_layernorm.weight"), s.eps)
            cc = rms_norm(cc, w(m + "C_layernorm.weight"), s.eps)
        delta = torch.log1p(torch.exp(w(m + "dt_proj.0.weight") @ dt + w(m + "dt_proj.0.bias")))
        decay = torch.exp(-torch.exp(w(m + "A_log.0")) * delta[:, None])
        state.h = decay * state.h + torch.outer(delta * c, b)
        return (state.h @ cc + w(m + "D.0") * c) * silu(part["z"])

    def step(x, position):
        for layer in range(s.layers):
            p = f"model.layers.{layer}."
            m = p + "mamba."
            u = rms_norm(x, w(p + "input_layernorm.weight"), s.eps)
            part = split_projection(s, layer, linear(s, w, m + "in_proj", u))
            attn = attention_step(m, layer, part, position) if s.kinds[layer] in "ha" else None
            ssm = ssm_step(m, layer, part) if s.kinds[layer] in "hm" else None
            x = x + linear(s, w, m + "out_proj", fuse(s, w, m, attn, ssm))
            if s.mlp_width:
                x = x + mlp(s, w, p, rms_norm(x, w(p + "pre_moe_layernorm.weight"), s.eps))
        return x

    for position in range(s.meta):
        step(w("model.memory_tokens")[position], position)
    rows = []
    for t, token in enumerate(ids):
        x = step(embed[int(token)], s.meta + t)
        x = rms_norm(x, w("model.final_layernorm.weight"), s.eps)
        rows.append((embed if s.tied else w("lm_head.weight")) @ x)
    return torch.stack(rows)


def main():
    parser = argparse.ArgumentParser(description="logits of every prompt position, computed in float64")
    parser.add_argument("folder")
    parser.add_argument("--ids", required=True, help="token ids, comma separated")
    parser.add_argument("--out", required=True, help="safetensors file that receives `logits` (F32 [T, V])")
    parser.add_argument("--incremental", action="store_true", help="evaluate token by token instead of in one pass")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, tensors = load(arguments.folder)
    ids = [int(part) for part in arguments.ids.split(",")]
    evaluate = forward_incremental if arguments.incremental else forward
    with torch.no_grad():
        logits = evaluate(config, tensors, ids)
    save_file({"logits": logits.to(torch.float32).contiguous()}, arguments.out)
    best = int(logits[-1].argmax())
    print(f"logits {list(logits.shape)}, max|logit| {logits.abs().max().item():.4f}, best next id {best}")


if __name__ == "__main__":
    main()
