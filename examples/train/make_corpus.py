#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a corpus of public-domain English: the King James Bible and the works of Shakespeare, about 9 MB of ASCII.

    apt-get install bible-kjv bible-kjv-text             # Debian packages
    bible -f gen1:1-rev22:21 < /dev/null > SOURCES/kjv.txt
    git clone https://github.com/TheMITTech/shakespeare SOURCES/shakespeare
    python3 examples/train/make_corpus.py SOURCES --out CORPUS

writes CORPUS/train.txt and CORPUS/heldout.txt: one document per book of the Bible, per play and per poem, with a line
"<|document|>" between documents (`hymba tokenize --split-documents '<|document|>'`). HELD_OUT below names the works
that go to heldout.txt, whole, so that nothing of them is ever seen in training. The result depends on the sources
alone; sizes and SHA-256 sums are printed.

Where the text comes from, and why it may be used:
  the Bible    "The copyright for the King James Version text of the Bible is expired since the translation was done in
               1611" (copyright file of the package bible-kjv-text)
  Shakespeare  "The original electronic source for this server was the Complete Moby(tm) Shakespeare. The HTML versions
               of the plays provided here are placed in the public domain." (index.html of the repository). Two things
               of its Poetry folder are left out: the Funeral Elegy, which is not Shakespeare's and comes from a modern
               edition, and the file `various`, a part of which repeats sonnets.
"""

import argparse
import hashlib
import pathlib
import re
import sys

SEPARATOR = "<|document|>"

# Works without a close parallel elsewhere: not one of the synoptic gospels, not Kings or Chronicles, no half of a pair.
HELD_OUT = {"Ruth", "Esther", "Ecclesiastes", "Daniel", "Jonah", "Romans", "Hebrews", "James", "The Tempest",
            "Twelfth Night"}

BOOKS = {
    "Ge": "Genesis", "Exo": "Exodus", "Lev": "Leviticus", "Num": "Numbers", "Deu": "Deuteronomy", "Josh": "Joshua",
    "Jdgs": "Judges", "Ruth": "Ruth", "1Sm": "1 Samuel", "2Sm": "2 Samuel", "1Ki": "1 Kings", "2Ki": "2 Kings",
    "1Chr": "1 Chronicles", "2Chr": "2 Chronicles", "Ezra": "Ezra", "Neh": "Nehemiah", "Est": "Esther", "Job": "Job",
    "Psa": "Psalms", "Prv": "Proverbs", "Eccl": "Ecclesiastes", "SSol": "The Song of Solomon", "Isa": "Isaiah",
    "Jer": "Jeremiah", "Lam": "Lamentations", "Eze": "Ezekiel", "Dan": "Daniel", "Hos": "Hosea", "Joel": "Joel",
    "Amos": "Amos", "Obad": "Obadiah", "Jonah": "Jonah", "Mic": "Micah", "Nahum": "Nahum", "Hab": "Habakkuk",
    "Zep": "Zephaniah", "Hag": "Haggai", "Zec": "Zechariah", "Mal": "Malachi", "Mat": "Matthew", "Mark": "Mark",
    "Luke": "Luke", "John": "John", "Acts": "The Acts of the Apostles", "Rom": "Romans", "1Cor": "1 Corinthians",
    "2Cor": "2 Corinthians", "Gal": "Galatians", "Eph": "Ephesians", "Phi": "Philippians", "Col": "Colossians",
    "1Th": "1 Thessalonians", "2Th": "2 Thessalonians", "1Tim": "1 Timothy", "2Tim": "2 Timothy", "Titus": "Titus",
    "Phmn": "Philemon", "Heb": "Hebrews", "Jas": "James", "1Pet": "1 Peter", "2Pet": "2 Peter", "1Jn": "1 John",
    "2Jn": "2 John", "3Jn": "3 John", "Jude": "Jude", "Rev": "Revelation",
}

PLAYS = """1henryiv 1henryvi 2henryiv 2henryvi 3henryvi allswell asyoulikeit cleopatra comedy_errors
coriolanus cymbeline hamlet henryv henryviii john julius_caesar lear lll macbeth measure merchant
merry_wives midsummer much_ado othello pericles richardii richardiii romeo_juliet taming_shrew tempest timon
titus troilus_cressida twelfth_night two_gentlemen winters_tale""".split()

POEMS = ["LoversComplaint", "RapeOfLucrece", "VenusAndAdonis"]
SONNETS = 154


def read(path):
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}; the head of this script says how to get the sources")
    except UnicodeDecodeError as error:
        sys.exit(f"{path}: byte {error.start} is not ASCII: not the source this script was written for")


def one_line(text):
    return " ".join(text.split())


def bible(path):
    """A document per book: its name, then chapters, each a heading and one verse a line, without references."""
    books, chapter = {}, None
    for number, line in enumerate(read(path).splitlines(), 1):
        verse = re.match(r"(\d?[A-Za-z]+)(\d+):(\d+) (.+)", line)
        if not verse or verse[1] not in BOOKS:
            sys.exit(f"{path}: line {number} is no verse of a known book: {line[:60]!r}")
        name = BOOKS[verse[1]]
        lines = books.setdefault(name, [name.upper()])
        if (name, verse[2]) != chapter:
            chapter = (name, verse[2])
            lines += ["", f"{'Psalm' if name == 'Psalms' else 'Chapter'} {verse[2]}", ""]
        lines.append(one_line(verse[4]))
    if set(books) != set(BOOKS.values()):
        sys.exit(f"{path}: {len(books)} books, expected {len(BOOKS)}")
    return [(name, "\n".join(lines) + "\n") for name, lines in books.items()]


PART = re.compile(r"""(?isx) <h3>(?P<heading>.*?)</h3> | <a\ name="?speech\d+"?><b>(?P<speaker>.*?)</b></a>
                      | <a\ name="?[\w.]+"?>(?P<line>.*?)</a> | <i>(?P<direction>.*?)</i>""")


def play(path):
    """Title, acts and scenes; "SPEAKER:" and the speech below it; stage directions in brackets on their own lines."""
    html = read(path)
    title = one_line(re.search(r'<td class="play" align="center">([^<]*)', html)[1])
    body = html[html.index("</table>"):html.lower().rindex("</body>")]
    blocks = [[title.upper()]]                     # separated by an empty line
    heading = False                                # the last block is a heading
    for part in PART.finditer(body):
        text = one_line(part[part.lastgroup])
        if not text:
            continue
        if part.lastgroup == "heading":
            if not re.match(r"(?:ACT|SCENE|PROLOGUE|INDUCTION|EPILOGUE)\b", text):
                continue                           # one play has a heading "None"
            blocks.append([text])
        elif part.lastgroup == "speaker":
            blocks.append([text + ":"])
        elif part.lastgroup == "direction":
            direction = f"[{text}]"
            # Inside a speech it belongs to the speech; elsewhere it stands alone.
            if blocks[-1][0].endswith(":") and len(blocks[-1]) > 1:
                blocks[-1].append(direction)
            else:
                blocks.append([direction])
        elif heading and text[0].islower():
            blocks[-1][0] += " " + text            # a heading that went on into the first line
        elif heading:
            blocks.append([text])
        else:
            blocks[-1].append(text)
        heading = part.lastgroup == "heading"
    return title, "\n\n".join("\n".join(block) for block in blocks) + "\n"


def verses(html):
    """The text of a poem's page: stanzas and paragraphs separated by an empty line."""
    body = re.search(r"(?is)<body>(.*?)(?:</body>|\Z)", html)[1]
    stanzas = []
    for block in re.split(r"(?i)</?(?:blockquote|p|h1|h2)>", body):
        lines = [one_line(re.sub(r"<[^>]*>", "", line)) for line in re.split(r"(?i)<br>", block)]
        if any(lines):
            stanzas.append("\n".join(line for line in lines if line))
    return stanzas


