"""The loss of a global batch does not depend on how it is computed.

The reference is a plain torch loop: one packed row, one process, one backward, no DeepSpeed.
"""

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
from engine_samples import (
    BATCH_SIZE,
    MANY_MICRO_STEPS,
    ONE_MICRO_STEP,
    build_engine,
    build_model,
    gathered,
    global_batch,
    optim_settings,
)
from ranks_harness import run_ranks
from several_buckets import use_several_buckets
from slow_cases import slow_but

from data_prep.core.objectives import Pairing
from pretrain.config.settings import OptimizerName, Precision, ScheduleSettings, Shard
from pretrain.distributed.ranks import Ranks
from pretrain.optim.optimizers import parameter_groups
from pretrain.optim.schedules import learning_rate

pytestmark = pytest.mark.distributed

STEPS = 20
SCHEDULE = ScheduleSettings(
    STEPS, budget_hours=None, warmup_steps=5, warmup_fraction=0.0, power=1.0,
    decay_from_step_0=False, count_from_1=False, start_step=0, stop_step=None,
)  # fmt: skip


def rate(step: int) -> float:
    return learning_rate(step, SCHEDULE, optim_settings().learning_rate)


@functools.cache
def plain_loop(pairing: Pairing = Pairing.nsp) -> Any:
    """Losses, gradient norms and last weights of 20 steps of torch's AdamW."""
    model, settings = build_model(pairing=pairing), optim_settings()
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, 1.0, (0.9, 0.999), settings.eps, foreach=False)
    losses, norms = [], []
    for step in range(STEPS):
        batch = global_batch(step)
        mlm_loss, nsp_loss, *_ = model(batch.micro_batches[0])
        loss = mlm_loss / batch.num_masked + nsp_loss / BATCH_SIZE
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}


def train(
    ranks: Ranks, stage: int, token_budget: int, pairing: Pairing = Pairing.nsp,
    shard: Shard = Shard.world,
) -> Any:  # fmt: skip
    """As `plain_loop`, and the numbers of micro-steps. With several ranks, in several buckets."""
    use_several_buckets(elements=2_000)
    ranks = dataclasses.replace(ranks, local_rank=ranks.rank % 2, local_world_size=2)
    engine = build_engine(ranks, stage, model=build_model(pairing=pairing), shard=shard)
    losses, norms, micro_steps = [], [], set()
    for step in range(STEPS):
        batch = global_batch(step, ranks.rank, ranks.world_size, token_budget)
        micro_steps.add(len(batch.micro_batches))
        result = engine.train_step(batch, rate(step))
        mlm_loss, nsp_loss, *_ = ranks.sum(result.sums.tolist())
        losses.append(mlm_loss / batch.num_masked + nsp_loss / batch.num_sequences)
        norms.append(float(result.grad_norm))
    return losses, norms, gathered(engine), micro_steps


BUDGETS = (ONE_MICRO_STEP, MANY_MICRO_STEPS)
CASES = [
    *itertools.product((1, 2), range(4), [Shard.world], BUDGETS),
    *itertools.product([4], (1, 2), [Shard.node], BUDGETS),
]
FAST = [
    (1, 0, Shard.world, ONE_MICRO_STEP),
    (2, 0, Shard.world, MANY_MICRO_STEPS),
    (2, 1, Shard.world, ONE_MICRO_STEP),
    (2, 2, Shard.world, MANY_MICRO_STEPS),
    (2, 3, Shard.world, MANY_MICRO_STEPS),
    (4, 1, Shard.node, MANY_MICRO_STEPS),
]


