"""The engine's cost over a plain loop, per parameter and optimizer step.

    python -m scripts.bench.engine [model=small] [optim=adamw] [precision=fp32] [rounds=7]
        [lengths=wikipedia] [sequences=256] [measured=8] [threads=1]
    torchrun --nproc-per-node 2 -m scripts.bench.engine

The plain loop is torch's forward, backward, gradient clipping and fused optimizer, on one
micro-batch of one short sequence; on a GPU both sides are compiled. The difference is the engine's
own work, which does not grow with the batch. The last column is its share of a step of `sequences`
sequences; their time is that of `measured` sequences in the plain loop. With several ranks each has
its own plain loop, so that the difference includes the collectives.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from pretrain.config.settings import Precision, Settings
from pretrain.data.train_loader import GlobalBatch
from pretrain.model.compile import compile_parts, wants_compile
from scripts.baselines.synthetic_shards import VOCAB_SIZE, draw_lengths, synthetic_batch
from scripts.baselines.transformers_step import optimizer_of, packed_model
from scripts.bench.parts import harness
from scripts.bench.parts.harness import Record

PLAIN, REAL = "plain loop", "plain loop, real batch"


@harness.benchmark("engine")
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
    settings = harness.settings_of(model, f"optim={optim}", f"engine.precision={precision}")
    drawn = draw_lengths(lengths, measured, np.random.default_rng(1))
    with harness.joined_ranks() as ranks:
        short, real = (synthetic_batch(n, ranks.world_size) for n in (np.array([8]), drawn))
        steps: dict[str, Callable[[], object]] = {PLAIN: _plain_step(settings, short, ranks.device)}
        for stage in (0, 1, 2):
            engine = harness.engine_of(settings, ranks, zero_stage=stage)
            steps[f"engine, ZeRO {stage}"] = partial(engine.train_step, short, 1e-4)
        steps[REAL] = _plain_step(settings, real, ranks.device)
        seconds = harness.stopwatch(ranks.device)
        times = harness.in_turn(
            {name: partial(seconds, step) for name, step in steps.items()}, rounds
        )
    if ranks.rank != 0:
        return None
    return _report(settings, ranks.world_size, times, sequences, measured)


def _plain_step(settings: Settings, batch: GlobalBatch, device: torch.device) -> Callable[[], None]:
    model, optim = packed_model(settings, VOCAB_SIZE).to(device), settings.optim
    if wants_compile(settings.engine, device):  # as the engine does
        compile_parts(model, settings.engine.precision, device)
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


def _report(
    settings: Settings, ranks: int, times: dict[str, list[float]], sequences: int, measured: int
) -> Record:
    count = sum(p.numel() for p in packed_model(settings, VOCAB_SIZE).parameters())
    median = harness.medians(times)
    step_s = median[REAL] + (median[REAL] - median[PLAIN]) * (sequences / measured - 1)
    print(f"{count:,} parameters, {ranks} rank(s); ns per parameter, processor time")
    print(f"{'':18}{'median':>9}{'lowest':>9}{'highest':>9}{'more':>9}{'of a step':>11}")
    more, shares = {}, {}
    for name, seconds in times.items():
        if name == REAL:
            continue
        extra = statistics.median(
            one - base for one, base in zip(seconds, times[PLAIN], strict=True)
        )
        more[name], shares[name] = 1e9 * extra / count, extra / step_s
        numbers = median[name], min(seconds), max(seconds), extra
        cells = "".join(f"{1e9 * number / count:9.1f}" for number in numbers)
        print(f"{name:18}{cells}{shares[name]:11.2%}")
    print(f"a step of {sequences} sequences in the plain loop: {step_s:.2f} s")
    return {
        "ranks": ranks,
        "parameters": count,
        "ns_per_parameter_and_step": more,
        "share_of_step": shares,
        "step_s": step_s,
        "all_s": times,
    }


if __name__ == "__main__":
    harness.run(main)
