"""Removes what surrounds the text of a Project Gutenberg book: licence, notes, contents, tables.

The files are written by hand. So each rule follows what thousands of them have in common, and drops
a block (the lines between two blank ones) only if nothing else is likely to look like it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from string import ascii_letters

# Without the first character: _MARKER begins with it, which makes the search fast.
_START = (
    r"(?<=\*)\*\* ?START OF[^*]{0,300}GUTENBERG[^*]{0,300}\*\*\*"
    r"|(?<=\*)END\*? ?THE SMALL PRINT[^\n]{0,80}"
)
_END = (
    r"(?<=\*)\*\* ?END OF[^*]{0,300}GUTENBERG"
    r"|(?<=e)nd of (?:the |this )?Project Gutenberg(?:['’]s | EBook| Etext)"
    r"|(?<=\*)\*\* ?START\*\* ?THE SMALL PRINT"  # some old files have their licence at the end
)
_MARKER = re.compile(f"[*Ee](?i:(?P<start>{_START})|{_END})")

_TITLE = re.compile(r"^\W?Title: *(\S[^\r\n]*)", re.MULTILINE)
_HEADER = 3_000  # characters; a later "Title:" is part of the text

_ILLUSTRATION = re.compile(
    r"\[Illustrations?\b[^\[\]]{0,600}(?:\[[^\[\]]{0,300}\][^\[\]]{0,300}){0,5}\]", re.IGNORECASE
)
_PAGE = re.compile(r"\{\d+\}|\[(?:Pg|Page)\.? ?[\divxlc]+\]", re.IGNORECASE)
_PAGE_LINE = re.compile(rf"^ *(?:{_PAGE.pattern}) *\n", re.MULTILINE | re.IGNORECASE)
# The lookbehind is second: an expression that begins with a character is searched fast.
_EMPHASIS = re.compile(r"_(?<!\w_)([^_]{1,2000})_(?!\w)")

_PRODUCED = re.compile(
    r"\W*(?:This )?(?:(?:e-?text|e-?book|text file|file|HTML version) )?(?:was |is )?"
    r"(?:produced|prepared|transcribed|scanned|proofread|digiti[sz]ed|created|typed)\b.{0,80}\bby\b"
    r"|\W*Transcribed from the|\W*Note: (?:Project Gutenberg|Images of the original)"
    r"|.{0,120}Distributed Proofread",
    re.IGNORECASE | re.DOTALL,
)
_NOTE = 1_000  # characters; a longer block is text, such as a whole book without line ends
_NOTE_LINES = 30
_PRODUCED_BLOCKS = 12  # these words in a later block are the author's
_TRANSCRIBER = re.compile(
    r"\W*(?:Transcriber|Project Gutenberg Editor)['’]?s?['’]? Notes?\b(.*)",
    re.IGNORECASE | re.DOTALL,
)
_TRANSCRIBER_OPENS = re.compile(r"\W*(?:Transcriber|Project\b|$)", re.IGNORECASE)
_NOTE_BLOCKS = 15  # at most, in a transcriber's note before the text
_CONTENTS = re.compile(
    r"\W*(?:(?:table of )?contents|(?:list of )?illustrations|"
    r"list of (?:plates|figures|maps)|page)\W*",
    re.IGNORECASE,
)
_MOST_OF_CONTENTS = 0.15  # of the book's lines
_CONTENTS_BEFORE = 0.1  # of the book's blocks; a later heading is a chapter's
_INDEX = re.compile(r"\W*(?:general |alphabetical )?index\W*", re.IGNORECASE)

_NUMBER_AT_END = re.compile(r"\W(?:\d+|[ivxlc]{2,})\W{0,3}$", re.IGNORECASE)
_ENDS_NO_NUMBER = frozenset(ascii_letters) - frozenset("ivxlcIVXLC")
_SPEECH = 40  # characters of a line that begins with a quotation mark; a title is shorter
_SUMMARY = 60  # characters per dash; prose has far fewer dashes
_CAPITAL = re.compile(r"[\W_]*[A-ZÀ-ÞŒ]")
_LONG_LINE = 120  # characters: neither an entry of a table of contents nor verse


@dataclass(frozen=True)
class _Block:
    gap: int  # empty lines before it
    lines: list[str]

    @property
    def text(self) -> str:
        return " ".join(line.strip() for line in self.lines)


def strip_licence(text: str) -> str:
    """The text between Project Gutenberg's header and footer; all of it if there is no marker.

    Old licences contain the markers, and some old files have the licence at the end. So the text is
    the longest stretch after a start marker or, without one, what precedes the first end marker.
    """
    lowered = text.lower()
    has_words = "gutenberg" in lowered or "small print" in lowered  # the expression is slow
    markers = list(_MARKER.finditer(text)) if has_words else []
    if not markers:
        return text
    ends = [*(marker.start() for marker in markers[1:]), len(text)]
    stretches = [
        text[marker.end() : end]
        for marker, end in zip(markers, ends, strict=True)
        if marker["start"]
    ]
    longest = max(stretches, key=len, default="")
    if longest.strip() or markers[0]["start"]:
        return longest
    return text[: markers[0].start()]


def title_of(text: str) -> str:
    """The title in the header; empty if there is none."""
    found = _TITLE.search(text, 0, _HEADER)
    return " ".join(found[1].split()) if found else ""


def strip_marks(text: str) -> str:
    """Remove [Illustration...], page numbers and the underscores of _emphasis_."""
    if "[" in text or "{" in text:  # the expressions are slow
        text = _ILLUSTRATION.sub("", text)
        if _PAGE.search(text):
            text = _PAGE.sub("", _PAGE_LINE.sub("", text))
    return _EMPHASIS.sub(r"\1", text)


def strip_matter(lines: list[str]) -> list[str]:
    """The lines without producer's and transcriber's notes, contents, indexes and tables."""
    width = width_of(lines)
    blocks = _without_contents(_without_notes(_blocks(lines)), width)
    kept = [block for block in _without_index(blocks) if not _is_table(block)]
    return [line for block in kept for line in ["", *block.lines]]


def width_of(lines: list[str]) -> int:
    """The width at which lines were wrapped: 90 % have at most as many characters. 0 if none."""
    lengths = sorted(map(len, filter(None, lines)))
    return lengths[len(lengths) * 9 // 10] if lengths else 0


def share_of_entries(lines: list[str]) -> float:
    """The share of lines that are in columns or end in leaders or a page number."""
    filled = [line for line in lines if line]
    return _num_entries(filled) / max(1, len(filled))


def share_of_verse(lines: list[str]) -> float:
    """The share of line ends inside blocks that are line ends of verse; 0 if lines are not wrapped.

    There the next line's first word would have fitted, and it has a capital.
    """
    width = width_of(lines)
    if width > _LONG_LINE:
        return 0.0
    ends = verses = 0
    for line, after in pairwise(lines):
        if line and after:
            ends += 1
            if not after[0].islower() and _CAPITAL.match(after):
                verses += len(line) + 1 + len(after.split(maxsplit=1)[0]) <= width
    return verses / max(1, ends)


def _blocks(lines: list[str]) -> list[_Block]:
    """The lines between blank ones, as blocks."""
    blocks: list[_Block] = []
    gap = 0
    for is_filled, run in groupby(lines, bool):
        block = list(run)
        if is_filled:
            blocks.append(_Block(gap, block))
        gap = len(block)
    return blocks


def _without_notes(blocks: list[_Block]) -> list[_Block]:
    """Remove the notes of producers and transcribers.

    A note after a heading ends at the next wide gap. In the second half it ends with the book.
    """
    kept: list[_Block] = []
    index = 0
    while index < len(blocks):
        block = blocks[index]
        is_early = len(kept) < _PRODUCED_BLOCKS
        may_be_note = is_early or _TRANSCRIBER_OPENS.match(block.lines[0]) is not None
        text = block.text if may_be_note and len(block.lines) <= _NOTE_LINES else ""
        note = _TRANSCRIBER.fullmatch(text) if len(text) <= _NOTE else None
        is_heading = note is not None and not note[1].strip(" :.]_*")
        if is_heading and index > len(blocks) / 2:
            break
        if is_heading:
            following = range(index + 2, min(index + 2 + _NOTE_BLOCKS, len(blocks)))
            index = next((n for n in following if blocks[n].gap >= 3), index + 2)
            continue
        if not note and not (is_early and len(text) <= _NOTE and _PRODUCED.match(text)):
            kept.append(block)
        index += 1
    return kept


def _without_contents(blocks: list[_Block], width: int) -> list[_Block]:
    """Remove contents and lists of illustrations, from the heading to the first prose."""
    lines_before = [0, *accumulate(len(block.lines) for block in blocks)]
    most = _MOST_OF_CONTENTS * lines_before[-1]
    kept: list[_Block] = []
    index = end = 0
    while index < len(blocks):
        is_front = index <= max(20, _CONTENTS_BEFORE * len(blocks))
        if is_front and _CONTENTS.fullmatch(blocks[index].lines[0]):
            if end <= index:  # otherwise no prose is between them
                following = range(index + 1, len(blocks))
                end = next((n for n in following if _is_prose(blocks[n], width)), len(blocks))
            if lines_before[end] - lines_before[index] <= most:
                index = end
                continue
        kept.append(blocks[index])
        index += 1
    return kept


def _without_index(blocks: list[_Block]) -> list[_Block]:
    """The blocks before a heading INDEX in the second half, if most lines after it are entries."""
    half = len(blocks) // 2
    headings = [n for n in range(half, len(blocks)) if _INDEX.fullmatch(blocks[n].lines[0])]
    if not headings:
        return blocks
    lines = entries = 0
    first = len(blocks)
    for number in range(len(blocks) - 1, headings[0] - 1, -1):  # each block is counted once
        lines += len(blocks[number].lines)
        entries += _num_entries(blocks[number].lines)
        if number == headings[-1]:
            headings.pop()
            first = number if entries > 0.5 * lines else first
    return blocks[:first]


def _is_prose(block: _Block, width: int) -> bool:
    first, last = block.lines[0], block.lines[-1]
    is_speech = first.strip()[0] in "\"“‘'" and len(first) > _SPEECH and not _is_entry(first)
    if is_speech or len(first) > _LONG_LINE:
        return True
    is_full = len(first.strip()) >= 0.7 * min(width, _LONG_LINE)
    if len(block.lines) == 1 or not is_full or _is_entry(first) or _is_entry(last):
        return False
    text = block.text
    return (
        text.count("—") + text.count("--") < len(text) / _SUMMARY
    )  # otherwise the summary of a chapter


def _is_table(block: _Block) -> bool:
    if len(block.lines) < 3:
        return False
    columns = sum(1 for line in block.lines if _has_columns(line.strip()))
    return columns > 0.6 * len(block.lines)


def _num_entries(lines: list[str]) -> int:
    # Most lines cannot be entries; they are dropped first because the expression is slow.
    maybe = [line for line in lines if line[-1] not in _ENDS_NO_NUMBER or _has_columns(line)]
    return sum(map(_is_entry, maybe))


def _is_entry(line: str) -> bool:
    if len(line) > _LONG_LINE:
        return False
    text = line.strip()
    return _has_columns(text) or _NUMBER_AT_END.search(f" {text[-12:]}") is not None


def _has_columns(text: str) -> bool:
    """Whether a line has a gap inside or leaders."""
    return "   " in text or "...." in text or ". . . ." in text
