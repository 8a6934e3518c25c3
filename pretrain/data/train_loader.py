"""Global batches of a run, read, masked, dealt and packed ahead of the training loop.

The content of the global batch that begins at position p of the stream is a pure function of
(shards, seed, p). It depends on no rank, number of ranks or thread, and on the token budget only if
steps are counted in tokens. How it is dealt to ranks depends on these and on the lengths. So the
state of the loader is one integer, the examples taken; resuming starts at it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from data_prep.examples.masking import MaskingRule, dynamic_keys
from data_prep.stores.shard_reader import Rows, Shards
from pretrain.config.checks import check_dealable
from pretrain.config.settings import MaskMode
from pretrain.data.balancing import Deal, deal, deal_prefix, longest_prefix, most_tokens
from pretrain.data.mask_rate import MaskRate
from pretrain.data.mixture import MixedOrder
from pretrain.data.packing import NewMasks, PackedBatch
from pretrain.data.shuffle import ExampleOrder, keyed_hash
from pretrain.data.static_shapes import Packer, Shapes, spread_sizes, usual_shapes

BATCHES_AHEAD = 3
# of the stream's first batches, whose sizes decide the static shapes; all their sequences
_BATCHES_SEEN, _SEQUENCES_SEEN = 256, 1 << 20


@dataclass(frozen=True)
class GlobalBatch:
    """One rank's share of the sequences between two updates, and what all ranks hold together."""

    position: int  # of its first example in the run's stream, from 0
    micro_batches: list[PackedBatch]  # this rank's; every rank has the same number
    dropout_seeds: list[int]  # of each micro-batch, below 2**63; unique in a run
    num_sequences: int  # over all ranks, as are the next three
    num_masked: int
    num_tokens: int
    squared_lengths: int  # sum of the squares of the sequences' lengths
    num_shapes: int = 0  # static shapes that this rank's loader has used so far; 0: not static
    is_counted: bool = True  # False: num_masked is this rank's alone, see `counted`

    @property
    def end(self) -> int:
        """Position of the first example after it."""
        return self.position + self.num_sequences

    def counted(self, total: Callable[[Sequence[float]], Sequence[float]]) -> GlobalBatch:
        """With num_masked of all ranks; `total` is Ranks.sum. Collective unless `is_counted`.

        How many tokens of whole words are masked is known only to the rank that draws them.
        """
        if self.is_counted:
            return self
        return dataclasses.replace(
            self, num_masked=round(total([self.num_masked])[0]), is_counted=True
        )


def passed_over(position: int, ranges: Sequence[Sequence[int]]) -> int:
    """The first position, from this one on, outside all the ranges [first, end)."""
    while (ends := [end for first, end in ranges if first <= position < end]) != []:
        position = max(ends)
    return position


