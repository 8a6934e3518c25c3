"""A run's folder as its files would be after kills, a signal and a spike, without any training."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from data_prep.core.config import as_yaml, compose
from pretrain.config.settings import Settings

BEGAN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


class MadeRun:
    """Writes the lines that a run would, at seconds after BEGAN."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        typed = ["+model=tiny", f"run.name={folder.name}", "schedule.total_steps=100", *overrides]
        settings, _ = compose("config", Settings, typed)
        (folder / "config.yaml").write_text(as_yaml(settings))

    def event(self, second: float, kind: str, **facts: Any) -> None:
        self._write("events.jsonl", {"time": _time(second), "event": kind, **facts})

    def record(self, second: float, step: int, **figures: float) -> None:
        named = {name.replace("__", "/"): value for name, value in figures.items()}
        self._write("metrics.jsonl", {"step": step, "time": _time(second), **named})

    def guesses(self, step: int, filled: dict[str, Any]) -> None:
        self._write("guesses.jsonl", {"step": step, "time": _time(step), "guesses": filled})

    def _write(self, name: str, line: dict[str, Any]) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _time(second: float) -> str:
    return (BEGAN + timedelta(seconds=second)).isoformat(timespec="milliseconds")


def killed_and_stopped(folder: Path, *overrides: str) -> MadeRun:
    """100 steps: killed at step 50 (40 was saved), stopped by a signal at 70, then finished.

    10 s are lost, and 60 s pass between the starts.
    """
    run = MadeRun(folder, *overrides)
    run.event(0, "started", step=0, ranks=2)
    for step in (10, 20, 30, 40):
        run.record(
            step, step, train__mlm_loss=9 - step / 20, perf__tokens_per_second=1000.0,
            perf__goodput=1.0,
        )  # fmt: skip
    run.event(40, "checkpoint", step=40)
    run.event(80, "lost", after=40, up_to=50, until=_time(50))
    run.event(80, "resumed", step=40, ranks=4)
    for step in (50, 60, 70):
        run.record(
            40 + step, step, train__mlm_loss=9 - step / 20, perf__tokens_per_second=2000.0,
            perf__goodput=0.588,
        )  # fmt: skip
    run.event(110, "stopped", step=70, signal="SIGUSR1")
    run.event(140, "resumed", step=70, ranks=4)
    for step in (80, 90, 100):
        run.record(
            70 + step, step, train__mlm_loss=9 - step / 20, perf__tokens_per_second=2000.0,
            perf__goodput=0.588,
        )  # fmt: skip
    run.record(170, 100, eval__mlm_loss=4.25, eval__mlm_accuracy=0.25)
    run.event(170, "finished", phase=1, step=100)
    return run
