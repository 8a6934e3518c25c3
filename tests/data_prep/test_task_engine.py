"""Numbered tasks: isolated from one another, restartable, counted over all starts."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import made_tasks
import pytest

from data_prep.engine import is_new_start, run_tasks


def _start(
    folder: Path, task: functools.partial[dict[str, int]], num_workers: int = 2, **settings: object
) -> dict[str, int]:
    return run_tasks("job", folder / "logs", 4, task, num_workers, settings)


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_counts_of_all_tasks_are_summed_for_any_number_of_workers(
    tmp_path: Path, num_workers: int
) -> None:
    counts = _start(tmp_path, functools.partial(made_tasks.write, tmp_path), num_workers)
    assert counts == {"documents": 10, "only 0": 2, "only 1": 2}


def test_no_tasks_give_no_counts(tmp_path: Path) -> None:
    assert (
        run_tasks("job", tmp_path / "logs", 0, functools.partial(made_tasks.write, tmp_path), 2, {})
        == {}
    )


def test_a_failing_task_stops_no_other_and_is_named_with_its_error_and_log(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.fail, tmp_path, {1, 2})
    expected = r"job: 2 of 4 tasks failed: 1, 2\. Task 1: ValueError: row 7 of task 1 .*00001\.log"
    with pytest.raises(RuntimeError, match=expected):
        _start(tmp_path, task)
    assert sorted(path.name for path in tmp_path.glob("out-*")) == ["out-0", "out-3"]
    assert "Traceback" in (tmp_path / "logs" / "task-00001.log").read_text()


def test_a_killed_task_stops_no_other_and_is_named_with_the_signal(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.be_killed, tmp_path)
    with pytest.raises(RuntimeError, match=r"1 of 4 tasks failed: 1\. Task 1: ended by SIGKILL"):
        _start(tmp_path, task)
    assert sorted(path.name for path in tmp_path.glob("out-*")) == ["out-0", "out-2", "out-3"]


def test_a_second_start_runs_the_missing_tasks_alone_and_counts_all(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.be_killed, tmp_path)
    with pytest.raises(RuntimeError):
        _start(tmp_path, task)
    (tmp_path / "mended").touch()
    assert _start(tmp_path, task)["documents"] == 10
    assert [(tmp_path / f"out-{i}").read_text() for i in range(4)] == ["0\n", "1\n", "2\n", "3\n"]


def test_a_finished_job_runs_nothing_again(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.write, tmp_path)
    assert _start(tmp_path, task, seed=1) == _start(tmp_path, task, seed=1)
    assert (tmp_path / "out-0").read_text() == "0\n"


def test_other_settings_run_every_task_anew(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.write, tmp_path)
    _start(tmp_path, task, seed=1)
    assert is_new_start(tmp_path / "logs", 4, {"seed": 2})
    _start(tmp_path, task, seed=2)
    assert (tmp_path / "out-0").read_text() == "0\n0\n"


def test_settings_that_json_writes_otherwise_are_still_the_same(tmp_path: Path) -> None:
    _start(tmp_path, functools.partial(made_tasks.write, tmp_path), betas=(0.9, 0.999))
    assert not is_new_start(tmp_path / "logs", 4, {"betas": (0.9, 0.999)})


def test_every_task_has_a_process_of_its_own(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.chatter)
    first = run_tasks("job", tmp_path / "first", 1, task, 1, {})
    second = run_tasks("job", tmp_path / "second", 1, task, 1, {})
    assert len({os.getpid(), first["process"], second["process"]}) == 3


def test_what_a_task_prints_goes_to_its_log_and_not_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_tasks("job", tmp_path, 1, functools.partial(made_tasks.chatter), 1, {})
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "task-00000.log").read_text() == "a library's noise\n"
