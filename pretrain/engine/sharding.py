"""The ranks among which ZeRO shards: all, or those of a node, each with a copy on other nodes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from data_prep.core.config import SettingsError
from pretrain.config.settings import Shard
from pretrain.distributed.ranks import Ranks


@dataclass(frozen=True)
class Sharding:
    """Where the shards of the state lie: among `ranks`, and again on each of the other copies."""

    ranks: range  # this rank's copy of the state is sharded among them
    num_copies: int
    within: Any  # the process group of `ranks`
    across: Any  # that of the ranks with the same shard; None if there is one copy

    def sum(self, values: Tensor) -> None:
        """Sum what the shards of one copy give, in place: the same bits on every rank.

        Over all copies, and not within each: nodes could add up in other orders, and the last bits
        of a norm would set the copies apart.
        """
        if self.num_copies > 1:
            values.div_(self.num_copies)
        torch.distributed.all_reduce(values)

    def of_copies(self, values: Tensor) -> Tensor:
        """The (n,) values of the ranks with the same shards: (copies, n)."""
        found = values.new_empty(self.num_copies * len(values))
        torch.distributed.all_gather_single(found, values, group=self.across)
        return found.view(self.num_copies, -1)


def sharding_of(shard: Shard, ranks: Ranks, timeout_minutes: float) -> Sharding:
    """The sharding that engine.shard asks for; that of all ranks if they are on one node.
    Collective.

    Raises SettingsError on every rank unless all nodes have the same number of ranks, one after the
    other, and more than one each.
    """
    size = ranks.world_size
    if shard is Shard.node and size > 1:
        size = _ranks_per_node(ranks)
    within, across = _process_groups(ranks.world_size, size, timeout_minutes)
    first = ranks.rank - ranks.rank % size
    return Sharding(range(first, first + size), ranks.world_size // size, within, across)


def _ranks_per_node(ranks: Ranks) -> int:
    places = ranks.gather((ranks.local_rank, ranks.local_world_size))
    _, size = places[0]
    for rank, (local_rank, here) in enumerate(places):
        if here == 0:
            raise SettingsError(
                f"engine.shard=node, and the launcher of rank {rank} does not set how many ranks "
                "its node has (LOCAL_WORLD_SIZE, SLURM_STEP_TASKS_PER_NODE); start with torchrun "
                "or srun, or set engine.shard=world"
            )
        if (local_rank, here) != (rank % size, size):
            raise SettingsError(
                f"engine.shard=node needs as many ranks on every node, numbered node by node, but "
                f"rank {rank} is number {local_rank} of {here} on its node, and rank 0's node has "
                f"{size}; start with --ntasks-per-node and --distribution=block (srun) or one "
                "--nproc-per-node (torchrun), or set engine.shard=world"
            )
    if size == 1:
        raise SettingsError(
            "engine.shard=node with one rank per node shards nothing; start as many ranks on a "
            "node as it has GPUs, or set engine.shard=world"
        )
    return size


@functools.cache  # phases share them
def _process_groups(world_size: int, size: int, timeout_minutes: float) -> tuple[Any, Any]:
    """This rank's groups: of `size` ranks, and of those with the same place in such a group."""
    timeout = timedelta(minutes=timeout_minutes)
    if size == world_size:
        return torch.distributed.new_group(timeout=timeout), None  # type: ignore[no-untyped-call]
    nodes = [[*range(first, first + size)] for first in range(0, world_size, size)]
    same_shard = [*map(list, zip(*nodes, strict=True))]
    make: Any = torch.distributed.new_subgroups_by_enumeration
    within, _ = make(nodes, timeout, group_desc="within a node")
    across, _ = make(same_shard, timeout, group_desc="across nodes")
    return within, across
