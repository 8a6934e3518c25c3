"""Files are whole or absent."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.core.files import checksum, read_json, remove_abandoned, whole_or_absent, write_json


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


def test_a_full_disk_is_told_with_the_file_and_how_much_of_it_was_written(small_disk: Path) -> None:
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
    host = os.uname().nodename
    idle, growing = tmp_path / ".a.json.elsewhere.1.tmp", tmp_path / ".b.json.elsewhere.1.tmp"
    killed, own = tmp_path / f".c.{host}.{int(gone)}.tmp", tmp_path / f".d.{host}.{os.getpid()}.tmp"
    for path in (idle, growing, killed, own, tmp_path / "e.tmp"):
        path.touch()
    os.utime(idle, (1, 1))
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {growing.name, own.name, "e.tmp"}
