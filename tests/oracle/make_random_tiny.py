# SPDX-License-Identifier: Apache-2.0
"""Makes the weights and config.json of examples/models/random-tiny: the published architecture in small, random weights.

    python make_random_tiny.py [--out FOLDER] [--check]

Everything follows from the seed. --check compares the folder with what would be made and writes nothing. The oracle reads
back what was written before the script says it is done. The tokeniser beside the weights is train_tiny_tokenizer.py's.
"""
import argparse
import hashlib
import json
import os

import torch
from safetensors.torch import save

import hymba_oracle as oracle
from make_goldens import make_tensors

SEED = 20241120
CONFIG = {
    "architectures": ["HymbaForCausalLM"], "model_type": "hymba", "torch_dtype": "bfloat16", "vocab_size": 512,
    "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "attn_hidden_size": -1, "kq_head_dim": -1, "v_head_dim": -1, "kq_norm": "none", "layer_type": ["h"] * 6,
    "mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": 2, "mamba_conv_bias": True,
    "mamba_proj_bias": False, "mamba_inner_layernorms": True, "sliding_window": 16, "global_attn_idx": [0, 3, 5],
    "kv_reuse_group": [[1, 2]], "kv_reuse_every_i_layer": -1, "num_memory_tokens": 8, "memory_tokens_interspersed_every": 0,
    "rope": True, "rope_theta": 10000.0, "rope_type": "ntk", "max_position_embeddings": 2048,
    "orig_max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "mlp_hidden_act": "silu",
    "num_experts": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="write the demo checkpoint of random weights")
    parser.add_argument("--out", default=os.path.join(here, "..", "..", "examples", "models", "random-tiny"))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in make_tensors(CONFIG, SEED).items()}
    files = {"config.json": (json.dumps(CONFIG, indent=2, sort_keys=True) + "\n").encode(),
             "model.safetensors": save(tensors, metadata={"format": "pt"})}
    for name, content in files.items():
        path = os.path.join(arguments.out, name)
        if arguments.check:
            with open(path, "rb") as file:
                if file.read() != content:
                    raise SystemExit(f"{path} is not what this script makes")
        else:
            os.makedirs(arguments.out, exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        print(f"{name:18} {len(content):7} bytes  sha256 {hashlib.sha256(content).hexdigest()}")

    config, written = oracle.load(arguments.out)
    with torch.no_grad():
        logits = oracle.forward(config, written, list(range(1, 49)))
    probabilities = torch.log_softmax(logits, dim=-1)
    entropy = -(probabilities.exp() * probabilities).sum(-1).mean().item()
    print(f"{sum(t.numel() for t in tensors.values())} parameters; logits: std {logits.std().item():.2f}, mean entropy "
          f"{entropy:.2f} nats")


if __name__ == "__main__":
    main()
