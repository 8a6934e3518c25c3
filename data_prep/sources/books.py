"""A folder of .txt files, one book per file, as Project Gutenberg has them, or several of them.

Plain or packed (.txt.gz, .zst, .bz2, .xz).

Encodings: UTF-8, UTF-16 with a byte order mark, otherwise Windows-1252. Nearly any bytes are valid
in the last, so text that looks misread is rejected. Paragraphs: one per line, or separated by blank
lines, or marked only by an indented first line or a short last one; each book is measured. Licence,
notes, contents and index are removed, see text/gutenberg.py and text/gutenberg_licence.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.packed import endings_of
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.text_files import plan_files, read_unpacked, shown
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text import gutenberg
from data_prep.text.book_leftovers import join_broken_words, without_headings
from data_prep.text.cleaning import clean_paragraphs, join_wrapped, split_lines
from data_prep.text.gutenberg_licence import split_books

_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|!--|html|head|title|meta|body|center|h1|\?xml)",
    re.IGNORECASE,
)
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")

# UTF-8 read as Windows-1252 or Latin-1: the lead byte of a two-byte or three-byte character, then
# a character that no word has there.
_MOJIBAKE = re.compile("[ÃÂ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œ]|â[\x80€]|ï»¿")
_MISREAD = "ÃÂâï"  # each match has one of them; the expression is slow
_MOST_BROKEN = 1e-3  # of the characters; a misread book with accents has 1e-2

# Of the lines. Of 104 books a list of letters has 0.9, and the next one 0.15.
_MOST_ENTRIES = 0.5
_MOST_VERSE = 0.5  # of the line ends; two books of verse have 0.6 and 0.8, prose up to 0.26

# As create_pretraining_data.py reads it. Joined to paragraphs, several documents would be one. Of
# 104 books those with as many lines that end a sentence have another end in 38 % of the lines.
_SENTENCES = "many documents, a sentence per line: collect the file with +source=lines"
_SAMPLE = 1_000  # lines, from all of the book
_FEWEST_LINES = 8
_FEWEST_PER_BLOCK = 3.0  # mean; a paragraph per line has 1
_FEWEST_ENDS = 0.7  # of the lines; a document may begin with a title
_MOST_INSIDE = 0.2
_LINE_ENDS_SENTENCE = re.compile(r"[.!?…。！？](?>(?: ?[\"'”’»」』)\]_*])*)$")
_SENTENCE_INSIDE = re.compile(
    r"[^\W\d_]{3} ?[.!?…][\"'”’»)\]_]*\s+[\"'“‘«(\[_]*[A-ZÀ-ÖØ-ÞΑ-ΩА-Я]"
    r"|[^\W\d_]{4} ?[.!?…]\s+[^\W\d_]"  # lower-cased text
    r"|[。！？][”’」』]*\w"
)

_LONG_LINE = 200  # characters; typewriters and editors wrap far below it
# Mean. Of 77 novels, those with blank lines between paragraphs have 3 to 20, those without 256 to
# 8,803.
_MOST_LINES_OF_A_BLOCK = 30
_ENDS_A_SENTENCE = re.compile(r"[.!?:—-][\"'”’)\]_*]*$|\*$")


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of whole books."""
    return plan_files(
        source, characters_per_part, ".txt file", lambda path: endings_of(path.name)[0] == ".txt"
    )


