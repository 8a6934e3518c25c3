"""The search for copies: candidate pairs by signature bands, compared and clustered.

Every step is a function of a share of the documents, so that data_prep.duplicates.search can run it
as tasks: candidates of one band and one range of its hashes, pairs and rows of one slab of
documents, choices of one slab of clusters. `compare` does all of it at once.

A pair of documents is one int64: the later document's number, times 2**32, plus the earlier one's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.duplicates.minhash import BANDS, VALUES
from data_prep.duplicates.signatures import Signatures, open_signatures, write_signatures
from data_prep.stores.documents import DocumentPart

# Equal values of two near copies: a Jaccard similarity of 0.7, at which the bands find one pair in
# two. Below it are pages of one pattern, above it editions of one text.
LEAST_EQUAL = 79  # of VALUES, 112

FEWEST_CHARACTERS = 200  # of a near copy: stubs that differ only in a name are not copies

ROWS_AT_ONCE = 1 << 16  # of signatures compared: 29 MB

# Kept documents of one cluster that others are compared with: limits the work on a million pages of
# one pattern. Copies of later ones are kept.
MOST_KEPT = 10_000

# Signature files mapped at a time: 1 GB. The system allows some 65,000 mappings of a process.
MOST_MAPPED, MOST_MAPPED_DOCUMENTS = 256, 2_000_000

Pairs = NDArray[np.int64]


class Corpus:
    """The signatures of all documents, which are numbered over all parts."""

    def __init__(self, parts: Sequence[DocumentPart]) -> None:
        self.parts = parts
        self.first = np.cumsum([0, *(part.rows for part in parts)], dtype=np.int64)  # (P + 1,)
        self.num_documents = int(self.first[-1])
        # Documents and clusters are numbered by int32
        if self.num_documents >= 2**31:
            raise ValueError(
                f"{self.num_documents:,} documents; at most 2,147,483,647 are compared"
            )
        fitting = MOST_MAPPED_DOCUMENTS * len(parts) // max(1, self.num_documents)
        open_one = functools.lru_cache(max(1, min(fitting, MOST_MAPPED)))
        self._mapped = open_one(lambda number: signatures_of(parts[number]))

    def keys(
        self, band: int | None, number: int, ranges: int
    ) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """(N,) documents, in order, and (N,) a hash of each one's band; None: of its exact hash.

        Only those of the range `number` of all hashes; of a band only documents that are long
        enough for a near copy.
        """
        documents, hashes = [np.zeros(0, np.int32)], [np.zeros(0, np.uint64)]
        for index in range(len(self.parts)):
            mapped = self._mapped(index)
            if band is None:
                own = mapped.exact[:, 0]
            else:
                own = np.empty(len(mapped.characters), np.uint64)
                _hash_rows(mapped.bands[band], own)
            chosen = (own >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32) == number
            if band is not None:
                chosen &= mapped.characters >= FEWEST_CHARACTERS
            rows = np.flatnonzero(chosen)
            documents.append((self.first[index] + rows).astype(np.int32))
            hashes.append(own[rows])
        return np.concatenate(documents), np.concatenate(hashes)

    def characters(self, documents_N: NDArray[np.int32]) -> NDArray[np.uint32]:
        """(N,) characters of these documents."""
        characters = np.empty(len(documents_N), np.uint32)
        for _, mapped, positions, rows in self._located(documents_N):
            characters[positions] = mapped.characters[rows]
        return characters

    def exact(self, documents_N: NDArray[np.int32]) -> NDArray[np.uint64]:
        """(N, 2) exact hashes of these documents."""
        exact = np.empty((len(documents_N), 2), np.uint64)
        for _, mapped, positions, rows in self._located(documents_N):
            exact[positions] = mapped.exact[rows]
        return exact

    def values(self, documents_N: NDArray[np.int32]) -> NDArray[np.uint32]:
        """(N, VALUES) signatures of these documents."""
        values = np.empty((len(documents_N), BANDS, VALUES // BANDS), np.uint32)
        for _, mapped, positions, rows in self._located(documents_N):
            for band, column in enumerate(mapped.bands):
                values[positions, band] = column[rows]
        return values.reshape(-1, VALUES)

    def strings(self, documents_N: NDArray[np.int32]) -> dict[str, Any]:
        """Source, part, id and title of these documents, as (N,) arrow arrays."""
        chunks: dict[str, list[Any]] = {"source": [], "part": [], "id": [], "title": []}
        order: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        for part, mapped, positions, rows in self._located(documents_N):
            chunks["source"].append(pa.repeat(part.source, len(rows)))
            chunks["part"].append(pa.repeat(part.name, len(rows)))
            chunks["id"].append(mapped.ids.take(pa.array(rows)))
            chunks["title"].append(mapped.titles.take(pa.array(rows)))
            order.append(positions)
        back = pa.array(np.argsort(np.concatenate(order)))
        return {
            name: pa.chunked_array(arrays, pa.string()).take(back).combine_chunks()
            for name, arrays in chunks.items()
        }

    def _located(
        self, documents_N: NDArray[np.int32]
    ) -> Iterator[tuple[DocumentPart, Signatures, NDArray[np.int64], NDArray[np.int64]]]:
        """For each part with some of the documents: their positions in documents_N, their rows."""
        order = np.argsort(documents_N, kind="stable")
        bounds = np.searchsorted(documents_N[order], self.first)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            positions = order[bounds[number] : bounds[number + 1]]
            rows = documents_N[positions] - self.first[number]
            yield self.parts[number], self._mapped(number), positions, rows


def signatures_of(part: DocumentPart) -> Signatures:
    """Those that collect has written; written now if they are missing or out of date."""
    signatures = open_signatures(part.path, part.checksum)
    if signatures is None or len(signatures.ids) != part.rows:
        write_signatures(part.path, part.checksum, part.rows)
        signatures = open_signatures(part.path, part.checksum)
    assert signatures is not None
    return signatures


@dataclass(frozen=True)
class Choices:
    """Documents to drop, in order."""

    dropped: NDArray[np.int32]  # (D,) documents
    kept: NDArray[np.int32]  # (D,) the copy of each that is kept
    equal: NDArray[np.int32]  # (D,) values that the two share; VALUES + 1: they are exact copies
    copies: NDArray[np.int32]  # (D,) documents of which `kept` is the kept one, itself included

    @property
    def groups(self) -> int:
        return len(np.unique(self.kept))


def compare(corpus: Corpus) -> tuple[Any, int]:
    """The table of dropped documents, see data_prep/dedup.py, and the number of their groups."""
    exact, *near = (candidates(corpus, band) for band in (None, *range(BANDS)))
    copies = copies_among(corpus, exact, near)
    members, roots = clusters(corpus.num_documents, lambda: [copies])
    choices = choose(corpus, members, roots)
    return table(corpus, choices), choices.groups


def candidates(corpus: Corpus, band: int | None, number: int = 0, ranges: int = 1) -> Pairs:
    """Pairs of documents with equal hashes of a band: each with the first and with the one before.

    A run of equal hashes may hold two groups: one that differs from the first may be a copy of its
    neighbour.
    """
    documents, keys = corpus.keys(band, number, ranges)
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1  # in a run of equal keys, but not its first
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else again
    firsts = documents[starts[np.searchsorted(starts, again, side="right") - 1]]
    later = documents[again].astype(np.int64) << 32
    return np.unique(np.concatenate([later | firsts, later | documents[again - 1]]))


def copies_among(corpus: Corpus, exact: Pairs, near: Sequence[Pairs]) -> Pairs:
    """The pairs that are copies, of the candidates of exact hashes and of all bands."""
    exact = _agreeing(corpus, exact, is_exact=True)
    others = np.setdiff1d(np.concatenate([np.zeros(0, np.int64), *near]), exact)
    return np.concatenate([exact, _agreeing(corpus, others, is_exact=False)])


def _agreeing(corpus: Corpus, pairs: Pairs, is_exact: bool) -> Pairs:
    """The pairs that are exact copies, or that share values enough for near ones."""
    pairs = pairs[np.argsort(pairs & 0xFFFFFFFF, kind="stable")]  # each part is read but once
    agree = np.empty(len(pairs), np.bool_)
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        chunk = slice(start, start + ROWS_AT_ONCE)
        later, earlier = _split(pairs[chunk])
        if is_exact:
            agree[chunk] = (corpus.exact(later) == corpus.exact(earlier)).all(axis=1)
        else:
            equal = (corpus.values(later) == corpus.values(earlier)).sum(axis=1)
            agree[chunk] = equal >= LEAST_EQUAL
    return pairs[agree]


def _split(pairs: Pairs) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return (pairs >> 32).astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32)


def clusters(
    num_documents: int, copies: Callable[[], Iterable[Pairs]]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(M,) the documents that are copies of others, in order, and (M,) the first of each's cluster.

    Copies, and copies of copies, share a cluster. `copies` yields all pairs, twice. Takes 4 bytes
    per member and either a byte per document or 4 more per member.
    """
    is_member = np.zeros(num_documents, np.bool_)
    for pairs in copies():
        for documents in _split(pairs):
            is_member[documents] = True
    members = np.empty(np.count_nonzero(is_member), np.int32)
    filled = 0
    for start in range(0, num_documents, ROWS_AT_ONCE):  # numpy counts in int64
        found = np.flatnonzero(is_member[start : start + ROWS_AT_ONCE])
        members[filled : filled + len(found)] = start + found
        filled += len(found)
    del is_member
    parent = np.arange(len(members), dtype=np.int32)
    for pairs in copies():
        _unite(parent, *(np.searchsorted(members, documents) for documents in _split(pairs)))
    _roots(parent)
    for start in range(0, len(parent), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        parent[block] = members[parent[block]]
    return members, parent


def choose(corpus: Corpus, members_M: NDArray[np.int32], roots_M: NDArray[np.int32]) -> Choices:
    """Which members of these clusters are dropped; every cluster is whole."""
    lengths = corpus.characters(members_M).astype(np.int64)
    order = np.lexsort((members_M, -lengths, roots_M))
    members = members_M[order]  # cluster by cluster, each by falling length
    kept, equal = _keep(corpus, members, roots_M[order])
    dropped = np.flatnonzero(kept != members)
    dropped = dropped[np.argsort(members[dropped], kind="stable")]
    _, group, sizes = np.unique(kept[dropped], return_inverse=True, return_counts=True)
    return Choices(
        members[dropped], kept[dropped], equal[dropped], (sizes[group] + 1).astype(np.int32)
    )


def _keep(
    corpus: Corpus, members_M: NDArray[np.int32], cluster_M: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(M,) the document that is kept for each, itself or another, and (M,) their equal values.

    Exact copies count VALUES + 1.
    """
    kept = np.empty(len(members_M), np.int32)
    equal = np.empty(len(members_M), np.int32)
    leaders = (
        np.empty(MOST_KEPT, np.int32),
        np.empty((MOST_KEPT, VALUES), np.uint32),
        np.empty((MOST_KEPT, 2), np.uint64),
    )
    state = np.array([-1, 0], np.int64)  # the cluster that is in work, and its leaders so far
    for start in range(0, len(members_M), ROWS_AT_ONCE):
        chunk = slice(start, start + ROWS_AT_ONCE)
        documents = members_M[chunk]
        of_chunk = documents, cluster_M[chunk], corpus.values(documents), corpus.exact(documents)
        _lead(state, *leaders, *of_chunk, kept[chunk], equal[chunk])
    return kept, equal


def table(corpus: Corpus, choices: Choices) -> Any:
    """One row per dropped document, see data_prep/dedup.py."""
    names, kept_names = corpus.strings(choices.dropped), corpus.strings(choices.kept)
    kind = np.where(choices.equal > VALUES, "exact", "near")
    return pa.table(
        {
            **names,
            "characters": pa.array(corpus.characters(choices.dropped)),
            "kept": pc.binary_join_element_wise(kept_names["source"], kept_names["id"], "/"),
            "kept_title": kept_names["title"],
            "kind": pa.array(kind, pa.string()),
            "similarity": pa.array(np.minimum(choices.equal, VALUES) / VALUES, pa.float32()),
            "copies": pa.array(choices.copies.astype(np.int64)),
        }
    )


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _hash_rows(rows: NDArray[np.uint32], hashes: NDArray[np.uint64]) -> None:
    """FNV-1a over the values of each row, mixed by the last step of MurmurHash3."""
    for row in range(len(rows)):
        mixed = np.uint64(0xCBF29CE484222325)
        for value in rows[row]:
            mixed = (mixed ^ np.uint64(value)) * np.uint64(0x100000001B3)
        mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
        hashes[row] = mixed ^ mixed >> np.uint64(33)


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _root(parent: NDArray[np.int32], document: int) -> int:
    while parent[document] != document:
        parent[document] = parent[parent[document]]
        document = parent[document]
    return document


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _unite(
    parent: NDArray[np.int32], documents: NDArray[np.int32], others: NDArray[np.int32]
) -> None:
    for row in range(len(documents)):
        a, b = _root(parent, documents[row]), _root(parent, others[row])
        parent[max(a, b)] = min(a, b)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _roots(parent: NDArray[np.int32]) -> None:
    for document in range(len(parent)):
        parent[document] = _root(parent, document)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _lead(
    state: NDArray[np.int64],
    leaders: NDArray[np.int32],
    leader_values: NDArray[np.uint32],
    leader_exact: NDArray[np.uint64],
    documents: NDArray[np.int32],
    clusters: NDArray[np.int32],
    values: NDArray[np.uint32],
    exact: NDArray[np.uint64],
    kept: NDArray[np.int32],
    equal: NDArray[np.int32],
) -> None:
    """Drop each document that is a copy of a leader of its cluster; the others become leaders.

    The documents come cluster by cluster, in the order of keeping. Fills `kept` and `equal`;
    `state` carries the cluster and its number of leaders to the next call.
    """
    exactly = values.shape[1] + 1
    for row in range(len(documents)):
        if clusters[row] != state[0]:
            state[0], state[1] = clusters[row], 0
        kept[row], equal[row] = documents[row], exactly
        is_copy = False
        for leader in range(state[1]):
            if (
                exact[row, 0] == leader_exact[leader, 0]
                and exact[row, 1] == leader_exact[leader, 1]
            ):
                agreeing = exactly
            else:
                agreeing = 0
                for value in range(values.shape[1]):
                    agreeing += values[row, value] == leader_values[leader, value]
            if agreeing >= LEAST_EQUAL:
                kept[row], equal[row] = leaders[leader], agreeing
                is_copy = True
                break
        if not is_copy and state[1] < len(leaders):
            leaders[state[1]] = documents[row]
            leader_values[state[1]] = values[row]
            leader_exact[state[1]] = exact[row]
            state[1] += 1
