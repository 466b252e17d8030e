#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times hymba and llama.cpp in turns on one machine and prints a Markdown table of ratios.

    peers.py --llama-bench PROGRAM --pair WEIGHTS=FILE.gguf [--pair ...] [--hymba build/bin/hymba] [--model hymba-1.5b]
             [--threads 2] [--prefill 512] [--tokens 32] [--depths 0,8192] [--cache bf16] [--rounds 3]

For each pair hymba runs the model's shape with random weights in WEIGHTS (f32, f16, bf16, int8, int4), and llama-bench the
file, with as many threads. Programs take turns, so that whatever else the machine does hits both alike; of all rounds the
best counts. bench/random_gguf.py makes files of as many parameters; bench/peers.md has the whole recipe.
"""
import argparse
import json
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
                "--prefill", str(a.prefill), "--depths", ",".join(map(str, a.depths)), "--batches", "1", "--repetitions", "1",
                "--json"])
    out = {("prefill", row["tokens"]): row["tokens_per_s"] for row in told["prefill"]}
    out.update({("decode", row["depth"]): row["tokens_per_s"] for row in told["decode"]})
    return out, told["limits"]


def llama(a, path):
    out = {}
    common = [a.llama_bench, "-m", path, "-t", str(a.threads), "-ngl", "0", "-r", "1", "-o", "json"]
    for row in run(common + ["-p", str(a.prefill), "-n", "0"]):
        out["prefill", row["n_prompt"]] = row["avg_ts"]
    for depth in a.depths:
        for row in run(common + ["-p", "0", "-n", str(a.tokens), "-d", str(depth)]):
            out["decode", depth] = row["avg_ts"]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", required=True)
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
    for _ in range(a.rounds):
        for weights, path in pairs:
            ours, limits[weights] = hymba(a, weights)
            for who, found in (("hymba", ours), ("llama", llama(a, path))):
                for what, speed in found.items():
                    key = (weights, who, what)
                    best[key] = max(best.get(key, 0), speed)
    print("| | llama.cpp | hymba | ratio |\n|---|---:|---:|---:|")
    for weights, path in pairs:
        name = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        for what in sorted({k[2] for k in best if k[0] == weights}, key=lambda w: (w[0] != "prefill", w[1])):
            theirs, ours = best[weights, "llama", what], best[weights, "hymba", what]
            label = "prefill of %d" % what[1] if what[0] == "prefill" else "decode at depth %d" % what[1]
            print("| %s, %s against %s | %.1f | %.1f | %.2f |" % (label, weights, name, theirs, ours, ours / theirs))
    print("\nLimits, as hymba measured them last: " +
          "; ".join("%s: %.1f GB/s, %.0f GFLOP/s" % (w, v["read_bandwidth_gb_s"], v["matrix_peak_gflop_s"])
                    for w, v in limits.items()))


main()
