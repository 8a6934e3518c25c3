"""A run's history from its folder: its starts and how each ended, its metrics, its events.

Nothing is written, and the run may be in progress. Needs no torch.
"""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.files import place, read_json
from data_prep.core.printable import printable
from data_prep.core.records import read_record
from pretrain.config.load import settings_of
from pretrain.config.phases import Phase, phases_of
from pretrain.config.settings import Settings
from pretrain.run_folder.line_types import downstream_of, events_of, guesses_of, metrics_of
from pretrain.run_folder.lock import OWNER_FILE, WATCH_S

BEGINNINGS = ("started", "resumed", "rewound")


class State(enum.Enum):
    running = "running"
    finished = "finished"
    stopped = "stopped"  # by a signal, after saving: the next start continues it
    diverged = "diverged"  # losses are no numbers any more: the run ended itself
    died = "died"  # killed, or ended by an error
    empty = "empty"  # no step yet


@dataclass
class Stretch:
    """Training from a start, or from a rewind before a spike, up to its end."""

    began: datetime
    kind: str  # started, resumed or rewound
    ranks: int
    first_step: int  # updates made before it
    ended: datetime
    last_step: int  # the last one it made, counted or not
    counted_step: int  # the last one that the run still has
    counted_until: datetime
    end: str = "died"  # finished, stopped, diverged, rewound, running, died

    @property
    def lost_steps(self) -> int:
        """Steps that had to be made again."""
        return self.last_step - self.counted_step


@dataclass
class History:
    """The content of a run folder. `records` and `events` are lines of its files, oldest first."""

    folder: Path
    settings: Settings
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]
    guesses: list[dict[str, Any]]  # of each evaluation, by sentence
    environment: dict[str, Any]
    owner_lives: bool
    # fine-tuned checkpoints, by task
    downstream: list[dict[str, Any]] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> History:
        """Read a run folder, which may be somebody else's.

        Raises SettingsError if `folder` is none, or a file in it is not as a run writes it.
        """
        environment = folder / "environment.json"
        history = cls(
            folder,
            settings_of(folder),
            metrics_of(folder / "metrics.jsonl"),
            events_of(folder / "events.jsonl"),
            guesses_of(folder / "guesses.jsonl"),
            _environment(environment) if environment.exists() else {},
            _lives(folder / OWNER_FILE),
            downstream_of(folder / "downstream.jsonl"),
        )
        history.stretches = list(history._stretches())
        return history

    @cached_property
    def phases(self) -> list[Phase]:
        return phases_of(self.settings)

    @property
    def name(self) -> str:
        return printable(self.folder.resolve().name)

    @property
    def state(self) -> State:
        """Whether the run is running, or how it ended."""
        if self.owner_lives:
            return State.running
        if not self.stretches:
            return State.empty
        end = self.stretches[-1].end
        return State(end) if end in ("finished", "stopped", "diverged") else State.died

    @property
    def step(self) -> int:
        """Updates made, including those that the next start may have to repeat."""
        lines = self.records or self.events  # metrics.jsonl may be gone
        return max((line.get("step") or 0 for line in lines), default=0)

    @property
    def total_steps(self) -> int | None:
        """Updates of all phases together; None if a budget of hours ends one of them."""
        lasts = [phase.settings.schedule.last_step for phase in self.phases]
        return None if None in lasts else sum(last for last in lasts if last is not None)

    @property
    def wall_s(self) -> float:
        """Seconds from the first start to the last line written, pauses included."""
        if not self.stretches:
            return 0.0
        return (self.stretches[-1].ended - self.stretches[0].began).total_seconds()

    @property
    def running_s(self) -> float:
        """Seconds of all stretches, without the time between them."""
        return sum((s.ended - s.began).total_seconds() for s in self.stretches)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, without values that are not finite."""
        points = [(r["step"], r[name]) for r in self.records if r.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None if there is none."""
        return next((r[name] for r in reversed(self.records) if r.get(name) is not None), None)

    def _stretches(self) -> Iterator[Stretch]:
        starts = [i for i, event in enumerate(self.events) if event["event"] in BEGINNINGS]
        bounds = [*starts, len(self.events)]
        for number, (first, end) in enumerate(itertools.pairwise(bounds)):
            beginning = self.events[first]
            inside = self.events[first + 1 : end]
            following = self.events[end] if end < len(self.events) else None
            lost = next((e for e in inside if e["event"] == "lost"), None)
            inside = [e for e in inside if e["event"] != "lost"]
            began = moment(beginning)
            until = None if following is None else moment(following)
            records = [
                r
                for r in self.records
                if r["step"] > beginning["step"]
                and moment(r) >= began
                and (until is None or moment(r) < until)
            ]
            counted_until = max((moment(r) for r in records), default=began)
            counted_step = max((r["step"] for r in records), default=beginning["step"])
            ended = max((counted_until, *map(moment, inside)))
            last_step = counted_step
            if lost is not None:
                ended = max(ended, datetime.fromisoformat(lost["until"]))
                last_step = max(last_step, lost["up_to"])
            yield Stretch(
                began,
                beginning["event"],
                beginning["ranks"],
                beginning["step"],
                ended,
                last_step,
                counted_step,
                counted_until,
                self._end(inside, following, is_last=number == len(starts) - 1),
            )

    def _end(
        self, inside: list[dict[str, Any]], following: dict[str, Any] | None, is_last: bool
    ) -> str:
        kinds = {event["event"] for event in inside}
        if any(e["event"] == "finished" and e["phase"] == len(self.phases) for e in inside):
            return "finished"
        if "finished" in kinds and (following is not None or not self.owner_lives):
            return "phase finished"
        for end in ("stopped", "diverged"):
            if end in kinds:
                return end
        if following is not None and following["event"] == "rewound":
            return "rewound"
        return "running" if is_last and self.owner_lives else "died"


def moment(line: dict[str, Any]) -> datetime:
    """When a line of metrics.jsonl or events.jsonl was written."""
    return datetime.fromisoformat(line["time"])


def run_folders(parent: Path) -> list[Path]:
    """The run folders in `parent`, by name. Raises SettingsError if there are none."""
    folders = sorted(path.parent for path in parent.glob("*/config.yaml"))
    if not folders:
        raise SettingsError(
            f"{parent} holds no run (no */config.yaml); give dir=FOLDER, the run.dir of the runs"
        )
    return folders


def _environment(path: Path) -> dict[str, Any]:
    kind = dict[str, str | int | float | bool | dict[str, str | None] | None]
    return read_record(path, kind, "get the file again", follow_links=False)


def _lives(owner_file: Path) -> bool:
    """Whether the process that holds the run folder lives, by its owner.json."""
    try:
        owner = msgspec.convert(read_json(owner_file, follow_links=False), dict[str, Any])
        if owner.get("place") == place():
            return Path(f"/proc/{int(owner['pid'])}").exists()
        return time.time() - owner_file.stat().st_mtime < WATCH_S
    except (OSError, ValueError, KeyError, TypeError):
        return False
