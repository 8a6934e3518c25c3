"""The ranks of a run: this process's number, and the collectives outside the engine.

One process is one rank. The environment alone distinguishes torchrun, the deepspeed launcher,
Slurm's srun and bare `python`. Only `start` imports torch, which takes seconds: a rank knows its
number, and refuses wrong settings, before that.
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

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import place
from pretrain.distributed.device import (
    choose_device,
    let_waiting_threads_sleep,
    use_expandable_segments,
    why_no_cuda,
)
from pretrain.distributed.flight_recorder import record_collectives
from pretrain.distributed.rank_logs import LenientStream
from pretrain.distributed.rendezvous import check_in, hosts_of, in_a_step, rank_info

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

# A launcher that sets RANK sets all of these
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Slurm numbers the interactive, the batch and the external step of a job from here (slurm.h)
_FIRST_SPECIAL_STEP = 0xFFFFFFFA


class LauncherError(SettingsError):
    """The launcher's variables cannot be used."""

    def __init__(self, text: str, rank: int = 0) -> None:
        """`rank`: of this process, by what there is; the one with 0 prints the text."""
        super().__init__(text)
        self.rank = rank


def environment_rank() -> int:
    """Number of this process among all, from the launcher's variables; 0 under bare python."""
    try:
        launched = _launched(os.environ)
    except LauncherError as error:  # raised again where the number of processes is asked for
        return error.rank
    return launched.rank if launched else 0


def environment_local_rank() -> int:
    """Number of this process on its node, from the launcher's variables; 0 under bare python."""
    launched = _launched(os.environ)
    return launched.local_rank if launched else 0


def environment_world_size() -> int:
    """Number of processes, from the launcher's variables; 1 under bare python.

    Raises LauncherError if they cannot be used.
    """
    launched = _launched(os.environ)
    return launched.world_size if launched else 1


@dataclass(frozen=True)
class LaunchedRank:
    """What a launcher sets for a process."""

    rank: int
    world_size: int
    local_rank: int  # on this node
    local_world_size: int = 0  # ranks on this node; 0: the launcher does not set it


@dataclass(frozen=True)
class Ranks:
    """This process among all, and collectives on a few numbers, which every rank calls."""

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0  # on this node
    local_world_size: int = 0  # ranks on this node; 0: unknown

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sums over the ranks in float64, the same on every rank."""
        import torch

        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: the same answer on every rank."""
        import torch

        flags = torch.tensor(int(flag), device=self.device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return bool(flags.item())

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank; the others' values are ignored."""
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

    def on_this_node(self) -> tuple[int, int]:
        """This rank's number among those of its machine, and how many those are. Collective."""
        places = self.gather(place())
        here = [rank for rank, where in enumerate(places) if where == places[self.rank]]
        return here.index(self.rank), len(here)

    def barrier(self) -> None:
        """Return once every rank has called this."""
        self.any(False)

    def stop(self) -> None:
        """Destroy the process group. The last call of a run that did not fail."""
        import torch

        torch.distributed.destroy_process_group()


def start(timeout_minutes: float, wanted: str = "auto") -> Ranks:
    """Join the other ranks: NCCL on GPUs, gloo on CPUs. Collective.

    `wanted` is engine.device: cuda, cpu, or auto for a GPU if there is one. A collective that takes
    longer than the timeout raises RuntimeError. Raises SettingsError if ranks are missing after the
    timeout, their GPUs are not one each and of one kind, or a GPU is wanted and cannot be used;
    RuntimeError if a launcher's variables are incomplete or rank 0 is not reached.
    """
    launched = _launched(os.environ)
    record_collectives()
    use_expandable_segments()
    let_waiting_threads_sleep()
    import torch
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    limit = timedelta(minutes=timeout_minutes)
    if launched is None:  # no port and no host name, which another run could have taken
        launched = LaunchedRank(rank=0, world_size=1, local_rank=0, local_world_size=1)
        store: Store = HashStore()
    else:
        store = _store(launched, limit)
    rank, world_size = launched.rank, launched.world_size
    device = choose_device(wanted, launched.local_rank)
    is_missing = wanted == "cuda" and device.type == "cpu"
    info = rank_info(rank, device, why_no_cuda() if is_missing else "")
    store = check_in(store, info, world_size, limit)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=limit,
        device_id=device if device.type == "cuda" and world_size > 1 else None,
    )
    return Ranks(rank, world_size, device, launched.local_rank, launched.local_world_size)


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit with its status, see `status_of`, or print its exception and exit with 1.

    Runs the registered exit functions and flushes all output, but does not shut the interpreter
    down. Threads of torch may still hold tensors then: those of a process group outlive `stop`,
    because DeepSpeed keeps it. A thread that drops a tensor would end even a finished run by
    SIGABRT (pytorch/pytorch issues 38228 and 190489).
    """
    sys.stdout = LenientStream(sys.stdout)  # type: ignore[assignment]
    sys.stderr = LenientStream(sys.stderr)  # type: ignore[assignment]
    try:
        status = status_of(main)
    except Exception:  # noqa: BLE001  the process ends
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):  # `| head` has read enough
            stream.flush()
    os._exit(status)


def _store(own: LaunchedRank, limit: timedelta) -> Store:
    """The store that ranks share before the process group exists: rank 0's, or torchrun's.

    It does not wait for all ranks, as torch's env:// does: `check_in` finds those that are missing.
    """
    from torch.distributed import DistNetworkError, TCPStore  # type: ignore[attr-defined]

    host, port = _address(os.environ).rsplit(":", 1)
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            host,
            int(port),
            own.world_size,
            is_master=own.rank == 0 and not is_torchruns,
            timeout=limit,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise RuntimeError(
                f"port {port} of {os.uname().nodename}, where the ranks meet, is taken by another "
                "program; give a free one (MASTER_PORT, or deepspeed --master_port)"
            ) from None
        raise RuntimeError(
            f"rank {own.rank} on {os.uname().nodename} does not reach rank 0 at {host}:{port} "
            "(MASTER_ADDR, MASTER_PORT; "
            f"engine.timeout_minutes={limit.total_seconds() / 60:g}): {error}"
        ) from None


def _launched(environment: Mapping[str, str]) -> LaunchedRank | None:
    """This process by the launcher's variables; None without a launcher.

    The shell that salloc or sbatch opens is no launcher: it has a job but no step of its own, and
    `python` typed there is a single process. Raises LauncherError if variables are missing or
    wrong, for mpirun, and in a shell that srun opened together with other tasks.
    """
    if "RANK" in environment:
        return _launched_by_name(environment)
    _refuse_mpirun(environment)
    step = environment.get("SLURM_STEP_ID")
    if "SLURM_PROCID" not in environment or not step or int(step) >= _FIRST_SPECIAL_STEP:
        return None
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
    names = environment["SLURM_PROCID"], num_tasks, environment["SLURM_LOCALID"]
    rank, world_size, local_rank = map(int, names)
    here = _tasks_on_this_node(environment)
    launched = LaunchedRank(rank, world_size, local_rank, here)
    is_task = environment.get("SLURM_TASK_PID") in (None, str(os.getpid()))
    if launched.world_size > 1 and not is_task and os.isatty(0):
        raise LauncherError(in_a_step(launched.rank, launched.world_size))
    return launched


def _tasks_on_this_node(environment: Mapping[str, str]) -> int:
    """From the step's list of tasks per node, such as `8(x3),4`; 0 if it is not set."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        counts += [int(count)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else 0


