"""Rows of jsonl, json, csv, tsv, parquet and arrow files, one file open and a few rows in memory.

A row that cannot be read is a row with a fault; what ends a file early is a Damage. Neither costs
the rows around it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.sources.inputs.pieces import Broken, Piece, open_piece, read_lines
from data_prep.sources.inputs.text_files import MOST_BYTES, shown
from data_prep.stores.documents import Damage

_MOST_CHARACTERS = MOST_BYTES // 4  # of a row of csv, which takes 4 bytes for each
_BATCH_ROWS = 1_000
_BATCH_BYTES = 64 << 20
_SIZED = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
_DELIMITERS = ",;\t"
_TOO_LONG = f"row of more than {MOST_BYTES >> 20} MiB"
_CSV_TOO_LONG = f"row of more than {_MOST_CHARACTERS >> 20} MiB"
_NO_UTF_8 = "row that is not UTF-8"
_SHOWN = 10_000  # characters of a broken row that are kept
_PROBED = 100  # rows whose keys are the columns of a file of JSON


class Row(NamedTuple):
    """A row of a file."""

    number: int  # from 0; in a file of lines the place of its first byte, unpacked
    values: dict[str, Any]  # of the columns asked for that the row has
    fault: str = ""  # why it cannot be read
    raw: str = ""  # its text, if there is a fault

    def id(self, columns: Sequence[str], piece: Piece) -> str:
        """What the first of `columns` that is filled holds, or the row's place in its file."""
        for name in columns:
            value = self.values.get(name)
            if isinstance(value, int) or (isinstance(value, str) and value.strip()):
                return str(value).strip()
        return f"{shown(piece.name)}:{self.number}"

    def text(self, column: str) -> tuple[str, str]:
        """What a column holds, "" if nothing; and why it is not to be taken as text, or ""."""
        value = self.values.get(column)
        if self.fault:
            return self.raw, self.fault
        if value is None or isinstance(value, str):
            return value or "", ""
        return str(value)[:1_000], f"text of type {type(value).__name__}"


def read_rows(piece: Piece, columns: Sequence[str]) -> Iterator[Row | Damage]:
    """The rows of a piece, in order. Raises OSError as a disk or a remote store does."""
    try:
        with open_piece(piece) as file:
            yield from READERS[piece.ending](file, piece, columns)
    except Broken as broken:
        yield broken.damage
    except (pa.ArrowException, csv.Error) as error:
        yield Damage(shown(piece.name), f"cannot be read: {_first_line(error)}")


def columns_of(piece: Piece, text_column: str) -> list[str]:
    """The columns of a file by its header or first rows; [] if they cannot be read."""
    try:
        with open_piece(piece) as file:
            if piece.ending in (".csv", ".tsv"):
                return _header(file, piece, [text_column])[0]
            if piece.ending in (".parquet", ".arrow"):
                source = _seekable(file, piece)
                is_table = piece.ending == ".parquet"
                schema = pq.read_schema(source) if is_table else _opened(source).schema
                return [str(name) for name in schema.names]
            rows = itertools.islice(_json_rows(file, piece, None), _PROBED)
            return list(dict.fromkeys(key for row in rows for key in row.values))
    except (Broken, pa.ArrowException, csv.Error):
        return []


def _json_rows(file: BinaryIO, piece: Piece, columns: Sequence[str] | None) -> Iterator[Row]:
    """Rows of a file of one object per line, or of one list of objects; None: all columns."""
    numbered: Iterator[tuple[int, Any]]
    if piece.ending == ".json" and is_list(file):
        numbered = enumerate(_list_in(file, piece))
    else:
        numbered = read_lines(file, piece.first, piece.last)
    for number, row in numbered:
        if row is None:
            yield Row(number, {}, _TOO_LONG)
            continue
        if isinstance(row, bytes):
            if row.isspace():
                continue
            row, fault = _parsed(row)
            if fault:
                yield Row(number, {}, fault, row)
                continue
        if not isinstance(row, dict):
            yield Row(number, {}, "row that is no JSON object", str(row)[:_SHOWN])
        elif columns is None:
            yield Row(number, row)
        else:
            yield Row(number, {name: row[name] for name in columns if name in row})


