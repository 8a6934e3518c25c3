"""Named tasks in processes of their own: restartable, isolated, the same bytes for any number.

A job is cut into tasks by its corpus, never by the machine. Each task runs in a fresh process, so
what it writes cannot depend on the tasks before it, and one that fails, or is killed for its
memory, stops no other. A finished task leaves a record with its fingerprint, that is all that
decides on its bytes: a second start runs the tasks without one, or with another one. Several
processes may work on one plan at the same time.

Below the log folder of a store (data_dir/documents/<source>, tokens, len<seq_len>) lie

    job.json               {"job": "encode", "tasks": [names in order], "fingerprints",
                           "command": that makes it whole}
    finished/<name>.json   {"fingerprint", "counts", "sizes" of its files, "seconds", "ended": unix time}
    running/<name>.json    {"host", "pid", "started": unix time}
    failed/<name>.json     {"reason"}
    <name>.log             what the task printed
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import orjson
import xxhash

from data_prep.core.files import read_json, write_json
from data_prep.core.settings import DataPrepSettings, Executor, ShareDone

Task = Callable[[int], dict[str, int]]


@dataclass(frozen=True)
class TaskEntry:
    """One task of a plan."""

    name: str  # of its log and its records; unique in the plan
    fingerprint: str  # see `fingerprint`
    outputs: tuple[Path, ...] = ()  # every file that it may write; see `run_tasks`


@dataclass(frozen=True)
class Plan:
    """What a job has to do: task(index) is the work of entries[index]."""

    job: str
    log_dir: Path
    entries: Sequence[TaskEntry]
    task: Task


def record_path(log_dir: Path, kind: str, name: str) -> Path:
    """The record `finished`, `running` or `failed` of a task."""
    return log_dir / kind / f"{name}.json"


def log_path(log_dir: Path, name: str) -> Path:
    return log_dir / f"{name}.log"


def is_finished(log_dir: Path, entry: TaskEntry) -> bool:
    """Whether there is a record of this fingerprint, and every file still has its size."""
    path = record_path(log_dir, "finished", entry.name)
    if not path.exists():
        return False
    record = read_json(path)
    same = record["fingerprint"] == entry.fingerprint
    return same and bool(record["sizes"] == _sizes(entry.outputs))


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits of a value of JSON's types: equal values, equal digits."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def run_tasks(
    job: str,
    log_dir: Path,
    tasks: Sequence[TaskEntry],
    task: Task,
    settings: DataPrepSettings,
) -> dict[str, int]:
    """Run task(index) for every entry that is not finished; return the counts of all, summed.

    `task` must be picklable: a module's function, or a functools.partial of one. A task also runs
    again where one of its outputs was lost or cut. Before anything changes, manifest.json of the
    store, log_dir's parent, is removed: if it is there afterwards, the store is as it was. Records
    of tasks that are no longer planned are removed, and so is every file that is no task's output
    from the outputs' folders, if it has their suffix.

    With settings.share only a share of the tasks runs, and ShareDone is raised: the job ends there.
    Raises RuntimeError, after all other tasks have run, naming the tasks that failed, the first
    one's error and its log.
    """
    plan = Plan(job, log_dir, tasks, task)
    todo = unfinished(plan, range(len(tasks)))
    _prepare(plan, todo)
    first, step = settings.share_of
    own = [index for index in todo if index % step == first - 1]
    for index in own:  # what a former start says is not to be taken for this one's
        record_path(log_dir, "failed", tasks[index].name).unlink(missing_ok=True)
    if failed := _run(plan, own, settings) if own else {}:
        raise RuntimeError(_message(plan, failed))
    if settings.share is not None:
        raise ShareDone(f"share {settings.share}: {len(tasks[first - 1 :: step])} tasks done")
    total: Counter[str] = Counter()
    for entry in tasks:
        total.update(read_json(record_path(log_dir, "finished", entry.name))["counts"])
    return dict(sorted(total.items()))


def unfinished(plan: Plan, indices: Iterable[int]) -> list[int]:
    """Those of `indices` whose tasks are not finished."""
    # A listing, because a network file system remembers for a while that a file is not there
    names = {path.stem for path in (plan.log_dir / "finished").glob("*.json")}
    entries = plan.entries
    return [
        index
        for index in indices
        if entries[index].name not in names or not is_finished(plan.log_dir, entries[index])
    ]


def failed_reason(plan: Plan, index: int) -> str | None:
    """What a task's failed record says; None where there is none."""
    path = record_path(plan.log_dir, "failed", plan.entries[index].name)
    return str(read_json(path)["reason"]) if path.exists() else None


def progress(plan: Plan, todo: Sequence[int]) -> Any:
    """A progress bar with the time left, on a terminal; all but `todo` is done."""
    from tqdm import tqdm

    total = len(plan.entries)
    return tqdm(total=total, initial=total - len(todo), desc=plan.job, disable=None)


def _run(plan: Plan, todo: Sequence[int], settings: DataPrepSettings) -> dict[int, str]:
    """Run the tasks of `todo`; return what went wrong, by index."""
    if settings.executor is Executor.local:
        return _run_processes(plan, todo, settings.workers)
    from data_prep.executors import ray

    run = {Executor.slurm: ray.run_on_slurm, Executor.ray: ray.run_on_ray}
    return run[settings.executor](plan, todo, settings)


def _sizes(outputs: Sequence[Path]) -> list[int | None]:
    """Bytes of each file, None where there is none."""
    return [path.stat().st_size if path.exists() else None for path in outputs]


