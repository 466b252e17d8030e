# SPDX-License-Identifier: Apache-2.0
"""hymba tokenize: token files against the ids of hymba generate, held-out parts, errors that leave nothing behind."""
import os
import resource
import signal
import struct

from support import MODEL, main, ok, ok_json, refused, run

TEXTS = ["In the beginning God created the heaven and the earth.\n", "And the earth was without form,\nand void;\n",
         "\U0001f600 e\u0301\t. last line without an end"]


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    return path


def read_tokens(path):
    """vocabulary, bytes of text, documents as lists of ids."""
    with open(path, "rb") as file:
        data = file.read()
    magic, version, width, vocabulary, tokens, documents, text_bytes = struct.unpack("<8sIIQQQQ", data[:48])
    assert (magic, version, width) == (b"HYMBATOK", 1, 2)
    starts = [*struct.unpack(f"<{documents}Q", data[48:48 + 8 * documents]), tokens]
    ids = struct.unpack(f"<{tokens}H", data[48 + 8 * documents:])
    return vocabulary, text_bytes, [list(ids[a:b]) for a, b in zip(starts, starts[1:])]


def ids_of(text):
    """bos and the ids of a text."""
    return ok_json("generate", "--model", MODEL, "--prompt", text, "--max-new-tokens", 0, "--json")["prompt_ids"]


def tokenize(folder, *arguments, **options):
    out = os.path.join(folder, "out.tok")
    told = ok_json("tokenize", "--tokenizer", MODEL, "--out", out, "--json", *arguments, **options)
    return told, read_tokens(out)


def test_documents(folder):
    paths = [write(folder, f"{i}.txt", text) for i, text in enumerate(TEXTS)]
    expected = [ids_of(text) + [2] for text in TEXTS]
    size = sum(len(text.encode()) for text in TEXTS)
    told, (vocabulary, text_bytes, documents) = tokenize(folder, *paths)
    assert (vocabulary, text_bytes, documents) == (512, size, expected), (vocabulary, text_bytes, documents)
    tokens = sum(map(len, expected))
    assert told == {"vocabulary": 512, "train": {"path": os.path.join(folder, "out.tok"), "documents": 3, "bytes": size,
                                                 "tokens": tokens, "bytes_per_token": size / tokens}}, told
    assert tokenize(folder, *paths, "--no-bos")[1][2] == [ids[1:] for ids in expected]
    assert tokenize(folder, *paths, "--no-eos")[1][2] == [ids[:-1] for ids in expected]
    assert tokenize(folder, *paths, "--no-bos", "--no-eos")[1][2] == [ids[1:-1] for ids in expected]
    assert tokenize(folder, "-", stdin=TEXTS[2])[1][2] == expected[2:]
    model, out = os.path.join(MODEL, "tokenizer.model"), os.path.join(folder, "f.tok")
    by_file = ok_json("tokenize", "--tokenizer", model, "--out", out, "--json", *paths)
    assert by_file["train"]["tokens"] == tokens and read_tokens(out)[2] == expected
    report = run("tokenize", "--tokenizer", MODEL, "--out", out, *paths)
    assert report.returncode == 0 and f"3 documents, {size} bytes, {tokens} tokens".encode() in report.stdout, report
    assert report.stderr.count(b"\n") == 1
    assert run("tokenize", "--tokenizer", MODEL, "--out", out, "--quiet", *paths).stderr == b""


def test_split(folder):
    expected = [ids_of(text) + [2] for text in TEXTS[:2]]
    for line_end in ("\n", "\r\n"):
        separator = "<|document|>" + line_end
        path = write(folder, "all.txt", separator + TEXTS[0] + separator + separator + TEXTS[1] + separator)
        _, (_, text_bytes, documents) = tokenize(folder, path, "--split-documents", "<|document|>")
        assert documents == expected and text_bytes == sum(len(text) for text in TEXTS[:2]), documents
    path = write(folder, "blank.txt", "\n\n" + TEXTS[0] + "\n\n\n" + TEXTS[1] + "\n")
    assert tokenize(folder, path, "--split-documents", "")[1][2] == expected
    # Only whole lines separate; the last line needs no end.
    path = write(folder, "inside.txt", "a ---\n---b\n---")
    assert tokenize(folder, path, "--split-documents", "---")[1][2] == [ids_of("a ---\n---b\n") + [2]]


def test_held_out(folder):
    texts = [f"document {i}\n" for i in range(10)]
    every = [ids_of(text) + [2] for text in texts]
    path = write(folder, "all.txt", "--\n".join(texts))
    val = os.path.join(folder, "val.tok")
    most = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    for arguments, held in ((["--val-documents", 1], [5]), (["--val-documents", 2], [2, 7]),
                            (["--val-documents", 3], [1, 5, 8]), (["--val-documents", 9], most), ([], [5]),
                            (["--val-fraction", 0.2], [2, 7]), (["--val-fraction", 0.001], [5]),
                            (["--val-fraction", 0.999], most)):
        told, (_, size, documents) = tokenize(folder, path, "--split-documents", "--", "--val", val, *arguments)
        _, val_size, val_documents = read_tokens(val)
        assert val_documents == [every[i] for i in held], (arguments, val_documents)
        assert documents == [ids for i, ids in enumerate(every) if i not in held], (arguments, documents)
        assert size + val_size == sum(map(len, texts)) and told["validation"]["documents"] == len(held)
        assert told["validation"]["tokens"] == sum(map(len, val_documents)) and told["validation"]["path"] == val


