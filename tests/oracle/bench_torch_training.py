# SPDX-License-Identifier: Apache-2.0
"""Times training steps of train_oracle.py's model on the CPU: forward, backward, clipping, AdamW.

    python bench_torch_training.py [--config FOLDER] --threads N --batch B --context T --steps K [--dtype float32|bf16-autocast]

B sequences of T tokens each (and the model's meta tokens in front of each, which are not counted). Only FOLDER's config.json is read; the
weights are random. PyTorch has no selective scan, so several ways to write one are timed first, at the model's own sizes, and the fastest
is taken; likewise attention, the convolution, and whether the whole model goes through torch.compile. A line of JSON goes to the
standard output, what was tried to the standard error.
"""
import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import train_oracle as train
from make_goldens import BASE, make_tensors

DEFAULT = {**BASE, "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 448, "num_hidden_layers": 9, "num_attention_heads": 6,
           "num_key_value_heads": 2, "kq_head_dim": 32, "v_head_dim": 64, "mamba_d_state": 16, "mamba_dt_rank": 12,
           "sliding_window": 128, "global_attn_idx": [0, 4, 8], "kv_reuse_group": [[1, 2, 3], [5, 6, 7]], "num_memory_tokens": 16,
           "max_position_embeddings": 2048, "orig_max_position_embeddings": 2048}


# --------------------------------------------------------------------------------- the selective scan, several ways to write it
# (a) train_oracle.scan: a loop over positions, vectorised over batch, channels and states, differentiated by autograd.

def scan_side_by_side(delta, x, b, c, a, steps=16):
    """(b) Chunks of `steps` positions: all chunks walk side by side, then each receives what the ones before it leave.

    A chunk's start reaches its position t with exp(a * sum of delta up to t): a sum in log space, never above 0, so nothing overflows.
    """
    batch, count, inner = delta.shape
    delta, x, b, c = (F.pad(value, (0, 0, 0, -count % steps)).unflatten(1, (-1, steps)) for value in (delta, x, b, c))
    decay, drive = torch.exp(delta[..., None] * a), (delta * x)[..., None] * b[:, :, :, None]
    h, states = torch.zeros_like(drive[:, :, 0]), []
    for d, u in zip(decay.unbind(2), drive.unbind(2)):
        h = torch.addcmul(u, d, h)
        states.append(h)
    reach = torch.exp(delta.cumsum(2)[..., None] * a)
    starts = [torch.zeros_like(h[:, 0])]
    for d, u in zip(reach[:, :-1, -1].unbind(1), h[:, :-1].unbind(1)):
        starts.append(torch.addcmul(u, d, starts[-1]))
    states = torch.addcmul(torch.stack(states, 2), reach, torch.stack(starts, 1)[:, :, None])
    return (states @ c[..., None])[..., 0].flatten(1, 2)[:, :count]


