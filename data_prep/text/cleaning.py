"""Cleaning that every source needs: one kind of line end and of blank, nothing invisible."""

from __future__ import annotations

import re

# Control characters, byte order marks, soft hyphens, zero-width characters and direction marks,
# lone surrogates (JSON can hold them, UTF-8 cannot), noncharacters. The zero-width joiner and
# non-joiner stay: some scripts spell with them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060"
    "\ufeff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)

# "(]; born 1869)" is what a template of a pronunciation leaves.
# Each of these begins with the one character that the search can look for: it is fast so.
_HALF_EMPTY = re.compile(r"([(\[])(?:[\s\]]*[,;:](?:\s*[,;:])*\s*|(?<=\()\](?=\)))")
_COMMA_AT_END = re.compile(r"[,;:]\s*(?=\))")
_COMMAS = re.compile(r"([,;])(?:[ \xa0]*[,;])+")
_EMPTY = re.compile(r"\(\s*\)|\[\s*\]")
_BLANK_AFTER = re.compile(r"\( +")
_BLANK_BEFORE = re.compile(r" (?: *(?=[,;)\]])|(?<=\w ) *(?=\.(?:\s|$)))")


def split_lines(text: str) -> list[str]:
    """The lines of a text, ended by all that Unicode counts as a line's end; blanks are untouched.

    Form feed, vertical tab and the separators too: a page's end in a book and a separator inside a
    web page both end a paragraph here, never a word.
    """
    return text.splitlines()


def clean_line(line: str) -> str:
    """One line without invisible characters, its runs of blanks of any kind one space, no margin."""
    if not line.isprintable():  # else it has nothing invisible, and the space is its only blank
        line = _INVISIBLE.sub("", line)
    elif "  " not in line:
        return line.strip(" ")
    return " ".join(line.split())


def clean_paragraphs(lines: list[str]) -> str:
    """Paragraphs, one an entry, cleaned, without the empty ones, joined by one newline."""
    return "\n".join(filter(None, map(clean_line, lines)))


def remove_hollows(text: str) -> str:
    """A text without the brackets that removed markup has left empty, or empty at one end.

    And without the second comma of "A, {{b}}, C", and the last one of "(A, {{b}})".
    """
    text = _COMMA_AT_END.sub("", text)
    if "(" in text or "[" in text:
        text = _HALF_EMPTY.sub(r"\1", text)
        text = _EMPTY.sub("", _EMPTY.sub("", text))  # twice: "([])"
        text = _BLANK_AFTER.sub("(", text)
    return _BLANK_BEFORE.sub("", _COMMAS.sub(r"\1", text))


def join_wrapped(lines: list[str]) -> list[str]:
    """Blocks between blank lines, each block's lines joined by a space."""
    paragraphs: list[str] = []
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.strip())
        elif block:
            paragraphs.append(" ".join(block))
            block = []
    return paragraphs
