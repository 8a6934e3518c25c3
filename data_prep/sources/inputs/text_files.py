"""Files and folders as an input: listed in the same order everywhere, cut into tasks by size."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.packed import endings_of, fault_of, unpacked
from data_prep.sources.inputs.plan import SourcePlan, cut_by_size
from data_prep.stores.documents import Damage

MOST_BYTES = 256 << 20  # of one file, unpacked; it is held in memory, also as text
NO_FILE = "is not there to be read; is it a broken link or a pipe?"
_MOST_ENDINGS = 5  # of files that are not read; the rest is counted


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
    """Cut the wanted files of source.path into tasks of file names.

    Raises SettingsError if no file is wanted.
    """
    files, others = find_files(source, what, is_wanted)
    runs = cut_by_size([file.size for file in files], characters_per_part)
    return SourcePlan(
        tasks=[[files[index].name for index in run] for run in runs],
        inputs={
            "files": len(files),
            "bytes": sum(file.size for file in files),
            **not_read(source, others),
        },
        states=[[files[index].state for index in run] for run in runs],
    )


def find_files(
    source: SourceSettings, what: str, is_wanted: Callable[[Path], bool]
) -> tuple[list[InputFile], list[Path]]:
    """The wanted files of source.path and the others, as `list_files` finds them.

    Raises SettingsError if none is wanted, naming `what` is and what there is instead.
    """
    wanted, others = list_files(paths_of(source), is_wanted)
    if not wanted:
        instead = "".join(f"; there are {files}" for files in by_ending(_names(source, others)))
        raise SettingsError(
            f"source.path={source.path} holds no {what}, nor do its subfolders{instead}"
        )
    return [InputFile.of(path, root_of(source)) for path in wanted], others


def paths_of(source: SourceSettings) -> list[Path]:
    """The files and folders of source.path; several are absolute."""
    paths = [Path(path) for path in source.paths]
    return paths if len(paths) == 1 else [path.resolve() for path in paths]


def root_of(source: SourceSettings) -> Path:
    """The folder below which files are named: source.path, or what several paths have in common."""
    folders = [path if path.is_dir() else path.parent for path in paths_of(source)]
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))


def not_read(source: SourceSettings, others: Sequence[Path]) -> dict[str, list[str]]:
    """What a plan's inputs record of the files that are not read; nothing if there are none."""
    return {"not_read": by_ending(_names(source, others))} if others else {}


def _names(source: SourceSettings, files: Sequence[Path]) -> list[str]:
    root = root_of(source)
    return [path.relative_to(root).as_posix() for path in files]


def by_ending(names: Sequence[str]) -> list[str]:
    """Files by the ending of their names: how many, and the first one; the most frequent first."""
    endings: dict[str, list[str]] = {}
    for name in names:
        ending = Path(name).suffix.lower() or "without an ending"
        endings.setdefault(ending, []).append(shown(name))
    ordered = sorted(endings.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [
        f"{len(names):,} {ending}{', such as' if len(names) > 1 else ':'} {names[0]}"
        for ending, names in ordered[:_MOST_ENDINGS]
    ]
    rest = sum(len(names) for _, names in ordered[_MOST_ENDINGS:])
    return [*lines, f"{rest:,} others"] if rest else lines


def list_files(
    paths: Sequence[Path], is_wanted: Callable[[Path], bool], without: Collection[str] = ()
) -> tuple[list[Path], list[Path]]:
    """Wanted files in folders and their subfolders, and the others. A path of a file is wanted.

    Hidden files and folders and those named `without` are in neither. A linked folder is followed,
    unless its files have been listed under another path. Sorted by the characters of their names,
    so independent of the file system and the locale.
    Raises SettingsError for a folder that cannot be listed.
    """
    named = {path for path in paths if not path.is_dir()}
    found = set(named)
    listed: set[str] = set()  # real paths of folders
    roots = [path for path in paths if path not in named]
    while roots:
        links: list[Path] = []
        for root in roots:
            for parent, folders, names in os.walk(root, onerror=_refuse):
                if (real := os.path.realpath(parent)) in listed:
                    folders.clear()
                    continue
                listed.add(real)
                folders[:] = [name for name in folders if name[0] != "." and name not in without]
                links += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
                found.update(Path(parent, name) for name in names if name[0] != ".")
        roots = sorted(links)
    ordered = sorted(found, key=Path.as_posix)
    wanted = [path for path in ordered if path in named or is_wanted(path)]
    return wanted, [path for path in ordered if path not in named and not is_wanted(path)]


def _refuse(error: OSError) -> None:
    raise SettingsError(
        f"{error.filename} cannot be listed ({error.strerror}); make it readable, or name the "
        "other files and folders as source.path=[A,B]"
    )


def read_unpacked(source: SourceSettings, name: str) -> bytes | Damage:
    """As `read_file`, but a Damage also if the file cannot be unpacked."""
    try:
        return read_file(source, name)
    except (Exception, EOFError) as error:
        if (fault := fault_of(error)) is None:
            raise
        return Damage(shown(name), fault)


def read_file(source: SourceSettings, name: str) -> bytes | Damage:
    """The bytes of a file, those of a packed one unpacked.

    A Damage if it is missing, such as the target of a broken link, or too large to be held in
    memory. Raises what `fault_of` knows if it cannot be unpacked. Any other OSError, of a disk or
    of permissions, is raised: the next start may read the file.
    """
    path = root_of(source) / name
    if not path.is_file():
        return Damage(shown(name), NO_FILE)
    with path.open("rb") as raw, unpacked(raw, endings_of(name)[1]) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        return Damage(
            shown(name), f"has more than {MOST_BYTES >> 20} MiB; cut it into smaller files"
        )
    return data
