#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that the C++ in the documentation compiles: every ```cpp block of the given Markdown files.

    check_docs.py --compiler CXX [--flags FILE] [--without-tokenizer] FILE.md...
    check_docs.py --compiler CXX [--flags FILE] --self-test

A block without `main` is put at namespace scope behind `#include <hymba/hymba.hpp>`.
"""
import argparse
import re
import subprocess
import sys

BLOCK = re.compile(r"^```cpp\n(.*?)^```$", re.M | re.S)


def blocks_of(text):
    """(line number, code) of every block."""
    return [(text.count("\n", 0, m.start()) + 2, m.group(1)) for m in BLOCK.finditer(text)]


def program(code):
    if re.search(r"^int main\(", code, re.M):
        return code
    return "#include <hymba/hymba.hpp>\n" + code + "\nint main() {}\n"


def compile_text(compiler, flags, code):
    command = [compiler] + flags + ["-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input=code.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return None if done.returncode == 0 else done.stdout.decode("utf-8", "replace")


def check(compiler, flags, files, without_tokenizer):
    compiled, failures = 0, []
    for name in files:
        with open(name, encoding="utf-8") as file:
            for line, code in blocks_of(file.read()):
                if without_tokenizer and "hymba/text/tokenizer.hpp" in code:
                    continue
                compiled += 1
                output = compile_text(compiler, flags, program(code))
                if output is not None:
                    failures.append("%s:%d: does not compile\n%s" % (name, line, output))
    return compiled, failures


def self_test(compiler, flags):
    text = "a\n```cpp\nint main() { return 0; }\n```\n```sh\nls\n```\n```cpp\nint main() { return x; }\n```\n"
    found = blocks_of(text)
    assert [line for line, _ in found] == [3, 9], found
    assert compile_text(compiler, flags, program(found[0][1])) is None
    assert compile_text(compiler, flags, program(found[1][1])) is not None
    print("check_docs: self-test passed")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--flags")
    parser.add_argument("--without-tokenizer", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    flags = []
    if args.flags:
        with open(args.flags, encoding="utf-8") as file:
            flags = [f for f in file.read().split("\n") if f]
    if args.self_test:
        self_test(args.compiler, ["-std=c++20"])
        return 0
    compiled, failures = check(args.compiler, flags, args.files, args.without_tokenizer)
    for failure in failures:
        print(failure)
    print("check_docs: %d blocks compiled, %d failed" % (compiled, len(failures)))
    return 1 if failures or compiled == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
