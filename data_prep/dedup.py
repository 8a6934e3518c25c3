"""Find the copies of other documents: python -m data_prep.dedup data_dir=FOLDER.

Two documents of any sources are copies if their letters and digits are the same (exact), or if
seven tenths of their signatures agree (near). The longest of a group of copies is kept; among
equally long ones the first by source and position. A document is dropped only if it is itself a
copy of a kept one, never through a third. So the result depends on what was collected, not on the
order of collecting.

documents/duplicates.parquet has one row per dropped document, in the order of the documents;
documents/duplicates.json sums them up and names what they were computed from. vocab and encode
leave the dropped documents out, and run this job first where its result is missing or out of date.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, whole_or_absent, write_json
from data_prep.core.job import Rows, start
from data_prep.core.printable import printable
from data_prep.core.records import read_record
from data_prep.core.settings import DataPrepSettings, Duplicates
from data_prep.duplicates.matching import (
    FEWEST_CHARACTERS,
    LEAST_EQUAL,
    ROWS_AT_ONCE,
    Corpus,
    compare,
    group,
)
from data_prep.duplicates.signatures import identity
from data_prep.stores.documents import DocumentPart, DuplicatesRecord, list_parts

SCHEMA_VERSION = 1  # of duplicates.json and duplicates.parquet
LARGEST_SHOWN = 10  # groups in duplicates.json

# Of each part with dropped documents, by DocumentPart.key: their count, a checksum of their ids
LeftOut = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Find the copies and print how many there are of each source."""
    return start(run, argv, summary=_summary)


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Find the copies among all documents; return the record, {} with duplicates=keep.

    A finished result of the same documents is left alone. Raises ValueError where documents are
    missing.
    """
    if settings.duplicates is Duplicates.keep:
        return {}
    return find(Path(settings.data_dir), list_parts(Path(settings.data_dir)))


def left_out(settings: DataPrepSettings, parts: Sequence[DocumentPart]) -> LeftOut:
    """The dropped documents of each part that has any; {} with duplicates=keep.

    Compares the documents again if they have changed.
    """
    if settings.duplicates is Duplicates.keep:
        return {}
    entries = find(Path(settings.data_dir), parts)["parts"]
    return {name: entry for name, entry in entries.items() if entry["documents"]}


def dropped_ids(data_dir: Path, part: DocumentPart, left_out: LeftOut) -> frozenset[str]:
    """The ids of the documents that are dropped from one part.

    Raises RuntimeError if they are not those of `left_out`: the result has changed since.
    """
    if part.key not in left_out:
        return frozenset()
    chosen = (pc.field("source") == part.source) & (pc.field("part") == part.name)
    path = _table_path(data_dir)
    try:
        ids = pq.read_table(path, columns=["id"], filters=chosen)["id"].to_pylist()
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = printable(str(error))
        raise SettingsError(f"{path} cannot be read ({reason}); delete it") from error
    if _ids_checksum(ids) != left_out[part.key]["ids_checksum"]:
        raise RuntimeError(
            f"{path} has changed while this job ran; run it again when no collect is running"
        )
    return frozenset(ids)


def find(data_dir: Path, parts: Sequence[DocumentPart]) -> dict[str, Any]:
    """The content of duplicates.json for these parts, computed first where it is out of date."""
    wanted = {
        "schema_version": SCHEMA_VERSION,
        "signatures": identity(),
        "least_equal": LEAST_EQUAL,
        "fewest_characters": FEWEST_CHARACTERS,
        "documents": {part.key: part.checksum for part in parts},
    }
    path, table_path = data_dir / "documents" / "duplicates.json", _table_path(data_dir)
    if path.is_file() and table_path.is_file():
        former = read_record(path, DuplicatesRecord, f"delete {path}; it is made again")
        if former.made_from == wanted and former.checksum == checksum(table_path):
            found: dict[str, Any] = msgspec.to_builtins(former)
            return found
    dropped = compare(Corpus(parts))
    with whole_or_absent(table_path) as temporary:
        pq.write_table(dropped, temporary, compression="zstd", row_group_size=ROWS_AT_ONCE)
    record = {"made_from": wanted, "checksum": checksum(table_path), **_counts(dropped, parts)}
    write_json(path, record)  # last: it vouches for the table
    return record


def _table_path(data_dir: Path) -> Path:
    return data_dir / "documents" / "duplicates.parquet"


def _counts(dropped: Any, parts: Sequence[DocumentPart]) -> dict[str, Any]:
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
        of_source = sources.setdefault(part.source, {"documents": 0, "exact": 0, "near": 0})
        of_source["documents"] += part.rows
    for row in dropped.group_by(["source", "kind"]).aggregate([([], "count_all")]).to_pylist():
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


def _summary(settings: DataPrepSettings, record: dict[str, Any]) -> Rows:
    if not record:
        return [("copies", "kept and not looked for (duplicates=keep)")]
    total = sum(source["documents"] for source in record["sources"].values())
    dropped = f"{record['dropped']:,} of {total:,} documents"
    characters = f"{record['dropped_characters'] / 1e6:,.1f} million characters"
    return [
        *(
            (
                source,
                f"{n['documents']:,} documents, copies: {n['exact']:,} exact, {n['near']:,} near",
            )
            for source, n in record["sources"].items()
        ),
        ("dropped", f"{dropped}, {characters}; see {_table_path(Path(settings.data_dir))}"),
    ]


if __name__ == "__main__":
    sys.exit(status_of(main))
