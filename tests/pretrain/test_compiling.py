"""Compiled layers: the same numbers as plain ones, under every stage that may have them."""

from __future__ import annotations

import shutil

import pytest
import torch
from engine_samples import MANY_MICRO_STEPS, build_engine, build_model, global_batch
from ranks_harness import run_ranks

from pretrain import compiling
from pretrain.ranks import Ranks
from pretrain.settings import Compile, Precision

FP32, AUTOCAST, BF16 = Precision.fp32, Precision.bf16_autocast, Precision.bf16
INDUCTOR, EAGER = "inductor", "aot_eager"  # the latter captures graphs and leaves code to torch

# torch's compiler looks at what it warns of
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++ with g++")


def trained(
    ranks: Ranks,
    stage: int,
    precision: Precision,
    backend: str | None,
    dropout: float = 0.0,
    activation_checkpointing: bool = False,
) -> tuple[list[list[float]], list[float], int]:
    """Losses of three steps, of an evaluation, and the number of graphs. `backend` None: none."""
    compiling.BACKEND = backend or ""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine = build_engine(
        ranks,
        stage,
        precision,
        build_model(dropout=dropout),
        activation_checkpointing=activation_checkpointing,
        compile=Compile.false if backend is None else Compile.true,
    )
    losses = []
    for step in range(3):
        batch = global_batch(0, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        batch.dropout_seeds[:] = [seed + step for seed in batch.dropout_seeds]
        losses.append(engine.train_step(batch, 3e-3).sums[:2].tolist())
    held_out = engine.evaluate_step(global_batch(1).micro_batches[0])[:2].tolist()
    return losses, held_out, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "precision", "world_size", "checkpointing"),
    [
        (1, FP32, 1, True),
        (0, AUTOCAST, 1, False),
        (2, BF16, 2, False),
        *(
            pytest.param(stage, precision, world_size, checkpointing, marks=pytest.mark.slow)
            for precision, stages in ((FP32, (0, 1, 2)), (AUTOCAST, (0, 1, 2)), (BF16, (1, 2)))
            for stage in stages
            for world_size in (1, 2)
            for checkpointing in (False, True)
        ),
    ],
)
def test_captured_as_graphs_training_is_the_same_dropout_included(
    stage: int, precision: Precision, world_size: int, checkpointing: bool
) -> None:
    arguments = {"stage": stage, "precision": precision, "dropout": 0.2}
    arguments["activation_checkpointing"] = checkpointing
    plain = run_ranks(trained, world_size, backend=None, **arguments)
    compiled = run_ranks(trained, world_size, backend=EAGER, **arguments)
    bound = 1e-5 if precision is FP32 else 1e-2
    for (losses, held_out, none), (same_losses, same_held_out, graphs) in zip(
        plain, compiled, strict=True
    ):
        torch.testing.assert_close(same_losses, losses, rtol=bound, atol=0)
        torch.testing.assert_close(same_held_out, held_out, rtol=bound, atol=0)
        assert none == 0
        assert graphs > 0
