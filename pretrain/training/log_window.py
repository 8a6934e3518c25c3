"""The training metrics between two records."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from data_prep.core.objectives import Pairing
from pretrain.data.checksums import batch_checksum
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed.ranks import Ranks
from pretrain.metrics.throughput import Meter, Work
from pretrain.training.evaluation import means

clock = time.perf_counter  # seconds; benchmarks on a shared machine count the processor's


@dataclass
class LogWindow:
    """Sums over the steps since the last record, divided once when they are logged."""

    sums: Tensor  # (4,) float64 on the device, of this rank's micro-batches: see StepResult
    first_position: int  # of its first example in the stream
    slots: int  # tokens that one micro-batch of each rank has room for
    checksum: int | None = None  # of this rank's batches; None: not asked for
    work: Work = field(default_factory=Work)
    started: float = field(default_factory=lambda: clock())

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time in this context as a wait for data."""
        asked = clock()
        yield
        self.work.waited_s += clock() - asked

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time in this context as training."""
        paused = clock()
        yield
        self.started += clock() - paused

    def add(self, batch: GlobalBatch, sums: Tensor) -> None:
        """Add one update: its global batch, and this rank's sums."""
        self.sums += sums
        self.work.add(batch, len(batch.micro_batches) * self.slots)
        if self.checksum is not None:
            self.checksum += batch_checksum(batch)

    def metrics(self, ranks: Ranks, meter: Meter, pairing: Pairing) -> dict[str, float]:
        """Means over the window's examples on all ranks, and throughput. Collective.

        Waits for the device.
        """
        *totals, waited_s = ranks.sum([*self.sums.tolist(), self.work.waited_s])
        seconds = clock() - self.started
        return {
            **means(totals, self.work.masked, self.work.sequences, "train", pairing),
            **meter.metrics(self.work, seconds, waited_s / ranks.world_size),
        }
