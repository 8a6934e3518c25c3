"""Packing: examples end to end in one row of tokens, without padding, as tensors.

Each sequence has position ids from 0, and `cu_seqlens` holds its borders so that attention stays
inside it: the logits of a packed sequence are those of the sequence alone.

Suffixes: T tokens of the packed row, N sequences, M masked positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.core.objectives import MaskingUnit
from data_prep.examples.masking import (
    CompiledRule,
    MaskingRule,
    mask_example,
    max_masked,
    new_scratch,
    num_masked,
)
from data_prep.stores.shard_reader import Rows, bounds, cut, word_bits
from data_prep.stores.shards import Examples

IGNORED = -100  # a label without a loss: torch's default `ignore_index`


@dataclass(frozen=True)
class Shape:
    """Static sizes of a micro-batch; code is compiled once for each."""

    tokens: int
    sequences: int  # slots, filler included
    masked: int


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: N sequences of T tokens in all, M of them masked. Integers throughout.

    After the real sequences there may be filler, up to a static `Shape`: sequences of filler tokens
    to the end of the row, then slots of length 0. Filler has no label, so it adds nothing to a
    loss, and no real token sees it.
    """

    input_ids: Tensor  # (T,) int32, masks applied
    position_ids: Tensor  # (T,) int32, 0 at each [CLS]
    segment_ids: Tensor  # (T,) int32, 0 up to and with the first [SEP] of a sequence, then 1
    cu_seqlens: Tensor  # (N + 1,) int32: sequence i is [cu_seqlens[i]:cu_seqlens[i + 1]]
    lengths: list[int]  # N lengths in tokens, on the host: no device sync to split a row
    cls_positions: Tensor  # (N,) int64, where each sequence begins; 0 for a slot of length 0
    masked_positions: Tensor  # (M,) int64, ascending, into the packed row; 0 in unused slots
    labels: Tensor  # (M,) int64, the original ids at masked_positions; IGNORED in unused slots
    # (N,) int64, 0 = B follows A, 1 = random or swapped (Pairing); IGNORED for filler
    next_sentence_labels: Tensor
    max_seqlen: int  # the data's seq_len, not this batch's longest: a constant in compiled code
    num_tokens: int  # without filler, as are the next two
    num_sequences: int
    num_masked: int

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`; the copy runs asynchronously from pinned memory."""
        return self._with({k: v.to(device, non_blocking=True) for k, v in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def _with(self, tensors: dict[str, Any]) -> PackedBatch:
        return dataclasses.replace(self, **tensors)


class NewMasks:
    """Masks to draw while packing, in place of those stored in the shards."""

    def __init__(
        self, keys: NDArray[np.uint64], lengths: NDArray[np.int64], rule: MaskingRule
    ) -> None:
        """`keys`: (N, 2) from `dynamic_keys`; `lengths`: (N,) tokens of each sequence."""
        self.keys, self.rule = keys, rule
        self.quotas = num_masked(lengths, rule)
        is_exact = rule.unit is MaskingUnit.token  # the count of whole words is known once drawn
        self.most = self.quotas if is_exact else max_masked(lengths, rule)
        self.total = int(self.quotas.sum()) if is_exact else None


def pack(examples: Examples, max_seqlen: int, shape: Shape | None = None) -> PackedBatch:
    """Lay N examples end to end, in their order, with their masks applied, and fill up to `shape`.

    Raises ValueError if there is no example, one has no tokens (attention over zero keys is NaN) or
    the shape is too small.
    """
    places = np.arange(len(examples))
    return pack_rows(Rows.of(examples), places, max_seqlen, lambda real: shape or real)


def pack_rows(
    rows: Rows,
    places: NDArray[np.int64],
    max_seqlen: int,
    shape_of: Callable[[Shape], Shape],
    new_masks: NewMasks | None = None,
    pinned: bool = False,
) -> PackedBatch:
    """Pack the rows at `places`, straight from the memory maps.

    `shape_of` maps the real sizes to those filled up to. `pinned`: in page-locked memory, for
    asynchronous copies to a GPU; needs CUDA.
    """
    lengths = rows.lengths[places].tolist()
    if not lengths:
        raise ValueError("a micro-batch needs one example at least; none was given")
    if min(lengths) < 1:
        raise ValueError(f"example {lengths.index(min(lengths))} of a micro-batch has no tokens")
    counts = rows.masked_counts if new_masks is None else new_masks.quotas
    room = int(counts[places].sum() if new_masks is None else new_masks.most[places].sum())
    real = Shape(sum(lengths), len(lengths), int(counts[places].sum()))

    def fill(shape: Shape) -> tuple[dict[str, Tensor], int]:
        slots = replace(shape, masked=max(shape.masked, room))
        return _filled(rows, places, max_seqlen, slots, new_masks, pinned)

    shape = expected = shape_of(real)
    columns, num_drawn = fill(expected)
    if num_drawn != real.masked:  # of whole words; few more than the quota may take another shape
        real = replace(real, masked=num_drawn)
        shape = shape_of(real)
        if shape != replace(expected, masked=shape.masked):
            columns, _ = fill(shape)
    for name in ("masked_positions", "labels"):
        columns[name] = columns[name][: shape.masked]
    return PackedBatch(
        **columns,
        lengths=lengths + filler_lengths(real, shape, max_seqlen),
        max_seqlen=max_seqlen,
        num_tokens=real.tokens,
        num_sequences=real.sequences,
        num_masked=num_drawn,
    )


def _filled(
    rows: Rows,
    places: NDArray[np.int64],
    max_seqlen: int,
    shape: Shape,
    new_masks: NewMasks | None,
    pinned: bool,
) -> tuple[dict[str, Tensor], int]:
    """The tensors of a packed row of this shape, and the number of masked tokens.

    Raises ValueError if the shape is too small.
    """
    tokens, sequences, masked = shape.tokens, shape.sequences, shape.masked
    lengths = rows.lengths[places]
    filler_lengths(Shape(int(lengths.sum()), len(lengths), 0), shape, max_seqlen)
    # two allocations hold all columns
    of_32_bits = torch.empty(3 * tokens + sequences + 1, dtype=torch.int32, pin_memory=pinned)
    of_64_bits = torch.empty(2 * (sequences + masked), dtype=torch.int64, pin_memory=pinned)
    if new_masks is None:
        drawn: tuple[Any, ...] = (False, *_NO_MASKS)
    else:
        drawn = (True, new_masks.keys, new_masks.quotas, new_masks.rule.compiled)
    num_drawn = _pack(
        *(rows.addresses, rows.like, rows.shards, rows.rows, places, *drawn),
        *(int(lengths.max()), max_seqlen, (tokens, sequences, masked)),
        *(of_32_bits.numpy(), of_64_bits.numpy()),
    )
    names = ("input_ids", "position_ids", "segment_ids", "cu_seqlens")
    columns = dict(
        zip(names, of_32_bits.split_with_sizes([tokens] * 3 + [sequences + 1]), strict=True)
    )
    names = ("cls_positions", "next_sentence_labels", "masked_positions", "labels")
    sizes = [sequences, sequences, masked, masked]
    columns |= zip(names, of_64_bits.split_with_sizes(sizes), strict=True)
    return columns, num_drawn


def filler_lengths(real: Shape, shape: Shape, max_seqlen: int) -> list[int]:
    """Lengths of the filler sequences: at most `max_seqlen` tokens each, then 0 for unused slots.

    Raises ValueError if the shape is too small.
    """
    rest = shape.tokens - real.tokens
    count = num_fillers(rest, max_seqlen)
    unused = shape.sequences - real.sequences - count
    if rest < 0 or unused < 0 or shape.masked < real.masked:
        raise ValueError(
            f"a micro-batch of {real} does not fit {shape}, whose rest takes {count} filler "
            f"sequences of {max_seqlen} tokens at most"
        )
    lengths = [min(max_seqlen, rest - first) for first in range(0, rest, max_seqlen)]
    return lengths + [0] * unused


def num_fillers(tokens: int, max_seqlen: int) -> int:
    """Filler sequences that fill up a row by this many tokens."""
    return -(-tokens // max_seqlen)


_NO_MASKS = (
    np.zeros((0, 2), np.uint64),
    np.zeros(0, np.int64),
    CompiledRule(
        cls_id=0,
        sep_id=0,
        mask_id=0,
        whole_word=False,
        continuation=np.zeros(0, np.bool_),
        max_masked=0,
        mask_below=np.uint64(0),
        random_below=np.uint64(0),
        special_ids=np.zeros(0, np.int64),
        vocab_size=0,
    ),
)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _pack(
    addresses: NDArray[np.int64],
    like: NDArray[Any],
    shards: NDArray[np.int64],
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    is_masked_anew: bool,
    keys: NDArray[np.uint64],
    quotas: NDArray[np.int64],
    rule: CompiledRule,
    longest: int,
    max_seqlen: int,
    sizes: tuple[int, int, int],
    of_32_bits: NDArray[np.int32],
    of_64_bits: NDArray[np.int64],
) -> int:
    """Fill the columns of a packed row, filler included; return the number of masked tokens."""
    tokens, sequences, slots = sizes
    input_ids, position_ids = of_32_bits[:tokens], of_32_bits[tokens : 2 * tokens]
    segment_ids, cu_seqlens = of_32_bits[2 * tokens : 3 * tokens], of_32_bits[3 * tokens :]
    cls_positions, pair_labels = of_64_bits[:sequences], of_64_bits[sequences : 2 * sequences]
    masked_positions = of_64_bits[2 * sequences : 2 * sequences + slots]
    labels = of_64_bits[2 * sequences + slots :]
    scratch = new_scratch(longest if is_masked_anew else 0)
    start = masked = 0
    cu_seqlens[0] = 0
    for i in range(len(places)):
        place = places[i]
        columns, row = addresses[shards[place]], rows[place]
        first, size = bounds(columns[1], row)
        ids = cut(columns[0], first, size, like.dtype)
        segment_a_length = np.int32(cut(columns[2], row, 1, np.uint16)[0])
        end = start + size
        out, positions, segments = (
            input_ids[start:end],
            position_ids[start:end],
            segment_ids[start:end],
        )
        for j in range(size):
            out[j] = ids[j]
        for j in range(size):
            positions[j] = j
        for j in range(size):
            segments[j] = np.int32(j) >= segment_a_length
        cls_positions[i] = start
        pair_labels[i] = cut(columns[3], row, 1, np.uint8)[0]
        if is_masked_anew:
            words, key = (word_bits(columns, first + size), first), keys[place]
            count = mask_example(ids, words, quotas[place], key[0], key[1], rule, scratch)
            for j in range(count):
                position = scratch.positions[j]
                masked_positions[masked + j] = start + position
                labels[masked + j] = ids[position]
                out[position] = scratch.new_ids[j]
        else:
            first, count = bounds(columns[5], row)
            stored_positions = cut(columns[4], first, count, np.uint16)
            stored_ids = cut(columns[6], first, count, like.dtype)
            for j in range(count):
                position = np.int64(stored_positions[j])
                masked_positions[masked + j] = start + position
                labels[masked + j] = ids[position]
                out[position] = stored_ids[j]
        masked += count
        start = cu_seqlens[i + 1] = end
    for i in range(len(places), sequences):  # filler, then slots of length 0
        end = min(start + max_seqlen, tokens)
        cls_positions[i] = start if end > start else 0
        pair_labels[i] = IGNORED
        for j in range(start, end):
            input_ids[j] = segment_ids[j] = 0
            position_ids[j] = j - start
        start = cu_seqlens[i + 1] = end
    masked_positions[masked:] = 0
    labels[masked:] = IGNORED
    return masked
