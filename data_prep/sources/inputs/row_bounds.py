"""Bounds on parquet and json files before they are unpacked: a small file can stand for terabytes.

A row of text is held in memory, and so is a row group as `datasets` converts it; all of a data set
is unpacked into the cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.sources.inputs.text_files import MOST_BYTES

MOST_GROUP_BYTES = 4 << 30  # of a row group, unpacked; pandas writes a million rows in one
BATCH_ROWS = 1_000
BATCH_BYTES = 64 << 20
_SIZED = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
_JSON_STARTS = (b"{", b"[", b"\xef", b"")  # an object, a list, a byte order mark, a blank line


def check_parquet(files: Sequence[Path], cache: Path) -> list[str] | None:
    """The columns to read: None for all, or those that are not nested, whose size is not known.

    Repeated values stay packed, so the memory is that of a batch of rows as stored. Raises
    ValueError naming the file and the place of what is broken, too large, or of other columns.
    """
    schema = None
    total = 0
    for path in files:
        place = str(path)
        try:
            with pq.ParquetFile(path) as file:
                schema = schema or file.schema_arrow
                flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
                if not flat:
                    raise ValueError(f"all its columns are nested: {', '.join(schema.names)}")
                if file.schema_arrow.names != schema.names:
                    raise ValueError(
                        f"it has the columns {file.schema_arrow.names}, {files[0]} {schema.names}"
                    )
            with pq.ParquetFile(path, read_dictionary=flat) as file:
                for group in range(file.num_row_groups):
                    place = f"{path}, row group {group}"
                    total += _check_group(file, group, flat)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{place}: {error}") from error
    _check_room(total, cache)
    return None if schema is None or len(flat) == len(schema.names) else flat


def check_json(files: Sequence[Path]) -> None:
    """Raises ValueError naming the file and line of what is packed or too long."""
    for path in files:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_BYTES + 1):
                number += 1
                if number == 1 and line.lstrip()[:1] not in _JSON_STARTS:
                    raise ValueError(f"{path}: begins as no JSON does; if it is packed, unpack it")
                if len(line) > MOST_BYTES:
                    raise ValueError(
                        f"{path}, line {number}: has more than {MOST_BYTES:,} bytes; write a row "
                        "per line, or cut the text"
                    )


def _check_group(file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """The bytes of one row group, unpacked. Raises ValueError if they or a row's are too many."""
    claimed = file.metadata.row_group(group)
    size = claimed.total_byte_size  # before dictionaries are resolved
    if size <= MOST_GROUP_BYTES:
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * claimed.num_rows // max(1, size)))
        size = first = 0
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns):
            rows = sum(map(bytes_of_rows, batch.columns), np.zeros(len(batch), np.int64))
            longest = int(rows.argmax())
            if rows[longest] > MOST_BYTES:
                raise ValueError(
                    f"row {first + longest}: has {rows[longest]:,} bytes, and {MOST_BYTES:,} is "
                    "the most; cut the text or remove the row"
                )
            size += int(rows.sum())
            first += len(batch)
            if size > MOST_GROUP_BYTES:
                break
    if size > MOST_GROUP_BYTES:
        raise ValueError(
            f"has more than {MOST_GROUP_BYTES:,} bytes unpacked; write smaller row groups, as by "
            "pq.write_table(pq.read_table(FILE), NEW_FILE, row_group_size=10_000)"
        )
    return int(size)


def bytes_of_rows(column: pa.Array) -> npt.NDArray[np.int64]:
    """The bytes of each row of a column, unpacked; a mean where the type does not tell."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
    elif any(test(kind) for test in _SIZED):
        lengths = pc.binary_length(column)
    else:
        return np.full(len(column), -(-column.nbytes // max(1, len(column))))
    return np.asarray(lengths.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _check_room(needed: int, cache: Path) -> None:
    """Raises ValueError if the disk has no room for the unpacked rows."""
    folder = next(parent for parent in [cache, *cache.absolute().parents] if parent.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"unpacked it takes {needed / 1e9:,.0f} GB, and the disk of {folder} has "
            f"{free / 1e9:,.0f} GB free; set data_dir to a folder on a larger disk"
        )
