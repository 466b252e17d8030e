#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a SentencePiece tokeniser of a given size on a text, in the style of Llama-2's: <unk>, <s>, </s> are 0, 1, 2
and there is no padding token; 256 byte pieces, so that any text can be encoded; a dummy prefix; spaces kept.

    python3 examples/train/train_tokenizer.py --text CORPUS/train.txt --vocabulary 2048 --out MODEL

writes MODEL/tokenizer.model. Pass the training text only: a tokeniser that has seen the held-out text flatters every
measure taken on it. With --measure FILE (which training never reads) the bytes per token of other texts are printed.

Line ends are characters like any other: pieces such as a comma with the line end behind it are learnt, and the first
word of a line is learnt as it appears there, without a space in front. Needs the Python package sentencepiece. The text
is passed as an iterator, so that no file name ends up in the model; one thread, so that the result can be repeated.
"""

import argparse
import hashlib
import io
import pathlib
import sys

import sentencepiece

# SentencePiece skips "sentences" longer than max_sentence_length, 4192 bytes by default.
CHUNK_BYTES = 3000


def documents(path, separator):
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        sys.exit(f"{path}: byte {error.start} is not valid UTF-8")
    if not text:
        sys.exit(f"{path}: the file is empty")
    document = []
    for line in text.splitlines(keepends=True):
        if line.rstrip("\r\n") == separator:
            yield "".join(document)
            document = []
        else:
            document.append(line)
    yield "".join(document)


def chunks(path, separator):
    """Runs of whole lines of a document, so that line ends and the words behind them are seen as they will be."""
    for document in documents(path, separator):
        chunk, size = [], 0
        for line in document.splitlines(keepends=True):
            if size + len(line.encode()) > CHUNK_BYTES and chunk:
                yield "".join(chunk)
                chunk, size = [], 0
            chunk.append(line)
            size += len(line.encode())
        if chunk:
            yield "".join(chunk)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, type=pathlib.Path, help="UTF-8 text to learn from")
    parser.add_argument("--vocabulary", required=True, type=int, help="pieces, counting 3 special and 256 byte pieces")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder that receives tokenizer.model")
    parser.add_argument("--type", choices=("bpe", "unigram"), default="bpe", help="default: %(default)s, as Llama-2")
    parser.add_argument("--document-separator", default="<|document|>", help="line between documents, not learnt from")
    parser.add_argument("--measure", type=pathlib.Path, nargs="*", default=[], help="other texts to count tokens in")
    options = parser.parse_args()
    if options.vocabulary < 300:
        parser.error("--vocabulary: 3 special and 256 byte pieces leave too little below 300")

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=chunks(options.text, options.document_separator),
        model_writer=model,
        model_type=options.type,
        vocab_size=options.vocabulary,
        character_coverage=0.9999,
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
    if processor.vocab_size() != options.vocabulary:
        sys.exit(f"the vocabulary has {processor.vocab_size()} pieces, expected {options.vocabulary}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tokenizer.model").write_bytes(blob)
    print("model  ", hashlib.sha256(blob).hexdigest(), len(blob), "bytes")

    for path in [options.text, *options.measure]:
        size = tokens = 0
        for document in documents(path, options.document_separator):
            ids = processor.encode(document)
            if processor.decode(ids) != document:
                sys.exit(f"{path}: a document does not come back from its tokens unchanged")
            size += len(document.encode())
            tokens += len(ids)
        print(f"{path}: {size} bytes, {tokens} tokens, {size / tokens:.3f} bytes per token")


if __name__ == "__main__":
    main()
