"""The documents store: documents/<source>/part-00000.parquet ..., and a manifest that names them.

Columns id, title and text, all strings; text is paragraphs separated by one newline. A document's
name across sources is "source/id".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.core.files import checksum, read_json, whole_or_absent

SCHEMA_VERSION = 1
DOCUMENT_COLUMNS = ("id", "title", "text")
REJECT_COLUMNS = ("id", "title", "text", "reason")

# A row group is read as a whole: this bounds a reader's memory, but for one longer document.
ROW_GROUP_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Document:
    id: str  # unique inside its source
    title: str  # may be empty
    text: str  # paragraphs separated by one newline


@dataclass(frozen=True)
class Reject:
    """A document that a source met and does not pass on."""

    id: str
    title: str
    text: str  # as far as it was read; empty where it is no text
    reason: str


@dataclass(frozen=True)
class Damage:
    """An input that could not be read to its end; what came before it counts."""

    input: str  # its name
    what: str


@dataclass(frozen=True)
class DocumentPart:
    """One file of the store, as its manifest describes it."""

    source: str
    name: str
    path: Path
    rows: int
    characters: int
    checksum: str

    @property
    def key(self) -> str:
        """Its name across sources."""
        return f"{self.source}/{self.name}"


class RowWriter:
    """Rows of one parquet file, one row group in memory at a time."""

    def __init__(self, file: pq.ParquetWriter, schema: pa.Schema) -> None:
        self.num_rows = self.characters = 0
        self._file, self._schema = file, schema
        self._group: list[Document | Reject] = []
        self._group_characters = 0

    def add(self, row: Document | Reject) -> None:
        if self._group and self._group_characters + len(row.text) > ROW_GROUP_CHARACTERS:
            self.flush()
        self._group.append(row)
        self._group_characters += len(row.text)

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._group:
            table = {
                name: [getattr(row, name) for row in self._group] for name in self._schema.names
            }
            self._file.write_table(pa.table(table, schema=self._schema))
        self.num_rows += len(self._group)
        self.characters += self._group_characters
        self._group, self._group_characters = [], 0


def write_part(path: Path, documents: Iterable[Document]) -> dict[str, int]:
    """Write documents to one parquet file, whole or not at all; the same rows, the same bytes.

    Returns {documents, characters}; characters are those of the texts, newlines included.
    """
    with _open(path, DOCUMENT_COLUMNS) as writer:
        for document in documents:
            writer.add(document)
    return {"documents": writer.num_rows, "characters": writer.characters}


@contextlib.contextmanager
def open_rejects(path: Path) -> Iterator[RowWriter]:
    """A parquet file of rejected documents with their reasons, whole or absent, as write_part's."""
    with _open(path, REJECT_COLUMNS) as writer:
        yield writer


def read_part(path: Path) -> Iterator[Document]:
    """The documents of one part, in order; one row group is in memory at a time.

    Raises ValueError naming the file, and the row group, that cannot be read.
    """
    place = "its end"
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                place = f"row group {group} of {file.num_row_groups}"
                for row in file.read_row_group(group, columns=list(DOCUMENT_COLUMNS)).to_pylist():
                    yield Document(**row)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} cannot be read at {place} ({error}); delete {path.parent} and collect the "
            f"source {path.parent.name} again"
        ) from error


def list_parts(data_dir: Path) -> list[DocumentPart]:
    """The parts of all sources, by source and number. No part is opened.

    Raises ValueError where nothing was collected, where a source's collect has not finished, and
    where a part is missing.
    """
    root = data_dir / "documents"
    sources = sorted(path for path in root.glob("*") if path.is_dir())
    if not sources:
        raise ValueError(
            f"{root} holds no documents; run python -m data_prep.collect +source=... "
            f"data_dir={data_dir} first"
        )
    return [part for folder in sources for part in _parts_of(folder)]


def describe_part(path: Path, counts: dict[str, int]) -> dict[str, Any]:
    """What a manifest says of a part: name, rows, characters, checksum; `counts` are write_part's."""
    return {
        "name": path.name,
        "rows": counts["documents"],
        "characters": counts["characters"],
        "checksum": checksum(path),
    }


def repeated_ids(paths: Iterable[Path], most: int = 5) -> list[str]:
    """The first `most` ids, by order, that occur more than once in these parts."""
    tables = [pq.read_table(path, columns=["id"]) for path in paths]
    counted = pa.concat_tables(tables).group_by("id").aggregate([([], "count_all")])
    repeated = counted.filter(pc.field("count_all") > 1)["id"].to_pylist()
    return sorted(repeated)[:most]


def _parts_of(folder: Path) -> list[DocumentPart]:
    manifest_path = folder / "manifest.json"
    if not manifest_path.exists():
        raise ValueError(
            f"{folder} has no manifest.json: its collect has not finished; run it again, or "
            "delete the folder"
        )
    parts = []
    for entry in read_json(manifest_path)["parts"]:
        path = folder / entry["name"]
        if not path.exists():
            raise ValueError(
                f"{path} is missing, though {manifest_path} names it; delete {folder} and collect "
                f"the source {folder.name} again"
            )
        parts.append(DocumentPart(source=folder.name, path=path, **entry))
    return parts


@contextlib.contextmanager
def _open(path: Path, columns: tuple[str, ...]) -> Iterator[RowWriter]:
    schema = pa.schema([(name, pa.string()) for name in columns])
    with (
        whole_or_absent(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,  # no two texts are alike
        ) as file,
    ):
        writer = RowWriter(file, schema)
        yield writer
        writer.flush()
