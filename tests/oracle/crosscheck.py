# SPDX-License-Identifier: Apache-2.0
"""Holds the oracle against transformers' own models where a golden configuration happens to be one of theirs:

    ssm_only       = MambaForCausalLM        SSM branch without inner norms
    ssm_only_mlp   = JambaForCausalLM        SSM branch with inner norms, MLP, meta tokens (fed as embeddings)
    attention_only = LlamaForCausalLM        attention branch, rotary, grouped queries, MLP

    python crosscheck.py [--goldens ../golden]
"""
import argparse
import os

import torch
import transformers

import hymba_oracle as oracle


def mamba(s, config):
    return transformers.MambaForCausalLM(transformers.MambaConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, state_size=s.states, num_hidden_layers=s.layers, layer_norm_epsilon=s.eps,
        expand=config["mamba_expand"], conv_kernel=s.taps, use_bias=s.proj_bias, use_conv_bias=s.conv_bias, time_step_rank=s.rank,
        residual_in_fp32=False, tie_word_embeddings=True))


def jamba(s, config):
    return transformers.JambaForCausalLM(transformers.JambaConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.mlp_width, num_hidden_layers=s.layers, rms_norm_eps=s.eps,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, num_experts=1, num_experts_per_tok=1,
        attn_layer_period=100, attn_layer_offset=99, mamba_d_state=s.states, mamba_d_conv=s.taps, mamba_expand=config["mamba_expand"],
        mamba_dt_rank=s.rank, mamba_conv_bias=s.conv_bias, mamba_proj_bias=s.proj_bias, tie_word_embeddings=True))


def llama(s, config):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.mlp_width, num_hidden_layers=s.layers, rms_norm_eps=s.eps,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.dk, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta}))


MODELS = {"ssm_only": (mamba, "backbone.", "norm_f", "embeddings"),
          "ssm_only_mlp": (jamba, "model.", "final_layernorm", "embed_tokens"),
          "attention_only": (llama, "model.", "norm", "embed_tokens")}
LAYER = {"ssm_only": [("input_layernorm.weight", "norm.weight"), ("mamba.", "mixer.")],
         "ssm_only_mlp": [("pre_moe_layernorm", "pre_ff_layernorm"), ("moe.experts.0.", "feed_forward."),
                          ("B_layernorm", "b_layernorm"), ("C_layernorm", "c_layernorm")],
         "attention_only": [("pre_moe_layernorm", "post_attention_layernorm"), ("moe.experts.0.", "mlp."),
                            ("mamba.out_proj", "self_attn.o_proj")]}


def translate(name, s, tensors):
    _, prefix, final, embedding = MODELS[name]
    out = {}
    for ours, tensor in tensors.items():
        theirs = ours.replace("model.", prefix, 1).replace("embed_tokens", embedding)
        if ours == "model.final_layernorm.weight":
            theirs = prefix + final + ".weight"
        elif ".layers." in ours:
            for old, new in LAYER[name]:
                theirs = theirs.replace(old, new)
            theirs = theirs.replace("x_proj.0", "x_proj").replace("dt_proj.0", "dt_proj").replace("A_log.0", "A_log")
            theirs = theirs[:-2] if theirs.endswith(".D.0") else theirs
        if name == "attention_only" and ours.endswith("mamba.in_proj.weight"):
            sizes = [s.heads * s.dk, s.kv_heads * s.dk, s.kv_heads * s.dv]
            for letter, part in zip("qkv", tensor.split(sizes)):
                out[theirs.replace("mamba.in_proj", f"self_attn.{letter}_proj")] = part
        elif ours != "model.memory_tokens":
            out[theirs] = tensor
    out["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return out


def main():
    parser = argparse.ArgumentParser(description="compare the oracle with transformers' models")
    parser.add_argument("--goldens", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name, (build, *_) in MODELS.items():
        config, tensors = oracle.load(os.path.join(arguments.goldens, name))
        s = oracle.settings(config)
        model = build(s, config).eval()
        model.load_state_dict(translate(name, s, tensors), strict=True)
        model.double()                                                   # their norms and rotary angles still compute in float32
        ids = torch.randint(0, s.vocab, (50,), generator=torch.Generator().manual_seed(7))
        x = model.get_input_embeddings()(ids)
        if s.meta:
            x = torch.cat([tensors["model.memory_tokens"].double(), x])
        theirs = model(inputs_embeds=x[None], use_cache=False).logits[0, s.meta:].double()
        ours = oracle.forward(config, tensors, ids.tolist())
        relative = ((ours - theirs).abs().max() / ours.abs().max()).item()
        print(f"{name}: {type(model).__name__} differs by {relative:.1e} of max|logit|")
        assert relative < 4e-6


if __name__ == "__main__":
    with torch.no_grad():
        main()