def _prepare(plan: Plan, todo: Sequence[int]) -> None:
    """Write job.json, and remove what is not of the plan: nothing that others of this plan write."""
    described = {
        "job": plan.job,
        "tasks": [entry.name for entry in plan.entries],
        "fingerprints": [entry.fingerprint for entry in plan.entries],
    }
    path, former = plan.log_dir / "job.json", _unplanned(plan)
    is_other = not path.exists() or not described.items() <= read_json(path).items()
    if todo or former or is_other:
        (plan.log_dir.parent / "manifest.json").unlink(missing_ok=True)  # it vouches for the rest
    for file in former:
        file.unlink(missing_ok=True)
    if is_other:
        typed = [word for word in sys.orig_argv[1:] if not word.startswith("share=")]
        write_json(path, {**described, "command": shlex.join(["python", *typed])})


def _unplanned(plan: Plan) -> list[Path]:
    """Records and files of other tasks; the records first, so that none outlives its files."""
    names = {entry.name for entry in plan.entries}
    records = [*plan.log_dir.glob("*/*.json"), *plan.log_dir.glob("*.log")]
    outputs = {path for entry in plan.entries for path in entry.outputs}
    kinds = {(path.parent, path.suffix) for path in outputs}
    files = [path for folder, suffix in sorted(kinds) for path in folder.glob(f"[!.]*{suffix}")]
    return [
        *(path for path in records if path.stem not in names),
        *(path for path in files if path not in outputs),
    ]


def _message(plan: Plan, failed: dict[int, str]) -> str:
    """Why the job failed: the names of the tasks, and the first one's error."""
    names = [plan.entries[index].name for index in sorted(failed)]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (
        f"{plan.job}: {len(failed)} of {len(plan.entries)} tasks failed: {', '.join(names[:10])}"
        f"{more}. Task {names[0]}: {failed[min(failed)]} (whole log: "
        f"{log_path(plan.log_dir, names[0])}). The others are done; the same command runs the "
        "failed ones again"
    )


def _run_processes(plan: Plan, todo: Sequence[int], num_workers: int) -> dict[int, str]:
    """Run the tasks of `todo`; return what went wrong, by the number of the task."""
    waiting = list(reversed(todo))
    # Never fork ourselves: the caller may have threads or a GPU. The server that forks instead
    # imports the task's module once, and pandas, which pyarrow would import in every task: it asks
    # of the first list it converts whether it is pandas'.
    task, module = importable(plan.task)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pandas", module])
    running: dict[int, tuple[int, ForkServerProcess]] = {}
    failed: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress(plan, todo))
        stack.callback(_stop, plan, running)
        while waiting or running:
            while waiting and len(running) < num_workers:
                index = waiting.pop()
                given = (task, index, plan.entries[index], plan.log_dir)
                process = context.Process(target=run_one, args=given)
                with _without_main_module():
                    process.start()
                running[process.sentinel] = (index, process)
            for sentinel in connection.wait(list(running)):
                assert isinstance(sentinel, int)
                index, process = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    failed[index] = _reason(plan, index, process.exitcode)
                process.close()
                bar.update()
    return failed


def run_one(task: Task, index: int, entry: TaskEntry, log_dir: Path) -> None:
    """In the task's process. An exception ends it: the failed record has its reason, the log the
    traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then stops us
    gc.freeze()  # what was imported is not looked through again: a tenth of collect's time
    if is_finished(log_dir, entry):  # by another process meanwhile
        return
    finished, running, failed = (
        record_path(log_dir, kind, entry.name) for kind in ("finished", "running", "failed")
    )
    began = time.time()
    write_json(running, {"host": os.uname().nodename, "pid": os.getpid(), "started": began})
    finished.unlink(missing_ok=True)  # before a file of its changes
    failed.unlink(missing_ok=True)
    log = log_path(log_dir, entry.name)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        counts = task(index)
    except BaseException as error:
        write_json(failed, {"reason": f"{type(error).__name__}: {error}"})
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        running.unlink(missing_ok=True)
    if os.fstat(1).st_size == 0:
        log.unlink(missing_ok=True)
    ended = time.time()
    record = {
        "fingerprint": entry.fingerprint,
        "counts": counts,
        "sizes": _sizes(entry.outputs),
        "seconds": ended - began,
        "ended": ended,
    }
    write_json(finished, record)


def _stop(plan: Plan, running: dict[int, tuple[int, ForkServerProcess]]) -> None:
    """End what still runs when the parent is interrupted."""
    for _, process in running.values():
        process.terminate()
    for index, process in running.values():
        process.join()
        record_path(plan.log_dir, "running", plan.entries[index].name).unlink(missing_ok=True)


def importable(task: Task) -> tuple[Task, str]:
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


def _reason(plan: Plan, index: int, exitcode: int | None) -> str:
    """Why a task failed, from its record; where a signal ended it, the record is written here."""
    if reason := failed_reason(plan, index):
        return reason
    reason = f"exit status {exitcode}"
    if exitcode is not None and exitcode < 0:
        signal_name = signal.Signals(-exitcode).name
        memory = ", perhaps for want of memory: try a smaller num_workers"
        reason = f"ended by {signal_name}{memory if signal_name == 'SIGKILL' else ''}"
    name = plan.entries[index].name
    record_path(plan.log_dir, "running", name).unlink(missing_ok=True)
    write_json(record_path(plan.log_dir, "failed", name), {"reason": reason})
    return reason
