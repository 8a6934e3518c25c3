"""The engine's cost over a plain loop, per parameter and optimizer step.

    python -m scripts.bench.engine [model=small] [optim=adamw] [precision=fp32] [rounds=7]
        [lengths=wikipedia] [sequences=256] [measured=8] [threads=1]
    torchrun --nproc-per-node 2 -m scripts.bench.engine

The plain loop is torch's forward, backward, gradient clipping and fused optimizer, on one
micro-batch of one short sequence. The difference is the engine's own work, which does not grow with
the batch. The last column is its share of a step of `sequences` sequences; their time is that of
`measured` sequences in the plain loop. With several ranks each has its own plain loop, so that the
difference includes the collectives.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from pretrain.config.arguments import run_command
from pretrain.config.settings import Precision, Settings
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed import ranks as ranks_module
from pretrain.distributed.ranks import Ranks
from pretrain.engine.engine import Engine
from scripts.baselines.synthetic_batch import VOCAB_SIZE, synthetic_batch
from scripts.baselines.synthetic_shards import draw_lengths
from scripts.baselines.transformers_step import optimizer_of, packed_model
from scripts.bench.harness import Record, benchmark, in_turn, settings_of, stopwatch

PLAIN, REAL = "plain loop", "plain loop, real batch"
STAGES = (0, 1, 2)


@benchmark("engine")
def main(
    model: str = "small",
    optim: str = "adamw",
    precision: str = "fp32",
    lengths: str = "wikipedia",
    sequences: int = 256,
    measured: int = 8,
    rounds: int = 7,
    threads: int = 1,
) -> Record | None:
    """The benchmark; rank 0 has its record."""
    torch.set_num_threads(threads)
    ranks = ranks_module.start(timeout_minutes=10)
    settings = settings_of(model, f"optim={optim}", f"engine.precision={precision}")
    drawn = draw_lengths(lengths, measured, np.random.default_rng(1))
    short = synthetic_batch(np.array([8]), ranks.world_size)
    steps: dict[str, Callable[[], object]] = {PLAIN: _plain_step(settings, short, ranks.device)}
    for stage in STAGES:
        steps[f"engine, ZeRO {stage}"] = _engine_step(settings, stage, short, ranks)
    real = synthetic_batch(drawn, ranks.world_size)
    steps[REAL] = _plain_step(settings, real, ranks.device)
    seconds = stopwatch(ranks.device)
    times = in_turn({name: partial(seconds, step) for name, step in steps.items()}, rounds)
    record = _report(settings, ranks, times, sequences, measured) if ranks.rank == 0 else None
    ranks.stop()
    return record


def _plain_step(settings: Settings, batch: GlobalBatch, device: torch.device) -> Callable[[], None]:
    model, optim = packed_model(settings, VOCAB_SIZE).to(device), settings.optim
    optimizer = optimizer_of(model, settings)
    (micro_batch,) = batch.micro_batches
    is_bf16 = settings.engine.precision is Precision.bf16_autocast

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            mlm_loss, pair_loss, *_ = model(micro_batch.to(device))
        (mlm_loss / batch.num_masked + pair_loss / batch.num_sequences).backward()
        if optim.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _engine_step(
    settings: Settings, stage: int, batch: GlobalBatch, ranks: Ranks
) -> Callable[[], object]:
    of_stage = dataclasses.replace(settings.engine, zero_stage=stage)
    engine = Engine(packed_model(settings, VOCAB_SIZE), settings.optim, of_stage, ranks)
    return lambda: engine.train_step(batch, 1e-4)


def _report(
    settings: Settings, ranks: Ranks, times: dict[str, list[float]], sequences: int, measured: int
) -> Record:
    count = sum(p.numel() for p in packed_model(settings, VOCAB_SIZE).parameters())
    plain, whole = (statistics.median(times[name]) for name in (PLAIN, REAL))
    step_s = whole + (whole - plain) * (sequences / measured - 1)
    print(f"{count:,} parameters, {ranks.world_size} rank(s); ns per parameter, processor time")
    print(f"{'':18}{'median':>9}{'lowest':>9}{'highest':>9}{'more':>9}{'of a step':>11}")
    more, shares = {}, {}
    for name, seconds in times.items():
        if name == REAL:
            continue
        extra = statistics.median(
            one - base for one, base in zip(seconds, times[PLAIN], strict=True)
        )
        more[name], shares[name] = 1e9 * extra / count, extra / step_s
        numbers = statistics.median(seconds), min(seconds), max(seconds), extra
        cells = "".join(f"{1e9 * number / count:9.1f}" for number in numbers)
        print(f"{name:18}{cells}{shares[name]:11.2%}")
    print(f"a step of {sequences} sequences in the plain loop: {step_s:.2f} s")
    return {
        "ranks": ranks.world_size,
        "parameters": count,
        "ns_per_parameter_and_step": more,
        "share_of_step": shares,
        "step_s": step_s,
        "all_s": times,
    }


if __name__ == "__main__":
    ranks_module.exit_with(partial(run_command, main))
