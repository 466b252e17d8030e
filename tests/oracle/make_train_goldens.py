# SPDX-License-Identifier: Apache-2.0
"""Builds the goldens of training: small random checkpoints, a batch of sequences, the loss and its gradients by autograd in float64.

    python make_train_goldens.py [--out ../golden] [--only NAME ...]

Every folder train-NAME holds config.json, model.safetensors (F32), batch.json and gradients.safetensors (the float64 gradients rounded to
F32, under the weights' names). train-steps holds ten steps of torch.optim.AdamW in place of gradients. Everything follows from the
seeds. The script checks what it writes and stops at the first check that fails; see README.md.
"""
import argparse
import json
import os
import zlib
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

import hymba_oracle as oracle
import make_goldens as inference
import train_oracle as train
from make_goldens import BASE, DROP, check

FOLDER_LIMIT, TOTAL_LIMIT = 150_000, 1_500_000
ROUNDING_LIMIT = 2e-5                   # of a tensor's largest gradient: plain float32 arithmetic must stay this near
LENGTHS = [17, 1, 26, 6, 3]             # of the sequences; in the last one nothing is predicted
SALT = {}

# name -> changes to the configuration of that name in make_goldens.py, or to BASE where it has none
CONFIGURATIONS = {
    "hymba_tiny": {"num_hidden_layers": 4, "global_attn_idx": [0, 3], "kv_reuse_group": [[1, 2]], "layer_type": ["h"] * 4,
                   "conv_dim": DROP},
    "separate_groups": {"num_hidden_layers": 5, "hidden_size": 12, "kq_head_dim": 4, "mamba_d_state": 3, "intermediate_size": 9,
                        "global_attn_idx": [1, 4], "kv_reuse_group": [[0, 2, 3], [1, 4]],               # groups that interleave
                        "sliding_window": 6, "num_memory_tokens": 3},
    "window_smaller_than_meta": {"num_memory_tokens": 9, "sliding_window": 4},
    "attention_only": {},
    "ssm_only": {},
    "ssm_only_mlp": {},
    "mixed_kinds": {"intermediate_size": 10},
    "fusion_sum": {"rope": False, "kv_reuse_group": [[0, 1]], "global_attn_idx": []},
    "fusion_concat": {},
    "fusion_gate": {},
    "kq_norm_perhead": {},
    "proj_bias_kinds": {},
    "untied_output": {"mamba_d_state": 16, "mamba_conv_bias": False},
    "odd_sizes": {},
}

# ten steps: everything that is decayed and everything that is not; rates rise and fall; some steps are clipped
STEPS = {"num_hidden_layers": 3, "layer_type": ["h", "h", "a"], "kv_reuse_group": [[0, 1]], "global_attn_idx": [2], "sliding_window": 6,
         "num_memory_tokens": 3, "hymba_fusion": "learned_gate", "mamba_proj_bias": True, "kq_norm": "perhead-rms",
         "tie_word_embeddings": False, "vocab_size": 29, "intermediate_size": 10}
RATES = [5e-4, 1e-3, 1.5e-3, 2e-3, 2e-3, 2e-3, 1.7e-3, 1.2e-3, 6e-4, 1e-4]
STEP_LENGTHS = [[9, 4], [12], [5, 1, 7], [8, 8], [3, 11], [14], [2, 6, 4], [10, 5], [1, 13], [7, 7]]


def configuration_of(name):
    changes = inference.CONFIGURATIONS[name][0] if name in inference.CONFIGURATIONS else {}
    own = STEPS if name == "steps" else CONFIGURATIONS[name]
    return {key: value for key, value in {**BASE, **changes, **own}.items() if value != DROP}


def write_json(path, content):
    """A line per key, a line per entry of a list of objects."""
    def text(value):
        if isinstance(value, list) and isinstance(value[0], dict):
            return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
        return json.dumps(value)

    with open(path, "w", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(f"  {json.dumps(key)}: {text(value)}" for key, value in content.items()) + "\n}\n")


