"""Rows, with their places, of tables with named columns: tsv, csv, jsonl, or a hub data set."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.core.printable import shortened
from scripts.finetuning.settings import HubSettings, InputError, TaskSettings

SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
PACKED = (  # gzip, zip and xlsx, bzip2, xz, zstd, parquet, pickle
    b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PAR1", b"\x80\x04",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    place: str  # file and line, for messages
    values: dict[str, Any]
    fault: str = ""  # of a row with too few or too many columns, which has no values


def text_in(value: object, place: str, what: str = "the text") -> str:
    """A cell as text; "" if it is null or NaN. Raises InputError if it is no text or number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict):
        raise InputError(f"{place}: {what} is {shortened(repr(value), 80)}; it must be one text")
    text = str(value)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            f"{place}: {what} has half of a character (a single \\ud800 to \\udfff); correct it"
        )
    return text


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
    """The text of a file, without a byte order mark.

    Raises InputError if it is not UTF-8, with a command that makes it so.
    """
    raw = path.read_bytes()
    encoding = _wide_encoding(raw)
    try:
        if encoding is None:
            return raw.decode("utf-8-sig")
        fault = f"{path} is {encoding.upper()}, not UTF-8"
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fault = f"{path}, line {line:,}, is not UTF-8 at byte {error.start:,}"
        encoding = _western_encoding(raw)
    if raw.startswith(PACKED):
        raise InputError(f"{path} is no text; unpack it, or write it as text in UTF-8")
    if encoding is None:
        raise InputError(f"{fault}, but most of the file is; correct that line")
    new = path.with_name(f"{path.stem}.utf8{path.suffix}")
    command = f"iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
    raise InputError(f"{fault}; convert it, and give the new file: {command}")


def _wide_encoding(raw: bytes) -> str | None:
    """UTF-32 or UTF-16 by the mark at the start, or by the zero bytes of Latin letters."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    start = raw[: 1 << 16]
    for offset, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        if start[offset::2].count(0) > 0.2 * len(start) > 4 * start[1 - offset :: 2].count(0):
            return encoding
    return None


def _western_encoding(raw: bytes) -> str | None:
    """Of bytes that are not UTF-8 the likeliest encoding; None if most of them are UTF-8."""
    text = raw.decode("utf-8", errors="surrogateescape")
    wrong = sum("\udc80" <= character <= "\udcff" for character in text)
    if sum(character > "\x7f" for character in text) - wrong > wrong:
        return None
    try:  # its quotation marks are control characters of Latin-1
        return "windows-1252" if raw.decode("windows-1252") != raw.decode("latin1") else "latin1"
    except UnicodeDecodeError:
        return "latin1"


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, cut only at line feeds: Unicode's other separators are part of a text."""
    lines = text_of(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def read_table(path: Path, *, header: bool, quotes: bool | None) -> Iterator[Row]:
    """The rows of a file. Without a header columns are named "0", "1", ... Raises InputError.

    `quotes`: whether a quoted field may hold separators and line ends; None: yes, but a file that
    could be read either way is refused.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from read_json_lines(path)
        return
    if suffix not in SEPARATORS:
        raise InputError(f"{path}: the name must end in .jsonl, {', '.join(SEPARATORS)}; rename it")
    names: list[str] | None = None
    for number, record, hint in _records(path, SEPARATORS[suffix], quotes):
        place = f"{path}, line {number}"
        if names is None:
            names = [str(column) for column in range(len(record))]
            if header:
                names = _header(record, place)
                continue
        if len(record) == len(names):
            yield Row(place, dict(zip(names, record, strict=True)))
        else:
            fault = f"{len(record)} column(s), but the first line has {len(names)}{hint}"
            yield Row(place, {}, fault)


def _header(record: list[str], place: str) -> list[str]:
    names = [name.strip() for name in record]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise InputError(f"{place}: two columns have the name {twice[0]!r}; rename one of them")
    return names


def read_json_lines(path: Path) -> Iterator[Row]:
    """The rows of a file with one JSON object per line. Raises InputError."""
    for number, line in lines_of(path):
        if line.strip():
            try:
                values = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(values, dict):
                raise InputError(f"{path}, line {number} is no JSON object with named columns")
            yield Row(f"{path}, line {number}", values)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"two values have the same name, of {', '.join(key for key, _ in pairs)}")
    return found


def read_hub(hub: HubSettings, split: str) -> Iterator[Row]:
    """Rows of a split of a hub data set; numeric labels that have names become the names.

    A negative one, which stands for none, becomes None.

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
            number = values[column]
            is_named = number is not None and number >= 0
            values[column] = feature.int2str(number) if is_named else None
        yield Row(f"{name}, split {split}, row {number}", values)


PLAIN_QUOTES = "if quotes are plain characters, add task.quotes=false"


def _records(
    path: Path, separator: str, quotes: bool | None
) -> Iterator[tuple[int, list[str], str]]:
    """Line number, fields, and a hint for a record that has a wrong number of them."""
    if quotes is False:
        for number, line in lines_of(path):
            if line:
                hint = "; if quotes hold a field together, add task.quotes=true"
                yield number, line.split(separator), hint if '"' in line else ""
        return
    records = [one for one in _quoted_records(path, separator) if one[1]]
    if quotes is None and records:
        _refuse_ambiguous(path, separator, records)
    for number, record, lines in records:
        yield number, record, f"; {PLAIN_QUOTES}" if '"' in lines[0] else ""


def _quoted_records(path: Path, separator: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """The first line's number, the fields and the lines of each record of a csv or tsv file."""
    lines: list[str] = []

    def kept() -> Iterator[str]:
        for line in io.StringIO(text_of(path), newline=""):
            lines.append(line)
            yield line

    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(kept(), delimiter=separator, strict=True)
    try:
        for record in reader:
            yield reader.line_num - len(lines) + 1, record, [*lines]
            lines.clear()
    except csv.Error as error:
        number = reader.line_num - len(lines) + 1
        raise InputError(f"{path}, line {number}: {error}; {PLAIN_QUOTES}") from error


def _refuse_ambiguous(
    path: Path, separator: str, records: list[tuple[int, list[str], list[str]]]
) -> None:
    """Raise InputError if a quote holds lines together that are rows by themselves.

    Unless a field of a single line needs its quotes: such a file was written with quotes.
    """
    width = len(records[0][1])

    def columns(line: str) -> int:
        return len(line.rstrip("\r\n").split(separator))

    if any(
        len(lines) == 1 and len(record) == width != columns(lines[0])
        for _, record, lines in records
    ):
        return
    for number, _, lines in records:
        if len(lines) > 1 and all(columns(line) == width for line in lines):
            raise InputError(
                f"{path}: a quote holds lines {number} to {number + len(lines) - 1} together, but "
                f"each of them is a row by itself; {PLAIN_QUOTES}, otherwise task.quotes=true"
            )
