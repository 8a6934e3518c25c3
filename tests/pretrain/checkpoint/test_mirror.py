"""Copies of checkpoints at a URL: sent whole or not at all, kept as here, fetched if newer."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from saver_samples import FileEngine, saver_of

from data_prep.core.config import SettingsError
from data_prep.stores import remote
from pretrain.checkpoint.files import Keep, find_fault, newest_whole, path_of
from pretrain.checkpoint.mirror import Mirror, fetch_newest, send_checkpoint
from pretrain.checkpoint.progress import Progress

ALL = Keep(newest=9)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(remote, "PAUSES_S", ())
    return f"file://{tmp_path}/store/x"


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def mirror(url: str, events: list[Any]) -> Mirror:
    return Mirror(url, lambda kind, facts: events.append((kind, facts)))


def run_with(folder: Path, *steps: int) -> Path:
    """A run folder with checkpoints of these steps."""
    for step in steps:
        saver = saver_of(folder, FileEngine(step))
        saver.save(Progress.begin(step=step), is_last=True)
    return folder


def mirrored(tmp_path: Path) -> list[str]:
    return sorted(
        path.name for path in (tmp_path / "store/x").glob("step-*") if any(path.iterdir())
    )


def test_each_checkpoint_is_sent_and_old_ones_go_as_they_do_here(
    tmp_path: Path, mirror: Mirror, events: list[Any]
) -> None:
    for step in (5, 10, 15, 20):
        saver = saver_of(tmp_path / "run", FileEngine(step), keep=2, mirror=mirror)
        saver.save(Progress.begin(step=step), is_last=True)
        assert mirror.close(60) is None
    assert mirrored(tmp_path) == ["step-00000015", "step-00000020"]
    assert [facts["step"] for _, facts in events] == [5, 10, 15, 20]
    assert find_fault(tmp_path / "store/x/step-00000020") is None


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(1), [30]), (Keep(2, every=15), [15, 25, 30]), (Keep(1, step=10), [10, 30]),
        (None, [5, 10, 15, 20, 25, 30]),
    ],
)  # fmt: skip
def test_the_settings_of_what_is_kept_hold_at_the_mirror(tmp_path, url, keep, kept) -> None:
    run = run_with(tmp_path / "run", 5, 10, 15, 20, 25, 30)
    for path in sorted((run / "checkpoints").glob("step-*")):
        send_checkpoint(path, url, ALL if path.name != "step-00000030" else keep)
    assert mirrored(tmp_path) == [path_of(run, step).name for step in kept]


def test_a_copy_that_was_cut_goes_with_the_next_one(tmp_path: Path, url: str) -> None:
    run = run_with(tmp_path / "run", 5, 10)
    send_checkpoint(path_of(run, 5), url, ALL)
    (tmp_path / "store/x/step-00000005/manifest.json").unlink()
    (tmp_path / "store/x/own").mkdir()
    (tmp_path / "store/x/own/notes").touch()
    send_checkpoint(path_of(run, 10), url, ALL)
    assert not any((tmp_path / "store/x/step-00000005").iterdir())
    assert (tmp_path / "store/x/own/notes").exists()


def test_the_manifest_is_sent_last(tmp_path: Path, url: str, monkeypatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(remote, "send", lambda path, url: names.append(path.name))
    send_checkpoint(path_of(run_with(tmp_path / "run", 5), 5), url, ALL)
    assert sorted(names[:-1]) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert names[-1] == "manifest.json"


def test_what_is_there_is_not_sent_again(tmp_path: Path, url: str) -> None:
    path = path_of(run_with(tmp_path / "run", 5), 5)
    assert send_checkpoint(path, url, ALL) > 0
    assert send_checkpoint(path, url, ALL) == 0


def test_a_new_folder_gets_the_newest_whole_one(tmp_path: Path, url: str) -> None:
    run = run_with(tmp_path / "run", 5, 10)
    for step in (5, 10):
        send_checkpoint(path_of(run, step), url, ALL)
    line = fetch_newest(tmp_path / "new", url)
    assert line is not None
    assert f"fetched step-00000010 from {url}" in line
    assert newest_whole(tmp_path / "new") == path_of(tmp_path / "new", 10)
    assert fetch_newest(tmp_path / "new", url) is None


def test_an_older_checkpoint_here_is_passed_and_a_newer_one_stays(tmp_path: Path, url: str) -> None:
    run = run_with(tmp_path / "run", 5, 10)
    send_checkpoint(path_of(run, 10), url, ALL)
    assert fetch_newest(run_with(tmp_path / "older", 5), url) is not None
    assert newest_whole(tmp_path / "older") == path_of(tmp_path / "older", 10)
    assert fetch_newest(run_with(tmp_path / "newer", 15), url) is None


def test_a_half_copy_is_no_checkpoint_and_a_broken_one_is_passed_over(
    tmp_path: Path, url: str, caplog
) -> None:
    run = run_with(tmp_path / "run", 5, 10, 15)
    for step in (5, 10, 15):
        send_checkpoint(path_of(run, step), url, ALL)
    (tmp_path / "store/x/step-00000015/manifest.json").unlink()
    (tmp_path / "store/x/step-00000010/model.safetensors").write_text("weights 66")
    assert "step-00000005" in (fetch_newest(tmp_path / "new", url) or "")
    assert "step-00000010 is broken and passed over" in caplog.text
    assert "the manifest says" in caplog.text
    assert [path.name for path in (tmp_path / "new/checkpoints").iterdir()] == ["step-00000005"]


def test_a_run_never_starts_over_because_all_copies_are_broken(tmp_path: Path, url: str) -> None:
    send_checkpoint(path_of(run_with(tmp_path / "run", 5), 5), url, ALL)
    (tmp_path / "store/x/step-00000005/state.json").unlink()
    with pytest.raises(SettingsError, match="none of the 1 checkpoints at file:"):
        fetch_newest(tmp_path / "new", url)
    assert not (tmp_path / "new/checkpoints").exists()


def test_never_to_resume_refuses_what_is_at_the_mirror(tmp_path: Path, url: str) -> None:
    assert fetch_newest(tmp_path / "new", url, may_resume=False) is None
    send_checkpoint(path_of(run_with(tmp_path / "run", 5), 5), url, ALL)
    with pytest.raises(SettingsError, match=r"run\.resume=never, but file:.* holds step-00000005"):
        fetch_newest(tmp_path / "new", url, may_resume=False)


def test_checkpoints_that_an_extension_went_back_from_are_not_fetched(tmp_path, url) -> None:
    run = run_with(tmp_path / "run", 5, 10)
    send_checkpoint(path_of(run, 10), url, ALL)
    (run / "decayed").mkdir()
    path_of(run, 10).rename(run / "decayed/step-00000010")
    assert fetch_newest(run, url) is None


def test_a_store_that_fails_is_warned_of_once_and_counted(
    tmp_path: Path, mirror: Mirror, events: list[Any], monkeypatch, caplog
) -> None:
    def full(path: Path, url: str) -> None:
        raise OSError(28, "quota exceeded", url)

    send = remote.send
    monkeypatch.setattr(remote, "send", full)
    run = run_with(tmp_path / "run", 5, 10, 15)
    with caplog.at_level(logging.WARNING):
        for step in (5, 10):
            mirror.offer(path_of(run, step), ALL)
            assert "quota exceeded" in (mirror.close(60) or "")
    assert caplog.text.count("is not copied to") == 1
    assert [(kind, facts["failures"]) for kind, facts in events] == [
        ("mirror_failed", 1),
        ("mirror_failed", 2),
    ]
    monkeypatch.setattr(remote, "send", send)
    mirror.offer(path_of(run, 15), ALL)
    assert mirror.close(60) is None
    assert mirrored(tmp_path) == ["step-00000015"]


def test_a_slow_store_delays_no_save_and_what_it_reads_is_not_removed(
    tmp_path: Path, mirror: Mirror, events: list[Any], monkeypatch
) -> None:
    is_reached, go, send = threading.Event(), threading.Event(), remote.send

    def slow(path: Path, url: str) -> None:
        is_reached.set()
        assert go.wait(60)
        send(path, url)

    monkeypatch.setattr(remote, "send", slow)
    for step in (5, 10, 15, 20):
        saver = saver_of(tmp_path / "run", FileEngine(step), keep=1, mirror=mirror)
        saver.save(Progress.begin(step=step), is_last=True)
        assert is_reached.wait(60)
    assert (
        mirror.close(0.01) == f"the copy of the last checkpoint to {mirror.url} takes over 0.01 s"
    )
    assert path_of(tmp_path / "run", 5).is_dir()
    go.set()
    assert mirror.close(60) is None
    assert [facts["step"] for _, facts in events] == [5, 20]  # the newest of those that waited
