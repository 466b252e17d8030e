#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of the sources, checked over a repository (default: the one this file lies in).

    check_includes.py [ROOT]      prints one line per broken rule, exit code 1 if there is any
    check_includes.py --self-test proves on made-up trees that each rule fires, and that a clean tree passes
"""
import os
import re
import sys
import tempfile

# Each folder of include/hymba may include itself and those before it; io and text stand side by side.
LAYERS = [("core",), ("variant",), ("exec",), ("kernels",), ("state",), ("heads",), ("model",), ("io", "text"), ("train",)]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
TOP_LEVEL = {"hymba.hpp", "fwd.hpp"}

XSIMD_HOME = "exec/simd.hpp"
STREAM_LAYERS = {"io", "text"}
STREAMS = {"iostream", "fstream"}
STREAM_EXCEPTIONS = {("core/file_map.hpp", "fstream")}  # the copy that stands in for mmap on Windows
FWD_FORBIDDEN = ("Eigen/", "unsupported/Eigen", "xsimd/", "nlohmann/", "sentencepiece")

MAX_LINES = 1000
CODE_FOLDERS = ("include", "tests", "bench", "examples", "cmake", ".ci", "docs")
CODE_SUFFIXES = (".hpp", ".cpp", ".py", ".sh", ".cmake", ".in")
CODE_NAMES = ("CMakeLists.txt", "run")
SPDX = "SPDX-License-Identifier: Apache-2.0"
TODO_WORD = "TO" + "DO"

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def strip_comments(text):
    """Comments become blanks of the same number of lines; string literals stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    keep = lambda m: m.group(0) if m.group(0)[0] == '"' else "\n" * m.group(0).count("\n")
    return re.sub(pattern, keep, text, flags=re.S)


def includes_of(text):
    for number, line in enumerate(strip_comments(text).split("\n"), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1), match.group(2)


def code_files(root):
    for entry in sorted(os.listdir(root)):
        path = os.path.join(root, entry)
        if os.path.isfile(path) and is_code(entry):
            yield entry
    for folder in CODE_FOLDERS:
        for directory, folders, files in os.walk(os.path.join(root, folder)):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
            for name in sorted(files):
                if is_code(name):
                    yield os.path.relpath(os.path.join(directory, name), root).replace(os.sep, "/")


def is_code(name):
    return name.endswith(CODE_SUFFIXES) or name in CODE_NAMES


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        return file.read()


def check_text(path, text):
    """SPDX line, length, and the word for work left undone."""
    lines = text.split("\n")
    # In a header it is the first line; a script may have its interpreter and a compile-fail case its sentence before it.
    first = 1 if path.startswith("include/") else 2
    if not any(SPDX in line for line in lines[:first]):
        yield path, 1, "spdx", "the first line must be the licence: " + SPDX
    if len(lines) - (lines[-1] == "") > MAX_LINES:
        yield path, len(lines), "length", "the file has %d lines; the limit is %d" % (len(lines), MAX_LINES)
    for number, line in enumerate(lines, 1):
        if re.search(r"\b%s\b" % TODO_WORD, line):
            yield path, number, "todo", "do it, or open an issue"


def check_header(path, text, known):
    """The includes of one file below include/hymba; `path` is relative to it, `known` the headers that exist."""
    folder = path.split("/")[0] if "/" in path else ""
    shown = "include/hymba/" + path
    if not folder and path not in TOP_LEVEL:
        yield shown, 1, "folder", "only %s lie directly in include/hymba" % " and ".join(sorted(TOP_LEVEL))
    if folder and folder not in RANK:
        yield shown, 1, "folder", "'%s' is not in the list of layers" % folder
    for number, kind, name in includes_of(text):
        if kind == '"':
            yield shown, number, "quotes", 'write #include <hymba/...> instead of "%s"' % name
            continue
        if name.startswith("hymba/"):
            target = name[len("hymba/"):]
            if target not in known:
                yield shown, number, "exists", "there is no header <%s>" % name
            if folder in RANK:
                target_folder = target.split("/")[0] if "/" in target else ""
                if target in TOP_LEVEL and target != "fwd.hpp":
                    yield shown, number, "layer", "<%s> includes everything and may be included by no layer" % name
                elif target_folder in RANK and RANK[target_folder] > RANK[folder]:
                    yield shown, number, "layer", "%s/ must not include %s/, which stands above it" % (folder, target_folder)
        elif name.startswith("xsimd/") and path != XSIMD_HOME:
            yield shown, number, "xsimd", "xsimd is included by %s only" % XSIMD_HOME
        elif name.startswith("nlohmann/") and folder not in STREAM_LAYERS:
            yield shown, number, "json", "nlohmann belongs to io/ and text/"
        elif name in STREAMS and folder not in STREAM_LAYERS and (path, name) not in STREAM_EXCEPTIONS:
            yield shown, number, "streams", "<%s> belongs to io/ and text/" % name
        elif name.startswith("sentencepiece") and folder != "text":
            yield shown, number, "sentencepiece", "SentencePiece belongs to text/"


