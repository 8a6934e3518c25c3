"""Copy the batch scripts for Slurm: python -m data_prep.slurm makes the folder slurm/ of them.

For an installation by pip; a checkout has them. They start in the folder that holds slurm/, with
`.venv` in it or VENV=FOLDER in the environment, and write logs/, data/ and runs/ there. A file that
is there already is left alone if it is the same, and otherwise nothing is copied.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from data_prep.core.command import as_typed, status_of

SCRIPTS = Path(__file__).parent / "executors" / "slurm_scripts"  # a link in a checkout


def main() -> int:
    """Copy the scripts into ./slurm, and make ./logs; 2 if a file there is another one."""
    to = Path("slurm")
    scripts = sorted(SCRIPTS.iterdir())
    if others := [
        str(path)
        for script in scripts
        if (path := to / script.name).exists() and path.read_bytes() != script.read_bytes()
    ]:
        sys.stderr.write(
            f"{as_typed('data_prep.slurm')}: {', '.join(others)}: there already, and not the same; "
            "move away or delete what is to be replaced\n"
        )
        return 2
    Path("logs").mkdir(exist_ok=True)  # without it Slurm ends a job without a message
    to.mkdir(exist_ok=True)
    for script in scripts:
        shutil.copyfile(script, to / script.name)
    sys.stdout.write(f"{len(scripts)} files in {to}; a job: sbatch slurm/pretrain_base.sh ...\n")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
