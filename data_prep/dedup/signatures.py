"""What is compared of a document to find its copies: one hash of its letters, one MinHash signature.

The signature (Broder, "On the resemblance and containment of documents", 1997) stands for the set
of the document's shingles, five words in a row: the share of equal values in two signatures
estimates the Jaccard similarity of the two sets, with a standard error of 0.043 at 0.7. Words are
case-folded runs of letters, digits and marks, so that blanks, line ends and punctuation do not
count; in scripts that set no blanks between words a letter is a word.

Beside a part of the documents, documents/<source>/signatures/part-00000.arrow is an Arrow IPC
stream of one record batch, a row a document, in the part's order: id, title, characters (uint32),
exact (16 bytes) and band_00 to band_13 (32 bytes, eight uint32 each). A band is a column, so that
looking for equal bands reads each byte once.
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

from data_prep.core.files import whole_or_absent
from data_prep.dedup.minhash import (
    BAND_VALUES,
    BANDS,
    SEED,
    SHINGLE_WORDS,
    VALUES,
    shingles,
    signature,
)
from data_prep.stores.documents import Document, read_part

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Signatures:
    """One file, mapped into memory: D documents. The arrays are read-only views."""

    ids: Any  # (D,) pyarrow string array
    titles: Any  # (D,) pyarrow string array
    characters: NDArray[np.uint32]  # (D,)
    exact: NDArray[np.uint64]  # (D, 2)
    bands: list[NDArray[np.uint32]]  # BANDS times (D, BAND_VALUES)


def identity() -> dict[str, Any]:
    """What decides on the values of a signature: only those of one identity can be compared."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rensa": version("rensa"),
        "shingle_words": SHINGLE_WORDS,
        "bands": BANDS,
        "band_values": BAND_VALUES,
        "seed": SEED,
    }


def signatures_path(part: Path) -> Path:
    """Where the signatures of a part of the documents lie."""
    return part.parent / "signatures" / f"{part.stem}.arrow"


class SignatureWriter:
    """The signatures of one part, a document at a time, then the file: the same part, the same bytes."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._titles: list[str] = []
        self._characters: list[int] = []
        self._exact: list[bytes] = []
        self._values: list[NDArray[np.uint32]] = []  # 448 bytes a document

    def add(self, document: Document) -> None:
        hashes, letters = shingles(document.text)
        self._ids.append(document.id)
        self._titles.append(document.title)
        self._characters.append(len(document.text))
        # Texts without a letter are equal where they are equal as they stand
        compared = letters.data if len(letters) else document.text.encode()
        self._exact.append(xxhash.xxh3_128_digest(compared))
        self._values.append(np.array(signature(hashes), np.uint32))

    def write(self, part: Path, part_checksum: str) -> None:
        """Write the file beside a part, whole or not at all."""
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


def write_signatures(part: Path, part_checksum: str) -> None:
    """The signatures of a part that has none. Raises ValueError naming a part that cannot be read."""
    writer = SignatureWriter()
    for document in read_part(part):
        writer.add(document)
    writer.write(part, part_checksum)


def open_signatures(part: Path, part_checksum: str) -> Signatures | None:
    """Map the signatures of a part; None where there are none to read, or those
    of another part or make."""
    path = signatures_path(part)
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            if reader.schema.metadata != _metadata(part_checksum):
                return None
            batch = reader.read_next_batch()
    except (pa.ArrowInvalid, OSError, StopIteration):
        return None
    return Signatures(
        ids=batch.column("id"),
        titles=batch.column("title"),
        characters=batch.column("characters").to_numpy(),
        exact=_fixed(batch.column("exact"), np.uint64),
        bands=[_fixed(batch.column(f"band_{band:02d}"), np.uint32) for band in range(BANDS)],
    )


def _metadata(part_checksum: str) -> dict[bytes, bytes]:
    described = {**identity(), "part_checksum": part_checksum}
    return {name.encode(): str(value).encode() for name, value in described.items()}


def _fixed(column: Any, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """A column of fixed-size binary values as rows of numbers."""
    width = column.type.byte_width // np.dtype(dtype).itemsize
    return np.frombuffer(column.buffers()[1], dtype).reshape(-1, width)[: len(column)]