def _parsed(line: bytes) -> tuple[Any, str]:
    """The value of a line of JSON, and ""; or its text and why it is none."""
    try:
        return orjson.loads(line), ""
    except orjson.JSONDecodeError:
        pass
    try:  # NaN, which pandas writes, and half a surrogate pair, which Python writes
        return json.loads(line.decode()), ""
    except UnicodeDecodeError:
        fault = _NO_UTF_8
    except (ValueError, RecursionError):
        fault = "line that is no JSON"
    return line[:_SHOWN].decode(errors="replace"), fault


def is_list(file: BinaryIO) -> bool:
    """Whether JSON begins with a bracket."""
    start: bytes = file.peek(64)  # type: ignore[attr-defined]
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _list_in(file: BinaryIO, piece: Piece) -> list[Any]:
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        fault = f"is one list of more than {MOST_BYTES >> 20} MiB; write a row per line (.jsonl)"
        raise Broken(Damage(shown(piece.name), fault))
    found, fault = _parsed(data.removeprefix(b"\xef\xbb\xbf"))
    if fault or not isinstance(found, list):
        raise Broken(Damage(shown(piece.name), f"is no JSON: {fault or 'text after its list'}"))
    return found


def _text_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a csv file; bytes that are not UTF-8 are surrogates.

    A line that is too long is replaced by a field that the reader refuses for its length.
    """
    for _, line in read_lines(file):
        if line is None or len(line) > _MOST_CHARACTERS:
            yield "x" * (_MOST_CHARACTERS + 1) + "\n"
        else:
            yield line.decode("utf-8", "surrogateescape")


def _header(file: BinaryIO, piece: Piece, columns: Sequence[str]) -> tuple[list[str], Any]:
    """The names of the columns, and a reader of the rows after them.

    Columns are separated by the comma, or by another sign under which the header has the first of
    `columns`.
    """
    csv.field_size_limit(_MOST_CHARACTERS)
    lines = _text_lines(file)
    first = next(lines, "")
    signs = "\t" if piece.ending == ".tsv" else _DELIMITERS
    for sign in signs:
        names = next(csv.reader([first], delimiter=sign), [])
        if set(columns[:1]) & {name.strip() for name in names}:
            break
    else:
        sign = signs[0]
    reader = csv.reader(itertools.chain([first], lines), delimiter=sign, strict=True)
    return [name.strip() for name in next(reader, [])], reader


def _csv_rows(file: BinaryIO, piece: Piece, columns: Sequence[str]) -> Iterator[Row]:
    names, reader = _header(file, piece, columns)
    _require(names, piece, columns)
    places = {name: names.index(name) for name in columns if name in names}
    for number in itertools.count():
        try:
            row = next(reader, None)
        except csv.Error as error:  # the next row begins at the next line
            fault = _CSV_TOO_LONG if "limit" in str(error) else "row with broken quotes"
            yield Row(number, {}, fault)
            continue
        if row is None:
            return
        if not row:
            continue
        raw = "\t".join(row)
        if len(row) != len(names):
            yield Row(number, {}, "row with more or fewer columns than the header", raw[:_SHOWN])
        elif not raw.isascii() and any("\udc80" <= sign <= "\udcff" for sign in raw):
            raw = raw[:_SHOWN].encode(errors="replace").decode()
            yield Row(number, {}, _NO_UTF_8, raw)
        else:
            yield Row(number, {name: row[place] for name, place in places.items()})


def _parquet_rows(file: BinaryIO, piece: Piece, columns: Sequence[str]) -> Iterator[Row]:
    source = _seekable(file, piece)
    schema = pq.read_schema(source)
    present = _flat(schema, _require(schema.names, piece, columns))
    _require_text(schema, piece, columns)
    texts = [name for name in present if _is_text(schema.field(name).type)]
    # Repeated values stay packed, so that a batch is as large as it is stored
    with pq.ParquetFile(source, read_dictionary=texts, buffer_size=1 << 20) as table:
        groups = range(table.num_row_groups)
        number = sum(table.metadata.row_group(n).num_rows for n in groups[: piece.first])
        for group in groups[piece.first : piece.last]:
            claimed = table.metadata.row_group(group)
            size = max(1, claimed.total_byte_size)
            num_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * claimed.num_rows // size))
            for batch in table.iter_batches(num_rows, row_groups=[group], columns=present):
                yield from _rows_of(batch, number)
                number += len(batch)


def _arrow_rows(file: BinaryIO, piece: Piece, columns: Sequence[str]) -> Iterator[Row]:
    source = _seekable(file, piece)
    schema = _opened(source).schema
    present = _flat(schema, _require(schema.names, piece, columns))
    _require_text(schema, piece, columns)
    reader = _opened(source, [schema.get_field_index(name) for name in present])
    number = 0
    is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        for column in batch.columns:
            _as_bytes(column).validate(full=True)  # offsets that lead out of the file
        for first in range(0, len(batch), _BATCH_ROWS):
            yield from _rows_of(batch.slice(first, _BATCH_ROWS), number + first)
        number += len(batch)


def _opened(source: Any, fields: Sequence[int] | None = None) -> Any:
    """A reader of some fields of an Arrow file, of the stream or the file format; None: all."""
    source.seek(0)
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source, options=options)


def _seekable(file: BinaryIO, piece: Piece) -> Any:
    """The file, or its content in memory if it is packed."""
    if file.seekable() and not piece.name.lower().endswith((".gz", ".zst", ".bz2", ".xz")):
        return file
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        fault = f"has more than {MOST_BYTES >> 20} MiB unpacked, and must be in memory; unpack it"
        raise Broken(Damage(shown(piece.name), fault))
    return io.BytesIO(data)


def _require(names: Sequence[str], piece: Piece, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that are there. Raises Broken without the first, which holds the text."""
    if columns[0] not in names:
        held = ", ".join(names) or "none"
        fault = f"has no column {columns[0]}; its columns are {held}"
        raise Broken(Damage(shown(piece.name), fault))
    return [name for name in dict.fromkeys(columns) if name in names]


