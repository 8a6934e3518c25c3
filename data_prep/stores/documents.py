"""The documents store: documents/<source>/part-00000.parquet ..., and a manifest that names them.

filtered/<source> has the same form; where it exists, later stages read it in place of documents/.
Columns id, title and text, all strings; text is paragraphs separated by one newline. A source that
states languages has the column language, too. A document's
name across sources is "source/id".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, regular_size, whole_or_absent
from data_prep.core.printable import printable
from data_prep.core.records import Checksum, Count, Record, check_file_name, read_manifest

SCHEMA_VERSION: Final = 1
DOCUMENT_COLUMNS = ("id", "title", "text")
LANGUAGE_COLUMNS = (*DOCUMENT_COLUMNS, "language")  # of a source that states them
REJECT_COLUMNS = ("id", "title", "text", "reason")

# A row group is read as a whole: this bounds a reader's memory, but for one longer document.
ROW_GROUP_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Document:
    id: str  # unique inside its source
    title: str  # may be empty
    text: str  # paragraphs separated by one newline
    language: str = ""  # the code that its source states; empty: it is detected
    # What the source took out of the text, and how often; not stored with it
    removed: Mapping[str, int] = field(default_factory=dict, compare=False)


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


class PartEntry(Record):
    """One file of the store in its manifest."""

    name: str
    rows: Count
    characters: Count  # of the texts, newlines included
    checksum: Checksum

    def __post_init__(self) -> None:
        check_file_name(self.name)


class DocumentsManifest(Record):
    """documents/<source>/manifest.json, written when all parts are there."""

    schema_version: Literal[1]
    source: str
    settings: dict[str, Any]  # of the source: they decide the bytes of the documents
    inputs: dict[str, Any]  # what there was to read
    parts: list[PartEntry]
    documents: Count
    characters: Count
    dropped: dict[str, Count]  # documents by reason
    damaged: list[str]  # inputs that could not be read to their end
    # Taken out of the texts: headings, for example
    removed: dict[str, Count] = msgspec.field(default_factory=dict)


class Sample(Record):
    """A text on which a rule acted."""

    id: str
    text: str  # its beginning


class RuleCounts(Record):
    """What one rule of a filter did."""

    documents: Count = 0  # dropped
    changes: Count = 0  # lines left out, or texts replaced
    samples: list[Sample] = msgspec.field(default_factory=list)


FilterCounts = dict[str, dict[str, RuleCounts]]  # by filter and rule


class FilteredManifest(Record):
    """filtered/<source>/manifest.json, written when all parts are there."""

    schema_version: Literal[1]
    source: str
    filters: list[str]  # in the order in which they ran
    settings: dict[str, Any]  # of the filters: they decide the bytes of the parts
    made_from: dict[str, Checksum]  # parts of documents/<source>
    parts: list[PartEntry]
    documents: Count
    characters: Count
    documents_before: Count
    characters_before: Count
    counts: FilterCounts


class PartCopies(Record):
    """The documents of one part that are copies of others."""

    documents: Count
    ids_checksum: Checksum


class SourceCopies(Record):
    """The documents of one source, and the copies among them."""

    documents: Count
    exact: Count
    near: Count


class DuplicatesRecord(Record):
    """documents/duplicates.json, see data_prep/dedup.py."""

    made_from: dict[str, Any]
    checksum: Checksum  # of duplicates.parquet
    parts: dict[str, PartCopies]  # by DocumentPart.key
    sources: dict[str, SourceCopies]
    dropped: Count
    dropped_characters: Count
    groups: Count
    largest: list[dict[str, Any]]


class DocumentPart(PartEntry, kw_only=True):
    """One file of the store, with its source and path."""

    source: str
    path: Path
    one_sentence_per_line: bool = False  # whether each paragraph of its documents is a sentence
    has_languages: bool = False  # whether it has the column language

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


def write_part(
    path: Path, documents: Iterable[Document], *, has_languages: bool = False
) -> PartEntry:
    """Write documents to one parquet file, whole or not at all; the same rows, the same bytes."""
    with _open(path, LANGUAGE_COLUMNS if has_languages else DOCUMENT_COLUMNS) as writer:
        for document in documents:
            writer.add(document)
    return PartEntry(
        name=path.name,
        rows=writer.num_rows,
        characters=writer.characters,
        checksum=checksum(path),
    )


@contextlib.contextmanager
def open_rejects(path: Path) -> Iterator[RowWriter]:
    """A parquet file of rejected documents with their reasons, whole or absent, as write_part's."""
    with _open(path, REJECT_COLUMNS) as writer:
        yield writer