def check_graph(headers):
    """`headers`: path -> text. No cycle; nothing heavy behind fwd.hpp."""
    graph = {p: [n[len("hymba/"):] for _, k, n in includes_of(t) if k == "<" and n.startswith("hymba/")]
             for p, t in headers.items()}
    done, stack = set(), []

    def visit(path):
        if path in stack:
            yield "include/hymba/" + path, 1, "cycle", " -> ".join(stack[stack.index(path):] + [path])
        elif path in graph and path not in done:
            stack.append(path)
            for target in graph[path]:
                yield from visit(target)
            stack.pop()
            done.add(path)

    for path in sorted(graph):
        yield from visit(path)

    reached, queue = set(), ["fwd.hpp"]
    while queue:
        path = queue.pop()
        if path in reached or path not in headers:
            continue
        reached.add(path)
        queue += graph[path]
        for number, _, name in includes_of(headers[path]):
            if name.startswith(FWD_FORBIDDEN):
                yield "include/hymba/" + path, number, "fwd", "<hymba/fwd.hpp> must not bring in <%s>" % name


def check(root):
    findings = []
    for path in code_files(root):
        findings += check_text(path, read(root, path))
    base = os.path.join(root, "include", "hymba")
    headers = {}
    for directory, _, files in os.walk(base):
        for name in files:
            path = os.path.relpath(os.path.join(directory, name), base).replace(os.sep, "/")
            if name.endswith((".hpp", ".h", ".ipp", ".inl")):
                headers[path] = read(base, path)
    for path in sorted(headers):
        findings += check_header(path, headers[path], headers)
    findings += check_graph(headers)
    return findings, len(headers)


