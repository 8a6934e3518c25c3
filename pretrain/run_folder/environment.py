"""Versions, commit and hardware of a start."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = (
    "bert-pretraining",
    "torch",
    "deepspeed",
    "numpy",
    "numba",
    "pyarrow",
    "tokenizers",
    "transformers",
    "wandb",
)


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for the record."""
    here = Path(__file__).resolve()
    root = here.parents[2]
    # An environment often lies in the checkout of another project, whose commit says nothing
    is_ours = _git(root, "ls-files", "--error-unmatch", str(here)) is not None
    return {
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
        "commit": _git(root, "rev-parse", "HEAD") if is_ours else None,
        "has_uncommitted_changes": is_ours and bool(_git(root, "status", "--porcelain")),
        "host": platform.node(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions by package; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git(root: Path, *words: str) -> str | None:
    """What git answers; None outside a checkout or without git."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