@pytest.mark.parametrize(("world_size", "stage", "shard", "token_budget"), slow_but(FAST, CASES))
def test_losses_norms_and_weights_are_those_of_a_plain_loop(
    world_size: int, stage: int, shard: Shard, token_budget: int
) -> None:
    losses, norms, weights = plain_loop()
    results = run_ranks(train, world_size, stage=stage, token_budget=token_budget, shard=shard)
    got_losses, got_norms, got_weights, micro_steps = results[0]
    assert micro_steps == {1} if token_budget == ONE_MICRO_STEP else len(micro_steps) > 1
    assert min(norms) > 1, "every step is clipped: per micro-batch it would give other weights"
    assert got_losses[0] == pytest.approx(losses[0], rel=1e-6)
    assert_losses_and_weights(got_losses, got_weights, losses, weights)
    assert got_norms[0] == pytest.approx(norms[0], rel=1e-5)
    assert got_norms == pytest.approx(norms, rel=1e-3)


def assert_losses_and_weights(got_losses: Any, got_weights: Any, losses: Any, weights: Any) -> None:
    assert got_losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(got_weights, weights, rtol=0, atol=2e-4)


@pytest.mark.parametrize("stage", slow_but([0, 3], range(4)))
def test_without_pairs_two_ranks_train_what_there_is(stage: int) -> None:
    """No pooler and no head of pairs: no parameter without a gradient, at any stage."""
    losses, _, weights = plain_loop(Pairing.none)
    assert not any(name.startswith(("pooler", "pair_head")) for name in weights)
    results = run_ranks(train, 2, stage=stage, token_budget=MANY_MICRO_STEPS, pairing=Pairing.none)
    got_losses, _, got_weights, _ = results[0]
    assert_losses_and_weights(got_losses, got_weights, losses, weights)


def first_gradient(ranks: Ranks, stage: int, token_budget: int) -> dict[str, torch.Tensor]:
    """The gradient that reached the optimizer: after one step exp_avg is (1 - beta_1) of it."""
    engine = build_engine(ranks, stage, betas=[0.5, 0.5], max_grad_norm=1e9)
    engine.train_step(global_batch(0, ranks.rank, ranks.world_size, token_budget), 0.0)
    return {name: 2 * value for name, value in gathered(engine, "exp_avg").items()}


@pytest.mark.parametrize(
    ("stage", "world_size", "token_budget"),
    [(0, 4, ONE_MICRO_STEP), (1, 4, MANY_MICRO_STEPS), (2, 2, MANY_MICRO_STEPS), (3, 2, 48)],
)
def test_gradient_is_that_of_the_global_mean_with_uneven_masks(
    stage: int, world_size: int, token_budget: int
) -> None:
    model, batch = build_model(), global_batch(0)
    mlm_loss, nsp_loss, *_ = model(batch.micro_batches[0])
    (mlm_loss / batch.num_masked + nsp_loss / BATCH_SIZE).backward()
    shares = [global_batch(0, r, world_size, token_budget).micro_batches for r in range(world_size)]
    assert len({micro_batch.num_masked for share in shares for micro_batch in share}) > 1
    got = run_ranks(first_gradient, world_size, stage=stage, token_budget=token_budget)[0]
    for name, parameter in model.named_parameters():
        largest = parameter.grad.abs().max().item()
        torch.testing.assert_close(
            got[name], parameter.grad, rtol=0, atol=1e-6 * max(1.0, largest), msg=name
        )


def losses_in(ranks: Ranks, stage: int, precision: Precision, name: OptimizerName) -> list[float]:
    engine = build_engine(ranks, stage, precision, name=name)
    losses = []
    for step in range(8):
        batch = global_batch(step, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        sums = ranks.sum(engine.train_step(batch, rate(step)).sums.tolist())
        losses.append(sums[0] / batch.num_masked + sums[1] / batch.num_sequences)
    return losses


@pytest.mark.parametrize("stage", [1, 3])
def test_bert_adam_is_the_same_sharded_and_whole(stage: int) -> None:
    arguments = {"precision": Precision.fp32, "name": OptimizerName.bert_adam}
    whole = run_ranks(losses_in, 1, stage=0, **arguments)[0]
    sharded = run_ranks(losses_in, 2, stage=stage, **arguments)[0]
    assert sharded == pytest.approx(whole, rel=1e-5)