def random_sequences(lengths, vocab, generator, masked=()):
    """Next-token targets, about one in eight of them -1; none at all in the sequences of `masked`."""
    sequences = []
    for index, length in enumerate(lengths):
        ids = torch.randint(0, vocab, (length + 1,), generator=generator)
        if length > 4:
            ids[length // 2] = ids[1]                                   # a token is repeated
        targets = ids[1:].clone()
        targets[torch.rand(length, generator=generator) < 0.125] = -1
        if length == 1:
            targets[0] = ids[1]                                         # the lone token has something to predict
        if index in masked:
            targets[:] = -1
        sequences.append({"tokens": ids[:-1].tolist(), "targets": targets.tolist()})
    return sequences


def store(name, out):
    """Config and weights on disk; -> (folder, config, tensors as read back, generator)."""
    config, seed = configuration_of(name), zlib.crc32(("train-" + name).encode()) + 1000 * SALT.get(name, 0)
    folder = os.path.join(out, "train-" + name)
    tensors = inference.make_tensors(config, seed)
    if name == "steps":                                                 # a flatter output, so that not every step is clipped
        tensors["lm_head.weight"] *= 0.25
        tensors["model.final_layernorm.weight"] *= 0.25
    inference.write_checkpoint(folder, config, inference.store(tensors, "F32"), "F32")
    return folder, *oracle.load(folder), torch.Generator().manual_seed(seed + 1)


def size_of(folder):
    size = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
    check(size <= FOLDER_LIMIT, folder, "takes", size, "bytes")
    return size


# -------------------------------------------------------------------------------------------------------------------- checks

def check_directions(name, config, tensors, sequences, gradients, seed):
    """Along a random direction in each tensor the loss has the slope that its gradient says."""
    generator, h, worst = torch.Generator().manual_seed(seed + 2), 2e-5, 0.0
    w = {key: tensor.double() for key, tensor in tensors.items()}
    with torch.no_grad():
        for key, gradient in gradients.items():
            direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            up, down = (train.loss_of(config, {**w, key: w[key] + sign * h * direction}, sequences).item() for sign in (1, -1))
            error = abs((up - down) / (2 * h) - (gradient * direction).sum().item()) / gradient.norm().item()
            worst = max(worst, error)
            check(error < 1e-6, name, key, "the gradient is not the slope:", error)
    return worst


def check_mistakes(name, config, tensors, sequences, gradients):
    """Each likely mistake of a backward pass must move some gradient by more than a tenth of its largest element."""
    s, least = train.settings(config), (float("inf"), "-")

    def attempt(what, changed):
        nonlocal least
        moved = max(train.far(changed[key], gradients[key]) for key in gradients)
        check(moved > 0.1, name, "would not notice:", what, moved)
        least = min(least, (moved, what))

    def gradients_with(batch=sequences, **ops):
        w = train.parameters(tensors)
        return train.gradients_of(train.loss_of(config, w, batch, SimpleNamespace(**{**vars(train.PLAIN), **ops})), w)

    w = train.parameters(tensors)
    counts = [sum(target != -1 for target in sequence["targets"]) for sequence in sequences]
    alone = [train.loss_of(config, w, [sequence]) for count, sequence in zip(counts, sequences) if count]
    attempt("a mean of the sequences' means", train.gradients_of(torch.stack(alone).mean(), w))
    attempt("-1 predicted as a token", gradients_with([{**sequence, "targets": [max(0, target) for target in sequence["targets"]]}
                                                       for sequence in sequences]))
    if "h" in s.kinds or "a" in s.kinds:
        seen = set()

        def detached(q, k, v, mask, scale):
            first = v.data_ptr() not in seen                            # readers see the same storage again
            seen.add(v.data_ptr())
            return train.attend(q, k if first else k.detach(), v if first else v.detach(), mask, scale)
        if any(s.producer[layer] != layer for layer in range(s.layers)):
            attempt("readers give no gradient to shared keys and values", gradients_with(attend=detached))
        if any(window is not None and kind in "ha" for window, kind in zip(s.windows, s.kinds)):
            for shift in (-1, 1):
                saved, oracle.window_of = oracle.window_of, lambda s, layer: None if layer in s.global_layers else s.window + shift
                try:
                    attempt(f"window {shift:+}", gradients_with())
                finally:
                    oracle.window_of = saved
    if s.meta:
        changed = dict(gradients)
        w = train.parameters(tensors)
        first = train.loss_of(config, w, sequences[:1]) * counts[0] / sum(counts)
        changed["model.memory_tokens"] = train.gradients_of(first, w)["model.memory_tokens"]
        attempt("meta tokens learn from the first sequence only", changed)
    if "h" in s.kinds or "m" in s.kinds:
        attempt("the scan's state is not differentiated through time", gradients_with(scan=truncated_scan))
    return least


def truncated_scan(delta, x, b, c, a):
    decay, drive = torch.exp(delta[..., None] * a), (delta * x)[..., None] * b[:, :, None]
    h, states = torch.zeros_like(drive[:, 0]), []
    for d, u in zip(decay.unbind(1), drive.unbind(1)):
        h = d * h.detach() + u
        states.append(h)
    return (torch.stack(states, 1) @ c[..., None])[..., 0]


# ---------------------------------------------------------------------------------------------------------------------- goldens

def make(name, out):
    folder, config, tensors, generator = store(name, out)
    sequences = random_sequences(LENGTHS, config["vocab_size"], generator, masked=(len(LENGTHS) - 1,))
    predicted = sum(target != -1 for sequence in sequences for target in sequence["targets"])
    loss, gradients, worst = train.against_plain(config, tensors, sequences)
    check(worst < train.AGREE, name, "differs from hymba_oracle.py:", worst)
    check(set(gradients) == set(tensors), name, "tensors and gradients differ in names")
    for key, gradient in gradients.items():
        check(torch.isfinite(gradient).all() and gradient.abs().max() > 1e-5, name, key, "gets no gradient to speak of")
        check((gradient == 0).double().mean() < 0.5, name, key, "half of its gradient is zero")
    slope = check_directions(name, config, tensors, sequences, gradients, zlib.crc32(name.encode()))
    least = check_mistakes(name, config, tensors, sequences, gradients)
    single = train.parameters(tensors, torch.float32)
    single_loss = train.loss_of(config, single, sequences)
    rounding = max(train.far(gradient.double(), gradients[key]) for key, gradient in train.gradients_of(single_loss, single).items())
    check(rounding < ROUNDING_LIMIT, name, "is too sensitive to rounding", rounding)

    write_json(os.path.join(folder, "batch.json"), {"loss": loss, "predicted": predicted, "sequences": sequences})
    save_file({key: gradient.float().contiguous() for key, gradient in gradients.items()},
              os.path.join(folder, "gradients.safetensors"))
    size = size_of(folder)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    smallest = min(gradient.abs().max().item() for gradient in gradients.values())
    print(f"train-{name:26} loss {loss:.4f} gradients {smallest:.1e}..{largest:.1e} plain {worst:.1e} slope {slope:.1e} "
          f"f32 loss {abs(single_loss.item() / loss - 1):.1e} gradient {rounding:.1e} "
          f"least mistake {least[0]:.1e} ({least[1]}) {size} bytes", flush=True)
    return size


def run_steps(config, tensors, batches, dtype, rates=RATES, clip=1.0, **options):
    w = train.parameters(tensors, dtype)
    optimizer, losses, norms = train.optimizer_of(w, **options), [], []
    for rate, sequences in zip(rates, batches):
        optimizer.zero_grad()
        loss = train.loss_of(config, w, sequences)
        loss.backward()
        losses.append(loss.item())
        norms.append(train.update(w, optimizer, rate, clip).item())
    return losses, norms, {key: tensor.detach() for key, tensor in w.items()}


def make_steps(out):
    folder, config, tensors, generator = store("steps", out)
    batches = [random_sequences(lengths, config["vocab_size"], generator) for lengths in STEP_LENGTHS]
    losses, norms, final = run_steps(config, tensors, batches, torch.float64)
    clipped = sum(norm > 1 for norm in norms)
    check(3 <= clipped <= 7, "train-steps: steps clipped", clipped, norms)
    for key in tensors:
        check((final[key] - tensors[key]).abs().max() > 1e-3, "train-steps:", key, "hardly moves")
    distance = lambda one, other: max((one[key].double() - other[key]).abs().max().item() for key in final)
    single_losses, single_norms, single = run_steps(config, tensors, batches, torch.float32)
    rounding = distance(single, final)
    check(all(tensor.dim() == 2 for key, tensor in tensors.items() if key.endswith(train.DECAYED)), "train-steps: decay beyond matrices")
    mistaken = lambda **options: run_steps(config, tensors, batches, torch.float64, **options)
    mistakes = {"no decay": mistaken(weight_decay=0.0), "everything decays": mistaken(decayed=("",)),
                "another beta": mistaken(betas=(0.9, 0.951)), "rates a step late": mistaken(rates=RATES[1:] + RATES[-1:]),
                "no clipping": mistaken(clip=1e9)}
    for what, (_, _, moved) in mistakes.items():
        check(distance(moved, final) > 5 * rounding, "train-steps would not notice:", what, distance(moved, final))
    write_json(os.path.join(folder, "batch.json"), {
        "learning_rates": RATES, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "losses": losses,
        "gradient_norms": norms, "steps": [{"sequences": sequences} for sequences in batches]})
    save_file({key: tensor.float().contiguous() for key, tensor in final.items()}, os.path.join(folder, "final.safetensors"))
    size = size_of(folder)
    print(f"train-steps losses {losses[0]:.3f}..{losses[-1]:.3f} norms", *(f"{norm:.3f}" for norm in norms),
          f"f32: losses {max(abs(a / b - 1) for a, b in zip(single_losses, losses)):.1e} "
          f"norms {max(abs(a / b - 1) for a, b in zip(single_norms, norms)):.1e} weights {rounding:.1e}; mistakes",
          *(f"{what} {distance(moved, final):.1e}," for what, (_, _, moved) in mistakes.items()), size, "bytes", flush=True)
    return size


def main():
    parser = argparse.ArgumentParser(description="write and check the goldens of training")
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
    parser.add_argument("--only", nargs="*", choices=[*CONFIGURATIONS, "steps"], metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = arguments.only or [*CONFIGURATIONS, "steps"]
    total = sum(make_steps(arguments.out) if name == "steps" else make(name, arguments.out) for name in names)
    check(total < TOTAL_LIMIT, "all folders together take", total, "bytes")
    print(f"{len(names)} configurations, {total} bytes")


if __name__ == "__main__":
    main()
