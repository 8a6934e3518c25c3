"""What Muon adds to a step: matrix products on the owners, and an exchange between the ranks.

Both are those of the rank that has most. The parts that ranks hold are cut as DeepSpeed cuts them,
and assigned by the code that trains (pretrain/optim/matrices.py).
"""

from __future__ import annotations

import dataclasses

from pretrain.config.settings import (
    ClusterSettings,
    EngineSettings,
    ModelSettings,
    OptimizerName,
    OptimSettings,
    Precision,
)
from pretrain.optim.matrices import assign, sent, shapes_of, shards, split
from pretrain.planning.memory import num_shards
from pretrain.planning.step_time import Step


def work(model: ModelSettings, stage: int, steps: int, ranks: int) -> tuple[int, int]:
    """Floating-point operations, and elements sent, in one update with `steps` iterations."""
    shapes = shapes_of(model)
    matrices = [matrix for name, shape in shapes.items() for matrix in split(name, shape)]
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    parts = assign(matrices, shards(sizes, stage, ranks))
    flops = [0] * ranks
    for index, owner in {part.matrix: part.owner for part in parts}.items():
        flops[owner] += matrices[index].flops(steps)
    return max(flops), max(sent(matrices, parts, ranks))


def with_muon(
    step: Step,
    model: ModelSettings,
    optim: OptimSettings,
    engine: EngineSettings,
    cluster: ClusterSettings,
    ranks: int,
) -> Step:
    """`step` with what Muon adds; unchanged with another optimizer.

    Products and what is sent are bfloat16 where the model's products are, on a GPU. Where matrices
    are shared among several nodes, all bytes count as the network's.
    """
    if optim.name is not OptimizerName.muon:
        return step
    assert optim.newton_schulz_steps is not None, "config.checks.check refuses this"
    shards = num_shards(engine, cluster, ranks)
    flops, elements = work(model, engine.zero_stage, optim.newton_schulz_steps, shards)
    is_half = engine.precision in (Precision.bf16, Precision.bf16_autocast) and not cluster.is_cpu
    kind = "half" if is_half else "fp32"
    rate = 1e12 * cluster.peak_tflops[kind] * cluster.gemm_share[kind]
    bytes_s = 1e9 * cluster.link_gb_s
    if shards > cluster.gpus_per_node:
        bytes_s = 1e9 * cluster.network_gb_s * cluster.network_share
    return dataclasses.replace(
        step,
        update=step.update + flops / rate,
        communication=step.communication + (2 if is_half else 4) * elements / bytes_s,
    )
