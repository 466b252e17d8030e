# SPDX-License-Identifier: Apache-2.0
"""hymba quantize: its files give what quantising at load gives and are as large as promised; errors leave nothing."""
import json
import os
import shutil
import struct

from support import GOLDEN, MODEL, golden, joined, main, ok, ok_json, read_safetensors, refused, run

FORMATS = ("f32", "f16", "bf16", "int8", "int4")
QUANTISED = ("int8", "int4")
# Matrices that stay in int8 beside int4.
FINE = ("model.embed_tokens.weight", "lm_head.weight", "mamba.x_proj.0.weight", "mamba.dt_proj.0.weight")
# What the metadata calls their layouts
LAYOUT = {"int8": "int8", "int4": "int4.2"}
# Between them: hybrid layers, no attention, no SSM, an untied output, odd widths, shards, other types stored.
NAMES = ("hymba_tiny", "ssm_only", "attention_only", "untied_output", "odd_sizes", "sharded", "mixed_dtypes")
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 8


def path_in(folder, name, content=None):
    path = os.path.join(folder, name)
    if content is not None:
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    return path


def content_of(*parts):
    with open(os.path.join(*parts), "rb") as file:
        return file.read()


def header_of(folder):
    content = content_of(folder, "model.safetensors")
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:8 + length]), content[8 + length:]


def write_header(folder, header, data):
    text = json.dumps(header).encode()
    path_in(folder, "model.safetensors", struct.pack("<Q", len(text)) + text + data)


def quantised(folder, source, weights, *options, name=None):
    target = path_in(folder, name or f"{os.path.basename(source)}-{weights}")
    assert ok("quantize", source, target, "--weights", weights, "--quiet", *options) == b""
    return target


def logits(folder, model, ids, *options):
    out = path_in(folder, "logits.safetensors")
    ok("logits", "--model", model, "--ids", joined(ids), "--out", out, *options)
    return content_of(out)


def lines(size):
    return (size + 63) // 64 * 64


def row_bytes(weights, cols):
    """What core/quantised.hpp promises."""
    blocks = (cols + 255) // 256
    return lines(cols) + lines(4 * blocks) if weights == "int8" else (cols + 127) // 128 * 64 + lines(8 * blocks)


def test_a_file_gives_what_quantising_at_load_gives(folder):
    for name in NAMES:
        ids, _, checkpoint = golden(name)
        for weights in FORMATS:
            target = quantised(folder, checkpoint, weights)
            for arch in ("simd", "auto"):
                at_load = logits(folder, checkpoint, ids, "--weights", weights, "--arch", arch)
                told = logits(folder, target, ids, "--weights", weights, "--arch", arch)
                assert told == at_load, (name, weights, arch)
                assert logits(folder, target, ids, "--arch", arch) == at_load, (name, weights, arch, "by default")


def test_the_same_text(folder):
    base = ("--prompt", "In the beginning", "--ignore-eos", "--temperature", 1, "--seed", 3, "--max-new-tokens", 30,
            "--json")
    for weights in FORMATS:
        target = quantised(folder, MODEL, weights)
        told = ok_json("generate", "--model", target, *base)
        assert told["weights"] == weights, told
        assert told["tokens"] == ok_json("generate", "--model", MODEL, "--weights", weights, *base)["tokens"]


