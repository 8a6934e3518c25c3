"""Named tasks: isolated from one another, restartable, counted over all starts."""

import functools
import os
from pathlib import Path

import made_tasks
import pytest
from task_starts import start

from data_prep.core.files import read_json
from data_prep.executors.tasks import fingerprint


def _written(folder: Path) -> dict[str, str]:
    """How often each task ran."""
    return {path.name: path.read_text() for path in sorted((folder / "outputs").iterdir())}


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_counts_of_all_tasks_are_summed_for_any_number_of_workers(tmp_path, num_workers) -> None:
    counts = start(tmp_path, functools.partial(made_tasks.write, tmp_path), num_workers)
    assert counts == {"documents": 10, "only 0": 2, "only 1": 2}


def test_no_tasks_give_no_counts(tmp_path: Path) -> None:
    assert start(tmp_path, functools.partial(made_tasks.write, tmp_path), marks="") == {}


def test_a_failing_task_stops_no_other_and_is_named_with_its_error_and_log(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.fail, tmp_path, {1, 2})
    expected = (
        r"job: 2 of 4 tasks failed: task-1, task-2\. Task task-1: ValueError: row 7 of task 1\n"
        r"  cannot be read \(whole log: .*task-1\.log"
    )
    with pytest.raises(RuntimeError, match=expected):
        start(tmp_path, task)
    assert list(_written(tmp_path)) == ["out-0", "out-3"]
    assert "Traceback" in (tmp_path / "logs" / "task-1.log").read_text()
    reason = read_json(tmp_path / "logs" / "failed" / "task-1.json")["reason"]
    assert reason == "ValueError: row 7 of task 1\n  cannot be read"


def test_a_killed_task_stops_no_other_and_is_named_with_the_signal(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.be_killed, tmp_path)
    with pytest.raises(RuntimeError, match=r"1 of 4 tasks failed: task-1\. .*: ended by SIGKILL"):
        start(tmp_path, task)
    assert list(_written(tmp_path)) == ["out-0", "out-2", "out-3"]
    assert not list((tmp_path / "logs" / "running").iterdir())
    assert [path.stem for path in (tmp_path / "logs" / "failed").iterdir()] == ["task-1"]


def test_a_second_start_runs_the_missing_tasks_alone_and_counts_all(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.be_killed, tmp_path)
    with pytest.raises(RuntimeError):
        start(tmp_path, task)
    (tmp_path / "mended").touch()
    assert start(tmp_path, task)["documents"] == 10
    assert _written(tmp_path) == {f"out-{i}": f"{i}\n" for i in range(4)}
    assert not list((tmp_path / "logs" / "failed").iterdir())


def test_a_finished_job_runs_nothing_again_and_leaves_the_manifest(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.write, tmp_path)
    counts = start(tmp_path, task)
    (tmp_path / "manifest.json").touch()
    assert start(tmp_path, task) == counts
    assert _written(tmp_path) == {f"out-{i}": f"{i}\n" for i in range(4)}
    assert (tmp_path / "manifest.json").exists()


def test_a_task_of_another_fingerprint_alone_runs_again_without_the_manifest(tmp_path) -> None:
    task = functools.partial(made_tasks.write, tmp_path)
    start(tmp_path, task)
    (tmp_path / "manifest.json").touch()
    start(tmp_path, task, marks="aaba")
    assert _written(tmp_path)["out-2"] == "2\n2\n"
    assert [len(text) for text in _written(tmp_path).values()] == [2, 2, 4, 2]
    assert not (tmp_path / "manifest.json").exists()


def test_a_task_that_failed_on_a_new_fingerprint_is_not_finished_under_the_old_one(
    tmp_path: Path,
) -> None:
    start(tmp_path, functools.partial(made_tasks.write, tmp_path))
    with pytest.raises(RuntimeError):  # may have changed its file before
        start(tmp_path, functools.partial(made_tasks.fail, tmp_path, {2}), marks="aaba")
    start(tmp_path, functools.partial(made_tasks.write, tmp_path))
    assert [len(text) for text in _written(tmp_path).values()] == [2, 2, 4, 2]


def test_a_lost_or_cut_file_is_written_again(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.write, tmp_path)
    start(tmp_path, task)
    (tmp_path / "outputs" / "out-1").unlink()
    (tmp_path / "outputs" / "out-3").write_text("")
    start(tmp_path, task)
    assert _written(tmp_path) == {f"out-{i}": f"{i}\n" for i in range(4)}


def test_nothing_of_a_task_that_is_no_longer_planned_stays(tmp_path: Path) -> None:
    chatting = functools.partial(made_tasks.chatter, tmp_path)
    start(tmp_path, chatting)
    (tmp_path / "manifest.json").touch()
    start(tmp_path, chatting, marks="aa")
    assert list(_written(tmp_path)) == ["out-0", "out-1"]
    left = {path.name for path in (tmp_path / "logs").rglob("*") if path.is_file()}
    assert left == {"job.json", "task-0.json", "task-1.json", "task-0.log", "task-1.log"}
    described = read_json(tmp_path / "logs" / "job.json")
    assert described["tasks"] == ["task-0", "task-1"]
    assert not (tmp_path / "manifest.json").exists()


def test_a_record_holds_fingerprint_counts_and_times(tmp_path: Path) -> None:
    start(tmp_path, functools.partial(made_tasks.write, tmp_path))
    record = read_json(tmp_path / "logs" / "finished" / "task-3.json")
    assert record.pop("seconds") > 0
    assert record.pop("cpu_seconds") > 0
    assert record.pop("ended") > 1.7e9
    assert record.pop("peak_bytes") > 1e6
    assert record == {"fingerprint": "a", "counts": {"documents": 4, "only 1": 1}, "sizes": [2]}


def test_a_running_task_has_a_record_of_its_process(tmp_path: Path) -> None:
    counts = start(tmp_path, functools.partial(made_tasks.read_record, tmp_path), marks="a")
    assert counts["own process"] == 1


def test_two_starts_at_once_do_no_harm_to_each_other(tmp_path: Path) -> None:
    """The second starts while the first one's task 0 runs, and ends before it."""
    task = functools.partial(made_tasks.start_another, tmp_path)
    assert start(tmp_path, task, num_workers=1) == {"documents": 10, "only 0": 2, "only 1": 2}
    assert _written(tmp_path) == {"out-0": "0\n0\n", **{f"out-{i}": f"{i}\n" for i in (1, 2, 3)}}


def test_fingerprints_depend_on_values_and_not_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_every_task_has_a_process_of_its_own(tmp_path: Path) -> None:
    task = functools.partial(made_tasks.chatter, tmp_path)
    first = start(tmp_path / "first", task, marks="a")
    second = start(tmp_path / "second", task, marks="a")
    assert len({os.getpid(), first["process"], second["process"]}) == 3


def test_what_a_task_prints_goes_to_its_log_and_not_to_the_terminal(tmp_path, capfd) -> None:
    start(tmp_path, functools.partial(made_tasks.chatter, tmp_path), marks="a")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "logs" / "task-0.log").read_text() == "a library's noise\n"
