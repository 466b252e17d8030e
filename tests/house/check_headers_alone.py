#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that every header compiles alone, twice included, and without a warning.

    check_headers_alone.py --compiler CXX [--flags FILE] [--jobs N] [--without LIBRARY]... INCLUDE_DIR
    check_headers_alone.py --compiler CXX --self-test

--without LIBRARY skips the headers that include, through whatever other headers of ours, one whose name starts so.
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
INCLUDE = re.compile(r"^\s*#\s*include\s*<([^>]+)>", re.M)


def headers_below(include):
    for directory, folders, files in os.walk(include):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".hpp"):
                yield os.path.relpath(os.path.join(directory, name), include).replace(os.sep, "/")


def needs(include, header, libraries, seen):
    if header in seen:
        return False
    seen.add(header)
    path = os.path.join(include, header)
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8") as file:
        names = INCLUDE.findall(file.read())
    return any(n.startswith(tuple(libraries)) or needs(include, n, libraries, seen) for n in names)


def compile_header(compiler, flags, include, header):
    """The compiler's output if the header does not compile alone, else None."""
    text = "#include <%s>\n#include <%s>\n" % (header, header)
    command = [compiler] + flags + WARNINGS + ["-fsyntax-only", "-x", "c++", "-I" + include, "-"]
    done = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return None if done.returncode == 0 else done.stdout.decode("utf-8", "replace")


def check(compiler, flags, include, jobs, without):
    headers = list(headers_below(include))
    skipped = [h for h in headers if without and needs(include, h, without, set())]
    headers = [h for h in headers if h not in skipped]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        outputs = pool.map(lambda h: compile_header(compiler, flags, include, h), headers)
        failed = {h: o for h, o in zip(headers, outputs) if o is not None}
    return headers, skipped, failed


def self_test(compiler, flags):
    files = {"hymba/good.hpp": "#pragma once\n#include <vector>\ninline std::vector<int> f() { return {}; }\n",
             "hymba/leans.hpp": "#pragma once\ninline std::vector<int> g() { return {}; }\n",
             "hymba/twice.hpp": "struct Twice {};\n",
             "hymba/warns.hpp": "#pragma once\ninline int h(int unused) { return 0; }\n",
             "hymba/optional.hpp": "#pragma once\n#include <absent_library/x.hpp>\n",
             "hymba/behind.hpp": "#pragma once\n#include <hymba/optional.hpp>\n"}
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "hymba"))
        for path, text in files.items():
            with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
                file.write(text)
        _, skipped, failed = check(compiler, flags, folder, 2, ["absent_library"])
    good = sorted(failed) == ["hymba/leans.hpp", "hymba/twice.hpp", "hymba/warns.hpp"] and \
        sorted(skipped) == ["hymba/behind.hpp", "hymba/optional.hpp"]
    print("failed %s, skipped %s: %s" % (sorted(failed), sorted(skipped), "as expected" if good else "wrong"))
    return 0 if good else 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--flags")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("include", nargs="?")
    args = parser.parse_args()
    flags = ["-std=c++20"]
    if args.flags:
        with open(args.flags, encoding="utf-8") as file:
            flags = [line.strip() for line in file if line.strip()]
    # The libraries we use are not ours to keep free of warnings.
    flags = ["-isystem" + f[2:] if f.startswith("-I") else f for f in flags]
    if args.self_test:
        return self_test(args.compiler, flags)
    ours = os.path.abspath(args.include)
    flags = [f for f in flags if f != "-isystem" + ours and f != "-isystem/usr/include"]
    headers, skipped, failed = check(args.compiler, flags, ours, args.jobs, args.without)
    for header, output in failed.items():
        print("<%s> does not compile alone:\n%s" % (header, output))
    print("%d headers alone, %d skipped for a missing library, %d failed" % (len(headers), len(skipped), len(failed)))
    return 1 if failed or not headers else 0


if __name__ == "__main__":
    sys.exit(main())
