#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that a source fails to compile, and with the sentence it names.

    compile_fail.py --compiler CXX [--flags FILE] SOURCE...
    compile_fail.py --compiler CXX --self-test

A source starts with `// expect: <sentence>`: the compiler must refuse it, and exactly one of its error lines must contain
the sentence. `// expect: ok` marks a control case, which must compile. FILE holds compiler flags, one a line.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

ERROR = re.compile(r"(^|[:\s])(fatal )?error: ")


def expectation(source):
    with open(source, encoding="utf-8") as file:
        for line in file.readlines()[:3]:
            match = re.match(r"//\s*expect:\s*(.*\S)\s*$", line)
            if match:
                return match.group(1)
    return None


def compile_source(compiler, flags, source):
    command = [compiler] + flags + ["-w", "-fsyntax-only", "-x", "c++", source]
    environment = dict(os.environ, LC_ALL="C")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def check(compiler, flags, source):
    """None if the source does what it says, else (reason, compiler output)."""
    expected = expectation(source)
    if expected is None:
        return "there is no line `// expect: <sentence>` at its top", ""
    code, output = compile_source(compiler, flags, source)
    if expected == "ok":
        return None if code == 0 else ("it must compile and does not", output)
    if code == 0:
        return "it compiles, but must fail with: " + expected, output
    errors = [line for line in output.split("\n") if ERROR.search(line)]
    count = sum(expected in line for line in errors)
    if count != 1:
        where = " (the sentence is in the output, but in no error line)" if not count and expected in output else ""
        return "%d error lines contain the sentence, must be 1: %s%s" % (count, expected, where), output
    return None


def self_test(compiler, flags):
    static = 'template <class T> struct S { static_assert(sizeof(T) > 99, "widths must be equal"); };\n'
    cases = [(True, "// expect: widths must be equal\n" + static + "S<int> s;\n"),
             (True, "// SPDX-License-Identifier: Apache-2.0\n// expect: widths must be equal\n" + static + "S<int> s;\n"),
             (True, "// expect: ok\n" + static + "int s;\n"),
             (False, "// expect: widths must be equal\n" + static + "int s;\n"),
             (False, "// expect: heads must divide\n" + static + "S<int> s;\n"),
             (False, "// expect: widths must be equal\n" + static + "S<int> s; S<char> t;\n"),
             (False, "// expect: widths must be equal\nint x = y;  // widths must be equal\n"),
             (False, "// expect: ok\n" + static + "S<int> s;\n"),
             (False, "// expect: hymba/none.hpp\n#include <iostream>\n"),
             (False, static + "S<int> s;\n")]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (good, text) in enumerate(cases):
            source = os.path.join(folder, "case%d.cpp" % number)
            with open(source, "w", encoding="utf-8") as file:
                file.write(text)
            if (check(compiler, flags, source) is None) != good:
                failures += 1
                print("case %d must %s:\n%s" % (number, "pass" if good else "not pass", text))
    print("%d cases, %d failures" % (len(cases), failures))
    return failures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--flags")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("sources", nargs="*")
    args = parser.parse_args()
    flags = ["-std=c++20"]
    if args.flags:
        with open(args.flags, encoding="utf-8") as file:
            flags = [line.strip() for line in file if line.strip()]
    if args.self_test:
        return 1 if self_test(args.compiler, flags) else 0
    failures = 0
    for source in args.sources:
        problem = check(args.compiler, flags, source)
        if problem:
            failures += 1
            print("%s: %s\n%s" % (source, problem[0], problem[1]))
    print("%d sources, %d failures" % (len(args.sources), failures))
    return 1 if failures or not args.sources else 0


if __name__ == "__main__":
    sys.exit(main())