def test_sizes_and_types_are_those_of_the_format(folder):
    for source in (MODEL, os.path.join(GOLDEN, "untied_output"), os.path.join(GOLDEN, "odd_sizes")):
        originals = {t["name"]: t["shape"] for t in ok_json("inspect", source, "--json", "--tensors")["tensors"]}
        for weights in FORMATS:
            target = path_in(folder, os.path.basename(source) + "-" + weights)
            told = ok_json("quantize", source, target, "--weights", weights, "--json")
            size = os.path.getsize(os.path.join(target, "model.safetensors"))
            assert told["bytes_out"] == size and told["weights"] == weights and told["calibrated"] is False, told
            assert (told["in"], told["out"]) == (source, target)
            header, data = header_of(target)
            notes, types, numbers = header.pop("__metadata__"), {}, 0
            assert sorted(header) == sorted(originals)
            for name, entry in header.items():
                matrix = len(entry["shape"]) == 2 and name.endswith("weight") and ".mamba.conv1d" not in name
                kept = "int8" if weights == "int4" and name.endswith(FINE) else weights
                begin, end = entry["data_offsets"]
                if "hymba.rows." + name in notes:
                    rows, cols = originals[name]
                    # int4 is, matrix by matrix, where that is better.
                    rotated = ".rotated:" in notes["hymba.rows." + name] if kept == "int4" else not name.endswith(FINE)
                    layout = LAYOUT[kept] + (".rotated" if rotated else "")
                    assert matrix and notes["hymba.rows." + name] == f"{layout}:{cols}", (name, notes)
                    assert entry["dtype"] == "U8" and entry["shape"] == [rows, row_bytes(kept, cols)], (name, entry)
                else:
                    assert entry["shape"] == originals[name], (name, entry)
                    if matrix:
                        assert weights not in QUANTISED and entry["dtype"] == weights.upper(), (name, entry)
                    else:
                        kept = entry["dtype"]
                    rotated = False
                told = kept if kept in QUANTISED else entry["dtype"]
                types.setdefault("rotated " + told if rotated else told, []).append(name)
                numbers += end - begin
            assert numbers == len(data) and size < numbers + 40000
            # inspect names the formats, and counts as the file does
            weights_told = ok_json("inspect", target, "--json")["weights"]
            assert weights_told["bytes"] == numbers
            assert {t: n["tensors"] for t, n in weights_told["types"].items()} == {t: len(n) for t, n in types.items()}
            text = ok("inspect", target).decode()
            assert "every name and shape fits" in text
            for kind in types:
                assert f"{kind}: {len(types[kind])} tensors" in text, (kind, text)
    # What is said of a large model: in int8 little more than half of bf16, in int4 a little more than half of that.
    assert row_bytes("int8", 1600) == 1664 and row_bytes("int4", 1600) == 896


def test_tokenizer_and_config_go_along(folder):
    source = os.path.join(folder, "source")
    shutil.copytree(MODEL, source)
    path_in(source, "tokenizer_config.json", '{"chat_template": "{{ bos_token }}"}')
    path_in(source, "unrelated.txt", "stays where it is")
    for weights in FORMATS:
        target = quantised(folder, source, weights)
        assert sorted(os.listdir(target)) == ["config.json", "model.safetensors", "tokenizer.model",
                                              "tokenizer_config.json"]
        for name in ("tokenizer.model", "tokenizer_config.json"):
            assert content_of(target, name) == content_of(source, name)
        one, two = (json.loads(content_of(f, "config.json")) for f in (source, target))
        for key in ("torch_dtype", "kq_head_dim", "v_head_dim"):  # the first follows the weights; -1 is written out
            one.pop(key), two.pop(key)
        assert all(two[key] == value for key, value in one.items() if key in two), (one, two)
        told = ok_json("inspect", target, "--json")
        expected = ok_json("inspect", source, "--json")
        for key in told:
            assert key in ("folder", "weights") or told[key] == expected[key], key
    # Shards become one file, and a folder without tokeniser is none the worse
    target = quantised(folder, os.path.join(GOLDEN, "sharded"), "int8")
    assert sorted(os.listdir(target)) == ["config.json", "model.safetensors"]


def test_the_same_bytes_each_time(folder):
    text = path_in(folder, "text.txt", TEXT)
    for options in ((), ("--calibrate", text)):
        one, two = (quantised(folder, MODEL, "int4", *options, name=f"{len(options)}-{i}") for i in range(2))
        assert content_of(one, "model.safetensors") == content_of(two, "model.safetensors")


