"""Ids that several documents of a source have, found by hashes in bounded memory."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.duplicates.signatures import open_signatures
from data_prep.stores.documents import PartEntry

RANGE = 64_000_000  # ids whose hashes are in memory at a time, 8 bytes each, and as much to sort


def repeated_ids(
    folder: Path, parts: Sequence[PartEntry], threads: int = 1, most: int = 5
) -> list[str]:
    """The first `most` ids, by order, that occur more than once in these parts of a folder.

    They are compared by hashes of 64 bits, one range of them after the other; what may be repeated
    is read again and compared as it is.
    """
    ranges = math.ceil(sum(part.rows for part in parts) / RANGE)
    repeated: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        for number in range(ranges):

            def of_range(part: PartEntry, number: int = number) -> NDArray[np.uint64]:
                hashes = _hashes(_ids(folder, part))
                own: NDArray[np.uint64] = hashes[_range(hashes, ranges) == number]
                return own

            hashes = np.concatenate([*pool.map(of_range, parts)])
            hashes.sort()
            again = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
            if len(again):
                counts = Counter(_named(folder, parts, again))
                found = (name for name, count in counts.items() if count > 1)
                repeated = heapq.nsmallest(most, [*repeated, *found])
    return repeated


def _range(hashes: NDArray[np.uint64], ranges: int) -> NDArray[np.uint64]:
    return (hashes >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)


def _named(folder: Path, parts: Sequence[PartEntry], hashes: NDArray[np.uint64]) -> Iterator[str]:
    """The ids that have one of these hashes."""
    for part in parts:
        ids = _ids(folder, part)
        rows = np.flatnonzero(np.isin(_hashes(ids), hashes))
        yield from ids.take(pa.array(rows)).to_pylist()


def _ids(folder: Path, part: PartEntry) -> Any:
    """(N,) the ids of a part: those next to its signatures, which are there without decoding."""
    signatures = open_signatures(folder / part.name, part.checksum)
    if signatures is not None:
        return signatures.ids
    return pq.read_table(folder / part.name, columns=["id"])["id"].combine_chunks()


def _hashes(ids: Any) -> NDArray[np.uint64]:
    """(N,) hashes of an array of strings."""
    _, offsets, data = ids.buffers()
    hashes = np.empty(len(ids), np.uint64)
    if len(ids):
        letters = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
        ends = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
        _hash_strings(letters, ends, hashes)
    return hashes


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _hash_strings(
    letters: NDArray[np.uint8], ends: NDArray[np.int32], hashes: NDArray[np.uint64]
) -> None:
    """FNV-1a over the bytes of each string, mixed by the last steps of MurmurHash3."""
    for row in range(len(hashes)):
        mixed = np.uint64(0xCBF29CE484222325)
        for place in range(ends[row], ends[row + 1]):
            mixed = (mixed ^ np.uint64(letters[place])) * np.uint64(0x100000001B3)
        mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
        mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
        hashes[row] = mixed ^ mixed >> np.uint64(33)
