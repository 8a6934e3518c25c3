"""The cost of a checkpoint: how long training pauses, and how much slower steps are meanwhile.

    python -m scripts.bench.checkpoint [model=base] [zero_stage=1] [precision=auto] [sequences=8]
        [steps=10] [every_steps=1000] [step_ms=0] [folder=FOLDER]
    torchrun --nproc-per-node 8 -m scripts.bench.checkpoint sequences=64

Trains on random micro-batches of `sequences` sequences. Saves twice in the background (the first
save meets memory that is new to the file system), and once waiting, as a run without a background
would. The share is that of a step if every `every_steps` steps are followed by a save. The step is
the median of `steps` measured ones, or one of `step_ms` known from elsewhere. `folder` decides
which disk is measured; the default is the system's folder for temporary files.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np

from pretrain.checkpoint.progress import Progress
from pretrain.checkpoint.saver import Saver
from pretrain.data.train_loader import GlobalBatch
from pretrain.engine.engine import Engine
from scripts.baselines.synthetic_shards import draw_lengths, synthetic_batch
from scripts.bench.parts import harness
from scripts.bench.parts.harness import Record

SAVES = ("first, background", "second, background", "waiting")


@harness.benchmark("checkpoint")
def main(
    model: str = "base",
    zero_stage: int = 1,
    precision: str = "auto",
    sequences: int = 8,
    steps: int = 10,
    every_steps: int = 1000,
    step_ms: float = 0.0,
    folder: str = "",
) -> Record | None:
    """The benchmark; rank 0 has its record."""
    overrides = (f"engine.zero_stage={zero_stage}", f"engine.precision={precision}")
    settings = harness.settings_of(model, *overrides)
    lengths = draw_lengths("wikipedia", sequences, np.random.default_rng(1))
    events: list[Record] = []
    with harness.joined_ranks() as ranks:
        engine = harness.engine_of(settings, ranks)
        batch = synthetic_batch(lengths, ranks.world_size)
        into = Path(ranks.broadcast(tempfile.mkdtemp(dir=folder or None)))
        try:
            saver = Saver(
                into,
                engine,
                ranks,
                settings.checkpoint,
                {},
                lambda _, **facts: events.append(facts),
            )
            for _ in range(3):
                _step(engine, batch)
            usual = statistics.median(_step(engine, batch) for _ in range(steps))
            during = [_steps_during_a_save(saver, engine, batch, number) for number in (1, 2)]
            saver.save(Progress.begin(step=3), is_last=True)
        finally:
            if ranks.rank == 0:
                shutil.rmtree(into)
    if ranks.rank != 0:
        return None
    step = step_ms / 1000 or usual
    rows = [
        _row(how, saved, meanwhile, usual, step * every_steps)
        for how, saved, meanwhile in zip(SAVES, events, [*during, []], strict=True)
    ]
    print(f"median step {usual:.3f} s; {every_steps} steps of {step:.3f} s: "
          f"{step * every_steps:,.0f} s")  # fmt: skip
    for row in rows:
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{v:18}" for k, v in row.items())
        print("  ".join(cells))
    return {
        "ranks": ranks.world_size,
        "device": str(ranks.device),
        "median_step_s": usual,
        "saves": rows,
    }


def _step(engine: Engine, batch: GlobalBatch) -> float:
    """Seconds of a step, by the wall clock."""
    seconds = harness.stopwatch(engine.ranks.device, "wall")
    return seconds(lambda: engine.train_step(batch, 1e-4))


def _steps_during_a_save(
    saver: Saver, engine: Engine, batch: GlobalBatch, number: int
) -> list[float]:
    """The seconds of each step made while the checkpoint was being written."""
    saver.save(Progress.begin(step=number))
    steps = [_step(engine, batch)]
    while not engine.ranks.any(saver.has_ended):
        steps.append(_step(engine, batch))
    saver.settle()
    return steps


def _row(how: str, saved: Record, steps: list[float], usual: float, interval: float) -> Record:
    slower = sum(steps) - usual * len(steps)
    return {
        "save": how,
        "gigabytes": saved["bytes"] / 1e9,
        "stands_still_s": saved["seconds_blocked"],
        "written_s": saved["seconds_written"],
        "longest_step_meanwhile_s": max(steps, default=0.0),
        "slower_meanwhile_s": slower,
        "share": saved["seconds_blocked"] / interval,
        "share_with_slower_steps": (saved["seconds_blocked"] + slower) / interval,
    }


if __name__ == "__main__":
    harness.run(main)
