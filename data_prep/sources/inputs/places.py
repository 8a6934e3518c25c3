"""Files as an input, wherever they are: paths, folders, patterns and URLs that fsspec opens.

Keys come from the environment (AWS_ACCESS_KEY_ID, HF_TOKEN ...), never from a URL: settings with
one are refused, since manifests and records keep the URL.
"""

from __future__ import annotations

import errno
import glob
import io
import os
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings, is_url
from data_prep.sources.inputs.text_files import NO_FILE, by_ending, list_files, shown
from data_prep.stores.remote import BLOCK, CURE, network_errors, system_of

_BUFFER = 1 << 20  # bytes
# What a store says of a file's version; the first two are enough where they are there
_VERSIONS = ("ETag", "blob_id", "etag", "md5Hash", "crc32c", "LastModified", "last_modified",
             "Last-Modified", "Content-MD5", "mtime", "updated", "created")  # fmt: skip


class Place(NamedTuple):
    """A file of an input, here or in a remote store."""

    name: str  # below the folder that all files have in common
    at: str  # its path or URL
    size: int  # bytes; 0 if it is not known
    state: list[Any]  # changes when the file does


class _Listed(NamedTuple):
    root: str
    wanted: list[Place]  # named by path or URL
    others: list[str]


def find_inputs(
    source: SourceSettings, what: str, is_wanted: Callable[[str], bool]
) -> tuple[list[Place], dict[str, list[str]]]:
    """The wanted files of source.path, by name, and what the inputs record of the others.

    `is_wanted` takes a name; a file that is typed itself is wanted whatever its name. A path that
    does not exist is a pattern, as `glob` has them. Raises SettingsError if a place cannot be
    listed or no file is wanted, naming `what` is.
    """
    listed = [
        _list_url(path, is_wanted) if is_url(path) else _list_local(path, is_wanted)
        for path in source.paths
    ]
    root = _common([place.root for place in listed])
    found = {file.at: file for place in listed for file in place.wanted}
    others = sorted({name[len(root) :] for place in listed for name in place.others})
    others = [name for name in others if root + name not in found]
    told = by_ending(others)
    if not found:
        instead = "".join(f"; there are {files}" for files in told)
        raise SettingsError(f"source.path={source.path} holds no {what}{instead}")
    files = [file._replace(name=file.name[len(root) :]) for file in found.values()]
    ordered = sorted(files, key=lambda file: file.name)
    return ordered, {"not_read": told} if told else {}


def open_input(at: str) -> BinaryIO:
    """A file of an input. Raises FileNotFoundError if it is gone, or is a pipe."""
    if not is_url(at):
        if not os.path.isfile(at):
            raise FileNotFoundError(errno.ENOENT, NO_FILE, at)
        return open(at, "rb", buffering=_BUFFER)
    with network_errors(at):
        system, path = system_of(at)
        return io.BufferedReader(system.open(path, "rb", block_size=BLOCK), _BUFFER)


def version_of(info: dict[str, Any]) -> str:
    """What identifies the content of a remote file, by its entry in a listing."""
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), "")


def _list_local(typed: str, is_wanted: Callable[[str], bool]) -> _Listed:
    path = os.path.abspath(typed)
    matches = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
    wanted, others = list_files([*map(Path, matches)], lambda found: is_wanted(found.name))
    if matches == [path]:
        root = path if os.path.isdir(path) else os.path.dirname(path)
    else:
        root = _without_pattern(path)
        others += [found for found in wanted if not is_wanted(found.name)]
        wanted = [found for found in wanted if is_wanted(found.name)]
    return _Listed(f"{root.rstrip('/')}/", [*map(_local, wanted)], [*map(str, others)])


def _local(path: Path) -> Place:
    """A local file; of a broken link the link itself, because reading it tells the fault."""
    stat = path.stat() if path.exists() else path.lstat()
    return Place(
        str(path), str(path), stat.st_size, [shown(str(path)), stat.st_size, stat.st_mtime_ns]
    )


def _list_url(url: str, is_wanted: Callable[[str], bool]) -> _Listed:
    if url.lower().startswith("http"):
        return _list_page(url)
    try:
        with network_errors(url):
            system, path = system_of(url)
            system.invalidate_cache()
            is_pattern = glob.has_magic(path)
            if is_pattern:
                found = system.glob(path, detail=True)
            elif system.isfile(path):
                found = {path: system.info(path)}
            else:
                found = system.find(path, detail=True)
    except (OSError, ValueError) as error:
        raise _unlisted(url, error) from error
    infos = {
        name: info
        for name, info in sorted(found.items())
        if info["type"] == "file" and not _is_hidden(name.removeprefix(path))
    }
    files = [_remote(system.unstrip_protocol(name), info) for name, info in infos.items()]
    whole = system.unstrip_protocol(path)
    is_file = path in infos
    root = _without_pattern(whole) if is_pattern else whole
    root = root.rpartition("/")[0] if is_file else root.rstrip("/")
    wanted = [file for file in files if is_file or is_wanted(file.at)]
    others = [file.at for file in files if not is_file and not is_wanted(file.at)]
    return _Listed(f"{root}/", wanted, others)


def _list_page(url: str) -> _Listed:
    """One file of a web server, which lists no folders."""
    try:
        with network_errors(url):
            system, path = system_of(url)
            info = system.info(path)
    except (OSError, ValueError) as error:
        raise _unlisted(url, error) from error
    if info.get("partial") is False:
        info["size"] = 0  # a server that sends only whole files; an unknown size is not cut
    file = _remote(url, info)
    name = url.partition("?")[0]
    return _Listed(f"{name.rpartition('/')[0]}/", [file._replace(name=name)], [])


def _remote(url: str, info: dict[str, Any]) -> Place:
    size = info.get("size") or 0
    return Place(url, url, size, [url, size, version_of(info)])


def _unlisted(url: str, error: Exception) -> SettingsError:
    if isinstance(error, SettingsError):
        return error
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileNotFoundError):
        why = f"nothing of this name is there ({why})"
    return SettingsError(f"source.path={url} cannot be listed: {why}; {CURE}")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _without_pattern(path: str) -> str:
    """The folder above the first part of a path that is a pattern."""
    parts = path.split("/")
    plain = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:plain])


def _common(roots: Sequence[str]) -> str:
    """The longest folder, with its slash, in which all of these are; empty if there is none."""
    levels = zip(*(root.rstrip("/").split("/") for root in roots), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return f"{'/'.join(shared)}/" if shared else ""
