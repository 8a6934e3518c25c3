"""One rank of a run with a fault inside, so that `pretrain.run` itself needs no code for faults.

    python -m scripts.drills.faulty_rank nan|without|small_disk|slow_disk OVERRIDES...

The file that DRILL_INJECTED names is made at the moment of the fault.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pretrain import run
from pretrain.data.train_loader import GlobalBatch, TrainLoader
from pretrain.distributed.ranks import exit_with
from pretrain.engine.engine import Engine, StepResult
from scripts.drills.harness import BATCH, FULL_BATCHES, NAN_BATCH, SLOW_BATCH

LARGEST_FILE = 200_000  # bytes: metrics and logs, but no weights
FLUSH_S = 0.5

Step = Callable[[Engine, GlobalBatch, float], StepResult]
_train_step = Engine.train_step


def nan(engine: Engine, batch: GlobalBatch, rate: float) -> StepResult:
    """Make the loss of one batch NaN, on rank 1 alone."""
    if batch.position != NAN_BATCH or engine.ranks.rank != 1:
        return _train_step(engine, batch, rate)
    _injected()
    hook = engine._engine.module.register_forward_hook(
        lambda module, inputs, outputs: (outputs[0] * float("nan"), *outputs[1:])
    )
    try:
        return _train_step(engine, batch, rate)
    finally:
        hook.remove()


def small_disk(engine: Engine, batch: GlobalBatch, rate: float) -> StepResult:
    """Let large writes of rank 0 fail half-way for some batches, by RLIMIT_FSIZE."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if batch.position == FULL_BATCHES[0] and engine.ranks.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, hard))
        _injected()
    if batch.position == FULL_BATCHES[1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    return _train_step(engine, batch, rate)


def slow_disk(engine: Engine, batch: GlobalBatch, rate: float) -> StepResult:
    """Slow down every fsync, so that a save can be interrupted half-way."""
    fsync = os.fsync

    def slowly(descriptor: int) -> None:
        time.sleep(FLUSH_S)
        fsync(descriptor)

    if batch.position == SLOW_BATCH:
        os.fsync = slowly  # type: ignore[assignment]
    return _train_step(engine, batch, rate)


STEPS: dict[str, Step] = {"nan": nan, "small_disk": small_disk, "slow_disk": slow_disk}


def _pass_over_a_batch() -> None:
    """Leave NAN_BATCH out: no fault, but the run that `nan` is compared with."""
    batches = TrainLoader.batches

    def without(
        self: TrainLoader, first_position: int, skipped: Sequence[Sequence[int]] = ()
    ) -> Iterator[GlobalBatch]:
        return batches(self, first_position, [*skipped, (NAN_BATCH, NAN_BATCH + BATCH)])

    TrainLoader.batches = without  # type: ignore[method-assign]


def _injected() -> None:
    if path := os.environ.get("DRILL_INJECTED"):
        Path(path).touch()


def main(argv: Sequence[str]) -> int:
    fault, *overrides = argv
    if fault == "without":
        _pass_over_a_batch()
    else:
        step: Any = STEPS[fault]
        Engine.train_step = step  # type: ignore[method-assign]
    return run.main(overrides)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
