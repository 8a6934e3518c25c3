"""The documents that are dropped as copies, part by part: what the jobs after dedup read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from data_prep.core.config import SettingsError
from data_prep.core.printable import printable
from data_prep.stores.documents import DocumentPart

# Of each part with dropped documents, by DocumentPart.key: their count, a checksum of their ids
LeftOut = dict[str, dict[str, Any]]


def table_path(data_dir: Path) -> Path:
    """The table of the dropped documents, a row for each."""
    return data_dir / "documents" / "duplicates.parquet"


def ids_checksum(ids: Sequence[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(ids).encode())


def dropped_ids(data_dir: Path, part: DocumentPart, left_out: LeftOut) -> frozenset[str]:
    """The ids of the documents that are dropped from one part.

    Raises RuntimeError if they are not those of `left_out`: the result has changed since.
    """
    if part.key not in left_out:
        return frozenset()
    chosen = (pc.field("source") == part.source) & (pc.field("part") == part.name)
    path = table_path(data_dir)
    try:
        ids = pq.read_table(path, columns=["id"], filters=chosen)["id"].to_pylist()
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = printable(str(error))
        raise SettingsError(f"{path} cannot be read ({reason}); delete it") from error
    if ids_checksum(ids) != left_out[part.key]["ids_checksum"]:
        raise RuntimeError(
            f"{path} has changed while this job ran; run it again when no collect is running"
        )
    return frozenset(ids)
