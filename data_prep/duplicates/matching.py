"""The search for copies: candidate pairs by signature bands, compared and clustered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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


class Corpus:
    """The signatures of all documents, which are numbered over all parts."""

    def __init__(self, parts: Sequence[DocumentPart]) -> None:
        self.parts = parts
        self._mapped = [_signatures_of(part) for part in parts]
        self.first = np.cumsum([0, *(len(mapped.ids) for mapped in self._mapped)])  # (P + 1,)
        self.num_documents = int(self.first[-1])
        # Documents and clusters are numbered by int32
        if self.num_documents >= 2**31:
            raise ValueError(
                f"{self.num_documents:,} documents; at most 2,147,483,647 are compared"
            )
        self.characters = np.concatenate(
            [np.zeros(0, np.uint32), *(mapped.characters for mapped in self._mapped)]
        )

    def keys(self, band: int | None) -> NDArray[np.uint64]:
        """(N,) a hash of each document's band; half of its exact hash for None."""
        keys = np.empty(self.num_documents, np.uint64)
        for mapped, (start, end) in zip(self._mapped, itertools.pairwise(self.first), strict=True):
            if band is None:
                keys[start:end] = mapped.exact[:, 0]
            else:
                _hash_rows(mapped.bands[band], keys[start:end])
        return keys

    def rows(self, documents_N: NDArray[np.int32]) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """(N, VALUES) signatures and (N, 2) exact hashes of these documents."""
        values = np.empty((len(documents_N), BANDS, VALUES // BANDS), np.uint32)
        exact = np.empty((len(documents_N), 2), np.uint64)
        for _, mapped, positions, rows in self._located(documents_N):
            exact[positions] = mapped.exact[rows]
            for band, column in enumerate(mapped.bands):
                values[positions, band] = column[rows]
        return values.reshape(-1, VALUES), exact

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
            yield self.parts[number], self._mapped[number], positions, rows


def _signatures_of(part: DocumentPart) -> Signatures:
    """Those that collect has written; written now if they are missing or out of date."""
    signatures = open_signatures(part.path, part.checksum)
    if signatures is None or len(signatures.ids) != part.rows:
        write_signatures(part.path, part.checksum)
        signatures = open_signatures(part.path, part.checksum)
    assert signatures is not None
    return signatures


def compare(corpus: Corpus) -> Any:
    """The table of dropped documents, see data_prep/dedup.py."""
    cluster = _clusters(corpus)
    sizes = np.bincount(cluster, minlength=1)
    members = np.flatnonzero(sizes[cluster] > 1).astype(np.int32)
    order = np.lexsort((members, -corpus.characters[members].astype(np.int64), cluster[members]))
    members = members[order]  # cluster by cluster, each by falling length
    kept, equal = _keep(corpus, members, cluster[members])
    is_dropped = kept != members
    dropped, kept, equal = members[is_dropped], kept[is_dropped], equal[is_dropped]
    order = np.argsort(dropped, kind="stable")
    dropped, kept, equal = dropped[order], kept[order], equal[order]
    copies = np.bincount(kept, minlength=1)[kept] if len(kept) else np.zeros(0, np.int64)
    names, kept_names = corpus.strings(dropped), corpus.strings(kept)
    is_exact = equal > VALUES
    return pa.table(
        {
            **names,
            "characters": pa.array(corpus.characters[dropped]),
            "kept": pc.binary_join_element_wise(kept_names["source"], kept_names["id"], "/"),
            "kept_title": kept_names["title"],
            "kind": pa.array(np.where(is_exact, "exact", "near"), pa.string()),
            "similarity": pa.array(np.minimum(equal, VALUES) / VALUES, pa.float32()),
            "copies": pa.array(copies + 1, pa.int64()),
        }
    )


def _clusters(corpus: Corpus) -> NDArray[np.int32]:
    """(N,) the cluster of each document; copies, and copies of copies, share a cluster."""
    parent = np.arange(corpus.num_documents, dtype=np.int32)
    everything = np.arange(corpus.num_documents, dtype=np.int32)
    long_enough = np.flatnonzero(corpus.characters >= FEWEST_CHARACTERS).astype(np.int32)
    for band in (None, *range(BANDS)):
        documents = everything if band is None else long_enough
        keys = corpus.keys(band)[documents]
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], documents[order]
        del order
        again = (
            np.flatnonzero(keys[1:] == keys[:-1]) + 1
        )  # in a run of equal keys, but not its first
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else again
        firsts = ordered[starts[np.searchsorted(starts, again, side="right") - 1]]
        del keys
        # A run may hold two groups: one that differs from the first may be a copy of its neighbour
        for others in (firsts, ordered[again - 1]):
            _unite_copies(corpus, parent, ordered[again], others, is_exact=band is None)
    _roots(parent)
    return parent


def _unite_copies(
    corpus: Corpus,
    parent: NDArray[np.int32],
    documents_N: NDArray[np.int32],
    others_N: NDArray[np.int32],
    is_exact: bool,
) -> None:
    """Put the pairs that are copies, exact or near, into one cluster."""
    for start in range(0, len(documents_N), ROWS_AT_ONCE):
        documents, others = (each[start : start + ROWS_AT_ONCE] for each in (documents_N, others_N))
        is_open = _are_apart(parent, documents, others)
        documents, others = documents[is_open], others[is_open]
        values, exact = corpus.rows(documents)
        other_values, other_exact = corpus.rows(others)
        if is_exact:
            agree = (exact == other_exact).all(axis=1)
        else:
            agree = (values == other_values).sum(axis=1) >= LEAST_EQUAL
        _unite(parent, documents[agree], others[agree])


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
        of_chunk = documents, cluster_M[chunk], *corpus.rows(documents)
        _lead(state, *leaders, *of_chunk, kept[chunk], equal[chunk])
    return kept, equal


def group(dropped: Any, kept: str) -> dict[str, Any]:
    """One kept document and its copies, a few of them by name."""
    rows = dropped.filter(pc.field("kept") == kept)
    names = pc.binary_join_element_wise(rows["source"], rows["id"], "/")
    return {
        "kept": kept,
        "title": rows["kept_title"][0].as_py(),
        "copies": rows["copies"][0].as_py(),
        "dropped": names[:5].to_pylist(),
        "titles": rows["title"][:5].to_pylist(),
    }


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
def _are_apart(
    parent: NDArray[np.int32], documents: NDArray[np.int32], others: NDArray[np.int32]
) -> NDArray[np.bool_]:
    apart = np.empty(len(documents), np.bool_)
    for row in range(len(documents)):
        apart[row] = _root(parent, documents[row]) != _root(parent, others[row])
    return apart


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
