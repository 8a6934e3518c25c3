"""What the engine costs over a plain loop, for each parameter and optimizer step.

    python -m scripts.bench.engine [model=small] [optim=adamw] [rounds=7] [sequences=256]
    torchrun --nproc-per-node 2 -m scripts.bench.engine

The plain loop is torch's forward, backward, gradient clipping and fused optimizer, on one micro-batch of
one short sequence: what is left after subtracting it is the engine's own work, and does not grow with the
batch. Last comes its share of a step of `sequences` sequences, their time measured in the plain loop.
With several ranks each has its own plain loop, so that the difference holds the collectives, too.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from data_prep.core.config import compose
from pretrain.config.settings import Precision, Settings
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed import ranks as ranks_module
from pretrain.distributed.ranks import Ranks
from pretrain.engine.engine import Engine
from pretrain.model.bert import BertForPreTraining
from pretrain.optim.optimizers import build_optimizer, parameter_groups
from scripts.baselines.synthetic_batch import VOCAB_SIZE, synthetic_batch
from scripts.baselines.synthetic_shards import draw_lengths
from scripts.bench.harness import Arguments, arguments, in_turn, machine
from scripts.bench.step import stopwatch

DEFAULTS: Arguments = {
    "model": "small",
    "optim": "adamw",
    "precision": "fp32",
    "lengths": "wikipedia",
    "sequences": 256,  # of the step whose share is said
    "measured": 8,  # sequences from which their time is taken
    "rounds": 7,
    "threads": 1,
}
STAGES = (0, 1, 2)


def main() -> None:
    given = arguments(sys.argv[1:], DEFAULTS)
    torch.set_num_threads(int(given["threads"]))
    ranks = ranks_module.start(timeout_minutes=10)
    settings, _ = compose(
        "config",
        Settings,
        [
            f"+model={given['model']}",
            f"optim={given['optim']}",
            f"engine.precision={given['precision']}",
        ],
    )
    lengths = draw_lengths(str(given["lengths"]), int(given["measured"]), np.random.default_rng(1))
    short = synthetic_batch(np.array([8]), ranks.world_size)
    real = synthetic_batch(lengths, ranks.world_size)
    seconds = stopwatch(ranks.device, "processor")
    steps = {"plain loop": _plain_step(settings, short, ranks.device)}
    for stage in STAGES:
        steps[f"engine, ZeRO {stage}"] = _engine_step(settings, stage, short, ranks)
    steps["plain loop, real batch"] = _plain_step(settings, real, ranks.device)
    variants: dict[str, Callable[[], float]] = {
        name: partial(seconds, step) for name, step in steps.items()
    }
    figures = in_turn(variants, int(given["rounds"]))
    if ranks.rank == 0:
        _report(given, settings, ranks, figures)
    ranks.stop()


def _model(settings: Settings) -> BertForPreTraining:
    model = BertForPreTraining(settings.model, VOCAB_SIZE, settings.data.pairs)
    model.initialize(torch.Generator().manual_seed(0))
    return model


def _plain_step(settings: Settings, batch: GlobalBatch, device: torch.device) -> Callable[[], None]:
    model = _model(settings).to(device)
    optim = settings.optim
    optimizer = build_optimizer(parameter_groups(model, optim.weight_decay), optim)
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
) -> Callable[[], None]:
    engine = Engine(
        _model(settings),
        settings.optim,
        dataclasses.replace(settings.engine, zero_stage=stage),
        ranks,
    )

    def step() -> None:
        engine.train_step(batch, 1e-4)

    return step


def _report(
    given: Arguments, settings: Settings, ranks: Ranks, figures: dict[str, list[float]]
) -> None:
    count = sum(p.numel() for p in _model(settings).parameters())
    *_, real = figures
    plain, whole = (statistics.median(figures[name]) for name in ("plain loop", real))
    step_s = whole + (whole - plain) * (int(given["sequences"]) / int(given["measured"]) - 1)
    print(f"{count:,} parameters, {ranks.world_size} rank(s); ns a parameter, processor time")
    print(f"{'':18}{'median':>9}{'lowest':>9}{'highest':>9}{'more':>9}{'of a step':>11}")
    more, shares = {}, {}
    for name, seconds in figures.items():
        if name == real:
            continue
        cells = [1e9 * s / count for s in (statistics.median(seconds), min(seconds), max(seconds))]
        extra = statistics.median(
            one - base for one, base in zip(seconds, figures["plain loop"], strict=True)
        )
        more[name], shares[name] = 1e9 * extra / count, extra / step_s
        print(
            f"{name:18}"
            + "".join(f"{cell:9.1f}" for cell in cells)
            + f"{more[name]:9.1f}{shares[name]:11.2%}"
        )
    print(f"a step of {given['sequences']} sequences in the plain loop: {step_s:.2f} s")
    record = {
        "benchmark": "engine",
        "settings": given,
        "ranks": ranks.world_size,
        "parameters": count,
        "ns_per_parameter_and_step": more,
        "share_of_step": shares,
        "step_s": step_s,
        "all_s": figures,
    }
    print(json.dumps(record | {"machine": machine()}))


if __name__ == "__main__":
    ranks_module.exit_with(main)
