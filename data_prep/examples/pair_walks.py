"""The three walks over sentences, one per pairing, as numba kernels."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.core.objectives import Pairing
from data_prep.examples import philox


# The kernels below share `columns`, whose rows are the fields of _Plan, in their order. A walk decides
# the examples of all documents, but the place of random partners, and returns their number.
@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _walk_nsp(
    sentence_offsets: NDArray[np.int64],
    document_offsets: NDArray[np.int64],
    first_document: int,
    num_documents: int,
    key: np.uint64,
    window: int,
    short_seq_prob: float,
    columns: NDArray[np.int64],
) -> int:
    """Half of the time A and what follows it, else A and another document's number."""
    document_a, document_b, numbers, labels, wanted_b = columns[:5]
    starts_a, lengths_a, starts_b, lengths_b = columns[5:]
    stream = np.zeros(philox.WORDS, np.uint32)
    size = 0
    for place in range(len(document_offsets) - 1):
        document = first_document + place
        begin, last = document_offsets[place], document_offsets[place + 1]
        number = 0
        while begin < last:
            philox.start(stream, key, philox.PAIR, document << 32 | number)
            target = _draw_target(stream, window, short_seq_prob)
            end = _reach(sentence_offsets, begin, last, target)
            end_a = begin + 1
            if end - begin > 1:
                end_a += philox.next_below(stream, end - begin - 1)
            document_a[size], numbers[size] = document, number
            starts_a[size] = sentence_offsets[begin]
            lengths_a[size] = sentence_offsets[end_a] - sentence_offsets[begin]
            wanted_b[size] = target - lengths_a[size]
            if end - begin == 1 or philox.next_below(stream, 2) == 1:
                other = philox.next_below(stream, num_documents - 1)
                document_b[size] = other if other < document else other + 1
                starts_b[size] = lengths_b[size] = 0
                labels[size] = 1
                begin = end_a  # the sentences after A are put back
            else:
                document_b[size] = document
                starts_b[size] = sentence_offsets[end_a]
                lengths_b[size] = sentence_offsets[end] - sentence_offsets[end_a]
                labels[size] = 0
                begin = end
            size += 1
            number += 1
    return size


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _walk_sop(
    sentence_offsets: NDArray[np.int64],
    document_offsets: NDArray[np.int64],
    first_document: int,
    num_documents: int,
    key: np.uint64,
    window: int,
    short_seq_prob: float,
    columns: NDArray[np.int64],
) -> int:
    """Two neighbours, by a fair coin swapped. It is tossed before truncation, which treats ties by
    place: else the lengths would tell the label."""
    document_a, document_b, numbers, labels, _ = columns[:5]
    starts_a, lengths_a, starts_b, lengths_b = columns[5:]
    stream = np.zeros(philox.WORDS, np.uint32)
    size = 0
    for place in range(len(document_offsets) - 1):
        document = first_document + place
        begin, last = document_offsets[place], document_offsets[place + 1]
        number = 0
        while last - begin > 1:
            philox.start(stream, key, philox.PAIR, document << 32 | number)
            target = _draw_target(stream, window, short_seq_prob)
            end = max(begin + 2, _reach(sentence_offsets, begin, last, target))
            if last - end == 1:  # it could not be ordered by itself
                end += 1 if end - begin == 2 else -1
            middle = begin + 1 + philox.next_below(stream, end - begin - 1)
            is_swapped = philox.next_below(stream, 2)
            starts = sentence_offsets[begin], sentence_offsets[middle]
            lengths = starts[1] - starts[0], sentence_offsets[end] - starts[1]
            document_a[size] = document_b[size] = document
            numbers[size], labels[size] = number, is_swapped
            starts_a[size], lengths_a[size] = starts[is_swapped], lengths[is_swapped]
            starts_b[size], lengths_b[size] = starts[1 - is_swapped], lengths[1 - is_swapped]
            begin = end
            size += 1
            number += 1
    return size


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _walk_none(
    sentence_offsets: NDArray[np.int64],
    document_offsets: NDArray[np.int64],
    first_document: int,
    num_documents: int,
    key: np.uint64,
    window: int,
    short_seq_prob: float,
    columns: NDArray[np.int64],
) -> int:
    """As many whole sentences as fit the target, one at least; no sentence exceeds the window."""
    document_a, document_b, numbers, labels, _ = columns[:5]
    starts_a, lengths_a, starts_b, lengths_b = columns[5:]
    stream = np.zeros(philox.WORDS, np.uint32)
    size = 0
    for place in range(len(document_offsets) - 1):
        document = first_document + place
        begin, last = document_offsets[place], document_offsets[place + 1]
        number = 0
        while begin < last:
            philox.start(stream, key, philox.PAIR, document << 32 | number)
            target = _draw_target(stream, window, short_seq_prob)
            end = _reach(sentence_offsets, begin, last, target)
            if sentence_offsets[end] - sentence_offsets[begin] > target:
                end = max(begin + 1, end - 1)
            document_a[size] = document_b[size] = document
            numbers[size], labels[size] = number, 0
            starts_a[size] = sentence_offsets[begin]
            lengths_a[size] = sentence_offsets[end] - sentence_offsets[begin]
            starts_b[size] = lengths_b[size] = 0
            begin = end
            size += 1
            number += 1
    return size


