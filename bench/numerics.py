#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures what every format of weights and caches does to perplexity, and prints it as a table in Markdown.

    numerics.py --hymba build/bin/hymba --model DIR --text FILE [--calibrate FILE] [--pieces N] [--piece N]
                [--by-tensor]

The text is cut into pieces, of which N that are spread evenly over it are read, each on its own; every format reads the
same ones. A row gives the perplexity and its difference to weights and cache in f32 on vectors, with the standard error
of that difference: pieces are what varies (a ratio of sums over them), as tokens of one text hang together.
The quantised weights are those that `hymba quantize` writes. Formats and tiles that the program or the machine does not
have are left out, and named.

A FILE that ends in .ids holds token ids in decimal, separated by commas or blanks, for models without tokenizer.model;
any other is text. Lines "<|document|>" separate documents, which pieces do not cross.

--by-tensor also measures int4 in one kind of matrix at a time, all others in f32: which kind costs what.

Standard library only.
"""
import argparse
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

SEPARATOR = "<|document|>"
CALIBRATION_TOKENS = 16384
# The most that a format may cost: weights and caches in 8 bits and more, and weights in 4 bits. In percent.
BARS = {"int4": 2.0, None: 0.1}
ON_TILES = ("bf16", "int8", "int4")  # weights that tiles take as they are; beside others --arch amx means vectors too


class Refused(Exception):
    """A sentence for whoever called the script."""


# ---- text ------------------------------------------------------------------------------------------------------------

def spread(items, count):
    """`count` of the items, evenly."""
    return [items[len(items) * i // count] for i in range(count)] if count < len(items) else items


def pieces_of(path, size):
    """The pieces of a file: lists of `size` ids as text, or whole lines of `size` bytes or a little more."""
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".ids"):
        ids = content.decode().replace(",", " ").split()
        return [ids[i:i + size] for i in range(0, len(ids) - size + 1, size)]
    pieces = []
    for document in re.split(rb"(?m)^" + re.escape(SEPARATOR.encode()) + rb"\n", content):
        piece = b""
        for line in document.splitlines(keepends=True):
            piece += line
            if len(piece) >= size:
                pieces.append(piece)
                piece = b""
    return pieces


def joined(pieces, path):
    """Pieces as `hymba quantize` takes a text to calibrate by: options, and standard input."""
    if path.endswith(".ids"):
        return ["--ids", ",".join(token for piece in pieces for token in piece)], b""
    return ["--calibrate", "-"], b"".join(pieces)


# ---- the program -----------------------------------------------------------------------------------------------------

class Program:
    def __init__(self, path, threads):
        self.path, self.threads = path, threads

    def run(self, *arguments, stdin=b""):
        done = subprocess.run([self.path, *map(str, arguments)], input=stdin, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise Refused(done.stderr.decode().strip() or f"{self.path} {arguments[0]}: exit code {done.returncode}")
        return json.loads(done.stdout)

    def quantize(self, source, target, weights, calibration=None):
        options, stdin = calibration or ([], b"")
        return self.run("quantize", source, target, "--weights", weights, "--json", *options, stdin=stdin)["bytes_out"]

    def read(self, folder, piece, weights=None, cache="f32", arch="simd"):
        """(nats, tokens) of a piece."""
        options = ["--model", folder, "--cache", cache, "--arch", arch, "--json", "--threads", self.threads]
        options += ["--weights", weights] if weights else []
        if isinstance(piece, bytes):
            told = self.run("perplexity", *options, "-", stdin=piece)
        else:
            told = self.run("perplexity", *options, "--ids", ",".join(piece))
        if told["windows"] != 1:
            raise Refused(f"a piece has {told['tokens']} tokens, more than one window of {told['max_context']}: "
                          "expected a smaller --piece")
        return told["nats"], told["scored_tokens"]

    def has(self, folder, piece, **options):
        try:
            self.read(folder, piece, **options)
            return True
        except Refused as why:
            note(f"left out: {', '.join(f'{k} {v}' for k, v in options.items())}: {why}")
            return False


def note(line):
    print(line, file=sys.stderr, flush=True)


# ---- statistics ------------------------------------------------------------------------------------------------------

def perplexity(run):
    return math.exp(sum(nats for nats, _ in run) / sum(tokens for _, tokens in run))


def difference(run, base):
    """How much larger the perplexity is than the base's, and the standard error of that, both in percent."""
    tokens = sum(n for _, n in base)
    deltas = [(a - b, n) for (a, _), (b, n) in zip(run, base)]
    mean = sum(d for d, _ in deltas) / tokens
    count = len(deltas)
    squares = sum((d - mean * n) ** 2 for d, n in deltas)
    error = math.sqrt(squares * count / (count - 1)) / tokens
    return 100 * math.expm1(mean), 100 * math.exp(mean) * error


