"""Feeds one tracker from metrics.jsonl: each step once and ascending, whatever ends a start.

A tracker only shows metrics.jsonl, so no failure of it may stop or delay a run: a thread of its own
talks to it. A start first sends from metrics.jsonl what the tracker lacks, because a process was
killed or a server was away. It skips the steps that the tracker has, which a start from a
checkpoint makes again.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.core.printable import printable
from pretrain.metrics.monitor import Sink
from pretrain.run_folder.jsonl import readable_lines
from pretrain.trackers.tracker import Row, TrackedRun, Tracker, in_a_line

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses

logger = logging.getLogger(__name__)

_WORK_S = 60.0
_ROWS_AT_ONCE = 1000


class Feed(Sink):
    """The tracker of one process, through its phases and rewinds."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, first_step: int) -> None:
        """Start in the background. metrics.jsonl holds the records up to `first_step`."""
        self._name, self._tracker, self._run = name, tracker, run
        self._first_step = first_step
        self._is_given_up = False
        self._earlier = readable_lines(run.folder / "events.jsonl")
        self._queue: queue.SimpleQueue[Row | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def record(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self._queue.put(Row(step, time.time(), metrics))

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind == "expectation":  # the other events are in events.jsonl alone
            self._queue.put(lambda: self._alert(facts))

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        self._queue.put(Row(step, time.time(), {}, filled))

    def artifact(self, folder: Path) -> None:
        """Send the exported model in `folder`, if the tracker takes models."""
        self._queue.put(lambda: self._tracker.artifact(folder))

    def close(self) -> None:
        """Wait until the tracker has everything, but no longer than its time-outs together."""
        self._queue.put(None)
        self._thread.join(3 * self._run.log.timeout_s + _WORK_S)
        if self._thread.is_alive():
            self._give_up("did not end in time.")

    def _work(self) -> None:
        """The thread. An error is logged once, and training goes on."""
        try:
            if (last_step := self._tracker.start()) is None:
                return
            self._follow(self._catch_up(last_step))
            self._tracker.finish()
        except Exception as error:  # noqa: BLE001  none of a tracker's many errors may end a run
            if not self._is_given_up:  # otherwise logged before
                self._give_up(f"failed ({in_a_line(error)}).")

    def _give_up(self, how: str) -> None:
        self._is_given_up = True
        logger.warning("%s", printable(f"{self._name} {how} {self._tracker.cure()}"))
        with contextlib.suppress(Exception):
            self._tracker.abandon()

    def _catch_up(self, last_step: int) -> int:
        """Send the earlier records that the tracker lacks; return the last step it then has."""
        for event in self._earlier:
            if event["event"] == "expectation" and event["step"] > last_step:
                self._alert(event)
        rows = _whole_rows(self._run.folder, self._first_step)
        rows = [row for row in rows if row.step > last_step]
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            self._tracker.send(rows[first : first + _ROWS_AT_ONCE])
        return rows[-1].step if rows else last_step

    def _follow(self, last_step: int) -> None:
        """Send rows from the queue until None comes, each once it is whole, and those that wait
        together.

        A row is whole when a later one begins: an evaluation adds to the row of its step. If the
        process is killed in between, the next start sends the row.
        """
        held: Row | None = None
        whole: list[Row] = []
        while True:
            row = self._queue.get()
            if callable(row):
                row()
                continue
            if held is not None and (row is None or row.step != held.step):
                if held.step > last_step:
                    whole.append(held)
                    last_step = held.step
                held = None
            if whole and (row is None or self._queue.empty() or len(whole) == _ROWS_AT_ONCE):
                self._tracker.send(whole)
                whole = []
            if row is None:
                return
            held = row if held is None else _joined(held, row)

    def _alert(self, facts: dict[str, Any]) -> None:
        text = "\n".join([facts["text"], *facts["findings"]])
        title = f"{self._run.name}: the loss is not as expected"
        self._tracker.alert(facts["step"], title, text)


def _joined(row: Row, later: Row) -> Row:
    """One row of two of one step."""
    metrics, guesses = {**row.metrics, **later.metrics}, later.guesses or row.guesses
    return Row(row.step, later.time, metrics, guesses)


def _whole_rows(run_folder: Path, last_step: int) -> list[Row]:
    """The run's records up to a step, one row per step, ascending."""
    rows: dict[int, Row] = {}
    for path in (run_folder / "metrics.jsonl", run_folder / "guesses.jsonl"):
        for record in readable_lines(path):
            step, moment = record.pop("step"), record.pop("time")
            if step > last_step:
                continue
            seconds = datetime.datetime.fromisoformat(moment).timestamp()
            guesses = record.pop("guesses", None)
            metrics = {name: math.nan if v is None else v for name, v in record.items()}
            row = Row(step, seconds, metrics, guesses)
            rows[step] = _joined(rows[step], row) if step in rows else row
    return [rows[step] for step in sorted(rows)]
