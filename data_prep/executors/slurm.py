"""Runs the tasks in a Slurm job array."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.printable import shortened
from data_prep.core.settings import DataPrepSettings
from data_prep.executors.tasks import (
    TaskPlan,
    failed_reason,
    progress,
    unfinished,
)

POLL_S = 2.0  # between two checks of the records and the queue


def run_on_slurm(plan: TaskPlan, todo: Sequence[int], settings: DataPrepSettings) -> dict[int, str]:
    """Submit a job array whose elements run this program with a share of the tasks, and wait.

    Returns the reason of each failure, by index. Cancels the array if interrupted. Raises
    RuntimeError if sbatch refuses it.
    """
    folder, size = plan.log_dir / "array", min(settings.array_size, len(plan.entries))
    folder.mkdir(parents=True, exist_ok=True)  # without it Slurm ends the job without any message
    cores = [f"--cpus-per-task={settings.num_workers}"] if settings.num_workers else []
    number = _slurm(
        "sbatch", "--parsable", f"--array=1-{size}", f"--job-name={plan.job.replace(' ', '-')}",
        f"--output={folder.resolve()}/%A_%a.out", *cores,
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
    if not is_ended:  # queued elements have nothing left to do
        _cancel("--state=PENDING", number)
    ends = _ends(number)
    return {
        index: failed_reason(plan, index) or _reason(folder, number, index % size + 1, ends)
        for index in left
    }


def _reason(folder: Path, number: str, element: int, ends: Mapping[int, str]) -> str:
    """Why an element of an array ended before its tasks, as far as Slurm and its output tell."""
    path = folder / f"{number}_{element}.out"
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    state = f" ({ends[element]})" if element in ends else ""
    output = f"; its output {path} ends with: {shortened(last, 300)}" if last else f"; see {path}"
    return f"its element of job array {number}, {element}, was ended{state}{output}"


def _ends(number: str) -> dict[int, str]:
    """How each element of an array has ended, such as TIMEOUT; {} once Slurm has forgotten it."""
    try:
        shown = _slurm("squeue", "-h", "-r", "-t", "all", "-o", "%K %T", "-j", number)
    except RuntimeError:
        return {}
    pairs = (line.split() for line in shown.splitlines())
    return {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2 and pair[0].isdigit()}


def _own_command() -> list[str]:
    """`encode data_dir=...` for `python -m data_prep.encode data_dir=...`.

    Raises SettingsError if this is another program or the script is missing.
    """
    if not Path("slurm/data_prep_array.sh").exists():
        raise SettingsError(
            "executor=slurm submits slurm/data_prep_array.sh, which is not in this folder: start "
            "it in the checkout, or copy the scripts here with python -m data_prep.slurm"
        )
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    if not module.startswith("data_prep."):
        raise SettingsError(
            "executor=slurm submits the program that was started: start it as "
            "python -m data_prep.JOB"
        )
    return [module.removeprefix("data_prep."), *sys.argv[1:]]


def _slurm(*command: str) -> str:
    """The output of a Slurm command. Raises RuntimeError with its error message."""
    # Variables of an outer job must not reach this one
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
        refusal = ended.stderr.strip()
        if "node configuration is not available" in refusal:
            refusal += "; set num_workers to the cores of a node or fewer (it is 16 per element)"
        raise RuntimeError(f"{command[0]} refused: {refusal}")
    return ended.stdout


def _cancel(*arguments: str) -> None:
    with contextlib.suppress(RuntimeError):  # it may have ended meanwhile
        _slurm("scancel", *arguments)


def _is_of_a_job(variable: str) -> bool:
    return variable.startswith("SLURM_") and variable != "SLURM_CONF"


def _states(number: str) -> Counter[str]:
    """Number of array elements that are RUNNING, PENDING, ...; empty after its end."""
    try:
        return Counter(_slurm("squeue", "-h", "-r", "-o", "%T", "-j", number).split())
    except RuntimeError as error:
        if "Invalid job id" in str(error):  # Slurm forgets it some minutes after its end
            return Counter()
        return Counter({"unknown": 1})  # the controller does not answer