# ---- one kind of matrix at a time ------------------------------------------------------------------------------------

def read_header(path):
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(length)), 8 + length


def mix(whole, quantised, chosen, target):
    """A folder with the tensors of `quantised` that are `chosen`, all others of `whole`."""
    os.makedirs(target)
    for name in os.listdir(whole):
        if name != "model.safetensors":
            shutil.copy(os.path.join(whole, name), target)
    sources = {folder: os.path.join(folder, "model.safetensors") for folder in (whole, quantised)}
    headers = {folder: read_header(path) for folder, path in sources.items()}
    notes = headers[quantised][0]["__metadata__"]
    header, order, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name in headers[whole][0]:
        if name == "__metadata__":
            continue
        folder = quantised if chosen(name) else whole
        entry = headers[folder][0][name]
        first, last = entry["data_offsets"]
        header[name] = dict(entry, data_offsets=[at, at + last - first])
        order.append((folder, headers[folder][1] + first, last - first))
        at += last - first
        if folder == quantised and "hymba.rows." + name in notes:
            header["__metadata__"]["hymba.rows." + name] = notes["hymba.rows." + name]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    files = {folder: open(path, "rb") for folder, path in sources.items()}
    with open(os.path.join(target, "model.safetensors"), "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for folder, first, size in order:
            files[folder].seek(first)
            out.write(files[folder].read(size))
    for file in files.values():
        file.close()


def kinds_of(quantised):
    """Names of quantised matrices without the layer -> (what they are stored in, how many)."""
    kinds = {}
    for key, value in read_header(os.path.join(quantised, "model.safetensors"))[0]["__metadata__"].items():
        if key.startswith("hymba.rows."):
            kind = re.sub(r"^model\.layers\.\d+\.", "", key[len("hymba.rows."):])
            kinds.setdefault(kind, [re.split("[.:]", value)[0], 0])[1] += 1
    return kinds


# ---- the tables ------------------------------------------------------------------------------------------------------

def verdict(weights, cache, percent, error):
    bar = BARS.get(weights, BARS[None])
    if percent <= bar:
        return f"within {bar:g} %"
    return f"**over {bar:g} %**" + (", by less than two errors" if percent - 2 * error <= bar else "")


def table(rows, base):
    print("| weights | cache | arch | file, MB | perplexity | difference to f32 | the bar |")
    print("|---|---|---|---|---|---|---|")
    for weights, cache, arch, size, run in rows:
        cells = [weights, cache, arch, f"{size / 1e6:.1f}", f"{perplexity(run):.4f}"]
        if run is base:
            cells += ["", ""]
        else:
            percent, error = difference(run, base)
            cells += [f"{percent:+.3f} % ± {error:.3f}", verdict(weights.split()[0], cache, percent, error)]
        print("| " + " | ".join(cells) + " |", flush=True)


def measure(a):
    program = Program(a.hymba, a.threads)
    pieces = spread(pieces_of(a.text, a.piece), a.pieces)
    if len(pieces) < 2:
        raise Refused(f"{a.text}: {len(pieces)} pieces of {a.piece}, expected at least 2")
    calibration = None
    if a.calibrate:
        all_pieces = pieces_of(a.calibrate, a.piece)
        ids = a.calibrate.endswith(".ids")
        most = CALIBRATION_TOKENS // a.piece if ids else 3 * CALIBRATION_TOKENS // a.piece
        calibration = joined(spread(all_pieces, max(1, most)), a.calibrate)

    with tempfile.TemporaryDirectory(dir=a.scratch) as scratch:
        folders, sizes = {}, {}

        def make(name, weights, how=None):
            folders[name] = os.path.join(scratch, name.replace(" ", "-"))
            sizes[name] = program.quantize(a.model, folders[name], weights, how)

        for weights in ("f32", "bf16", "f16", "int8", "int4"):
            make(weights, weights)
        if calibration:
            make("int8 calibrated", "int8", calibration)
            make("int4 calibrated", "int4", calibration)
        best_int8, best_int4 = (w + " calibrated" if calibration else w for w in ("int8", "int4"))

        first = pieces[0]
        # Tiles where the machine has them; else dot products, whose bits are the tiles' beside int8 and int4.
        unit = next((arch for arch in ("amx", "dot") if program.has(folders["int8"], first, arch=arch)), None)
        on_unit = [w for w in ON_TILES if unit and program.has(folders[w], first, arch=unit)]
        caches = [c for c in ("bf16", "f16", "int8") if program.has(folders["f32"], first, cache=c)]
        together = "int8" if "int8" in caches else "bf16"
        plan = [(weights, "f32") for weights in folders] + [("f32", cache) for cache in caches]
        plan = [(weights, cache, "simd") for weights, cache in plan]
        if unit:
            plan += [(weights, "f32", unit) for weights in folders if weights.split()[0] in on_unit]
            if "bf16" in on_unit:
                plan += [("bf16", cache, unit) for cache in caches]
        plan += [(weights, together, unit or "simd") for weights in (best_int8, best_int4)]

        rows, base = [], None
        for weights, cache, arch in plan:
            run = [program.read(folders[weights], piece, None, cache, arch) for piece in pieces]
            base = base or run
            rows.append((weights, cache, arch, sizes[weights], run))
            note(f"{weights}, cache {cache}, {arch}: {perplexity(run):.4f}, {difference(run, base)[0]:+.3f} %")
        tokens = sum(n for _, n in base)
        print(f"{tokens} tokens scored, in {len(base)} pieces of the text\n")
        table(rows, base)

        if a.by_tensor:
            print("\n| int4 file, only these matrices taken from it | stored as | matrices | difference to f32 |")
            print("|---|---|---|---|")
            for kind, (stored, count) in kinds_of(folders["int4"]).items():
                cells = []
                for name in [n for n in ("int4", "int4 calibrated") if n in folders]:
                    target = os.path.join(scratch, "mixed")
                    mix(folders["f32"], folders[name], lambda full: full.endswith(kind), target)
                    run = [program.read(target, piece, "f32") for piece in pieces]
                    shutil.rmtree(target)
                    percent, error = difference(run, base)
                    cells.append(f"{percent:+.3f} % ± {error:.3f}" + (" calibrated" if name != "int4" else ""))
                    if stored != "int4":
                        break
                note(f"{kind}: {', '.join(cells)}")
                print(f"| {kind} | {stored} | {count} | {', '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description="perplexity of a model in every format of weights and caches")
    parser.add_argument("--hymba", required=True, help="the program")
    parser.add_argument("--model", required=True, help="folder of the model, not quantised")
    parser.add_argument("--text", required=True, help="what it has not been trained on")
    parser.add_argument("--calibrate", help="another text, to calibrate int8 and int4 by")
    parser.add_argument("--pieces", type=int, default=64, help="pieces that are read (64)")
    parser.add_argument("--piece", type=int, default=1600, help="size of a piece, in bytes or ids (1600)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--scratch", help="where to put quantised models while it runs")
    parser.add_argument("--by-tensor", action="store_true", help="int4 in one kind of matrix at a time, too")
    try:
        measure(parser.parse_args())
    except (Refused, OSError) as why:
        sys.exit(f"numerics.py: {why}")


if __name__ == "__main__":
    main()
