"""Tasks for the engine's tests. Each process imports this file, so it imports little."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def write(folder: Path, index: int) -> dict[str, int]:
    """Append to the task's file: how often it ran shows in it."""
    with (folder / f"out-{index}").open("a") as file:
        file.write(f"{index}\n")
    return {"documents": index + 1, f"only {index % 2}": 1}


def fail(folder: Path, broken: set[int], index: int) -> dict[str, int]:
    if index in broken and not (folder / "mended").exists():
        raise ValueError(f"row 7 of task {index}\n  cannot be read")
    return write(folder, index)


def be_killed(folder: Path, index: int) -> dict[str, int]:
    if index == 1 and not (folder / "mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, index)


def chatter(index: int) -> dict[str, int]:
    os.write(1, b"a library's noise\n")
    return {"process": os.getpid()}
