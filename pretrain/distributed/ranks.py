"""Who we are among the processes of a run, and what ranks say to each other outside the engine.

One process is one rank. torchrun, the deepspeed launcher, Slurm's srun and a bare `python` are told
apart by the environment alone. torch is imported by `start`, not by this module: a rank can know
its number, and refuse wrong settings, before the seconds that takes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pretrain.distributed.rendezvous import call_the_roll, hosts_of, seat_of

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

# A launcher that sets RANK sets all of these
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Slurm numbers the interactive, the batch and the external step of a job from here (slurm.h)
_FIRST_SPECIAL_STEP = 0xFFFFFFFA


def environment_rank() -> int:
    """Number of this process among all, from the launcher's variables; 0 under bare python."""
    place = _place(os.environ)
    return place.rank if place else 0


def environment_world_size() -> int:
    """Number of processes, from the launcher's variables; 1 under bare python."""
    place = _place(os.environ)
    return place.world_size if place else 1


@dataclass(frozen=True)
class LaunchPlace:
    """What a launcher tells a process."""

    rank: int
    world_size: int
    local_rank: int  # on this node


@dataclass(frozen=True)
class Ranks:
    """This process among all, and the collectives on a handful of numbers. Every rank calls them."""

    rank: int
    world_size: int
    local_rank: int  # on this node
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, place by place, in float64: the same on every rank."""
        import torch

        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on one rank at least: the same answer on every rank."""
        import torch

        flags = torch.tensor(int(flag), device=self.device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return bool(flags.item())

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank; the others' own is ignored."""
        import torch

        values: list[Any] = [value]
        torch.distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        import torch

        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Return when every rank has come here."""
        self.any(False)

    def stop(self) -> None:
        """Leave the group in order. The last call of a run that did not fail."""
        import torch

        torch.distributed.destroy_process_group()


def start(timeout_minutes: float) -> Ranks:
    """Join the other ranks: NCCL where this machine has a GPU, else gloo. Collective.

    A collective that takes longer than the timeout raises RuntimeError. Raises SettingsError where
    after the timeout ranks are missing, or their GPUs are not one each and of one kind; RuntimeError
    where a launcher's variables are incomplete or rank 0 is not reached.
    """
    place = _place(os.environ)
    import torch
    from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

    limit = timedelta(minutes=timeout_minutes)
    if place is None:  # no port, no host name: nothing that another run could have taken
        place = LaunchPlace(rank=0, world_size=1, local_rank=0)
        store: Store = HashStore()
    else:
        store = _store(place, limit)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # a task that Slurm shows one GPU only finds it under number 0, whatever its local rank
        device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if place.world_size > 1:
        seat = seat_of(place.rank, device)
        call_the_roll(PrefixStore("roll", store), seat, place.world_size, limit)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=limit,
        device_id=device if device.type == "cuda" and place.world_size > 1 else None,
    )
    return Ranks(place.rank, place.world_size, place.local_rank, device)


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and end this process with its status, None being 0; 1 after an exception, printed.

    What is registered for the exit is done and all output written. Python's own end takes the interpreter down, while threads of torch may still hold tensors: those
    of a process group live on after `stop`, for DeepSpeed keeps it. One that drops a tensor then ends
    the process by SIGABRT, a finished run among them (pytorch/pytorch issues 38228 and 190489).
    """
    try:
        status = main() or 0
    except Exception:  # noqa: BLE001  it ends here
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):  # `| head` has read enough
            stream.flush()
    os._exit(status)


def _store(place: LaunchPlace, limit: timedelta) -> Store:
    """What the ranks share before they are a group: rank 0's, or the one that torchrun has.

    Unlike torch's own way from the environment it does not wait for all: who is missing is asked.
    """
    from torch.distributed import DistNetworkError, TCPStore  # type: ignore[attr-defined]

    host, port = _meeting_point(os.environ).rsplit(":", 1)
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            host,
            int(port),
            place.world_size,
            is_master=place.rank == 0 and not is_torchruns,
            timeout=limit,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise RuntimeError(
                f"port {port} of {os.uname().nodename}, at which the ranks were to meet, is another "
                "program's; give a free one (MASTER_PORT, or deepspeed --master_port)"
            ) from None
        raise RuntimeError(
            f"rank {place.rank} on {os.uname().nodename} does not reach rank 0 at {host}:{port} "
            f"(MASTER_ADDR, MASTER_PORT; engine.timeout_minutes={limit.total_seconds() / 60:g}): {error}"
        ) from None


def _place(environment: Mapping[str, str]) -> LaunchPlace | None:
    """Our place by the launcher's variables; None without a launcher.

    The shell that salloc or sbatch opens is no launcher: it has a job and no step of its own, and
    `python` typed there is a single process. Raises RuntimeError where variables are incomplete.
    """
    if "RANK" in environment:  # torchrun and the deepspeed launcher
        missing = [name for name in VARIABLES if name not in environment]
        if missing:
            raise RuntimeError(
                f"RANK={environment['RANK']} is set and {', '.join(missing)} not; start with "
                "torchrun, deepspeed --no_local_rank or srun, or unset RANK for a single process"
            )
        rank, world_size, local_rank = (int(environment[name]) for name in VARIABLES[:3])
        return LaunchPlace(rank, world_size, local_rank)
    step = environment.get("SLURM_STEP_ID")
    if "SLURM_PROCID" not in environment or not step or int(step) >= _FIRST_SPECIAL_STEP:
        return None
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
    local_rank = int(environment["SLURM_LOCALID"])
    return LaunchPlace(int(environment["SLURM_PROCID"]), int(num_tasks), local_rank)


def _meeting_point(environment: Mapping[str, str]) -> str:
    """host:port at which the ranks meet; for the tasks of a Slurm step, on the step's first node.

    MASTER_ADDR and MASTER_PORT, where a launcher or a batch script sets them, come first. The port
    follows from job and step, so that steps which share a node differ; it lies below those that
    systems hand out.
    """
    host = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    if port := environment.get("MASTER_PORT"):
        return f"{host}:{port}"
    number = 31 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    return f"{host}:{20_000 + number % 12_000}"


def _first_host(node_list: str) -> str:
    """First host of a Slurm node list such as `gpu[03-07,12],login1`; scontrol knows all its forms."""
    if hosts := hosts_of(node_list):
        return hosts[0]
    # a container without Slurm's programs: the plain forms are read here
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", node_list)
    if not match:
        raise RuntimeError(f"no host name in SLURM_STEP_NODELIST={node_list!r}; set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())
