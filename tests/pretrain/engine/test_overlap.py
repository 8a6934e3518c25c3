"""When the collectives of a step begin, counted and ordered against autograd's hooks."""

import itertools
from typing import Any

import pytest
import torch
from engine_samples import MANY_MICRO_STEPS, build_engine, build_model, gathered, global_batch
from ranks_harness import run_ranks
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from data_prep.core.config import compose
from data_prep.core.objectives import Pairing
from pretrain.config.settings import OptimizerName, Precision, Settings
from pretrain.distributed.ranks import Ranks
from pretrain.model.bert import BertForPreTraining
from pretrain.optim import buckets as buckets_module
from pretrain.optim.buckets import buckets, runs
from pretrain.optim.optimizers import parameter_groups

SMALL = 2_000  # elements of a bucket, so that the small model of the tests has several
GRADIENT, REDUCE, NORM, GATHER = "gradient", "reduce-scatter", "all-reduce", "all-gather"
KINDS = {"_reduce_scatter_base_": REDUCE, "allreduce_": NORM, "_allgather_base_": GATHER}


class Collectives(TorchDispatchMode):
    """Appends the kind of each collective to `events`, in the order of their begin."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.events.append(KINDS[func._schema.name.removeprefix("c10d::")])
        return func(*args, **(kwargs or {}))


def events_of_a_step(
    ranks: Ranks, stage: int = 1, precision: Precision = Precision.fp32
) -> tuple[int, int, list[str]]:
    """Number of micro-batches and of buckets, and what happens in a step, in order."""
    buckets_module.BUCKET_ELEMENTS = SMALL
    model, events = build_model(), []
    for parameter in model.parameters():  # before the engine's own hooks
        parameter.register_post_accumulate_grad_hook(lambda _: events.append(GRADIENT))
    engine = build_engine(ranks, stage, precision, model)
    batch = global_batch(0, token_budget=MANY_MICRO_STEPS)  # the same on all ranks
    with Collectives(events):
        engine.train_step(batch, 1e-3)
    return len(batch.micro_batches), len(engine._engine.optimizer._buckets), events


def on_a_fake_group(ranks: Ranks, num_ranks: int) -> tuple[int, int, list[str]]:
    """As `events_of_a_step`, for the last of many ranks, whose collectives move nothing."""
    torch.distributed.destroy_process_group()
    rank = num_ranks - 1
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
    torch.Tensor.new_empty = torch.Tensor.new_zeros  # otherwise the norm is of what lay there
    return events_of_a_step(Ranks(rank, num_ranks, ranks.device))


def assert_reduced_meanwhile(micro_batches: int, num_buckets: int, events: list[str]) -> None:
    assert micro_batches > 1
    assert num_buckets > 2
    gradients = events.count(GRADIENT) // micro_batches
    before = gradients * (micro_batches - 1)
    assert set(events[:before]) == {GRADIENT}, "earlier micro-batches only add up"
    during = [kind for kind, _ in itertools.groupby(events[before : events.index(NORM)])]
    assert during == [GRADIENT, REDUCE] * num_buckets, "each as soon as its gradients are there"
    after = events[events.index(NORM) :]
    assert after == [NORM] + [GATHER] * (len(after) - 1)


@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "precision"), [(2, Precision.bf16), (3, Precision.fp32)])
def test_buckets_are_reduced_during_the_last_backward_pass(world_size, precision) -> None:
    for found in run_ranks(events_of_a_step, world_size, precision=precision):
        assert_reduced_meanwhile(*found)


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [8, 64])
def test_of_many_ranks_each_reduces_every_bucket_once_before_the_norm(world_size: int) -> None:
    (found,) = run_ranks(on_a_fake_group, 1, num_ranks=world_size)
    assert_reduced_meanwhile(*found)


@pytest.mark.distributed
def test_zero_2_reduces_every_bucket_in_every_micro_batch() -> None:
    for micro_batches, num_buckets, events in run_ranks(events_of_a_step, 2, stage=2):
        during = [kind for kind, _ in itertools.groupby(events[: events.index(NORM)])]
        assert during == [GRADIENT, REDUCE] * num_buckets * micro_batches


def begins_of_forward_passes(ranks: Ranks) -> list[tuple[str, set[int]]]:
    """Modules in the order in which they begin; buckets whose weights were still gathered then."""
    buckets_module.BUCKET_ELEMENTS = SMALL
    model, begins = build_model(), []
    engine = build_engine(ranks, 1, model=model)
    batch = global_batch(0, ranks.rank, ranks.world_size)
    engine.train_step(batch, 1e-3)
    of_buckets = [*enumerate(engine._engine.optimizer._buckets)]

    def begin(name: str) -> None:
        begins.append((name, {i for i, bucket in of_buckets if bucket._gatherings}))

    for name in ("embeddings", "layers.0", "layers.1", "mlm_head"):  # after the engine's own hooks
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: begin(name))
    engine.train_step(batch, 1e-3)
    engine.close()
    return begins


@pytest.mark.distributed
def test_each_module_waits_for_its_own_weights_when_it_begins() -> None:
    """Bucket 2 holds the embeddings, 1 the first layer and all biases, 0 the rest."""
    assert run_ranks(begins_of_forward_passes, 2)[0] == [
        ("embeddings", {0, 1}), ("layers.0", {0}), ("layers.1", set()), ("mlm_head", set()),
    ]  # fmt: skip


def gradient(ranks: Ranks, stage: int, bucket: int, name: OptimizerName) -> Any:
    """What reached the optimizer: after one step exp_avg is half of it."""
    buckets_module.BUCKET_ELEMENTS = bucket
    engine = build_engine(ranks, stage, name=name, betas=[0.5, 0.5], max_grad_norm=1e9)
    batch = global_batch(0, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
    norm = engine.train_step(batch, 0.0).grad_norm
    return float(norm), gathered(engine, "exp_avg")


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 2])
def test_on_two_ranks_gradients_are_the_same_bits_in_any_number_of_buckets(stage: int) -> None:
    arguments = {"stage": stage, "name": OptimizerName.adamw}
    one_norm, one = run_ranks(gradient, 2, bucket=10**9, **arguments)[0]
    many_norm, many = run_ranks(gradient, 2, bucket=SMALL, **arguments)[0]
    assert many_norm == pytest.approx(one_norm, rel=1e-6)
    assert all(torch.equal(one[name], many[name]) for name in one)


def trained(ranks: Ranks, bucket: int, name: OptimizerName) -> Any:
    buckets_module.BUCKET_ELEMENTS = bucket
    own = {"momentum": 0.9, "matrix_rate": 1.0, "newton_schulz_steps": 5}
    engine = build_engine(ranks, 1, name=name, **(own if name is OptimizerName.muon else {}))
    for step in range(3):
        engine.train_step(global_batch(step, ranks.rank, ranks.world_size, MANY_MICRO_STEPS), 1e-3)
    return gathered(engine)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("name", [OptimizerName.lamb, OptimizerName.muon])
def test_optimizers_of_whole_tensors_meet_their_pieces_in_several_buckets(name) -> None:
    one, many = (run_ranks(trained, 3, bucket=size, name=name)[0] for size in (10**9, SMALL))
    torch.testing.assert_close(many, one, rtol=0, atol=2e-5)


def runs_and_buckets(name: str, optimizer: OptimizerName, num_ranks: int = 8) -> Any:
    settings = compose("config", Settings, [f"+model={name}"])[0]
    with torch.device("meta"):
        model = BertForPreTraining(settings.model, 30_522, Pairing.nsp)
    names = {parameter: key for key, parameter in model.named_parameters()}
    sizes = {key: parameter.numel() for parameter, key in names.items()}
    groups = [
        {names[p]: p.numel() for p in group["params"]}
        for group in parameter_groups(model, 0.01, optimizer)
    ]
    found = runs(groups, num_ranks)
    flat = list(itertools.chain(*found))
    together = [[name for run in of for name in flat[run]] for of in buckets(found, names.values())]
    return sizes, groups, found, together


@pytest.mark.parametrize("optimizer", [OptimizerName.adamw, OptimizerName.muon])
@pytest.mark.parametrize("name", ["base", "large"])
def test_buckets_come_as_gradients_do_and_only_the_embeddings_are_left_at_the_end(
    name: str, optimizer: OptimizerName
) -> None:
    sizes, _, _, together = runs_and_buckets(name, optimizer)
    assert sorted(itertools.chain(*together)) == sorted(sizes), "each parameter once"
    assert {key.partition(".")[0] for key in together[-1]} == {"embeddings"}
    firsts = [min([*sizes].index(key) for key in bucket) for bucket in together]
    assert firsts == sorted(firsts, reverse=True)
    elements = [sum(sizes[key] for key in bucket) for bucket in together]
    assert max(elements) < 1.5 * buckets_module.BUCKET_ELEMENTS
    assert len(elements) >= sum(elements) / (1.5 * buckets_module.BUCKET_ELEMENTS)


@pytest.mark.parametrize(("name", "num_ranks"), [("small", 8), ("large", 1)])
def test_a_small_model_and_one_rank_have_one_bucket(name: str, num_ranks: int) -> None:
    _, groups, found, together = runs_and_buckets(name, OptimizerName.muon, num_ranks)
    assert found == [[[*group]] for group in groups]
    assert len(together) == 1


def after_an_fp16_step_that_doubles_the_scale(ranks: Ranks, window: int) -> Any:
    engine = build_engine(ranks, 1, Precision.fp16, build_model(), max_grad_norm=1e9)
    engine._engine.optimizer.loss_scaler.cur_scale = 256.0
    engine._engine.optimizer.loss_scaler.scale_window = window
    scales = [engine.train_step(global_batch(0), 0.0).loss_scale for _ in range(2)]
    return scales, gathered(engine, "exp_avg")


@pytest.mark.distributed
def test_a_step_in_fp16_is_unscaled_by_the_scale_that_its_losses_had() -> None:
    scales, moments = run_ranks(after_an_fp16_step_that_doubles_the_scale, 1, window=1000)[0]
    doubled, same = run_ranks(after_an_fp16_step_that_doubles_the_scale, 1, window=1)[0]
    assert doubled != scales
    torch.testing.assert_close(same, moments)
