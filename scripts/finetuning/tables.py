"""Rows, with their places, of tables with named columns: tsv, csv, jsonl, or a hub data set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.finetuning.settings import HubSettings, InputError, TaskSettings

SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    place: str  # file and line, for messages
    values: dict[str, Any]
    fault: str = ""  # of a row with too few or too many columns, which has no values


def path_of(task: TaskSettings, name: str) -> Path:
    """The path of a task's file. Raises InputError if there is none."""
    assert task.folder is not None
    path = Path(task.folder) / name
    if not path.is_file():
        raise InputError(
            f"there is no file {path}; task.folder=FOLDER names the folder of {task.name}'s files"
            + ("" if task.hub is None else ", task.folder=null takes them from the hub")
        )
    return path


def text_of(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises InputError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 at byte {error.start:,}; convert it: iconv -f latin1 -t utf-8"
        ) from error


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, cut only at line feeds: Unicode's other separators are part of a text."""
    lines = text_of(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def read_table(path: Path, *, header: bool, quotes: bool) -> Iterator[Row]:
    """The rows of a file. Without a header columns are named "0", "1", ... Raises InputError."""
    if path.suffix == ".jsonl":
        yield from read_json_lines(path)
        return
    if path.suffix not in SEPARATORS:
        raise InputError(f"{path}: the name must end in .jsonl, {', '.join(SEPARATORS)}; rename it")
    names: list[str] | None = None
    for number, record in _records(path, SEPARATORS[path.suffix], quotes):
        if names is None:
            names = record if header else [str(column) for column in range(len(record))]
            if header:
                continue
        if len(record) == len(names):
            yield Row(f"{path}, line {number}", dict(zip(names, record, strict=True)))
        else:
            fault = f"{len(record)} column(s), but the first line has {len(names)}"
            yield Row(f"{path}, line {number}", {}, fault)


def read_json_lines(path: Path) -> Iterator[Row]:
    """The rows of a file with one JSON object per line. Raises InputError."""
    for number, line in lines_of(path):
        if line.strip():
            try:
                values = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(values, dict):
                raise InputError(f"{path}, line {number} is no JSON object with named columns")
            yield Row(f"{path}, line {number}", values)


def read_hub(hub: HubSettings, split: str) -> Iterator[Row]:
    """Rows of a split of a hub data set; numeric labels that have names become the names.

    Raises InputError if the hub does not provide it.
    """
    import datasets

    name = hub.dataset if hub.subset is None else f"{hub.dataset}/{hub.subset}"
    try:
        rows = datasets.load_dataset(hub.dataset, hub.subset, split=split, revision=hub.revision)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the hub did not provide {name}, split {split}: {reason}; without a network name the "
            "folder of the task's files: task.folder=FOLDER"
        ) from error
    named = {
        column: feature
        for column, feature in rows.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    for number, values in enumerate(rows):
        for column, feature in named.items():
            if values[column] >= 0:
                values[column] = feature.int2str(values[column])
        yield Row(f"{name}, split {split}, row {number}", values)


def _records(path: Path, separator: str, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    if not quotes:
        for number, line in lines_of(path):
            if line:
                yield number, line.split(separator)
        return
    reader = csv.reader(io.StringIO(text_of(path), newline=""), delimiter=separator, strict=True)
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; if quotes are plain characters, "
            "add task.quotes=false"
        ) from error
