"""Runs each task in a Ray worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.core.config import SettingsError
from data_prep.core.entry import PROJECT
from data_prep.core.settings import DataPrepSettings
from data_prep.executors.tasks import (
    Task,
    TaskEntry,
    TaskPlan,
    failed_reason,
    importable,
    progress,
    unfinished,
)
from data_prep.executors.worker import run_one

START_TRIES = 3  # Ray waits 30 s for its own processes: too short on a busy machine


def run_on_ray(plan: TaskPlan, todo: Sequence[int], settings: DataPrepSettings) -> dict[int, str]:
    """Run the tasks of `todo` on the cluster of RAY_ADDRESS, otherwise on this machine.

    Returns the reason of each failure, by index. Raises SettingsError if Ray is not installed,
    RuntimeError if it does not start.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError(
            "executor=ray needs Ray, which is not installed: pip install 'bert-pretraining[ray]', "
            "or executor=local"
        ) from error
    _start(ray, settings)
    remote = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(_run_in_folder)
    failed: dict[int, str] = {}
    try:
        task = ray.put(importable(plan.task)[0])
        waiting = {
            remote.remote(os.getcwd(), task, plan.entries[index], plan.log_dir): index
            for index in todo
        }
        with progress(plan, todo) as bar:
            while waiting:
                [done], _ = ray.wait(list(waiting))
                index = waiting.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    if unfinished(plan, [index]):  # not a worker that crashed as it ended
                        failed[index] = failed_reason(plan, index) or _first_line(error)
                bar.update()
    except BaseException:
        ray.shutdown()  # ends our tasks that still run
        raise
    return failed


def _start(ray: Any, settings: DataPrepSettings) -> None:
    """Connect to Ray, once in this process: a job may run its tasks in several steps.

    Raises RuntimeError if it cannot be reached or started.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    tries = 1 if address else START_TRIES
    for number in range(tries):
        try:
            ray.init(
                address="auto" if address else "local",
                num_cpus=None if address else settings.workers,
                # Ray fills in the worker's own paths: without them it may not find Ray itself
                runtime_env={"env_vars": {"PYTHONPATH": f"{PROJECT}{os.pathsep}${{PYTHONPATH}}"}},
                log_to_driver=False,  # tasks have their own logs
                logging_level=logging.ERROR,
                include_dashboard=None if address else False,
            )
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            if number + 1 == tries:
                raise RuntimeError(
                    f"executor=ray: {_failure(address)}: {_first_line(error)}"
                ) from error


def _failure(address: str | None) -> str:
    if address:
        return f"RAY_ADDRESS={address} cannot be reached (is its `ray start --head` running?)"
    return (
        f"Ray did not start on this machine in {START_TRIES} tries; if it is busy, start Ray first "
        "(ray start --head) and set RAY_ADDRESS=auto, or take executor=local"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _run_in_folder(folder: str, task: Task, entry: TaskEntry, log_dir: Path) -> None:
    """Run one task where the job was started: paths in the settings may be relative."""
    os.chdir(folder)
    run_one(task, entry, log_dir)