def _require_text(schema: pa.Schema, piece: Piece, columns: Sequence[str]) -> None:
    """Raises Broken if the first of `columns` holds no text."""
    kind = schema.field(columns[0]).type
    if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        fault = f"has a column {columns[0]} of {kind}, which is no text"
        raise Broken(Damage(shown(piece.name), fault))


def _flat(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Those of `names` that are no lists or structs, whose size is not known."""
    return [name for name in names if not pa.types.is_nested(schema.field(name).type)]


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        or types.is_null(kind)
    )  # fmt: skip


def _as_bytes(column: pa.Array) -> pa.Array:
    """The column without the claim that its text is UTF-8: each row shows whether it is."""
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def _rows_of(batch: pa.RecordBatch, first: int) -> Iterator[Row]:
    """The rows of a batch, unpacked one by one if they are large together."""
    sizes = sum(map(_bytes_of_rows, batch.columns), np.zeros(len(batch), np.int64))
    if len(batch) and sizes.sum() <= _BATCH_BYTES:
        try:
            plain = [_plain(column).to_pylist() for column in batch.columns]
        except (UnicodeDecodeError, pa.ArrowInvalid):
            pass  # row by row
        else:
            for number, row in enumerate(zip(*plain, strict=True), first):
                yield Row(number, dict(zip(batch.schema.names, row, strict=True)))
            return
    for index in range(len(batch)):
        if sizes[index] > MOST_BYTES:
            yield Row(first + index, {}, _TOO_LONG)
            continue
        try:
            values = {name: batch[name][index].as_py() for name in batch.schema.names}
        except UnicodeDecodeError:
            yield Row(first + index, {}, _NO_UTF_8)
        else:
            yield Row(first + index, values)


def _bytes_of_rows(column: pa.Array) -> npt.NDArray[np.int64]:
    """The bytes of each row of a column, unpacked; a mean where the type does not tell."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
    elif any(test(kind) for test in _SIZED):
        lengths = pc.binary_length(column)
    else:
        return np.full(len(column), -(-column.nbytes // max(1, len(column))))
    return np.asarray(lengths.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


_Reader = Callable[[BinaryIO, Piece, Sequence[str]], Iterator[Row]]
READERS: dict[str, _Reader] = {
    ".jsonl": _json_rows, ".ndjson": _json_rows, ".json": _json_rows, ".csv": _csv_rows,
    ".tsv": _csv_rows, ".parquet": _parquet_rows, ".arrow": _arrow_rows,
}  # fmt: skip
