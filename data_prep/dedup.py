"""Find the copies of other documents: python -m data_prep.dedup data_dir=FOLDER.

Two documents of any sources are copies if their letters and digits are the same (exact), or if
seven tenths of their signatures agree (near). The longest of a group of copies is kept; among
equally long ones the first by source and position. A document is dropped only if it is itself a
copy of a kept one, never through a third. So the result depends on what was collected, not on the
order of collecting.

documents/duplicates.parquet has one row per dropped document, in the order of the documents;
documents/duplicates.json sums them up and names what they were computed from. vocab and encode
leave the dropped documents out, and run this job first where its result is missing or out of date.
More than a million documents are compared by tasks, each of which needs less than 1.5 GB of memory.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.core.command import status_of
from data_prep.core.files import checksum, remove_folder, whole_or_absent, write_json
from data_prep.core.job import Rows, start
from data_prep.core.records import read_record
from data_prep.core.settings import DataPrepSettings, Duplicates
from data_prep.duplicates.dropped import LeftOut, ids_checksum, table_path
from data_prep.duplicates.matching import FEWEST_CHARACTERS, LEAST_EQUAL, ROWS_AT_ONCE
from data_prep.duplicates.search import search
from data_prep.duplicates.signatures import identity
from data_prep.stores.documents import DocumentPart, DuplicatesRecord, list_parts

SCHEMA_VERSION = 1  # of duplicates.json and duplicates.parquet
LARGEST_SHOWN = 10  # groups in duplicates.json
COPIES_SHOWN = 5  # of each


def main(argv: Sequence[str] | None = None) -> int:
    """Find the copies and print how many there are of each source."""
    return start(run, argv, summary=_summary, has_shares=True)


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Find the copies among all documents; return the record, {} with duplicates=keep.

    A finished result of the same documents is left alone. Raises ValueError where documents are
    missing, RuntimeError if tasks fail.
    """
    if settings.duplicates is Duplicates.keep:
        return {}
    return find(settings, list_parts(Path(settings.data_dir)))


def left_out(settings: DataPrepSettings, parts: Sequence[DocumentPart]) -> LeftOut:
    """The dropped documents of each part that has any; {} with duplicates=keep.

    Compares the documents again if they have changed.
    """
    if settings.duplicates is Duplicates.keep:
        return {}
    entries = find(settings, parts)["parts"]
    return {name: entry for name, entry in entries.items() if entry["documents"]}


def find(settings: DataPrepSettings, parts: Sequence[DocumentPart]) -> dict[str, Any]:
    """The content of duplicates.json for these parts, computed first where it is out of date."""
    data_dir = Path(settings.data_dir)
    wanted = {
        "schema_version": SCHEMA_VERSION,
        "signatures": identity(),
        "least_equal": LEAST_EQUAL,
        "fewest_characters": FEWEST_CHARACTERS,
        "documents": {part.key: part.checksum for part in parts},
    }
    path, rows_path = data_dir / "documents" / "duplicates.json", table_path(data_dir)
    if path.is_file() and rows_path.is_file():
        former = read_record(path, DuplicatesRecord, f"delete {path}; it is made again")
        if former.made_from == wanted and former.checksum == checksum(rows_path):
            found: dict[str, Any] = msgspec.to_builtins(former)
            return found
    work = data_dir / "duplicates"
    copies = search(parts, work, wanted, settings)
    counts = _Counts(parts)
    with whole_or_absent(rows_path) as temporary:
        _write(temporary, copies.tables, counts)
        largest = counts.largest(temporary)
    record = {
        "made_from": wanted,
        "checksum": checksum(rows_path),
        "parts": counts.parts,
        "sources": counts.sources,
        "dropped": sum(entry["documents"] for entry in counts.parts.values()),
        "dropped_characters": counts.characters,
        "groups": copies.groups,
        "largest": largest,
    }
    write_json(path, record)  # last: it vouches for the table
    remove_folder(work)
    return record


def _write(path: Path, tables: Iterator[Any], counts: _Counts) -> None:
    """Write tables as one file, in row groups of ROWS_AT_ONCE."""
    waiting, written = next(tables), 0
    counts.add(waiting)
    with pq.ParquetWriter(path, waiting.schema, compression="zstd") as file:
        for table in tables:
            counts.add(table)
            waiting = pa.concat_tables([waiting, table])
            if whole := waiting.num_rows - waiting.num_rows % ROWS_AT_ONCE:
                file.write_table(waiting.slice(0, whole).combine_chunks(), ROWS_AT_ONCE)
                waiting, written = waiting.slice(whole), written + whole
        if waiting.num_rows or not written:  # no rows are a row group, too
            file.write_table(waiting.combine_chunks(), ROWS_AT_ONCE)


class _Counts:
    """Counts by part and source, and the largest groups, of tables in the order of documents."""

    def __init__(self, parts: Sequence[DocumentPart]) -> None:
        none = {"documents": 0, "ids_checksum": ids_checksum([])}
        self.parts: dict[str, dict[str, Any]] = {part.key: dict(none) for part in parts}
        self.sources: dict[str, dict[str, int]] = {}
        self.characters = 0
        self._largest: dict[str, int] = {}  # documents of the largest groups, by the kept one
        for part in parts:
            of_source = self.sources.setdefault(
                part.source, {"documents": 0, "exact": 0, "near": 0}
            )
            of_source["documents"] += part.rows

    def add(self, dropped: Any) -> None:
        """Count a table of whole parts."""
        row = 0
        keys = pc.binary_join_element_wise(dropped["source"], dropped["part"], "/")
        for run in pc.value_counts(keys):  # in the order of the rows
            ids = dropped["id"].slice(row, run["counts"].as_py()).to_pylist()
            checksum_of_ids = ids_checksum(ids)
            self.parts[run["values"].as_py()] = {
                "documents": len(ids),
                "ids_checksum": checksum_of_ids,
            }
            row += len(ids)
        for row in dropped.group_by(["source", "kind"]).aggregate([([], "count_all")]).to_pylist():
            self.sources[row["source"]][row["kind"]] += row["count_all"]
        self.characters += pc.sum(dropped["characters"]).as_py() or 0
        groups = dropped.group_by("kept").aggregate([("copies", "max")])
        order = [("copies_max", "descending"), ("kept", "ascending")]
        groups = groups.sort_by(order).slice(0, LARGEST_SHOWN)
        found = self._largest | {row["kept"]: row["copies_max"] for row in groups.to_pylist()}
        ordered = sorted(found.items(), key=lambda group: (-group[1], group[0]))
        self._largest = dict(ordered[:LARGEST_SHOWN])

    def largest(self, path: Path) -> list[dict[str, Any]]:
        """The largest groups of the file of all tables, a few copies of each by name."""
        groups: dict[str, dict[str, Any]] = {
            kept: {"kept": kept, "title": "", "copies": copies, "dropped": [], "titles": []}
            for kept, copies in self._largest.items()
        }
        wanted = pa.array(list(groups), pa.string())
        columns = ["source", "id", "title", "kept", "kept_title"]
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                for row in batch.filter(pc.is_in(batch["kept"], wanted)).to_pylist():
                    group = groups[row["kept"]]
                    group["title"] = row["kept_title"]
                    if len(group["dropped"]) < COPIES_SHOWN:
                        group["dropped"].append(f"{row['source']}/{row['id']}")
                        group["titles"].append(row["title"])
        return list(groups.values())


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
        ("dropped", f"{dropped}, {characters}; see {table_path(Path(settings.data_dir))}"),
    ]


if __name__ == "__main__":
    sys.exit(status_of(main))
