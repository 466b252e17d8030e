# SPDX-License-Identifier: Apache-2.0
"""hymba train: a whole run, resuming after a kill, and what it refuses."""
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import time
import xml.dom.minidom

from support import HYMBA, MODEL, main, ok, ok_json, refused, run

TEXT = "".join(f"In the beginning was verse {i}, and the verse was {i * 7 % 10}, and so on.\n" for i in range(400))


def config_of(**changes):
    """A small variant with everything in it, for the demo checkpoint's tokeniser."""
    with open(os.path.join(MODEL, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    config.update(changes)
    return config


def prepare(folder, **changes):
    """Paths of config, training and validation tokens."""
    config, text = os.path.join(folder, "config.json"), os.path.join(folder, "text.txt")
    with open(config, "w", encoding="utf-8") as file:
        json.dump(config_of(**changes), file)
    with open(text, "w", encoding="utf-8") as file:
        file.write(TEXT)
    train, held_out = os.path.join(folder, "train.tok"), os.path.join(folder, "val.tok")
    if not os.path.exists(train):
        ok("tokenize", "--tokenizer", MODEL, "--out", train, "--val", held_out, "--val-fraction", 0.1, "--quiet", text)
    return config, train, held_out


def arguments(folder, out="run", steps=24, **changes):
    config, train, held_out = prepare(folder, **changes)
    return ["train", "--config", config, "--data", train, "--val", held_out, "--out", os.path.join(folder, out), "--steps",
            steps, "--context", 32, "--batch", 4, "--lr", 0.005, "--threads", 1, "--products", "f32", "--tokenizer", MODEL,
            "--report-every", 4, "--validate-every", 12, "--checkpoint-every", 6, "--seed", 3]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_run(folder):
    done = run(*arguments(folder))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("step 4/24  loss ") and "tokens/s" in lines[0] and "left" in lines[0], lines
    assert any("held out" in line and "bits/byte" in line for line in lines), lines
    assert any("[checkpoint]" in line for line in lines), lines
    assert "parameters" in done.stderr.decode()
    out = os.path.join(folder, "run")
    assert sorted(os.listdir(out)) == ["log.csv", "log.jsonl", "loss.svg", "model", "step-00000018", "step-00000024"]
    rows = [json.loads(line) for line in read(os.path.join(out, "log.jsonl")).decode().splitlines()]
    assert rows[-1]["step"] == 24 and rows[-1]["validation_loss"] < rows[0]["loss"], rows
    with open(os.path.join(out, "log.csv"), encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    xml.dom.minidom.parseString(read(os.path.join(out, "loss.svg")))
    # The finished model and every checkpoint are models like any other.
    for model in ("model", "step-00000018"):
        answer = ok_json("generate", "--model", os.path.join(out, model), "--prompt", "In the", "--max-new-tokens", 8, "--json")
        assert len(answer["tokens"]) == 8, answer
    assert ok_json("inspect", "--model", os.path.join(out, "model"), "--json")["parameters"] > 0
    told = [json.loads(line) for line in ok(*arguments(folder, out="json"), "--json").decode().splitlines()]
    assert told[-1]["model"].endswith("model") and told[-1]["bits_per_byte"] > 0 and told[0]["step"] == 4, told


def test_resume_after_kill(folder):
    whole = arguments(folder, out="whole", steps=60)
    ok(*whole, "--quiet")
    model = read(os.path.join(folder, "whole", "model", "model.safetensors"))
    cut = list(map(str, arguments(folder, out="cut", steps=60)))
    for attempt in range(6):  # killed wherever it is, again and again
        resume = ["--resume"] if attempt > 0 and any(n.startswith("step-") and not n.endswith(".part")
                                                     for n in os.listdir(os.path.join(folder, "cut"))) else []
        process = subprocess.Popen([HYMBA, *cut, *resume, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(0.15 + 0.13 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not os.path.isdir(os.path.join(folder, "cut")):
            os.mkdir(os.path.join(folder, "cut"))
    out = os.path.join(folder, "cut")
    if any(name.startswith("step-") and not name.endswith(".part") for name in os.listdir(out)):
        cut.append("--resume")
    ok(*cut, "--quiet")
    assert read(os.path.join(out, "model", "model.safetensors")) == model


def test_interrupt(folder):
    process = subprocess.Popen([HYMBA, *map(str, arguments(folder, steps=100000))], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130 and b"--resume" in told, told
    out = os.path.join(folder, "run")
    assert any(name.startswith("step-") for name in os.listdir(out)) and "model" not in os.listdir(out)


def test_start_from_a_model(folder):
    ok(*arguments(folder), "--quiet")
    first = json.loads(read(os.path.join(folder, "run", "log.jsonl")).splitlines()[0])
    again = arguments(folder, out="again")
    ok(*again, "--quiet", "--init", os.path.join(folder, "run", "model"))
    assert json.loads(read(os.path.join(folder, "again", "log.jsonl")).splitlines()[0])["loss"] < first["loss"]
    ok(*arguments(folder, out="small"), "--quiet", "--recompute", "--accumulate", 2, "--schedule", "cosine", "--dtype", "f32")


def test_refusals(folder):
    base = arguments(folder)

    def changed(name, value):
        out = list(base)
        out[out.index(name) + 1] = value
        return out

    empty, cut = os.path.join(folder, "empty.tok"), os.path.join(folder, "cut.tok")
    open(empty, "w").close()
    with open(cut, "wb") as file:
        file.write(read(os.path.join(folder, "train.tok"))[:-5])
    refused(*changed("--data", empty), naming=["empty.tok"])
    refused(*changed("--data", cut), naming=["cut.tok"])
    refused(*changed("--data", os.path.join(folder, "none.tok")), naming="none.tok")
    refused(*changed("--context", 10 ** 6), naming=["train.tok", "1000001"])
    refused(*changed("--context", 0), naming="context is 0")
    refused(*changed("--batch", 0), naming="0 sequences")
    refused(*changed("--lr", -1), naming="learning rate is -1")
    refused(*changed("--steps", 0), naming="steps is 0")
    refused(*base, "--epochs", 2, naming="either --steps")
    refused(*base, "--keep", 0, naming="keep_checkpoints is 0")
    refused(*base, "--accumulate", 10 ** 18, naming="batches a step")
    refused(*base, "--warmup", 0.9, "--decay", 0.5, naming="warm-up and decay together is 1.4")
    refused(*base, "--schedule", "linear", naming=["--schedule", "linear"])
    refused(*changed("--products", "int8"), naming=["--products", "int8"])
    refused(*base, "--dtype", "f16", naming=["--dtype", "f16"])
    refused(*base, "--resume", naming="no checkpoint")
    refused(*base, "--warmup", 3, naming="warm-up is 3")
    refused(*base, "--init", MODEL + "-none", naming="-none")

    wide = os.path.join(folder, "wide")
    os.mkdir(wide)
    config = os.path.join(wide, "config.json")
    with open(config, "w", encoding="utf-8") as file:
        json.dump(config_of(vocab_size=600), file)
    refused(*changed("--config", config), naming=["vocabulary of 512", "600"])
    with open(config, "w", encoding="utf-8") as file:
        json.dump(config_of(num_key_value_heads=3), file)
    refused(*changed("--config", config), naming="config.json")
    refused(*changed("--config", os.path.join(folder, "text.txt")), naming="text.txt")

    ok(*base, "--quiet")
    refused(*base, naming=["run", "--resume"])
    with open(config, "w", encoding="utf-8") as file:
        json.dump(config_of(num_memory_tokens=5), file)
    refused(*changed("--config", config), "--resume", naming="another variant")
    refused(*changed("--context", 31), "--resume", naming=["windows of 32", "31"])
    refused(*base, "--resume", "--init", MODEL, naming="--init")
    refused(*changed("--out", ""), naming="--out is empty")


def test_divergence(folder):
    """A loss that is not a number stops the run, says the step, and leaves the last good checkpoint."""
    ok(*arguments(folder, steps=12), "--quiet")
    base = [*arguments(folder, steps=400), "--resume", "--clip", 0, "--warmup", 0, "--quiet"]
    base[base.index("--lr") + 1] = 1e30
    base[base.index("--checkpoint-every") + 1] = 1
    done = run(*base)
    text = done.stderr.decode()
    assert done.returncode == 2 and "step 13" in text and "finite" in text, text
    kept = sorted(name for name in os.listdir(os.path.join(folder, "run")) if name.startswith("step-"))
    assert kept == ["step-00000006", "step-00000012"], kept
    # What is kept is good: it goes on at a sane rate.
    base[base.index("--lr") + 1] = 0.001
    base[base.index("--steps") + 1] = 24
    ok(*base)


def test_full_disk(folder):
    """A limit on the size of files stands in for a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    base = arguments(folder)
    done = run(*base, preexec_fn=limit)
    text = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 2 and "cannot write" in text and "step-" in text, text
    left = os.listdir(os.path.join(folder, "run"))
    assert not any(name.startswith("step-") for name in left), left
    shutil.rmtree(os.path.join(folder, "run"))
    ok(*base, "--quiet")


main()
