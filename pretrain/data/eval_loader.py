"""Held-out examples, each once, in equally many micro-batches on every rank."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.stores.shard_reader import Shards
from pretrain.data.packing import PackedBatch, Shape
from pretrain.data.static_shapes import Packer, one_shape

_FILLER = (0, 1)  # the examples of a batch that is not counted


@dataclass(frozen=True)
class HeldOutBatch:
    """One rank's forward pass of an evaluation."""

    batch: PackedBatch
    source: int  # of its examples: its place in the loader's `sources`
    is_counted: bool  # False: it only keeps this rank in step with the others


@dataclass(frozen=True)
class HeldOutSource:
    """The evaluated examples of one source, over all ranks."""

    name: str  # "": the shards name none
    num_sequences: int
    num_masked: int


def held_out_ids(num_examples: int, max_examples: int | None) -> NDArray[np.int64]:
    """The examples that are evaluated, ascending: all, or `max_examples` spread evenly over all.

    They are stored document by document and source by source: the first ones would be of a few
    documents of one source.
    """
    size = num_examples if max_examples is None else min(max_examples, num_examples)
    return np.arange(size, dtype=np.int64) * num_examples // max(size, 1)


class EvalLoader:
    """Held-out examples in stored order with their static masks, cut for the ranks.

    Every rank gets equally many micro-batches: ranks that share the weights (ZeRO 3) must all take
    part in every forward pass. Where the last round has none left for a rank, it gets one that is
    not counted. The examples of a micro-batch are of one source. `num_sequences` and `num_masked`
    are over all ranks.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        rank: int,
        world_size: int,
        token_budget: int,
        max_examples: int | None,
        static: bool = False,
        pinned: bool = False,
    ) -> None:
        """`max_examples` None: all. `static`: micro-batches all have one shape, for compiled code.
        `pinned`: they are in page-locked memory, which needs CUDA.

        Raises SettingsError where there is no held-out example, or one is over the budget."""
        ids = held_out_ids(shards.num_examples, max_examples)
        if not len(ids):
            raise SettingsError(
                f"{shards.folder} holds no held-out example; raise heldout_fraction and run "
                "data_prep.encode, then data_prep.build with replace=true"
            )
        self._rows = shards.rows(ids)
        lengths = self._rows.lengths
        if (longest := int(lengths.max())) > token_budget:
            raise SettingsError(
                f"engine.tokens_per_micro_batch={token_budget} cannot hold a held-out example of "
                f"{longest} tokens; set engine.tokens_per_micro_batch={longest} or more"
            )
        masked = self._rows.masked_counts
        self.num_sequences = len(ids)
        self.num_masked = int(masked.sum())
        names, source_of = _sources(shards, self._rows.shards)
        self._source_of = source_of
        self.sources = [
            HeldOutSource(
                name, int((source_of == number).sum()), int(masked[source_of == number].sum())
            )
            for number, name in enumerate(names)
        ]
        runs = _consecutive(lengths, source_of, token_budget)
        shapes = None
        if static:
            sizes = [
                Shape(int(lengths[first:end].sum()), end - first, int(masked[first:end].sum()))
                for first, end in (*runs, _FILLER)
            ]
            shapes = one_shape(sizes, token_budget, shards.manifest.seq_len)
        self._packer = Packer(shards, shapes, pinned)
        num_rounds = -(-len(runs) // world_size)
        self._mine = runs[rank::world_size]
        self._num_fillers = num_rounds - len(self._mine)

    def __len__(self) -> int:
        """Micro-batches of this rank, and of every other."""
        return len(self._mine) + self._num_fillers

    def __iter__(self) -> Iterator[HeldOutBatch]:
        for first, end in self._mine:
            yield self._batch(first, end)
        for _ in range(self._num_fillers):
            yield self._batch(*_FILLER, is_counted=False)

    def _batch(self, first: int, end: int, is_counted: bool = True) -> HeldOutBatch:
        batch = self._packer.pack(self._rows, np.arange(first, end))
        return HeldOutBatch(batch, int(self._source_of[first]), is_counted)


def _sources(shards: Shards, shard_of: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """The names of the sources, ascending, and the source of each example by its shard."""
    numbers, place = np.unique(shard_of, return_inverse=True)
    names, source_of_shard = np.unique(shards.sources(numbers.tolist()), return_inverse=True)
    return names.tolist(), source_of_shard[place]


def _consecutive(
    lengths: NDArray[np.int64], source_of: NDArray[np.int64], token_budget: int
) -> list[tuple[int, int]]:
    """Cut examples in their order into runs [first, end) of one source and `token_budget` tokens at
    most."""
    ends = np.cumsum(lengths)
    changes = [*(np.flatnonzero(np.diff(source_of)) + 1).tolist(), len(lengths)]
    runs, first, before = [], 0, 0
    while first < len(lengths):
        end = int(np.searchsorted(ends, before + token_budget, side="right"))
        end = min(end, changes[bisect.bisect_right(changes, first)])
        runs.append((first, end))
        first, before = end, int(ends[end - 1])
    return runs
