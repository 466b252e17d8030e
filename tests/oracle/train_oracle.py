# SPDX-License-Identifier: Apache-2.0
"""The model of hymba_oracle.py as differentiable PyTorch: what a training step computes, gradients by autograd.

A batch holds sequences of different lengths. Each has the model's M meta tokens in front (positions 0 .. M-1, no loss on them) and starts
its state-space scan from zero. Sequences are padded at their ends, which no earlier position sees. The loss is the mean cross-entropy in
nats over the batch's targets other than -1. Of hymba_oracle.py only the reading of configurations is used; the arithmetic is written
again, batched.

    python train_oracle.py [FOLDER ...]     logits, and gradients of a loss, against hymba_oracle.py (default: every folder of ../golden)
"""
import argparse
import glob
import os
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import hymba_oracle as oracle

AGREE = 1e-10                       # of the largest element, in float64


# ---------------------------------------------------------------------------------------------------------------------- pieces

def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotary_table(s, count, dtype):
    """cos and sin [count, dk / 2] of positions 0 .. count-1."""
    positions = torch.arange(count, dtype=torch.float64)[:, None]
    bases = torch.tensor([oracle.rotary_base(s, position) for position in range(count)], dtype=torch.float64)[:, None]
    angles = positions * bases ** (-torch.arange(s.dk // 2, dtype=torch.float64) * 2 / s.dk)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, table):
    """x [B, positions, heads, dk]; the first half of a head is paired with its second half."""
    cos, sin = (part[:, None] for part in table)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def visible(count, window, meta):
    """[count, count], boolean: does position i (row) see position j (column)? `window` None: all before it."""
    i, j = torch.arange(count)[:, None], torch.arange(count)
    near = torch.ones(count, count, dtype=torch.bool) if window is None else (i - j <= window) | (j < meta)
    return (j <= i) & near


def attend(q, k, v, mask, scale):
    """q [B, H, positions, dk], k [B, G, positions, dk], v [B, G, positions, dv] -> [B, H, positions, dv]."""
    repeat = q.shape[1] // k.shape[1]                       # query head h reads key/value head h * G / H
    return F.scaled_dot_product_attention(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), mask, scale=scale)


def convolve(x, taps, bias):
    """Causal depthwise convolution of x [B, positions, E] with taps [E, 1, K]; the last tap meets the newest token."""
    return F.conv1d(F.pad(x.transpose(1, 2), (taps.shape[-1] - 1, 0)), taps, bias, groups=x.shape[-1]).transpose(1, 2)


def scan(delta, x, b, c, a):
    """h = exp(delta a) h + delta x b from zero, y = h . c, over positions.

    delta, x [B, positions, E]; b, c [B, positions, N]; a [E, N]; -> [B, positions, E]
    """
    decay = torch.exp(delta[..., None] * a)                 # [B, positions, E, N]
    drive = (delta * x)[..., None] * b[:, :, None]
    h, states = torch.zeros_like(drive[:, 0]), []
    for d, u in zip(decay.unbind(1), drive.unbind(1)):
        h = d * h + u
        states.append(h)
    return (torch.stack(states, 1) @ c[..., None])[..., 0]


PLAIN = SimpleNamespace(rms_norm=rms_norm, attend=attend, convolve=convolve, scan=scan)


# ------------------------------------------------------------------------------------------------------------------- the model

def settings(config):
    """hymba_oracle.py's settings and `windows`: per layer, None where it is global."""
    s = oracle.settings(config)
    listed = config.get("hymba_windows")                    # 0: global
    s.windows = [oracle.window_of(s, layer) for layer in range(s.layers)] if listed is None else [window or None for window in listed]
    assert len(s.windows) == s.layers and all(s.windows[layer] == s.windows[s.producer[layer]] for layer in range(s.layers))
    return s


def fuse(s, w, m, attn, ssm, ops):
    if attn is None or ssm is None:
        return ssm if attn is None else attn
    if s.fusion == "sum":
        return attn + ssm
    if s.fusion == "concat":
        return torch.cat([attn, ssm], -1)
    attn = ops.rms_norm(attn, w[m + "pre_avg_layernorm1.weight"], s.eps)
    ssm = ops.rms_norm(ssm, w[m + "pre_avg_layernorm2.weight"], s.eps)
    if s.fusion == "learned_gate":
        return torch.lerp(ssm, attn, torch.sigmoid(w[m + "fusion_gate.weight"]))
    return (attn + ssm) / 2


def attention_heads(s, w, m, layer, part, shared, table, masks, ops):
    def heads(name, count, width):
        return part[name].unflatten(-1, (count, width))

    def normed_and_rotated(x, name):
        if s.kq_norm != "none":
            x = ops.rms_norm(x, w[m + f"self_attn.{name}.weight"], s.eps)       # weight [dk] or [heads, dk]
        return (rotate(x, table) if s.rope else x).transpose(1, 2)

    q = normed_and_rotated(heads("q", s.heads, s.dk), "q_norm")
    if s.producer[layer] == layer:
        shared[layer] = (normed_and_rotated(heads("k", s.kv_heads, s.dk), "k_norm"),
                         heads("v", s.kv_heads, s.dv).transpose(1, 2))
    k, v = shared[s.producer[layer]]
    window = s.windows[layer]
    if window not in masks:
        masks[window] = visible(q.shape[2], window, s.meta)
    return ops.attend(q.to(v.dtype), k.to(v.dtype), v, masks[window], s.dk ** -0.5).transpose(1, 2).flatten(2)


def ssm_heads(s, w, m, part, ops):
    taps, a_log = w[m + "conv1d.weight"], w[m + "A_log.0"]
    x = F.silu(ops.convolve(part["x_ssm"], taps, w[m + "conv1d.bias"] if s.conv_bias else None))
    dt, b, c = F.linear(x, w[m + "x_proj.0.weight"]).split([s.rank, s.states, s.states], -1)
    if s.inner_norms:
        dt, b, c = (ops.rms_norm(value, w[m + name + "_layernorm.weight"], s.eps)
                    for value, name in ((dt, "dt"), (b, "B"), (c, "C")))
    delta = F.softplus(F.linear(dt, w[m + "dt_proj.0.weight"], w[m + "dt_proj.0.bias"]), threshold=40)
    y = ops.scan(*(value.to(a_log.dtype) for value in (delta, x, b, c)), -torch.exp(a_log))
    return (y + w[m + "D.0"] * x) * F.silu(part["z"])


def mlp(s, w, p, v):
    p += "moe.experts.0."
    up = F.linear(v, w[p + "up_proj.weight"])
    mid = F.relu(up).square() if s.act == "relu2" else F.silu(F.linear(v, w[p + "gate_proj.weight"])) * up
    return F.linear(mid, w[p + "down_proj.weight"])


def forward(s, w, tokens, ops=PLAIN):
    """s: settings(config); w: name -> tensor; tokens [B, T] -> logits [B, T, V]."""
    embed = w["model.embed_tokens.weight"]
    x = F.embedding(tokens, embed)
    if s.meta:
        x = torch.cat([w["model.memory_tokens"].expand(len(tokens), -1, -1), x], 1)
    table = rotary_table(s, x.shape[1], x.dtype) if s.rope else None
    shared, masks = {}, {}
    for layer in range(s.layers):
        p = f"model.layers.{layer}."
        m = p + "mamba."
        u = ops.rms_norm(x, w[p + "input_layernorm.weight"], s.eps)
        part = oracle.split_projection(s, layer, F.linear(u, w[m + "in_proj.weight"], w.get(m + "in_proj.bias")))
        attn = attention_heads(s, w, m, layer, part, shared, table, masks, ops) if s.kinds[layer] in "ha" else None
        ssm = ssm_heads(s, w, m, part, ops) if s.kinds[layer] in "hm" else None
        x = x + F.linear(fuse(s, w, m, attn, ssm, ops), w[m + "out_proj.weight"], w.get(m + "out_proj.bias"))
        if s.mlp_width:
            x = x + mlp(s, w, p, ops.rms_norm(x, w[p + "pre_moe_layernorm.weight"], s.eps))
    x = ops.rms_norm(x[:, s.meta:], w["model.final_layernorm.weight"], s.eps)
    return F.linear(x, embed if s.tied else w["lm_head.weight"])


# ---------------------------------------------------------------------------------------------------------------- loss, update

def pad(sequences):
    """[{"tokens": [...], "targets": [...]}, ...] -> tokens, targets [B, longest]; nothing is predicted from the padding."""
    longest = max(len(sequence["tokens"]) for sequence in sequences)
    assert all(len(sequence["tokens"]) == len(sequence["targets"]) for sequence in sequences)
    rows = lambda key, filler: torch.tensor([sequence[key] + [filler] * (longest - len(sequence[key])) for sequence in sequences])
    return rows("tokens", 0), rows("targets", -1)


def cross_entropy(logits, targets):
    """Mean over the targets other than -1, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def parameters(tensors, dtype=torch.float64):
    """Trainable copies of a checkpoint's tensors."""
    return {name: tensor.detach().to(dtype, copy=True).requires_grad_() for name, tensor in tensors.items()}


def loss_of(config, w, sequences, ops=PLAIN):
    tokens, targets = pad(sequences)
    return cross_entropy(forward(settings(config), w, tokens, ops), targets)


def gradients_of(loss, w):
    """name -> gradient; with a tied embedding its gradient is the sum over both uses."""
    return dict(zip(w, torch.autograd.grad(loss, list(w.values()))))


# Decayed: the matrices of projections, MLPs and embeddings. Not: norms, biases, A_log, D, convolutions, meta tokens, gates.
DECAYED = ("in_proj.weight", "out_proj.weight", "x_proj.0.weight", "dt_proj.0.weight", "gate_proj.weight", "up_proj.weight",
           "down_proj.weight", "embed_tokens.weight", "lm_head.weight")


def optimizer_of(w, decayed=DECAYED, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, **options):
    matrices = [tensor for name, tensor in w.items() if name.endswith(decayed)]
    others = [tensor for name, tensor in w.items() if not name.endswith(decayed)]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, eps=eps, **options)


