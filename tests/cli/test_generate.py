# SPDX-License-Identifier: Apache-2.0
"""hymba generate: the same seed gives the same text, stops, sessions, streaming."""
import math
import os
import signal
import subprocess
import time

from support import HYMBA, MODEL, golden, joined, main, ok, ok_json, read_safetensors, refused, run

PROMPT = "In the beginning God created"
BASE = ("generate", "--model", MODEL, "--prompt", PROMPT, "--max-new-tokens", 40, "--ignore-eos")
SAMPLED = (*BASE, "--temperature", 1.1, "--top-k", 60, "--top-p", 0.95, "--repetition-penalty", 1.1)
ENDLESS = [HYMBA, "generate", "--model", MODEL, "--prompt", "x", "--ignore-eos", "--max-new-tokens", "100000"]


def test_same_seed_same_text(folder):
    one, two = ok(*SAMPLED, "--seed", 5), ok(*SAMPLED, "--seed", 5)
    assert one == two and one.decode().strip()
    assert one != ok(*SAMPLED, "--seed", 6)
    greedy = ok(*BASE, "--greedy")
    assert greedy == ok(*BASE) == ok(*BASE, "--seed", 9), "without a temperature the choice is greedy"
    for chunk in (1, 3, 600):
        assert one == ok(*SAMPLED, "--seed", 5, "--prefill-chunk", chunk), chunk


def test_json_and_text_agree(folder):
    told = ok_json(*SAMPLED, "--seed", 5, "--json", "--logprobs")
    assert told["text"] + "\n" == ok(*SAMPLED, "--seed", 5).decode()
    assert len(told["tokens"]) == len(told["logprobs"]) == 40 and told["finish"] == "length"
    assert all(p <= 0 for p in told["logprobs"])
    assert told["prompt_tokens"] == len(told["prompt_ids"]) > 3 and told["prompt_ids"][0] == 1
    assert told["position"] == told["prompt_tokens"] + 40
    assert told["timings"]["decode_tokens_per_second"] > 0 and told["weights"] == "bf16"
    without = ok_json(*BASE, "--json", "--no-bos")
    assert without["prompt_ids"] == told["prompt_ids"][1:]


def test_ids_need_no_tokenizer(folder):
    ids, (shape, _), checkpoint = golden("hymba_tiny")
    assert not os.path.exists(os.path.join(checkpoint, "tokenizer.model"))
    base = ("generate", "--model", checkpoint, "--ids", joined(ids), "--greedy", "--max-new-tokens", 12, "--ignore-eos")
    told = ok_json(*base, "--json", "--logprobs")
    assert "text" not in told and told["prompt_ids"] == ids
    assert ok(*base).decode() == " ".join(map(str, told["tokens"])) + "\n"
    # the greedy tokens and their log-probabilities are those of the logits
    out = os.path.join(folder, "out.safetensors")
    everything = ids + told["tokens"]
    ok("logits", "--model", checkpoint, "--ids", joined(everything), "--out", out)
    numbers, width = read_safetensors(out)["logits"][1], shape[1]
    for i, (token, probability) in enumerate(zip(told["tokens"], told["logprobs"])):
        row = numbers[(len(ids) + i - 1) * width:(len(ids) + i) * width]
        assert row.index(max(row)) == token
        expected = row[token] - max(row) - math.log(sum(math.exp(x - max(row)) for x in row))
        assert abs(expected - probability) < 1e-3, (i, expected, probability)


def test_stops(folder):
    told = ok_json(*SAMPLED, "--seed", 5, "--json")
    text, tokens = told["text"], told["tokens"]
    plain = next(text[i:i + 3] for i in range(4, len(text)) if text[i:i + 3].isascii() and len(text[i:i + 3]) == 3)
    stopped = ok_json(*SAMPLED, "--seed", 5, "--json", "--stop", "never there", "--stop", plain)
    assert stopped["finish"] == "stop_string" and stopped["stop"] == plain
    assert stopped["text"] == text[:text.index(plain)]
    assert ok(*SAMPLED, "--seed", 5, "--stop", plain).decode() == stopped["text"] + "\n"
    at = next(i for i, token in enumerate(tokens) if i > 2 and token not in tokens[:i])
    by_token = ok_json(*SAMPLED, "--seed", 5, "--json", "--stop-token", tokens[at], "--stop-token", 0)
    assert by_token["finish"] == "stop_token" and by_token["tokens"] == tokens[:at]
    full = ok_json(*SAMPLED, "--seed", 5, "--json", "--max-context", told["prompt_tokens"] + 10)
    assert full["finish"] == "context" and full["tokens"] == tokens[:11]


