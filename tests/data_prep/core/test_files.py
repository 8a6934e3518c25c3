"""Files are whole or absent."""

import errno
import fcntl
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.core import files
from data_prep.core.files import (
    checksum,
    flush_to_disk,
    link_or_copy,
    new_temporary,
    only_process,
    place,
    read_json,
    remove_abandoned,
    whole_or_absent,
    write_json,
)


def test_a_writer_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail_half_way() -> None:
        with whole_or_absent(target) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "a.bin"
    with whole_or_absent(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"


def test_equal_values_give_equal_bytes_whatever_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [1, 2.5]})
    write_json(tmp_path / "b.json", {"a": [1, 2.5], "b": 1})
    assert checksum(tmp_path / "a.json") == checksum(tmp_path / "b.json")
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5], "b": 1}


def test_a_checksum_changes_with_one_bit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5_000_000))
    (tmp_path / "b").write_bytes(bytes(4_999_999) + b"\x01")
    assert checksum(tmp_path / "a") != checksum(tmp_path / "b")


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(ValueError, match=r"m\.json is not valid JSON"):
        read_json(tmp_path / "m.json")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_with_the_file_and_how_much_of_it_was_written(
    small_disk: Path,
) -> None:
    expected = r"disk/sub/a\.bin: the disk is full, .* at 65,536 bytes of this file.*make room"
    with (  # noqa: PT012
        pytest.raises(OSError, match=expected) as caught,
        whole_or_absent(small_disk / "sub" / "a.bin") as temporary,
        temporary.open("wb", buffering=0) as file,
    ):
        while True:
            file.write(b"x" * 4096)
    assert caught.value.errno == errno.ENOSPC
    assert list((small_disk / "sub").iterdir()) == []


def test_what_a_killed_writer_left_is_removed_and_a_living_writer_s_file_is_not(tmp_path) -> None:
    code = "import os, sys; print(os.getpid())"
    gone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    here = place()
    idle, growing = tmp_path / ".a.json.elsewhere.1.tmp", tmp_path / ".b.json.elsewhere.1.tmp"
    killed, own = tmp_path / f".c.{here}.{int(gone)}.0a.tmp", new_temporary(tmp_path / "d")
    for path in (idle, growing, killed, tmp_path / "e.tmp"):
        path.touch()
    os.utime(idle, (1, 1))
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {growing.name, own.name, "e.tmp"}


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_a_planted_link_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool, exists: bool
) -> None:
    target = tmp_path / "target"
    if exists:
        target.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "00")  # as if it could be known
    (tmp_path / f".a.{place()}.{os.getpid()}.00.tmp").symlink_to(target)
    with pytest.raises(FileExistsError), whole_or_absent(tmp_path / "a", is_folder=is_folder):
        pass
    assert not exists or target.read_text() == "mine"
    assert target.exists() == exists


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_not_replaced_by_one(tmp_path: Path, make) -> None:
    make(tmp_path / "x")
    with pytest.raises(IsADirectoryError, match="No regular file"), whole_or_absent(tmp_path / "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert not (tmp_path / "x").is_file()


def test_two_writers_of_one_file_have_files_of_their_own(tmp_path: Path) -> None:
    with whole_or_absent(tmp_path / "a") as one, whole_or_absent(tmp_path / "a") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "a").read_text() == "1", "of the last to finish"


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with whole_or_absent(tmp_path / "a", is_folder=True) as temporary:
        (temporary / "b").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def _refuse(number: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def _replace(folder: Path, content: str) -> None:
    with whole_or_absent(folder, is_folder=True) as temporary:
        (temporary / "a").write_text(content)


def test_a_folder_is_replaced_whole_and_no_file_of_the_former_stays(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    _replace(folder, "old")
    (folder / "of the former").touch()
    _replace(folder, "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "a"]
    assert (folder / "a").read_text() == "new"


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").symlink_to("elsewhere")
    _replace(tmp_path / "x", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "x"]
    assert not (tmp_path / "x").is_symlink()


@pytest.mark.parametrize("refused", [1, 2], ids=["to set it aside", "to put the new one there"])
def test_a_folder_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, refused) -> None:
    folder = tmp_path / "x"
    _replace(folder, "old")
    rename, calls = os.rename, itertools.count(1)

    def refusing(source: Path, target: Path) -> None:
        if next(calls) == refused:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(OSError, match="busy"):
        _replace(folder, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (folder / "a").read_text() == "old"


def test_a_former_folder_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, caplog) -> None:
    folder = tmp_path / "x"
    _replace(folder, "old")

    def refusing(path: object, *args: object, **how: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    monkeypatch.setattr("shutil.rmtree", refusing)
    _replace(folder, "new")
    assert (folder / "a").read_text() == "new"
    assert "cannot be removed now and stays: Directory not empty" in caplog.text


def test_a_former_folder_that_stayed_is_removed_at_the_next_replacement(
    tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "x[1]"
    _replace(folder, "old")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", _refuse(errno.ENOTEMPTY))
        _replace(folder, "new")
    assert len(list(tmp_path.iterdir())) == 2
    _replace(folder, "newer")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV])
def test_where_there_are_no_hard_links_a_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "link", _refuse(number))
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_file_locks_the_caller_learns_that_it_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", _refuse(number))
    with only_process(tmp_path / "lock") as is_locked:
        assert not is_locked


def test_a_lock_keeps_others_out_until_it_ends_and_is_no_link(tmp_path: Path) -> None:
    with only_process(tmp_path / "lock") as is_locked:
        assert is_locked
        with pytest.raises(BlockingIOError), only_process(tmp_path / "lock"):
            pass
    (tmp_path / "link").symlink_to("lock")
    with pytest.raises(OSError, match="symbolic"), only_process(tmp_path / "link"):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_is_no_fsync_files_are_written_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", _refuse(number))
    write_json(tmp_path / "a.json", 1)
    assert read_json(tmp_path / "a.json") == 1


def test_an_fsync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        flush_to_disk(tmp_path)
