"""One table of what slurm/finetune.sh ran: a folder of tasks, in each a folder a seed.

    python -m scripts.finetune_table out=FOLDER

FOLDER/members names them, a line `TASK SEED` each. What has no result is named, and the status is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.finetuning import results
from scripts.finetuning.run import FREE
from scripts.finetuning.settings import InputError
from scripts.finetuning.trial import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table: 0, 1 where a member failed, 2 where something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) != 1 or not arguments[0].startswith("out="):
            raise InputError("one argument is wanted, out=FOLDER")
        out = Path(arguments[0].removeprefix("out="))
        done, failed = gathered(out)
    except InputError as error:
        sys.stderr.write(f"scripts.finetune_table: {error}\n")
        return 2
    if done:
        write_json(out / results.FILE, done)
        print(results.table(done))
        print(f"results  {out / results.FILE}")
    for line in failed:
        print(f"FAILED  {line}")
    if failed:
        print(f"{len(failed)} failed; the same command again runs these alone")
    return 1 if failed else 0


def gathered(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A summary of each task over its seeds, and what is said of every member without a result.

    Raises InputError where the members are not listed, or seeds of a task had other settings.
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
                    f"{task}: {folder} and {folders[0]} were made with another "
                    f"{', '.join(differing)}; give another out=, or remove one"
                )
    return [
        results.combined([results.read(f) for f in folders]) for folders in by_task.values()
    ], failed


def _deciding(folder: Path) -> dict[str, Any]:
    """The settings on which figures depend, and the model's name."""
    plain = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return {name: value for name, value in plain.items() if name not in FREE or name == "model"}


if __name__ == "__main__":
    sys.exit(main())