def test_calibration(folder):
    text = path_in(folder, "text.txt", TEXT)
    plain = quantised(folder, MODEL, "int4")
    target = path_in(folder, "calibrated")
    told = ok_json("quantize", MODEL, target, "--weights", "int4", "--calibrate", text, "--json")
    assert told["calibrated"] is True
    (one, data_one), (two, data_two) = header_of(plain), header_of(target)
    # Which matrices in int4 are rotated is the text's to say, and nothing else in the header.
    marked = [{**h, "__metadata__": {k: v.replace("int4.2.rotated:", "int4.2:") for k, v in h["__metadata__"].items()}}
              for h in (one, two)]
    assert marked[0] == marked[1] and data_one != data_two
    # Every kind of matrix changes, those that stay in int8 too
    changed = set()
    for name, entry in one.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind = name.split(".", 3)[-1] if name.startswith("model.layers.") else name
        if data_one[begin:end] != data_two[begin:end]:
            assert "hymba.rows." + name in one["__metadata__"], name
            changed.add(kind)
    assert len(changed) >= 7, changed  # input and output projection, gate, up, down, x_proj, embedding
    eight = quantised(folder, MODEL, "int8")
    eight_told = quantised(folder, MODEL, "int8", "--calibrate", text, name="eight")
    assert header_of(eight)[0] == header_of(eight_told)[0] and header_of(eight)[1] != header_of(eight_told)[1]
    # The text may come from standard input, or as ids; its length, and that of its sequences, count
    piped = path_in(folder, "piped")
    ok("quantize", MODEL, piped, "--weights", "int4", "--calibrate", "-", stdin=TEXT)
    assert header_of(piped)[1] == data_two
    ids = ok_json("generate", "--model", MODEL, "--prompt", TEXT, "--max-new-tokens", 0, "--json")["prompt_ids"]
    by_ids = quantised(folder, MODEL, "int4", "--ids", joined(ids), name="ids")
    assert header_of(by_ids)[1] == data_two
    for i, options in enumerate((("--context", 16), ("--max-tokens", 20))):
        other = quantised(folder, MODEL, "int4", "--calibrate", text, *options, name=f"other-{i}")
        assert header_of(other)[1] != data_two, options
    same = quantised(folder, MODEL, "int4", "--calibrate", text, "--max-tokens", len(ids), name="same")
    assert header_of(same)[1] == data_two
    # ids need no tokeniser
    ids, _, checkpoint = golden("hymba_tiny")
    quantised(folder, checkpoint, "int4", "--ids", joined(ids))


def test_quantised_rows_become_numbers_again(folder):
    ids = list(range(3, 40))
    for weights in QUANTISED:
        target = quantised(folder, MODEL, weights)
        expected = logits(folder, target, ids, "--arch", "simd")
        plain = quantised(folder, target, "f32")
        # Sums of the same numbers in another order
        one = path_in(folder, "one", expected)
        two = path_in(folder, "two", logits(folder, plain, ids, "--arch", "simd"))
        one, two = read_safetensors(one)["logits"][1], read_safetensors(two)["logits"][1]
        assert max(abs(a - b) for a, b in zip(one, two)) < 2e-5 * max(map(abs, one))
        for again in QUANTISED:
            out = path_in(folder, "again")
            refused("quantize", target, out, "--weights", again, naming=[target, "tensor", "already"])
            assert not os.path.exists(out)


