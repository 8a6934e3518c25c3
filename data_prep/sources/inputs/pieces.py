"""Files cut into pieces, and pieces grouped into tasks, without reading the text.

A file of lines is cut by bytes, a parquet file by row groups; any other file is one piece. A packed
file of lines is cut coarsely, since each task unpacks it from its start.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.inputs.packed import UNPACKED, endings_of, fault_of, is_packed, unpacked
from data_prep.sources.inputs.places import Place, open_input
from data_prep.sources.inputs.plan import SourcePlan, cut_by_size
from data_prep.sources.inputs.text_files import MOST_BYTES, NO_FILE, shown
from data_prep.stores.documents import Damage
from data_prep.stores.remote import network_errors

OF_LINES = (".jsonl", ".ndjson", ".txt", ".text")  # endings of files that are cut at line ends
_COARSE = 16  # times as large as usual are the pieces of a packed file
REQUESTS = 16  # to a remote store at the same time


class Piece(NamedTuple):
    """A part of a file that one task reads. Of JSON's types, as tasks are."""

    name: str  # of the file below the input's folder
    at: str  # its path or URL
    first: int = 0  # of its bytes, or of its row groups
    last: int | None = None  # the one after its last one; None: the end of the file

    @property
    def ending(self) -> str:
        """.jsonl of a.jsonl.gz."""
        return endings_of(self.name)[0]


def plan_pieces(
    files: Sequence[Place], characters_per_part: int, column: str | None = None
) -> SourcePlan:
    """Tasks of pieces, by their sizes in bytes; `column` of parquet files holds the text."""

    def cut(file: Place) -> list[tuple[Piece, int]]:
        return list(_cut(file, characters_per_part, column))

    with ThreadPoolExecutor(REQUESTS) as pool:  # a parquet file's footer has its row groups
        of_files = list(pool.map(cut, files))
    pieces = [(piece, size, file.state) for file, cuts in zip(files, of_files, strict=True)
              for piece, size in cuts]  # fmt: skip
    runs = cut_by_size([size for _, size, _ in pieces], characters_per_part)
    return SourcePlan(
        tasks=[[list(pieces[index][0]) for index in run] for run in runs],
        inputs={"files": len(files), "bytes": sum(file.size for file in files)},
        states=[[_state(*pieces[index]) for index in run] for run in runs],
    )


def _state(piece: Piece, size: int, state: list[Any]) -> list[Any]:
    is_whole = (piece.first, piece.last) == (0, None)
    return [shown(piece.name), *state] if is_whole else [*state, piece.first, piece.last]


def _cut(file: Place, most: int, column: str | None) -> Iterator[tuple[Piece, int]]:
    """The pieces of a file, each with an estimate of its bytes of text."""
    ending, packing = endings_of(file.name)
    size = file.size * (UNPACKED if packing else 1)
    step = most * (_COARSE if packing else 1)
    if ending in OF_LINES and size > step:
        for first in range(0, size, step):
            last = first + step if first + step < size else None
            yield Piece(file.name, file.at, first, last), min(step, size - first)
    elif ending == ".parquet" and not packing and UNPACKED * size > most:
        sizes = _group_sizes(file, column)
        runs = cut_by_size(sizes, most) if sizes else [range(0)]
        for run in runs:
            last = run.stop if run.stop < len(sizes) else None
            yield Piece(file.name, file.at, run.start, last), sum(sizes[run.start : run.stop])
    else:
        yield Piece(file.name, file.at), size


def _group_sizes(file: Place, column: str | None) -> list[int]:
    """Bytes of a column in each row group, as stored but for compression; [] if it is damaged."""
    try:
        with open_input(file.at) as raw, network_errors(file.at), pq.ParquetFile(raw) as table:
            groups = [table.metadata.row_group(n) for n in range(table.num_row_groups)]
            return [bytes_of_group(group, column) for group in groups]
    except (OSError, pa.ArrowException):
        return []  # the task that reads it tells why


def bytes_of_group(group: Any, column: str | None) -> int:
    """Bytes of a column, or of all, in a row group, as stored but for compression."""
    chunks = (group.column(n) for n in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size for chunk in chunks if column in (None, chunk.path_in_schema)
    )


@contextlib.contextmanager
def open_piece(piece: Piece) -> Iterator[BinaryIO]:
    """The content of a piece's file, unpacked, at its start. Raises Broken where it ends early."""
    packing = endings_of(piece.name)[1]
    name = shown(piece.name)
    try:
        with open_input(piece.at) as raw, network_errors(piece.at):
            assert isinstance(raw, io.BufferedReader)
            if not packing and is_packed(raw.peek(6)[:6]):
                raise Broken(Damage(name, "is packed, and its name does not end in .gz or so"))
            with unpacked(raw, packing) as file:
                yield file
    except FileNotFoundError as error:
        raise Broken(Damage(name, NO_FILE)) from error
    except (Exception, EOFError) as error:
        if isinstance(error, Broken) or (fault := fault_of(error)) is None:
            raise
        raise Broken(Damage(name, fault)) from error


class Broken(Exception):
    """A file that cannot be read on."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(f"{damage.input} {damage.what}")
        self.damage = damage


def read_lines(
    file: BinaryIO, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin in bytes `first` to `last`, each with its first byte's place.

    A line of more than MOST_BYTES is None, and never in memory as a whole.
    """
    position = 0
    if first:  # a line begins at `first` only if the byte before it ends one
        _skip(file, first - 1)
        position = first - 1 + _skip_line(file)
    while last is None or position < last:
        line = file.readline(MOST_BYTES + 1)
        if not line:
            return
        start, position = position, position + len(line)
        if len(line) <= MOST_BYTES:
            yield start, line if start else line.removeprefix(b"\xef\xbb\xbf")
        else:
            position += 0 if line.endswith(b"\n") else _skip_line(file)
            yield start, None


def _skip(file: BinaryIO, size: int) -> None:
    """Go to byte `size` of a file at its start, by reading if there is no other way."""
    if file.seekable():
        file.seek(size)
    while size and not file.seekable():
        if not (part := file.read(min(size, 1 << 20))):
            break
        size -= len(part)


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of a line; return the number of bytes."""
    size = 0
    while part := file.readline(1 << 20):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size
