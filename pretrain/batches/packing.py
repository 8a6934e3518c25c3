"""Packing: examples end to end in one row of tokens, without padding, as tensors.

Each sequence keeps its own position ids from 0, and `cu_seqlens` holds its borders so that attention
stays inside it: the logits of a packed sequence are those of the sequence alone.

Suffixes: T tokens of the packed row, N sequences, M masked positions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from data_prep.shards import Examples


IGNORED = -100  # a label that counts nothing: torch's own number for it


@dataclass(frozen=True)
class Shape:
    """Static sizes of a micro-batch, for kernels that are compiled once for each."""

    tokens: int
    sequences: int  # slots, of which filler takes some
    masked: int


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: N sequences of T tokens in all, M of them masked. Integers throughout.

    Behind the real sequences there may be filler, up to a static `Shape`: sequences of filler tokens
    to the end of the row, then slots of length 0. Filler has no label, so that it adds nothing to a
    loss, and no real token sees it.
    """

    input_ids: Tensor  # (T,) int64, masks applied
    position_ids: Tensor  # (T,) int64, 0 at each [CLS]
    segment_ids: Tensor  # (T,) int64, 0 up to and with the first [SEP] of a sequence, then 1
    cu_seqlens: Tensor  # (N + 1,) int32: sequence i is [cu_seqlens[i]:cu_seqlens[i + 1]]
    lengths: list[int]  # N lengths in tokens, on the host: no device is asked to cut a row
    cls_positions: Tensor  # (N,) int64, where each sequence begins; 0 for a slot of length 0
    masked_positions: Tensor  # (M,) int64, ascending, into the packed row; 0 in unused slots
    labels: Tensor  # (M,) int64, the ids that stood at masked_positions; IGNORED in unused slots
    # (N,) int64, 0 = B follows A, 1 = random or swapped (Pairing); IGNORED where nothing is real
    next_sentence_labels: Tensor
    max_seqlen: int  # the data's seq_len, not this batch's longest: compiled code holds it fixed
    num_tokens: int  # of real sequences, as are the next two
    num_sequences: int
    num_masked: int

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`; the copy runs asynchronously from pinned memory."""
        return self._with({k: v.to(device, non_blocking=True) for k, v in self._tensors().items()})

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory, from which a GPU copies by itself. Needs CUDA."""
        return self._with({name: value.pin_memory() for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def _with(self, tensors: dict[str, Any]) -> PackedBatch:
        return dataclasses.replace(self, **tensors)


def pack(examples: Examples, max_seqlen: int, shape: Shape | None = None) -> PackedBatch:
    """Lay N examples end to end, in their order, with their masks applied, and fill up to `shape`.

    Raises ValueError on no example at all, on one without tokens (attention over zero keys is NaN)
    and where a shape is too small.
    """
    lengths_N = np.diff(examples.offsets)
    if not len(lengths_N):
        raise ValueError("a micro-batch needs one example at least; none was given")
    if (lengths_N <= 0).any():
        raise ValueError(f"example {int(np.argmin(lengths_N))} of a micro-batch has no tokens")
    real = Shape(int(lengths_N.sum()), len(lengths_N), len(examples.masked_positions))
    shape = shape or real
    all_lengths = np.array([*lengths_N, *filler_lengths(real, shape, max_seqlen)], np.int64)
    offsets = np.concatenate([[0], np.cumsum(all_lengths)])
    starts_T = np.repeat(offsets[:-1], all_lengths)
    position_ids_T = np.arange(shape.tokens, dtype=np.int64) - starts_T
    segment_a_lengths = _filled(examples.segment_a_lengths, shape.sequences, max_seqlen)
    segment_ids_T = position_ids_T >= np.repeat(segment_a_lengths, all_lengths)
    input_ids_T = _filled(examples.input_ids, shape.tokens, 0)
    masked_indices = examples.masked_indices
    labels_M = input_ids_T[masked_indices]
    input_ids_T[masked_indices] = examples.masked_input_ids
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids_T),
        position_ids=torch.from_numpy(position_ids_T),
        segment_ids=torch.from_numpy(segment_ids_T.astype(np.int64)),
        cu_seqlens=torch.from_numpy(offsets.astype(np.int32)),
        lengths=all_lengths.tolist(),
        cls_positions=torch.from_numpy(np.where(all_lengths > 0, offsets[:-1], 0)),
        masked_positions=torch.from_numpy(_filled(masked_indices, shape.masked, 0)),
        labels=torch.from_numpy(_filled(labels_M, shape.masked, IGNORED)),
        next_sentence_labels=torch.from_numpy(
            _filled(examples.next_sentence_labels, shape.sequences, IGNORED)
        ),
        max_seqlen=max_seqlen,
        num_tokens=real.tokens,
        num_sequences=real.sequences,
        num_masked=real.masked,
    )


def filler_lengths(real: Shape, shape: Shape, max_seqlen: int) -> list[int]:
    """Lengths of the sequences behind the real ones: `max_seqlen` tokens at most, then 0.

    Raises ValueError where the shape has too little room.
    """
    rest = shape.tokens - real.tokens
    lengths = [max_seqlen] * (rest // max_seqlen) + [rest % max_seqlen] * (rest % max_seqlen > 0)
    unused = shape.sequences - real.sequences - len(lengths)
    if rest < 0 or unused < 0 or shape.masked < real.masked:
        raise ValueError(
            f"a micro-batch of {real} does not fit {shape}, whose rest takes {len(lengths)} filler "
            f"sequences of {max_seqlen} tokens at most"
        )
    return lengths + [0] * unused


def _filled(values: NDArray[Any], size: int, filler: int) -> NDArray[np.int64]:
    """(size,) int64: `values`, then `filler`."""
    filled = np.full(size, filler, np.int64)
    filled[: len(values)] = values
    return filled