def test_where_it_writes(folder):
    out = path_in(folder, "out")

    def wrong(target, naming, source=MODEL):
        before = sorted(os.walk(folder))
        refused("quantize", source, target, "--weights", "int8", naming=naming)
        assert sorted(os.walk(folder)) == before, (target, before)

    os.mkdir(out)
    ok("quantize", MODEL, out, "--weights", "int8")  # empty: taken
    wrong(out, [out, "empty"])
    assert ok_json("inspect", out, "--json")["weights"]["types"]["int8"]
    wrong(MODEL, [MODEL, "IN"])
    wrong(os.path.join(MODEL, ""), "IN")
    wrong(out, [out, "IN"], source=os.path.join(out, "."))
    wrong(path_in(folder, "file", "x"), ["file", "not a folder"])
    wrong(path_in(folder, "file") + "/below", "below")
    wrong("/dev/null", "/dev/null")
    wrong("", "OUT")
    os.symlink(path_in(folder, "nowhere"), path_in(folder, "link"))
    wrong(path_in(folder, "link"), "link")
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        locked = path_in(folder, "locked")
        os.mkdir(locked, 0o500)
        wrong(locked, "locked")
        wrong(os.path.join(locked, "below"), "below")
    elif os.path.isdir("/proc/self"):
        wrong("/proc/none", "/proc/none")
    # folders above are made, also when a slash ends the name; and go again when it fails
    ok("quantize", MODEL, os.path.join(folder, "a", "b", ""), "--weights", "int8")
    assert len(os.listdir(os.path.join(folder, "a", "b"))) == 3
    wrong(os.path.join(folder, "c", "d"), "config.json", source=path_in(folder, "none"))


def test_what_it_is_asked(folder):
    out, empty = path_in(folder, "out"), path_in(folder, "empty", "")
    text = path_in(folder, "text.txt", TEXT)
    base = ("quantize", MODEL, out)
    int4 = (*base, "--weights", "int4")
    calibrated = (*int4, "--calibrate", text)
    refused(*base, naming="--weights")
    refused("quantize", MODEL, "--weights", "int8", naming="OUT")
    refused("quantize", naming="IN")
    for weights in ("int3", "f64", "INT8", "", "int8 "):
        refused(*base, "--weights", weights, naming="--weights")
    refused(*int4, "--calibrate", empty, naming=["empty", "at least 2"])
    refused(*int4, "--calibrate", "-", naming="at least 2")
    refused(*int4, "--calibrate", path_in(folder, "none"), naming="none")
    refused(*int4, "--calibrate", folder, naming=folder)
    refused(*int4, "--ids", "", naming="--ids")
    refused(*int4, "--ids", "1", naming=["--ids", "at least 2"])
    refused(*int4, "--ids", "1,512", naming=["512"])
    refused(*calibrated, "--ids", "1,2", naming="--calibrate")
    refused(*base, "--weights", "bf16", "--calibrate", text, naming=["--calibrate", "int4", "int8", "bf16"])
    for option, value in (("--context", 0), ("--context", -1), ("--context", 65537), ("--context", "x"),
                          ("--max-tokens", 0), ("--max-tokens", 1), ("--max-tokens", "1e3")):
        refused(*calibrated, option, value, naming=option)
    refused("quantize", os.path.join(GOLDEN, "hymba_tiny"), out, "--weights", "int4", "--calibrate", text,
            naming="tokenizer.model")
    assert sorted(os.listdir(folder)) == ["empty", "text.txt"]


def test_what_it_reads(folder):
    out, source = path_in(folder, "out"), path_in(folder, "source")

    def attempt(change, naming):
        shutil.copytree(MODEL, source)
        change()
        refused("quantize", source, out, "--weights", "int8", naming=naming)
        assert os.listdir(folder) == ["source"]
        shutil.rmtree(source)

    def config(**changes):
        content = json.loads(content_of(source, "config.json"))
        content.update(changes)
        path_in(source, "config.json", json.dumps(content))

    def without_a_tensor():
        header, data = header_of(source)
        header["model.other"] = header.pop("model.final_layernorm.weight")
        write_header(source, header, data)

    weights = os.path.join(source, "model.safetensors")
    attempt(lambda: shutil.rmtree(source) or os.mkdir(source), "config.json")
    attempt(lambda: os.remove(weights), "model.safetensors")
    attempt(lambda: config(model_type="llama"), "llama")
    attempt(lambda: config(vocab_size=513), ["model.embed_tokens.weight", "[513, 32]"])
    attempt(lambda: config(num_hidden_layers=0), "num_hidden_layers")
    attempt(lambda: os.truncate(weights, os.path.getsize(weights) - 1), "model.safetensors")
    attempt(lambda: os.truncate(weights, 0), "model.safetensors")
    attempt(without_a_tensor, "model.final_layernorm.weight")
    refused("quantize", path_in(folder, "none"), out, "--weights", "int8", naming="none")
    refused("quantize", os.path.join(MODEL, "tokenizer.model"), out, "--weights", "int8", naming="tokenizer.model")
    assert os.listdir(folder) == []


