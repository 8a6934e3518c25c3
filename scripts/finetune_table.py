"""Print one table of the results of slurm/finetune.sh.

    python -m scripts.finetune_table out=FOLDER

FOLDER has a folder per task, and in it one per seed. FOLDER/members lists them, one line `TASK
SEED` each. Members without a result are named, and the status is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.core.command import as_typed, status_of
from data_prep.core.files import read_json, write_json
from scripts.finetuning import results
from scripts.finetuning.run import FREE
from scripts.finetuning.settings import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 1 if a member failed, 2 if something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) != 1 or not arguments[0].startswith("out="):
            raise InputError("one argument is needed: out=FOLDER")
        out = Path(arguments[0].removeprefix("out="))
        done, failed = gathered(out)
    except InputError as error:
        sys.stderr.write(as_typed(f"scripts.finetune_table: {error}\n"))
        return 2
    if done:
        write_json(out / results.FILE, done)
        print(results.table(done))
        print(f"results  {out / results.FILE}")
    for line in failed:
        print(f"FAILED  {line}")
    if failed:
        print(f"{len(failed)} failed; the same command again runs only these")
    return 1 if failed else 0


def gathered(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A summary of each task over its seeds, and a line for every member without a result.

    Raises InputError if the members are not listed, or seeds of a task had other settings.
    """
    path = out / "members"
    if not path.is_file():
        raise InputError(f"there is no {path}; slurm/finetune.sh writes it")
    by_task: dict[str, list[Path]] = {}
    failed = []
    for line in path.read_text().splitlines():
        task, seed = line.split()
        folder = out / task / f"seed-{seed}"
        if (folder / results.FILE).is_file():
            by_task.setdefault(task, []).append(folder)
        else:
            job = folder / "job"
            where = f"job {job.read_text().strip()}" if job.is_file() else "it was never started"
            failed.append(f"{task}, seed {seed}: {where}")
    for task, folders in by_task.items():
        settings = [_deciding(folder) for folder in folders]
        for folder, one in zip(folders, settings, strict=True):
            if differing := [name for name in one if one[name] != settings[0].get(name)]:
                raise InputError(
                    f"{task}: {folder} and {folders[0]} differ in {', '.join(differing)}; "
                    "give another out=, or remove one"
                )
    return [
        results.combined([read_json(folder / results.FILE) for folder in folders])
        for folders in by_task.values()
    ], failed


def _deciding(folder: Path) -> dict[str, Any]:
    """The settings that change the metrics, and the model's name."""
    plain = read_json(folder / "settings.json")
    return {name: value for name, value in plain.items() if name not in FREE or name == "model"}


if __name__ == "__main__":
    sys.exit(status_of(main))
