"""The check-in of the ranks before the first collective: each gives its host and device.

It goes through torch's store, which needs neither a process group nor GPUs that reach each other. A
collective that lacks a rank only waits, and NCCL with two ranks on one GPU fails without their
names.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson

from data_prep.core.command import as_typed
from data_prep.core.config import SettingsError
from pretrain.distributed.watchdog import format_ranks

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

_GRACE = timedelta(seconds=30)  # for rank 0 to publish its result
_PATIENCE = timedelta(seconds=5)  # after which rank 0 prints whom it waits for
_LOOK_S = 0.2  # between two looks of the other ranks: a thousand ask one store
_START = "start"  # the name of the newest start
_RESULT = "result"


@dataclass(frozen=True)
class RankInfo:
    """Host and device of a rank."""

    rank: int
    host: str
    process: int
    device: str  # its kind, with a GPU's memory
    unit: str  # which one: a GPU's UUID; "" for the CPU, which ranks may share
    fault: str = ""  # why it has no usable GPU, if one is wanted

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


def rank_info(rank: int, device: torch.device, fault: str = "") -> RankInfo:
    """Host and device of this process."""
    kind, unit = "a CPU", ""
    if device.type == "cuda":
        import torch

        gpu = torch.cuda.get_device_properties(device)
        kind, unit = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", str(gpu.uuid)
    return RankInfo(rank, host_name(), os.getpid(), kind, unit, fault)


def host_name() -> str:
    """This node, as Slurm names it where there is Slurm."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def check_in(store: Store, own: RankInfo, world_size: int, limit: timedelta) -> Store:
    """This start's keys of the store, once all ranks have checked in, each with a GPU of its own
    and of one kind. Collective.

    torchrun's store outlives a start, and the nodes count restarts differently: only those of their
    own ranks. So rank 0 names each start. A start that has a result before this rank has checked in
    is one before.

    Raises SettingsError on every rank that has checked in: it names the ranks still missing after
    `limit`, or what is wrong with the devices. RuntimeError if rank 0 is missing.
    """
    from torch.distributed import DistStoreError

    begin = _begin if own.rank == 0 else _join
    keys = begin(store, own, world_size, limit)
    faults = orjson.loads(keys.get(_RESULT))
    keys.set(f"read/{own.rank}", "")
    if faults:
        if own.rank == 0:  # the store may end with this rank: not before the others have read
            present = [rank for rank in range(world_size) if keys.check([_key(rank)])]
            with contextlib.suppress(DistStoreError):
                keys.wait([f"read/{rank}" for rank in present], _GRACE)
        raise SettingsError("\n".join(faults))
    return keys


def _begin(store: Store, own: RankInfo, world_size: int, limit: timedelta) -> Store:
    """Rank 0: name the start, wait for all ranks and publish what is wrong with them."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    name = uuid.uuid4().hex
    keys: Store = PrefixStore(name, store)
    keys.set(_key(0), orjson.dumps(own).decode())
    store.set(_START, name)
    keys.set(_RESULT, orjson.dumps(_find_faults(keys, world_size, limit)).decode())
    return keys


def _join(store: Store, own: RankInfo, world_size: int, limit: timedelta) -> Store:
    """Other ranks: check in to the newest start, until one has a result."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    name, keys, is_over = "", store, True
    end = time.monotonic() + (limit + _GRACE).total_seconds()
    while time.monotonic() < end:
        newest = store.get(_START).decode() if store.check([_START]) else ""
        if newest != name:
            name, keys = newest, PrefixStore(newest, store)
            is_over = keys.check([_RESULT])
            if not is_over:
                keys.set(_key(own.rank), orjson.dumps(own).decode())
        elif not is_over and keys.check([_RESULT]):
            return keys
        else:
            time.sleep(_LOOK_S)
    raise RuntimeError(
        f"{own} waits for rank 0, which did not check in within {_minutes(limit)}: look at its "
        "output"
    )


def hosts_of(node_list: str) -> list[str]:
    """The hosts of a Slurm node list in any form; [] without scontrol, as in some containers."""
    try:
        command = ["scontrol", "show", "hostnames", node_list]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def some_of(infos: Sequence[RankInfo], world_size: int) -> str:
    """`rank 8 on node2`, or `3 of 32 ranks, the first of them rank 8 on node2,`."""
    if len(infos) == 1:
        return str(infos[0])
    return f"{len(infos)} of {world_size} ranks, the first of them {infos[0]},"


