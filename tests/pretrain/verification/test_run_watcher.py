"""What a run's folder shows while the run writes to it, and waiting for a run."""

import signal
from pathlib import Path

import pytest

from pretrain.verification.launcher import launch
from pretrain.verification.run_watcher import RunFailedError, WatchedRun, until

LINES = b'{"step":1,"train/loss":2.5,"perf/tokens_per_second":9}\n{"step":2,"train/loss":2.25}\n'


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    run = WatchedRun(tmp_path)
    assert run.step == 0
    (tmp_path / "metrics.jsonl").write_bytes(LINES + b'{"step":3,"tra')
    assert run.step == 2


def test_metrics_are_those_of_training_without_speed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(LINES + b'{"step":2,"eval/loss":3.0}\n')
    assert WatchedRun(tmp_path).metrics() == {
        1: {"train/loss": 2.5},
        2: {"train/loss": 2.25, "eval/loss": 3.0},
    }


def test_a_step_that_is_in_the_file_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(LINES + LINES)
    with pytest.raises(ValueError, match="step 1 has train/loss twice"):
        WatchedRun(tmp_path).metrics()


def test_waiting_for_a_run_that_ended_fails_with_the_last_printed_lines(tmp_path: Path) -> None:
    with (
        launch(["print('no room')"], 1, tmp_path / "output", program=["-c"]) as launched,
        pytest.raises(RunFailedError, match=r"(?s)for step 7: its ranks ended with 0;.*no room"),
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
        pytest.raises(RunFailedError, match="for ever: not within 0 s"),
    ):
        until(lambda: False, launched, 0, "for ever")
    assert launched.statuses == [-signal.SIGKILL]
