"""Figures go to files first; a run that continues writes every step once."""

from __future__ import annotations

import resource
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from pretrain.monitor import JsonLines, Monitor, Screen


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def figures(folder: Path) -> list[dict[str, Any]]:
    """The records without the moments at which they were written."""
    records = lines(folder / "metrics.jsonl")
    return [{name: record[name] for name in record if name != "time"} for record in records]


def test_a_record_is_one_json_line_with_its_step(tmp_path: Path) -> None:
    monitor = Monitor([JsonLines(tmp_path, 0)])
    monitor.record(3, {"train/loss": 1.5})
    monitor.event("checkpoint", step=3)
    monitor.close()
    assert figures(tmp_path) == [{"step": 3, "train/loss": 1.5}]
    assert lines(tmp_path / "events.jsonl")[0]["event"] == "checkpoint"


def test_every_line_says_when_it_was_written(tmp_path: Path) -> None:
    monitor = Monitor([JsonLines(tmp_path, 0)])
    monitor.record(3, {"train/loss": 1.5})
    monitor.event("checkpoint", step=3)
    monitor.close()
    written = [lines(tmp_path / name)[0]["time"] for name in ("metrics.jsonl", "events.jsonl")]
    recorded, happened = map(datetime.fromisoformat, written)
    assert recorded.tzinfo is not None
    assert 0 <= (happened - recorded).total_seconds() < 60


def test_a_line_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.record(1, {"train/loss": 1.0})
    assert figures(tmp_path) == [{"step": 1, "train/loss": 1.0}]
    sink.close()


def test_a_line_that_a_full_disk_does_not_take_is_written_with_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.record(1, {"train/loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
    sink.record(2, {"train/loss": 2.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "metrics.jsonl: " in caplog.text, "it is said"
    sink.record(3, {"train/loss": 3.0})
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    sink.close()


def test_lines_beyond_the_checkpoint_go_when_a_run_continues(tmp_path: Path) -> None:
    first = JsonLines(tmp_path, 0)
    for step in (1, 2, 3, 4):
        first.record(step, {"train/loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "train/lo')  # killed in mid-line
    second = JsonLines(tmp_path, 2)
    second.record(3, {"train/loss": 30.0})
    second.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert lines(tmp_path / "metrics.jsonl")[-1]["train/loss"] == 30.0


def test_how_far_a_killed_start_had_come_stays_known(tmp_path: Path) -> None:
    first = JsonLines(tmp_path, 0)
    for step in (1, 2, 3):
        first.record(step, {"train/loss": float(step)})
    first.close()
    [*_, last] = lines(tmp_path / "metrics.jsonl")
    JsonLines(tmp_path, 1).close()
    JsonLines(tmp_path, 1).close()
    [lost] = lines(tmp_path / "events.jsonl")
    assert (lost["event"], lost["after"], lost["up_to"]) == ("lost", 1, 3)
    assert lost["until"] == last["time"]


def test_not_a_number_is_written_as_null_and_the_file_stays_json(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.record(1, {"train/loss": float("nan")})
    sink.close()
    assert figures(tmp_path) == [{"step": 1, "train/loss": None}]


def test_without_a_terminal_the_last_step_is_a_plain_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = Screen(0, 10)
    screen.record(10, {"train/mlm_loss": 2.0, "train/mlm_accuracy": 0.25})
    screen.close()
    assert "step 10/10  MLM 2.000 (25.0%)" in capsys.readouterr().err
