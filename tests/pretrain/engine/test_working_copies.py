"""Autocast at ZeRO 1 and 2 reads bfloat16 copies of the matrices, made once per step."""

import math
from typing import Any

import pytest
import torch
from engine_samples import MANY_MICRO_STEPS, build_engine, build_model, gathered, global_batch
from ranks_harness import run_ranks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.settings import Precision
from pretrain.distributed.ranks import Ranks
from pretrain.engine.zero1 import SHORT, Bucket, LeanZero

AUTOCAST = Precision.bf16_autocast


class Casts(TorchDispatchMode):
    """Shapes of the weights that are cast to bfloat16, in order."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.shapes, self._places = [], {weight.data_ptr() for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_cast = func is torch.ops.aten._to_copy.default and kwargs["dtype"] is torch.bfloat16
        if is_cast and args[0].data_ptr() in self._places:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **kwargs)


def casts_of_a_step(ranks: Ranks, stage: int) -> tuple[int, list[tuple[int, ...]], set[str], int]:
    """Micro-batches; casts of matrices; names in bfloat16; bytes of a snapshot's weights."""
    model = build_model()
    engine = build_engine(ranks, stage, AUTOCAST, model)
    batch = global_batch(0, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
    with Casts([p for p in model.parameters() if p.dim() == 2]) as casts:
        engine.train_step(batch, 1e-3)
    in_bf16 = {name for name, p in model.named_parameters() if p.dtype is torch.bfloat16}
    widths = {weight.dtype for weight in gathered(engine).values()} or {torch.float32}
    return len(batch.micro_batches), casts.shapes, in_bf16, sum(w.itemsize for w in widths)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_only_the_tied_matrix_is_cast_in_micro_batches(stage: int) -> None:
    linear = {f"{name}.weight" for name, m in build_model().named_modules() if type(m) is nn.Linear}
    for micro_batches, casts, in_bf16, bytes_per_weight in run_ranks(
        casts_of_a_step, 2, stage=stage
    ):
        assert micro_batches > 1
        assert in_bf16 == linear
        assert casts == [(89, 20)] * micro_batches, "the embeddings read it in fp32"
        assert bytes_per_weight == 4, "checkpoints hold the fp32 masters"


def three_steps(ranks: Ranks, stage: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    engine = build_engine(ranks, stage, AUTOCAST, build_model(dropout=0.1))
    found = []
    for position in range(3):
        batch = global_batch(position, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        result = engine.train_step(batch, 1e-2)
        found += [*result.sums.tolist(), float(result.grad_norm)]
    return found, gathered(engine)


def with_and_without_copies(ranks: Ranks, stage: int) -> Any:
    make = LeanZero._make_working_copies
    with_copies = three_steps(ranks, stage)
    LeanZero._make_working_copies = lambda *_: None
    without = three_steps(ranks, stage)
    LeanZero._make_working_copies = make
    return with_copies, without


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "world_size"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_copies_change_no_bit_of_losses_norms_and_weights(stage: int, world_size: int) -> None:
    for (losses, weights), (expected, of_casts) in run_ranks(
        with_and_without_copies, world_size, stage=stage
    ):
        assert all(map(math.isfinite, losses))
        assert losses == expected
        assert all(map(torch.equal, weights.values(), of_casts.values()))


class Added(TorchDispatchMode):
    """The types of targets and sources of each call that adds many tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[set[torch.dtype], int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._foreach_add_.List:
            self.calls.append(({x.dtype for x in (*args[0], *args[1])}, len(args[0])))
        return func(*args, **(kwargs or {}))


def test_short_gradients_in_16_bits_are_cast_together_before_they_are_added() -> None:
    """torch adds tensors of two types one by one: only matrices are worth a kernel each."""
    sizes = [SHORT + 2, 8, 20, SHORT + 4, 3, 3]
    parameters = [nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for size in sizes]
    bucket = Bucket([parameters], [sum(sizes)], 1, 1, torch.float32)
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(sum(sizes))
    with Added() as added:
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16()
            expected += torch.cat([p.grad for p in parameters])
            bucket.add_gradients()
    bucket.reduce(None)
    assert torch.equal(bucket.take()[0], expected)
    assert len(added.calls) == 4, "two for each micro-batch after the first"
    assert added.calls[:2] == added.calls[2:]
    assert sorted(added.calls[:2], key=lambda call: call[1]) == [
        ({torch.bfloat16, torch.float32}, 2), ({torch.float32}, 4),
    ]  # fmt: skip