def read_part(path: Path, rows: int | None = None) -> Iterator[Document]:
    """The documents of one part, in order; one row group is in memory at a time.

    `rows` is their number, from the manifest. Raises SettingsError naming the file, and the row
    group, that cannot be read or is not of columns of text without nulls.
    """
    regular_size(path)
    place = "its end"
    try:
        with pq.ParquetFile(path) as file:
            columns = _columns_of(file, rows)
            for group in range(file.num_row_groups):
                place = f"row group {group} of {file.num_row_groups}"
                table = file.read_row_group(group, columns=list(columns))
                table.validate(full=True)
                for name in columns:
                    if nulls := table[name].null_count:
                        raise pa.ArrowInvalid(f"column {name} has {nulls:,} nulls")
                for row in table.to_pylist():
                    yield Document(**row)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise SettingsError(
            f"{path} cannot be read at {place} ({printable(str(error))}); "
            f"delete {path.parent} and {_verb(path.parent)} the source {path.parent.name} again"
        ) from error


def _columns_of(file: pq.ParquetFile, rows: int | None) -> tuple[str, ...]:
    """The columns of a part. Raises ArrowInvalid if they are others, or not as many `rows`."""
    kinds = (DOCUMENT_COLUMNS, LANGUAGE_COLUMNS)
    columns = next((kind for kind in kinds if file.schema_arrow.equals(_schema(kind))), None)
    if columns is None:
        wanted = ", ".join(map(str, _schema(DOCUMENT_COLUMNS)))
        raise pa.ArrowInvalid(f"its columns are not {wanted}")
    if rows is not None and file.metadata.num_rows != rows:
        raise pa.ArrowInvalid(f"it has {file.metadata.num_rows:,} rows, the manifest says {rows:,}")
    return columns


def list_parts(data_dir: Path) -> list[DocumentPart]:
    """The parts of all sources, by source and number. No part is opened.

    They are those of filtered/<source> where data_prep.filter has run. Raises ValueError where
    nothing was collected, where a source's collect or filter has not finished or its documents have
    changed since, and where a part is missing.
    """
    return [part for name in list_sources(data_dir) for part in _used_parts(data_dir, name)]


def list_sources(data_dir: Path) -> list[str]:
    """The names of all sources, sorted. Raises ValueError where nothing was collected."""
    root = data_dir / "documents"
    sources = sorted(path for path in root.glob("*") if path.is_dir())
    if not sources:
        raise ValueError(
            f"{root} holds no documents; run python -m data_prep.collect +source=... "
            f"data_dir={data_dir} first"
        )
    return [folder.name for folder in sources]


def collected_parts(data_dir: Path, source: str) -> list[DocumentPart]:
    """The parts of one source as it was collected. Raises ValueError as `list_parts` does."""
    folder = data_dir / "documents" / source
    manifest = read_documents_manifest(folder)
    return _parts_of(folder, manifest.parts, manifest)


def read_filtered_manifest(folder: Path) -> FilteredManifest:
    """Read the manifest of filtered/<source>. Raises ValueError as `read_manifest` does."""
    return read_manifest(folder / "manifest.json", FilteredManifest, _filter_cure(folder))


def _filter_cure(folder: Path) -> str:
    return (
        f"the command in {folder}/logs/job.json again, or delete {folder} to use the documents "
        "as they were collected"
    )


def _used_parts(data_dir: Path, source: str) -> list[DocumentPart]:
    """The parts of one source as the next stages read it: filtered if there are filters."""
    folder = data_dir / "filtered" / source
    collected = collected_parts(data_dir, source)
    if not folder.is_dir():
        return collected
    filtered = read_filtered_manifest(folder)
    if filtered.made_from != {part.name: part.checksum for part in collected}:
        raise SettingsError(
            f"the documents of {source} have changed since they were filtered; run "
            f"{_filter_cure(folder)}"
        )
    manifest = read_documents_manifest(data_dir / "documents" / source)
    return _parts_of(folder, filtered.parts, manifest)


def read_documents_manifest(folder: Path) -> DocumentsManifest:
    """Read the manifest of a source's documents. Raises ValueError as `read_manifest` does."""
    command = f"the command in {folder}/logs/job.json again, or delete {folder}"
    return read_manifest(folder / "manifest.json", DocumentsManifest, command)


def _parts_of(
    folder: Path, entries: Iterable[PartEntry], collected: DocumentsManifest
) -> list[DocumentPart]:
    parts = []
    is_split = collected.settings.get("one_sentence_per_line") is True
    has_languages = collected.settings.get("language_column") is not None
    for entry in entries:
        path = folder / entry.name
        if not path.is_file():
            raise SettingsError(
                f"{path} is missing or not a regular file, though manifest.json names it; "
                f"delete {folder} and {_verb(folder)} the source {folder.name} again"
            )
        fields = msgspec.structs.asdict(entry)
        parts.append(
            DocumentPart(
                source=folder.name, path=path, one_sentence_per_line=is_split,
                has_languages=has_languages, **fields,
            )
        )  # fmt: skip
    return parts


def _verb(folder: Path) -> str:
    """What makes the parts in a folder."""
    return "filter" if folder.parent.name == "filtered" else "collect"


def _schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in columns])


@contextlib.contextmanager
def _open(path: Path, columns: tuple[str, ...]) -> Iterator[RowWriter]:
    schema = _schema(columns)
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
