"""Who has come: every rank says where it is and on which device, before the first collective.

It goes through torch's store, which needs neither a process group nor GPUs that reach each other. A
collective that lacks a rank only waits, and NCCL with two ranks on one GPU fails without their names.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson

from data_prep.core.config import SettingsError
from pretrain.distributed.watchdog import ranks_in_words

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

_GRACE = timedelta(seconds=30)  # rank 0 has judged by then


@dataclass(frozen=True)
class Seat:
    """Where a rank is."""

    rank: int
    host: str
    process: int
    device: str  # its kind, with a GPU's memory
    unit: str  # which one: a GPU's UUID; "" for the CPU, which ranks may share

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


def seat_of(rank: int, device: torch.device) -> Seat:
    """This process's own."""
    kind, unit = "a CPU", ""
    if device.type == "cuda":
        import torch

        gpu = torch.cuda.get_device_properties(device)
        kind, unit = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", str(gpu.uuid)
    host = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    return Seat(rank, host, os.getpid(), kind, unit)


def call_the_roll(store: Store, seat: Seat, world_size: int, limit: timedelta) -> None:
    """Return once all ranks have come, each with a GPU of its own and of one kind. Collective.

    Raises SettingsError on every rank that has come: naming those that are missing after `limit`, or
    what is wrong with the seats. RuntimeError where it is rank 0 that has not come.
    """
    from torch.distributed import DistStoreError

    store.set(_key(seat.rank), orjson.dumps(seat).decode())
    if seat.rank == 0:
        store.set("verdict", orjson.dumps(_judge(store, world_size, limit)).decode())
    try:
        store.wait([_key(0)], limit)
        store.wait(["verdict"], limit + _GRACE)
    except DistStoreError:
        raise RuntimeError(
            f"{seat} waits for rank 0, which has not come within {_minutes(limit)}: look at its output"
        ) from None
    faults = orjson.loads(store.get("verdict"))
    store.set(f"heard/{seat.rank}", "")
    if faults:
        if seat.rank == 0:  # whose end may be the store's: not before the others have heard
            here = [rank for rank in range(world_size) if store.check([_key(rank)])]
            with contextlib.suppress(DistStoreError):
                store.wait([f"heard/{rank}" for rank in here], _GRACE)
        raise SettingsError("\n".join(faults))


def hosts_of(node_list: str) -> list[str]:
    """The hosts of a Slurm node list, whatever its form; [] where there is no scontrol to ask."""
    try:
        command = ["scontrol", "show", "hostnames", node_list]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []  # as in a container without Slurm's programs


def some_of(seats: Sequence[Seat], world_size: int) -> str:
    """`rank 8 on node2`, or `3 of 32 ranks, the first of them rank 8 on node2,`."""
    if len(seats) == 1:
        return str(seats[0])
    return f"{len(seats)} of {world_size} ranks, the first of them {seats[0]},"


def check_seats(seats: Sequence[Seat]) -> list[str]:
    """What is wrong with the devices, a sentence each; `seats` are all ranks', in their order."""
    faults = []
    on_unit: dict[str, list[Seat]] = {}
    for seat in seats:
        on_unit.setdefault(seat.unit or str(seat.rank), []).append(seat)
    shared = [sharing for sharing in on_unit.values() if len(sharing) > 1]
    if shared:
        first, second, *_ = shared[0]
        more = f" (and {len(shared) - 1} other GPUs are shared)" if len(shared) > 1 else ""
        faults.append(
            f"{first} and {second} have one and the same GPU ({first.unit}){more}; start as many ranks "
            "on a node as it has GPUs (torchrun --nproc-per-node, srun --ntasks-per-node)"
        )
    for kind in sorted({seat.device for seat in seats} - {seats[0].device}):
        others = [seat for seat in seats if seat.device == kind]
        faults.append(
            f"{some_of(others, len(seats))} {'has' if len(others) == 1 else 'have'} {kind}, rank 0 on "
            f"{seats[0].host} has {seats[0].device}; take nodes of one kind (sbatch --constraint), or "
            f"leave that one out (sbatch --exclude={others[0].host})"
        )
    return faults


def _key(rank: int) -> str:
    return f"seat/{rank}"


def _judge(store: Store, world_size: int, limit: timedelta) -> list[str]:
    from torch.distributed import DistStoreError

    keys = [_key(rank) for rank in range(world_size)]
    missing: list[int] = []
    try:
        store.wait(keys, limit)
    except DistStoreError:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
    seats = [
        Seat(**orjson.loads(store.get(key))) for rank, key in enumerate(keys) if rank not in missing
    ]
    return [_who_is_missing(missing, seats, limit)] if missing else check_seats(seats)


def _who_is_missing(missing: list[int], seats: list[Seat], limit: timedelta) -> str:
    here = {seat.host for seat in seats}
    empty = [
        host for host in hosts_of(os.environ.get("SLURM_STEP_NODELIST", "")) if host not in here
    ]
    if empty:
        more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
        where = (
            f"nobody has come from {', '.join(empty[:8])}{more}: look at these nodes, or leave them out "
            "(sbatch --exclude)"
        )
    else:
        where = "look at their output, and whether they reach this host"
    return (
        f"{ranks_in_words(missing)} of {len(missing) + len(seats)} "
        f"{'has' if len(missing) == 1 else 'have'} not come within {_minutes(limit)} "
        f"(engine.timeout_minutes) to {seats[0]}; {where}"
    )


def _minutes(limit: timedelta) -> str:
    return f"{limit.total_seconds() / 60:g} minutes"