WALKS = {Pairing.nsp: _walk_nsp, Pairing.sop: _walk_sop, Pairing.none: _walk_none}


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _draw_target(stream: NDArray[np.uint32], window: int, short_seq_prob: float) -> Any:
    """Tokens at which an example aims: the window, or now and then any number from 2 up to it."""
    if philox.next_double(stream) < short_seq_prob:
        return 2 + philox.next_below(stream, window - 1)
    return window


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _reach(sentence_offsets: NDArray[np.integer[Any]], begin: int, last: int, target: int) -> int:
    """End of the shortest run of sentences from `begin` that has `target` tokens, or `last`."""
    end = begin + 1
    while end < last and sentence_offsets[end] - sentence_offsets[begin] < target:
        end += 1
    return end


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def place_partners(
    sentence_offsets: NDArray[np.int32],
    document_offsets: NDArray[np.int32],
    first_document: int,
    rows: NDArray[np.int64],
    key: np.uint64,
    columns: NDArray[np.int64],
) -> None:
    """Fill the range of B for rows whose partner lies in this part: from a random sentence on."""
    document_a, document_b, numbers, _, wanted_b, _, _, starts_b, lengths_b = columns
    stream = np.zeros(philox.WORDS, np.uint32)
    for row in rows:
        philox.start(stream, key, philox.PARTNER, document_a[row] << 32 | numbers[row])
        place = document_b[row] - first_document
        begin, last = document_offsets[place], document_offsets[place + 1]
        begin += philox.next_below(stream, last - begin)
        end = _reach(sentence_offsets, begin, last, wanted_b[row])
        starts_b[row] = sentence_offsets[begin]
        lengths_b[row] = sentence_offsets[end] - sentence_offsets[begin]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def truncate(key: np.uint64, window: int, columns: NDArray[np.int64]) -> None:
    """Shorten A and B to the window: token by token off the longer, front or back by a fair coin."""
    document_a, _, numbers, _, _, starts_a, lengths_a, starts_b, lengths_b = columns
    stream = np.zeros(philox.WORDS, np.uint32)
    for row in range(len(document_a)):
        philox.start(stream, key, philox.TRUNCATION, document_a[row] << 32 | numbers[row])
        while lengths_a[row] + lengths_b[row] > window:
            at_front = philox.next_below(stream, 2)
            if lengths_a[row] > lengths_b[row]:
                starts_a[row] += at_front
                lengths_a[row] -= 1
            else:
                starts_b[row] += at_front
                lengths_b[row] -= 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def copy_ranges(
    source: NDArray[Any],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    rows: NDArray[np.int64],
    target: NDArray[Any],
    to: NDArray[np.int64],
) -> None:
    """Copy source[start:start + length] of each row to its place in `target`."""
    for row in rows:
        for i in range(lengths[row]):
            target[to[row] + i] = source[starts[row] + i]
