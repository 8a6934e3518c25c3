"""What a step sends and waits for: counted, for each ZeRO stage, whatever the accumulation."""

from typing import Any

import pytest
import torch
from engine_samples import MANY_MICRO_STEPS, ONE_MICRO_STEP, build_engine, global_batch
from hypothesis import given
from hypothesis import strategies as st
from ranks_harness import run_ranks
from slow_cases import slow_but
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.settings import Precision
from pretrain.distributed.ranks import Ranks
from pretrain.engine.deepspeed_setup import DeepSpeedZeroOptimizer, get_accelerator
from pretrain.optim.norms import squared_norms
from scripts.baselines.collectives import Calls, Counted

FP32, AUTOCAST, BF16 = Precision.fp32, Precision.bf16_autocast, Precision.bf16


class Waits(TorchDispatchMode):
    """Counts the questions whose answer a host waits for, if the tensor is on a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def waits_of_a_step(ranks: Ranks, stage: int, precision: Precision) -> tuple[int, int]:
    engine, waits = build_engine(ranks, stage, precision), Waits()

    def synchronize(*_: object) -> None:
        waits.count += 1

    get_accelerator().synchronize = synchronize
    for position in range(4):  # DeepSpeed's timers begin with the third step
        batch = global_batch(position, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        waits.count = 0
        with waits:
            assert engine.train_step(batch, 1e-3).applied
    return len(batch.micro_batches), waits.count


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "precision"),
    slow_but(
        [(1, AUTOCAST), (2, BF16)],
        [(0, FP32), (0, AUTOCAST), (1, FP32), (1, AUTOCAST), (1, BF16), (2, FP32), (2, BF16)],
    ),
)
def test_the_host_waits_for_the_device_once_a_step(stage: int, precision: Precision) -> None:
    """For whether the gradient is finite."""
    micro_batches, waits = run_ranks(waits_of_a_step, 2, stage=stage, precision=precision)[0]
    assert micro_batches > 1
    assert waits == 1


def collectives_of_a_step(ranks: Ranks, stage: int, token_budget: int) -> tuple[int, Any, int]:
    engine = build_engine(ranks, stage)
    batch = global_batch(0, ranks.rank, ranks.world_size, token_budget)
    with Counted() as counted:
        engine.train_step(batch, 1e-3)
    size = sum(p.numel() for p in engine._state.parameters.values())
    return len(batch.micro_batches), counted.kinds, size


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 3])
def test_zero_1_reduces_once_and_gathers_each_group_once_whatever_the_accumulation(
    world_size: int,
) -> None:
    one, many = (
        run_ranks(collectives_of_a_step, world_size, stage=1, token_budget=budget)[0]
        for budget in (ONE_MICRO_STEP, MANY_MICRO_STEPS)
    )
    assert one[0] == 1 < many[0]
    assert one[1] == many[1]
    kinds, size = many[1:]
    whole = kinds["reduce-scatter"].bytes
    assert 4 * size <= whole <= 4 * (size + 4 * world_size), "each gradient once, and padding"
    assert kinds == {
        "reduce-scatter": Calls(1, whole, whole),
        "all-gather": Calls(2, whole, whole),  # what is decayed, and what is not
        "all-reduce": Calls(1, 8, 16),  # the norm
    }


class Reduced(TorchDispatchMode):
    """The types of the gradients in collectives that add up: of more numbers than a norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and "reduce" in func._schema.name:
            tensors = torch.utils._pytree.tree_leaves(args[:2])
            found = {x.dtype for x in tensors if isinstance(x, torch.Tensor) and x.numel() > 8}
            self.types |= found
        return func(*args, **(kwargs or {}))


def types_that_are_reduced(ranks: Ranks, stage: int, precision: Precision) -> set[torch.dtype]:
    engine = build_engine(ranks, stage, precision)
    with Reduced() as reduced:
        engine.train_step(global_batch(0, ranks.rank, ranks.world_size, MANY_MICRO_STEPS), 1e-3)
    return reduced.types


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, AUTOCAST), (1, AUTOCAST), (1, BF16), (2, BF16), (3, BF16)]
)
def test_in_bfloat16_gradients_are_added_up_over_the_ranks_in_fp32(stage, precision) -> None:
    for types in run_ranks(types_that_are_reduced, 2, stage=stage, precision=precision):
        assert types == {torch.float32}


def refuse(*_: object) -> None:
    raise AssertionError("DeepSpeed makes the views of all weights again")


def places_of_weights(ranks: Ranks, stage: int, precision: Precision) -> tuple[bool, bool]:
    """Whether the weights stay where they were through steps, and whether they change there."""
    engine = build_engine(ranks, stage, precision)
    DeepSpeedZeroOptimizer._update_model_bit16_weights = refuse
    weights = engine._state.parameters

    def places() -> list[int]:
        return [weight.data_ptr() for weight in weights.values()]

    first, values = places(), [weight.detach().clone() for weight in weights.values()]
    batch = global_batch(0, ranks.rank, ranks.world_size)
    for _ in range(2):
        assert engine.train_step(batch, 1e-2).applied
    engine._engine.optimizer.wait_for_weights()
    now = weights.values()
    return places() == first, not any(map(torch.equal, values, now))


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "precision"), [(1, FP32), (2, FP32), (2, BF16)])
def test_weights_are_updated_in_their_place_without_new_views(stage, precision) -> None:
    for stay, change in run_ranks(places_of_weights, 2, stage=stage, precision=precision):
        assert stay
        assert change


@given(size=st.integers(0, 2_000), scale=st.sampled_from([1e-9, 1.0, 1e9]))
def test_squared_norms_are_those_in_float64(size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(size)
    tensors = [scale * torch.randn(size, generator=generator), torch.full((1, 2), scale)]
    expected = torch.stack([tensor.double().square().sum() for tensor in tensors])
    # one row of fp32: its norm is off by a bit, and the square by two
    torch.testing.assert_close(squared_norms(tensors), expected, rtol=2**-22, atol=0)


def test_a_long_tensor_s_norm_has_more_digits_than_torch_s_in_fp32() -> None:
    values = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0))
    exact = values.double().norm()
    assert squared_norms([values])[0].sqrt() == pytest.approx(exact.item(), rel=1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_on_a_gpu_a_step_waits_once(stage: int) -> None:
    from pretrain.distributed import ranks as ranks_module

    ranks = ranks_module.start(1.0)
    try:
        engine = build_engine(ranks, stage, AUTOCAST)
        batches = [global_batch(position, token_budget=MANY_MICRO_STEPS) for position in range(4)]
        for batch in batches[:3]:
            engine.train_step(batch, 1e-3)
        for i, micro_batch in enumerate(batches[3].micro_batches):  # the loader copies ahead
            batches[3].micro_batches[i] = micro_batch.to(ranks.device)
        torch.cuda.set_sync_debug_mode("warn")
        with pytest.warns(UserWarning, match="called a synchronizing CUDA operation") as seen:
            engine.train_step(batches[3], 1e-3)
        assert len(seen) == 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
        ranks.stop()
