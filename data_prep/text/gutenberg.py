"""Removes what surrounds the text of a Project Gutenberg book: notes, contents, indexes, tables.

The files are written by hand. So each rule follows what thousands of them have in common, and drops
a block (the lines between two blank ones) only if nothing else is likely to look like it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from string import ascii_letters

_ILLUSTRATION = re.compile(
    r"\[Illustrations?\b[^\[\]]{0,600}(?:\[[^\[\]]{0,300}\][^\[\]]{0,300}){0,5}\]", re.IGNORECASE
)
# The "Complete Works of Shakespeare" has it after every act.
_NOTICE = re.compile(r"<<THIS ELECTRONIC VERSION OF[^<>]{0,1500}>>")
_PAGE = re.compile(r"\{\d+\}|\[(?:Pg|Page)\.? ?[\divxlc]+\]", re.IGNORECASE)
_NOTE_MARK = re.compile(r"(?<=[\w.,;:!?\"'”’»)])\[\d{1,3}\](?!\w)")  # of a footnote
_PAGE_LINE = re.compile(rf"^ *(?:{_PAGE.pattern}) *\n", re.MULTILINE | re.IGNORECASE)
# The lookbehind is second: an expression that begins with a character is searched fast.
_EMPHASIS = re.compile(r"_(?<!\w_)([^_]{1,2000})_(?!\w)")

# Of headers without the marker at their end, in their forms since 1991
_HEADING = re.compile(
    r"\W*(?:(?:This is )?(?:The |A )?Project Gutenberg(?: of \w+)?(?:['’]s |(?:['’]s)? "
    r"(?:E-?Book|E-?text|Edition)\b)|Welcome To The World of Free Plain Vanilla).{0,250}",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"\W*(?:Copyright laws are changing all over the world"
    r"|Please take a look at the important information in this header"
    r"|(?:Welcome To The World of Free|E-?(?:texts|Books) Readable By Both Humans)"
    r"|These E-?(?:texts|Books) (?:Were |Are )?Prepared By"
    r"|Information (?:on contacting|about) Project Gutenberg|This file should be named"
    r"|Corrected EDITIONS of our|VERSIONS based on separate sources"
    r"|Project Gutenberg E-?(?:texts|Books) are (?:usually|often) created"
    r"|We are now trying to release all our|Please note:? +neither this list"
    r"|We produce about two million|This E-?(?:Book|text) is for the use of anyone"
    r"|It must legally be the first thing|Mail subscription to|If you have an FTP program"
    r"|Most people start at our|Information prepared by the Project Gutenberg"
    r"|(?:Title|Author|Editor|Translator|Illustrator|(?:Official )?Release Date|Posting Date"
    r"|Original publication|Credits|Language|Character set encoding|(?:Most recently|Last) updated"
    r"|Edition): )",
    re.IGNORECASE,
)
_HEADER_BLOCKS = 40
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
    r"list of (?:plates|figures|maps)|page|table des mati[eè]res|inhoud(?:sopgave)?|"
    r"inhalt(?:sverzeichnis)?|[ií]ndice|sommaire|contenido|conteúdo|содержание|оглавление|зміст|"
    r"spis treści|innehåll|indhold|sisältö|obsah|tartalom|içindekiler|περιεχ[οό]μενα)\W*",
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


def strip_marks(text: str) -> str:
    """Remove [Illustration...], page numbers, notices and the underscores of _emphasis_."""
    if "[" in text or "{" in text:  # the expressions are slow
        text = _NOTE_MARK.sub("", _ILLUSTRATION.sub("", text))
        if _PAGE.search(text):
            text = _PAGE.sub("", _PAGE_LINE.sub("", text))
    if "<<" in text:
        text = _NOTICE.sub("", text)
    return _EMPHASIS.sub(r"\1", text)


def strip_matter(lines: list[str]) -> list[str]:
    """The lines without producer's and transcriber's notes, contents, indexes and tables."""
    width = width_of(lines)
    blocks = _without_contents(_without_notes(_without_header(_blocks(lines))), width)
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


def _without_header(blocks: list[_Block]) -> list[_Block]:
    """Remove a header that no marker ends: a heading, and what is known to follow one."""
    first = next((n for n, block in enumerate(blocks[:3]) if _is_heading(block)), None)
    if first is None:
        return blocks
    return [
        block
        for number, block in enumerate(blocks)
        if number >= _HEADER_BLOCKS or not (_is_heading(block) or _HEADER.match(block.text))
    ]


def _is_heading(block: _Block) -> bool:
    return _HEADING.fullmatch(block.text) is not None and not block.text.endswith((".", "?", "!"))


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
