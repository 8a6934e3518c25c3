"""The sentences of documents -> examples: pairs `[CLS] A [SEP] B [SEP]`, or `[CLS] text [SEP]`.

`nsp`, next sentence prediction. The algorithm is that of google-research/bert,
create_pretraining_data.py: sentences are collected up to a target length and split into A and the
rest; half of the time B is that rest, else it comes from another document and the rest is put
back; what is too long loses tokens at either end. It differs in three points, each on purpose:

- the short target is drawn for every pair, there once for a whole document: one draw makes
  thousands of short pairs of a long book;
- another document is drawn uniformly from the whole split without the document itself, there in up
  to ten tries from one file, keeping what came: a pair labelled random may be none;
- a sentence longer than the window is first cut at every half window, so that two pieces fill an
  example; there truncation drops all of it but one window.

`sop`, sentence order prediction (ALBERT, Lan et al. 2020, 3.1; google-research/albert,
create_pretraining_data.py): the same chunks and the same split, but B is always the rest, and by a
fair coin A and B are swapped. A single sentence has no order; there it gets a random partner and
the label "swapped", which is another task. Here a chunk takes a second sentence whatever its
target; where one sentence of the document would be left over, the chunk hands it one of its own,
or, holding two, takes it in; a document of one sentence gives no example, and is counted.

`none`, no second segment (RoBERTa, Liu et al. 2019, 4.2, DOC-SENTENCES): as many whole sentences as
fit the target, and never across the end of a document. Nothing is truncated. Short targets are
drawn here as well; for RoBERTa's own way set short_seq_prob to 0.

What of a document's own text is in no example is counted. Every draw is keyed by (seed, pass,
document, pair). A segment is a range of tokens of one part of the token store, so pairs are
decided on offsets alone, and memory is bounded by one part whatever the size of the corpus.

Suffixes: N examples, T tokens of all of them end to end, S sentences, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.core.objectives import Pairing
from data_prep.examples import philox
from data_prep.stores.tokens import TokenStore

LOSSES = ("truncated_tokens", "long_sentences", "unpaired_documents")  # of Pairs, and of manifests


@dataclass(frozen=True)
class PairRule:
    """What decides the examples of a corpus."""

    pairing: Pairing
    seq_len: int  # tokens of the longest example, special ones included
    short_seq_prob: float  # chance that an example aims at a length drawn from 2 to the window
    seed: int
    copy: int  # number of the pass over the corpus

    @property
    def window(self) -> int:
        """Most tokens of A and B together."""
        return self.seq_len - self.pairing.num_special


@dataclass(frozen=True)
class Pairs:
    """The N examples of one part, in the order of its documents. Without pairs, all is A."""

    input_ids: NDArray[Any]  # (T,) in the dtype of the token store
    offsets: NDArray[np.int64]  # (N + 1,)
    segment_a_lengths: NDArray[np.uint16]  # (N,) tokens up to and with the first [SEP]
    next_sentence_labels: NDArray[np.uint8]  # (N,) 1: random or swapped (Pairing.label_1)
    document_a: NDArray[np.uint32]  # (N,) numbers in the split
    document_b: NDArray[np.uint32]  # (N,)
    numbers: NDArray[np.uint32]  # (N,) of the example in its document
    truncated_tokens: int  # of the part's own documents: in no example of this pass
    long_sentences: int  # that were cut into pieces
    unpaired_documents: int  # of one sentence, where that gives no example


@dataclass(frozen=True)
class _Plan:
    """(N,) columns: each segment a range of tokens of its part, and what the draws decided."""

    document_a: NDArray[np.int64]
    document_b: NDArray[np.int64]
    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    wanted_b: NDArray[np.int64]  # nsp alone: tokens that a random B should reach; may be below 1
    starts_a: NDArray[np.int64]
    lengths_a: NDArray[np.int64]
    starts_b: NDArray[np.int64]
    lengths_b: NDArray[np.int64]


def make_pairs(store: TokenStore, part: int, rule: PairRule, cls_id: int, sep_id: int) -> Pairs:
    """The examples of one part of a split; random partners come from all its parts.

    Raises ValueError when a random partner is needed and the split holds a single document.
    """
    if rule.pairing is Pairing.nsp and store.num_documents == 1:
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
        (9, len(sentence_offsets) - 1), np.int64
    )  # an example uses up a sentence or more
    size = _WALKS[rule.pairing](
        *(sentence_offsets, document_offsets, store.first_document[part], store.num_documents),
        *(key, rule.window, rule.short_seq_prob, columns),
    )
    plan = _Plan(*columns[:, :size])
    is_own = plan.document_a == plan.document_b
    own_rows = np.flatnonzero(is_own)
    partners = list(_by_part(store, np.flatnonzero(~is_own), plan.document_b))
    for other, rows in partners:
        there = store.parts[other]
        _place_partners(
            *(there.sentence_offsets, there.document_offsets, store.first_document[other], rows),
            *(key, columns),
        )
    _truncate(key, rule.window, columns[:, :size])
    kept_tokens = plan.lengths_a.sum() + plan.lengths_b[own_rows].sum()

    lengths_N = plan.lengths_a + plan.lengths_b + rule.pairing.num_special
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64)
    ids = np.empty(offsets[-1], own.ids.dtype)
    to_a = offsets[:-1] + 1
    to_b = to_a + plan.lengths_a + 1
    ids[offsets[:-1]] = cls_id
    ids[to_b - 1] = sep_id
    ids[offsets[1:] - 1] = sep_id  # without a B, the same place
    _copy_ranges(own.ids, plan.starts_a, plan.lengths_a, np.arange(size), ids, to_a)
    _copy_ranges(own.ids, plan.starts_b, plan.lengths_b, own_rows, ids, to_b)
    for other, rows in partners:
        _copy_ranges(store.parts[other].ids, plan.starts_b, plan.lengths_b, rows, ids, to_b)
    return Pairs(
        input_ids=ids,
        offsets=offsets,
        segment_a_lengths=(plan.lengths_a + 2).astype(np.uint16),
        next_sentence_labels=plan.labels.astype(np.uint8),
        document_a=plan.document_a.astype(np.uint32),
        document_b=plan.document_b.astype(np.uint32),
        numbers=plan.numbers.astype(np.uint32),
        truncated_tokens=int(own.num_tokens - kept_tokens),
        long_sentences=int((np.diff(own.sentence_offsets) > rule.window).sum()),
        unpaired_documents=own.num_documents - len(np.unique(plan.document_a)),
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


def label_fault(pairing: Pairing, ones: int, rows: int, least: float, most: float) -> str | None:
    """Why the share of label 1 (`ones` of `rows`) is out of bounds, or None.

    `least` and `most` bound random pairs; swapped ones are half of all. A few examples prove
    nothing: the share counts as outside when it is by more than four standard errors,
    4 * sqrt(0.25 / rows). So all labels 1 is refused from 33 examples on.
    """
    if pairing is Pairing.none:
        return None
    if pairing is Pairing.sop:
        least = most = 0.5
    share = ones / max(rows, 1)
    margin = 2 / np.sqrt(max(rows, 1))
    if least - margin <= share <= most + margin or not rows:
        return None
    if pairing is Pairing.sop:
        return (
            f"{share:.3f} of {rows:,} pairs are swapped, and 0.5 is what a fair coin gives: these "
            "shards were changed after they were built; run data_prep.build again"
        )
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


_WALKS = {Pairing.nsp: _walk_nsp, Pairing.sop: _walk_sop, Pairing.none: _walk_none}


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
def _place_partners(
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
def _truncate(key: np.uint64, window: int, columns: NDArray[np.int64]) -> None:
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
