"""Runs the named tasks of a job: restartable, isolated, same bytes for any number of workers.

The corpus decides how a job is cut into tasks, never the machine. Each task runs in a fresh
process: its output cannot depend on earlier tasks, and one that fails or is killed stops no other.
A finished task leaves a record with its fingerprint, a hash of everything that determines its
bytes; a second start runs only tasks without a record of their fingerprint. Several processes may
work on one plan at the same time.

The log folder of a store (data_dir/documents/<source>, tokens, len<seq_len>) has

    job.json               {"job": "encode", "tasks": [names in order], "fingerprints",
                           "command": that completes the job}
    finished/<name>.json   {"fingerprint", "counts", "sizes" of its files, "seconds",
                           "cpu_seconds" of all threads, "peak_bytes" of the process's memory,
                           "ended": unix time}
    running/<name>.json    {"host", "place", "pid", "started": unix time}
    failed/<name>.json     {"reason"}
    <name>.log             output of the task
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.files import memory_bytes, read_json, write_json
from data_prep.core.job import ShareDone
from data_prep.core.settings import DataPrepSettings, Executor
from data_prep.executors import slurm
from data_prep.executors.local import run_processes
from data_prep.executors.tasks import (
    Task,
    TaskEntry,
    TaskPlan,
    failed_reason,
    log_path,
    record_path,
    unfinished,
)

WORKER_BYTES = 8_000_000  # of a process that does nothing; most is shared with the others


def run_tasks(
    job: str,
    log_dir: Path,
    tasks: Sequence[TaskEntry],
    task: Task,
    settings: DataPrepSettings,
) -> dict[str, int]:
    """Run task(entry.item) for every unfinished entry; return the summed counts of all.

    `task` must be picklable: a module's function or a functools.partial of one. A task also runs
    again if one of its outputs was lost or cut. Before anything changes, the store's manifest.json,
    in log_dir's parent, is removed: if it exists afterwards, the store has not changed. Records of
    tasks that are no longer planned are removed; so are files with the suffix of the outputs, in
    their folders, that no task writes.

    With settings.share only a share of the tasks runs, and ShareDone is raised.
    Raises RuntimeError, after all other tasks have run, naming the failed tasks, the first one's
    error and its log.
    """
    plan = TaskPlan(job, log_dir, tasks, task)
    todo = unfinished(plan, range(len(tasks)))
    first, step = settings.share_of
    own = [index for index in todo if index % step == first - 1]
    _check_memory(settings, len(own))
    _prepare(plan, todo)
    for index in own:  # of earlier starts
        record_path(log_dir, "failed", tasks[index].name).unlink(missing_ok=True)
    if failed := _run(plan, own, settings) if own else {}:
        _record(plan, failed)
        raise RuntimeError(_message(plan, failed))
    if settings.share is not None:
        raise ShareDone(f"share {settings.share}: {len(tasks[first - 1 :: step])} tasks done")
    total: Counter[str] = Counter()
    for entry in tasks:
        total.update(read_json(record_path(log_dir, "finished", entry.name))["counts"])
    return dict(sorted(total.items()))


def _check_memory(settings: DataPrepSettings, num_tasks: int) -> None:
    """Raise SettingsError if so many local processes cannot fit this host's memory."""
    most = memory_bytes() // WORKER_BYTES
    if settings.executor is Executor.local and min(settings.workers, num_tasks) > most:
        raise SettingsError(
            f"num_workers={settings.workers} processes take {WORKER_BYTES / 1e6:g} MB or more each "
            f"of this host's {memory_bytes() / 1e9:,.1f} GB of memory; set num_workers=null for as "
            "many as this process has cores"
        )


def _run(plan: TaskPlan, todo: Sequence[int], settings: DataPrepSettings) -> dict[int, str]:
    """Run the tasks of `todo`; return the reason of each failure, by index."""
    if settings.executor is Executor.local:
        return run_processes(plan, todo, settings.workers)
    from data_prep.executors import ray

    run = {Executor.slurm: slurm.run_on_slurm, Executor.ray: ray.run_on_ray}
    return run[settings.executor](plan, todo, settings)


def _record(plan: TaskPlan, failed: dict[int, str]) -> None:
    """Write the failed record of each task that was ended before it could: for data_prep.status."""
    for index, reason in failed.items():
        name = plan.entries[index].name
        if failed_reason(plan, index) is None:
            record_path(plan.log_dir, "running", name).unlink(missing_ok=True)
            write_json(record_path(plan.log_dir, "failed", name), {"reason": reason})


def _prepare(plan: TaskPlan, todo: Sequence[int]) -> None:
    """Write job.json and remove what is not in the plan, never what other shares write."""
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


def amend_command(log_dir: Path, override: str) -> None:
    """Put `override`, name=value, into the recorded command of a job refused without it."""
    path, name = log_dir / "job.json", override.partition("=")[0]
    described = read_json(path)
    words = [word for word in shlex.split(described["command"]) if word.partition("=")[0] != name]
    write_json(path, {**described, "command": shlex.join([*words, override])})


def _unplanned(plan: TaskPlan) -> list[Path]:
    """Records and files of unplanned tasks; records first, so that none outlives its files."""
    names = {entry.name for entry in plan.entries}
    records = [*plan.log_dir.glob("*/*.json"), *plan.log_dir.glob("*.log")]
    outputs = {path for entry in plan.entries for path in entry.outputs}
    kinds = {(path.parent, path.suffix) for path in outputs}
    files = [path for folder, suffix in sorted(kinds) for path in folder.glob(f"[!.]*{suffix}")]
    return [
        *(path for path in records if path.stem not in names),
        *(path for path in files if path not in outputs),
    ]


def _message(plan: TaskPlan, failed: dict[int, str]) -> str:
    """The error message: the failed tasks, and the error of the first."""
    names = [plan.entries[index].name for index in sorted(failed)]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (
        f"{plan.job}: {len(failed)} of {len(plan.entries)} tasks failed: {', '.join(names[:10])}"
        f"{more}. Task {names[0]}: {failed[min(failed)]} (whole log: "
        f"{log_path(plan.log_dir, names[0])}). The others are done; the same command runs the "
        "failed ones again"
    )
