"""Masked language modelling: which positions are masked, and with what.

The rules are those of google-research/bert, create_pretraining_data.py. A quota of an example's
tokens is masked, never [CLS] or [SEP]: 80 % become [MASK], 10 % a random entry, 10 % stay (BERT,
section 3.1). Random entries are drawn from the vocabulary without its special entries; Google's
code draws from all. The masks of an example are a pure function of its key and its ids.

Suffixes: N examples, T tokens of all examples end to end, M masked positions, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.core.objectives import MaskingUnit
from data_prep.examples import philox
from data_prep.stores.arrow import no_bits
from data_prep.stores.shard_records import ShardsIdentity
from data_prep.tokenizer.vocab_file import read_vocab

# Random words for rejected draws. One draw in ten thousand, or fewer, is rejected.
SPARE = 16
# In a key: an epoch of training, and not a pass of data preparation
DYNAMIC = 1 << 31


class CompiledRule(NamedTuple):
    """A `MaskingRule` as kernels take it."""

    cls_id: int
    sep_id: int
    mask_id: int
    whole_word: bool
    continuation: NDArray[np.bool_]  # (V,) entries that continue a word; empty without whole words
    max_masked: int  # positions of an example
    mask_below: np.uint64  # of 2**53: a draw below it means [MASK],
    random_below: np.uint64  # and one from there to below this a random entry
    special_ids: NDArray[np.int64]  # never drawn as a random entry; ascending
    vocab_size: int


class Scratch(NamedTuple):
    """Memory for `mask_example`. Its result is the first entries of `positions` and `new_ids`."""

    positions: NDArray[np.int32]  # masked positions, ascending
    new_ids: NDArray[np.int32]  # the ids at these positions in the masked input
    starts: NDArray[np.int32]  # of the candidates, words or tokens
    ends: NDArray[np.int32]
    chosen: NDArray[np.uint8]  # 1 where a position is masked
    words: NDArray[np.uint32]  # random


@dataclass(frozen=True)
class MaskingRule:
    """How many positions are masked and with what. Shares are of the masked positions."""

    rate: float  # of an example's tokens, [CLS] and [SEP] included
    max_predictions: int | None  # per example; None: no bound
    mask_share: float  # become [MASK]
    random_share: float  # become a random entry; the rest stays
    unit: MaskingUnit
    num_special: int  # [CLS] and [SEP] of an example
    mask_id: int
    cls_id: int
    sep_id: int
    vocab_size: int
    special_ids: tuple[int, ...]  # never drawn as a random entry
    continuation: NDArray[np.bool_] | None = None  # (V,) "##" pieces; for whole words only

    def __post_init__(self) -> None:
        if self.unit is MaskingUnit.whole_word and self.continuation is None:
            raise ValueError("whole-word masking needs the vocabulary: give its vocab.txt")
        if len(set(self.special_ids)) >= self.vocab_size:
            raise ValueError(f"all {self.vocab_size} entries of the vocabulary are special")

    @functools.cached_property
    def compiled(self) -> CompiledRule:
        """The rule as kernels take it."""
        special = np.unique(np.array(self.special_ids, np.int64))
        # exact: a share times a power of two is not rounded
        mask_below, random_below = (
            np.uint64(math.ceil(2**53 * share))
            for share in (self.mask_share, self.mask_share + self.random_share)
        )
        return CompiledRule(
            cls_id=self.cls_id,
            sep_id=self.sep_id,
            mask_id=self.mask_id,
            whole_word=self.unit is MaskingUnit.whole_word,
            continuation=np.zeros(0, np.bool_) if self.continuation is None else self.continuation,
            max_masked=self.max_masked,
            mask_below=mask_below,
            random_below=random_below,
            special_ids=special[special < self.vocab_size],
            vocab_size=self.vocab_size,
        )

    @property
    def max_masked(self) -> int:
        """Most masked positions of an example; positions have 16 bits, so 65,535 is no bound."""
        return min(65_535, self.max_predictions or 65_535)

    @classmethod
    def from_manifest(cls, manifest: ShardsIdentity, vocab_path: Path | None) -> MaskingRule:
        """The rule that masked a folder of shards. `vocab_path` is read for whole words only.

        Raises ValueError when that vocabulary is needed but missing, or has another size.
        """
        masking, special_ids = manifest.masking, manifest.special_ids
        continuation = None
        if masking.unit is MaskingUnit.whole_word and vocab_path is not None:
            entries = read_vocab(vocab_path)
            if len(entries) != manifest.vocab_size:
                raise ValueError(
                    f"{vocab_path} has {len(entries)} entries, the data was made with "
                    f"{manifest.vocab_size}; use the vocabulary next to the data"
                )
            continuation = np.array([entry.startswith("##") for entry in entries])
        return cls(
            **vars(masking),
            num_special=manifest.pairs.num_special,
            mask_id=special_ids["mask"],
            cls_id=special_ids["cls"],
            sep_id=special_ids["sep"],
            vocab_size=manifest.vocab_size,
            special_ids=tuple(sorted(special_ids.values())),
            continuation=continuation,
        )


def static_keys(
    seed: int, copy: int, documents: NDArray[np.integer[Any]], pairs: NDArray[np.integer[Any]]
) -> NDArray[np.uint64]:
    """(N, 2) keys of the masks stored in shards: of pass `copy`, documents (N,), pairs (N,)."""
    keys = np.empty((len(documents), 2), np.uint64)
    keys[:, 0] = philox.stream_key(seed, copy)
    keys[:, 1] = documents.astype(np.uint64) << np.uint64(32) | pairs.astype(np.uint64)
    return keys


def dynamic_keys(
    seed: int, epochs: NDArray[np.integer[Any]], examples: NDArray[np.integer[Any]]
) -> NDArray[np.uint64]:
    """(N, 2) keys of masks drawn during training, of example numbers (N,) in epochs (N,).

    They differ between epochs, and no static key equals one of them.
    """
    keys = np.empty((len(examples), 2), np.uint64)
    keys[:, 0] = np.uint64(philox.stream_key(seed, DYNAMIC)) | epochs.astype(np.uint64)
    keys[:, 1] = examples.astype(np.uint64)
    return keys


def num_masked(lengths: NDArray[np.integer[Any]], rule: MaskingRule) -> NDArray[np.int64]:
    """(N,) quota of masked positions for examples of (N,) tokens.

    min(max_predictions, max(1, rate * length rounded half to even)), and at most all tokens but
    [CLS] and [SEP]. With tokens it is the exact count. With whole words it is the maximum, except
    for an example in which no word fits the quota.
    """
    rounded_N = np.rint(np.asarray(lengths, np.float64) * rule.rate).astype(np.int64)
    candidates_N = np.asarray(lengths, np.int64) - rule.num_special
    # not np.clip, which takes ten times as long for the lengths of a batch
    return np.minimum(np.minimum(np.maximum(rounded_N, 1), rule.max_masked), candidates_N)


def max_masked(lengths: NDArray[np.integer[Any]], rule: MaskingRule) -> NDArray[np.int64]:
    """(N,) upper bounds of the number of masked positions, for examples of (N,) tokens.

    Whole words may exceed the quota: an example's shortest word may be longer.
    """
    if rule.unit is MaskingUnit.token:
        return num_masked(lengths, rule)
    return np.minimum(np.asarray(lengths, np.int64), rule.max_masked)


def mask_examples(
    input_ids: NDArray[Any],
    offsets: NDArray[np.integer[Any]],
    keys: NDArray[np.uint64],
    rule: MaskingRule,
    continues_word: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[Any]]:
    """Draw the masks of N examples: (T,) ids, (N + 1,) offsets into them, (N, 2) keys.

    For whole words, `continues_word` has (ceil(T / 8),) bits, lowest first: the token continues the
    word before it. None or no bits: a "##" piece does.
    Returns the masked positions inside each example, ascending, (M,) uint16; their offsets (N + 1,)
    int64; and the ids at these positions in the masked input, (M,) in the dtype of `input_ids`.
    Every example has at least one. Whole words that would exceed the quota are skipped. If no word
    fits, the shortest is masked, up to max_predictions of its pieces.
    """
    offsets = np.asarray(offsets, np.int64)
    lengths_N = np.diff(offsets)
    quotas_N = num_masked(lengths_N, rule)
    room = int(max_masked(lengths_N, rule).sum())
    positions_M = np.empty(room, np.uint16)
    masked_ids_M = np.empty(room, input_ids.dtype)
    masked_offsets = np.zeros(len(lengths_N) + 1, np.int64)
    longest = int(lengths_N.max(initial=0))
    _mask(
        *(input_ids, no_bits() if continues_word is None else continues_word),
        *(offsets, keys, quotas_N, rule.compiled, longest),
        *(positions_M, masked_offsets, masked_ids_M),
    )
    size = masked_offsets[-1]
    return positions_M[:size].copy(), masked_offsets, masked_ids_M[:size].copy()


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mask(
    input_ids: NDArray[Any],
    continues_word: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    keys: NDArray[np.uint64],
    quotas: NDArray[np.int64],
    rule: CompiledRule,
    longest: int,
    positions: NDArray[np.uint16],
    masked_offsets: NDArray[np.int64],
    masked_ids: NDArray[Any],
) -> None:
    """Fill positions, masked_offsets and masked_ids, example by example."""
    scratch = new_scratch(longest)
    end = 0
    for i in range(len(offsets) - 1):
        first = offsets[i]
        ids, words = input_ids[first : offsets[i + 1]], (continues_word, first)
        count = mask_example(ids, words, quotas[i], keys[i, 0], keys[i, 1], rule, scratch)
        for j in range(count):
            positions[end + j] = scratch.positions[j]
            masked_ids[end + j] = scratch.new_ids[j]
        end += count
        masked_offsets[i + 1] = end


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def new_scratch(longest: int) -> Scratch:
    """Memory for `mask_example`, for examples of at most `longest` tokens."""
    size = longest + 1  # loops without a branch write one entry behind
    return Scratch(
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.zeros(size, np.uint8),
        np.empty(4 * size + SPARE + 16, np.uint32),
    )


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def mask_example(
    ids: NDArray[Any],
    continues_word: tuple[NDArray[np.uint8], int],
    quota: int,
    key: Any,
    subject: Any,
    rule: CompiledRule,
    scratch: Scratch,
) -> int:
    """Draw the masks of one example into `scratch`; return how many positions are masked.

    `continues_word` are bits as for `mask_examples`, and the place of the example's first.
    """
    positions, new_ids, starts, ends, chosen, words = scratch
    used = 0
    if rule.whole_word:
        num_words = _find_words(ids, continues_word, rule, starts, ends)
        philox.fill(words, 4 * len(ids) + SPARE, key, philox.MASK, subject)
        used = _choose_words(words, num_words, quota, rule.max_masked, starts, ends, chosen)
    else:
        num_tokens = 0
        for position in range(len(ids)):
            starts[num_tokens] = position
            token = np.int64(ids[position])
            num_tokens += (token != rule.cls_id) & (token != rule.sep_id)
        count = min(quota, num_tokens)
        philox.fill(words, 4 * count + SPARE, key, philox.MASK, subject)
        for drawn in range(count):  # Fisher-Yates
            other, used = philox.below(words, used, num_tokens - drawn)
            other += drawn
            chosen[starts[other]] = 1
            starts[other] = starts[drawn]
    count = 0
    for position in range(len(ids)):
        positions[count] = position
        count += chosen[position]
        chosen[position] = 0
    for i in range(count):
        draw = np.uint64(words[used] >> 5) << np.uint64(26) | np.uint64(words[used + 1] >> 6)
        used += 2
        if draw < rule.mask_below:
            new_ids[i] = rule.mask_id
        elif draw >= rule.random_below:
            new_ids[i] = ids[positions[i]]
        else:
            entry, used = philox.below(words, used, rule.vocab_size - len(rule.special_ids))
            for special_id in rule.special_ids:  # each one at or below pushes the entry up
                if entry >= special_id:
                    entry += 1
            new_ids[i] = entry
    return count


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_words(
    ids: NDArray[Any],
    continues_word: tuple[NDArray[np.uint8], int],
    rule: CompiledRule,
    word_starts: NDArray[np.int32],
    word_ends: NDArray[np.int32],
) -> int:
    """Fill [start, end) of the words of one example; return their number.

    A token continues the word before it by its bit, or where there are no bits as a "##" piece. It
    does not continue a [CLS] or [SEP]: after truncation a segment may begin inside a word.
    """
    bits, first = continues_word
    num_words = 0
    is_open = False
    for position in range(len(ids)):
        token = np.int64(ids[position])
        if len(bits) > 0:
            place = first + position
            continues = (bits[place >> 3] >> (place & 7)) & 1 != 0
        else:
            continues = rule.continuation[token]
        if token == rule.cls_id or token == rule.sep_id:
            is_open = False
        elif is_open and continues:
            word_ends[num_words - 1] = position + 1
        else:
            word_starts[num_words] = position
            word_ends[num_words] = position + 1
            num_words += 1
            is_open = True
    return num_words


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _choose_words(
    words: NDArray[np.uint32],
    num_words: int,
    quota: int,
    max_masked: int,
    word_starts: NDArray[np.int32],
    word_ends: NDArray[np.int32],
    chosen: NDArray[np.uint8],
) -> int:
    """Mark the pieces of words drawn in random order (Fisher-Yates) until the quota is met.

    Returns how many of the random `words` were used.
    """
    num_chosen = used = 0
    for drawn in range(num_words):
        if num_chosen == quota:
            return used
        other, used = philox.below(words, used, num_words - drawn)
        other += drawn
        start, end = word_starts[other], word_ends[other]
        word_starts[other], word_ends[other] = word_starts[drawn], word_ends[drawn]
        word_starts[drawn], word_ends[drawn] = start, end
        if num_chosen + end - start <= quota:
            chosen[start:end] = 1
            num_chosen += end - start
    if num_chosen == 0 and num_words > 0:
        shortest = 0
        for word in range(num_words):
            if word_ends[word] - word_starts[word] < word_ends[shortest] - word_starts[shortest]:
                shortest = word
        start = word_starts[shortest]
        chosen[start : min(word_ends[shortest], start + max_masked)] = 1
    return used
