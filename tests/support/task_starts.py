"""Starts the tasks of made_tasks as a job does."""

import functools
from pathlib import Path

from data_prep.core.job import load
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry

Task = functools.partial[dict[str, int]]


def start(folder: Path, task: Task, num_workers: int = 2, marks: str = "aaaa") -> dict[str, int]:
    """A task for each of `marks`, its fingerprint."""
    entries = [
        TaskEntry(f"task-{index}", mark, (folder / "outputs" / f"out-{index}",), index)
        for index, mark in enumerate(marks)
    ]
    settings = load([f"data_dir={folder}", f"num_workers={num_workers}"])
    return run_tasks("job", folder / "logs", entries, task, settings)
