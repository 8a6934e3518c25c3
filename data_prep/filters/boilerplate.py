"""The filter that leaves out lines which many documents of a source have, and their counting.

Counting needs bounded memory, whatever the size of the source. One task per part writes how many
of its documents have each line, by a hash of the line, in the order of the hashes. One task per
range of hashes adds up all parts' counts in that range and keeps the hashes of frequent lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.core.files import whole_or_absent
from data_prep.filters.rules import Changes, Dropped, Filter

COUNTS = np.dtype([("hash", "<u8"), ("documents", "<u4")])
CHARACTERS_PER_RANGE = 1_000_000_000  # of a source; of prose 10 million lines, 0.8 GB of memory

_MARKS = bytes(ord(c) for c in map(chr, range(128)) if not c.isalnum())
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


def boilerplate(frequent: NDArray[np.uint64]) -> Filter:
    """Leaves out every line that is frequent in its source, such as navigation and cookie notices.

    As CCNet does with paragraphs (Wenzek et al. 2020, section 3.1), but only those that more than
    `filter.most_documents` documents have, and then in all of them. Lines are alike if their
    letters are, whatever their case, digits and ASCII marks. `frequent`: (F,) hashes, ascending.
    """
    hashes = frozenset(frequent.tolist())

    def apply(text: str, code: str, changes: Changes) -> str | Dropped:
        kept = []
        for line in text.split("\n"):
            if line_hash(line) in hashes:
                changes.append(("frequent line", line))
            else:
                kept.append(line)
        return "\n".join(kept)

    return apply


def line_hash(line: str) -> int | None:
    """A hash of what a line is compared by; None for one of ASCII marks alone."""
    compared = line.lower().encode().translate(_DIGITS, _MARKS)
    return xxhash.xxh3_64_intdigest(compared) if compared else None


def count_lines(texts: Iterable[str]) -> NDArray[np.void]:
    """How many of the documents have each line: (L,) of COUNTS, by hash."""
    counter: Counter[int | None] = Counter()
    for text in texts:
        counter.update({line_hash(line) for line in text.split("\n")})
    counter.pop(None, None)
    counts = np.fromiter(counter.items(), COUNTS, len(counter))
    counts.sort(order="hash")
    return counts


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array, whole or not at all."""
    with whole_or_absent(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def num_ranges(characters: int) -> int:
    """Into how many ranges the hashes of a source are divided, by the size of its text."""
    return 1 + characters // CHARACTERS_PER_RANGE


def frequent_lines(
    paths: Sequence[Path], index: int, ranges: int, most_documents: int
) -> NDArray[np.uint64]:
    """The (F,) hashes, ascending, in range `index` of `ranges` that more documents have."""
    first, last = (index * 2**64 // ranges, (index + 1) * 2**64 // ranges - 1)
    pieces = []
    for path in paths:
        counts = np.load(path, mmap_mode="r", allow_pickle=False)
        start = np.searchsorted(counts["hash"], np.uint64(first))
        end = np.searchsorted(counts["hash"], np.uint64(last), side="right")
        pieces.append(np.array(counts[start:end]))
    counts = np.concatenate([np.zeros(0, COUNTS), *pieces])
    hashes, inverse = np.unique(counts["hash"], return_inverse=True)
    documents = np.bincount(inverse, counts["documents"], len(hashes))
    return hashes[documents > most_documents]
