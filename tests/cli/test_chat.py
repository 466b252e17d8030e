# SPDX-License-Identifier: Apache-2.0
"""hymba chat with piped input: turns, commands, what is read, saved conversations."""
import json
import os
import re

from support import MODEL, main, ok, run

SAMPLED = ("chat", "--model", MODEL, "--temperature", 0.9, "--seed", 4)
BASE = (*SAMPLED, "--max-new-tokens", 12)


def talk(*lines, options=(), base=BASE):
    """Runs a conversation; returns its turns as JSON objects, and the lines on standard error."""
    done = run(*base, "--json", *options, stdin="".join(line + "\n" for line in lines))
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()], done.stderr.decode().splitlines()


def prompt_ids(text):
    told = json.loads(ok("generate", "--model", MODEL, "--prompt", text, "--max-new-tokens", 0, "--no-bos", "--json"))
    return told["prompt_ids"]


def test_turns_read_only_what_is_new(folder):
    turns, errors = talk("hello there", "and again", "once more")
    assert errors == [] and [turn["turn"] for turn in turns] == [1, 2, 3]
    first = prompt_ids("<extra_id_0>System\n\n<extra_id_1>User\nhello there\n<extra_id_1>Assistant\n")
    assert turns[0]["read_tokens"] == len(first), "the template's text, without bos"
    position = 0
    for turn in turns:
        # the tokens held are those read and those written; the last one written may still be unread
        added = turn["position"] - position
        assert added - turn["read_tokens"] in (turn["new_tokens"], turn["new_tokens"] - 1), turn
        position = turn["position"]
    assert turns[2]["read_tokens"] < len(first) + 20 < position


def test_text_and_report(folder):
    done = run(*BASE, stdin="hello there\n\n   \nand again\n/exit\nnot read\n")
    turns, _ = talk("hello there", "and again")
    out = done.stdout.decode()
    assert out == "".join(t["text"] if t["text"].endswith("\n") else t["text"] + "\n" for t in turns)
    reports = done.stderr.decode().splitlines()
    assert len(reports) == 2 and f"turn 2: read {turns[1]['read_tokens']} tokens" in reports[1], reports
    assert run(*BASE, "--quiet", stdin="hello there\n").stderr == b""


def test_commands(folder):
    tools, context = os.path.join(folder, "tools.json"), os.path.join(folder, "context.txt")
    with open(tools, "w") as file:
        file.write('[{"name": "f", "arguments": {"b": 1, "a": 2}}]')
    with open(context, "w") as file:
        file.write("  the context\n")
    plain, _ = talk("hi")
    text = ('<extra_id_0>System\nBe brief.\n\n<tool> {"name": "f", "arguments": {"b": 1, "a": 2}} </tool>\n\n'
            "<context> the context </context>\n\n<extra_id_1>User\nhi\n<extra_id_1>Assistant\n")
    by_command, errors = talk("/system Be brief.", "/tools " + tools, "/context " + context, "hi", "/reset", "hi")
    assert errors == []
    assert by_command[0]["read_tokens"] == len(prompt_ids(text)) == by_command[1]["read_tokens"], "/reset keeps the System block"
    by_option, _ = talk("hi", options=("--system", "Be brief.", "--tools", tools, "--context", context))
    assert by_option[0]["text"] == by_command[0]["text"] and by_option[0]["read_tokens"] == by_command[0]["read_tokens"]
    cleared, _ = talk("/system Be brief.", "/tools " + tools, "/tools", "/context " + context, "/context", "/system", "hi")
    assert cleared[0]["text"] == plain[0]["text"]
    # a message of a tool, and a text that begins with a slash
    turns, errors = talk("hi", "/tool 42", "//not a command")
    assert len(turns) == 3 and errors == []


def test_errors_leave_the_conversation_alone(folder):
    plain, _ = talk("hello", "again")
    turns, errors = talk("hello", "/nonsense", "/system late", "/tools", "/context", "/load /nowhere", "/save /nowhere/x", "/load",
                         "/tool", "again")
    assert [turn["text"] for turn in turns] == [turn["text"] for turn in plain]
    assert len(errors) == 8 and all(line.startswith("hymba: ") for line in errors), errors


def test_full_context(folder):
    turns, errors = talk("hello", "x" * 600, "again", "/reset", "hello", options=("--max-context", 150))
    assert len(errors) == 1 and "context is full" in errors[0], errors
    assert [turn["turn"] for turn in turns] == [1, 2, 1] and turns[2]["position"] == turns[0]["position"]
    # an answer that meets the end of the context says so, and what follows is refused until /reset
    turns, errors = talk("hello", "more", "/reset", "hello", options=("--max-context", 64), base=SAMPLED)
    assert turns[0]["finish"] == "context" and turns[0]["position"] == 64 and len(errors) == 1 and len(turns) == 2
    assert turns[0]["new_tokens"] == turns[1]["new_tokens"]


def test_saved_conversation(folder):
    path, other = os.path.join(folder, "a.chat"), os.path.join(folder, "b.chat")
    whole, _ = talk("one", "two", "three", options=("--system", "Be brief."))
    first, errors = talk("one", "/save " + path, "two", options=("--system", "Be brief.", "--save-session", other))
    assert errors == [] and [turn["text"] for turn in first] == [turn["text"] for turn in whole[:2]]
    bare = ("chat", "--model", MODEL, "--max-new-tokens", 12)  # the sampler comes with the session
    rest, _ = talk("two", "three", options=("--load-session", path), base=bare)
    assert [turn["text"] for turn in rest] == [turn["text"] for turn in whole[1:]]
    assert rest[0]["turn"] == 2 and rest[0]["read_tokens"] == whole[1]["read_tokens"]
    rest, _ = talk("three", options=("--load-session", other), base=bare)
    assert rest[0]["text"] == whole[2]["text"]
    # loading in the midst of another conversation
    rest, errors = talk("else", "/load " + path, "two", base=bare)
    assert errors == [] and rest[1]["text"] == whole[1]["text"]
    # after /reset the saved System block is the one in force
    again, _ = talk("/reset", "one", options=("--load-session", path), base=bare)
    assert again[0]["read_tokens"] == whole[0]["read_tokens"]


def test_stops(folder):
    turns, _ = talk("hello", options=("--max-new-tokens", 40), base=SAMPLED)
    text = turns[0]["text"]
    plain = next(text[i:i + 2] for i in range(3, len(text)) if re.fullmatch("[a-z ]{2}", text[i:i + 2]))
    stopped, _ = talk("hello", "again", options=("--max-new-tokens", 40, "--stop", plain), base=SAMPLED)
    assert stopped[0]["finish"] == "stop_string" and stopped[0]["text"] == text[:text.index(plain)]
    assert len(stopped) == 2


main()