def self_test():
    top = "// " + SPDX + "\n#pragma once\n"
    clean = {
        "include/hymba/hymba.hpp": top + "#include <hymba/fwd.hpp>\n#include <hymba/train/loss.hpp>\n",
        "include/hymba/fwd.hpp": top + "#include <hymba/core/a.hpp>\n",
        "include/hymba/core/a.hpp": top + "#include <vector>\n// #include <hymba/model/m.hpp>\n/*\n#include <xsimd/x.hpp>\n*/\n",
        "include/hymba/core/b.hpp": top + "#include <hymba/core/a.hpp>\n#include <sstream>\n",
        "include/hymba/core/file_map.hpp": top + "#ifdef _WIN32\n#include <fstream>\n#endif\n",
        "include/hymba/variant/v.hpp": top + "#include <hymba/core/b.hpp>\n",
        "include/hymba/variant/alone.hpp": top,
        "include/hymba/exec/simd.hpp": top + "#include <xsimd/xsimd.hpp>\n",
        "include/hymba/kernels/x86/k.hpp": top + "#include <hymba/exec/simd.hpp>\n#include <Eigen/Core>\n",
        "include/hymba/state/s.hpp": top + "#include <hymba/fwd.hpp>\n",
        "include/hymba/heads/h.hpp": top + "#include <hymba/kernels/x86/k.hpp>\n",
        "include/hymba/model/m.hpp": top + "#include <hymba/heads/h.hpp>\n",
        "include/hymba/io/json.hpp": top + "#include <nlohmann/json.hpp>\n#include <fstream>\n#include <hymba/text/t.hpp>\n",
        "include/hymba/text/t.hpp": top + "#include <iostream>\n#include <sentencepiece_processor.h>\n",
        "include/hymba/train/alone.hpp": top,
        "include/hymba/train/loss.hpp": top + "#include <hymba/io/json.hpp>\n",
        "tests/compile_fail/case.cpp": "// expect: a sentence\n// " + SPDX + "\n",
        "test.sh": "#!/bin/sh\n# " + SPDX + "\n",
        "CMakeLists.txt": "# " + SPDX + "\n",
    }
    h = "include/hymba/"
    # (rule, file, text in place of the clean tree's, or appended to it when it starts with +)
    broken = [("layer", h + "core/b.hpp", "+#include <hymba/variant/alone.hpp>\n"),
              ("layer", h + "variant/v.hpp", "+#  include  <hymba/exec/simd.hpp>\n"),
              ("layer", h + "kernels/x86/k.hpp", "+#include <hymba/state/s.hpp>\n"),
              ("layer", h + "exec/simd.hpp", "+#include <hymba/hymba.hpp>\n"),
              ("layer", h + "heads/h.hpp", "+#include <hymba/io/json.hpp>\n"),
              ("layer", h + "text/t.hpp", "+#include <hymba/train/alone.hpp>\n"),
              ("xsimd", h + "kernels/x86/k.hpp", "+#include <xsimd/xsimd.hpp>\n"),
              ("xsimd", h + "hymba.hpp", "+#include <xsimd/types/xsimd_avx_register.hpp>\n"),
              ("json", h + "model/m.hpp", "+#include <nlohmann/json.hpp>\n"),
              ("streams", h + "core/a.hpp", "+#include <iostream>\n"),
              ("streams", h + "core/file_map.hpp", "+#include <iostream>\n"),
              ("streams", h + "core/b.hpp", "+#include <fstream>\n"),
              ("streams", h + "train/loss.hpp", "+#include <fstream>\n"),
              ("sentencepiece", h + "io/json.hpp", "+#include <sentencepiece_processor.h>\n"),
              ("fwd", h + "core/a.hpp", "+#include <Eigen/Core>\n"),
              ("cycle", h + "core/a.hpp", "+#include <hymba/core/b.hpp>\n"),
              ("exists", h + "core/b.hpp", "+#include <hymba/core/none.hpp>\n"),
              ("quotes", h + "core/b.hpp", '+#include "a.hpp"\n'),
              ("folder", h + "misc/x.hpp", top),
              ("folder", h + "extra.hpp", top),
              ("spdx", h + "core/a.hpp", "#pragma once\n// " + SPDX + "\n"),
              ("spdx", "test.sh", "#!/bin/sh\nexit 0\n"),
              ("spdx", "cmake/x.cmake", "message(x)\n"),
              ("length", h + "core/a.hpp", top + "\n" * (MAX_LINES - 1)),
              ("todo", h + "core/a.hpp", top + "// %s: later\n" % TODO_WORD),
              ("todo", "bench/bench_x.cpp", "// " + SPDX + "\n// %s\n" % TODO_WORD)]

    def run(files):
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                    file.write(text)
            return check(root)[0]

    failures = 0
    for finding in run(clean):
        failures += 1
        print("the clean tree breaks a rule: %s:%d: %s: %s" % finding)
    at_the_limit = dict(clean)
    at_the_limit[h + "core/a.hpp"] = top + "\n" * (MAX_LINES - 2)
    for finding in run(at_the_limit):
        failures += 1
        print("a file of %d lines breaks a rule: %s:%d: %s: %s" % ((MAX_LINES,) + finding))
    for rule, path, text in broken:
        files = dict(clean)
        files[path] = clean[path] + text[1:] if text.startswith("+") else text
        findings = run(files)
        if [(f[0], f[2]) for f in findings] != [(path, rule)]:
            failures += 1
            print("expected one finding of '%s' in %s after %r, got %s" % (rule, path, text[-60:], findings))
    print("%d made-up trees, %d failures" % (len(broken) + 2, failures))
    return 1 if failures else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    findings, headers = check(root)
    if not headers:
        print("no header found below %s/include/hymba" % root)
        return 1
    for finding in findings:
        print("%s:%d: %s: %s" % finding)
    print("%d headers, %d findings" % (headers, len(findings)))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
