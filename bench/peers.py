#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times hymba, llama.cpp and its relatives in turns on one machine and prints a Markdown table of ratios.

    peers.py --peer NAME=LLAMA-BENCH [--peer ...] --pair WEIGHTS=FILE.gguf [--pair ...] [--hymba build/bin/hymba]
             [--model hymba-1.5b] [--threads 2] [--prefill 512] [--tokens 32] [--depths 0,8192] [--cache bf16] [--rounds 3]

For each pair hymba runs the model's shape with random weights in WEIGHTS (f32, f16, bf16, int8, int4), and every peer's
llama-bench the file, with as many threads; what follows a program's path goes to it ("ik=ik/bin/llama-bench -rtr 1").
Programs take turns, so that whatever else the machine does hits all alike; of all rounds the best counts, and the ratio is
to the best peer. --prefill 0 leaves prefill out, for many short rounds of decoding: what memory delivers, which bounds it,
moves from minute to minute where others use it too. bench/random_gguf.py makes files of as many parameters; bench/peers.md
has the whole recipe.
"""
import argparse
import json
import shlex
import subprocess
import sys


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("%s failed:\n%s" % (" ".join(command), done.stderr.strip()[-2000:]))
    return json.loads(done.stdout)


def hymba(a, weights):
    """{("prefill", tokens) or ("decode", depth): tokens per second}"""
    told = run([a.hymba, "bench", "--model", a.model, "--weights", weights, "--cache", a.cache, "--threads", str(a.threads),
                "--prefill", str(a.prefill or "none"), "--depths", ",".join(map(str, a.depths)), "--batches", "1",
                "--repetitions", "1", "--json"])
    out = {("prefill", row["tokens"]): row["tokens_per_s"] for row in told["prefill"]}
    out.update({("decode", row["depth"]): row["tokens_per_s"] for row in told["decode"]})
    return out, told["limits"]


def at_depth(program, depth, tokens):
    """What makes a llama-bench time `tokens` tokens behind `depth`: ik_llama.cpp's differs from llama.cpp's."""
    if depth == 0:
        return ["-p", "0", "-n", str(tokens)]
    told = subprocess.run([program, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    if "-gp <pp,tg>" in told:
        return ["-p", "0", "-n", "0", "-gp", "%d,%d" % (depth, tokens)]
    return ["-p", "0", "-n", str(tokens), "-d", str(depth)]


def peer(a, program, path):
    out = {}
    common = program + ["-m", path, "-t", str(a.threads), "-ngl", "0", "-r", "1", "-o", "json"]
    if a.prefill:
        for row in run(common + ["-p", str(a.prefill), "-n", "0"]):
            out["prefill", row["n_prompt"]] = row["avg_ts"]
    for depth in a.depths:
        for row in run(common + at_depth(program[0], depth, a.tokens)):
            out["decode", depth] = row["avg_ts"]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", required=True, metavar="NAME=LLAMA-BENCH")
    parser.add_argument("--pair", action="append", required=True, metavar="WEIGHTS=FILE.gguf")
    parser.add_argument("--hymba", default="build/bin/hymba")
    parser.add_argument("--model", default="hymba-1.5b")
    parser.add_argument("--cache", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depths", type=lambda text: [int(x) for x in text.split(",")], default=[0, 8192])
    a = parser.parse_args()

    best, limits = {}, {}
    pairs = [pair.split("=", 1) for pair in a.pair]
    peers = {name: shlex.split(program) for name, program in (text.split("=", 1) for text in a.peer)}
    for _ in range(a.rounds):
        for weights, path in pairs:
            ours, limits[weights] = hymba(a, weights)
            all_found = {"hymba": ours, **{name: peer(a, program, path) for name, program in peers.items()}}
            for who, found in all_found.items():
                for what, speed in found.items():
                    key = (weights, who, what)
                    best[key] = max(best.get(key, 0), speed)
    print("| | %s | hymba | ratio |\n|---%s|---:|---:|" % (" | ".join(peers), "|---:" * len(peers)))
    for weights, path in pairs:
        name = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        for what in sorted({k[2] for k in best if k[0] == weights}, key=lambda w: (w[0] != "prefill", w[1])):
            theirs, ours = [best[weights, who, what] for who in peers], best[weights, "hymba", what]
            label = "prefill of %d" % what[1] if what[0] == "prefill" else "decode at depth %d" % what[1]
            print("| %s, %s against %s | %s | %.1f | %.2f |" %
                  (label, weights, name, " | ".join("%.1f" % t for t in theirs), ours, ours / max(theirs)))
    print("\nLimits, as hymba measured them last: " +
          "; ".join("%s: %.1f GB/s, %.0f GFLOP/s" % (w, v["read_bandwidth_gb_s"], v["matrix_peak_gflop_s"])
                    for w, v in limits.items()))


main()
