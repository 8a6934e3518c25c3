"""Arrow files from outside: mapped without a copy, or refused where a view would be unsafe.

The compiled code that reads a store trusts its offsets, and a data set's checksums come from the
same hand as its files. So every file is checked when it is mapped (its types, nulls and sizes, at
no cost) and its values when they are first used.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.core.files import regular_size
from data_prep.core.printable import printable


def map_batch(path: Path, schemas: Sequence[pa.Schema], cure: str) -> Any:
    """Memory-map the first record batch of an Arrow stream. No value is read.

    Raises SettingsError, which ends with `cure`, if the file is missing, not regular, cut off,
    compressed or of none of these `schemas`, or if a column has nulls or lies outside the file.
    """
    try:
        regular_size(path)
        with pa.memory_map(str(path)) as file:
            messages = pa.ipc.MessageReader.open_stream(file)
            schema = pa.ipc.read_schema(_next(messages, "schema"))
            if not any(map(schema.equals, schemas)):
                raise pa.ArrowInvalid(
                    f"its columns are {_listed(schema)} instead of {_listed(schemas[0])}"
                )
            message = _next(messages, "record batch")
            if _is_compressed(bytes(message.metadata)):
                raise pa.ArrowInvalid("it is compressed")
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate()
            for name, column in zip(schema.names, batch.columns, strict=True):
                _check_column(name, column)
    except (pa.ArrowException, OSError, StopIteration, UnicodeError, struct.error) as error:
        reason = printable(str(error)) or "it is cut off"
        raise SettingsError(f"{path} cannot be read ({reason}); {cure}") from error
    return batch


def metadata_of(batch: Any) -> dict[str, str]:
    """The metadata of a record batch's schema."""
    stored = (batch.schema.metadata or {}).items()
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in stored}


def list_offsets(column: Any) -> NDArray[np.int32]:
    """(N + 1,) where the lists of a column begin and end in `column.values`: a read-only view."""
    if len(column):
        offsets: NDArray[np.int32] = column.offsets.to_numpy()  # of a slice, not from 0
        return offsets
    none = np.zeros(1, np.int32)  # Arrow allows an empty list column to have no offsets at all
    none.flags.writeable = False
    return none


def no_bits() -> NDArray[np.uint8]:
    """Bits of which there are none, read-only as those of a memory map."""
    return np.frombuffer(b"", np.uint8)


def num_bytes(num_bits: int) -> int:
    """Bytes that hold so many bits."""
    return -(-num_bits // 8)


def bits_of(column: Any) -> NDArray[np.uint8]:
    """(num_bytes(N),) the N values of a boolean column, lowest bit first: a read-only view."""
    if not len(column):
        return no_bits()
    return np.frombuffer(column.buffers()[1], np.uint8, num_bytes(len(column)))


def boolean_array(bits: NDArray[np.uint8], size: int) -> Any:
    """The pyarrow array of `size` booleans with these bits."""
    return pa.BooleanArray.from_buffers(pa.bool_(), size, [None, pa.py_buffer(bits)])


def outside(
    column: str, values: NDArray[Any], low: int, high: Any, offsets: NDArray[Any] | None = None
) -> str | None:
    """The first value that is not in [low, high], with its row and the bound; None if all are.

    `high` is a number, or one for each value. `offsets` cut the values into rows; None: a value is
    a row.
    """
    if not len(values):
        return None
    is_low = (low > 0 or values.dtype.kind == "i") and values.min() < low
    is_high = values.max() > high if np.ndim(high) == 0 else (values > high).any()
    if not is_low and not is_high:
        return None
    row = place = int(np.argmax((values < low) | (values > high)))
    if offsets is not None:
        row = int(np.searchsorted(offsets, place, side="right")) - 1
    most = int(high if np.ndim(high) == 0 else high[place])
    return f"row {row:,}: {column} is {int(values[place]):,}, not from {low:,} to {most:,}"


def offsets_fault(
    column: str, offsets: NDArray[Any], num_values: int, fewest: int = 0
) -> str | None:
    """Where the (N + 1,) offsets of a list column do not cut its values from end to end.

    None if they begin with 0, end with `num_values` and leave each row `fewest` values or more.
    """
    if offsets[0] != 0:
        return f"row 0: {column} begins at {offsets[0]:,}, not at 0"
    sizes = np.diff(offsets.astype(np.int64))
    if fault := outside(f"the length of {column}", sizes, fewest, num_values):
        return fault
    if offsets[-1] != num_values:
        return f"row {len(sizes) - 1:,}: {column} ends at {offsets[-1]:,}, not at {num_values:,}"
    return None


def _next(messages: Any, kind: str) -> Any:
    """The next message. Raises ArrowInvalid if it is of another kind, on which pyarrow crashes."""
    message = messages.read_next_message()
    if message.type != kind:
        raise pa.ArrowInvalid(f"there is a {message.type} in place of a {kind}")
    return message


def _check_column(name: str, column: Any) -> None:
    """Raises ArrowInvalid if a column, or the values of a list column, cannot be viewed."""
    while True:
        if column.null_count:
            raise pa.ArrowInvalid(f"column {name} has {column.null_count:,} nulls")
        if not pa.types.is_list(column.type):
            break
        column = column.values
    if pa.types.is_integer(column.type) and not column.to_numpy().flags.aligned:
        raise pa.ArrowInvalid(f"column {name} is not aligned")


def _listed(schema: Any) -> str:
    return ", ".join(f"{printable(field.name)}: {field.type}" for field in schema)


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch says that its buffers are compressed.

    pyarrow would decompress them, however large they are: a few kilobytes can stand for gigabytes.
    The metadata is a flatbuffer: Message.header is field 2, RecordBatch.compression field 3
    (format/Message.fbs of Apache Arrow).
    """
    message = struct.unpack_from("<I", metadata)[0]
    header = message + _field(metadata, message, 2)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, 3) != 0


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is, from the table on; 0: it is not there."""
    places = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, places)[0]:
        return 0
    return int(struct.unpack_from("<H", data, places + 4 + 2 * number)[0])
