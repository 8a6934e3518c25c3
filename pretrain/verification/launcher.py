"""Starts a run's ranks as processes of this machine, for commands that start and end runs.

Like torchrun on one node, but the caller holds the processes and can kill one of them, or all.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pretrain.distributed.ranks import VARIABLES

RUN = ("-m", "pretrain.run")
POLL_S = 0.05


class Launched:
    """The ranks of one start of a run. As a context manager it leaves no process behind."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], output: Path) -> None:
        self.processes = processes  # by rank; each leads its own process group
        self.output = output  # what all of them printed

    def __enter__(self) -> Launched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    @property
    def statuses(self) -> list[int | None]:
        """Exit statuses by rank: None while it runs, negative if a signal ended it."""
        return [process.poll() for process in self.processes]

    @property
    def is_running(self) -> bool:
        """Whether at least one rank runs."""
        return None in self.statuses

    def send(self, number: signal.Signals, ranks: Iterable[int] | None = None) -> None:
        """Send a signal to these ranks and their child processes; default: to all ranks."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            process = self.processes[rank]
            if process.poll() is None:
                os.killpg(process.pid, number)

    def wait(self, limit_s: float, grace_s: float = 0.0) -> list[int | None]:
        """Wait until all ranks have ended, or `limit_s`; the statuses, None for a running rank.

        Once a rank fails, the others have `grace_s` to end and are then killed, as launchers do.
        """
        end = time.monotonic() + limit_s
        failed_at = None
        while self.is_running and time.monotonic() < end:
            if failed_at is None and any(self.statuses):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() >= failed_at + grace_s:
                self.send(signal.SIGKILL)
                for process in self.processes:
                    process.wait()
            time.sleep(POLL_S)
        return self.statuses


def launch(
    arguments: Sequence[str],
    num_ranks: int,
    output: Path,
    program: Sequence[str] = RUN,
    environment: Mapping[str, str] | None = None,
) -> Launched:
    """Start `python PROGRAM ARGUMENTS` on `num_ranks` ranks, all printing to `output`.

    `environment` is added to this process's. A single rank starts as a bare `python` does.
    """
    shared = {**os.environ, **(environment or {})}
    for name in list(shared):  # a launcher around this process has other ranks
        if name.startswith("SLURM_") or name in VARIABLES:
            del shared[name]
    shared.setdefault("OMP_NUM_THREADS", "1")
    if num_ranks > 1:
        shared |= {
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
    output.parent.mkdir(parents=True, exist_ok=True)
    processes = []
    with output.open("ab") as file:
        for rank in range(num_ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-u", *program, *arguments],
                    env={**shared, **place},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            )
    return Launched(processes, output)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
