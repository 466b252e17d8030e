# SPDX-License-Identifier: Apache-2.0
"""Bad options, files and ids: one line on standard error that names the thing, exit code 2, nothing on standard output."""
import json
import os
import re
import shutil
import struct
import subprocess

from support import GOLDEN, HYMBA, MODEL, main, ok, refused

TINY = os.path.join(GOLDEN, "hymba_tiny")
IDS = ("generate", "--model", TINY, "--max-new-tokens", 3, "--ids")


def test_options(folder):
    refused(naming="no command")
    refused("translate", naming="translate")
    refused("--nonsense", naming="--nonsense")
    refused("generate", naming="--model")
    refused("generate", "--model", MODEL, naming="no prompt")
    refused("generate", "--model", MODEL, "--prompt", "x", "--nonsense", naming="--nonsense")
    refused("generate", "--model", MODEL, "--prompt", "x", "--ids", "1", naming="--ids")
    refused("generate", "--model", MODEL, "--prompt", "x", "--prompt-file", "y", naming="--prompt")
    refused("generate", "--model", MODEL, "--prompt", naming="--prompt")
    refused("generate", "--model", MODEL, "--prompt", "", "--no-bos", naming="empty")
    refused("generate", "--model", MODEL, "--prompt", "two\nlines", "--weights", "int\n8", naming="--weights")
    refused("generate", "--model", MODEL, "--ids", "1", "--stop", "x", naming="--stop")
    refused("generate", "--model", MODEL, "--prompt", "x", "--stop", "", naming="stop string 0")
    refused("generate", "--model", MODEL, "--prompt", "x", "--logprobs", naming="--json")
    refused("generate", "--model", MODEL, "--prompt", "x", "--greedy", "--temperature", "1", naming="--temperature")
    for option, value in (("--threads", "-1"), ("--threads", "5000"), ("--threads", "x"), ("--weights", "int3"),
                          ("--cache", "f64"), ("--arch", "vnni"), ("--max-context", "-5"), ("--max-context", "0x10"),
                          ("--prefill-chunk", "0"), ("--prefill-chunk", "65537"), ("--prefill-chunk", "x"),
                          ("--max-context", "99999999999999999999"), ("--max-new-tokens", "-1"), ("--max-new-tokens", "1e3"), ("--seed", "-1"), ("--seed", "1.5"),
                          ("--stop-token", "512"), ("--stop-token", "-1"), ("--stop-token", "1,2"), ("--temperature", "warm"),
                          ("--temperature", ""), ("--top-k", "many")):
        refused("generate", "--model", MODEL, "--prompt", "x", option, value, naming=option)
    # Either there are no dot products of such weights, or the program or the machine has none at all.
    refused("generate", "--model", MODEL, "--prompt", "x", "--weights", "f32", "--arch", "dot", naming="--arch is dot")
    for option, value in (("temperature", "-0.5"), ("temperature", "nan"), ("top-p", "0"), ("top-p", "1.5"), ("top-k", "-1"),
                          ("min-p", "2"), ("repetition-penalty", "0"), ("presence-penalty", "inf"), ("penalty-window", "-2")):
        refused("generate", "--model", MODEL, "--prompt", "x", "--" + option, value, naming=option.replace("-", "_"))
        refused("chat", "--model", MODEL, "--" + option, value, naming=option.replace("-", "_"))


def test_ids(folder):
    for ids in ("", "1,,2", "1,2,", "a", "1.5", "-1", "53", "1,2,99999999999999", "0x1", "1;2"):
        refused(*IDS, ids, naming="--ids")
    ok(*IDS, " 1, 2 ,52")


def test_context(folder):
    refused("generate", "--model", TINY, "--ids", "1,2,3,4", "--max-context", 3, naming=["4 tokens", "max_context 3"])
    refused("logits", "--model", TINY, "--ids", "1,2,3,4", "--out", os.path.join(folder, "x"), "--max-context", 3, naming="max_context 3")
    refused("generate", "--model", MODEL, "--prompt", "x", "--max-context", 1 << 30, naming="memory")
    refused("generate", "--model", MODEL, "--prompt", "x", "--max-context", (1 << 30) + 1, naming="max_context")


def test_logits(folder):
    out = os.path.join(folder, "out.safetensors")
    base = ("logits", "--model", TINY, "--ids", "1,2,3")
    refused(*base, naming="--out")
    refused(*base, "--out", out, "--prefill", 4, naming="--prefill")
    refused(*base, "--out", out, "--prefill", -1, naming="--prefill")
    refused(*base, "--out", out, "--prefill", "all", naming="--prefill")
    refused(*base, "--out", os.path.join(folder, "none", "x"), naming="none")
    refused(*base, "--out", folder, naming=folder)
    refused(*base, "--out", "/dev/null", naming="/dev/null")
    assert os.listdir(folder) == []


