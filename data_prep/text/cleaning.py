"""Cleaning for every source: one kind of line end, one kind of blank, nothing invisible."""

from __future__ import annotations

import html
import re
from itertools import groupby

# Control characters, byte order marks, soft hyphens, zero-width characters and direction marks,
# lone surrogates (JSON can hold them, UTF-8 cannot), noncharacters. The zero-width joiner and
# non-joiner stay: some scripts spell with them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060"
    "\ufeff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)

# A template of a pronunciation leaves "(]; born 1869)". Each expression begins with a fixed
# character, which makes the search fast. Possessive repeats (*+) keep the time linear: a run of
# blanks is read once, not once per blank.
_HALF_EMPTY = re.compile(r"([(\[])(?:[\s\]]*+[,;:](?>(?:\s*+[,;:])*)\s*+|(?<=\()\](?=\)))")
_COMMA_AT_END = re.compile(r"[,;:]\s*+(?=\))")
_COMMAS = re.compile(r"([,;])(?>(?:[ \xa0]*+[,;])+)")
_EMPTY = re.compile(r"\(\s*+\)|\[\s*+\]")
_BLANK_AFTER = re.compile(r"\( +")
_BLANK_BEFORE = re.compile(r" (?<!  )(?: *+(?=[,;)\]])|(?<=\w ) *+(?=\.(?:\s|$)))")
_ZEROS = re.compile("&#0{8,}+")
_LARGE_NUMBER = re.compile(r"&#0?[1-9]\d{7,}+;?")


def split_lines(text: str) -> list[str]:
    """The lines of a text, split at every line end of Unicode; blanks are left as they are.

    A form feed in a book or a separator in a web page ends a paragraph here, never a word.
    """
    return text.splitlines()


def clean_line(line: str) -> str:
    """The line without invisible characters, each run of blanks one space, none at the ends."""
    if not line.isprintable():  # a printable line has no other blank than the space
        line = _INVISIBLE.sub("", line)
    elif "  " not in line:
        return line.strip(" ")
    return " ".join(line.split())


def clean_paragraphs(lines: list[str]) -> str:
    """Clean the paragraphs and join those that are not empty, one per line."""
    return "\n".join(filter(None, map(clean_line, lines)))


def remove_hollows(text: str) -> str:
    """Remove what deleted markup leaves behind: empty or half-empty brackets and doubled commas.

    Such as the second comma of "A, {{b}}, C" and the last one of "(A, {{b}})".
    """
    text = _COMMA_AT_END.sub("", text)
    if "(" in text or "[" in text:
        text = _HALF_EMPTY.sub(r"\1", text)
        text = _EMPTY.sub("", _EMPTY.sub("", text))  # twice: "([])"
        text = _BLANK_AFTER.sub("(", text)
    return _BLANK_BEFORE.sub("", _COMMAS.sub(r"\1", text))


def unescape(text: str) -> str:
    """The text with HTML's entities as characters; a number too large for one is U+FFFD.

    Python refuses to read a number of thousands of digits.
    """
    if "&#" in text:
        text = _LARGE_NUMBER.sub("\ufffd", _ZEROS.sub("&#0", text))
    return html.unescape(text)


def join_wrapped(lines: list[str]) -> list[str]:
    """The blocks between blank lines, the lines of each joined by a space."""
    stripped = map(str.strip, lines)
    return [" ".join(block) for filled, block in groupby(stripped, bool) if filled]
