"""TensorBoard and trackio hold every step once, with the sentences and the configuration."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked import tensorboard_scalars, tensorboard_texts, trackio_config, trackio_rows
from tracker_start import CONFIG, record_steps, tracked_run

from pretrain.metrics.monitor import JsonLines, Monitor
from pretrain.trackers.choose import start_trackers
from pretrain.trackers.tensorboard import events
from pretrain.trackers.trackio import Trackio

KEY = "hf_" + "k5ec2e7" * 5


@pytest.fixture(scope="module")
def trackio_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """trackio's own folder, which it fixes when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trackio")
        patch.setenv("TRACKIO_DIR", str(folder))
        patch.setenv("HF_TOKEN", KEY)
        import trackio.utils

        assert folder == trackio.utils.TRACKIO_DIR
        yield folder


def run_start(folder: Path, first_step: int, last_step: int, *trackers: str) -> None:
    feeds = start_trackers(tracked_run(folder, trackers), first_step)
    monitor = Monitor([JsonLines(folder, first_step)], feeds)
    record_steps(monitor, first_step, last_step)
    monitor.close()
    for feed in feeds:
        feed.close()


def cut(files: Iterator[Path] | list[Path], share: float) -> None:
    """Leave a share of the newest file, as after a SIGKILL."""
    newest = max(files)
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])


@pytest.fixture
def later_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start of a test at a later second, as TensorBoard sorts files by it."""
    from tensorboard.summary.writer import event_file_writer

    class Clock:
        seconds = 1_000_000_000.0

        def time(self) -> float:
            self.seconds += 1
            return self.seconds

    monkeypatch.setattr(event_file_writer, "time", Clock())


@pytest.mark.parametrize("share", [0, 0.3, 0.8, 1])
def test_tensorboard_shows_each_step_once_after_a_kill_at_any_byte(
    tmp_path: Path, later_starts: None, share: float
) -> None:
    run_start(tmp_path, 0, 35, "tensorboard")
    cut([*(tmp_path / "tensorboard").iterdir()], share)
    run_start(tmp_path, 30, 45, "tensorboard")
    run_start(tmp_path, 45, 50, "tensorboard")
    steps = range(1, 51)
    losses = tensorboard_scalars(tmp_path, "train/loss")
    assert losses == [(step, pytest.approx(1 / step)) for step in steps]
    assert [step for step, _ in tensorboard_scalars(tmp_path, "eval/loss")] == [10, 20, 30, 40, 50]
    rows = [event.step for event in events(tmp_path / "tensorboard") if len(event.summary.value)]
    assert sorted(set(rows) - {0}) == list(steps)


def test_tensorboard_has_the_sentences_the_texts_and_the_configuration(tmp_path: Path) -> None:
    run_start(tmp_path, 0, 12, "tensorboard")
    ((step, table),) = tensorboard_texts(tmp_path, "eval/guesses")
    assert step == 10
    assert table.splitlines()[2] == "| a [MASK] &#124; <b>x</b>. | cat 50.0% | dog 25.0% |"
    assert tensorboard_texts(tmp_path, "data/batch") == [(10, "sum 10")]
    ((_, config),) = tensorboard_texts(tmp_path, "config")
    assert json.loads(config.removeprefix("```json\n").removesuffix("```")) == CONFIG


@pytest.mark.parametrize("held", [0, 7, 30, 35])
def test_trackio_has_each_step_once_after_a_kill(
    tmp_path: Path, trackio_dir: Path, held: int
) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    run_start(tmp_path, 0, 35, "trackio")
    run_id = (tmp_path / "trackio" / "run-id").read_text()
    with SQLiteStorage._get_connection(SQLiteStorage.get_project_db_path("p")) as database:
        database.execute("DELETE FROM metrics WHERE run_id = ? AND step > ?", (run_id, held))
        database.commit()
    run_start(tmp_path, 30, 50, "trackio")
    rows = trackio_rows(trackio_dir, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert [row["train/loss"] for row in rows] == [1 / step for step in range(1, 51)]
    assert [row["step"] for row in rows if "eval/loss" in row] == [10, 20, 30, 40, 50]


def test_trackio_has_the_sentences_and_the_configuration_and_no_key(
    tmp_path: Path, trackio_dir: Path
) -> None:
    run_start(tmp_path, 0, 12, "trackio")
    row = trackio_rows(trackio_dir, tmp_path)[9]
    table = {"sentence": "a [MASK] | <b>x</b>.", "guess 1": "cat 50.0%", "guess 2": "dog 25.0%"}
    assert row["eval/guesses"] == {"_type": "trackio.table", "_value": [table]}
    assert row["data/batch"] == "sum 10"
    assert trackio_config(trackio_dir, tmp_path) == CONFIG
    for path in [*trackio_dir.rglob("*"), *tmp_path.rglob("*")]:
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_two_runs_of_one_name_are_two_runs_in_trackio(tmp_path: Path, trackio_dir: Path) -> None:
    for name, last in (("a", 3), ("b", 5)):
        (tmp_path / name).mkdir()
        run_start(tmp_path / name, 0, last, "trackio")
    counts = [len(trackio_rows(trackio_dir, tmp_path / name)) for name in "ab"]
    assert counts == [3, 5]


@pytest.fixture
def files_of_trackio(monkeypatch: pytest.MonkeyPatch, trackio_dir: Path) -> Callable[[], Any]:
    """trackio on a network file system: it writes files; what its dashboard then imports."""
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    from trackio.fragments import import_inbox_dir

    return import_inbox_dir


def test_trackio_on_a_network_file_system_has_each_step_once(
    tmp_path: Path, trackio_dir: Path, files_of_trackio: Callable[[], Any]
) -> None:
    run_start(tmp_path, 0, 7, "trackio")
    assert not (trackio_dir / "other.db").exists()
    files_of_trackio()
    run_start(tmp_path, 5, 9, "trackio")
    files_of_trackio()
    assert [row["step"] for row in trackio_rows(trackio_dir, tmp_path)] == list(range(1, 10))


def test_an_alert_is_in_trackio_once(tmp_path: Path, trackio_dir: Path) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    tracker = Trackio(tracked_run(tmp_path, ["trackio"]))
    tracker.start()
    for _ in range(2):
        tracker.alert(5, "title", "text")
    alerts = SQLiteStorage.get_alerts("p", run_id=tracker._id)
    assert [(alert["title"], alert["step"]) for alert in alerts] == [("title", 5)]


def test_a_metric_that_is_not_finite_is_no_error(tmp_path: Path, trackio_dir: Path) -> None:
    for name in ("tensorboard", "trackio"):
        (feed,) = start_trackers(tracked_run(tmp_path, [name]), 0)
        feed.record(1, {"train/loss": math.nan})
        feed.close()
    assert math.isnan(tensorboard_scalars(tmp_path, "train/loss")[0][1])
    assert [row["step"] for row in trackio_rows(trackio_dir, tmp_path)] == [1]