def update(w, optimizer, rate, clip=1.0):
    """Clips the gradients that are there, moves the weights; -> the gradients' global norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(list(w.values()), clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm


# ----------------------------------------------------------------------------------------------------- against hymba_oracle.py

def far(ours, theirs):
    return (ours - theirs).abs().max().item() / theirs.abs().max().clamp(min=1e-300).item()


def plain_loss(config, w, sequences):
    """The loss through hymba_oracle.forward, one sequence at a time."""
    total, count = 0.0, 0
    for sequence in sequences:
        logits = oracle.forward(config, w, sequence["tokens"])
        for row, target in zip(logits, sequence["targets"]):
            if target != -1:
                total, count = total + torch.logsumexp(row, 0) - row[target], count + 1
    return total / count


def against_plain(config, tensors, sequences):
    """-> (loss, gradients, worst difference of the gradients from those of hymba_oracle.py, of each tensor's largest element)."""
    w = parameters(tensors)
    loss = loss_of(config, w, sequences)
    gradients = gradients_of(loss, w)
    other = plain_loss(config, w, sequences)
    worst = max(far(gradients[name], gradient) for name, gradient in gradients_of(other, w).items())
    return loss.item(), gradients, max(worst, abs(loss.item() / other.item() - 1))


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="holds the differentiable model against hymba_oracle.py on golden checkpoints")
    parser.add_argument("folders", nargs="*", default=sorted(map(os.path.dirname, glob.glob(here + "/../golden/*/golden.safetensors"))))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in arguments.folders:
        config, tensors = oracle.load(folder)
        golden = load_file(os.path.join(folder, "golden.safetensors"))
        ids = golden["ids"].tolist()
        with torch.no_grad():
            theirs = oracle.forward(config, tensors, ids)
            lone = {"tokens": ids[:9], "targets": [-1] * 9}                    # a shorter neighbour, so that there is padding
            ours = forward(settings(config), parameters(tensors), pad([{"tokens": ids, "targets": ids}, lone])[0])
        logits = max(far(ours[0], theirs), far(ours[1, :9], theirs[:9]))
        stored = far(ours[0].float(), golden["logits"])
        sequences = [{"tokens": ids[:20], "targets": ids[1:21]}, {"tokens": ids[21:22], "targets": ids[22:23]}]
        _, _, gradients = against_plain(config, tensors, sequences)
        print(f"{os.path.basename(os.path.abspath(folder)):26} logits {logits:.1e} (stored {stored:.1e}) gradients {gradients:.1e}",
              flush=True)
        assert logits < AGREE and gradients < AGREE and stored < 1e-6


if __name__ == "__main__":
    main()
