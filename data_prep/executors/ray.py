"""Runs each task in a Ray worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.config import PROJECT, SettingsError
from data_prep.core.settings import DataPrepSettings
from data_prep.executors.tasks import (
    Task,
    TaskEntry,
    TaskPlan,
    failed_reason,
    importable,
    progress,
)
from data_prep.executors.worker import run_one


def run_on_ray(plan: TaskPlan, todo: Sequence[int], settings: DataPrepSettings) -> dict[int, str]:
    """Run the tasks of `todo` on the cluster of RAY_ADDRESS, otherwise on this machine.

    Returns the reason of each failure, by index. Raises SettingsError if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError(
            "executor=ray needs Ray, which is not installed: pip install -e '.[ray]', or "
            "executor=local"
        ) from error
    on_cluster = "RAY_ADDRESS" in os.environ
    ray.init(
        address="auto" if on_cluster else "local",
        num_cpus=None if on_cluster else settings.workers,
        # Ray fills in the worker's own paths: without them it may not find Ray itself
        runtime_env={"env_vars": {"PYTHONPATH": f"{PROJECT}{os.pathsep}${{PYTHONPATH}}"}},
        log_to_driver=False,  # tasks have their own logs
        logging_level=logging.ERROR,
        include_dashboard=None if on_cluster else False,
    )
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
                    first_line = str(error).strip().split("\n")[0]
                    failed[index] = failed_reason(plan, index) or first_line
                bar.update()
    finally:
        ray.shutdown()  # ends our tasks that still run
    return failed


def _run_in_folder(folder: str, task: Task, entry: TaskEntry, log_dir: Path) -> None:
    """Run one task where the job was started: paths in the settings may be relative."""
    os.chdir(folder)
    run_one(task, entry, log_dir)
