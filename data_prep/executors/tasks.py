"""Named tasks, their plan and their records."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson
import xxhash

from data_prep.core.files import read_json

Task = Callable[[Any], dict[str, int]]


@dataclass(frozen=True)
class TaskEntry:
    """One task of a plan."""

    name: str  # of its log and records; unique in the plan
    fingerprint: str  # see `fingerprint`
    outputs: tuple[Path, ...] = ()  # every file that it may write; see `run_tasks`
    item: Any = None  # what the task is called with: its own share of the work, and no more


@dataclass(frozen=True)
class TaskPlan:
    """All tasks of a job: task(entry.item) does the work of an entry."""

    job: str
    log_dir: Path
    entries: Sequence[TaskEntry]
    task: Task


def record_path(log_dir: Path, kind: str, name: str) -> Path:
    """The `finished`, `running` or `failed` record of a task."""
    return log_dir / kind / f"{name}.json"


def log_path(log_dir: Path, name: str) -> Path:
    return log_dir / f"{name}.log"


def is_finished(log_dir: Path, entry: TaskEntry) -> bool:
    """Whether a record has this fingerprint and every output still has its size."""
    path = record_path(log_dir, "finished", entry.name)
    if not path.exists():
        return False
    record = read_json(path)
    same = record["fingerprint"] == entry.fingerprint
    return same and bool(record["sizes"] == sizes(entry.outputs))


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits of a record or a value of JSON's types: equal values, equal digits."""
    plain = orjson.dumps(value, msgspec.to_builtins, orjson.OPT_SORT_KEYS)
    return xxhash.xxh3_128_hexdigest(plain)


def unfinished(plan: TaskPlan, indices: Iterable[int]) -> list[int]:
    """The `indices` whose tasks are not finished."""
    # Listed, because a network file system caches for a while that a file does not exist
    names = {path.stem for path in (plan.log_dir / "finished").glob("*.json")}
    entries = plan.entries
    return [
        index
        for index in indices
        if entries[index].name not in names or not is_finished(plan.log_dir, entries[index])
    ]


def failed_reason(plan: TaskPlan, index: int) -> str | None:
    """The reason in a task's failed record; None if there is none."""
    path = record_path(plan.log_dir, "failed", plan.entries[index].name)
    return str(read_json(path)["reason"]) if path.exists() else None


def progress(plan: TaskPlan, todo: Sequence[int]) -> Any:
    """A progress bar, shown only on a terminal; all tasks but `todo` are done."""
    from tqdm import tqdm

    total = len(plan.entries)
    return tqdm(total=total, initial=total - len(todo), desc=plan.job, disable=None)


def sizes(outputs: Sequence[Path]) -> list[int | None]:
    """Bytes of each file; None if it is missing."""
    return [path.stat().st_size if path.exists() else None for path in outputs]


def importable(task: Task) -> tuple[Task, str]:
    """The task under its importable module, and that module's name.

    `python -m` runs a module as __main__; other processes know it only under its own name.
    """
    function = task.func if isinstance(task, functools.partial) else task
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if function.__module__ != "__main__" or spec is None:
        return task, str(function.__module__)
    function = getattr(importlib.import_module(spec.name), function.__name__)
    if isinstance(task, functools.partial):
        return functools.partial(function, *task.args, **task.keywords), spec.name
    return function, spec.name
