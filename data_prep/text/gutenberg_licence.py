"""Finds the books of a Project Gutenberg file between its headers and licences, in every form.

The forms since 1991: "*END*THE SMALL PRINT!" ends a header, or a licence after the text; later
files have "*** START OF THE PROJECT GUTENBERG EBOOK" and "*** END OF ..."; nearly all have a line
"End of Project Gutenberg's ...". A file may hold several books, one after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_NAME = r"(?:Project|Projekt)\s+Gutenberg"
_TO_STARS = r"(?:[^*]|\*(?!\*\*)){0,300}"  # a title may hold asterisks
# Each without its first character, which _MARKER begins with: that makes the search fast.
_START = rf"(?<=\*)\*\* ?START OF[^*]{{0,300}}{_NAME}{_TO_STARS}\*\*\*"
_SMALL_PRINT_END = r"(?<=\*)END\*? ?THE SMALL PRINT[^\n]{0,80}"
_END = (
    rf"(?<=\*)\*\* ?END OF[^*]{{0,300}}{_NAME}"
    r"|(?<=\*)\*\* ?START\*\* ?THE SMALL PRINT"  # some old files have their licence at the end
)
_KIND = r"(?:['’]s\s|(?:['’]s)?[ -]?(?:tm\s+)?(?:E-?Books?|E-?texts?|edition)\b|[ .*]*$)"
_END_LINE = (
    rf"(?<=e)nd(?: (?:of|to) (?:the |this (?:is )?)?(?:copyrighted )?{_NAME}{_KIND}"
    rf"| of (?:the |this )e-?text\b|e dieses {_NAME})"
)
# Few files have them, and the search for more first characters is slower
_RARE_END_LINE = re.compile(
    rf"^[ *<\[(]*(?:This is a copyrighted {_NAME}[^\n]{{0,40}}details above|Fin d[eu] {_NAME})"
    r"[^\n]*",
    re.IGNORECASE | re.MULTILINE,
)
_REST_OF_LINE = r"[^\n*]{0,200}(?:\*+$)?"
_MARKER = re.compile(
    f"[*Ee](?i:(?P<start>{_START})|(?P<small>{_SMALL_PRINT_END})"
    f"|(?:(?P<line>{_END_LINE})|{_END}){_REST_OF_LINE})",
    re.MULTILINE,
)
_WORDS = (
    "gutenberg",
    "small print",
    " the etext",
    " this etext",
    " the e-text",
    " this e-text",
)  # each marker has one
# The last words of the licence since 2001
_LICENCE_END = re.compile(r"email\s+newsletter\s+to\s+hear\s+about\s+new\s+eBooks\.?")
_LINE_START = re.compile(r"[ *<\[(]*(?:This is the )?", re.IGNORECASE)
_STARRED_END = re.compile(r"[^*\n]{0,300}\*\*\* ?END OF", re.IGNORECASE)

_TITLE = re.compile(r"^\W?Title: *(\S[^\r\n]*)", re.MULTILINE)
_HEADER = 3_000  # characters; a later "Title:" is part of the text
_SHORTEST = 1_000  # characters of a text that no two markers enclose
_MOST_LICENCE = 40_000  # characters between two books: a licence of 20,000, a header of 13,000


class Stretch(NamedTuple):
    """What is between two markers."""

    opened_by: str  # the kind of marker: start, small, line, end; empty at the file's start
    text: str
    closed_by: str  # empty at the file's end


class Book(NamedTuple):
    title: str  # of the header; empty if there is none
    text: str


def split_books(text: str) -> tuple[list[Book], list[str]]:
    """The books of a file, and what is too long for a licence and in none of them.

    Without a marker the whole text is the one book; it is empty if nothing is between the markers.
    """
    lowered = text.lower()
    has_words = any(word in lowered for word in _WORDS)  # the expression is slow
    stretches = list(_stretches(text)) if has_words else [Stretch("", text, "")]
    if len(stretches) == 1:
        return [Book(title_of(text), text)], []
    bodies = [number for number, stretch in enumerate(stretches) if _is_body(stretch)]
    bodies = bodies or [_likeliest(stretches)]
    books = []
    header = ""
    for number, stretch in enumerate(stretches):
        if number in bodies:
            titles = _TITLE.findall(header) or [title_of(stretch.text)]
            books.append(Book(" ".join(titles[-1].split()), stretch.text))
            header = ""
        else:
            header += stretch.text
    others = [stretch.text for number, stretch in enumerate(stretches) if number not in bodies]
    return books, [other for other in others if len(other) > _MOST_LICENCE]


def title_of(text: str) -> str:
    """The title in the header; empty if there is none."""
    found = _TITLE.search(text, 0, _HEADER)
    return " ".join(found[1].split()) if found else ""


def _stretches(text: str) -> Iterator[Stretch]:
    """The file cut at its markers."""
    found = [*_markers(text)]
    for expression in (_LICENCE_END, _RARE_END_LINE):
        found += [(match.start(), match.end(), "end") for match in expression.finditer(text)]
    start, opened_by = 0, ""
    for first, end, kind in sorted(found):
        yield Stretch(opened_by, text[start:first], kind)
        start, opened_by = end, kind
    yield Stretch(opened_by, text[start:], "")


def _markers(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind of each marker.

    Mere words, without asterisks, are one only where they begin a line, or before one on its line.
    """
    for match in _MARKER.finditer(text):
        kind, first = match.lastgroup or "end", match.start()
        if kind == "line":
            line = text.rfind("\n", 0, first) + 1
            if _LINE_START.fullmatch(text, line, first):
                first = line
            elif not _STARRED_END.match(text, first):
                continue
        yield first, match.end(), kind


def _is_body(stretch: Stretch) -> bool:
    """Whether a stretch is a book.

    After a start marker, unless it is a short one, such as between two markers of one header;
    elsewhere, unless it is short or a licence or header, which names its project at once.
    """
    text = stretch.text
    if stretch.opened_by == "start" and stretch.closed_by in ("line", "end") and text.strip():
        return True
    if len(text.strip()) < _SHORTEST:
        return False
    is_opened = stretch.opened_by in ("start", "small")
    return is_opened or "gutenberg" not in text[:_HEADER].lower()


def _likeliest(stretches: list[Stretch]) -> int:
    """The stretch to take where none is surely a book.

    Of those after a start marker the longest; without one, what precedes the first end marker.
    """
    opened = [n for n, stretch in enumerate(stretches) if stretch.opened_by in ("start", "small")]
    longest = max(opened, key=lambda number: len(stretches[number].text), default=0)
    is_empty = not stretches[longest].text.strip()
    return 0 if is_empty and stretches[0].closed_by in ("line", "end") else longest