class RecomputedScan(torch.autograd.Function):
    """(a') The loop with its backward pass written out: chunks that stay in the cache, states recomputed from each chunk's start."""

    STEPS = 16

    @staticmethod
    def forward(ctx, delta, x, b, c, a):
        delta, x, b, c = (value.transpose(0, 1).contiguous() for value in (delta, x, b, c))         # time first
        y, h, starts = torch.empty_like(delta), delta.new_zeros(*delta.shape[1:], a.shape[1]), []
        for first in range(0, len(delta), RecomputedScan.STEPS):
            now = slice(first, first + RecomputedScan.STEPS)
            starts.append(h)
            decay = torch.exp_(delta[now, ..., None] * a)
            states = (delta[now] * x[now])[..., None] * b[now, :, None]
            for d, state in zip(decay, states):
                h = state.addcmul_(d, h)
            y[now] = (states @ c[now, ..., None])[..., 0]
            h = h.clone()                                                                           # lets go of the chunk
        ctx.save_for_backward(delta, x, b, c, a, *starts)
        return y.transpose(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        delta, x, b, c, a, *starts = ctx.saved_tensors
        gradient = gradient.transpose(0, 1).contiguous()
        to_delta, to_x, to_b, to_c, to_a = (torch.zeros_like(value) for value in (delta, x, b, c, a))
        later = torch.zeros_like(starts[0])
        for index in reversed(range(len(starts))):
            now = slice(index * RecomputedScan.STEPS, (index + 1) * RecomputedScan.STEPS)
            drive = delta[now] * x[now]
            decay = torch.exp_(delta[now, ..., None] * a)
            states = torch.cat([starts[index][None], drive[..., None] * b[now, :, None]])
            for t, d in enumerate(decay):
                states[t + 1].addcmul_(d, states[t])
            to_c[now] = (gradient[now, :, None] @ states[1:])[:, :, 0]
            to_h = gradient[now, ..., None] * c[now, :, None]
            to_h[-1] += later
            for t in range(len(decay) - 1, 0, -1):
                to_h[t - 1].addcmul_(decay[t], to_h[t])
            later = decay[0] * to_h[0]
            to_b[now] = (drive[:, :, None] @ to_h)[:, :, 0]
            to_drive = (to_h @ b[now, ..., None])[..., 0]
            to_exponent = to_h.mul_(decay).mul_(states[:-1])
            to_delta[now] = (to_exponent * a).sum(-1) + to_drive * x[now]
            to_x[now] = to_drive * delta[now]
            to_a += torch.einsum("tbe,tben->en", delta[now], to_exponent)
        return *(value.transpose(0, 1) for value in (to_delta, to_x, to_b, to_c)), to_a


# (c) The same with a few positions at a time through torch.compile, which makes one loop of them. Time comes first; states are [B, N, E].

def chunk_forward(h, delta, x, b, c, a):
    rows = []
    for t in range(len(delta)):
        h = torch.exp(delta[t][:, None] * a) * h + (delta[t] * x[t])[:, None] * b[t][..., None]
        rows.append((h * c[t][..., None]).sum(1))
    return h, torch.stack(rows)


def chunk_backward(h, later, gradient, delta, x, b, c, a, to_a):
    states, decays, rows = [h], [], []
    for t in range(len(delta)):
        decays.append(torch.exp(delta[t][:, None] * a))
        states.append(decays[-1] * states[-1] + (delta[t] * x[t])[:, None] * b[t][..., None])
    for t in reversed(range(len(delta))):
        later = later + gradient[t][:, None] * c[t][..., None]
        to_drive, to_exponent = (later * b[t][..., None]).sum(1), later * decays[t] * states[t]
        rows.append(((to_exponent * a).sum(1) + to_drive * x[t], to_drive * delta[t],
                     (later * (delta[t] * x[t])[:, None]).sum(-1), (states[t + 1] * gradient[t][:, None]).sum(-1)))
        to_a = to_a + (to_exponent * delta[t][:, None]).sum(0)
        later = later * decays[t]
    return later, to_a, *(torch.stack(part[::-1]) for part in zip(*rows))


class CompiledScan:
    """An operator of its own, so that torch.compile of the whole model takes it as it is."""

    def __init__(self, steps=6):
        forward, backward = (torch.compile(function, dynamic=False) for function in (chunk_forward, chunk_backward))

        def time_first(*values):
            padding = -values[0].shape[1] % steps                                   # with delta 0 the state stays as it is
            return [F.pad(value.transpose(0, 1), (0, 0, 0, 0, 0, padding)).contiguous() for value in values]

        def batch_first(parts, count):
            return torch.cat(parts)[:count].transpose(0, 1).contiguous()

        @torch.library.custom_op("hymba_oracle::scan", mutates_args=())
        def scan(delta: torch.Tensor, x: torch.Tensor, b: torch.Tensor, c: torch.Tensor,
                 a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a, rows, starts = a.T.contiguous(), [], []
            h = delta.new_zeros(len(delta), *a.shape)
            for chunk in zip(*(value.split(steps) for value in time_first(delta, x, b, c))):
                starts.append(h)
                h, y = forward(h, *chunk, a)
                rows.append(y)
            return batch_first(rows, delta.shape[1]), torch.stack(starts)

        @scan.register_fake
        def _(delta, x, b, c, a):
            return delta.new_empty(delta.shape), delta.new_empty(-(-delta.shape[1] // steps), len(delta), *a.T.shape)

        @torch.library.custom_op("hymba_oracle::scan_backward", mutates_args=())
        def scan_backward(gradient: torch.Tensor, starts: torch.Tensor, delta: torch.Tensor, x: torch.Tensor, b: torch.Tensor,
                          c: torch.Tensor, a: torch.Tensor) -> list[torch.Tensor]:
            a, later, out = a.T.contiguous(), torch.zeros_like(starts[0]), []
            to_a = torch.zeros_like(a)
            chunks = list(zip(*(value.split(steps) for value in time_first(gradient, delta, x, b, c))))
            for start, chunk in zip(starts.flip(0), chunks[::-1]):
                later, to_a, *parts = backward(start, later, *chunk, a, to_a)
                out.append(parts)
            return [batch_first(parts, delta.shape[1]) for parts in zip(*out[::-1])] + [to_a.T.contiguous()]

        @scan_backward.register_fake
        def _(gradient, starts, delta, x, b, c, a):
            return [value.new_empty(value.shape) for value in (delta, x, b, c, a)]

        def remember(ctx, inputs, output):
            ctx.save_for_backward(output[1], *inputs)

        scan.register_autograd(lambda ctx, gradient, _: tuple(scan_backward(gradient, *ctx.saved_tensors)), setup_context=remember)
        self.scan = scan

    def __call__(self, delta, x, b, c, a):
        return self.scan(delta, x, b, c, a)[0]


# ------------------------------------------------------------------------------------------------------- attention, convolution

def attend_one_width(q, k, v, mask, scale):
    """Keys padded to the values' width: PyTorch's fused kernel for the CPU takes one width only."""
    wide = max(q.shape[-1], v.shape[-1])
    q, k, padded = (F.pad(value, (0, wide - value.shape[-1])) for value in (q, k, v))
    return train.attend(q, k, padded, mask, scale)[..., :v.shape[-1]]


def convolve_taps(x, taps, bias):
    """A sum of shifted rows."""
    count = taps.shape[-1]
    x = F.pad(x, (0, 0, count - 1, 0))
    y = sum(x[:, tap:x.shape[1] - count + 1 + tap] * taps[:, 0, tap] for tap in range(count))
    return y if bias is None else y + bias


# --------------------------------------------------------------------------------------------------------------------- choosing

def say(*words):
    print(*words, file=sys.stderr, flush=True)


def fastest(what, ways, inputs):
    """Times forward and backward of every way at these inputs; all must agree. -> the fastest one's name."""
    first, seconds, trained = None, {}, [value for value in inputs if getattr(value, "requires_grad", False)]
    for name, way in ways.items():
        try:
            started = time.perf_counter()
            times = []
            for _ in range(4):
                begin = time.perf_counter()
                y = way(*inputs)
                results = y, *torch.autograd.grad(y.float().square().mean(), trained)
                times.append(time.perf_counter() - begin)
            warm_up = time.perf_counter() - started - sum(times[1:])
        except Exception as error:                                          # no compiler, no such kernel: this way does not exist here
            say(f"{what} {name}: does not run here: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        first = first or results
        error = max(train.far(ours.double(), theirs.double()) for ours, theirs in zip(results, first))
        assert error < (1e-4 if y.dtype == torch.float32 else 0.1), (what, name, error)
        seconds[name] = min(times[1:])
        say(f"{what} {name}: {seconds[name] * 1e3:.1f} ms forward and backward, first run {warm_up:.1f} s")
    return min(seconds, key=seconds.get)


class Training:
    def __init__(self, config, arguments):
        torch.manual_seed(0)
        self.s = s = train.settings(config)
        self.shape = arguments.batch, arguments.context
        self.rows = arguments.batch, arguments.context + s.meta
        self.half = arguments.dtype != "float32"
        tensors = make_tensors(config, 0)
        for name in ("model.embed_tokens.weight", "model.memory_tokens"):   # logits of an untrained model's size
            tensors.get(name, torch.zeros(1)).mul_(0.05)
        self.w = train.parameters(tensors, torch.float32)
        self.optimizer = train.optimizer_of(self.w, fused=True)
        self.ops = SimpleNamespace(**vars(train.PLAIN))

    def random(self, *shape, dtype=torch.float32):
        return torch.randn(*shape).to(dtype).requires_grad_()

    def choose_scan(self, only=None):
        s = self.s
        if not set(s.kinds) & set("hm"):
            return "none"
        ways = {"loop": train.scan, "recomputed": RecomputedScan.apply, "side-by-side": scan_side_by_side, "compiled": CompiledScan()}
        inputs = (F.softplus(torch.randn(*self.rows, s.inner) - 3).requires_grad_(), self.random(*self.rows, s.inner),
                  self.random(*self.rows, s.states), self.random(*self.rows, s.states),
                  (-torch.arange(1.0, s.states + 1).repeat(s.inner, 1)).requires_grad_())
        name = only or fastest("scan", ways, inputs)
        self.ops.scan = ways[name]
        return name

    def choose_convolution(self):
        s = self.s
        if not set(s.kinds) & set("hm"):
            return "none"
        ways = {"conv1d": train.convolve, "taps": convolve_taps}
        name = fastest("convolution", ways, (self.random(*self.rows, s.inner), self.random(s.inner, 1, s.taps), self.random(s.inner)))
        self.ops.convolve = ways[name]
        return name

    def choose_attention(self):
        s, ways = self.s, {"two-widths": train.attend, "one-width": attend_one_width}
        if not set(s.kinds) & set("ha"):
            return "none"
        dtype = torch.bfloat16 if self.half else torch.float32
        heads = [self.random(self.rows[0], count, self.rows[1], width, dtype=dtype)
                 for count, width in ((s.heads, s.dk), (s.kv_heads, s.dk), (s.kv_heads, s.dv))]
        name = fastest("attention", ways, (*heads, train.visible(self.rows[1], s.windows[0], s.meta), s.dk ** -0.5))
        self.ops.attend = ways[name]
        return name

    def step_function(self, compiled):
        """-> a function that makes one step. A compiled model fuses the convolution's taps into what is around them."""
        ops = SimpleNamespace(**vars(self.ops))
        if compiled:
            ops.convolve = convolve_taps
            if not isinstance(ops.scan, CompiledScan):                      # a loop would be unrolled, for minutes
                ops.scan = torch.compiler.disable(ops.scan)

        def loss_of(w, tokens, targets):
            return train.cross_entropy(train.forward(self.s, w, tokens, ops), targets)
        loss_of = torch.compile(loss_of, dynamic=False) if compiled else loss_of

        def step(check=False):
            ids = torch.randint(0, self.s.vocab, (self.shape[0], self.shape[1] + 1))
            tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
            with torch.autocast("cpu", torch.bfloat16) if self.half else contextlib.nullcontext():
                loss = loss_of(self.w, tokens, targets)
            if check:
                with torch.no_grad():
                    plain = train.cross_entropy(train.forward(self.s, self.w, tokens), targets)
                assert abs(loss.item() / plain.item() - 1) < (2e-2 if self.half else 1e-5), (loss.item(), plain.item())
            self.optimizer.zero_grad()
            loss.backward()
            train.update(self.w, self.optimizer, 3e-4)
        return step


def timed(step, count):
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return times


def main():
    parser = argparse.ArgumentParser(description="tokens per second of training in PyTorch on the CPU")
    parser.add_argument("--config", metavar="FOLDER", help="a folder with a config.json; default: a model of 5 million parameters")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bf16-autocast"], default="float32")
    parser.add_argument("--scan", choices=["loop", "recomputed", "side-by-side", "compiled"], help="this one, without trying the others")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the whole model; default: whichever is faster")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    config = DEFAULT
    if arguments.config:
        with open(os.path.join(arguments.config, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    training = Training(config, arguments)
    parts = {"scan": training.choose_scan(arguments.scan), "attention": training.choose_attention(),
             "convolution": training.choose_convolution()}
    steps, seconds = {}, {}
    for compiled in (False, True):
        if arguments.compile in (None, compiled):
            begin, step = time.perf_counter(), training.step_function(compiled)
            try:
                step(check=True)
            except AssertionError:
                raise
            except Exception as error:
                say(f"model compiled {compiled}: does not run here: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            warm_up = time.perf_counter() - begin
            timed(step, 1)
            steps[compiled], seconds[compiled] = step, min(timed(step, 2))
            say(f"model {'compiled' if compiled else 'eager'}: {seconds[compiled] * 1e3:.0f} ms per step, first step {warm_up:.1f} s")
    compiled = min(seconds, key=seconds.get)
    if compiled:
        parts["convolution"] = "taps"
    load = os.getloadavg()[0]
    median = statistics.median(timed(steps[compiled], arguments.steps))
    print(json.dumps({"tokens_per_s": round(arguments.batch * arguments.context / median, 1), "ms_per_step": round(median * 1e3, 1),
                      "variant": " ".join(f"{part}={name}" for part, name in {**parts, "model": ("eager", "compiled")[compiled]}.items()),
                      "threads": arguments.threads, "batch": arguments.batch, "context": arguments.context, "dtype": arguments.dtype,
                      "parameters": sum(tensor.numel() for tensor in training.w.values()), "torch": torch.__version__,
                      "load_before": round(load, 2)}))


if __name__ == "__main__":
    main()
