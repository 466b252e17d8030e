#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Goldens and checks of the tokeniser and the chat template, from SentencePiece's Python package and from real Jinja.

    check_text.py golden --instruct DIR           writes tests/golden/tokenizer_tiny.json and chat_template.json
    check_text.py check --instruct DIR --binary B [--binary B ...]
                                                  compares the committed goldens with fresh ones, makes a golden of the
                                                  published tokeniser in a temporary folder, and runs the C++ test
                                                  binaries on the published files

DIR holds the published tokenizer.model and tokenizer_config.json (they are not part of this repository; only renderings
of the messages below are). Needs the Python packages sentencepiece and jinja2; with transformers installed, its own
template compiler is compared too.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import jinja2
import jinja2.sandbox
import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"

TEXTS = [
    b"",
    b" ",
    b"  ",
    b"\n",
    b"\t",
    b"\0",
    b"a\0b",
    b"The capital of France is Paris.",
    b"In the beginning God created the heaven and the earth.",
    b" leading and trailing ",
    b"a   run    of     spaces" + b" " * 40 + b"end",
    b"tabs\tand\nnew\r\nlines\n\n\n",
    b"digits 0123456789 3.14159 1e-5",
    b"</s><s><unk>[PAD]<0x41><extra_id_1>User\n",
    "\u2581visible\u2581space \u2581\u2581".encode(),
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m A\u030angstro\u0308m".encode(),
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587 \ud55c\uad6d\uc5b4".encode(),
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea "
    "\u0939\u093f\u0928\u094d\u0926\u0940".encode(),
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 "
    "\U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd".encode(),
    "z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319".encode(),
    "\ufeff\u00a0\u2003\u3000\u200b\ufffd\U0010ffff".encode(),
    b"\xff",
    b"\x80\x80\x80",
    b"valid \xc3\x28 invalid",
    b"cut \xe2\x82",
    b"cut \xf0\x9f\x98",
    b"overlong \xc0\xaf \xe0\x80\xaf \xf0\x80\x80\xaf",
    b"surrogate \xed\xa0\x80\xed\xb0\x80",
    b"beyond \xf4\x90\x80\x80 \xf8\x88\x80\x80\x80",
    b"mixed \xe2\x82\xac\xe2\x82 \xff\xf0\x9f\x98\x80",
]


def random_text(rng):
    alphabet = ["the", " ", "  ", "and ", "God", "\n", "\t", "7"]
    alphabet += ["\u00e9", "e\u0301", "\u6f22", "\U0001f600", "\u2581", ".", "<", "\0"]
    data = "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 20))).encode()
    if rng.random() < 0.3:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + bytes([rng.randrange(128, 256)]) + data[at:]
    return data


def tokenizer_golden(model, count):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    rng = random.Random(1)
    texts = TEXTS + [random_text(rng) for _ in range(count)]
    decodings = []
    for _ in range(2 * count):
        size = processor.vocab_size()
        bytes_from = processor.piece_to_id("<0x00>")
        ids = []
        for _ in range(rng.randrange(1, 12)):
            kind = rng.random()
            if kind < 0.5:
                # Mostly lead and continuation bytes, so that characters come together now and then.
                ids.append(bytes_from + rng.choice(b"\x41\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff\xed\xa0"))
            elif kind < 0.6:
                ids.append(rng.choice([0, 1, 2, processor.piece_to_id("\u2581")]))
            else:
                ids.append(rng.randrange(size))
        decodings.append({"ids": ids, "hex": processor.decode(ids).encode().hex()})
    return {
        "vocabulary": processor.vocab_size(),
        "encode": [{"hex": t.hex(), "ids": processor.encode(t)} for t in texts],
        "decode": decodings,
    }


def environment():
    """The environment that tokeniser libraries render chat templates in."""

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = tojson
    return env


SPACES = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and chr(c).isspace())
NOT_SPACES = "\u200b\u2060\ufeff\u180e\0\x1b\x7f"

TOOLS = [
    '[{"type": "function", "function": {"name": "weather", "description": "it\'s <b>&amp;</b> \\"now\\"", '
    '"parameters": {"z": 1, "a": 2}}}]',
    '[{"b":[1,2.0,-0.0,1e5,1e16,1e-5,0.0001,123456789.125,'
    '1.7976931348623157e308,5e-324,-0,18446744073709551615,-9223372036854775808],'
    '"t":true,"f":false,"n":null,"e":{},"l":[]},{"again":1,"x":0,"again":{"k":2}}]',
    '[{"s":"\\u0000\\u0001\\b\\f\\n\\r\\t\\u001f\\u007f\\u0080\\u2028\\/\\\\ \\ud83d\\ude00 caf\\u00e9 \U0001f600"}]',
    '[{"\\u00e9\\n\\"":[[[[[]]]],{"":""}]},{},{"a":[{}]}]',
    "[]",
]


