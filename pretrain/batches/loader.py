"""Global batches of a run, read, masked, dealt and packed ahead of the training loop.

What is in global batch k is a pure function of (shards, seed, k): never of the rank, the number of
ranks, the token budget or a thread. The deal of it to ranks is one of these and the lengths. So the
state of the loader is one integer, and starting at it is all that resuming takes.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.masking import MaskingRule, dynamic_keys, mask_examples, num_masked
from data_prep.objectives import MaskingUnit
from data_prep.shards import Examples, Shards
from pretrain.batches.dealing import check_dealable, deal
from pretrain.batches.order import ExampleOrder, keyed_hash
from pretrain.batches.packing import PackedBatch, pack
from pretrain.settings import Masking

BATCHES_AHEAD = 3


@dataclass(frozen=True)
class GlobalBatch:
    """One rank's share of the sequences between two updates, and what all ranks hold together."""

    position: int  # its number in the run's stream, from 0
    micro_batches: list[PackedBatch]  # this rank's; on every rank equally many
    dropout_seeds: list[int]  # of each micro-batch, below 2**63; no two alike in a run
    num_sequences: int  # over all ranks, as are the next three
    num_masked: int
    num_tokens: int
    squared_lengths: int  # sum of the squares of the sequences' lengths


def is_skipped(position: int, ranges: Sequence[Sequence[int]]) -> bool:
    """Whether a batch's number is in one of the ranges [first, end)."""
    return any(first <= position < end for first, end in ranges)


class TrainLoader:
    """The stream of global batches of exactly `global_batch` examples, as one rank sees it.

    A background thread prepares the next few. `waited_s` is how long the loop has waited for data.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        global_batch: int,
        rank: int,
        world_size: int,
        token_budget: int,
        seed: int,
        masking: Masking,
        rule: MaskingRule,
    ) -> None:
        """`token_budget` is the most tokens of a micro-batch; `rule` draws the dynamic masks.

        Raises SettingsError on a batch that cannot be dealt, ValueError where there is no example.
        """
        check_dealable(global_batch, world_size, token_budget, int(shards.manifest["seq_len"]))
        self.waited_s = 0.0
        self._shards = shards
        self._global_batch = global_batch
        self._rank = rank
        self._world_size = world_size
        self._token_budget = token_budget
        self._seed = seed
        self._masking = masking
        self._rule = rule
        self._order = ExampleOrder(shards.num_examples, seed)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="train-loader")

    def batches(
        self, first_position: int, skipped: Sequence[Sequence[int]] = ()
    ) -> Iterator[GlobalBatch]:
        """Global batches from number `first_position` on, without an end.

        Numbers in the ranges [first, end) of `skipped` are passed over. What fails in the
        background is raised here, at the batch that it concerns.
        """
        ahead: deque[Future[GlobalBatch]] = deque()
        for position in itertools.count(first_position):
            if is_skipped(position, skipped):
                continue
            ahead.append(self._pool.submit(self._prepare, position))
            if len(ahead) > BATCHES_AHEAD:
                started = time.perf_counter()
                batch = ahead.popleft().result()
                self.waited_s += time.perf_counter() - started
                yield batch

    def example_ids(self, position: int) -> NDArray[np.int64]:
        """(N,) numbers, in the train split, of the examples of a global batch, over all ranks."""
        return self._order.examples(position * self._global_batch, self._global_batch)[1]

    def close(self) -> None:
        """Drop what is prepared and wait for the background thread to end."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _prepare(self, position: int) -> GlobalBatch:
        first = position * self._global_batch
        epochs, ids = self._order.examples(first, self._global_batch)
        lengths = self._shards.lengths(ids)
        dealt = deal(lengths, self._world_size, self._token_budget)
        mine = dealt[self._rank]
        if self._masking is Masking.static:
            examples = [self._shards.read(ids[places]) for places in mine]
            total_masked = int(self._shards.masked_counts(ids).sum())
        elif self._rule.unit is MaskingUnit.token:
            examples = [self._masked_anew(epochs[places], ids[places]) for places in mine]
            total_masked = int(num_masked(lengths, self._rule).sum())
        else:
            # Whole words do not end where the rate does: the count is known only once the masks
            # are drawn. So every rank draws those of all ranks, which costs world_size times the
            # work in this thread and no communication.
            of_rank = [
                [self._masked_anew(epochs[places], ids[places]) for places in bins]
                for bins in dealt
            ]
            examples = of_rank[self._rank]
            total_masked = sum(len(e.masked_positions) for e in itertools.chain(*of_rank))
        return GlobalBatch(
            position=position,
            micro_batches=[_packed(e, self._shards) for e in examples],
            dropout_seeds=[
                keyed_hash("dropout", self._seed, first + int(places[0])) >> 1 for places in mine
            ],
            num_sequences=self._global_batch,
            num_masked=total_masked,
            num_tokens=int(lengths.sum()),
            squared_lengths=int((lengths.astype(np.int64) ** 2).sum()),
        )

    def _masked_anew(self, epochs: NDArray[np.int64], ids: NDArray[np.int64]) -> Examples:
        """The examples with masks that belong to (seed, epoch, example id)."""
        examples = self._shards.read(ids)
        keys = dynamic_keys(self._seed, epochs, ids)
        positions, offsets, input_ids = mask_examples(
            examples.input_ids, examples.offsets, keys, self._rule
        )
        return replace(
            examples,
            masked_positions=positions,
            masked_offsets=offsets,
            masked_input_ids=input_ids,
        )


