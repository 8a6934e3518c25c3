"""Micro-batches in static shapes for compiled code."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.stores.shard_reader import Rows, Shards
from data_prep.stores.shards import ShardsManifest
from pretrain.data.packing import NewMasks, PackedBatch, Shape, pack_rows


class Shapes:
    """Static sizes for micro-batches, the same for nearly all, so that few programs are compiled.

    Lengths vary between micro-batches, so there are slots for 1.3 times as many sequences as fit at
    the mean length.
    """

    def __init__(self, manifest: ShardsManifest, split: str) -> None:
        totals = manifest.splits[split]
        self._sequences_per_token = 1.3 * totals.rows / max(1, totals.tokens)
        self._rate = manifest.masking.rate
        self._max_seqlen = manifest.seq_len
        self.used: set[Shape] = set()

    def around(self, real: Shape, tokens: int) -> Shape:
        """The usual shape of `tokens` tokens, or one with more slots if `real` needs them."""
        fillers = -(-(tokens - real.tokens) // self._max_seqlen)
        usual = math.ceil(self._sequences_per_token * tokens) + 8
        return Shape(
            tokens,
            _rounded_up(max(usual, real.sequences + fillers), 16),
            _rounded_up(max(math.ceil(self._rate * tokens), real.masked), 64),
        )


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class Packer:
    """Packs rows of one split for one rank, in static shapes or in their own sizes."""

    def __init__(self, shards: Shards, static: bool) -> None:
        self._max_seqlen = shards.manifest.seq_len
        self._shapes = Shapes(shards.manifest, shards.split) if static else None
        self._pinned = torch.cuda.is_available()

    @property
    def num_shapes(self) -> int:
        """Static shapes used so far."""
        return 0 if self._shapes is None else len(self._shapes.used)

    def pack(
        self,
        rows: Rows,
        places: NDArray[np.int64],
        tokens: int,
        new_masks: NewMasks | None = None,
    ) -> PackedBatch:
        """Pack one micro-batch; a static one is filled up to `tokens`."""
        shapes = self._shapes
        if shapes is None:
            return pack_rows(rows, places, self._max_seqlen, _as_it_is, new_masks, self._pinned)

        def around(real: Shape) -> Shape:
            return shapes.around(real, tokens)

        packed = pack_rows(rows, places, self._max_seqlen, around, new_masks, self._pinned)
        shapes.used.add(Shape(tokens, len(packed.lengths), len(packed.labels)))
        return packed


def _as_it_is(real: Shape) -> Shape:
    return real


def static_tokens(most_tokens: int, token_budget: int) -> int:
    """`most_tokens`, those of the fullest micro-batch, rounded up to a multiple of 256."""
    return min(token_budget, _rounded_up(most_tokens, 256))
