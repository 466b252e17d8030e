#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains examples/models/random-tiny/tokenizer.model: 512 pieces, in the style of Llama-2's tokeniser.

    apt-get install bible-kjv bible-kjv-text        # the King James text, public domain
    bible -f gen1:1-rev22:21 < /dev/null > kjv.txt  # one verse per line
    python3 tests/oracle/train_tiny_tokenizer.py --text kjv.txt --out examples/models/random-tiny

Needs the Python package sentencepiece. The text is passed as an iterator, so that no file name ends up in the model.
The README beside the model records the SHA-256 of the text and of the model; both are printed here.
"""

import argparse
import hashlib
import io
import pathlib
import re

import sentencepiece


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, type=pathlib.Path, help="verses as printed by `bible -f`")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder that receives tokenizer.model")
    options = parser.parse_args()

    data = options.text.read_bytes()
    reference = re.compile(r"^\S+\d+:\d+ ")
    # Every fourth verse: plenty for 253 learnt pieces, and quick. A few references stay, for digits and colons.
    lines = data.decode("ascii").splitlines()[::4]
    verses = [line if i % 16 == 0 else reference.sub("", line) for i, line in enumerate(lines)]

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(verses),
        model_writer=model,
        model_type="bpe",
        vocab_size=512,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    blob = model.getvalue()
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    if processor.vocab_size() != 512:
        raise SystemExit(f"the vocabulary has {processor.vocab_size()} pieces, expected 512")
    (options.out / "tokenizer.model").write_bytes(blob)
    print("text      ", hashlib.sha256(data).hexdigest())
    print("model     ", hashlib.sha256(blob).hexdigest(), len(blob), "bytes")
    print("sample    ", processor.encode("In the beginning God created the heaven and the earth.", out_type=str))


if __name__ == "__main__":
    main()