def taken(first: int, end: int, ranges: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """What is left of the positions [first, end) outside all the ranges [first, end), ascending."""
    while (first := passed_over(first, ranges)) < end:
        stop = min([end, *(begin for begin, _ in ranges if begin > first)])
        yield first, stop
        first = stop


class TrainLoader:
    """The stream of global batches, as one rank sees it.

    Each has exactly `global_batch` examples, or, with `tokens_per_step`, as many as fill these
    tokens in micro-batches of `token_budget`. A background thread prepares the next few. `waited_s`
    is how long the training loop has waited for data, in seconds.
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
        masking: MaskMode,
        rule: MaskingRule,
        mixture: MixedOrder | None = None,
        mask_rate: MaskRate | None = None,
        tokens_per_step: int | None = None,
        static: bool = False,
        pinned: bool = False,
    ) -> None:
        """`token_budget` is the most tokens of a micro-batch; `rule` draws the dynamic masks, of
        the share of tokens that `mask_rate` has; None: its own.
        `mixture` is the order of examples; None: all of them once per epoch.

        `static`: micro-batches are filled up to a few sizes, for compiled code. `pinned`: they are
        in page-locked memory, which needs CUDA. Raises SettingsError if a batch cannot be dealt,
        ValueError if there is no example.
        """
        seq_len = shards.manifest.seq_len
        check_dealable(global_batch, world_size, token_budget, seq_len, tokens_per_step)
        self.waited_s = 0.0
        self._shards = shards
        self._global_batch = global_batch
        self._num_bins = None if tokens_per_step is None else tokens_per_step // token_budget
        self._rank = rank
        self._world_size = world_size
        self._token_budget = token_budget
        self._seed = seed
        self._masking = masking
        self._rule = rule
        self._mask_rate = mask_rate
        self._mixture = mixture
        self._order = mixture or ExampleOrder(shards.num_examples, seed)
        totals = shards.manifest.splits[shards.split]
        self._mean_length = mixture.mean_length if mixture else totals.tokens / totals.rows
        self._packer = Packer(shards, self._static_shapes() if static else None, pinned)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="train-loader")

    @property
    def shapes(self) -> Shapes | None:
        """The static shapes of all micro-batches; None: each has its own."""
        return self._packer.shapes

    def _static_shapes(self) -> Shapes:
        """Shapes for the sizes of the stream's first batches, whatever position training is at."""
        manifest, budget = self._shards.manifest, self._token_budget
        sizes = [budget]
        if self._num_bins is None:
            count = min(_BATCHES_SEEN, max(16, _SEQUENCES_SEEN // self._global_batch))
            firsts = range(0, count * self._global_batch, self._global_batch)
            seen = [self._deal(first)[-1].most_tokens for first in firsts]
            most = most_tokens(self._global_batch, self._world_size, manifest.seq_len, budget)
            sizes = spread_sizes(seen, most)
        return usual_shapes(manifest, self._mean_length, sizes, self._rule.rate)

    def batches(
        self, first_position: int, skipped: Sequence[Sequence[int]] = ()
    ) -> Iterator[GlobalBatch]:
        """Global batches from the example at `first_position` on, without an end.

        Examples in the ranges [first, end) of `skipped`, which are those of whole batches, are
        skipped. An error in the background is raised here, at the batch that it concerns.
        """
        stream = self.prepared(first_position, skipped)
        ahead: deque[Future[GlobalBatch]] = deque()
        while True:
            ahead.append(self._pool.submit(next, stream))
            if len(ahead) > BATCHES_AHEAD:
                started = time.perf_counter()
                batch = ahead.popleft().result()
                self.waited_s += time.perf_counter() - started
                yield batch

    def example_ids(self, first: int, end: int) -> NDArray[np.int64]:
        """(N,) numbers, in the train split, of the examples at [first, end) of the stream."""
        return self._order.examples(first, end - first)[1]

    def source_metrics(
        self, first: int, end: int, skipped: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        """The share of each source among the examples at [first, end) that are not skipped.

        Its epoch at `end` counts them all: it is the place in the source's own order. Without a
        mixture there are no metrics.
        """
        if self._mixture is None:
            return {}
        places = self._mixture.places
        seen = np.sum([places(b) - places(a) for a, b in taken(first, end, skipped)], axis=0)
        each = zip(self._mixture.sources, seen, places(end), strict=True)
        return {
            name: float(value)
            for source, count, place in each
            for name, value in (
                (f"data/source/{source.name}/share", count / seen.sum()),
                (f"data/source/{source.name}/epoch", place / source.num_examples),
            )
        }

    def close(self) -> None:
        """Drop the prepared batches and wait for the background thread to end."""
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

    def prepared(
        self, position: int, skipped: Sequence[Sequence[int]] = ()
    ) -> Iterator[GlobalBatch]:
        """As `batches`, but each is prepared on demand in the caller's thread."""
        while True:
            batch = self._prepare(passed_over(position, skipped))
            yield batch
            position = batch.end

    def _deal(self, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Rows, Deal]:
        """Epochs, ids and rows of the batch that begins at `first`, and their deal to the ranks."""
        if self._num_bins is None:
            epochs, ids = self._order.examples(first, self._global_batch)
            rows = self._shards.rows(ids)
            return epochs, ids, rows, deal(rows.lengths, self._world_size, self._token_budget)
        tokens = self._num_bins * self._token_budget
        count = 64 + int(1.1 * tokens / self._mean_length)
        while True:
            epochs, ids = self._order.examples(first, count)
            rows = self._shards.rows(ids)
            if int(rows.lengths.sum()) > tokens:
                break
            count *= 2
        taken = longest_prefix(rows.lengths, self._num_bins, self._token_budget)
        rows = rows.take(np.arange(taken))
        dealt = deal_prefix(rows.lengths, self._world_size, self._num_bins)
        return epochs[:taken], ids[:taken], rows, dealt

    def _rule_at(self, position: int) -> MaskingRule:
        if self._mask_rate is None:
            return self._rule
        return dataclasses.replace(self._rule, rate=self._mask_rate.at(position))

    def _prepare(self, first: int) -> GlobalBatch:
        epochs, ids, rows, dealt = self._deal(first)
        mine = dealt[self._rank]

        new_masks = None
        if self._masking is MaskMode.dynamic:
            keys = dynamic_keys(self._seed, epochs, ids)
            new_masks = NewMasks(keys, rows.lengths, self._rule_at(first))

        def pack(places: NDArray[np.int64]) -> PackedBatch:
            return self._packer.pack(rows, places, new_masks)

        micro_batches = [pack(places) for places in mine]
        num_masked = int(rows.masked_counts.sum()) if new_masks is None else new_masks.total
        is_counted = num_masked is not None or self._world_size == 1
        if num_masked is None:
            num_masked = sum(batch.num_masked for batch in micro_batches)
        return GlobalBatch(
            position=first,
            micro_batches=micro_batches,
            dropout_seeds=[
                keyed_hash("dropout", self._seed, first + int(places[0])) >> 1 for places in mine
            ],
            num_sequences=len(rows),
            num_masked=num_masked,
            num_tokens=int(rows.lengths.sum()),
            squared_lengths=int((rows.lengths**2).sum()),
            num_shapes=self._packer.num_shapes,
            is_counted=is_counted,
        )
