"""A run's ranks as processes of this machine, for jobs that start runs and end them: verify, the drill.

What torchrun does with one node, but whoever holds the processes can kill one of them, or all, at once.
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
    """The ranks of one start of a run. As a context it leaves no process behind."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], output: Path) -> None:
        self.processes = processes  # by rank; each leads a process group of its own
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
        """By rank: None while it runs, a negative signal's number where one ended it."""
        return [process.poll() for process in self.processes]

    @property
    def is_running(self) -> bool:
        """Whether one rank at least runs."""
        return None in self.statuses

    def send(self, number: signal.Signals, ranks: Iterable[int] | None = None) -> None:
        """A signal to these ranks and the processes they started; to all where none are named."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            process = self.processes[rank]
            if process.poll() is None:
                os.killpg(process.pid, number)

    def wait(self, limit_s: float, grace_s: float = 0.0) -> list[int | None]:
        """Until all have ended, or the limit: the statuses, None for a rank that still runs.

        Once a rank fails, the others have `grace_s` to end by themselves and are then killed, as a
        launcher does it.
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
    """Start `python PROGRAM ARGUMENTS` on so many ranks of this machine, all printing into `output`.

    `environment` is added to this process's. A single rank starts as a bare `python` does.
    """
    shared = {**os.environ, **(environment or {})}
    for name in list(shared):  # these ranks are not those of a launcher around this process
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
