"""A folder of files as an input: listed in the same order everywhere, cut into tasks by size."""

from __future__ import annotations

import bz2
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources import SourcePlan, cut_by_size
from data_prep.stores.documents import Damage

MOST_BYTES = 256 << 20  # of one file, unpacked; it is held in memory, also as text


class InputFile(NamedTuple):
    """A file of an input, by its name below the input's folder."""

    name: str
    size: int  # bytes
    state: list[Any]  # changes when the file does

    @classmethod
    def of(cls, path: Path, folder: Path) -> InputFile:
        """Describe a file; of a broken link the link itself, because reading it tells the fault."""
        name = path.relative_to(folder).as_posix()
        stat = path.stat() if path.exists() else path.lstat()
        return cls(name, stat.st_size, [shown(name), stat.st_size, stat.st_mtime_ns])


def shown(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 as \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def plan_files(
    source: SourceSettings, characters_per_part: int, what: str, is_wanted: Callable[[Path], bool]
) -> SourcePlan:
    """Cut the wanted files below source.path into tasks of file names.

    Raises SettingsError if no file is wanted.
    """
    assert source.path is not None
    files = find_files(Path(source.path), what, is_wanted)
    runs = cut_by_size([file.size for file in files], characters_per_part)
    return SourcePlan(
        tasks=[[files[index].name for index in run] for run in runs],
        inputs={"files": len(files), "bytes": sum(file.size for file in files)},
        states=[[files[index].state for index in run] for run in runs],
    )


def find_files(folder: Path, what: str, is_wanted: Callable[[Path], bool]) -> list[InputFile]:
    """The wanted files below a folder, as `list_files` finds them.

    Raises SettingsError if there is none, naming `what` is wanted.
    """
    files = [InputFile.of(path, folder) for path in list_files(folder, is_wanted)]
    if not files:
        raise SettingsError(f"source.path={folder} holds no {what}, nor do its subfolders")
    return files


def list_files(
    folder: Path, is_wanted: Callable[[Path], bool], without: Collection[str] = ()
) -> list[Path]:
    """Wanted files below a folder, without hidden files and folders and those named `without`.

    Sorted by the characters of their names, so independent of the file system and the locale.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name not in without]
        found += [Path(parent, name) for name in names if name[0] != "."]
    return sorted(filter(is_wanted, found), key=lambda path: path.relative_to(folder).as_posix())


def read_file(source: SourceSettings, name: str) -> bytes | Damage:
    """The bytes of a file, those of a .bz2 unpacked.

    A Damage if it is missing, such as the target of a broken link, or too large to be held in
    memory. Raises EOFError, or OSError without a number, if it cannot be unpacked. Any other
    OSError, of a disk or of permissions, is raised: the next start may read the file.
    """
    assert source.path is not None
    try:
        with (Path(source.path) / name).open("rb") as file:
            data = (bz2.BZ2File(file) if name.endswith(".bz2") else file).read(MOST_BYTES + 1)
    except FileNotFoundError:
        return Damage(shown(name), "is not there to be read; is it a broken link?")
    if len(data) > MOST_BYTES:
        return Damage(
            shown(name), f"has more than {MOST_BYTES >> 20} MiB; cut it into smaller files"
        )
    return data
