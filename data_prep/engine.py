"""Numbered tasks in processes of their own: restartable, isolated, the same bytes for any number.

A job is cut into tasks by its corpus, never by the machine. Each task runs in a fresh process, so
what it writes cannot depend on the tasks before it, and one that fails, or is killed for its
memory, stops no other. Beside the finished tasks lie their counts; a second start runs the rest.

datatrove's LocalPipelineExecutor, tried first, waits for ever when a worker is killed, imports
0.4 s of packages, logs every task to the terminal and sums the counts of the last start alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import orjson

from data_prep.files import read_json, write_json

Task = Callable[[int], dict[str, int]]


def run_tasks(
    job: str,
    log_dir: Path,
    num_tasks: int,
    task: Task,
    num_workers: int,
    fingerprint: dict[str, Any],
) -> dict[str, int]:
    """Run task(0) .. task(num_tasks - 1), at most `num_workers` at a time; return summed counts.

    `task` must be picklable: a module's function, or a functools.partial of one. Tasks finished by
    an earlier start with the same fingerprint are skipped and their counts summed all the same;
    after a start with another fingerprint every task runs anew (see `is_new_start`). What a task
    prints goes to log_dir/task-00000.log; the terminal gets one progress bar.

    Raises RuntimeError, after all other tasks have run, naming the tasks that failed, the first
    one's error and its log.
    """
    if is_new_start(log_dir, num_tasks, fingerprint):
        shutil.rmtree(log_dir, ignore_errors=True)
        write_json(log_dir / "settings.json", _settings(num_tasks, fingerprint))
    todo = [index for index in range(num_tasks) if not _counts_path(log_dir, index).exists()]
    failed = _run_processes(job, log_dir, todo, num_tasks, task, num_workers)
    if failed:
        first = min(failed)
        log = _log_path(log_dir, first)
        raise RuntimeError(
            f"{job}: {len(failed)} of {num_tasks} tasks failed: {_shortened(sorted(failed))}. "
            f"Task {first}: {failed[first]} (whole log: {log}). The others are done; the same "
            "command runs the failed ones again"
        )
    total: Counter[str] = Counter()
    for index in range(num_tasks):
        total.update(read_json(_counts_path(log_dir, index)))
    return dict(sorted(total.items()))


def is_new_start(log_dir: Path, num_tasks: int, fingerprint: dict[str, Any]) -> bool:
    """Whether no task in `log_dir` counts as finished: a first start, or other settings since.

    A job asks before run_tasks, and removes what it wrote under the other settings.
    """
    path = log_dir / "settings.json"
    return not path.exists() or bool(read_json(path) != _settings(num_tasks, fingerprint))


def _settings(num_tasks: int, fingerprint: dict[str, Any]) -> Any:
    """As it will be read again: JSON turns tuples into lists."""
    return orjson.loads(orjson.dumps({"num_tasks": num_tasks, "fingerprint": fingerprint}))


def _counts_path(log_dir: Path, index: int) -> Path:
    return log_dir / "finished" / f"{index:05d}.json"


def _log_path(log_dir: Path, index: int) -> Path:
    return log_dir / f"task-{index:05d}.log"


def _run_processes(
    job: str, log_dir: Path, todo: Iterable[int], num_tasks: int, task: Task, num_workers: int
) -> dict[int, str]:
    """Run the tasks of `todo`; return what went wrong, by the number of the task."""
    from tqdm import tqdm

    waiting = list(reversed(list(todo)))
    if not waiting:
        return {}
    # Never fork ourselves: the caller may have threads or a GPU. The server that forks instead
    # imports the task's module once, and pandas, which pyarrow would import in every task: it asks
    # of the first list it converts whether it is pandas'.
    task, module = _importable(task)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pandas", module])
    running: dict[int, tuple[int, ForkServerProcess]] = {}
    failed: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=num_tasks, initial=num_tasks - len(waiting), desc=job, disable=None)
        )
        stack.callback(_stop, running)
        while waiting or running:
            while waiting and len(running) < num_workers:
                index = waiting.pop()
                process = context.Process(target=_run_one, args=(task, index, log_dir))
                with _without_main_module():
                    process.start()
                running[process.sentinel] = (index, process)
            for sentinel in connection.wait(list(running)):
                assert isinstance(sentinel, int)
                index, process = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    failed[index] = _reason(process.exitcode, _log_path(log_dir, index))
                process.close()
                bar.update()
    return failed


def _run_one(task: Task, index: int, log_dir: Path) -> None:
    """In the task's process. An exception ends it, and its traceback goes to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then stops us
    log = _log_path(log_dir, index)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    counts = task(index)
    sys.stdout.flush()
    sys.stderr.flush()
    if log.stat().st_size == 0:
        log.unlink()
    write_json(_counts_path(log_dir, index), counts)


def _stop(running: dict[int, tuple[int, ForkServerProcess]]) -> None:
    """End what still runs when the parent is interrupted."""
    for _, process in running.values():
        process.terminate()
    for _, process in running.values():
        process.join()


def _importable(task: Task) -> tuple[Task, str]:
    """The task under the module it can be imported from, and that module's name.

    `python -m` runs a module as __main__; the processes have it under its own name.
    """
    function = task.func if isinstance(task, functools.partial) else task
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if function.__module__ != "__main__" or spec is None:
        return task, str(function.__module__)
    function = getattr(importlib.import_module(spec.name), function.__name__)
    if isinstance(task, functools.partial):
        return functools.partial(function, *task.args, **task.keywords), spec.name
    return function, spec.name


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Start a process that does not run the program's own file again, as multiprocessing would have
    it: that of a training run imports torch, for nothing.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def _reason(exitcode: int | None, log: Path) -> str:
    """The exception's line of a traceback, or the signal that ended the process."""
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = (
            ", perhaps for want of memory: try a smaller num_workers" if name == "SIGKILL" else ""
        )
        return f"ended by {name}{hint}"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    # A message may have several lines: it starts at the last line that is not indented
    # and follows the traceback's frames.
    frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    after = lines[frames[-1] :] if frames else lines
    message = [line for line in after if line and not line.startswith(" ")]
    return " ".join(message) or f"exit status {exitcode}"


def _shortened(indices: list[int]) -> str:
    shown = ", ".join(str(index) for index in indices[:10])
    return shown if len(indices) <= 10 else f"{shown} and {len(indices) - 10} more"
