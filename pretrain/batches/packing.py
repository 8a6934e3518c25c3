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


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: N sequences of T tokens in all, M of them masked. Integers throughout."""

    input_ids: Tensor  # (T,) int64, masks applied
    position_ids: Tensor  # (T,) int64, 0 at each [CLS]
    segment_ids: Tensor  # (T,) int64, 0 up to and with the first [SEP] of a sequence, then 1
    cu_seqlens: Tensor  # (N + 1,) int32: sequence i is [cu_seqlens[i]:cu_seqlens[i + 1]]
    lengths: list[int]  # N lengths in tokens, on the host: no device is asked to cut a row
    masked_positions: Tensor  # (M,) int64, ascending, into the packed row
    labels: Tensor  # (M,) int64, the ids that stood at masked_positions
    next_sentence_labels: Tensor  # (N,) int64, 0 = B follows A, 1 = random or swapped (Pairing)

    @property
    def num_tokens(self) -> int:
        """T, all of them real."""
        return self.input_ids.numel()

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def num_masked(self) -> int:
        """M."""
        return self.labels.numel()

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


def pack(examples: Examples) -> PackedBatch:
    """Lay N examples end to end, in their order, with their masks applied.

    Raises ValueError on no example at all or on one without tokens: attention over zero keys is NaN.
    """
    offsets = examples.offsets
    lengths_N = np.diff(offsets)
    if not len(lengths_N):
        raise ValueError("a micro-batch needs one example at least; none was given")
    if (lengths_N <= 0).any():
        raise ValueError(f"example {int(np.argmin(lengths_N))} of a micro-batch has no tokens")
    starts_T = np.repeat(offsets[:-1], lengths_N)
    position_ids_T = np.arange(offsets[-1], dtype=np.int64) - starts_T
    segment_ids_T = position_ids_T >= np.repeat(examples.segment_a_lengths, lengths_N)
    input_ids_T = examples.input_ids.astype(np.int64)
    masked_positions_M = examples.masked_indices
    labels_M = input_ids_T[masked_positions_M]
    input_ids_T[masked_positions_M] = examples.masked_input_ids
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids_T),
        position_ids=torch.from_numpy(position_ids_T),
        segment_ids=_int64(segment_ids_T),
        cu_seqlens=torch.from_numpy(offsets.astype(np.int32)),
        lengths=lengths_N.tolist(),
        masked_positions=_int64(masked_positions_M),
        labels=torch.from_numpy(labels_M),
        next_sentence_labels=_int64(examples.next_sentence_labels),
    )


def _int64(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))
