"""Masked language modelling: which positions are predicted, and what stands there instead.

The rules are those of google-research/bert, create_pretraining_data.py: a quota of an example's
tokens, [CLS] and [SEP] never; 80 % become [MASK], 10 % a random entry, 10 % stay (BERT, section
3.1). Random entries are drawn from the vocabulary without its special entries, where Google's code
draws from all. The masks of an example are a pure function of its key and its ids.

Suffixes: N examples, T tokens of all examples end to end, M masked positions, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.core.objectives import MaskingUnit, Pairing
from data_prep.examples import philox

SPARE = (
    16  # random words for draws that are rejected: one in ten thousand and fewer, so never so many
)
# [CLS] and [SEP]; [MASK]; whether whole words, and which entries continue one; an example's most;
# of 2**53, up to where a draw means [MASK] and a random entry; ids never drawn; V
CompiledRule = tuple[
    tuple[int, int],
    int,
    tuple[bool, NDArray[np.bool_]],
    int,
    NDArray[np.uint64],
    NDArray[np.int64],
    int,
]
Scratch = tuple[
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.uint8],
    NDArray[np.uint32],
]
DYNAMIC = 1 << 31  # in a key: an epoch of training, and not a pass of data preparation


@dataclass(frozen=True)
class MaskingRule:
    """How many positions are masked and with what. Shares are of the masked positions."""

    rate: float  # of an example's tokens, [CLS] and [SEP] counted
    max_predictions: int | None  # an example's most; None: no bound
    mask_share: float  # become [MASK]
    random_share: float  # become a random entry; the rest stays
    unit: MaskingUnit
    num_special: int  # [CLS] and [SEP] of an example
    mask_id: int
    cls_id: int
    sep_id: int
    vocab_size: int
    special_ids: tuple[int, ...]  # never drawn as a random entry
    continuation: NDArray[np.bool_] | None = None  # (V,) "##" pieces; for whole words alone

    def __post_init__(self) -> None:
        if self.unit is MaskingUnit.whole_word and self.continuation is None:
            raise ValueError("whole-word masking needs the vocabulary: give its vocab.txt")
        if len(set(self.special_ids)) >= self.vocab_size:
            raise ValueError(f"all {self.vocab_size} entries of the vocabulary are special")

    @functools.cached_property
    def compiled(self) -> CompiledRule:
        """The rule as kernels take it."""
        special = np.unique(np.array(self.special_ids, np.int64))
        words = self.unit is MaskingUnit.whole_word
        continuation = np.zeros(0, np.bool_) if self.continuation is None else self.continuation
        # of 2**53, exactly: a share times a power of two is not rounded
        shares = [
            math.ceil(2**53 * s) for s in (self.mask_share, self.mask_share + self.random_share)
        ]
        return (
            *((self.cls_id, self.sep_id), self.mask_id, (words, continuation), self.most),
            *(np.array(shares, np.uint64), special[special < self.vocab_size], self.vocab_size),
        )

    @property
    def most(self) -> int:
        """An example's most masked positions; positions are 16 bits wide, so 65,535 is no bound."""
        return 65_535 if self.max_predictions is None else self.max_predictions

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], vocab_path: Path | None) -> MaskingRule:
        """The rule that a folder of shards was masked by. `vocab_path` is read for whole words.

        Raises ValueError when that vocabulary is needed and missing, or of another size.
        """
        from data_prep.tokenizer.vocab_file import read_vocab

        masking, special_ids = manifest["masking"], manifest["special_ids"]
        vocab_size = int(manifest["vocab_size"])
        unit = MaskingUnit[masking["unit"]]
        continuation = None
        if unit is MaskingUnit.whole_word and vocab_path is not None:
            entries = read_vocab(vocab_path)
            if len(entries) != vocab_size:
                raise ValueError(
                    f"{vocab_path} has {len(entries)} entries, the data was made with {vocab_size}; "
                    "use the vocabulary that lies beside the data"
                )
            continuation = np.array([entry.startswith("##") for entry in entries])
        return cls(
            rate=masking["rate"],
            max_predictions=masking["max_predictions"],
            mask_share=masking["mask_share"],
            random_share=masking["random_share"],
            unit=unit,
            num_special=Pairing[manifest["pairs"]].num_special,
            mask_id=special_ids["mask"],
            cls_id=special_ids["cls"],
            sep_id=special_ids["sep"],
            vocab_size=vocab_size,
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
    """(N, 2) keys of masks drawn while training: of the example numbers (N,) in epochs (N,).

    Never equal to a static key, and two epochs have two sets of masks.
    """
    keys = np.empty((len(examples), 2), np.uint64)
    keys[:, 0] = np.uint64(philox.stream_key(seed, DYNAMIC)) | epochs.astype(np.uint64)
    keys[:, 1] = examples.astype(np.uint64)
    return keys


def num_masked(lengths: NDArray[np.integer[Any]], rule: MaskingRule) -> NDArray[np.int64]:
    """(N,) quota of masked positions for examples of (N,) tokens.

    min(max_predictions, max(1, rate * length rounded half to even)), and never more than the
    candidates, which are all tokens but [CLS] and [SEP]. Of tokens it is the exact count, of whole
    words the most, but for an example of which no word fits the quota.
    """
    rounded_N = np.rint(np.asarray(lengths, np.float64) * rule.rate).astype(np.int64)
    candidates_N = np.asarray(lengths, np.int64) - rule.num_special
    # three bounds, and not np.clip, which takes ten times as long for a batch's worth of lengths
    return np.minimum(np.minimum(np.maximum(rounded_N, 1), rule.most), candidates_N)


def most_masked(lengths: NDArray[np.integer[Any]], rule: MaskingRule) -> NDArray[np.int64]:
    """(N,) bounds of the masked positions of examples of (N,) tokens.

    Whole words may exceed the quota: the shortest of an example may be longer.
    """
    if rule.unit is MaskingUnit.token:
        return num_masked(lengths, rule)
    return np.minimum(np.asarray(lengths, np.int64), rule.most)


def mask_examples(
    input_ids: NDArray[Any],
    offsets: NDArray[np.integer[Any]],
    keys: NDArray[np.uint64],
    rule: MaskingRule,
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[Any]]:
    """Draw the masks of N examples: (T,) ids, (N + 1,) offsets into them, (N, 2) keys.

    Returns masked positions inside the example, ascending (M,) uint16; their offsets (N + 1,)
    int64; what stands there in the masked input (M,), in the dtype of `input_ids`. Every example
    has at least one. With whole words, those that would exceed the quota are passed over; where no
    word fits, the shortest is masked whole, as far as max_predictions allows.
    """
    offsets = np.asarray(offsets, np.int64)
    lengths_N = np.diff(offsets)
    quotas_N = num_masked(lengths_N, rule)
    room = int(most_masked(lengths_N, rule).sum())
    positions_M = np.empty(room, np.uint16)
    masked_ids_M = np.empty(room, input_ids.dtype)
    masked_offsets = np.zeros(len(lengths_N) + 1, np.int64)
    longest = int(lengths_N.max(initial=0))
    _mask(
        *(input_ids, offsets, keys, quotas_N, rule.compiled, longest),
        *(positions_M, masked_offsets, masked_ids_M),
    )
    size = masked_offsets[-1]
    return positions_M[:size].copy(), masked_offsets, masked_ids_M[:size].copy()


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mask(
    input_ids: NDArray[Any],
    offsets: NDArray[np.int64],
    keys: NDArray[np.uint64],
    quotas: NDArray[np.int64],
    rule: CompiledRule,
    longest: int,
    positions: NDArray[np.uint16],
    masked_offsets: NDArray[np.int64],
    masked_ids: NDArray[Any],
) -> None:
    """Fill positions, masked_offsets and masked_ids, example after example."""
    scratch = new_scratch(longest)
    found, standing = scratch[:2]
    end = 0
    for i in range(len(offsets) - 1):
        ids = input_ids[offsets[i] : offsets[i + 1]]
        count = mask_example(ids, quotas[i], keys[i, 0], keys[i, 1], rule, scratch)
        for j in range(count):
            positions[end + j] = found[j]
            masked_ids[end + j] = standing[j]
        end += count
        masked_offsets[i + 1] = end


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def new_scratch(longest: int) -> Scratch:
    """Memory for `mask_example`, for examples of `longest` tokens at most.

    Masked positions and what stands there; starts and ends of the candidates, words or tokens; which
    positions are chosen; a stream. One more than the longest: loops without a branch write one behind.
    """
    size = longest + 1
    masked = np.empty(size, np.int32), np.empty(size, np.int32)
    starts, ends = np.empty(size, np.int32), np.empty(size, np.int32)
    return (
        *masked,
        starts,
        ends,
        np.zeros(size, np.uint8),
        np.empty(4 * size + SPARE + 16, np.uint32),
    )


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def mask_example(
    ids: NDArray[Any], quota: int, key: Any, subject: Any, rule: CompiledRule, scratch: Scratch
) -> int:
    """Draw the masks of one example: how many; their positions, ascending, and what stands there
    are then the first so many of scratch[0] and scratch[1].
    """
    never, mask_id, (whole_word, continuation), most, shares, special, vocab_size = rule
    found, standing, starts, ends, chosen, words = scratch
    used = 0
    if whole_word:
        num_words = _find_words(ids, never, continuation, starts, ends)
        philox.fill(words, 4 * len(ids) + SPARE, key, philox.MASK, subject)
        used = _choose_words(words, num_words, quota, most, starts, ends, chosen)
    else:
        num_tokens = 0
        for position in range(len(ids)):
            starts[num_tokens] = position
            token = np.int64(ids[position])
            num_tokens += (token != never[0]) & (token != never[1])
        count = min(quota, num_tokens)
        philox.fill(words, 4 * count + SPARE, key, philox.MASK, subject)
        for drawn in range(count):  # Fisher-Yates
            other, used = philox.below(words, used, num_tokens - drawn)
            other += drawn
            chosen[starts[other]] = 1
            starts[other] = starts[drawn]
    count = 0
    for position in range(len(ids)):
        found[count] = position
        count += chosen[position]
        chosen[position] = 0
    for i in range(count):
        draw = np.uint64(words[used] >> 5) << np.uint64(26) | np.uint64(words[used + 1] >> 6)
        used += 2
        if draw < shares[0]:
            standing[i] = mask_id
        elif draw >= shares[1]:
            standing[i] = ids[found[i]]
        else:
            entry, used = philox.below(words, used, vocab_size - len(special))
            for special_id in special:  # ascending: each one at or below pushes the entry up
                if entry >= special_id:
                    entry += 1
            standing[i] = entry
    return count


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_words(
    ids: NDArray[Any],
    never: tuple[int, int],
    continuation: NDArray[np.bool_],
    word_starts: NDArray[np.int32],
    word_ends: NDArray[np.int32],
) -> int:
    """Fill the candidates of one example and return how many: [start, end) inside the example.

    A "##" piece joins the piece before, unless that is a [CLS] or [SEP]: truncation may leave a
    segment that begins inside a word.
    """
    num_words = 0
    is_open = False
    for position in range(len(ids)):
        token = np.int64(ids[position])
        if token == never[0] or token == never[1]:
            is_open = False
        elif is_open and continuation[token]:
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
    most: int,
    word_starts: NDArray[np.int32],
    word_ends: NDArray[np.int32],
    chosen: NDArray[np.uint8],
) -> int:
    """Mark the pieces of words drawn in random order (Fisher-Yates) until the quota is met.

    Returns how many of the random `words` are then used.
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
        chosen[start : min(word_ends[shortest], start + most)] = 1
    return used
