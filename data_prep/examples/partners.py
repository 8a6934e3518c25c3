"""Where the random B of a pair comes from: the documents that a part's partners are drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.core.objectives import RandomNext
from data_prep.examples import philox
from data_prep.stores.tokens import TokenStore

PARTNER_PARTS = 256  # 4 GB of text


@dataclass(frozen=True)
class Partners:
    """The documents that the partners of some documents of a part come from, these included.

    They are numbered from 0 over Q parts: a draw below `total` is one of them.
    """

    own: NDArray[np.int64]  # (n,) places in their part of the documents whose partners these are
    language: str | None  # of all of them; None: any
    parts: NDArray[np.int64]  # (Q,) ascending
    first: NDArray[np.int64]  # (Q + 1,) number of each part's first; the count of all
    is_lone: bool  # the own ones have no partner where it should come from: these are others

    @property
    def total(self) -> int:
        return int(self.first[-1])

    def numbers_of_own(self, store: TokenStore, part: int) -> NDArray[np.int64]:
        """(n,) the numbers of the own documents, of this part, among these."""
        places = store.documents_in(part, self.language)
        start: np.int64 = self.first[np.searchsorted(self.parts, part)]
        return start + np.searchsorted(places, self.own)

    def documents(self, store: TokenStore, numbers_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) the documents with these numbers, by their number in the split."""
        place_N = np.searchsorted(self.first, numbers_N, side="right") - 1
        within_N = numbers_N - self.first[place_N]
        if self.language is not None:
            order = np.argsort(place_N, kind="stable")
            touched, starts = np.unique(place_N[order], return_index=True)
            for place, rows in zip(touched, np.split(order, starts[1:]), strict=False):
                of_language = store.documents_in(int(self.parts[place]), self.language)
                within_N[rows] = of_language[within_N[rows]]
        documents_N: NDArray[np.int64] = store.first_document[self.parts[place_N]] + within_N
        return documents_N


def partners_of(
    store: TokenStore, part: int, where: RandomNext, key: np.uint64
) -> Iterator[Partners]:
    """The partners of a part's documents: the same for those of one language, if `where` is that.

    A document's partners are of its source and language, or where it is alone there of its
    language, or where it is alone there, too, of the whole split. They come from PARTNER_PARTS
    parts at most that hold such documents: the part itself, and others by chance. Chance gives all
    languages one order of the parts, so that most languages share theirs. A function of the key and
    the part, so the same for any number of workers.
    """
    for language, own in _own(store, part, where):
        levels: list[tuple[str | None, Any]] = [(None, True)]
        if where is not RandomNext.corpus:
            is_of_source = store.source_codes == store.source_codes[part]
            levels = [(language, is_of_source), (language, True), *levels]
        documents = [store.documents_of(code) * is_chosen for code, is_chosen in levels]
        wide_enough = (level for level, found_P in enumerate(documents) if found_P.sum() >= 2)
        level = next(wide_enough, len(levels) - 1)
        code, is_chosen = levels[level]
        candidates = np.flatnonzero(store.documents_of(None) * is_chosen)
        chosen = _choose(candidates, documents[level], part, key)
        first = np.concatenate([[0], np.cumsum(documents[level][chosen])])
        yield Partners(own, code, chosen, first, is_lone=level > 0)


def _own(
    store: TokenStore, part: int, where: RandomNext
) -> Iterator[tuple[str | None, NDArray[np.int64]]]:
    """The documents of a part, as their places: those of each language, or all as None."""
    if where is not RandomNext.language:
        yield None, store.documents_in(part, None)
        return
    for language in store.languages_of(part):
        yield language, store.documents_in(part, language)


def _choose(
    candidates: NDArray[np.int64], documents_P: NDArray[np.int64], part: int, key: np.uint64
) -> NDArray[np.int64]:
    """(Q,) up to PARTNER_PARTS of the candidates with documents, `part` included, ascending."""
    others = candidates[candidates != part]
    if np.count_nonzero(documents_P[others]) >= PARTNER_PARTS:
        words = np.empty(len(others) + 15, np.uint32)
        philox.fill(words, len(others), key, philox.PARTNER_PARTS, part)
        others = others[np.argsort(words[: len(others)], kind="stable")]
    others = others[documents_P[others] > 0][: PARTNER_PARTS - 1]
    return np.sort(np.append(others, part))
