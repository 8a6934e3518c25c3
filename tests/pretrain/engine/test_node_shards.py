"""engine.shard=node on 4 ranks as 2 nodes of 2, against shard=world: results and collectives."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import (
    MANY_MICRO_STEPS,
    build_engine,
    build_model,
    gathered,
    global_batch,
    save_state,
)
from ranks_harness import run_ranks
from torch.distributed.distributed_c10d import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

from data_prep.core.config import SettingsError, compose
from pretrain.config.checks import check
from pretrain.config.settings import OptimizerName, Precision, Settings, Shard
from pretrain.distributed.ranks import Ranks
from pretrain.engine.engine import Engine
from pretrain.engine.sharded_state import _unlike_copies
from pretrain.engine.sharding import sharding_of
from pretrain.optim import buckets as buckets_module
from pretrain.optim import muon

NODES, PER_NODE = 2, 2
STEPS, SAVED_AT = 3, 2
ADAMW, LAMB, MUON = OptimizerName.adamw, OptimizerName.lamb, OptimizerName.muon
OWN: dict[OptimizerName, dict[str, Any]] = {
    MUON: {"momentum": 0.9, "matrix_rate": 1.0, "newton_schulz_steps": 5}
}
WORLD, NODE = Shard.world, Shard.node
FLIPPED = "layers.1.feed_forward_out.weight"  # its end lies on the second rank of a node
GRADIENT = "gradient"
SCATTER, ACROSS = "reduce-scatter within a node", "all-reduce across nodes"
NORM, GATHER = "all-reduce over all", "all-gather within a node"
KINDS = {
    "_reduce_scatter_base_": "reduce-scatter", "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
}  # fmt: skip


class Collectives(TorchDispatchMode):
    """The kind and the group of each collective, in the order of their begin, and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            leaves = torch.utils._pytree.tree_leaves(args)
            (group,) = [
                x for x in leaves if isinstance(x, torch.ScriptObject) and "Group" in str(x._type())
            ]
            where = {"within a node": "within a node", "across nodes": "across nodes"}.get(
                ProcessGroup.unbox(group).group_desc, "over all"
            )
            kind = f"{KINDS[func._schema.name.removeprefix('c10d::')]} {where}"
            self.events.append(kind)
            sizes = [x.nbytes for x in leaves if isinstance(x, torch.Tensor)]
            self.bytes[kind] = self.bytes.get(kind, 0) + max(sizes)
        return func(*args, **(kwargs or {}))


def engine_of(
    ranks: Ranks, shard: Shard, name: OptimizerName = ADAMW, stage: int = 1, **more: Any
) -> Engine:
    buckets_module.BUCKET_ELEMENTS = 2_000  # so that the small model has several
    here = {"local_rank": ranks.rank % PER_NODE, "local_world_size": PER_NODE}
    ranks = dataclasses.replace(ranks, **here)
    return build_engine(ranks, stage, shard=shard, name=name, **OWN.get(name, {}), **more)