def test_held_out_tail(folder):
    text = "".join(f"line {i}\n" for i in range(10))  # 7 bytes each
    val = os.path.join(folder, "val.tok")
    path = write(folder, "one.txt", text)
    for fraction, lines in ((0.05, 1), (0.3, 3), (0.32, 3), (0.38, 4), (0.99, 9), (0.001, 1)):
        _, (_, size, documents) = tokenize(folder, path, "--val", val, "--val-fraction", fraction)
        _, val_size, val_documents = read_tokens(val)
        assert (size, val_size) == (70 - 7 * lines, 7 * lines), (fraction, size, val_size)
        assert documents == [ids_of(text[:size]) + [2]] and val_documents == [ids_of(text[size:]) + [2]]
    for text in ("one line", "one line\n"):
        path = write(folder, "line.txt", text)
        before = sorted(os.listdir(folder))
        refused("tokenize", "--tokenizer", MODEL, "--out", os.path.join(folder, "x"), "--val", val, path,
                naming=["--val", "one line"])
        assert sorted(os.listdir(folder)) == before


def test_refuses(folder):
    good = write(folder, "good.txt", "some text\nmore\n")
    before = sorted(os.listdir(folder))
    out = os.path.join(folder, "out.tok")
    base = ("tokenize", "--tokenizer", MODEL, "--out", out)
    refused("tokenize", naming="--tokenizer")
    refused("tokenize", "--tokenizer", MODEL, good, naming="--out")
    refused(*base, naming="files")
    refused(*base, os.path.join(folder, "none.txt"), naming="none.txt")
    refused(*base, folder, naming="folder")
    refused("tokenize", "--tokenizer", os.path.join(folder, "none"), "--out", out, good, naming="none")
    refused("tokenize", "--tokenizer", good, "--out", out, good, naming="good.txt")
    refused("tokenize", "--tokenizer", MODEL, "--out", os.path.join(folder, "none", "x.tok"), good, naming="x.tok")
    refused("tokenize", "--tokenizer", MODEL, "--out", folder, good, naming=folder)
    refused("tokenize", "--tokenizer", MODEL, "--out", "/dev/null", good, naming="/dev/null")
    refused("tokenize", "--tokenizer", MODEL, "--out", good, good, naming="good.txt")
    refused(*base, "--val", good, good, naming="good.txt")
    refused(*base, "--val", os.path.join(folder, ".", "out.tok"), good, naming="--val")
    refused(*base, "--val-fraction", 0.1, good, naming=["--val-fraction", "--val FILE"])
    refused(*base, "--val-documents", 1, good, naming=["--val-documents", "--val FILE"])
    val = ("--val", os.path.join(folder, "val.tok"))
    for fraction in ("0", "1", "-0.1", "nan", "x"):
        refused(*base, *val, "--val-fraction", fraction, good, naming="--val-fraction")
    for count in ("0", "-1", "1", "99"):  # there is one document
        refused(*base, *val, "--val-documents", count, good, naming="--val-documents is " + count)
    refused(*base, *val, "--val-documents", 1, "--val-fraction", 0.1, good, naming="--val-documents")
    refused(*base, "--split-documents", "a\nb", good, naming="--split-documents")
    refused(*base, "-", stdin="", naming="standard input is empty")
    refused(*base, "-", "--split-documents", "x", stdin="x\nx\n", naming="standard input holds nothing but")
    for text, at, byte in ((b"\xff", 0, "ff"), (b"good\n\xc3(", 5, "c3"), (b"ab\xe2\x82", 2, "e2"),
                           (b"a\xed\xa0\x80", 1, "ed")):
        refused(*base, good, "-", stdin=text, naming=[f"standard input: byte {at} ", "\\x" + byte])
    assert sorted(os.listdir(folder)) == before


def test_full_disk(folder):
    text = write(folder, "text.txt", "".join(f"line {i}\n" for i in range(20000)))
    out = os.path.join(folder, "out.tok")

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    before = sorted(os.listdir(folder))
    base = ("tokenize", "--tokenizer", MODEL, "--out", out)
    refused(*base, text, naming=["cannot write", "out.tok"], preexec_fn=small_files)
    assert sorted(os.listdir(folder)) == before
    # An earlier file stays as it was.
    ok("tokenize", "--tokenizer", MODEL, "--out", out, "-", stdin="earlier")
    with open(out, "rb") as file:
        earlier = file.read()
    refused(*base, text, naming="out.tok", preexec_fn=small_files)
    with open(out, "rb") as file:
        assert file.read() == earlier
    assert sorted(os.listdir(folder)) == sorted([*before, "out.tok"])


def test_tokenizer_without_ends(folder):
    """SentencePiece finds bos and eos by their pieces' names: renamed, there are none, and nothing is added."""
    with open(os.path.join(MODEL, "tokenizer.model"), "rb") as file:
        blob = file.read()
    text = write(folder, "text.txt", TEXTS[0])
    ids, out = ids_of(TEXTS[0])[1:], os.path.join(folder, "out.tok")
    for names, expected in (([b"<s>"], ids + [2]), ([b"</s>"], [1] + ids), ([b"<s>", b"</s>"], ids)):
        changed = blob
        for name in names:
            field = b"\n" + bytes([len(name)]) + name
            assert changed.count(field) == 1
            changed = changed.replace(field, field.replace(b"s", b"q"))
        ok("tokenize", "--tokenizer", write(folder, "changed.model", changed), "--out", out, text)
        assert read_tokens(out)[2] == [expected], (names, read_tokens(out)[2], expected)


main()
