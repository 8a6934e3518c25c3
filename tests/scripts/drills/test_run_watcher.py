"""What a run's folder says while somebody writes into it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pretrain.verification.launcher import launch
from scripts.drills.run_watcher import NotSeenError, Observed, until

LINES = b'{"step":1,"train/loss":2.5,"perf/tokens_per_second":9}\n{"step":2,"train/loss":2.25}\n'


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    run = Observed(tmp_path)
    assert run.step == 0
    (tmp_path / "metrics.jsonl").write_bytes(LINES + b'{"step":3,"tra')
    assert run.step == 2


def test_figures_are_those_of_training_and_leave_speed_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(LINES + b'{"step":2,"eval/loss":3.0}\n')
    assert Observed(tmp_path).figures() == {
        1: {"train/loss": 2.5},
        2: {"train/loss": 2.25, "eval/loss": 3.0},
    }


def test_a_step_that_stands_there_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(LINES + LINES)
    with pytest.raises(ValueError, match="step 1 has train/loss twice"):
        Observed(tmp_path).figures()


def test_who_waits_for_a_run_that_ended_is_told_what_it_printed_last(tmp_path: Path) -> None:
    with (
        launch(["print('no room')"], 1, tmp_path / "output", program=["-c"]) as launched,
        pytest.raises(NotSeenError, match=r"(?s)for step 7: ended: \[0\].*no room"),
    ):
        until(lambda: None, launched, 60, "step 7")


def test_what_comes_with_the_end_of_a_run_still_counts(tmp_path: Path) -> None:
    made = tmp_path / "made"
    code = f"open({str(made)!r}, 'w').close()"
    with launch([code], 1, tmp_path / "output", program=["-c"]) as launched:
        launched.wait(60)
        assert until(made.exists, launched, 60, "the file")


def test_waiting_has_a_limit(tmp_path: Path) -> None:
    code = "import signal; signal.pause()"
    with (
        launch([code], 1, tmp_path / "output", program=["-c"]) as launched,
        pytest.raises(NotSeenError, match="for ever: not within 0 s"),
    ):
        until(lambda: False, launched, 0, "for ever")
    assert launched.statuses == [-signal.SIGKILL]
