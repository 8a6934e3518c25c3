"""A folder of files as an input: listed in one order everywhere, cut into tasks by size."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources import SourcePlan, cut_by_size
from data_prep.stores.documents import Damage


def plan_files(
    source: SourceSettings, characters_per_part: int, what: str, is_wanted: Callable[[Path], bool]
) -> SourcePlan:
    """Tasks of file names relative to source.path, subfolders included.

    Names are sorted by their characters, so neither the file system's order nor the locale counts.
    Hidden files are passed over. Raises SettingsError where no file is wanted.
    """
    assert source.path is not None
    folder = Path(source.path)
    files = list_files(folder, is_wanted)
    if not files:
        raise SettingsError(f"source.path={folder} holds no {what}, nor do its subfolders")
    names = [path.relative_to(folder).as_posix() for path in files]
    stats = [stat_of(path) for path in files]
    runs = cut_by_size([stat.st_size for stat in stats], characters_per_part)
    states = [[n, s.st_size, s.st_mtime_ns] for n, s in zip(names, stats, strict=True)]
    return SourcePlan(
        tasks=[[names[index] for index in run] for run in runs],
        inputs={"files": len(files), "bytes": sum(stat.st_size for stat in stats)},
        states=[[states[index] for index in run] for run in runs],
    )


def stat_of(path: Path) -> os.stat_result:
    """A file's size and time; of a link that leads nowhere its own: reading it tells what is wrong."""
    return path.stat() if path.exists() else path.lstat()


def list_files(
    folder: Path, is_wanted: Callable[[Path], bool], without: Collection[str] = ()
) -> list[Path]:
    """Wanted files below a folder, sorted; hidden files and folders, and `without`, left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name not in without]
        found += [Path(parent, name) for name in names if name[0] != "."]
    return sorted(filter(is_wanted, found), key=lambda path: path.relative_to(folder).as_posix())


def read_file(source: SourceSettings, name: str) -> bytes | Damage:
    """A file's bytes, or damage where it is gone, as what a broken link points at is.

    Any other OSError is raised, for the next start may read the file: a disk's or a right's.
    """
    assert source.path is not None
    try:
        return (Path(source.path) / name).read_bytes()
    except FileNotFoundError:
        return Damage(name, "is not there to be read; is it a broken link?")