@dataclass(frozen=True)
class HeldOutBatch:
    """One rank's forward pass of an evaluation."""

    batch: PackedBatch
    is_counted: bool  # False: it only keeps this rank in step with the others


def held_out_ids(num_examples: int, max_examples: int | None) -> NDArray[np.int64]:
    """The examples that are evaluated, ascending: all, or so many spread evenly over all.

    They are stored document by document and source by source: the first ones would be of a few
    documents of one source.
    """
    size = num_examples if max_examples is None else min(max_examples, num_examples)
    return np.arange(size, dtype=np.int64) * num_examples // max(size, 1)


class EvalLoader:
    """Held-out examples in stored order with their static masks, cut for the ranks.

    Every rank gets equally many micro-batches: ranks that share the weights (ZeRO 3) must all take
    part in every forward pass. Where the last round has none left for a rank, it gets one that is
    not counted. `num_sequences` and `num_masked` are over all ranks.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        rank: int,
        world_size: int,
        token_budget: int,
        max_examples: int | None,
    ) -> None:
        """`max_examples` None: all. Raises ValueError where there is no held-out example."""
        self._ids = ids = held_out_ids(shards.num_examples, max_examples)
        if not len(ids):
            raise ValueError(
                f"{shards.folder} holds no held-out example; raise heldout_fraction and run "
                "data_prep.encode and data_prep.build again"
            )
        lengths = shards.lengths(ids)
        if (longest := int(lengths.max())) > token_budget:
            raise ValueError(
                f"engine.tokens_per_micro_batch={token_budget} cannot hold a held-out example of "
                f"{longest} tokens; set engine.tokens_per_micro_batch={longest} or more"
            )
        self.num_sequences = len(ids)
        self.num_masked = int(shards.masked_counts(ids).sum())
        self._shards = shards
        runs = _consecutive(lengths, token_budget)
        num_rounds = -(-len(runs) // world_size)
        self._mine = runs[rank::world_size]
        self._num_fillers = num_rounds - len(self._mine)

    def __len__(self) -> int:
        """Micro-batches of this rank, and of every other."""
        return len(self._mine) + self._num_fillers

    def __iter__(self) -> Iterator[HeldOutBatch]:
        for first, end in self._mine:
            examples = self._shards.read(self._ids[first:end])
            yield HeldOutBatch(_packed(examples, self._shards), is_counted=True)
        for _ in range(self._num_fillers):
            examples = self._shards.read(np.arange(1))
            yield HeldOutBatch(_packed(examples, self._shards), is_counted=False)


def _consecutive(lengths: NDArray[np.int64], token_budget: int) -> list[tuple[int, int]]:
    """Cut examples in their order into runs [first, end) of `token_budget` tokens at most."""
    ends = np.cumsum(lengths)
    runs, first, before = [], 0, 0
    while first < len(lengths):
        end = int(np.searchsorted(ends, before + token_budget, side="right"))
        runs.append((first, end))
        first, before = end, int(ends[end - 1])
    return runs


def _packed(examples: Examples, shards: Shards) -> PackedBatch:
    """Packed and, for a GPU, in memory from which it copies while the loop goes on."""
    batch = pack(examples, int(shards.manifest["seq_len"]))
    return batch.pin_memory() if torch.cuda.is_available() else batch
