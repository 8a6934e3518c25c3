"""What TensorBoard and trackio hold of a run, by TensorBoard's own reader and by SQLite."""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def tensorboard_of(run_folder: Path) -> EventAccumulator:
    """TensorBoard's own view of a run's files."""
    shown = EventAccumulator(str(run_folder / "tensorboard"), {"scalars": 0, "tensors": 0})
    shown.Reload()
    return shown


def tensorboard_scalars(run_folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of one metric, in order."""
    return [(event.step, event.value) for event in tensorboard_of(run_folder).Scalars(name)]


def tensorboard_texts(run_folder: Path, name: str) -> list[tuple[int, str]]:
    """Steps and texts under one name, in order."""
    return [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in tensorboard_of(run_folder).Tensors(name)
    ]


def trackio_rows(trackio_dir: Path, run_folder: Path, project: str = "p") -> list[dict[str, Any]]:
    """The rows of a run with their steps, in the order in which they were written."""
    run_id = (run_folder / "trackio" / "run-id").read_text()
    with contextlib.closing(sqlite3.connect(trackio_dir / f"{project}.db")) as database:
        found = database.execute(
            "SELECT step, metrics FROM metrics WHERE run_id = ? ORDER BY id", (run_id,)
        )
        return [{"step": step, **json.loads(metrics)} for step, metrics in found]


def trackio_config(trackio_dir: Path, run_folder: Path, project: str = "p") -> dict[str, Any]:
    """The configuration of a run."""
    run_id = (run_folder / "trackio" / "run-id").read_text()
    with contextlib.closing(sqlite3.connect(trackio_dir / f"{project}.db")) as database:
        (text,) = database.execute("SELECT config FROM configs WHERE run_id = ?", (run_id,))
        config: dict[str, Any] = json.loads(text[0])
        return config