def test_a_quantised_file_that_is_damaged(folder):
    name = "model.layers.1.mamba.in_proj.weight"
    for weights in QUANTISED:
        good, bad = quantised(folder, MODEL, weights), path_in(folder, "bad")
        whole = content_of(good, "model.safetensors")
        rows, row = header_of(good)[0][name]["shape"]

        def attempt(naming, write):
            shutil.copytree(good, bad)
            write()
            for command in (("inspect", bad), ("generate", "--model", bad, "--ids", "1", "--max-new-tokens", 1),
                            ("perplexity", "--model", bad, "--ids", "1,2,3"),
                            ("quantize", bad, path_in(folder, "out"), "--weights", "f32")):
                refused(*command, naming=naming)
            assert not os.path.exists(path_in(folder, "out"))
            shutil.rmtree(bad)

        def cut(length):
            attempt("model.safetensors", lambda: path_in(bad, "model.safetensors", whole[:length]))

        def edit(naming, change):
            def write():
                header, data = header_of(bad)
                write_header(bad, header, change(header) or data)
            attempt(naming, write)

        key = "hymba.rows." + name

        def note(text, naming=(name, "model.safetensors")):
            edit(naming, lambda header: header["__metadata__"].update({key: text}))

        def entry(naming, **changes):
            edit(naming, lambda header: header[name].update(changes))

        for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
            cut(length)
        for columns in ("", "0", "-32", "32x", " 32", "32.0", "99999999999999999999", "2147483649", "9" * 300, "32\n",
                        "1000"):
            note(f"{LAYOUT[weights]}:{columns}")
        for text in (weights, "", ":32", "int2:32", "U8:32", "int4:32", LAYOUT[weights] + ".:32"):
            note(text)
        # Rows of as many columns are as long: the architecture tells
        for cols in (31, 33):
            note(f"{LAYOUT[weights]}:{cols}", naming=(name, f"[{rows}, {cols}]", f"[{rows}, 32]"))
        edit(name, lambda header: header["__metadata__"].update({key + "x": header["__metadata__"].pop(key)}))
        entry(name, dtype="I8")
        entry(name, shape=[rows * row])
        entry(name, shape=[rows, row, 1])
        entry(name, shape=[rows * 2, row // 2])
        entry(name, shape=[rows // 2, row * 2])
        entry(name, shape=[row, rows])
        # A vector is never quantised, whatever the file says
        vector = "model.final_layernorm.weight"
        edit(vector, lambda header: header["__metadata__"].update({"hymba.rows." + vector: f"{LAYOUT[weights]}:32"}))


def test_damaged_numbers_harm_nobody(folder):
    """Any bytes are rows: what they multiply to is another matter, and no other tensor's."""
    for weights in QUANTISED:
        bad = quantised(folder, MODEL, weights)
        header, data = header_of(bad)
        data = bytearray(data)
        begin, end = header["model.layers.1.mamba.in_proj.weight"]["data_offsets"]
        for fill in (0xff, 0x80, 0x7f):
            data[begin:end] = bytes([fill]) * (end - begin)
            write_header(bad, header, data)
            ok("inspect", bad)
            for arch in ("simd", "auto"):
                logits(folder, bad, range(1, 40), "--arch", arch)
                done = run("generate", "--model", bad, "--prompt", "x", "--arch", arch, "--temperature", 1,
                           "--max-new-tokens", 3)
                assert done.returncode in (0, 2), done


def test_help(folder):
    text = ok("quantize", "--help").decode()
    for part in ("hymba quantize", "Example", "--calibrate", "--context", "--max-tokens", "f32|f16|bf16|int8|int4"):
        assert part in text, part


main()
