# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the command line program. Standard library only.

Every test_*.py gets the program and the demo checkpoint as its arguments and runs all its functions named test_*.
"""
import json
import os
import struct
import subprocess
import sys
import tempfile
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
HYMBA, MODEL = sys.argv[1], sys.argv[2]


def run(*arguments, stdin=b"", **options):
    """Runs the program; returns the completed process with bytes. Output that is not UTF-8 fails where it is decoded."""
    if isinstance(stdin, str):
        stdin = stdin.encode()
    return subprocess.run([HYMBA, *map(str, arguments)], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=300, **options)


def ok(*arguments, **options):
    """Runs the program, which must succeed; returns its standard output."""
    done = run(*arguments, **options)
    assert done.returncode == 0, (arguments, done.returncode, done.stderr.decode())
    return done.stdout


def ok_json(*arguments, **options):
    return json.loads(ok(*arguments, **options).decode())


def refused(*arguments, naming, **options):
    """Runs the program, which must end with code 2, nothing on standard output and one line that names the thing."""
    done = run(*arguments, **options)
    text = done.stderr.decode()
    assert done.returncode == 2, (arguments, done.returncode, text)
    assert done.stdout == b"", (arguments, done.stdout)
    assert text.startswith("hymba: ") and text.count("\n") == 1 and text.endswith("\n"), (arguments, text)
    for part in [naming] if isinstance(naming, str) else naming:
        assert part in text, (arguments, part, text)


def read_safetensors(path):
    """name -> (shape, list of numbers), for F32 and I32."""
    with open(path, "rb") as file:
        content = file.read()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        data = content[8 + length + first:8 + length + last]
        letter = {"F32": "f", "I32": "i"}[entry["dtype"]]
        out[name] = (entry["shape"], list(struct.unpack(f"<{len(data) // 4}{letter}", data)))
    return out


def golden(name):
    """ids and logits (shape, numbers) of a golden checkpoint, and its folder."""
    folder = os.path.join(GOLDEN, name)
    tensors = read_safetensors(os.path.join(folder, "golden.safetensors"))
    return tensors["ids"][1], tensors["logits"], folder


def joined(ids):
    return ",".join(map(str, ids))


def main():
    module = sys.modules["__main__"]
    tests = [(name, function) for name, function in vars(module).items() if name.startswith("test_")]
    failed = 0
    for name, function in tests:
        try:
            with tempfile.TemporaryDirectory() as folder:
                function(folder)
            print("ok  ", name, flush=True)
        except Exception:
            failed += 1
            print("FAIL", name, flush=True)
            traceback.print_exc()
    assert tests
    sys.exit(1 if failed else 0)
