"""A tracker gets every step once and ascending, and no failure of it reaches the run."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from tracker_start import GUESSES, record_steps, tracked_run

from data_prep.core.config import SettingsError
from pretrain.config.settings import LogSettings
from pretrain.metrics.monitor import JsonLines, Monitor
from pretrain.run_folder.jsonl import append_event
from pretrain.trackers.choose import check_trackers
from pretrain.trackers.feed import Feed
from pretrain.trackers.tracker import Row, TrackedRun, Tracker


class Made(Tracker):
    """Keeps what it is sent in `rows`, which outlives a start."""

    def __init__(self, run: TrackedRun, rows: list[Row], fails_at: int | None = None) -> None:
        super().__init__(run)
        self.rows, self.fails_at = rows, fails_at
        self.alerts: list[tuple[int, str, str]] = []
        self.is_abandoned = False

    def start(self) -> int | None:
        return self.rows[-1].step if self.rows else 0

    def send(self, rows: Sequence[Row]) -> None:
        if self.fails_at is not None and rows[-1].step >= self.fails_at:
            raise OSError("no space\x1b[2J left")
        self.rows.extend(rows)

    def alert(self, step: int, title: str, text: str) -> None:
        self.alerts.append((step, title, text))

    def abandon(self) -> None:
        self.is_abandoned = True


def run_start(tracker: Tracker, first_step: int, last_step: int) -> float:
    """A start that records the steps after `first_step`; the longest time of one, in s."""
    feed = Feed("made", tracker, tracker.run, first_step)
    monitor = Monitor([JsonLines(tracker.run.folder, first_step)], [feed])
    longest = record_steps(monitor, first_step, last_step)
    monitor.close()
    feed.close()
    return longest


def is_complete(rows: Sequence[Row], last_step: int) -> bool:
    """Whether each step is there once, ascending, with all that was recorded after it."""
    whole = all(
        row.metrics["train/loss"] == 1 / row.step
        and ("eval/loss" in row.metrics) == (row.step % 10 == 0)
        and (row.guesses is not None) == (row.step % 10 == 0)
        for row in rows
    )
    return whole and [row.step for row in rows] == list(range(1, last_step + 1))


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    return tracked_run(tmp_path, [], timeout_s=0.01)


@pytest.mark.parametrize("held", [0, 3, 20, 25, 30, 33])
def test_a_tracker_that_has_some_steps_of_a_killed_start_gets_the_others_once(
    run: TrackedRun, held: int
) -> None:
    rows: list[Row] = []
    run_start(Made(run, rows), 0, 33)
    del rows[held:]  # the kill took the rest; the checkpoint was at step 25
    run_start(Made(run, rows), 25, 40)
    assert is_complete(rows, 40)


def test_rows_of_a_former_start_have_the_time_of_their_record(run: TrackedRun) -> None:
    run_start(Made(run, sent := []), 0, 12)
    run_start(Made(run, again := []), 12, 12)
    for first, second in zip(sent, again, strict=True):
        assert first.time == pytest.approx(second.time, abs=5)


def test_a_row_whose_evaluation_was_made_again_after_a_kill_is_sent_whole(run: TrackedRun) -> None:
    feed = Feed("made", Made(run, rows := []), run, 0)
    feed.record(1, {"a": 1.0})
    feed.record(2, {"a": 2.0})
    feed.guesses(2, GUESSES)
    feed.record(2, {"b": 3.0})
    feed.close()
    assert [(row.step, row.metrics, row.guesses) for row in rows] == [
        (1, {"a": 1.0}, None),
        (2, {"a": 2.0, "b": 3.0}, GUESSES),
    ]


def test_a_failing_tracker_is_named_once_and_the_next_start_sends_the_rest(
    run: TrackedRun, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Made(run, rows := [], fails_at=8)
    run_start(failing, 0, 20)
    (record,) = caplog.records
    assert "made failed (OSError: no space\\x1b[2J left)" in record.getMessage()
    assert "metrics.jsonl. The next start sends what is missing" in record.getMessage()
    assert failing.is_abandoned
    run_start(Made(run, rows), 20, 30)
    assert is_complete(rows, 30)


def test_no_step_waits_for_a_tracker_that_hangs(
    run: TrackedRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.trackers.feed._WORK_S", 0.05)
    released = threading.Event()

    class Hanging(Made):
        def start(self) -> int:
            released.wait()
            raise RuntimeError("after it was given up")

    caplog.set_level(logging.WARNING)
    hanging = Hanging(run, [])
    feed = Feed("made", hanging, run, 0)
    longest = record_steps(Monitor([], [feed]), 0, 20)
    feed.close()
    released.set()
    feed._thread.join()
    assert longest < 0.05
    assert hanging.is_abandoned
    assert ["did not end in time" in record.getMessage() for record in caplog.records] == [True]


def test_a_tracker_that_is_switched_off_gets_nothing(run: TrackedRun) -> None:
    class Off(Made):
        def start(self) -> None:
            return None

    run_start(Off(run, rows := []), 0, 12)
    assert rows == []


def test_an_expectation_of_a_former_start_is_shown_unless_the_tracker_is_past_it(
    run: TrackedRun,
) -> None:
    facts = {"step": 5, "text": "the loss is high", "findings": ["the rate is high"]}
    append_event(run.folder, "expectation", facts)
    for has, shown in ((4, 1), (5, 0)):
        tracker = Made(run, [Row(has, 0.0, {})])
        run_start(tracker, 0, 0)
        assert len(tracker.alerts) == shown
    feed = Feed("made", tracker, run, 0)
    feed.event("expectation", facts | {"step": 7})
    feed.event("checkpoint", {"step": 8})
    feed.close()
    title = "x: the loss is not as expected"
    assert tracker.alerts == [(7, title, "the loss is high\nthe rate is high")]


def log_settings(*trackers: str, wandb: bool = False) -> LogSettings:
    return LogSettings(wandb, "p", None, False, 1, [*trackers])


def test_each_tracker_is_named_once_however_it_was_asked_for() -> None:
    assert log_settings("tensorboard", "wandb", "tensorboard", wandb=True).names == [
        "wandb",
        "tensorboard",
    ]


def test_a_tracker_that_is_not_known_or_not_installed_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError, match="mlflow is not known; there are wandb, tensorboard"):
        check_trackers(log_settings("mlflow"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'pip install "bert-pretraining\[trackio\]"'):
        check_trackers(log_settings("trackio"))
