"""The kernels that decide the examples of one part: where A and B begin, and how long they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.core.objectives import Pairing
from data_prep.examples import philox

# numba knows no enum of strings
PAIRING_CODES = {Pairing.nsp: 0, Pairing.sop: 1, Pairing.none: 2}
_NSP, _SOP, _NONE = PAIRING_CODES.values()


class PairPlan(NamedTuple):
    """(N,) int64 columns, one row per example. A segment is a range of tokens of its part."""

    document_a: NDArray[np.int64]
    document_b: NDArray[np.int64]
    numbers: NDArray[np.int64]  # of the example in its document
    labels: NDArray[np.int64]
    wanted_b: NDArray[np.int64]  # tokens that a random B should reach; may be below 1
    starts_a: NDArray[np.int64]
    lengths_a: NDArray[np.int64]
    starts_b: NDArray[np.int64]
    lengths_b: NDArray[np.int64]

    @classmethod
    def empty(cls, size: int) -> PairPlan:
        """Uninitialised columns of `size` rows."""
        return cls(*np.empty((len(cls._fields), size), np.int64))

    def head(self, size: int) -> PairPlan:
        """A view of the first `size` rows."""
        return PairPlan(*(column[:size] for column in self))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def walk(
    pairing: int,
    sentence_offsets: NDArray[np.int64],
    document_offsets: NDArray[np.int64],
    first_document: int,
    choices: NDArray[np.int64],
    num_choices: NDArray[np.int64],
    key: np.uint64,
    window: int,
    short_seq_prob: float,
    plan: PairPlan,
) -> int:
    """Fill the plan for all documents of a part and return the number of examples.

    (D,) the random B of a document comes from `num_choices` documents, of which it is number
    `choices`: `plan.document_b` counts them. B itself stays empty here: `place_partners` finds it.
    """
    stream = np.zeros(philox.WORDS, np.uint32)
    fewest_sentences = 2 if pairing == _SOP else 1
    row = 0
    for index in range(len(document_offsets) - 1):
        document = first_document + index
        begin, last = document_offsets[index], document_offsets[index + 1]
        number = 0
        while last - begin >= fewest_sentences:
            philox.start(stream, key, philox.PAIR, document << 32 | number)
            target = _draw_target(stream, window, short_seq_prob)
            middle, end, label = _draw_split(pairing, sentence_offsets, begin, last, target, stream)
            choice = choices[index]
            partner = choice
            if pairing == _NSP and label:
                partner = philox.next_below(stream, num_choices[index] - 1)
                partner += partner >= choice
            first = label if pairing == _SOP else 0  # 1: the second segment becomes A
            split = sentence_offsets[middle]
            starts = sentence_offsets[begin], split
            lengths = split - sentence_offsets[begin], sentence_offsets[end] - split
            plan.document_a[row], plan.document_b[row] = document, partner
            plan.numbers[row], plan.labels[row] = number, label
            plan.wanted_b[row] = target - lengths[0]
            plan.starts_a[row], plan.lengths_a[row] = starts[first], lengths[first]
            plan.starts_b[row], plan.lengths_b[row] = starts[1 - first], lengths[1 - first]
            begin = end
            row += 1
            number += 1
    return row


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _draw_target(stream: NDArray[np.uint32], window: int, short_seq_prob: float) -> Any:
    """Tokens an example aims at: the window, or with `short_seq_prob` any number from 2 to it."""
    if philox.next_double(stream) < short_seq_prob:
        return 2 + philox.next_below(stream, window - 1)
    return window


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _draw_split(
    pairing: int,
    sentence_offsets: NDArray[np.int64],
    begin: int,
    last: int,
    target: int,
    stream: NDArray[np.uint32],
) -> tuple[int, int, int]:
    """Ends of the first and of the second segment, in sentences from `begin` on; and the label."""
    end = _reach(sentence_offsets, begin, last, target)
    if pairing == _NONE:
        if sentence_offsets[end] - sentence_offsets[begin] > target:
            end = max(begin + 1, end - 1)
        return end, end, 0
    if pairing == _SOP:
        end = max(begin + 2, end)
        if last - end == 1:  # a last sentence alone could not be ordered
            end += 1 if end - begin == 2 else -1
    middle = begin + 1
    if end - begin > 1:
        middle += philox.next_below(stream, end - begin - 1)
    if pairing == _SOP:
        # Drawn before truncation, which treats ties by position: otherwise lengths tell the label.
        return middle, end, philox.next_below(stream, 2)
    if end - begin == 1 or philox.next_below(stream, 2) == 1:
        return middle, middle, 1  # the sentences after A are put back
    return middle, end, 0


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
    num_tokens: int,
    key: np.uint64,
    plan: PairPlan,
) -> Any:
    """Fill the range of B for rows whose partner is in this part: from a random sentence on.

    Returns the first document whose offsets do not lie in the part of `num_tokens` tokens, or -1.
    """
    num_sentences = len(sentence_offsets) - 1
    stream = np.zeros(philox.WORDS, np.uint32)
    for row in rows:
        subject = plan.document_a[row] << 32 | plan.numbers[row]
        philox.start(stream, key, philox.PARTNER, subject)
        index = plan.document_b[row] - first_document
        begin, last = document_offsets[index], document_offsets[index + 1]
        if not 0 <= begin < last <= num_sentences:
            return index
        begin += philox.next_below(stream, last - begin)
        end = _reach(sentence_offsets, begin, last, plan.wanted_b[row])
        first, behind = sentence_offsets[begin], sentence_offsets[end]
        if not 0 <= first < behind <= num_tokens:
            return index
        plan.starts_b[row], plan.lengths_b[row] = first, behind - first
    return -1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def truncate(key: np.uint64, window: int, plan: PairPlan) -> None:
    """Shorten A and B to the window: drop tokens of the longer one, front or back at random."""
    stream = np.zeros(philox.WORDS, np.uint32)
    for row in range(len(plan.numbers)):
        subject = plan.document_a[row] << 32 | plan.numbers[row]
        philox.start(stream, key, philox.TRUNCATION, subject)
        while plan.lengths_a[row] + plan.lengths_b[row] > window:
            at_front = philox.next_below(stream, 2)
            if plan.lengths_a[row] > plan.lengths_b[row]:
                plan.starts_a[row] += at_front
                plan.lengths_a[row] -= 1
            else:
                plan.starts_b[row] += at_front
                plan.lengths_b[row] -= 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def copy_ranges(
    source: NDArray[Any],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    rows: NDArray[np.int64],
    target: NDArray[Any],
    to: NDArray[np.int64],
) -> None:
    """Copy source[start:start + length] of each row to `target`, from the row's `to` on."""
    for row in rows:
        for i in range(lengths[row]):
            target[to[row] + i] = source[starts[row] + i]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def copy_bits(
    source: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    rows: NDArray[np.int64],
    target: NDArray[np.bool_],
    to: NDArray[np.int64],
) -> None:
    """As `copy_ranges`, from bits, lowest first. The first of a range is left out: it is False."""
    for row in rows:
        for i in range(1, lengths[row]):
            place = starts[row] + i
            target[to[row] + i] = (source[place >> 3] >> (place & 7)) & 1