def test_nothing_to_generate(folder):
    told = ok_json("generate", "--model", MODEL, "--prompt", "x", "--max-new-tokens", 0, "--json")
    assert told["tokens"] == [] and told["text"] == "" and told["finish"] == "length"


def test_prompt_file(folder):
    path = os.path.join(folder, "prompt.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write(PROMPT)
    arguments = ("generate", "--model", MODEL, "--max-new-tokens", 40, "--ignore-eos", "--prompt-file")
    assert ok(*arguments, path) == ok(*arguments, "-", stdin=PROMPT) == ok(*BASE)
    # any bytes are a prompt
    ok(*arguments, "-", stdin=b"\xff\xfe\x00 \xf0\x9f\x98\x80 \t\r\n   e\xcc\x81")


def test_streamed_characters_are_whole(folder):
    for seed in range(8):
        process = subprocess.Popen([HYMBA, *map(str, SAMPLED), "--seed", str(seed), "--quiet"], stdout=subprocess.PIPE)
        while True:
            piece = os.read(process.stdout.fileno(), 1 << 16)  # what one or a few writes brought
            if not piece:
                break
            piece.decode("utf-8")
        assert process.wait() == 0


def test_saved_session_goes_on_exactly(folder):
    saved, saved2 = os.path.join(folder, "a.session"), os.path.join(folder, "b.session")
    whole = ok_json(*SAMPLED, "--seed", 5, "--json")
    shorter = [15 if argument == 40 else argument for argument in SAMPLED]
    first = ok_json(*shorter, "--seed", 5, "--json", "--save-session", saved)
    second = ok_json("generate", "--model", MODEL, "--load-session", saved, "--ignore-eos", "--max-new-tokens", 25, "--json",
                     "--save-session", saved2)
    assert first["tokens"] + second["tokens"] == whole["tokens"], "the sampler goes on where it was"
    assert second["prompt_tokens"] == 0 and second["position"] == whole["position"]
    # a prompt behind a saved session continues its text, without bos and dummy space
    more = ok_json("generate", "--model", MODEL, "--load-session", saved2, "--prompt", "and", "--max-new-tokens", 2, "--json",
                   "--greedy")
    assert 1 not in more["prompt_ids"] and more["prompt_tokens"] >= 1
    # what it was saved with counts, and damage is told
    f16 = os.path.join(folder, "c.session")
    ok(*BASE, "--cache", "f16", "--save-session", f16)
    assert ok_json("generate", "--model", MODEL, "--load-session", f16, "--json", "--max-new-tokens", 1)["cache"] == "f16"
    refused("generate", "--model", MODEL, "--load-session", f16, "--cache", "f32", naming=["f16", "f32"])
    # int8 goes on where it was, too, and is no other format
    int8 = os.path.join(folder, "d.session")
    one = ok_json(*BASE, "--cache", "int8", "--save-session", int8, "--json")
    assert one["cache"] == "int8" and one["cache_bytes"] < whole["cache_bytes"] // 3
    assert ok_json("generate", "--model", MODEL, "--load-session", int8, "--json", "--max-new-tokens", 1)["cache"] == "int8"
    for cache in ("f32", "bf16"):
        refused("generate", "--model", MODEL, "--load-session", int8, "--cache", cache, naming=["int8", cache])
    with open(saved, "rb") as file:
        content = bytearray(file.read())
    for at in (3, 20, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        with open(saved2, "wb") as file:
            file.write(damaged)
        done = run("generate", "--model", MODEL, "--load-session", saved2, "--max-new-tokens", 1)
        assert done.returncode == 2 and done.stderr.decode().count("\n") == 1, (at, done)
    for length in (0, 10, 40, 200, len(content) - 1):
        with open(saved2, "wb") as file:
            file.write(content[:length])
        refused("generate", "--model", MODEL, "--load-session", saved2, naming="")
    refused("chat", "--model", MODEL, "--load-session", saved, naming="hymba generate")


def test_interrupt(folder):
    process = subprocess.Popen(ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)  # it has begun
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out.endswith(b"\n") and b"interrupted" in err, (process.returncode, err)
    out.decode("utf-8")


def test_reader_goes_away(folder):
    process = subprocess.Popen(ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    begin = time.monotonic()
    assert process.wait(timeout=60) == 141 and process.stderr.read() == b"" and time.monotonic() - begin < 30
    process.stderr.close()


def test_closed_and_full_output(folder):
    closed = run(*BASE, "--quiet", preexec_fn=lambda: os.close(1))
    assert closed.returncode == 2 and closed.stderr.count(b"\n") == 1, closed
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([HYMBA, *map(str, BASE), "--quiet"], stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2 and b"standard output" in done.stderr and done.stderr.count(b"\n") == 1, done


main()
