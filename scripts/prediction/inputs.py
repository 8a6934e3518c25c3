"""The texts to predict for, from the command line, a file or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from scripts.finetuning import tables
from scripts.finetuning.settings import InputError


@dataclass(frozen=True)
class Input:
    place: str
    text: str
    pair: str | None


def inputs_of(texts: Sequence[str], file: Path | None, second: str | None) -> Iterator[Input]:
    """`texts`, or the lines of the file or of standard input; none may be empty.

    `second` is the second text of each that has none of its own.
    """
    lines: Iterable[tuple[int, str]]
    if texts:
        kind, lines = "text", enumerate(texts, start=1)
    elif file is not None and str(file) != "-":
        if not file.is_file():
            raise InputError(f"there is no file {file}")
        kind, lines = f"{file}, line", tables.lines_of(file)
    else:
        kind, lines = "line", enumerate(_lines_of(sys.stdin.buffer), start=1)
    for number, line in lines:
        place = f"{kind} {number}"
        text, tab, pair = tables.text_in(line, place).partition("\t")
        if not text.strip():
            raise InputError(
                f"{place} has no text; every line is one text, or two separated by a TAB"
            )
        yield Input(place, text, pair if tab else second)


def _lines_of(stream: BinaryIO) -> Iterator[str]:
    """Lines as they come, without a byte order mark. Raises InputError if one is not UTF-8."""
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} is not UTF-8 at byte {error.start}; convert the text before: "
                "iconv -f ENCODING -t utf-8, where ENCODING is utf-16, windows-1252 or latin1"
            ) from error
        yield line.removesuffix("\n").removesuffix("\r")
