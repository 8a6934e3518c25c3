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

import functools
import unicodedata
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import rensa
import xxhash
from numpy.typing import NDArray

from data_prep.core.files import whole_or_absent
from data_prep.stores.documents import Document, read_part

SCHEMA_VERSION = 1
SHINGLE_WORDS = 5
# Two documents of similarity s share a band with probability 1 - (1 - s^8)^14: 0.05 at 0.5, one
# half at 0.69, 0.92 at 0.8. Datatrove's and FineWeb's choice.
BANDS, BAND_VALUES = 14, 8
VALUES = BANDS * BAND_VALUES
SEED = 1  # of rensa's permutations

PIECE = 1 << 20  # characters case-folded at once: Python takes 12 bytes for each meanwhile
WORD, OWN_WORD = 1, 2  # kinds of code points; 0 stands between words
LAST_LETTER = 0x323AF  # of Unicode 15: beyond are marks of emoji and private use
# Scripts without blanks between words. First and last code points, of letters among others.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # hiragana, katakana
    (0x3400, 0x9FFF),  # ideographs
    (0xF900, 0xFAFF),
    (0x20000, LAST_LETTER),
)


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


def shingles(text: str) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """A text's shingles as (S,) hashes, in order, repeated ones too, and the UTF-8 of its letters,
    digits and marks, case-folded. A text of fewer than five words is one shingle.
    """
    pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
    folded = np.frombuffer(b"".join(piece.casefold().encode() for piece in pieces), np.uint8)
    hashes = np.empty(
        len(folded) // 2 + 1, np.uint64
    )  # two words have a byte between them at least,
    letters = np.empty(len(folded), np.uint8)  # or are three bytes long
    num_shingles, num_letters = _shingles(folded, _kinds(), hashes, letters)
    return hashes[:num_shingles], letters[:num_letters]


def signature(hashes: NDArray[np.uint64]) -> list[int]:
    """The VALUES values, of 32 bits, of the MinHash signature of a set of shingles."""
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, [0, len(hashes)], VALUES, SEED
    )
    values: list[int] = matrix.to_rows()[0]
    return values


def _metadata(part_checksum: str) -> dict[bytes, bytes]:
    described = {**identity(), "part_checksum": part_checksum}
    return {name.encode(): str(value).encode() for name, value in described.items()}


def _fixed(column: Any, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """A column of fixed-size binary values as rows of numbers."""
    width = column.type.byte_width // np.dtype(dtype).itemsize
    return np.frombuffer(column.buffers()[1], dtype).reshape(-1, width)[: len(column)]


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """Of each code point: 0, WORD or OWN_WORD."""
    categories = map(unicodedata.category, map(chr, range(LAST_LETTER + 1)))
    kinds = np.fromiter((category[0] in "LMN" for category in categories), np.uint8)
    for first, last in UNSPACED:
        kinds[first : last + 1] *= OWN_WORD
    return kinds


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _shingles(
    text: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    letters: NDArray[np.uint8],
) -> tuple[int, int]:
    """Fill `hashes` and `letters` from (B,) UTF-8; return how many of each there are.

    A word's hash is FNV-1a (Fowler, Noll, Vo), a shingle's a polynomial of its words' hashes, mixed
    as MurmurHash3 ends.
    """
    start, prime = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
    factor = np.uint64(0x9E3779B97F4A7C15)
    oldest_factor = factor
    for _ in range(SHINGLE_WORDS - 1):
        oldest_factor *= factor
    last, slot = np.zeros(SHINGLE_WORDS, np.uint64), 0  # hashes of the last words, in a ring
    word, rolling, mixed = start, np.uint64(0), np.uint64(0)
    kind = num_words = num_letters = 0
    for place in range(len(text) + 1):
        byte = np.int64(text[place]) if place < len(text) else np.int64(0)
        if not 0x80 <= byte < 0xC0:  # the first byte of a code point
            previous = kind
            code = byte
            if byte >= 0xC0:
                size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                code = byte & (0x7F >> size)
                for following in range(place + 1, place + size):
                    code = code << 6 | np.int64(text[following]) & 0x3F
            kind = int(kinds[code]) if code < len(kinds) else 0
            if previous and (kind != WORD or previous == OWN_WORD):  # a word ends
                rolling = rolling * factor + word - last[slot] * oldest_factor
                last[slot] = word
                slot = slot + 1 if slot < SHINGLE_WORDS - 1 else 0
                mixed = (rolling ^ rolling >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
                mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
                mixed ^= mixed >> np.uint64(33)
                num_words += 1
                if num_words >= SHINGLE_WORDS:
                    hashes[num_words - SHINGLE_WORDS] = mixed
                word = start
        if kind:
            word = (word ^ np.uint64(byte)) * prime
            letters[num_letters] = byte
            num_letters += 1
    if 0 < num_words < SHINGLE_WORDS:
        hashes[0] = mixed
        return 1, num_letters
    return max(num_words - SHINGLE_WORDS + 1, 0), num_letters