def _refuse_mpirun(environment: Mapping[str, str]) -> None:
    for kind in ("OMPI_COMM_WORLD", "MV2_COMM_WORLD", "PMI"):  # the last: MPICH, Intel MPI
        rank, size = environment.get(f"{kind}_RANK", ""), environment.get(f"{kind}_SIZE", "")
        # srun sets PMI's for its tasks; and Open MPI's own processes may be tasks of srun
        is_srun = kind == "PMI" and "SLURM_PROCID" in environment
        if rank.isdecimal() and size.isdecimal() and int(size) > 1 and not is_srun:
            raise LauncherError(
                f"this is process {rank} of {size} of mpirun ({kind}_RANK), which gives no address "
                "where they meet: start with torchrun or srun",
                int(rank),
            )


def _launched_by_name(environment: Mapping[str, str]) -> LaunchedRank:
    """This process by the variables of torchrun and the deepspeed launcher."""
    missing = [name for name in VARIABLES if name not in environment]
    if missing:
        raise LauncherError(
            f"RANK={environment['RANK']} is set and {', '.join(missing)} not; start with "
            "torchrun, deepspeed --no_local_rank or srun, or unset RANK for a single process"
        )
    given = [environment[name] for name in VARIABLES[:3]]
    if not all(map(str.isdecimal, given)) or int(given[0]) >= int(given[1]):
        listed = ", ".join(map("=".join, zip(VARIABLES, given, strict=False)))
        raise LauncherError(
            f"{listed}: they must be numbers, and RANK below WORLD_SIZE; start with torchrun, or "
            "unset RANK for a single process"
        )
    # torchrun's, or the deepspeed launcher's
    here = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or "0"
    rank, world_size, local_rank = map(int, given)
    return LaunchedRank(rank, world_size, local_rank, int(here) if here.isdecimal() else 0)


def _address(environment: Mapping[str, str]) -> str:
    """host:port where the ranks meet: MASTER_ADDR and MASTER_PORT if set.

    For the tasks of a Slurm step otherwise the step's first node, and a port that follows from job
    and step. So steps that share a node differ. The port is below those that systems hand out.
    """
    host = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    if port := environment.get("MASTER_PORT"):
        return f"{host}:{port}"
    number = 31 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    return f"{host}:{20_000 + number % 12_000}"


def _first_host(node_list: str) -> str:
    """First host of a Slurm node list such as `gpu[03-07,12],login1`, with or without scontrol."""
    if hosts := hosts_of(node_list):
        return hosts[0]
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", node_list)
    if not match:
        raise RuntimeError(f"no host name in SLURM_STEP_NODELIST={node_list!r}; set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())
