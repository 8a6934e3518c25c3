"""What the ranks of a step send each other, how long it takes, and what the plan says of both.

    python -m scripts.bench.scaling [model=tiny] [ranks=2,4] [stages=0,1,2] [micro_batches=1,4]

Starts itself under torchrun for each number of ranks (gloo, on this machine: its cores are shared). The
plan's rates are measured by all ranks at once, as they compute. Bytes are those of whole tensors; `sent`
is in times all parameters, one way: an all-reduce counts twice, and the plan counts alike.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from data_prep.core.config import compose
from pretrain.config.settings import Settings
from pretrain.distributed import ranks as ranks_module
from pretrain.distributed.ranks import Ranks
from pretrain.engine.engine import Engine
from pretrain.model import flops
from pretrain.model.bert import BertForPreTraining
from pretrain.planning import step_time
from pretrain.planning.estimate import measured
from scripts.baselines.collectives import Counted
from scripts.baselines.synthetic_batch import VOCAB_SIZE, synthetic_batch
from scripts.baselines.synthetic_shards import draw_lengths
from scripts.bench.harness import Arguments, arguments, machine

DEFAULTS: Arguments = {
    "model": "tiny",
    "precision": "fp32",
    "ranks": "2,4",
    "stages": "0,1,2",
    "micro_batches": "1,4",  # of a rank and step
    "sequences": 2,  # of a micro-batch
    "rounds": 3,
}


def main() -> None:
    given = arguments(sys.argv[1:], DEFAULTS)
    if "RANK" in os.environ:  # one of those that this program has started
        _measure(given)
        return
    rows: list[dict[str, Any]] = []
    for count in str(given["ranks"]).split(","):
        command = ["torch.distributed.run", "--standalone", "--nproc-per-node", count]
        done = subprocess.run(
            [sys.executable, "-m", *command, "-m", "scripts.bench.scaling", *sys.argv[1:]],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    _report(given, rows)


def _measure(given: Arguments) -> None:
    """One rank's part: each stage and number of micro-batches in turn; rank 0 prints the rows."""
    ranks = ranks_module.start(timeout_minutes=10)
    overrides = [f"+model={given['model']}", f"engine.precision={given['precision']}"]
    settings, _ = compose("config", Settings, [*overrides, "cluster=local"])
    rows = [
        _row(given, settings, ranks, int(stage), int(micro_batches))
        for stage in str(given["stages"]).split(",")
        for micro_batches in str(given["micro_batches"]).split(",")
    ]
    if ranks.rank == 0:
        print(json.dumps(rows))
    ranks.stop()


def _row(
    given: Arguments, settings: Settings, ranks: Ranks, stage: int, micro_batches: int
) -> dict[str, Any]:
    model = BertForPreTraining(settings.model, VOCAB_SIZE, settings.data.pairs)
    model.initialize(torch.Generator().manual_seed(0))
    own = dataclasses.replace(settings.engine, zero_stage=stage)
    engine = Engine(model, settings.optim, own, ranks)
    lengths = draw_lengths("wikipedia", int(given["sequences"]), np.random.default_rng(1))
    batch = synthetic_batch(lengths, ranks.world_size, micro_batches)
    engine.train_step(batch, 1e-4)
    with Counted() as counted:
        engine.train_step(batch, 1e-4)
    seconds = []
    for _ in range(int(given["rounds"])):
        ranks.barrier()
        started = time.perf_counter()
        engine.train_step(batch, 1e-4)
        ranks.barrier()
        seconds.append(time.perf_counter() - started)
    cluster = dataclasses.replace(
        measured(settings.cluster, settings.model, VOCAB_SIZE), gpus_per_node=ranks.world_size
    )
    masked = batch.num_masked / batch.num_sequences
    of_lengths = flops.Lengths(lengths.mean(), np.square(lengths).mean(), masked)
    parameters = flops.parameters(settings.model, VOCAB_SIZE, settings.data.pairs)
    program = step_time.our_program(
        dataclasses.replace(own, precision=engine.precision),
        settings.optim.name,
        micro_batches,
        recomputes=False,
    )
    step = step_time.step(
        settings.model, VOCAB_SIZE, parameters, of_lengths, cluster, program,
        len(lengths) * micro_batches, micro_batches, ranks.world_size,
    )  # fmt: skip
    width = 4  # bytes of a parameter
    return {
        "ranks": ranks.world_size,
        "zero_stage": stage,
        "micro_batches": micro_batches,
        "collectives": {kind: dataclasses.asdict(c) for kind, c in counted.kinds.items()},
        "sent": sum(c.one_way for c in counted.kinds.values()) / (width * parameters),
        "planned_sent": program.sent_bytes / width,
        "step_s": statistics.median(seconds),
        "all_s": seconds,
        "planned_s": step.total,
        "planned_communication_s": step.communication,
    }


def _report(given: Arguments, rows: list[dict[str, Any]]) -> None:
    print("ranks  ZeRO  micro-batches   sent  plan   step s  plan s   a step's collectives")
    for row in rows:
        kinds = ", ".join(
            f"{seen['calls']} {kind} {seen['bytes'] / 1e6:.3g} MB"
            for kind, seen in row["collectives"].items()
        )
        print(
            f"{row['ranks']:5}{row['zero_stage']:6}{row['micro_batches']:15}"
            f"{row['sent']:7.2f}{row['planned_sent']:6.2f}"
            f"{row['step_s']:9.3f}{row['planned_s']:8.3f}   {kinds}"
        )
    calls = {
        f"{row['ranks']} ranks, ZeRO {row['zero_stage']}, {row['micro_batches']} micro-batches": {
            kind: seen["calls"] for kind, seen in row["collectives"].items()
        }
        for row in rows
    }
    record = {"benchmark": "scaling", "settings": given, "collectives_per_step": calls}
    print(json.dumps({**record, "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    ranks_module.exit_with(main)