def train(engine: Engine, first: int = 0, end: int = STEPS) -> list[float]:
    """Both losses and the norm of each step."""
    found = []
    for position in range(first, end):
        ranks = engine.ranks
        batch = global_batch(position, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        result = engine.train_step(batch, 1e-3)
        found += [*ranks.sum(result.sums.tolist())[:2], float(result.grad_norm)]
    return found


def trained(ranks: Ranks, folder: Path) -> Iterator[tuple[Any, Any]]:
    """By optimizer, ZeRO stage and sharding: losses, weights, this rank's elements, and matrices
    that it orthogonalised. LAMB's state is saved on the way."""
    plain, counts = muon.orthogonal, [0]

    def orthogonal(stack: torch.Tensor, *settings: Any) -> torch.Tensor:
        counts[0] += len(stack)
        return plain(stack, *settings)

    muon.orthogonal = orthogonal
    for name, stage, shard in [
        *itertools.product((ADAMW, LAMB, MUON), (1,), Shard),
        (ADAMW, 2, NODE),
    ]:
        counts[0] = 0
        engine = engine_of(ranks, shard, name, stage)
        elements = sum(numel for _, numel in engine._state.held().values())
        losses = train(engine, end=SAVED_AT)
        if name is LAMB:
            if ranks.rank == 0:
                (folder / shard.name).mkdir()
            save_state(engine, folder / shard.name)
        losses += train(engine, first=SAVED_AT)
        yield (name, stage, shard), (losses, gathered(engine), elements, counts[0])
    muon.orthogonal = plain


def collectives(ranks: Ranks, stage: int) -> Any:
    """Micro-batches and buckets of a step, and what happens in it, in order; bytes by kind."""
    model, seen = build_model(), Collectives()
    for parameter in model.parameters():  # before the engine's own hooks
        parameter.register_post_accumulate_grad_hook(lambda _: seen.events.append(GRADIENT))
    engine = engine_of(ranks, NODE, stage=stage, model=model)
    batch = global_batch(0, token_budget=MANY_MICRO_STEPS)  # the same on all ranks
    with seen:
        engine.train_step(batch, 1e-3)
    groups = engine._sharding.within, engine._sharding.across
    timeouts = [g._get_backend(ranks.device).options._timeout for g in groups]
    return len(batch.micro_batches), len(engine._engine.optimizer._buckets), seen, timeouts


def resumed(ranks: Ranks, folder: Path, of: Shard, into: Shard) -> list[float]:
    """Losses from LAMB's state under one sharding in a new engine with another."""
    engine = engine_of(ranks, into, LAMB)
    engine.load(folder / of.name)
    return train(engine, first=SAVED_AT)


def overflow(ranks: Ranks) -> Any:
    """Whether a step is applied, and fp16's scale, if one rank's gradient is not finite."""
    model = build_model()
    if ranks.rank == NODES * PER_NODE - 1:
        model.mlm_head.register_forward_hook(lambda module, inputs, output: output * math.inf)
    engine = engine_of(ranks, NODE, precision=Precision.fp16, model=model)
    result = engine.train_step(global_batch(0, ranks.rank, ranks.world_size), 1e-3)
    return result.applied, result.loss_scale


def unlike(ranks: Ranks) -> list[str]:
    """What a save says after a step, and after one bit of a moment on rank 3 has flipped."""
    os.environ["SLURMD_NODENAME"] = f"n{ranks.rank // PER_NODE}"
    engine, found = engine_of(ranks, NODE), []
    train(engine, end=1)
    for flips in (False, True):
        if flips and ranks.rank == NODES * PER_NODE - 1:
            _, piece = engine._state._piece("exp_avg_sq", FLIPPED)
            piece.view(torch.int32)[-1] ^= 1
        try:
            engine.take(engine.new_snapshot())
            found.append("saved")
        except RuntimeError as error:
            found.append(str(error))
    return found


def everything(ranks: Ranks, folder: Path) -> dict[Any, Any]:
    found = dict(trained(ranks, folder))
    for stage in (1, 2):
        micro_batches, num_buckets, seen, timeouts = collectives(ranks, stage)
        found["collectives", stage] = micro_batches, num_buckets, seen.events, seen.bytes, timeouts
    for of, into in ((NODE, NODE), (NODE, WORLD), (WORLD, NODE)):
        found["resumed", of, into] = resumed(ranks, folder, of, into)
    found["overflow"] = overflow(ranks)
    found["unlike"] = unlike(ranks)
    return found


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("node_shards")
    return run_ranks(everything, NODES * PER_NODE, timeout_s=120, folder=folder)


@pytest.mark.distributed
@pytest.mark.parametrize("name", [ADAMW, LAMB, MUON])
def test_losses_and_weights_are_those_of_shards_among_all_ranks(of_ranks, name) -> None:
    world, node = (of_ranks[0][name, 1, shard] for shard in (WORLD, NODE))
    assert node[0] == pytest.approx(world[0], rel=2e-6)
    torch.testing.assert_close(node[1], world[1], rtol=0, atol=1e-5)


@pytest.mark.distributed
def test_zero_2_within_nodes_trains_as_zero_1(of_ranks) -> None:
    first, second = (of_ranks[0][ADAMW, stage, NODE] for stage in (1, 2))
    assert second[0] == pytest.approx(first[0], rel=2e-6)


@pytest.mark.distributed
def test_each_node_holds_the_whole_state_and_each_of_its_ranks_a_part(of_ranks) -> None:
    whole = sum(weight.numel() for weight in of_ranks[0][ADAMW, 1, NODE][1].values())
    for shard, copies in ((WORLD, 1), (NODE, NODES)):
        held = [of_rank[ADAMW, 1, shard][2] for of_rank in of_ranks]
        assert sum(held) == copies * whole
        assert max(held) < 1.1 * copies * whole / len(held)


@pytest.mark.distributed
def test_muon_orthogonalises_each_matrix_once_per_node(of_ranks) -> None:
    counts = {shard: [of[MUON, 1, shard][3] for of in of_ranks] for shard in Shard}
    num_matrices = 2 * (3 + 3)
    assert sum(counts[WORLD]) == STEPS * num_matrices
    for first in range(0, NODES * PER_NODE, PER_NODE):
        assert sum(counts[NODE][first : first + PER_NODE]) == STEPS * num_matrices


@pytest.mark.distributed
def test_a_bucket_is_added_up_across_nodes_while_the_backward_pass_goes_on(of_ranks) -> None:
    for of_rank in of_ranks:
        micro_batches, num_buckets, events, *_ = of_rank["collectives", 1]
        gradients = events.count(GRADIENT) // micro_batches
        assert micro_batches > 1 < num_buckets
        before = gradients * (micro_batches - 1)
        assert set(events[:before]) == {GRADIENT}, "earlier micro-batches only add up"
        during = events[before : events.index(NORM)]
        collapsed = [
            e for e, last in zip(during, ["", *during], strict=False) if GRADIENT != e or e != last
        ]
        later = [GRADIENT, SCATTER, ACROSS] * (num_buckets - 1)
        assert collapsed == [GRADIENT, SCATTER, *later, ACROSS]
        after = events[events.index(NORM) :]
        assert after == [NORM] + [GATHER] * (len(after) - 1)


@pytest.mark.distributed
def test_zero_2_reduces_within_nodes_in_every_micro_batch_and_across_them_once(of_ranks) -> None:
    micro_batches, num_buckets, events, *_ = of_ranks[0]["collectives", 2]
    assert events.count(SCATTER) == num_buckets * micro_batches
    assert events.count(ACROSS) == num_buckets
    assert ACROSS not in events[: events.index(GRADIENT) + events.count(GRADIENT) // 2]


@pytest.mark.distributed
def test_only_a_nodes_share_of_the_gradients_and_a_norm_cross_the_network(of_ranks) -> None:
    *_, sent, _ = of_ranks[0]["collectives", 1]
    whole = sent[SCATTER]
    size = 4 * sum(weight.numel() for weight in of_ranks[0][ADAMW, 1, NODE][1].values())
    assert size <= whole < 1.01 * size, "each gradient once, and padding"
    assert sent == {SCATTER: whole, ACROSS: whole // PER_NODE, GATHER: whole, NORM: 8}


@pytest.mark.distributed
def test_the_groups_have_the_time_out_of_the_run(of_ranks) -> None:
    *_, timeouts = of_ranks[0]["collectives", 1]
    assert timeouts == [timedelta(minutes=1)] * 2


@pytest.mark.distributed
def test_a_run_resumes_bit_equal_and_with_the_other_sharding_up_to_rounding(of_ranks) -> None:
    of_rank = of_ranks[0]
    expected = of_rank[LAMB, 1, NODE][0][3 * SAVED_AT :]
    assert of_rank["resumed", NODE, NODE] == expected
    for of, into in ((NODE, WORLD), (WORLD, NODE)):
        assert of_rank["resumed", of, into] == pytest.approx(expected, rel=2e-6)


@pytest.mark.distributed
def test_a_gradient_that_is_not_finite_on_one_node_is_an_overflow_on_all(of_ranks) -> None:
    assert [of_rank["overflow"] for of_rank in of_ranks] == [(False, 2**15)] * len(of_ranks)


@pytest.mark.distributed
def test_a_bit_that_flips_in_a_node_s_copy_ends_the_save_and_is_named(of_ranks) -> None:
    for before, after in (of_rank["unlike"] for of_rank in of_ranks):
        assert before == "saved"
        assert (
            f"differ: exp_avg_sq of {FLIPPED} (one of 1 there) on rank 3 (n1) is not that on rank "
            "1 (n0); either may be wrong. This step is not saved; start again"
        ) in after
        assert after.endswith("(sbatch --exclude=n1)")


def test_of_three_copies_the_odd_one_is_named_even_if_it_is_the_first() -> None:
    """Ranks 0 and 1 are of the first copy; the second place has other values there."""
    fault = ("weight of a", [7, 5, 5], 2)
    found = [(f"n{rank // 2}", fault if rank % 2 else None) for rank in range(6)]
    text = _unlike_copies(found, 2)
    assert (
        "weight of a (one of 2 there) on rank 1 (n0) is not that on rank 3 (n1); 2 of 3 copies"
        in text
    )
    assert "--exclude=n0)" in text


def groups(ranks: Ranks) -> list[Any]:
    """Of ranks of one node, by sharding: who shares the state, and how many copies there are."""
    here = dataclasses.replace(ranks, local_rank=ranks.rank, local_world_size=ranks.world_size)
    found = [sharding_of(shard, here, 1.0) for shard in Shard]
    return [(sharding.ranks, sharding.num_copies, sharding.across) for sharding in found]


@pytest.mark.distributed
def test_on_one_node_both_shardings_are_one_so_that_tuning_need_not_try_them() -> None:
    for of_rank in run_ranks(groups, 2):
        assert of_rank == [(range(2), 1, None)] * 2


class Placed(Ranks):
    """A rank of a run whose ranks are at these places: (local rank, ranks on the node)."""

    def gather(self, value: Any) -> Any:
        return PLACES


PLACES: list[tuple[int, int]] = []


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            [(0, 3), (1, 3), (2, 3), (0, 1)],
            "rank 3 is number 0 of 1 on its node, and rank 0's node ",
        ),
        ([(0, 2), (0, 2), (1, 2), (1, 2)], "rank 1 is number 0 of 2 .* --distribution=block"),
        ([(0, 2), (1, 2), (0, 0), (1, 0)], "launcher of rank 2 does not set how many"),
        ([(0, 1)] * 4, "one rank per node shards nothing"),
    ],
    ids=["uneven nodes", "cyclic", "an unknown launcher", "one rank per node"],
)
def test_ranks_that_are_not_spread_evenly_are_refused_with_the_cure(
    places, message, monkeypatch
) -> None:
    monkeypatch.setitem(globals(), "PLACES", places)
    ranks = Placed(0, 4, torch.device("cpu"))
    with pytest.raises(SettingsError, match=rf"^engine.shard=node.*{message}.*engine.shard=world$"):
        sharding_of(NODE, ranks, 1.0)


@pytest.mark.parametrize("stage", [0, 3])
def test_stages_that_shard_nothing_or_weights_are_refused(stage: int) -> None:
    typed = ["+model=tiny", "engine.shard=node", f"engine.zero_stage={stage}"]
    settings = compose("config", Settings, typed)[0]
    with pytest.raises(SettingsError, match=r"set engine.zero_stage=1 or 2, or engine.shard=world"):
        check(settings, 4)
