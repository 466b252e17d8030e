# SPDX-License-Identifier: Apache-2.0
"""hymba bench: what it says of a tiny model, and bench/draw.py over it. How fast anything is, is not asserted."""
import json
import os
import subprocess
import sys
import xml.etree.ElementTree

from support import GOLDEN, HERE, MODEL, main, ok, ok_json, refused

DRAW = os.path.join(HERE, "..", "..", "bench", "draw.py")
TINY = ("--prefill", "5,16", "--depths", "0,9", "--batches", "1,3", "--repetitions", 2, "--threads", 2)


def positive(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def check(told, prefill, decode):
    assert set(told["limits"]) == {"read_bandwidth_gb_s", "matrix_peak_gflop_s"}
    for value in (*told["limits"].values(), told["peak_memory_bytes"], told["open_seconds"], told["weight_bytes"]):
        assert positive(value), told
    assert [row["tokens"] for row in told["prefill"]] == prefill
    assert [(row["depth"], row["batch"]) for row in told["decode"]] == decode
    for row in told["prefill"]:
        assert {"tokens", "tokens_per_s", "fraction_of_peak"} <= set(row) and all(map(positive, row.values())), row
        assert row["fraction_of_peak"] < 1, row
    for row in told["decode"]:
        assert {"depth", "batch", "tokens_per_s", "fraction_of_bandwidth", "reads_in_turns_gb_s",
                "fraction_of_reads_in_turns"} <= set(row), row
        assert all(positive(value) for key, value in row.items() if key not in ("depth", "cache_bytes")), row


def test_tiny(folder):
    told = ok_json("bench", "--model", MODEL, *TINY, "--json")
    check(told, [5, 16], [(0, 1), (0, 3), (9, 1), (9, 3)])
    assert told["model"] == MODEL and told["weights"] == "bf16" and told["cache"] == "f32" and told["threads"] == 2
    assert not told["random_weights"] and told["parameters"] == 142060
    # Every session of a batch reads its own cache, and all of them the weights once.
    by = {(row["depth"], row["batch"]): row for row in told["decode"]}
    assert by[9, 3]["flop_per_byte"] > by[9, 1]["flop_per_byte"] > 0
    assert by[9, 1]["cache_bytes"] == ok_json("inspect", MODEL, "--json", "--max-context", 9)["cache"][0]["cache_bytes"] * 2


def test_prefill_chunk(folder):
    # Fewer tokens at once than there are sessions: one step still takes all of them.
    few, many = (ok_json("bench", "--model", MODEL, *TINY, "--json", "--prefill-chunk", chunk) for chunk in (2, 4096))
    for told in few, many:
        check(told, [5, 16], [(0, 1), (0, 3), (9, 1), (9, 3)])
    assert (few["prefill_chunk"], many["prefill_chunk"]) == (2, 4096)
    assert few["prefill"][1]["flop_per_byte"] < many["prefill"][1]["flop_per_byte"], "weights are read with each chunk"


def test_text_and_lists(folder):
    # Lists come in order, each entry once; either part can be left out.
    text = ok("bench", "--model", MODEL, "--prefill", "none", "--depths", "7,0,7", "--repetitions", 1, "--quiet").decode()
    assert "of bandwidth" in text and "of reads in turns" in text and "of peak" not in text and "142,060 parameters" in text, text
    assert [line.split()[0] for line in text.rstrip().split("\n")[-2:]] == ["0", "7"], text
    for weights, cache in (("f32", "f16"), ("bf16", "bf16"), ("bf16", "int8")):
        told = ok_json("bench", "--model", MODEL, "--prefill", 3, "--depths", "none", "--repetitions", 1, "--json",
                       "--weights", weights, "--cache", cache)
        check(told, [3], [])
        assert told["weights"] == weights and told["cache"] == cache


def test_other_stacks(folder):
    for name in ("ssm_only", "attention_only"):
        told = ok_json("bench", "--model", os.path.join(GOLDEN, name), "--prefill", 3, "--depths", 2, "--batches", 2,
                       "--repetitions", 1, "--json")
        check(told, [3], [(2, 2)])
        assert (told["state_bytes"] > 0) == (name == "ssm_only")


def test_refuses(folder):
    refused("bench", naming="--model")
    refused("bench", "--model", "hymba-9b", naming=["hymba-9b", "hymba-1.5b", "llama-3.2-3b"])
    refused("bench", "--model", folder, naming="config.json")
    refused("bench", "--model", MODEL, "--max-context", 5, naming="--max-context")
    for option, values in (("--prefill", ("", "0", "512,", ",512", "512,,1", "x", "1.5", "-3", "1e3", "99999999999999999999",
                                          "none,1", ",".join(["1"] * 65))),
                           ("--depths", ("", "-1", "0,x", "0;1")),
                           ("--batches", ("", "0", "none", "1,-1", "5000")),
                           ("--repetitions", ("0", "-1", "101", "x", "1.5")),
                           ("--threads", ("-1", "5000")), ("--weights", ("q2",)), ("--cache", ("f64",))):
        for value in values:
            refused("bench", "--model", MODEL, option + "=" + value, naming=option)
    refused("bench", "--model", MODEL, "--depths", 16000000, "--batches", 4096, naming=["batch of 4096", "memory"])


def draw(*arguments):
    return subprocess.run([sys.executable, DRAW, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


def test_draw(folder):
    limits = {"read_bandwidth_gb_s": 33.0, "matrix_peak_gflop_s": 433.0}
    sample = {"model": "one & <two>", "weights": "bf16", "cache": "bf16", "threads": 2, "matrix_unit": "FMA f32", "limits": limits,
              "prefill": [{"tokens": 512, "tokens_per_s": 85.0, "fraction_of_peak": 0.57, "gflop_s": 246.0, "flop_per_byte": 480.0}],
              "decode": [{"depth": depth, "batch": batch, "tokens_per_s": batch * 8.0, "fraction_of_bandwidth": 0.8,
                          "gflop_s": batch * 24.0, "flop_per_byte": batch * 0.9} for depth in (0, 8192) for batch in (1, 8)],
              "peak_memory_bytes": 4000000000, "open_seconds": 0.5}
    paths = [os.path.join(folder, name) for name in ("sample.json", "tiny.json")]
    with open(paths[0], "w") as file:
        json.dump(sample, file)
    with open(paths[1], "wb") as file:
        file.write(ok("bench", "--model", MODEL, "--prefill", 5, "--depths", "0,9", "--repetitions", 1, "--json"))
    done = draw(*paths, "--out", folder)
    assert done.returncode == 0, done.stderr.decode()
    for name in ("roofline.svg", "depth.svg"):
        root = xml.etree.ElementTree.parse(os.path.join(folder, name)).getroot()
        texts = ["".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")]
        assert root.tag.endswith("svg") and any("one & <two>" in t for t in texts), texts
    # A file that is none of these is refused in one line.
    with open(paths[1], "w") as file:
        file.write('{"limits": 3}')
    for path in (paths[1], os.path.join(folder, "missing.json"), DRAW):
        done = draw(path, "--out", folder)
        assert done.returncode == 2 and done.stderr.decode().count("\n") == 1, done.stderr.decode()
        assert os.path.basename(path) in done.stderr.decode()


main()
