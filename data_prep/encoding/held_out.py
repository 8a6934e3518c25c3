"""Which documents are held out: a hash of a document's name decides."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

FEWEST_DOCUMENTS = 2  # per split: a random next segment comes from another document


def is_heldout(name: str, heldout_fraction: float) -> bool:
    """Whether the document "source/id" is held out; a function of its name and the fraction.

    A larger fraction holds out the same documents and more.
    """
    return xxhash.xxh3_64_intdigest(name.encode()) < int(heldout_fraction * 2**64)


def fitting_fraction(names: Iterable[str]) -> float:
    """A round heldout_fraction, as small as can be, with FEWEST_DOCUMENTS or more in each split.

    `names` are those of all documents, twice FEWEST_DOCUMENTS or more.
    """
    smallest: list[float] = []
    largest: list[float] = []
    for name in names:  # of a large corpus more than fit the memory
        share = xxhash.xxh3_64_intdigest(name.encode()) / 2**64
        smallest = sorted([*smallest, share])[:FEWEST_DOCUMENTS]
        largest = sorted([*largest, share])[-FEWEST_DOCUMENTS:]
    least, most = smallest[-1], largest[0]
    tenths = [tenth / 10 for tenth in range(1, 10)]
    exact = [round((least + most) / 2, digits) for digits in range(2, 18)]
    return next(f for f in (0.01, 0.02, 0.05, *tenths, *exact) if least < f <= most)
