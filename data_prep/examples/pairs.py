"""Documents to examples: pairs `[CLS] A [SEP] B [SEP]`, or `[CLS] text [SEP]`.

`nsp`, next sentence prediction. The algorithm is that of google-research/bert,
create_pretraining_data.py. Sentences are collected up to a target length and split into A and the
rest. Half of the time B is that rest; otherwise B comes from another document and the rest is put
back. A pair that is too long loses tokens at both ends. Three points differ on purpose:

- The short target is drawn for every pair. Google draws it once per document, so one draw makes
  thousands of short pairs of a long book.
- The other document is drawn uniformly from the whole split, without the document itself. Google
  draws up to ten times from one file and keeps the last, so a pair labelled random may not be.
  Of a store of more than PARTNER_PARTS parts, each task draws from so many: its own, and others by
  chance. A task would otherwise open some 4,000 files. With random_next=source the other document
  is of the same source, so that a pair's label cannot be told from the two sources; with
  random_next=language it is of the same source and language. A document that is alone there has
  partners from its language, or from all others, and is counted.
- A sentence longer than the window is first cut at every half window, so that two pieces fill an
  example. Google's truncation drops all of it but one window.

`sop`, sentence order prediction (ALBERT, Lan et al. 2020, 3.1; google-research/albert,
create_pretraining_data.py). Chunks and split are the same, but B is always the rest, and a fair
coin swaps A and B. A single sentence has no order. ALBERT gives it a random partner and the label
"swapped", which is another task. Here a chunk has at least two sentences, whatever its target. If
the document would end with one sentence alone, the chunk before leaves it one more, or takes it in
if it has only two. A document of one sentence gives no example, and is counted.

`none`, no second segment (RoBERTa, Liu et al. 2019, 4.2, DOC-SENTENCES): as many whole sentences as
fit the target, never across the end of a document. Nothing is truncated. Short targets are drawn
here too; RoBERTa has none: set short_seq_prob to 0.

A document's own tokens that are in no example are counted. Every draw is keyed by (seed, pass,
document, pair). A segment is a range of tokens of one part of the token store. So pairs are decided
on offsets alone, and memory is bounded by one part, whatever the size of the corpus.

Suffixes: N examples, T tokens of all of them end to end, S sentences, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing, RandomNext
from data_prep.examples import philox
from data_prep.examples.pair_walks import (
    PAIRING_CODES,
    PairPlan,
    copy_bits,
    copy_ranges,
    place_partners,
    truncate,
    walk,
)
from data_prep.examples.partners import partners_of
from data_prep.stores.tokens import CURE, TokenStore

# Counts of Pairs, and of manifests
LOSSES = ("truncated_tokens", "long_sentences", "unpaired_documents", "lone_documents")


@dataclass(frozen=True)
class PairRule:
    """What decides the examples of a corpus."""

    pairing: Pairing
    seq_len: int  # tokens of the longest example, special ones included
    short_seq_prob: float  # chance that the target is drawn from 2 to the window
    seed: int
    copy: int  # which pass over the corpus, from 0
    random_next: RandomNext = RandomNext.corpus

    @property
    def window(self) -> int:
        """Maximum tokens of A and B together."""
        return self.seq_len - self.pairing.num_special


@dataclass(frozen=True)
class Pairs:
    """The N examples of one part, in the order of its documents. Without pairs, all text is A."""

    input_ids: NDArray[Any]  # (T,) in the dtype of the token store
    offsets: NDArray[np.int64]  # (N + 1,)
    segment_a_lengths: NDArray[np.uint16]  # (N,) tokens up to and with the first [SEP]
    next_sentence_labels: NDArray[np.uint8]  # (N,) 1: random or swapped (Pairing.label_1)
    document_a: NDArray[np.uint32]  # (N,) number in the split
    document_b: NDArray[np.uint32]  # (N,)
    continues_word: NDArray[np.uint8]  # (ceil(T / 8),) bits as in the token store, or (0,)
    numbers: NDArray[np.uint32]  # (N,) of the example in its document
    truncated_tokens: int  # of this part's documents: in no example of this pass
    long_sentences: int  # that were cut into pieces
    unpaired_documents: int  # of one sentence, if that gives no example
    lone_documents: int  # alone of their source (and language): their random B is of another


def make_pairs(store: TokenStore, part: int, rule: PairRule, cls_id: int, sep_id: int) -> Pairs:
    """The examples of one part of a split; random partners come from `partners_of`.

    Raises ValueError when a random partner is needed and the split holds a single document.
    """
    if rule.pairing is Pairing.nsp and store.num_documents == 1:
        raise ValueError(
            f"the {store.split} split of {store.folder} holds 1 document, and a random next "
            "segment needs another one: add documents, or change heldout_fraction and run "
            "data_prep.encode again"
        )
    plan, rows_of_part, num_lone = _plan_pairs(store, part, rule)
    lengths_N = plan.lengths_a + plan.lengths_b + rule.pairing.num_special
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64)
    own = store.part(part)
    ids = np.empty(offsets[-1], own.ids.dtype)
    to_a = offsets[:-1] + 1
    to_b = to_a + plan.lengths_a + 1
    ids[offsets[:-1]] = cls_id
    ids[to_b - 1] = sep_id
    ids[offsets[1:] - 1] = sep_id  # without a B, the same position
    has_words = len(own.continues_word) > 0
    continues = np.zeros(offsets[-1] if has_words else 0, np.bool_)
    segments = [(part, plan.starts_a, plan.lengths_a, np.arange(len(to_a)), to_a)]
    segments += [(n, plan.starts_b, plan.lengths_b, rows, to_b) for n, rows in rows_of_part]
    for number, starts, lengths, rows, to in segments:
        source = store.part(number)
        copy_ranges(source.ids, starts, lengths, rows, ids, to)
        if has_words:
            copy_bits(source.continues_word, starts, lengths, rows, continues, to)
    is_own = plan.document_a == plan.document_b
    kept_tokens = plan.lengths_a.sum() + plan.lengths_b[is_own].sum()
    return Pairs(
        input_ids=ids,
        offsets=offsets,
        segment_a_lengths=(plan.lengths_a + 2).astype(np.uint16),
        next_sentence_labels=plan.labels.astype(np.uint8),
        document_a=plan.document_a.astype(np.uint32),
        document_b=plan.document_b.astype(np.uint32),
        continues_word=np.packbits(continues, bitorder="little"),
        numbers=plan.numbers.astype(np.uint32),
        truncated_tokens=int(own.num_tokens - kept_tokens),
        long_sentences=int((np.diff(own.sentence_offsets) > rule.window).sum()),
        unpaired_documents=own.num_documents - len(np.unique(plan.document_a)),
        lone_documents=num_lone,
    )


def _plan_pairs(
    store: TokenStore, part: int, rule: PairRule
) -> tuple[PairPlan, list[tuple[int, NDArray[np.int64]]], int]:
    """The examples of one part as ranges of tokens; the rows whose B is in each part; and how many
    documents have no partner where it should come from.
    """
    key = np.uint64(philox.stream_key(rule.seed, rule.copy))
    own = store.part(part)
    sentence_offsets, document_offsets = split_long_sentences(
        own.sentence_offsets, own.document_offsets, rule.window
    )
    partners = list(partners_of(store, part, rule.random_next, key))
    choices_D, num_choices_D, set_D = np.zeros((3, own.num_documents), np.int64)
    for number, chosen in enumerate(partners):
        choices_D[chosen.own] = chosen.numbers_of_own(store, part)
        num_choices_D[chosen.own], set_D[chosen.own] = chosen.total, number
    plan = PairPlan.empty(len(sentence_offsets) - 1)  # an example uses up at least a sentence
    size = walk(
        *(PAIRING_CODES[rule.pairing], sentence_offsets, document_offsets),
        *(store.first_document[part], choices_D, num_choices_D, key),
        *(rule.window, rule.short_seq_prob, plan),
    )
    plan = plan.head(size)
    set_N = set_D[plan.document_a - store.first_document[part]]
    for number, chosen in enumerate(partners):
        rows = np.flatnonzero(set_N == number)
        plan.document_b[rows] = chosen.documents(store, plan.document_b[rows])
    is_own = plan.document_a == plan.document_b
    rows_of_part = list(_by_part(store, np.flatnonzero(~is_own), plan.document_b))
    for other, rows in rows_of_part:
        there = store.part(other)
        broken = place_partners(
            *(there.sentence_offsets, there.document_offsets, store.first_document[other], rows),
            *(there.num_tokens, key, plan),
        )
        if broken >= 0:  # only a task's own part was checked: all parts are all of the store
            raise SettingsError(
                f"{store.path_of(other)}, row {broken:,}: its sentences lie outside of the part; "
                f"{CURE}"
            )
    truncate(key, rule.window, plan)
    num_lone = sum(len(chosen.own) for chosen in partners if chosen.is_lone)
    return plan, [(part, np.flatnonzero(is_own)), *rows_of_part], num_lone


def split_long_sentences(
    sentence_offsets: NDArray[np.integer[Any]],
    document_offsets: NDArray[np.integer[Any]],
    window: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets (S + 1,), (D + 1,) in which no sentence is longer than `window` tokens.

    A longer sentence is cut at every half window. No token is lost and no other sentence changes.
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
    """The reason why the share of label 1 (`ones` of `rows`) is out of bounds, or None.

    `least` and `most` bound random pairs; swapped pairs are half of all. The share is out of bounds
    if it is outside by more than four standard errors, 4 * sqrt(0.25 / rows), because few examples
    prove nothing. So all labels 1 is refused from 33 examples on.
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
            "shards were changed after they were built; delete their folder and run "
            "data_prep.build again"
        )
    return (
        f"{share:.3f} of {rows:,} pairs have a random next sentence, and {least} to {most} is fit "
        "for training. Many documents of one sentence make it too high (is every line its own "
        "document?); fix the documents, or set audit.random_next_least and audit.random_next_most"
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
