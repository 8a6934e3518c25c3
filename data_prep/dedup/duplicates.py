"""Which documents are copies of others, across all sources, and which one of the copies is kept.

Two documents are copies when their letters and digits are the same (exact), or when seven tenths of
their signatures are (near). The longest of a group of copies is kept, of equally long ones the
first by source and place; one is dropped only for a kept one that it is itself a copy of, never by
way of a third. So the result depends on what was collected, and not on the order.

documents/duplicates.parquet has a row a dropped document, in the order of the documents;
documents/duplicates.json sums them up and says what they were computed from. Both are made anew
when that has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from data_prep.core.files import checksum, read_json, whole_or_absent, write_json
from data_prep.core.settings import DataPrepSettings, Duplicates
from data_prep.dedup.matching import (
    FEWEST_CHARACTERS,
    LEAST_EQUAL,
    ROWS_AT_ONCE,
    Corpus,
    compare,
    group,
)
from data_prep.dedup.signatures import (
    identity,
)
from data_prep.stores.documents import DocumentPart

SCHEMA_VERSION = 1  # of duplicates.json and duplicates.parquet
LARGEST_SHOWN = 10  # groups in duplicates.json


def left_out(
    settings: DataPrepSettings, parts: Sequence[DocumentPart]
) -> dict[str, dict[str, Any]]:
    """Of each part, as "source/name", that holds dropped documents: how many, a checksum of their ids.

    Nothing where settings.duplicates is keep. Documents are compared anew where they have changed.
    """
    if settings.duplicates is Duplicates.keep:
        return {}
    entries = find(Path(settings.data_dir), parts)["parts"]
    return {name: entry for name, entry in entries.items() if entry["documents"]}


def dropped_ids(
    data_dir: Path, part: DocumentPart, left_out: dict[str, dict[str, Any]]
) -> frozenset[str]:
    """The ids of the documents that are dropped from one part.

    Raises RuntimeError where they are others than `left_out` says: found anew since.
    """
    if part.key not in left_out:
        return frozenset()
    chosen = (pc.field("source") == part.source) & (pc.field("part") == part.name)
    path = _table_path(data_dir)
    ids = pq.read_table(path, columns=["id"], filters=chosen)["id"].to_pylist()
    if _ids_checksum(ids) != left_out[part.key]["ids_checksum"]:
        raise RuntimeError(
            f"{path} has changed while this job ran; run it again when no collect is running"
        )
    return frozenset(ids)


def find(data_dir: Path, parts: Sequence[DocumentPart]) -> dict[str, Any]:
    """What duplicates.json says of these parts, computed first where it is not of them."""
    wanted = {
        "schema_version": SCHEMA_VERSION,
        "signatures": identity(),
        "least_equal": LEAST_EQUAL,
        "fewest_characters": FEWEST_CHARACTERS,
        "documents": {part.key: part.checksum for part in parts},
    }
    path, table_path = data_dir / "documents" / "duplicates.json", _table_path(data_dir)
    if path.is_file() and table_path.is_file():
        record: dict[str, Any] = read_json(path)
        if record.get("made_from") == wanted and record["checksum"] == checksum(table_path):
            return record
    dropped = compare(Corpus(parts))
    with whole_or_absent(table_path) as temporary:
        pq.write_table(dropped, temporary, compression="zstd", row_group_size=ROWS_AT_ONCE)
    record = {
        "made_from": wanted,
        "checksum": checksum(table_path),
        **_summary(dropped, parts),
    }
    write_json(path, record)  # last: it says that the table is whole
    return record


def _table_path(data_dir: Path) -> Path:
    return data_dir / "documents" / "duplicates.parquet"


def _summary(dropped: Any, parts: Sequence[DocumentPart]) -> dict[str, Any]:
    """Counts by part and source, and the largest groups."""
    counts = dropped.group_by(["source", "part"]).aggregate([([], "count_all")]).to_pylist()
    of_part = {f"{row['source']}/{row['part']}": row["count_all"] for row in counts}
    entries, row = {}, 0
    for name in (part.key for part in parts):  # in the order of the rows
        ids = dropped["id"].slice(row, of_part.get(name, 0)).to_pylist()
        entries[name] = {"documents": len(ids), "ids_checksum": _ids_checksum(ids)}
        row += len(ids)
    sources: dict[str, dict[str, int]] = {}
    for part in parts:
        figures = sources.setdefault(part.source, {"documents": 0, "exact": 0, "near": 0})
        figures["documents"] += part.rows
    counted = dropped.group_by(["source", "kind"]).aggregate([([], "count_all")])
    for row in counted.to_pylist():
        sources[row["source"]][row["kind"]] = row["count_all"]
    groups = dropped.group_by("kept").aggregate([("copies", "max")])
    largest = groups.sort_by([("copies_max", "descending"), ("kept", "ascending")])
    return {
        "parts": entries,
        "sources": sources,
        "dropped": dropped.num_rows,
        "dropped_characters": pc.sum(dropped["characters"]).as_py() or 0,
        "groups": groups.num_rows,
        "largest": [group(dropped, kept) for kept in largest["kept"][:LARGEST_SHOWN].to_pylist()],
    }


def _ids_checksum(ids: Sequence[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(ids).encode())
