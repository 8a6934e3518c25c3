"""What runs the tasks of a plan besides this machine's own processes: a Slurm job array, or Ray.

Each takes the plan, the indices of the tasks to run and the settings, waits for their end, and
returns what went wrong, by index.
"""

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
    """Run each task in a Ray worker of its own: on the cluster of RAY_ADDRESS, else on this machine.

    Raises SettingsError where Ray is not installed.
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
        runtime_env={"env_vars": {"PYTHONPATH": str(PROJECT)}},
        log_to_driver=False,  # the tasks have logs of their own
        logging_level=logging.ERROR,
        include_dashboard=None if on_cluster else False,
    )
    remote = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(_run_in_folder)
    failed: dict[int, str] = {}
    try:
        task = ray.put(importable(plan.task)[0])
        waiting = {
            remote.remote(os.getcwd(), task, index, plan.entries[index], plan.log_dir): index
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
        ray.shutdown()  # ends what still runs of ours
    return failed


def _run_in_folder(folder: str, task: Task, index: int, entry: TaskEntry, log_dir: Path) -> None:
    """In Ray's worker. The settings' paths may be relative to where the job was started."""
    os.chdir(folder)
    run_one(task, index, entry, log_dir)
