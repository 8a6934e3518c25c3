"""Micro-batches in static shapes for compiled code.

The shapes of a run are a closed list, known before its first step: a few token counts where its
batches are, and the most that a micro-batch may hold. Every micro-batch is filled up to the first
that holds it. So the number of compiled programs is bounded, whatever the token budget, and all can
be compiled at the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.stores.shard_reader import Rows, Shards
from data_prep.stores.shard_records import ShardsManifest
from pretrain.data.packing import NewMasks, PackedBatch, Shape, num_fillers, pack_rows

MOST_SIZES = 16  # token counts of the shapes that are compiled at the start
_LEAST_STEP = 256  # tokens between two of them
_SEQUENCES, _MASKED = 16, 64  # slots are multiples of these
_SHORTEST = 3  # tokens of an example: [CLS], one token, [SEP]


class Shapes:
    """The static shapes of one split's micro-batches.

    `usual` are compiled at the start, by ascending tokens. `rare` have the tokens of the last of
    them, with twice the slots and so on: for a micro-batch of very many short sequences.
    """

    def __init__(self, usual: Sequence[Shape], max_seqlen: int) -> None:
        self.usual, self._max_seqlen = list(usual), max_seqlen
        self.rare: list[Shape] = []
        most = largest = self.usual[-1]
        sequences = rounded_up(largest.tokens // _SHORTEST + 1, _SEQUENCES)
        while most.sequences < sequences or most.masked < largest.tokens:
            most = Shape(
                largest.tokens,
                max(largest.sequences, min(sequences, 2 * most.sequences)),
                max(largest.masked, min(largest.tokens, 2 * most.masked)),
            )
            self.rare.append(most)

    def holding(self, real: Shape) -> Shape:
        """The first shape that holds a micro-batch of these sizes.

        Every one fits of examples of three tokens or more that is no longer than the token budget.
        """
        for shape in (*self.usual, *self.rare):
            rest = shape.tokens - real.tokens
            if rest < 0 or shape.masked < real.masked:
                continue
            if real.sequences + num_fillers(rest, self._max_seqlen) <= shape.sequences:
                return shape
        raise ValueError(f"no shape up to {shape} holds a micro-batch of {real}")


def usual_shapes(
    manifest: ShardsManifest,
    mean_length: float,
    sizes: Sequence[int],
    mask_rate: float | None = None,
) -> Shapes:
    """Shapes of these token counts, ascending; the last is the most that a micro-batch has.

    `mean_length`: tokens per sequence of the micro-batches; `mask_rate`: the largest share of them
    that is masked; None: that of the shards.
    Lengths vary between micro-batches, so there are slots for 1.3 times as many sequences as fit at
    the mean length.
    """
    longest, sequences_per_token = manifest.seq_len, 1.3 / mean_length
    mask_rate = manifest.masking.rate if mask_rate is None else mask_rate
    # the share of long sequences, which are most tokens, is that of the longest: 77 of 512
    rate = max(mask_rate, round(mask_rate * longest) / longest)
    shapes = [
        Shape(
            tokens,
            rounded_up(math.ceil(sequences_per_token * tokens) + 8, _SEQUENCES),
            rounded_up(math.ceil(rate * tokens), _MASKED),
        )
        for tokens in sizes
    ]
    return Shapes(shapes, longest)


def one_shape(sizes: Sequence[Shape], token_budget: int, max_seqlen: int) -> Shapes:
    """A single shape for known micro-batches of these sizes."""
    tokens = min(token_budget, rounded_up(max(real.tokens for real in sizes), _LEAST_STEP))
    slots = max(real.sequences + num_fillers(tokens - real.tokens, max_seqlen) for real in sizes)
    masked = max(real.masked for real in sizes)
    shape = Shape(tokens, rounded_up(slots, _SEQUENCES), rounded_up(masked, _MASKED))
    return Shapes([shape], max_seqlen)


def spread_sizes(seen: Sequence[int], most: int) -> list[int]:
    """At most MOST_SIZES token counts for micro-batches such as those of the sizes `seen`.

    `most` is the largest that there may be, and the last of them. The others are multiples of a
    step: one for each size seen, and one above. The step is 256 tokens, or more where the sizes
    seen are far apart.
    """
    low, high = min(seen), max(seen)
    step = rounded_up(max(_LEAST_STEP, (high - low) // (MOST_SIZES - 4)), _LEAST_STEP)
    sizes = {rounded_up(size, step) for size in (*seen, high + step)}
    return sorted({min(size, most) for size in (*sizes, most)})


def rounded_up(number: int, multiple: int) -> int:
    """The first multiple from `number` on."""
    return -(-number // multiple) * multiple


class Packer:
    """Packs rows for one rank, in static shapes or in their own sizes."""

    def __init__(self, shards: Shards, shapes: Shapes | None, pinned: bool) -> None:
        """`shapes` None: own sizes. `pinned`: in page-locked memory, which needs CUDA."""
        self._max_seqlen = shards.manifest.seq_len
        self.shapes, self._pinned = shapes, pinned
        self._used: set[Shape] = set()

    @property
    def num_shapes(self) -> int:
        """Static shapes used so far."""
        return len(self._used)

    def pack(
        self, rows: Rows, places: NDArray[np.int64], new_masks: NewMasks | None = None
    ) -> PackedBatch:
        """Pack one micro-batch."""
        shape_of = _as_it_is if self.shapes is None else self.shapes.holding
        packed = pack_rows(rows, places, self._max_seqlen, shape_of, new_masks, self._pinned)
        if self.shapes is not None:
            self._used.add(Shape(len(packed.input_ids), len(packed.lengths), len(packed.labels)))
        return packed


def _as_it_is(real: Shape) -> Shape:
    return real
