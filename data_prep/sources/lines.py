"""Text files with a sentence per line and a blank line between documents.

The input of create_pretraining_data.py. Each line stays one sentence: `encode` splits none. A
document is named by its file and the place of its first byte in it, unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.packed import endings_of
from data_prep.sources.inputs.pieces import Broken, Piece, open_piece, plan_pieces, read_lines
from data_prep.sources.inputs.places import find_inputs
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.text_files import MOST_BYTES, shown
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text.cleaning import clean_paragraphs

_WHAT = "file of lines (.txt or .text; also .gz, .zst, .bz2, .xz)"
_SHORT_LINE = 64  # bytes; a line of blanks of other scripts


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of pieces of files; a large plain file is cut at blank lines."""
    files, others = find_inputs(source, _WHAT, _is_wanted)
    plan = plan_pieces(files, characters_per_part)
    return replace(plan, inputs={**plan.inputs, **others})


def read(source: SourceSettings, task: list[Any]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each block of lines; a Damage where a file breaks off."""
    for piece in (Piece(*fields) for fields in task):
        try:
            with open_piece(piece) as file:
                for place, lines in _blocks(file, piece):
                    yield _document(source, f"{shown(piece.name)}:{place}", lines)
        except Broken as broken:
            yield broken.damage


def _document(source: SourceSettings, id: str, lines: list[bytes] | None) -> Document | Reject:
    """A document of some lines, or a reject with the reason."""
    if lines is None:
        return Reject(id, "", "", f"no blank line in {MOST_BYTES >> 20} MiB")
    try:
        sentences = [line.decode() for line in lines]
    except UnicodeDecodeError:
        return Reject(id, "", b"".join(lines).decode(errors="replace"), "not UTF-8")
    text = clean_paragraphs(sentences)
    if not text:
        return Reject(id, "", "", "empty")
    if source.min_characters is not None and len(text) < source.min_characters:
        return Reject(id, "", text, "too short")
    return Document(id, "", text)


def _blocks(file: BinaryIO, piece: Piece) -> Iterator[tuple[int, list[bytes] | None]]:
    """The documents of a piece: the place of the first byte, and the lines; None if too many.

    A document is in the piece in which the blank line before it begins, the first one of a file in
    its first piece.
    """
    lines: list[bytes] | None = []
    place = size = 0
    is_ours = piece.first == 0
    for start, line in read_lines(file, piece.first):
        if line is not None and _is_blank(line):
            if size:
                yield place, lines
            if piece.last is not None and start >= piece.last:
                return
            is_ours, lines, size = True, [], 0
        elif is_ours:
            place = place if size else start
            size += MOST_BYTES + 1 if line is None else len(line)
            if size > MOST_BYTES:
                lines = None
            elif lines is not None and line is not None:
                lines.append(line)
    if size:
        yield place, lines


def _is_blank(line: bytes) -> bool:
    return not line.strip() or (
        len(line) < _SHORT_LINE and not line.isascii() and not line.decode(errors="replace").strip()
    )


def _is_wanted(name: str) -> bool:
    return endings_of(name)[0] in (".txt", ".text")
