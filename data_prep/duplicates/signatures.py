"""Signatures: what of a document is compared to find its copies.

They are a hash of its letters and a MinHash signature (Broder, "On the resemblance and containment
of documents", 1997) of its shingles, five words in a row. The share of equal values in two
signatures estimates the Jaccard similarity of the two sets of shingles, with a standard error of
0.043 at 0.7. Words are case-folded runs of letters, digits and marks, so spaces, line ends and
punctuation do not count; in scripts without spaces between words, a letter is a word.

documents/<source>/signatures/part-00000.arrow belongs to the part of that name. It is an Arrow IPC
stream of one record batch with one row per document, in the part's order: id, title, characters
(uint32), exact (16 bytes) and band_00 to band_13 (32 bytes, eight uint32 each). Each band is a
column, so the search for equal bands reads each byte once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.core.files import whole_or_absent
from data_prep.duplicates.minhash import (
    BAND_VALUES,
    BANDS,
    SEED,
    SHINGLE_WORDS,
    VALUES,
    shingles,
    signature,
)
from data_prep.stores.arrow import map_batch
from data_prep.stores.documents import Document, read_part

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Signatures:
    """One file, memory-mapped: D documents. The arrays are read-only views."""

    ids: Any  # (D,) pyarrow string array
    titles: Any  # (D,) pyarrow string array
    characters: NDArray[np.uint32]  # (D,)
    exact: NDArray[np.uint64]  # (D, 2)
    bands: list[NDArray[np.uint32]]  # BANDS times (D, BAND_VALUES)


def identity() -> dict[str, Any]:
    """Everything that determines a signature: only those of one identity can be compared."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rensa": version("rensa"),
        "shingle_words": SHINGLE_WORDS,
        "bands": BANDS,
        "band_values": BAND_VALUES,
        "seed": SEED,
    }


def signatures_path(part: Path) -> Path:
    """The file of the signatures of a part of the documents."""
    return part.parent / "signatures" / f"{part.stem}.arrow"


class SignatureWriter:
    """Signs the documents of one part, then writes the file: same documents, same bytes."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._titles: list[str] = []
        self._characters: list[int] = []
        self._exact: list[bytes] = []
        self._values: list[NDArray[np.uint32]] = []  # 448 bytes per document

    def add(self, document: Document) -> None:
        hashes, letters = shingles(document.text)
        # Texts without letters are compared as they are
        compared = letters.data if len(letters) else document.text.encode()
        exact, values = xxhash.xxh3_128_digest(compared), np.array(signature(hashes), np.uint32)
        self.add_signed(document.id, document.title, len(document.text), exact, values)

    def add_signed(
        self, id: str, title: str, characters: int, exact: bytes, values: NDArray[np.uint32]
    ) -> None:
        """Add a document by its 16 bytes of exact hash and its (VALUES,) signature."""
        self._ids.append(id)
        self._titles.append(title)
        self._characters.append(characters)
        self._exact.append(exact)
        self._values.append(values)

    def write(self, part: Path, part_checksum: str) -> None:
        """Write the file of a part, whole or not at all."""
        values_DV = np.array(self._values, np.uint32).reshape(-1, VALUES)
        columns = {
            "id": pa.array(self._ids, pa.string()),
            "title": pa.array(self._titles, pa.string()),
            "characters": pa.array(self._characters, pa.uint32()),
            "exact": pa.array(self._exact, pa.binary(16)),
        }
        for band in range(BANDS):
            own = slice(band * BAND_VALUES, (band + 1) * BAND_VALUES)
            chosen = np.ascontiguousarray(values_DV[:, own])
            columns[f"band_{band:02d}"] = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(BAND_VALUES * 4), len(chosen), [None, pa.py_buffer(chosen)]
            )
        batch = pa.record_batch(columns).replace_schema_metadata(_metadata(part_checksum))
        with (
            whole_or_absent(signatures_path(part)) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_stream(sink, batch.schema) as out,
        ):
            out.write_batch(batch)


def write_signatures(part: Path, part_checksum: str, rows: int | None = None) -> None:
    """Sign a part that has no signatures; `rows` is the number of its documents.

    Raises ValueError naming a part that is unreadable or has another number.
    """
    writer = SignatureWriter()
    for document in read_part(part, rows):
        writer.add(document)
    writer.write(part, part_checksum)


def open_signatures(part: Path, part_checksum: str) -> Signatures | None:
    """The signatures of a part; None if missing, unreadable or of another part or identity."""
    path = signatures_path(part)
    try:
        batch = map_batch(path, [_schema()], "it is made again")
        batch.validate(full=True)  # the strings are UTF-8
    except (SettingsError, pa.ArrowInvalid):
        return None
    if batch.schema.metadata != _metadata(part_checksum):
        return None
    return Signatures(
        ids=batch.column("id"),
        titles=batch.column("title"),
        characters=batch.column("characters").to_numpy(),
        exact=_fixed(batch.column("exact"), np.uint64),
        bands=[_fixed(batch.column(f"band_{band:02d}"), np.uint32) for band in range(BANDS)],
    )


def _schema() -> pa.Schema:
    bands = {f"band_{band:02d}": pa.binary(BAND_VALUES * 4) for band in range(BANDS)}
    strings = {"id": pa.string(), "title": pa.string()}
    return pa.schema({**strings, "characters": pa.uint32(), "exact": pa.binary(16), **bands})


def _metadata(part_checksum: str) -> dict[bytes, bytes]:
    described = {**identity(), "part_checksum": part_checksum}
    return {name.encode(): str(value).encode() for name, value in described.items()}


def _fixed(column: Any, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """A column of fixed-size binary values as rows of numbers, without a copy."""
    width = column.type.byte_width
    stored = np.frombuffer(column.buffers()[1], np.uint8)[: len(column) * width]
    return stored.view(dtype).reshape(-1, width // np.dtype(dtype).itemsize)
