"""The bytes that the ranks of a step send, the time it takes, and the plan's numbers for both.

    python -m scripts.bench.scaling [model=tiny] [precision=fp32] [ranks=2,4] [stages=0,1,2]
        [micro_batches=1,4] [sequences=2] [rounds=3]

Starts itself under torchrun for each number of ranks (gloo, on this machine: its cores are shared).
micro_batches are per rank and step, sequences per micro-batch. The plan's rates are measured by all
ranks at once, as they compute. Bytes are those of whole tensors; `sent` is in multiples of all
parameters, one way: an all-reduce counts twice, as in the plan.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys

import numpy as np

from pretrain.config.settings import Settings
from pretrain.distributed.ranks import Ranks
from pretrain.model import flops
from pretrain.planning import step_time
from pretrain.planning.estimate import measured as measured_rates
from scripts.baselines.collectives import Counted
from scripts.baselines.synthetic_shards import VOCAB_SIZE, draw_lengths, synthetic_batch
from scripts.bench.parts import harness
from scripts.bench.parts.harness import Record

PARAMETER_BYTES = 4


@harness.benchmark("scaling")
def main(
    model: str = "tiny",
    precision: str = "fp32",
    ranks: str = "2,4",
    stages: str = "0,1,2",
    micro_batches: str = "1,4",
    sequences: int = 2,
    rounds: int = 3,
) -> Record | None:
    """The benchmark, or one rank's part of it, which has no record."""
    typed = [f"{name}={value}" for name, value in locals().items()]
    if "RANK" in os.environ:  # started below
        settings = harness.settings_of(model, f"engine.precision={precision}", "cluster=local")
        with harness.joined_ranks() as joined:
            measured = [
                _row(settings, joined, int(stage), int(count), sequences, rounds)
                for stage in stages.split(",")
                for count in micro_batches.split(",")
            ]
            if joined.rank == 0:
                print(json.dumps(measured))
        return None
    rows: list[Record] = []
    for count in ranks.split(","):
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", count]
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "-m", "scripts.bench.scaling", *typed],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    print("ranks  ZeRO  micro-batches   sent  plan   step s  plan s   collectives of a step")
    calls: dict[str, dict[str, int]] = {}
    for row in rows:
        kinds = row["collectives"]
        shown = ", ".join(
            f"{kind['calls']} {name} {kind['bytes'] / 1e6:.3g} MB" for name, kind in kinds.items()
        )
        print(
            f"{row['ranks']:5}{row['zero_stage']:6}{row['micro_batches']:15}"
            f"{row['sent']:7.2f}{row['planned_sent']:6.2f}"
            f"{row['step_s']:9.3f}{row['planned_s']:8.3f}   {shown}"
        )
        setup = "{ranks} ranks, ZeRO {zero_stage}, {micro_batches} micro-batches".format(**row)
        calls[setup] = {name: kind["calls"] for name, kind in kinds.items()}
    return {"collectives_per_step": calls, "rows": rows}


def _row(
    settings: Settings, ranks: Ranks, stage: int, micro_batches: int, sequences: int, rounds: int
) -> Record:
    engine = harness.engine_of(settings, ranks, zero_stage=stage)
    lengths = draw_lengths("wikipedia", sequences, np.random.default_rng(1))
    batch = synthetic_batch(lengths, ranks.world_size, micro_batches)
    seconds_of = harness.stopwatch(ranks.device, "wall")

    def step() -> None:
        engine.train_step(batch, 1e-4)
        ranks.barrier()

    step()
    with Counted() as counted:
        engine.train_step(batch, 1e-4)
    ranks.barrier()
    seconds = [seconds_of(step) for _ in range(rounds)]
    rates = measured_rates(settings.cluster, settings.model, VOCAB_SIZE)
    cluster = dataclasses.replace(rates, gpus_per_node=ranks.world_size)
    masked = batch.num_masked / batch.num_sequences
    of_lengths = flops.Lengths(lengths.mean(), np.square(lengths).mean(), masked)
    parameters = flops.parameters(settings.model, VOCAB_SIZE, settings.data.pairs)
    program = step_time.our_program(
        dataclasses.replace(settings.engine, zero_stage=stage, precision=engine.precision),
        settings.optim.name,
        micro_batches,
        recomputes=False,
        attends_per_sequence=step_time.attends_per_sequence(
            settings.model, engine.precision, cluster
        ),
        embedded=step_time.embedded_share(settings.model, parameters),
    )
    planned = step_time.step(
        settings.model, VOCAB_SIZE, parameters, of_lengths, cluster, program,
        len(lengths) * micro_batches, micro_batches, ranks.world_size,
    )  # fmt: skip
    one_way = sum(kind.one_way for kind in counted.kinds.values())
    return {
        "ranks": ranks.world_size,
        "zero_stage": stage,
        "micro_batches": micro_batches,
        "collectives": {name: dataclasses.asdict(kind) for name, kind in counted.kinds.items()},
        "sent": one_way / (PARAMETER_BYTES * parameters),
        "planned_sent": program.sent_bytes / PARAMETER_BYTES,
        "step_s": statistics.median(seconds),
        "all_s": seconds,
        "planned_s": planned.total,
        "planned_communication_s": planned.communication,
    }


if __name__ == "__main__":
    harness.run(main)
