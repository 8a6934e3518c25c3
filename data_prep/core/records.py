"""Typed records: the content of a JSON file, read and checked against its fields in one place.

`data_prep.core.files.write_json` writes a record. A field's name in the file may differ from the
attribute's: `msgspec.field(name=...)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Record(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A JSON object with these fields and no others; one that has its default is not written."""


def read_record(path: Path, kind: type[T], cure: str) -> T:
    """Read a JSON file as a `kind`: a record, or a dict or list of records.

    Raises ValueError naming the file, the field that is missing, unknown or of another type, and
    the cure.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is not as this version writes it: {error}; {cure}") from error


def read_manifest(path: Path, kind: type[T], command: str) -> T:
    """Read the manifest of a store that `command` makes. Raises ValueError as `read_record`."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: the store is not finished; run {command}")
    return read_record(path, kind, f"delete it and run {command}")