def test_files(folder):
    refused("generate", "--model", os.path.join(folder, "none"), "--prompt", "x", naming="config.json")
    refused("generate", "--model", MODEL, "--prompt-file", os.path.join(folder, "none"), naming="none")
    refused("generate", "--model", MODEL, "--prompt-file", folder, naming="folder")
    refused("generate", "--model", TINY, "--prompt", "x", naming="tokenizer.model")
    refused("perplexity", "--model", MODEL, os.path.join(folder, "none.txt"), naming="none.txt")
    refused("perplexity", "--model", MODEL, naming="FILE")
    refused("perplexity", "--model", MODEL, "/dev/null", naming="at least 2")
    refused("chat", "--model", MODEL, "--tools", os.path.join(folder, "none.json"), naming="none.json")
    refused("chat", "--model", MODEL, "--load-session", os.path.join(folder, "none"), naming="none")
    refused("chat", "--model", MODEL, "--save-session", folder, naming=folder)
    tools = os.path.join(folder, "tools.json")
    with open(tools, "w") as file:
        file.write('{"not": "a list"}')
    refused("chat", "--model", MODEL, "--tools", tools, naming=["tools.json", "expected an array"])


def copy(folder, name="copy"):
    target = os.path.join(folder, name)
    shutil.copytree(TINY, target)
    return target


def test_broken_checkpoints(folder):
    def attempt(name, change, naming):
        target = copy(folder, name)
        change(target)
        for command in (("generate", "--model", target, "--ids", "1"), ("inspect", target),
                        ("logits", "--model", target, "--ids", "1", "--out", os.path.join(folder, "out"))):
            refused(*command, naming=naming)

    def config(**changes):
        def change(target):
            path = os.path.join(target, "config.json")
            with open(path) as file:
                content = json.load(file)
            content.update(changes)
            with open(path, "w") as file:
                json.dump(content, file)
        return change

    def text(content):
        def change(target):
            with open(os.path.join(target, "config.json"), "w") as file:
                file.write(content)
        return change

    def weights(edit):
        def change(target):
            path = os.path.join(target, "model.safetensors")
            with open(path, "rb") as file:
                content = file.read()
            length = struct.unpack("<Q", content[:8])[0]
            header = json.loads(content[8:8 + length])
            with open(path, "wb") as file:
                file.write(edit(header, content[8 + length:]))
        return change

    def packed(header, data):
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def without(name):
        def edit(header, data):
            del header[name]
            return packed(header, data)
        return edit

    def renamed(header, data):
        header["model.extra"] = header.pop("model.final_layernorm.weight")
        return packed(header, data)

    attempt("layers", config(num_hidden_layers=0), "num_hidden_layers")
    attempt("huge", config(vocab_size=1 << 22), "model.embed_tokens.weight")
    attempt("type", config(model_type="llama"), "llama")
    attempt("heads", config(num_attention_heads=3), "")
    attempt("width", config(vocab_size=54), ["model.embed_tokens.weight", "[53, 16]", "[54, 16]"])
    attempt("truncated", weights(lambda header, data: packed(header, data[:-4])), "model.safetensors")
    attempt("renamed", weights(renamed), "model.final_layernorm.weight")
    attempt("hole", weights(without("model.final_layernorm.weight")), "model.safetensors")
    attempt("lie", weights(lambda header, data: struct.pack("<Q", 1 << 62)), "model.safetensors")
    attempt("empty", weights(lambda header, data: b""), "model.safetensors")
    attempt("json", text(""), "config.json")
    attempt("line", text("{\n\n x\n"), "line 3")


def test_a_name_with_a_newline_stays_one_line(folder):
    refused("generate", "--model", os.path.join(folder, "a\nb"), "--prompt", "x", naming="a")
    refused("inspect", "a\nb\n\nc", naming="config.json")


def test_help_and_version(folder):
    assert ok("--version").decode().startswith("hymba ")
    assert ok("--help").decode().count("perplexity") == 1
    for command in ("generate", "chat", "perplexity", "inspect", "logits"):
        text = ok(command, "--help").decode()
        assert f"hymba {command}" in text and "Example" in text, text


def test_started_by_the_loader(folder):
    """The program starts itself anew with a setting for OpenMP: not where the loader was given it to run."""
    with open(HYMBA, "rb") as file:
        loader = re.search(rb"/lib[^\0]*/ld[^/\0]*\.so[^/\0]*(?=\0)", file.read(4096))
    if loader is None:
        return  # not a program with a loader of this kind
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    done = subprocess.run([loader.group().decode(), HYMBA, "--version"], env=unset, capture_output=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith(b"hymba "), done


main()
