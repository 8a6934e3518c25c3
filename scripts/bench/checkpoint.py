"""What saving a checkpoint costs: how long training stands still, and how steps slow down meanwhile.

    python -m scripts.bench.checkpoint [model=base] [zero_stage=1] [folder=FOLDER] [step_ms=0]
    torchrun --nproc-per-node 8 -m scripts.bench.checkpoint sequences=64

Trains on made-up micro-batches, saves twice in the background (the first save meets memory that is
new to the file system), and once as a run without a background would: waiting. The share is that of
a step at checkpoint.every_steps, its default or as given: of the median step measured, or of one of
`step_ms` known from elsewhere. `folder` decides which disk is measured.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.core.config import compose
from pretrain.checkpoint.progress import Progress
from pretrain.checkpoint.saver import Saver
from pretrain.config.settings import Settings
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed import ranks as ranks_module
from pretrain.engine.engine import Engine
from pretrain.model.bert import BertForPreTraining
from scripts.baselines.synthetic_batch import VOCAB_SIZE, synthetic_batch
from scripts.baselines.synthetic_shards import draw_lengths
from scripts.bench.harness import Arguments, arguments, machine

DEFAULTS: Arguments = {
    "model": "base",
    "zero_stage": 1,
    "precision": "auto",
    "sequences": 8,  # of a rank's micro-batch; a step has one
    "steps": 10,  # from which the median is taken
    "every_steps": 1000,
    "step_ms": 0.0,  # 0: the one measured
    "folder": "",  # in which to write; "": the system's for temporary files
}


def main() -> None:
    given = arguments(sys.argv[1:], DEFAULTS)
    ranks = ranks_module.start(timeout_minutes=10)
    settings = _settings(given)
    model = BertForPreTraining(settings.model, VOCAB_SIZE, settings.data.pairs)
    model.initialize(torch.Generator().manual_seed(0))
    engine = Engine(model, settings.optim, settings.engine, ranks)
    lengths = draw_lengths("wikipedia", int(given["sequences"]), np.random.default_rng(1))
    batch = synthetic_batch(lengths, ranks.world_size)
    events: list[dict[str, Any]] = []
    folder = Path(ranks.broadcast(tempfile.mkdtemp(dir=str(given["folder"]) or None)))
    try:
        saver = Saver(
            folder,
            engine,
            ranks,
            settings.checkpoint,
            {},
            lambda kind, **facts: events.append(facts),
        )
        _steps(engine, batch, 3)
        usual = statistics.median(_steps(engine, batch, int(given["steps"])))
        during = [_saved_in_the_background(saver, engine, batch, number) for number in (1, 2)]
        saver.save(Progress(step=3), is_last=True)
    finally:
        if ranks.rank == 0:
            shutil.rmtree(folder)
    if ranks.rank == 0:
        _report(given, ranks.world_size, ranks.device, usual, during, events)
    ranks.stop()


def _settings(given: Arguments) -> Settings:
    names = ("zero_stage", "precision")
    overrides = [f"engine.{name}={given[name]}" for name in names]
    settings, _ = compose("config", Settings, [f"+model={given['model']}", *overrides])
    return settings


def _step(engine: Engine, batch: GlobalBatch) -> float:
    started = time.perf_counter()
    engine.train_step(batch, 1e-4)
    if engine.ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _steps(engine: Engine, batch: GlobalBatch, count: int) -> list[float]:
    return [_step(engine, batch) for _ in range(count)]


def _saved_in_the_background(
    saver: Saver, engine: Engine, batch: GlobalBatch, number: int
) -> list[float]:
    """The seconds of each step that was made while the checkpoint was being written."""
    saver.save(Progress(step=number))
    steps = [_step(engine, batch)]
    while not engine.ranks.any(saver.has_ended):
        steps.append(_step(engine, batch))
    saver.settle()
    return steps


def _report(
    given: Arguments,
    world_size: int,
    device: torch.device,
    usual: float,
    during: list[list[float]],
    events: list[dict[str, Any]],
) -> None:
    step = float(given["step_ms"]) / 1000 or usual
    interval = step * int(given["every_steps"])
    rows = []
    for how, saved, steps in zip(
        ("first, background", "second, background", "waiting"), events, [*during, []], strict=True
    ):
        slower = sum(steps) - usual * len(steps)
        rows.append(
            {
                "save": how,
                "gigabytes": saved["bytes"] / 1e9,
                "stands_still_s": saved["seconds_blocked"],
                "written_s": saved["seconds_written"],
                "longest_step_meanwhile_s": max(steps, default=0.0),
                "slower_meanwhile_s": slower,
                "share": saved["seconds_blocked"] / interval,
                "share_with_slower_steps": (saved["seconds_blocked"] + slower) / interval,
            }
        )
    print(
        f"median step {usual:.3f} s; {given['every_steps']} steps of {step:.3f} s: {interval:,.0f} s"
    )
    for row in rows:
        print(
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v:18}" for k, v in row.items())
        )
    facts = {"settings": given, "ranks": world_size, "device": str(device), "median_step_s": usual}
    print(json.dumps({"benchmark": "checkpoint", **facts, "saves": rows, "machine": machine()}))


if __name__ == "__main__":
    ranks_module.exit_with(main)
