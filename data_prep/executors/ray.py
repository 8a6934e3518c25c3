"""What runs the tasks of a plan besides this machine's own processes: a Slurm job array, or Ray.

Each takes the plan, the indices of the tasks to run and the settings, waits for their end, and
returns what went wrong, by index.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.settings import DataPrepSettings
from data_prep.executors.run import (
    Plan,
    Task,
    TaskEntry,
    failed_reason,
    importable,
    progress,
    run_one,
    unfinished,
)

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 2.0  # between two looks at the records and at the queue


def run_on_slurm(plan: Plan, todo: Sequence[int], settings: DataPrepSettings) -> dict[int, str]:
    """Submit one job array whose elements run this program again with a share of the tasks each.

    Interrupted, it cancels the array. Raises RuntimeError where sbatch refuses.
    """
    folder, size = plan.log_dir / "array", min(settings.array_size, len(plan.entries))
    folder.mkdir(parents=True, exist_ok=True)  # without it Slurm ends a job without a word
    number = _slurm(
        "sbatch", "--parsable", f"--array=1-{size}", f"--job-name={plan.job.replace(' ', '-')}",
        f"--output={folder.resolve()}/%A_%a.out",
        "slurm/data_prep_array.sh", *_own_command(),
    ).split(";")[0].strip()  # fmt: skip
    left, is_ended = list(todo), False
    try:
        with progress(plan, todo) as bar:
            while left and not is_ended:
                time.sleep(POLL_S)
                states = _states(number)
                is_ended = not states
                bar.set_postfix_str(
                    f"job {number}: {', '.join(f'{n} {state}' for state, n in states.items())}"
                )
                before, left = len(left), unfinished(plan, left)
                bar.update(before - len(left))
    except BaseException:
        _cancel(number)
        raise
    if not is_ended:  # elements that wait in the queue have nothing left to do
        _cancel("--state=PENDING", number)
    unknown = f"its element of job array {number} was ended; see {folder}/{number}_*.out"
    return {index: failed_reason(plan, index) or unknown for index in left}


def run_on_ray(plan: Plan, todo: Sequence[int], settings: DataPrepSettings) -> dict[int, str]:
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
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
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


def _own_command() -> list[str]:
    """`encode data_dir=...` of `python -m data_prep.encode data_dir=...`.

    Raises SettingsError where this is another program, or the script is not to be found.
    """
    if not Path("slurm/data_prep_array.sh").exists():
        raise SettingsError(
            "executor=slurm submits slurm/data_prep_array.sh: start it in " + str(ROOT)
        )
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    if not module.startswith("data_prep."):
        raise SettingsError(
            "executor=slurm submits the program that it was given to: start it as "
            "python -m data_prep.JOB"
        )
    return [module.removeprefix("data_prep."), *sys.argv[1:]]


def _slurm(*command: str) -> str:
    """The output of one of Slurm's programs. Raises RuntimeError with what it says."""
    # What an outer job has in its environment is not this one's
    env = {key: value for key, value in os.environ.items() if not _is_of_a_job(key)}
    try:
        ended = subprocess.run(
            command, env=env | {"VENV": sys.prefix}, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise SettingsError(
            f"executor=slurm needs {command[0]}, which is not on this machine: start the job "
            "where jobs are submitted, or take executor=local"
        ) from error
    if ended.returncode:
        raise RuntimeError(f"{command[0]} refused: {ended.stderr.strip()}")
    return ended.stdout


def _cancel(*arguments: str) -> None:
    with contextlib.suppress(RuntimeError):  # it has ended meanwhile
        _slurm("scancel", *arguments)


def _is_of_a_job(variable: str) -> bool:
    return variable.startswith("SLURM_") and variable != "SLURM_CONF"


def _states(number: str) -> Counter[str]:
    """How many elements of an array are RUNNING, PENDING, ...; empty when it has ended."""
    try:
        return Counter(_slurm("squeue", "-h", "-r", "-o", "%T", "-j", number).split())
    except RuntimeError as error:
        if "Invalid job id" in str(error):  # forgotten, some minutes after its end
            return Counter()
        return Counter({"unknown": 1})  # the controller does not answer
