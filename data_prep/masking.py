"""Masked language modelling: which positions are predicted, and what stands there instead.

The rules are those of google-research/bert, create_pretraining_data.py: a quota of an example's
tokens, [CLS] and [SEP] never; 80 % become [MASK], 10 % a random entry, 10 % stay (BERT, section
3.1). Random entries are drawn from the vocabulary without its special entries, where Google's code
draws from all. The masks of an example are a pure function of its key and its ids.

Suffixes: N examples, T tokens of all examples end to end, M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep import philox
from data_prep.objectives import MaskingUnit, Pairing

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

    @property
    def most(self) -> int:
        """An example's most masked positions; positions are 16 bits wide, so 65,535 is no bound."""
        return 65_535 if self.max_predictions is None else self.max_predictions

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], vocab_path: Path | None) -> MaskingRule:
        """The rule that a folder of shards was masked by. `vocab_path` is read for whole words.

        Raises ValueError when that vocabulary is needed and missing, or of another size.
        """
        from data_prep.wordpiece import read_vocab

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
    return np.minimum(np.clip(rounded_N, 1, rule.most), candidates_N)


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
    whole_word = rule.unit is MaskingUnit.whole_word
    # Room for the shortest word of an example, which may be longer than the quota
    room_N = np.minimum(lengths_N, rule.most) if whole_word else quotas_N
    positions_M = np.empty(room_N.sum(), np.uint16)
    masked_ids_M = np.empty(room_N.sum(), input_ids.dtype)
    masked_offsets = np.zeros(len(lengths_N) + 1, np.int64)
    shares = (rule.mask_share, rule.mask_share + rule.random_share)
    special = np.unique(np.array(rule.special_ids, np.int64))
    random_ids = (special[special < rule.vocab_size], rule.vocab_size)
    continuation = np.zeros(0, np.bool_) if rule.continuation is None else rule.continuation
    _mask(
        *(input_ids, offsets, keys, quotas_N, rule.most, shares, random_ids),
        *(np.array([rule.cls_id, rule.sep_id]), rule.mask_id, whole_word, continuation),
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
    most: int,
    shares: tuple[float, float],
    random_ids: tuple[NDArray[np.int64], int],
    never: NDArray[np.int64],
    mask_id: int,
    whole_word: bool,
    continuation: NDArray[np.bool_],
    positions: NDArray[np.uint16],
    masked_offsets: NDArray[np.int64],
    masked_ids: NDArray[Any],
) -> None:
    """Fill positions, masked_offsets and masked_ids, example after example."""
    longest = 1
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    word_starts = np.empty(longest, np.int32)  # candidates: words, or single pieces
    word_ends = np.empty(longest, np.int32)
    chosen = np.zeros(longest, np.bool_)
    stream = np.zeros(philox.WORDS, np.uint32)
    end = 0
    for i in range(len(offsets) - 1):
        ids = input_ids[offsets[i] : offsets[i + 1]]
        num_words = _find_words(ids, never, whole_word, continuation, word_starts, word_ends)
        philox.start(stream, keys[i, 0], philox.MASK, keys[i, 1])
        _choose(stream, num_words, quotas[i], most, word_starts, word_ends, chosen)
        for position in range(len(ids)):
            if chosen[position]:
                chosen[position] = False
                positions[end] = position
                masked_ids[end] = _replace(stream, ids[position], shares, mask_id, random_ids)
                end += 1
        masked_offsets[i + 1] = end


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_words(
    ids: NDArray[Any],
    never: NDArray[np.int64],
    whole_word: bool,
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
        elif whole_word and is_open and continuation[token]:
            word_ends[num_words - 1] = position + 1
        else:
            word_starts[num_words] = position
            word_ends[num_words] = position + 1
            num_words += 1
            is_open = True
    return num_words


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _choose(
    stream: NDArray[np.uint32],
    num_words: int,
    quota: int,
    most: int,
    word_starts: NDArray[np.int32],
    word_ends: NDArray[np.int32],
    chosen: NDArray[np.bool_],
) -> None:
    """Mark the pieces of words drawn in random order (Fisher-Yates) until the quota is met."""
    num_chosen = 0
    for drawn in range(num_words):
        if num_chosen == quota:
            return
        other = drawn + philox.next_below(stream, num_words - drawn)
        start, end = word_starts[other], word_ends[other]
        word_starts[other], word_ends[other] = word_starts[drawn], word_ends[drawn]
        word_starts[drawn], word_ends[drawn] = start, end
        if num_chosen + end - start <= quota:
            chosen[start:end] = True
            num_chosen += end - start
    if num_chosen == 0 and num_words > 0:
        shortest = 0
        for word in range(num_words):
            if word_ends[word] - word_starts[word] < word_ends[shortest] - word_starts[shortest]:
                shortest = word
        start = word_starts[shortest]
        chosen[start : min(word_ends[shortest], start + most)] = True


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _replace(
    stream: NDArray[np.uint32],
    token: Any,
    shares: tuple[float, float],
    mask_id: int,
    random_ids: tuple[NDArray[np.int64], int],
) -> Any:
    """What stands at a masked position: [MASK], a random entry that is not special, or `token`."""
    draw = philox.next_double(stream)
    if draw < shares[0]:
        return mask_id
    if draw >= shares[1]:
        return np.int64(token)
    special, vocab_size = random_ids
    entry = philox.next_below(stream, vocab_size - len(special))
    for special_id in special:  # ascending: each one at or below pushes the entry up
        if entry >= special_id:
            entry += 1
    return entry
