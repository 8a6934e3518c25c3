"""The content of wandb's files, by wandb's own reader."""

import subprocess
from pathlib import Path
from typing import Any

import orjson
from wandb.util import get_core_path

from pretrain.trackers.wandb import earlier_files


def records(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind (run, history, metric, ...), in the order of `wandb sync`."""
    found = []
    for path in earlier_files(run_folder, own=Path()):
        read = subprocess.run(
            [get_core_path(), "leet", "inspect", "-json", "-run-file", str(path)],
            capture_output=True,
        )
        lines = map(orjson.loads, read.stdout.splitlines())
        found += [line[kind] for line in lines if line["type"] == kind]
    return found


def history(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics, in the order in which they are sent."""
    return [record["item"] for record in records(run_folder, "history")]
