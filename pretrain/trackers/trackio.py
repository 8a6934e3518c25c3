"""trackio: rows in the project's SQLite database, in trackio's own folder on this machine.

trackio identifies each record by a text. Here it is made of the run's id and the step, so that a
step which is sent twice is there once. `trackio.init` and `Run.log` would draw a text of their own,
and drop what cannot be written; these are the functions beneath them, which raise an exception.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from pretrain.trackers.tracker import GUESSES, Row, TrackedRun, Tracker, guesses_table


class Trackio(Tracker):
    """One run of a trackio project, through all starts."""

    _write: Callable[[list[dict[str, Any]]], object]
    _id: str

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        self._config: dict[str, Any] | None = run.config  # with the first row of a start

    def start(self) -> int:
        """As `Tracker.start`.

        On a network file system trackio does not write its database, but files that the dashboard
        moves there. What they hold is not known here, so every step is sent again.
        """
        from trackio.fragments import FragmentWriter, import_records
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import get_storage_mode

        project = self.run.log.project
        SQLiteStorage.validate_project_name(project)
        path = self.run.folder / "trackio" / "run-id"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
        self._id = path.read_text()
        if get_storage_mode() == "jsonl":
            self._write = FragmentWriter().write_local
            return 0
        self._write = import_records
        return SQLiteStorage.get_max_step_for_run(project, run_id=self._id) or 0

    def send(self, rows: Sequence[Row]) -> None:
        """Write whole rows. The guesses of a step become a table with a line per sentence."""
        from trackio.fragments import metric_record

        records = []
        for row in rows:
            metrics: dict[str, Any] = dict(row.metrics)
            if row.guesses:
                headings, lines = guesses_table(row.guesses)
                table = [dict(zip(headings, line, strict=True)) for line in lines]
                metrics[GUESSES] = {"_type": "trackio.table", "_value": table}
            entry = {**self._about(row.step, row.time), "metrics": metrics, "config": self._config}
            records.append(metric_record({**entry, "log_id": f"{self._id}-{row.step}"}))
            self._config = None
        self._write(records)

    def alert(self, step: int, title: str, text: str) -> None:
        from trackio.fragments import alert_record

        entry = {**self._about(step, None), "title": title, "text": text, "level": "warn"}
        self._write([alert_record({**entry, "alert_id": f"{self._id}-alert-{step}"})])

    def _about(self, step: int, time: float | None) -> dict[str, Any]:
        """The fields that all records have."""
        moment = datetime.datetime.now(datetime.UTC)
        if time is not None:
            moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
        return {
            "project": self.run.log.project, "run": self.run.name, "run_id": self._id,
            "step": step, "timestamp": moment.isoformat(),
        }  # fmt: skip