def check_devices(infos: Sequence[RankInfo]) -> list[str]:
    """What is wrong with the devices of all ranks, one sentence per fault."""
    faults = []
    for fault in sorted({info.fault for info in infos} - {""}):
        without = [info for info in infos if info.fault == fault]
        faults.append(
            f"engine.device=cuda, and {some_of(without, len(infos))} cannot use a GPU: {fault}; or "
            "set engine.device=cpu to train on the CPU"
        )
    if faults:
        return faults
    on_unit: dict[str, list[RankInfo]] = {}
    for info in infos:
        on_unit.setdefault(info.unit or str(info.rank), []).append(info)
    shared = [sharing for sharing in on_unit.values() if len(sharing) > 1]
    if shared:
        first, second, *_ = shared[0]
        more = f" (and {len(shared) - 1} other GPUs are shared)" if len(shared) > 1 else ""
        faults.append(
            f"{first} and {second} have the same GPU ({first.unit}){more}; start as many ranks "
            "on a node as it has GPUs (torchrun --nproc-per-node, srun --ntasks-per-node)"
        )
    for kind in sorted({info.device for info in infos} - {infos[0].device}):
        others = [info for info in infos if info.device == kind]
        faults.append(
            f"{some_of(others, len(infos))} {'has' if len(others) == 1 else 'have'} {kind}, rank 0 "
            f"on {infos[0].host} has {infos[0].device}; take nodes of one kind "
            f"(sbatch --constraint), or leave that one out (sbatch --exclude={others[0].host})"
        )
    return faults


def _key(rank: int) -> str:
    return f"rank/{rank}"


def _find_faults(store: Store, world_size: int, limit: timedelta) -> list[str]:
    keys = [_key(rank) for rank in range(world_size)]

    def missing_after(wait: timedelta) -> list[int]:
        end = time.monotonic() + wait.total_seconds()
        while not store.check(keys):  # store.wait prints warnings if it waits in vain
            if time.monotonic() > end:
                return [rank for rank, key in enumerate(keys) if not store.check([key])]
            time.sleep(0.05)
        return []

    missing = missing_after(min(_PATIENCE, limit))
    if missing and limit > _PATIENCE:
        _print_missing(missing, world_size, limit)
        missing = missing_after(limit - _PATIENCE)
    infos = [
        RankInfo(**orjson.loads(store.get(key)))
        for rank, key in enumerate(keys)
        if rank not in missing
    ]
    return [_name_missing(missing, infos, limit)] if missing else check_devices(infos)


def in_a_step(rank: int, world_size: int) -> str:
    """Why `python` typed in a shell that srun opened does not run alone, and the cure."""
    return (
        f"this is task {rank} of {world_size} of a Slurm step; in an interactive shell: srun -n1, "
        "or unset SLURM_PROCID"
    )


def _print_missing(missing: list[int], world_size: int, limit: timedelta) -> None:
    """Print whom rank 0 waits for, long before the limit."""
    hint = "" if "RANK" in os.environ else f"; {in_a_step(0, world_size)}"
    text = (
        f"pretrain.run: waiting for {format_ranks(missing)} of {world_size}, up to "
        f"{_minutes(limit)} (engine.timeout_minutes){hint}\n"
    )
    sys.stderr.write(as_typed(text))
    sys.stderr.flush()


def _name_missing(missing: list[int], infos: list[RankInfo], limit: timedelta) -> str:
    present = {info.host for info in infos}
    nodes = hosts_of(os.environ.get("SLURM_STEP_NODELIST", ""))
    if empty := [host for host in nodes if host not in present]:
        more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
        cure = (
            f"no rank came from {', '.join(empty[:8])}{more}: look at these nodes, or leave them "
            "out (sbatch --exclude)"
        )
    else:
        cure = "look at their output, and whether they reach this host"
    return (
        f"{format_ranks(missing)} of {len(missing) + len(infos)} did not check in with {infos[0]} "
        f"within {_minutes(limit)} (engine.timeout_minutes); {cure}"
    )


def _minutes(limit: timedelta) -> str:
    return f"{limit.total_seconds() / 60:g} minutes"
