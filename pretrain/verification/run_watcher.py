"""Watch a run from outside by the files in its folder: for commands that start and end runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pretrain.checkpoint.files import MANIFEST_FILE, read_checkpoint_manifest
from pretrain.run_folder.jsonl import readable_lines
from pretrain.verification.launcher import Launched

T = TypeVar("T")

POLL_S = 0.002
ENDING_S = 60.0  # for the other ranks of a failed one to print why and end
_TAIL_BYTES = 1 << 16  # holds the last line of metrics.jsonl


class RunFailedError(RuntimeError):
    """A run ended, or ran out of time, before it got where it should."""


@dataclass
class WatchedRun:
    """Metrics, events and checkpoints of one run, which may be running."""

    folder: Path

    @property
    def step(self) -> int:
        """The last step in metrics.jsonl, or 0. Cheap enough to be polled."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # the last one may be half written
        return int(orjson.loads(lines[-1])["step"]) if lines else 0

    def metrics(self) -> dict[int, dict[str, float]]:
        """Training and held-out metrics by step: no speed, no time.

        Raises ValueError if metrics.jsonl has a metric of a step twice.
        """
        by_step: dict[int, dict[str, float]] = {}
        for line in readable_lines(self.folder / "metrics.jsonl"):
            kept = {name: v for name, v in line.items() if name.startswith(("train/", "eval/"))}
            metrics = by_step.setdefault(line["step"], {})
            if twice := metrics.keys() & kept.keys():
                raise ValueError(f"{self.folder}: step {line['step']} has {min(twice)} twice")
            metrics |= kept
        return by_step

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, oldest first."""
        lines = readable_lines(self.folder / "events.jsonl")
        return [event for event in lines if event["event"] == kind]

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of `step`, which need not exist."""
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def checksums(self, step: int) -> dict[str, str]:
        """Checksums by file of the checkpoint of `step`; {} if there is none."""
        if not (self.checkpoint(step) / MANIFEST_FILE).exists():
            return {}
        manifest = read_checkpoint_manifest(self.checkpoint(step))
        return {name: entry.checksum for name, entry in manifest.files.items()}


def until(condition: Callable[[], T], launched: Launched, limit_s: float, what: str) -> T:
    """The value of `condition`, once it is true.

    Raises RunFailedError, with the last lines that the run printed, if a rank fails or all end
    before, or after `limit_s` seconds.
    """
    end = time.monotonic() + limit_s
    while True:
        # before the condition: what came just before the end still counts
        has_ended = any(launched.statuses) or not launched.is_running
        if has_ended:
            launched.wait(2 * ENDING_S, grace_s=ENDING_S)
        if answer := condition():
            return answer
        if has_ended or time.monotonic() > end:
            statuses = ", ".join(map(str, launched.statuses))
            why = f"its ranks ended with {statuses}" if has_ended else f"not within {limit_s:.0f} s"
            lines = launched.output.read_text(errors="replace").strip().splitlines()[-8:]
            raise RunFailedError(
                f"waiting for {what}: {why}; the last lines of {launched.output}:\n"
                + "\n".join(f"  {line}" for line in lines)
            )
        time.sleep(POLL_S)
