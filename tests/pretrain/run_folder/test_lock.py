from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from run_in_fork import pretrain_run

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from pretrain.run_folder.lock import RunLock

BEAT_S, WATCH_S = 0.05, 1.0


def lock(folder: Path) -> RunLock:
    return RunLock(folder, beat_s=BEAT_S, watch_s=WATCH_S)


def hold(folder: Path, says: Connection) -> None:
    os.environ["SLURM_JOB_ID"] = "4711"
    with lock(folder):
        says.send("held")
        signal.pause()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Any]:
    """A process that holds the lock of tmp_path until it is killed."""
    context = multiprocessing.get_context("fork")
    hears, says = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, says))
    process.start()
    assert hears.poll(30)
    yield process
    process.kill()
    process.join()


def test_a_second_job_is_refused_with_the_owner_s_name(tmp_path: Path, holder: Any) -> None:
    said = re.escape(
        f"in use by process {holder.pid} on host {os.uname().nodename}, Slurm job 4711"
    )
    with pytest.raises(SettingsError, match=said + ", since 20"), lock(tmp_path):
        pass
    assert read_json(tmp_path / "owner.json")["pid"] == holder.pid, "it is still the first one's"


def test_an_owner_that_is_suspended_keeps_its_folder(tmp_path: Path, holder: Any) -> None:
    os.kill(holder.pid, signal.SIGSTOP)  # its count stands still, its lock holds
    with pytest.raises(SettingsError, match="in use by process"), lock(tmp_path):
        pass


def test_a_killed_owner_leaves_nothing_to_be_deleted(tmp_path: Path, holder: Any) -> None:
    holder.kill()
    holder.join()
    with lock(tmp_path):
        assert read_json(tmp_path / "owner.json")["pid"] == os.getpid()
    assert not (tmp_path / "owner.json").exists()


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("locks", ["none", "of their own host"])
def test_where_locks_do_not_reach_an_owner_that_lives_is_seen_by_its_count(
    tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    monkeypatch.setattr(fcntl, "lockf", no_locks if locks == "none" else lambda *_: None)
    here = lock(tmp_path)
    here._owner["place"] = "another-kernel"  # of the same host name and perhaps process number
    with pytest.raises(SettingsError, match=f"in use by process {holder.pid}"), here:
        pass


@pytest.mark.parametrize("locks", ["none", "everywhere"])
def test_an_owner_on_a_lost_host_is_taken_over_once_its_count_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    write_json(tmp_path / "owner.json", {"host": "lost", "pid": 1, "since": "then", "beat": 9})
    if locks == "none":
        monkeypatch.setattr(fcntl, "lockf", no_locks)
    with lock(tmp_path):
        assert read_json(tmp_path / "owner.json")["pid"] == os.getpid()


def test_an_owner_file_that_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text("{")
    with lock(tmp_path):
        pass


@pytest.mark.distributed
def test_a_run_on_a_folder_in_use_ends_on_every_rank_and_touches_nothing(
    sample_dir: Path, tmp_path: Path, holder: Any
) -> None:
    arguments = [
        "+model=tiny", f"data.dir={sample_dir}", f"run.dir={tmp_path.parent}",
        f"run.name={tmp_path.name}",
    ]  # fmt: skip
    statuses, output = pretrain_run(arguments, tmp_path, ranks=2)
    assert statuses == [2, 2], output
    assert output.count(f"in use by process {holder.pid}") == 1
    assert not (tmp_path / "config.yaml").exists()