def poem(path):
    html = read(path)
    title = one_line(re.search(r"(?is)<h1>(.*?)</h1>", html)[1])
    stanzas = [stanza for stanza in verses(html) if stanza != title]
    return title, "\n\n".join([title.upper(), *stanzas]) + "\n"


def roman(number):
    text = ""
    signs = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
    for value, sign in signs:
        text += sign * (number // value)
        number %= value
    return text


def sonnets(folder):
    blocks = ["THE SONNETS"]
    for number in range(1, SONNETS + 1):
        blocks += verses(read(folder / f"sonnet.{roman(number)}.html"))
    return "The Sonnets", "\n\n".join(blocks) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=pathlib.Path, help="folder with kjv.txt and shakespeare/")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for train.txt and heldout.txt")
    options = parser.parse_args()

    documents = bible(options.sources / "kjv.txt")
    folder = options.sources / "shakespeare"
    documents += [play(folder / name / "full.html") for name in PLAYS]
    documents += [poem(folder / "Poetry" / f"{name}.html") for name in POEMS]
    documents.append(sonnets(folder / "Poetry"))

    for name, text in documents:
        if "<" in text or ">" in text:
            sys.exit(f"{name}: a tag is left in the text")
    missing = HELD_OUT - {name for name, _ in documents}
    if missing:
        sys.exit(f"held-out works that are not in the sources: {', '.join(sorted(missing))}")

    options.out.mkdir(parents=True, exist_ok=True)
    total = sum(len(text) for _, text in documents)
    for file, held_out in (("train.txt", False), ("heldout.txt", True)):
        chosen = [text for name, text in documents if (name in HELD_OUT) == held_out]
        data = f"{SEPARATOR}\n".join(chosen).encode("ascii")
        (options.out / file).write_bytes(data)
        share = 100 * sum(map(len, chosen)) / total
        print(f"{file:12} {len(chosen):3} documents {len(data):8} bytes {share:5.1f} %")
        print(f"  sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