def conversations():
    def m(*turns):
        return json.dumps([{"role": r, "content": c} for r, c in turns], ensure_ascii=False)

    yield m(), None, None
    yield m(("user", "Hello")), None, None
    yield m(("system", "Be brief."), ("user", " Hi \n")), None, None
    yield m(("user", "q"), ("system", "late"), ("assistant", "a"), ("system", ""), ("user", "r")), None, None
    padded = SPACES + "inner" + SPACES + "space" + SPACES
    yield m(("system", padded), ("user", SPACES), ("tool", SPACES + NOT_SPACES + SPACES)), None, None
    yield m(("user", NOT_SPACES + "x" + NOT_SPACES)), None, None
    yield json.dumps([{"content": "c", "name": "n", "role": "user", "tool_calls": [1, {}]}]), None, None
    for tools in TOOLS:
        for contexts in (None, "[]", '["one"]', '[" two\\u2003","\\n\\nlines\\nof\\n\\n", ""]'):
            yield m(("system", "S"), ("user", "U"), ("tool", "{}"), ("assistant", "A")), tools, contexts
            yield m(("user", "U")), tools, contexts
    yield m(("system", "S")), None, '["only context"]'
    rng = random.Random(2)
    pool = [" ", "\n", "\t", "\u00a0", "\u3000", "a", "<extra_id_1>", "{{ x }}", "{% if %}", "</s>"]
    pool += ["e\u0301", "\U0001f600", "\u200b", "\x1c", "&<>'\""]
    for _ in range(30):
        roles = [rng.choice(["system", "user", "assistant", "tool"]) for _ in range(rng.randrange(6))]
        turns = [(role, "".join(rng.choices(pool, k=rng.randrange(8)))) for role in roles]
        contexts = ["".join(rng.choices(pool, k=4)) for _ in range(rng.randrange(3))]
        contexts = json.dumps(contexts, ensure_ascii=rng.random() < 0.5)
        yield m(*turns), rng.choice(TOOLS + [None]), rng.choice([contexts, None])


def template_golden(config):
    source = json.loads(config.read_text())["chat_template"]
    template = environment().from_string(source)
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        reference = _compile_jinja_template(source)
    except ImportError:
        reference = None
    cases = []
    for messages, tools, contexts in conversations():
        for prompt in (False, True):
            values = {
                "messages": json.loads(messages),
                "tools": json.loads(tools) if tools is not None else None,
                "contexts": json.loads(contexts) if contexts is not None else None,
                "add_generation_prompt": prompt,
            }
            text = template.render(**values)
            if reference is not None and reference.render(**values) != text:
                raise SystemExit("the environment here renders differently from transformers'")
            case = {"messages": messages, "tools": tools, "contexts": contexts}
            cases.append(case | {"add_generation_prompt": prompt, "text": text})
    return {"cases": cases}


def dump(value):
    """One case per line, ASCII only."""
    lines = []
    for key, content in value.items():
        if isinstance(content, list):
            lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(c) for c in content) + "\n]")
        else:
            lines.append(f'"{key}": {json.dumps(content)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["golden", "check"])
    parser.add_argument("--instruct", required=True, type=pathlib.Path)
    parser.add_argument("--binary", action="append", default=[], type=pathlib.Path)
    options = parser.parse_args()

    fresh = {
        "tokenizer_tiny.json": dump(tokenizer_golden(ROOT / "examples/models/random-tiny/tokenizer.model", 60)),
        "chat_template.json": dump(template_golden(options.instruct / "tokenizer_config.json")),
    }
    if options.command == "golden":
        for name, text in fresh.items():
            (GOLDEN / name).write_text(text)
            print(name, len(text), "bytes")
        return 0

    failed = 0
    for name, text in fresh.items():
        same = (GOLDEN / name).read_text() == text
        failed += not same
        print(name, "is up to date" if same else "DIFFERS from what the oracle makes now")
    with tempfile.TemporaryDirectory() as folder:
        golden = pathlib.Path(folder) / "tokenizer_published.json"
        golden.write_text(dump(tokenizer_golden(options.instruct / "tokenizer.model", 2000)))
        env = dict(os.environ, HYMBA_INSTRUCT_DIR=str(options.instruct), HYMBA_INSTRUCT_GOLDEN=str(golden))
        for binary in options.binary:
            failed += subprocess.run([str(binary)], env=env).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
