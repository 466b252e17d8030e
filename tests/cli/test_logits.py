# SPDX-License-Identifier: Apache-2.0
"""hymba logits against the oracle's golden logits: in one chunk, in part token by token, in other formats."""
import os

from support import golden, joined, main, ok, ok_json, read_safetensors

NAMES = ["hymba_tiny", "mixed_kinds", "window_smaller_than_meta", "dynamic_ntk", "fusion_concat", "ssm_only",
         "attention_only", "odd_sizes", "proj_bias_kinds", "untied_output", "sharded", "f16_checkpoint", "bf16_checkpoint"]


def worst(folder, name, *options):
    """Largest difference from the golden logits, relative to the largest of those."""
    ids, (shape, expected), checkpoint = golden(name)
    out = os.path.join(folder, "out.safetensors")
    ok("logits", "--model", checkpoint, "--ids", joined(ids), "--out", out, *options)
    found_shape, found = read_safetensors(out)["logits"]
    assert found_shape == shape == [len(ids), shape[1]], (found_shape, shape)
    return max(abs(a - b) for a, b in zip(found, expected)) / max(map(abs, expected))


def test_one_chunk(folder):
    for name in NAMES:
        difference = worst(folder, name, "--weights", "f32")
        assert difference < 2e-5, (name, difference)


def test_prefill_then_tokens(folder):
    for name in NAMES:
        for first in (0, 1, 17):
            difference = worst(folder, name, "--weights", "f32", "--prefill", first)
            assert difference < 2e-5, (name, first, difference)


def test_default_weights_lose_nothing(folder):
    for name in ("hymba_tiny", "bf16_checkpoint", "f16_checkpoint", "mixed_dtypes"):
        difference = worst(folder, name, "--arch", "simd")  # tiles multiply by activations rounded to bf16
        assert difference < 2e-5, (name, difference)
        assert worst(folder, name) < 0.1


def test_formats(folder):
    # 2^-9 of rounding in every weight, 2^-9 and 2^-12 in every key and value: a few percent at most, and not nothing
    assert 1e-4 < worst(folder, "hymba_tiny", "--weights", "bf16") < 0.1
    assert 1e-5 < worst(folder, "hymba_tiny", "--cache", "bf16", "--prefill", 5) < 0.1
    assert 1e-6 < worst(folder, "hymba_tiny", "--cache", "f16", "--prefill", 5) < 0.02
    assert worst(folder, "hymba_tiny", "--weights", "bf16", "--cache", "bf16") < 0.1
    assert worst(folder, "hymba_tiny", "--weights", "bf16", "--cache", "f16") < 0.1
    # 2^-8 of the largest number in every key and value
    for arch in ("auto", "simd"):
        assert 1e-5 < worst(folder, "hymba_tiny", "--cache", "int8", "--prefill", 5, "--arch", arch) < 0.1
        assert worst(folder, "odd_sizes", "--cache", "int8", "--prefill", 5, "--arch", arch) < 0.1
        for weights in ("bf16", "f16"):
            assert worst(folder, "hymba_tiny", "--weights", weights, "--cache", "int8", "--arch", arch) < 0.15
    # 2^-12 of rounding in every weight
    assert 1e-6 < worst(folder, "hymba_tiny", "--weights", "f16") < 0.02
    # 2^-8 of the largest of a row's block, in weights that magnify each rounding thirtyfold: int4 would say nothing here
    for name in ("hymba_tiny", "odd_sizes", "ssm_only", "attention_only", "untied_output"):
        assert 1e-4 < worst(folder, name, "--weights", "int8") < 0.25, name
        assert 1e-4 < worst(folder, name, "--weights", "int8", "--prefill", 5) < 0.25, name
        assert 1e-4 < worst(folder, name, "--weights", "int8", "--arch", "simd") < 0.25, name


def test_threads_and_json(folder):
    ids, (shape, _), checkpoint = golden("hymba_tiny")
    results = []
    for threads in (1, 2, 5):
        out = os.path.join(folder, "out.safetensors")
        told = ok_json("logits", "--model", checkpoint, "--ids", joined(ids), "--out", out, "--threads", threads, "--json",
                       "--seed", 3)
        assert told["ids"] == shape[0] and told["vocabulary"] == shape[1] and told["weights"] == "f32", told
        results.append(read_safetensors(out)["logits"][1])
    assert all(max(abs(a - b) for a, b in zip(results[0], other)) < 1e-4 for other in results[1:])


main()
