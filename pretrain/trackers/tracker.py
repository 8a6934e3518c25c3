"""The interface of a tracker, and what it is given. `Feed` is the only caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pretrain.config.settings import LogSettings

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses

GUESSES = "eval/guesses"  # the name of a row's guesses


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows of the run."""

    folder: Path
    name: str
    log: LogSettings
    config: dict[str, Any]  # settings, plan, data, code and machine, as plain JSON; no keys


class Row(NamedTuple):
    """All that is recorded after one step, once it is complete."""

    step: int
    time: float  # seconds since 1970
    metrics: Mapping[str, float | str]  # not finite: nan
    guesses: Mapping[str, Guesses] | None = None  # for masked sentences, if the step has some


class Tracker:
    """One destination of a run's rows; subclasses say where they go.

    `Feed` calls it from a thread of its own: `start`, then the others in the order of the run, then
    `finish`. Any exception ends it. It is logged once, and training goes on. So a tracker may wait
    and raise as it likes, and need not catch anything.
    """

    def __init__(self, run: TrackedRun) -> None:
        """On rank 0 before the first step; what can fail or takes long belongs into `start`."""
        self.run = run

    def start(self) -> int | None:
        """Continue or begin; the last step that it has of earlier starts, 0 if none.

        Rows up to this step are not sent again. None: it is switched off, and nothing is sent.
        """
        raise NotImplementedError

    def send(self, rows: Sequence[Row]) -> None:
        """Take complete rows, each step once, ascending."""
        raise NotImplementedError

    def alert(self, step: int, title: str, text: str) -> None:
        """Show a message about the run, such as a loss that is not as expected."""

    def artifact(self, folder: Path) -> None:
        """Take the exported model in `folder`; with log.artifact=true, after the last step."""

    def finish(self) -> None:
        """Write what is left, and end."""

    def abandon(self) -> None:
        """After an exception, or when it did not end in time: leave nothing to do at exit."""

    def cure(self) -> str:
        """Where the metrics are after a failure, and how what is missing gets to the tracker."""
        return (
            f"All metrics are in {self.run.folder / 'metrics.jsonl'}. The next start sends what is "
            "missing"
        )


def guesses_table(guesses: Mapping[str, Guesses]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a table with a sentence per line."""
    lines = [
        [sentence, *(f"{word} {probability:.1%}" for word, probability in words)]
        for sentence, words in guesses.items()
    ]
    return ["sentence", *(f"guess {number}" for number in range(1, len(lines[0])))], lines


def in_a_line(error: Exception) -> str:
    """An exception as one line of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
