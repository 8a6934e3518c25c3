"""The settings that a batch script gives pretrain.run."""

import re
import shlex
from pathlib import Path

SLURM = Path(__file__).resolve().parents[2] / "slurm"


def script_settings(size: str) -> list[str]:
    """Those of slurm/pretrain_<size>.sh, without what is typed after it."""
    text = (SLURM / f"pretrain_{size}.sh").read_text().replace("\\\n", " ")
    (line,) = re.findall(r'^pretrain (.*) "\$@"$', text, re.MULTILINE)
    return shlex.split(line)
