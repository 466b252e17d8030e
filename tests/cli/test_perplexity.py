# SPDX-License-Identifier: Apache-2.0
"""hymba perplexity against numbers worked out here from hymba logits."""
import math
import os

from support import GOLDEN, MODEL, golden, joined, main, ok, ok_json, read_safetensors, refused, run

TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void;\n" * 3 + "\U0001f600 e\u0301\t."


def logits(folder, model, ids, *options):
    out = os.path.join(folder, "out.safetensors")
    ok("logits", "--model", model, "--ids", joined(ids), "--out", out, *options)
    (rows, width), numbers = read_safetensors(out)["logits"]
    return [numbers[i * width:(i + 1) * width] for i in range(rows)]


def surprise(row, token):
    return max(row) + math.log(sum(math.exp(x - max(row)) for x in row)) - row[token]


def expected_nats(folder, model, ids, window, stride):
    """Every token but the first once, from the window that is the first to reach it."""
    nats, scored, begin = 0.0, 0, 0
    while scored < len(ids) - 1:
        end = min(begin + window, len(ids) - 1)
        rows = logits(folder, model, ids[begin:end])
        for i in range(scored, end):
            assert i == 0 or scored == 0 or i - begin + 1 > window - stride
            nats += surprise(rows[i - begin], ids[i + 1])
        scored, begin = end, begin + stride
    return nats


def test_against_logits(folder):
    ids, _, model = golden("hymba_tiny")
    for window, stride in ((100, 50), (44, 22), (43, 21), (16, 8), (10, 3), (7, 7), (1, 1), (2, 1)):
        told = ok_json("perplexity", "--model", model, "--ids", joined(ids), "--max-context", window, "--stride", stride, "--json")
        nats = expected_nats(folder, model, ids, window, stride)
        assert told["scored_tokens"] == len(ids) - 1 and abs(told["nats"] - nats) < 1e-3, (window, stride, told, nats)
        assert abs(told["perplexity"] - math.exp(nats / (len(ids) - 1))) < 1e-3 * told["perplexity"]
    default = ok_json("perplexity", "--model", model, "--ids", joined(ids), "--max-context", 16, "--json")
    assert default["stride"] == 8 and "bits_per_byte" not in default


def test_text(folder):
    path = os.path.join(folder, "text.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write(TEXT)
    told = ok_json("perplexity", "--model", MODEL, path, "--json")
    assert told["bytes"] == len(TEXT.encode()) and told["windows"] == 1 and told["max_context"] == 2048
    assert abs(told["bits_per_byte"] - told["nats"] / math.log(2) / told["bytes"]) < 1e-9
    ids = ok_json("generate", "--model", MODEL, "--prompt", TEXT, "--max-new-tokens", 0, "--json")["prompt_ids"]
    assert len(ids) == told["tokens"] == told["scored_tokens"] + 1
    assert abs(told["nats"] - expected_nats(folder, MODEL, ids, 2048, 1024)) < 1e-2
    text = ok("perplexity", "--model", MODEL, "-", stdin=TEXT).decode()
    assert f"{told['perplexity']:.4f}" in text and f"{told['bits_per_byte']:.4f}" in text and f"{told['nats_per_token']:.4f}" in text
    without = ok_json("perplexity", "--model", MODEL, path, "--json", "--no-bos")
    assert without["tokens"] == len(ids) - 1 and without["bytes"] < told["bytes"]


def test_progress(folder):
    arguments = ("perplexity", "--model", MODEL, "-", "--max-context", 64)
    assert b"[" not in run(*arguments, stdin=TEXT).stderr, "no bar where there is no terminal"
    assert b"perplexity [####" in run(*arguments, "--progress", stdin=TEXT).stderr
    assert run(*arguments, "--quiet", stdin=TEXT).stderr == b""


def test_refuses(folder):
    model = os.path.join(GOLDEN, "hymba_tiny")
    refused("perplexity", "--model", model, "--ids", "1", naming="at least 2")
    for stride in (-1, 17):
        refused("perplexity", "--model", model, "--ids", "1,2,3", "--max-context", 16, "--stride", stride, naming="--stride")
    refused("perplexity", "--model", MODEL, "-", "--ids", "1,2", naming="either")
    refused("perplexity", "--model", MODEL, "-", stdin="", naming="at least 2")


main()
