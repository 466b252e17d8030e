# SPDX-License-Identifier: Apache-2.0
"""hymba inspect: with weights and without, as text, as JSON and as a C++ type."""
import json
import os
import shutil

from support import GOLDEN, MODEL, main, ok, ok_json, refused

# The published configuration of Hymba-1.5B, facts of its config.json.
PUBLISHED = {
    "model_type": "hymba", "vocab_size": 32001, "hidden_size": 1600, "intermediate_size": 5504, "num_hidden_layers": 32,
    "num_attention_heads": 25, "num_key_value_heads": 5, "attn_hidden_size": -1, "kq_head_dim": -1, "v_head_dim": 128,
    "kq_norm": "none", "mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": 100, "mamba_conv_bias": True,
    "mamba_proj_bias": False, "mamba_inner_layernorms": True, "sliding_window": 1024, "global_attn_idx": [0, 15, 31],
    "kv_reuse_group": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14], [16, 17, 18], [19, 20], [21, 22], [23, 24],
                       [25, 26], [27, 28], [29, 30]],
    "num_memory_tokens": 128, "rope": True, "rope_theta": 10000.0, "rope_type": "ntk", "max_position_embeddings": 8192,
    "orig_max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "mlp_hidden_act": "silu",
    "num_experts": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}


def published(folder):
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(PUBLISHED, file)
    return folder


def test_config_alone(folder):
    told = ok_json("inspect", published(folder), "--json")
    assert told["parameters"] == 1522797824 and told["weights"] is None and len(told["layers"]) == 32
    assert [i for i, layer in enumerate(told["layers"]) if layer["window"] is None] == [0, 15, 31]
    assert told["layers"][18]["cache_source"] == 16 and told["layers"][1]["cache_source"] == 1
    rows = {row["context"]: row for row in told["cache"]}
    assert sorted(rows) == [1024, 2048, 8192, 32768, 131072]
    assert 78_000_000 < rows[8192]["cache_bytes"] < 80_000_000
    assert rows[8192]["transformer_cache_bytes"] == 8192 * 5 * (64 + 128) * 32 * 2
    assert rows[8192]["cache_bytes_int8"] * 2 == rows[8192]["cache_bytes"] // (64 + 128) * (64 + 128 + 2 * 2)
    assert told["state_bytes"] == 32 * (3 + 16) * 3200 * 4
    text = ok("inspect", folder).decode()
    for part in ("1,522,797,824", "window 1024", "of layer 16", "131,072", "78.9 MB", "40.3 MB", "none in this folder"):
        assert part in text, part
    assert ok("inspect", "--model", folder).decode() == text
    assert 5000 in [row["context"] for row in ok_json("inspect", folder, "--json", "--max-context", 5000)["cache"]]


def test_emit_variant(folder):
    text = ok("inspect", published(folder), "--emit-variant", "Published").decode()
    assert "struct Published" in text and "MambaHeads<3200, 16, 4, 100>" in text and "static_assert" in text, text
    assert ok_json("inspect", folder, "--emit-variant", "Published", "--json")["variant"] == text
    refused("inspect", folder, "--emit-variant", "not a name", naming="not a name")


def test_with_weights(folder):
    told = ok_json("inspect", MODEL, "--json", "--tensors")
    assert told["weights"]["tensors"] == len(told["tensors"]) == 117 and list(told["weights"]["types"]) == ["BF16"]
    assert told["parameters"] * 2 == told["weights"]["bytes"]
    text = ok("inspect", MODEL, "--tensors").decode()
    assert "every name and shape fits" in text and "model.layers.5.mamba.A_log.0" in text
    for name in ("sharded", "mixed_dtypes", "ssm_only", "attention_only"):
        told = ok_json("inspect", os.path.join(GOLDEN, name), "--json")
        assert told["weights"]["tensors"] > 0 and ("ssm" in told) == (name != "attention_only")
        ok("inspect", os.path.join(GOLDEN, name))


def test_refuses(folder):
    refused("inspect", naming="DIR")
    refused("inspect", MODEL, "--model", MODEL, naming="DIR")
    refused("inspect", folder, naming="config.json")
    target = os.path.join(folder, "copy")
    shutil.copytree(MODEL, target)
    os.remove(os.path.join(target, "model.safetensors"))
    with open(os.path.join(target, "model.safetensors.index.json"), "w") as file:
        file.write('{"weight_map": {}}')
    refused("inspect", target, naming="missing")


main()
