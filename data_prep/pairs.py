"""Sentence pairs for next sentence prediction: the sentences of documents -> `[CLS] A [SEP] B [SEP]`.

The algorithm is that of google-research/bert, create_pretraining_data.py: sentences are collected
up to a target length and split into A and the rest; half of the time B is that rest, else it
comes from another document and the rest is put back; what is too long loses tokens at either end.
It differs in three points, each on purpose:

- the short target is drawn for every pair, there once for a whole document: one draw makes
  thousands of short pairs of a long book;
- another document is drawn uniformly from the whole split without the document itself, there in up
  to ten tries from one file, keeping what came: a pair labelled random may be none;
- a sentence longer than the window is first cut at every half window, so that two pieces fill an
  example; there truncation drops all of it but one window.

What truncation removes from a document's own text is counted. Every draw is keyed by (seed, pass,
document, pair). A segment is a range of tokens of one part of the token store, so pairs are
decided on offsets alone, and memory is bounded by one part whatever the size of the corpus.

Suffixes: N pairs, T tokens of all pairs end to end, S sentences, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep import philox
from data_prep.tokens import TokenStore

NUM_SPECIAL = 3  # of an example: [CLS] and two [SEP]


@dataclass(frozen=True)
class PairRule:
    """What decides the pairs of a corpus."""

    seq_len: int  # tokens of the longest example, special ones included
    short_seq_prob: float  # chance that a pair aims at a length drawn from 2 to the window
    seed: int
    copy: int  # number of the pass over the corpus

    @property
    def window(self) -> int:
        """Most tokens of A and B together."""
        return self.seq_len - NUM_SPECIAL


@dataclass(frozen=True)
class Pairs:
    """The N pairs of one part, in the order of its documents."""

    input_ids: NDArray[Any]  # (T,) in the dtype of the token store
    offsets: NDArray[np.int64]  # (N + 1,)
    segment_a_lengths: NDArray[np.uint16]  # (N,) tokens up to and with the first [SEP]
    next_sentence_labels: NDArray[np.uint8]  # (N,) 0: B follows A, 1: B is from elsewhere
    document_a: NDArray[np.uint32]  # (N,) numbers in the split
    document_b: NDArray[np.uint32]  # (N,)
    numbers: NDArray[np.uint32]  # (N,) of the pair in its document
    truncated_tokens: int  # of the part's own documents: in no example of this pass
    long_sentences: int  # that were cut into pieces


@dataclass(frozen=True)
class _Plan:
    """(N,) columns: each segment a range of tokens of its part, and what the draws decided."""

    document_a: NDArray[np.int64]
    document_b: NDArray[np.int64]
    numbers: NDArray[np.int64]
    wanted_b: NDArray[np.int64]  # tokens that a random B should reach; may be below 1
    starts_a: NDArray[np.int64]
    lengths_a: NDArray[np.int64]
    starts_b: NDArray[np.int64]
    lengths_b: NDArray[np.int64]


def make_pairs(store: TokenStore, part: int, rule: PairRule, cls_id: int, sep_id: int) -> Pairs:
    """The pairs of one part of a split; random partners come from all its parts.

    Raises ValueError when the split holds a single document, which can have no partner.
    """
    if store.num_documents == 1:
        raise ValueError(
            f"the {store.split} split of {store.folder} holds 1 document, and a random next needs "
            "another one: add documents, or change heldout_fraction and run data_prep.encode again"
        )
    key = np.uint64(philox.stream_key(rule.seed, rule.copy))
    own = store.parts[part]
    sentence_offsets, document_offsets = split_long_sentences(
        own.sentence_offsets, own.document_offsets, rule.window
    )
    columns = np.empty(
        (8, len(sentence_offsets) - 1), np.int64
    )  # a pair uses up a sentence or more
    size = _walk(
        *(sentence_offsets, document_offsets, store.first_document[part], store.num_documents),
        *(key, rule.window, rule.short_seq_prob, columns),
    )
    plan = _Plan(*columns[:, :size])
    is_random = plan.document_a != plan.document_b
    own_rows = np.flatnonzero(~is_random)
    own_tokens = plan.lengths_a.sum() + plan.lengths_b[own_rows].sum()
    partners = list(_by_part(store, np.flatnonzero(is_random), plan.document_b))
    for other, rows in partners:
        there = store.parts[other]
        _place_partners(
            *(there.sentence_offsets, there.document_offsets, store.first_document[other], rows),
            *(key, columns),
        )
    _truncate(key, rule.window, columns[:, :size])
    kept_tokens = plan.lengths_a.sum() + plan.lengths_b[own_rows].sum()

    lengths_N = plan.lengths_a + plan.lengths_b + NUM_SPECIAL
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64)
    ids = np.empty(offsets[-1], own.ids.dtype)
    to_a = offsets[:-1] + 1
    to_b = to_a + plan.lengths_a + 1
    ids[offsets[:-1]] = cls_id
    ids[to_b - 1] = sep_id
    ids[offsets[1:] - 1] = sep_id
    _copy_ranges(own.ids, plan.starts_a, plan.lengths_a, np.arange(size), ids, to_a)
    _copy_ranges(own.ids, plan.starts_b, plan.lengths_b, own_rows, ids, to_b)
    for other, rows in partners:
        _copy_ranges(store.parts[other].ids, plan.starts_b, plan.lengths_b, rows, ids, to_b)
    return Pairs(
        input_ids=ids,
        offsets=offsets,
        segment_a_lengths=(plan.lengths_a + 2).astype(np.uint16),
        next_sentence_labels=is_random.astype(np.uint8),
        document_a=plan.document_a.astype(np.uint32),
        document_b=plan.document_b.astype(np.uint32),
        numbers=plan.numbers.astype(np.uint32),
        truncated_tokens=int(own_tokens - kept_tokens),
        long_sentences=int((np.diff(own.sentence_offsets) > rule.window).sum()),
    )


def split_long_sentences(
    sentence_offsets: NDArray[np.integer[Any]],
    document_offsets: NDArray[np.integer[Any]],
    window: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets (S + 1,), (D + 1,) in which no sentence is longer than `window` tokens.

    A longer one is cut at every half window: two pieces fill an example. No token is lost, and no
    other sentence changes.
    """
    lengths_S = np.diff(sentence_offsets).astype(np.int64)
    pieces_S = np.where(lengths_S > window, -(-2 * lengths_S // window), 1)
    first_piece = np.concatenate([[0], np.cumsum(pieces_S)])
    piece_in_sentence = np.arange(first_piece[-1]) - np.repeat(first_piece[:-1], pieces_S)
    starts = np.repeat(sentence_offsets[:-1].astype(np.int64), pieces_S)
    starts += piece_in_sentence * window // 2
    new_sentence_offsets = np.append(starts, np.int64(sentence_offsets[-1]))
    return new_sentence_offsets, first_piece[document_offsets].astype(np.int64)


def random_next_fault(random_next: int, rows: int, least: float, most: float) -> str | None:
    """Why the share of random pairs is out of bounds, or None.

    A few examples prove nothing: the share counts as outside when it is by more than four standard
    errors, 4 * sqrt(0.25 / rows). So all labels 1 is refused from 33 examples on.
    """
    share = random_next / max(rows, 1)
    margin = 2 / np.sqrt(max(rows, 1))
    if least - margin <= share <= most + margin:
        return None
    return (
        f"{share:.3f} of {rows:,} pairs have a random next sentence, and {least} to {most} is fit "
        "for training. Many documents of one sentence make it too high (is every line its own "
        "document?); mend the documents, or set audit.random_next_least and "
        "audit.random_next_most"
    )


def _by_part(
    store: TokenStore, rows: NDArray[np.int64], documents: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each part that holds documents[rows], with those rows."""
    parts = np.searchsorted(store.first_document, documents[rows], side="right") - 1
    order = np.argsort(parts, kind="stable")
    touched, starts = np.unique(parts[order], return_index=True)
    for part, group in zip(touched, np.split(order, starts[1:]), strict=False):
        yield int(part), rows[group]


# The kernels below share `columns`, whose rows are the fields of _Plan, in their order.
@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _walk(
    sentence_offsets: NDArray[np.int64],
    document_offsets: NDArray[np.int64],
    first_document: int,
    num_documents: int,
    key: np.uint64,
    window: int,
    short_seq_prob: float,
    columns: NDArray[np.int64],
) -> int:
    """Decide the pairs of all documents but the place of random partners; return their number."""
    document_a, document_b, numbers, wanted_b, starts_a, lengths_a, starts_b, lengths_b = columns
    stream = np.zeros(philox.WORDS, np.uint32)
    size = 0
    for place in range(len(document_offsets) - 1):
        document = first_document + place
        begin, last = document_offsets[place], document_offsets[place + 1]
        number = 0
        while begin < last:
            philox.start(stream, key, philox.PAIR, document << 32 | number)
            target = window
            if philox.next_double(stream) < short_seq_prob:
                target = 2 + philox.next_below(stream, window - 1)
            end = begin + 1
            while end < last and sentence_offsets[end] - sentence_offsets[begin] < target:
                end += 1
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
                begin = end_a  # the sentences after A are put back
            else:
                document_b[size] = document
                starts_b[size] = sentence_offsets[end_a]
                lengths_b[size] = sentence_offsets[end] - sentence_offsets[end_a]
                begin = end
            size += 1
            number += 1
    return size


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _place_partners(
    sentence_offsets: NDArray[np.int32],
    document_offsets: NDArray[np.int32],
    first_document: int,
    rows: NDArray[np.int64],
    key: np.uint64,
    columns: NDArray[np.int64],
) -> None:
    """Fill the range of B for rows whose partner lies in this part: from a random sentence on."""
    document_a, document_b, numbers, wanted_b, _, _, starts_b, lengths_b = columns
    stream = np.zeros(philox.WORDS, np.uint32)
    for row in rows:
        philox.start(stream, key, philox.PARTNER, document_a[row] << 32 | numbers[row])
        place = document_b[row] - first_document
        begin, last = document_offsets[place], document_offsets[place + 1]
        begin += philox.next_below(stream, last - begin)
        end = begin + 1
        while end < last and sentence_offsets[end] - sentence_offsets[begin] < wanted_b[row]:
            end += 1
        starts_b[row] = sentence_offsets[begin]
        lengths_b[row] = sentence_offsets[end] - sentence_offsets[begin]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _truncate(key: np.uint64, window: int, columns: NDArray[np.int64]) -> None:
    """Shorten A and B to the window: token by token off the longer, front or back by a fair coin."""
    document_a, _, numbers, _, starts_a, lengths_a, starts_b, lengths_b = columns
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
def _copy_ranges(
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
