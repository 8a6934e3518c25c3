"""A run seen from outside, by what lies in its folder: for jobs that start runs and hurt them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson

from data_prep.core.files import read_json
from pretrain.verification.launcher import Launched

T = TypeVar("T")

POLL_S = 0.002
_TAIL_BYTES = 1 << 16  # holds the last line of metrics.jsonl


class NotSeenError(RuntimeError):
    """What was waited for has not come."""


class Observed:
    """Figures, events and checkpoints of one run, which may be running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def step(self) -> int:
        """The last one in metrics.jsonl; 0 where there is none. Cheap: it is asked all the time."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # the last one may be half written
        return int(orjson.loads(lines[-1])["step"]) if lines else 0

    def figures(self) -> dict[int, dict[str, float]]:
        """By step, what metrics.jsonl says of training and held-out examples: no speed, no time.

        Raises ValueError where the same figure of a step stands there twice.
        """
        by_step: dict[int, dict[str, float]] = {}
        for line in self._lines("metrics.jsonl"):
            kept = {name: v for name, v in line.items() if name.startswith(("train/", "eval/"))}
            figures = by_step.setdefault(line["step"], {})
            if twice := figures.keys() & kept.keys():
                raise ValueError(f"{self.folder}: step {line['step']} has {min(twice)} twice")
            figures |= kept
        return by_step

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Those of this kind in events.jsonl, oldest first."""
        return [event for event in self._lines("events.jsonl") if event["event"] == kind]

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def checksums(self, step: int) -> dict[str, str]:
        """Of each file of a checkpoint, by its manifest; {} where there is no such checkpoint."""
        path = self.checkpoint(step) / "manifest.json"
        if not path.exists():
            return {}
        return {name: facts["checksum"] for name, facts in read_json(path)["files"].items()}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return []
        return [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def until(condition: Callable[[], T], launched: Launched, limit_s: float, what: str) -> T:
    """What `condition` says, once that is true.

    Raises NotSeenError, with the last lines that the run printed, where it ends before or does not
    come to it within the limit.
    """
    end = time.monotonic() + limit_s
    while True:
        is_running = launched.is_running  # before the look: what came with the end still counts
        if answer := condition():
            return answer
        if not is_running or time.monotonic() > end:
            why = f"not within {limit_s:.0f} s" if is_running else f"ended: {launched.statuses}"
            lines = launched.output.read_text(errors="replace").splitlines()
            said = "".join(f"\n    {line}" for line in lines[-6:])
            raise NotSeenError(f"waiting for {what}: {why}; the run printed last{said}")
        time.sleep(POLL_S)
