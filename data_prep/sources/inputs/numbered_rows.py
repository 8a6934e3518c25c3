"""Rows by their number in all files together, for documents that are named by it.

Planning counts them: those of parquet in the footers, those of JSON by lines. A task gets equally
many, and reads the row groups, or the stretches of lines, that hold them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.packed import endings_of
from data_prep.sources.inputs.pieces import (
    REQUESTS,
    Broken,
    Piece,
    bytes_of_group,
    open_piece,
    read_lines,
)
from data_prep.sources.inputs.places import Place, open_input
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.row_files import Row, is_list, read_rows
from data_prep.sources.inputs.row_inputs import find_rows, require_columns
from data_prep.stores.documents import Damage
from data_prep.stores.remote import network_errors

_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json")
_WHAT = "plain .parquet, .jsonl or .json file"
_ROW_OVERHEAD = 16  # bytes of ids and offsets, an estimate to cut by
_STRETCH = 1 << 20  # bytes of lines, of which a task reads the first in vain


class _Stretch(NamedTuple):
    """A part of a file that can be read alone."""

    piece: Piece
    num_rows: int  # 0 in a file that cannot be read: the task that holds it reports it
    size: int  # bytes of its text, an estimate


def plan_numbered(
    source: SourceSettings, characters_per_part: int, column: str, multiple_of: int = 1
) -> SourcePlan:
    """Tasks of row ranges of about characters_per_part, by the mean row of `column`.

    Ranges start at multiples of `multiple_of` rows. Raises SettingsError if there is no file of
    rows, or the first one lacks the column.
    """
    files, found = find_rows(source, _WHAT, _is_wanted)
    require_columns(files[0], [column])
    with ThreadPoolExecutor(REQUESTS) as pool:
        of_files = list(pool.map(partial(_stretches, column), files))
    states = [file.state for file, own in zip(files, of_files, strict=True) for _ in own]
    stretches = [stretch for own in of_files for stretch in own]
    firsts = [0, *accumulate(stretch.num_rows for stretch in stretches)]
    total = firsts.pop()
    mean = sum(stretch.size for stretch in stretches) // max(1, total) + _ROW_OVERHEAD
    step = max(1, characters_per_part // mean // multiple_of) * multiple_of
    plan = SourcePlan(
        tasks=[],
        inputs={
            "files": len(files), "bytes": sum(file.size for file in files), "rows": total, **found
        },
        states=[],
    )  # fmt: skip
    for first in range(0, max(1, total), step):
        last = min(first + step, total)
        begin = bisect_left(firsts, first)
        if begin == len(firsts) or firsts[begin] > first:
            begin -= 1  # it begins before the task, and ends in it
        end = bisect_left(firsts, last) if last < total else len(firsts)
        own = range(begin, end)
        plan.tasks.append({"first": first, "last": last, "pieces": _merged(stretches, firsts, own)})
        plan.states.append([[*states[n], firsts[n]] for n in own] + [first, last])
    return plan


def read_numbered(
    task: dict[str, Any], columns: Sequence[str]
) -> Iterator[tuple[int, Row] | Damage]:
    """The rows of one task with their numbers, and a Damage where a file cannot be read on."""
    for number, *fields in task["pieces"]:
        for row in read_rows(Piece(*fields), columns):
            if isinstance(row, Damage):
                yield row
                continue
            if number >= task["last"]:
                break
            if number >= task["first"]:
                yield number, row
            number += 1


def _is_wanted(name: str) -> bool:
    ending, packing = endings_of(name.partition("?")[0])
    return ending in _ENDINGS and not packing


def _merged(
    stretches: Sequence[_Stretch], firsts: Sequence[int], chosen: Sequence[int]
) -> list[Any]:
    """The number of the first row, and the fields of the piece, of what is read in one go."""
    runs = [list(run) for _, run in groupby(chosen, key=lambda n: stretches[n].piece.at)]
    return [
        [firsts[run[0]], *stretches[run[0]].piece._replace(last=stretches[run[-1]].piece.last)]
        for run in runs
    ]


def _stretches(column: str, file: Place) -> list[_Stretch]:
    whole = Piece(file.name, file.at)
    try:
        if whole.ending == ".parquet":
            return _groups(whole, column) or [_Stretch(whole, 0, 0)]
        return list(_lines(whole, file.size, column))
    except (Broken, OSError, pa.ArrowException):
        return [_Stretch(whole, 0, 0)]


def _groups(whole: Piece, column: str) -> list[_Stretch]:
    with open_input(whole.at) as raw, network_errors(whole.at), pq.ParquetFile(raw) as table:
        groups = [table.metadata.row_group(n) for n in range(table.num_row_groups)]
        return [
            _Stretch(
                whole._replace(first=n, last=n + 1), group.num_rows, bytes_of_group(group, column)
            )
            for n, group in enumerate(groups)
        ]


def _lines(whole: Piece, size: int, column: str) -> Iterator[_Stretch]:
    with open_piece(whole) as file:
        if whole.ending == ".json" and is_list(file):
            rows = sum(isinstance(row, Row) for row in read_rows(whole, [column]))
            yield _Stretch(whole, rows, size)
            return
        first = place = num_rows = 0
        for place, line in read_lines(file):
            if place - first >= _STRETCH:
                yield _Stretch(whole._replace(first=first, last=place), num_rows, place - first)
                first, num_rows = place, 0
            num_rows += line is None or not line.isspace()
        yield _Stretch(whole._replace(first=first), num_rows, max(0, size - first))
