"""Print where the project installs from wheels alone: python -m scripts.check_wheels [python=3.14].

Resolves the versions of constraints.txt for each Python and platform from the index's metadata,
without downloading or installing a package. What no platform has a wheel of is pure Python, and
built anywhere. The status is 1 if one cannot be installed, and 0 if no index can be reached.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.core.command import status_of

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
EXTRAS = {"training": (), "all extras": ("all", "filters", "remote", "warc", "words")}
# Published as source only
SOURCES = ("antlr4-python3-runtime", "deepspeed", "unidic-lite")
AT_ONCE = 8  # they wait for the index
UV = Path("build/uv/bin/uv")  # where `make hashes` has it, too
NO_SOLUTION = 1  # uv's status; 2 if it could not look


class UnreachableError(RuntimeError):
    """No index answers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    typed = list(sys.argv[1:] if argv is None else argv)
    pythons = [word.removeprefix("python=") for word in typed] or [*PYTHONS]
    if unknown := [python for python in pythons if python not in PYTHONS]:
        print(f"scripts.check_wheels: {unknown[0]!r}; it takes python={'|'.join(PYTHONS)}",
              file=sys.stderr)  # fmt: skip
        return 2
    try:
        _install_uv()
        asked = [*itertools.product(pythons, PLATFORMS, EXTRAS)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            faults = [*pool.map(lambda row: fault(row[0], row[1], EXTRAS[row[2]]), asked)]
    except UnreachableError as error:
        print(f"skipped: the index cannot be reached ({error})")
        return 0
    for (python, platform, name), why in zip(asked, faults, strict=True):
        print(f"Python {python}  {platform:<22}  {name:<10}  {why or 'from wheels'}")
    return int(any(faults))


def fault(python: str, platform: str, extras: Sequence[str]) -> str | None:
    """Why the project with these extras does not install from wheels; None if it does."""
    command = [
        str(UV), "pip", "compile", "pyproject.toml", "--quiet", "--constraint", "constraints.txt",
        "--only-binary", ":all:", "--python-version", python, "--python-platform", platform,
        *(word for package in SOURCES for word in ("--no-binary", package)),
        *(word for extra in extras for word in ("--extra", extra)),
    ]  # fmt: skip
    env = {**os.environ, "DS_BUILD_OPS": "0"}  # DeepSpeed is asked what it needs, not compiled
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if ran.returncode == 0:
        return None
    text = " ".join(ran.stderr.split())
    if ran.returncode != NO_SOLUTION:
        raise UnreachableError(text[:200])
    missing = re.search(r"[Bb]ecause (\S+) has no (?:usable )?wheels", text)
    return f"no wheel of {missing[1]}" if missing else text[:200]


def _install_uv() -> None:
    if UV.exists():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", "build/uv", "uv"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise UnreachableError(" ".join(ran.stderr.split())[-200:])


if __name__ == "__main__":
    sys.exit(status_of(main))
