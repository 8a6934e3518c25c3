"""Compiled code is only loaded from folders that no other user can write."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.core import caches
from data_prep.core.caches import INDUCTOR, NUMBA, use_numba_cache, use_private_cache


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with no variable set; temporary folders are made in tmp_path/tmp."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(caches.tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("XDG_CACHE_HOME", NUMBA, INDUCTOR):
        monkeypatch.setenv(name, "")
        monkeypatch.setitem(caches._GIVEN, name, None)
    use_private_cache.cache_clear()
    return tmp_path / "home"


def test_the_cache_is_the_user_s_alone_and_the_same_at_each_start(home: Path) -> None:
    folder = home / ".cache" / "bert-pretrain" / "torchinductor"
    for _ in range(2):
        os.environ[INDUCTOR] = "/tmp/torchinductor_anyone"  # as torch does when it is imported
        use_private_cache.cache_clear()
        use_private_cache(INDUCTOR)
        assert os.environ[INDUCTOR] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(folder.iterdir())


def _world_writable(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def _group_writable(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o770)


def _anothers(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder to another user")
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)


def _link(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    (folder.parent / "planted").mkdir()
    folder.symlink_to("planted")


def _file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()


@pytest.mark.parametrize("plant", [_world_writable, _group_writable, _anothers, _link, _file])
def test_a_planted_cache_is_not_used(
    home: Path, capsys: pytest.CaptureFixture[str], plant: Callable[[Path], None]
) -> None:
    folder = home / ".cache" / "bert-pretrain" / "torchinductor"
    plant(folder)
    use_private_cache(INDUCTOR)
    used = Path(os.environ[INDUCTOR])
    assert used.parent == home.parent / "tmp"
    assert used.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err.count("\n") == 1


def test_a_cache_that_the_user_has_set_is_used_even_if_it_is_a_group_s(home: Path) -> None:
    folder = home / "team"
    _group_writable(folder)
    caches._GIVEN[INDUCTOR] = str(folder)
    use_private_cache(INDUCTOR)
    assert os.environ[INDUCTOR] == str(folder)


@pytest.mark.parametrize("plant", [_world_writable, _anothers, _file])
def test_a_cache_that_others_own_or_everybody_can_write_is_not_used_though_it_is_set(
    home: Path, capsys: pytest.CaptureFixture[str], plant: Callable[[Path], None]
) -> None:
    plant(home / "set")
    caches._GIVEN[INDUCTOR] = str(home / "set")
    use_private_cache(INDUCTOR)
    assert os.environ[INDUCTOR] == str(home / ".cache" / "bert-pretrain" / "torchinductor")
    assert f"{INDUCTOR}={home / 'set'} is not used" in capsys.readouterr().err


def test_a_folder_of_the_settings_is_used_whatever_is_set(home: Path) -> None:
    caches._GIVEN[INDUCTOR] = str(home / "set")
    caches.use_private_compile_caches(str(home / "shared"))
    assert os.environ[INDUCTOR] == str(home / "shared")
    caches.use_private_compile_caches()  # as when the layers are compiled
    assert os.environ[INDUCTOR] == str(home / "shared")


def test_numba_keeps_its_own_cache_where_the_checkout_can_be_written(home: Path) -> None:
    home.mkdir()
    use_numba_cache(home)
    assert os.environ[NUMBA] == ""


def test_numba_has_a_private_cache_where_the_checkout_is_read_only(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    use_numba_cache(home)
    assert os.environ[NUMBA] == str(home / ".cache" / "bert-pretrain" / "numba")


def test_a_temporary_cache_is_removed_when_the_process_ends(home: Path) -> None:
    home.touch()  # no folder can be made in it
    code = (
        "import os; from data_prep.core import caches as c; c.use_private_cache(c.INDUCTOR);"
        "print(os.environ[c.INDUCTOR], os.path.isdir(os.environ[c.INDUCTOR]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folder, is_there = ran.stdout.split()
    assert is_there == "True"
    assert not Path(folder).exists()