def read(source: SourceSettings, task: list[str]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each book; the id is the file's name below source.path.

    Of several books in one file it is followed by their number.
    """
    for file in task:
        name = shown(file)
        data = read_unpacked(source, file)
        title = Path(name.removesuffix(endings_of(name)[1])).stem.replace("_", " ")
        if isinstance(data, Damage):
            yield data
            continue
        text, fault = decode(data)
        if fault:
            yield Reject(name, title, text, fault)
        else:
            yield from books(source, name, title, text)


def decode(data: bytes) -> tuple[str, str | None]:
    """The text of a file's bytes, and the reason to reject it, or None."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif data.startswith(_COMPRESSED):
        return "", "compressed file"
    elif b"\0" in data:
        return "", "NUL bytes"
    elif _HTML.match(data):
        return data.decode("utf-8", errors="replace"), "HTML page"
    else:
        encoding = "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            return "", "broken UTF-16"
        if error.reason == "unexpected end of data":  # cut inside a character: lose that one
            text = data[: error.start].decode(encoding)
        else:
            try:
                text = data.decode("cp1252")
            except UnicodeDecodeError:
                return "", "neither UTF-8 nor Windows-1252"
    bound = _MOST_BROKEN * len(text)
    if text.count("\ufffd") > bound:
        return text, "replacement characters"
    if any(sign in text for sign in _MISREAD) and len(_MOJIBAKE.findall(text)) > bound:
        return text, "mixed or doubled encoding"
    return text, None


def books(
    source: SourceSettings, id: str, title: str | None, text: str
) -> Iterator[Document | Reject]:
    """A document, or a reject with the reason, for each book in a raw text.

    Without a `title` it is the header's, as it is where there are several books.
    """
    if not text.strip():
        yield Reject(id, title or "", text, "empty")
        return
    found, others = split_books("\n".join(split_lines(text)))
    for number, (own_title, raw) in enumerate(found, 1):
        of_one = text, id, own_title if title is None else title
        of_several = raw, f"{id}/{number}", own_title or title or ""
        whole, own_id, name = of_one if len(found) == 1 else of_several
        removed: Counter[str] = Counter()
        body, fault = _body(source, raw, removed)
        if fault:
            yield Reject(own_id, name, whole, fault)
        else:
            yield Document(own_id, name, body, removed=+removed)
    for number, other in enumerate(others, 1):
        yield Reject(f"{id}/other/{number}", title or "", other, "text outside of a book's marks")


def _body(source: SourceSettings, text: str, removed: Counter[str]) -> tuple[str, str | None]:
    """A book's paragraphs, and the reason to reject it, or None; counts what it removes."""
    lines = [line.rstrip() for line in gutenberg.strip_marks(text).expandtabs().split("\n")]
    if gutenberg.share_of_entries(lines) > _MOST_ENTRIES:
        return "", "index or table"
    if _is_list_of_sentences(lines):
        return "", _SENTENCES
    lines = gutenberg.strip_matter(lines)
    if source.keep_verse is False and gutenberg.share_of_verse(lines) > _MOST_VERSE:
        return "", "verse"
    body = clean_paragraphs(paragraphs(lines))
    body = join_broken_words("\n".join(without_headings(body.split("\n"), removed)))
    if not body:
        return "", "no text besides the licence"
    if source.min_characters is not None and len(body) < source.min_characters:
        return "", "too short"
    return body, None


def _is_list_of_sentences(lines: list[str]) -> bool:
    """Whether each line is a sentence, and blank lines part more than sentences."""
    filled = list(filter(None, lines))
    num_blocks = _num_blocks(lines)
    if num_blocks < 2 or len(filled) < max(_FEWEST_LINES, _FEWEST_PER_BLOCK * num_blocks):
        return False
    sample = filled[:: -(-len(filled) // _SAMPLE)]
    ends = sum(_LINE_ENDS_SENTENCE.search(line[-20:]) is not None for line in sample)
    if ends < _FEWEST_ENDS * len(sample):
        return False
    inside = sum(_SENTENCE_INSIDE.search(line, 0, _LONG_LINE) is not None for line in sample)
    return inside <= _MOST_INSIDE * len(sample)


def _num_blocks(lines: list[str]) -> int:
    """The number of blocks between blank lines."""
    return sum(1 for a, b in zip(lines, [*lines[1:], ""], strict=True) if a and not b)


def paragraphs(lines: list[str]) -> list[str]:
    """Join hard-wrapped lines to paragraphs, by the sign of a paragraph that the book uses.

    The lines have no tabs and no blanks at their ends.
    """
    lengths = [len(line) for line in lines if line]
    if not lengths:
        return []
    if sum(n for n in lengths if n > _LONG_LINE) > sum(lengths) / 2:
        return lines
    if len(lengths) <= _MOST_LINES_OF_A_BLOCK * _num_blocks(lines):
        return join_wrapped(lines)
    num_indented = sum(line.startswith(" ") for line in lines)
    if 0.02 * len(lengths) < num_indented < 0.5 * len(lengths):
        return join_wrapped(_separated(lines, lambda line, after: after.startswith(" ")))
    width = gutenberg.width_of(lines)
    return join_wrapped(_separated(lines, lambda line, after: _is_last(line, after, width)))


def _separated(lines: list[str], is_border: Callable[[str, str], bool]) -> list[str]:
    """The lines, with a blank one between two that `is_border` separates."""
    separated: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        separated.append(line)
        if line and after and is_border(line, after):
            separated.append("")
    return separated


def _is_last(line: str, after: str, width: int) -> bool:
    """Whether a line ends its paragraph: the first word of the next line would have fitted."""
    has_room = len(line) + 1 + len(after.split(maxsplit=1)[0]) <= width
    return has_room and (bool(_ENDS_A_SENTENCE.search(line)) or line.isupper())
