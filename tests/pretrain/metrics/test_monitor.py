"""Metrics reach their files at once; a run that continues writes every step once."""

import contextlib
import fcntl
import os
import pty
import re
import resource
import struct
import sys
import termios
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from pretrain.metrics.console import CompileLines, Screen
from pretrain.metrics.monitor import JsonLines, Monitor
from pretrain.run_folder.jsonl import readable_lines


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The records without their times."""
    records = lines(folder / "metrics.jsonl")
    return [{name: record[name] for name in record if name != "time"} for record in records]


def test_a_record_is_one_json_line_with_its_step_and_the_time_it_was_written(tmp_path) -> None:
    monitor = Monitor([JsonLines(tmp_path, 0)])
    monitor.record(3, {"train/loss": 1.5})
    monitor.event("checkpoint", step=3)
    monitor.close()
    assert metrics(tmp_path) == [{"step": 3, "train/loss": 1.5}]
    [record], [event] = (lines(tmp_path / f"{name}.jsonl") for name in ("metrics", "events"))
    assert event["event"] == "checkpoint"
    recorded, happened = (datetime.fromisoformat(line["time"]) for line in (record, event))
    assert recorded.tzinfo is not None
    assert 0 <= (happened - recorded).total_seconds() < 60


def test_a_line_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.record(1, {"train/loss": 1.0})
    assert metrics(tmp_path) == [{"step": 1, "train/loss": 1.0}]
    sink.close()


def test_a_line_that_a_full_disk_refuses_is_written_with_the_next(tmp_path, caplog) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.record(1, {"train/loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
    sink.record(2, {"train/loss": 2.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "metrics.jsonl: " in caplog.text, "no warning"
    sink.record(3, {"train/loss": 3.0})
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    sink.close()


def test_lines_after_the_checkpoint_are_dropped_when_a_run_continues(tmp_path: Path) -> None:
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


def test_how_far_a_killed_start_came_is_kept(tmp_path: Path) -> None:
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


def test_half_a_line_of_a_killed_process_spoils_no_later_one(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"time": "2026-03-01T12:00:00+00:00", "ev')
    sink = JsonLines(tmp_path, 0)
    sink.event("resumed", {"step": 3})
    sink.close()
    [event] = readable_lines(tmp_path / "events.jsonl")
    assert event["step"] == 3


def test_nan_is_written_as_null_and_the_file_stays_json(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.record(1, {"train/loss": float("nan")})
    sink.close()
    assert metrics(tmp_path) == [{"step": 1, "train/loss": None}]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("total_steps", [1_000_000, None])
def test_on_a_terminal_the_progress_bar_fits_the_width_and_shows_the_loss(
    monkeypatch: pytest.MonkeyPatch, columns: int, total_steps: int | None
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    metrics = {
        "train/mlm_loss": 10.25, "train/mlm_accuracy": 0.123, "train/nsp_loss": 0.693,
        "train/nsp_accuracy": 0.512, "perf/tokens_per_second": 1_234_567.0,
    }  # fmt: skip
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        screen = Screen(0, total_steps)
        screen.record(900_000, metrics)
        screen._bar.refresh()
        screen.event("phase", {"number": 2})
        screen.close()
    shown = ""
    with contextlib.suppress(OSError):  # the end: no writer is left
        while True:
            shown += os.read(ours, 100_000).decode()
    os.close(ours)
    lines = [re.sub(r"\x1b\[[A-Z]", "", line) for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, lines)) <= columns, lines
    assert any("MLM 10.250 (12.3%) NSP 0.693 (51.2%)" in line for line in lines), lines
    assert shown.count("phase: number=2") == 1


def test_without_a_terminal_the_last_step_is_a_plain_line(capsys) -> None:
    screen = Screen(0, 10)
    screen.record(10, {"train/mlm_loss": 2.0, "train/mlm_accuracy": 0.25})
    screen.close()
    assert "step 10/10  MLM 2.000 (25.0%)" in capsys.readouterr().err


def test_compiled_shapes_are_shown_every_ten_seconds_and_at_the_end(capsys) -> None:
    moments = iter([0.0, 4.0, 11.0, 15.0, 21.0, 22.0])
    lines = CompileLines(5, lambda: next(moments))
    for done in range(1, 6):
        lines.show(done)
    assert capsys.readouterr().err.splitlines() == [
        "compiled 2 of 5 shapes in 0:00:11",
        "compiled 4 of 5 shapes in 0:00:21",
        "compiled 5 of 5 shapes in 0:00:22",
    ]
