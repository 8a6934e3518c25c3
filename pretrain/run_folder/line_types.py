"""What each line of a run folder's files must hold for others to rely on it.

A run folder may be somebody else's. Fields that are not named here may be there, of any type.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.printable import shortened
from data_prep.core.records import Count
from pretrain.checkpoint.extension import Change
from pretrain.run_folder.jsonl import readable_lines

# As run_folder.jsonl.now writes it
_TIME = r"\A[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}(\.[0-9]{3}|\.[0-9]{6})?\+00:00\Z"
Time = Annotated[str, msgspec.Meta(pattern=_TIME)]
Number = Annotated[float, msgspec.Meta(ge=-1e100, le=1e100)]  # a chart can show it


class Timed(msgspec.Struct, kw_only=True):
    """A line of any of the files."""

    time: Time
    times: ClassVar[tuple[str, ...]] = ("time",)


class Metrics(Timed, kw_only=True):
    """A line of metrics.jsonl; its other fields are numbers, null, or the text of `data/batch`."""

    step: Count


class Guesses(Timed, kw_only=True):
    """A line of guesses.jsonl: the tokens guessed for each sentence, with their probability."""

    step: Count
    guesses: dict[str, list[tuple[str, Number]]]


class Event(Timed, kw_only=True):
    """A line of events.jsonl."""

    event: str
    step: Count | None = None
    after: Count | None = None


class Beginning(Event, kw_only=True):
    step: Count
    ranks: Count


class Lost(Event, kw_only=True):
    after: Count
    up_to: Count
    until: Time
    times: ClassVar[tuple[str, ...]] = ("time", "until")


class Finished(Event, kw_only=True):
    step: Count
    phase: Count


class Saved(Event, kw_only=True):
    step: Count


class Expectation(Event, kw_only=True):
    step: Count
    what: str
    text: str
    findings: list[str]


class InitFrom(Event, kw_only=True):
    folder: str
    checksum: str
    new: list[str]
    added_words: Count


class Diverged(Event, kw_only=True):
    step: Count
    text: str


class Extended(Event, kw_only=True):
    step: Count
    changes: list[Change]


class Mean(msgspec.Struct):
    mean: Number


class Downstream(msgspec.Struct):
    """A line of downstream.jsonl: a fine-tuned checkpoint."""

    step: Count
    task: str
    seeds: Count
    figures: dict[str, Mean]
    times: ClassVar[tuple[str, ...]] = ()


EVENTS: dict[str, type[Event]] = {
    "started": Beginning,
    "resumed": Beginning,
    "rewound": Beginning,
    "lost": Lost,
    "finished": Finished,
    "checkpoint": Saved,
    "expectation": Expectation,
    "init_from": InitFrom,
    "extended": Extended,
    "diverged": Diverged,
}


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. Raises SettingsError naming the line that is none."""
    return _typed(path, _check_metrics)


def events_of(path: Path) -> list[dict[str, Any]]:
    """The lines of events.jsonl. Raises SettingsError naming the line that is none."""
    return _typed(path, lambda line: _check(line, EVENTS.get(line.get("event", ""), Event)))


def extensions_of(path: Path) -> list[Extended]:
    """The events `extended` of events.jsonl, oldest first; other lines are not checked.

    Raises SettingsError naming the line that is none.
    """
    found: list[Extended] = []

    def check(line: dict[str, Any]) -> None:
        if line.get("event") == "extended":
            found.append(msgspec.convert(line, Extended))

    _typed(path, check)
    return found


def changes_text(line: dict[str, Any]) -> str:
    """The changes of an event `extended`."""
    return "; ".join(map(str, msgspec.convert(line, Extended).changes))


def guesses_of(path: Path) -> list[dict[str, Any]]:
    """The lines of guesses.jsonl. Raises SettingsError naming the line that is none."""
    return _typed(path, lambda line: _check(line, Guesses))


def downstream_of(path: Path) -> list[dict[str, Any]]:
    """The lines of downstream.jsonl. Raises SettingsError naming the line that is none."""
    return _typed(path, lambda line: _check(line, Downstream))


def _typed(path: Path, check: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    lines = readable_lines(path)
    for number, line in enumerate(lines, start=1):
        try:
            check(line)
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"{path}: object {number} is not as a run writes it "
                f"({shortened(str(error).replace('`', ''))}); get the file again, or use the "
                "version of this project that wrote it"
            ) from error
    return lines


def _check(line: dict[str, Any], kind: type[Timed | Downstream]) -> None:
    msgspec.convert(line, kind)
    for name in kind.times:
        datetime.fromisoformat(line[name])  # a 13th month


def _check_metrics(line: dict[str, Any]) -> None:
    _check(line, Metrics)
    msgspec.convert(
        {name: value for name, value in line.items() if name not in ("time", "data/batch")},
        dict[str, Number | None],
    )
