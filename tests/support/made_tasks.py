"""Tasks for the engine's tests. Each process imports this file, so it imports little."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def write(folder: Path, index: int) -> dict[str, int]:
    """Append to the task's file: how often it ran shows in it."""
    (folder / "outputs").mkdir(exist_ok=True)
    with (folder / "outputs" / f"out-{index}").open("a") as file:
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


def kill_all(folder: Path, index: int) -> dict[str, int]:
    """Like the power's loss: the whole group of processes is gone, the job's own among them."""
    if index == 0:
        os.killpg(0, signal.SIGKILL)
    return write(folder, index)


def interrupt_all(folder: Path, index: int) -> dict[str, int]:
    """As Ctrl-C on a terminal: the whole group of processes gets the signal."""
    if index == 0:
        os.killpg(0, signal.SIGINT)
    signal.pause()
    return {}


def chatter(folder: Path, index: int) -> dict[str, int]:
    os.write(1, b"a library's noise\n")
    write(folder, index)
    return {"process": os.getpid()}


def read_record(folder: Path, index: int) -> dict[str, int]:
    record = json.loads((folder / "logs" / "running" / f"task-{index}.json").read_text())
    write(folder, index)
    return {"own process": int(record["pid"] == os.getpid() and record["started"] > 1.7e9)}


def start_another(folder: Path, index: int) -> dict[str, int]:
    """Task 0, when it runs first, starts the same job in another process and waits for its end."""
    if index == 0 and not (folder / "outputs").exists():
        (folder / "outputs").mkdir()
        code = (
            "import functools, made_tasks, task_starts; from pathlib import Path;"
            f"folder = Path({str(folder)!r});"
            "task_starts.start(folder, functools.partial(made_tasks.write, folder), 1)"
        )
        env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"}
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
    return write(folder, index)
