"""Files that are whole or absent, and their checksums."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import xxhash

from data_prep.core.config import SettingsError

# What a file system says that lacks locks, hard links or fsync
NOT_OFFERED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
ABANDONED_S = 3600.0  # without a write; writers write every few seconds
_REMOVED = ".removed.tmp"  # ends the name of a folder that is about to be removed
MOST_JSON_BYTES = 64 << 20  # a manifest of 200,000 parts, 3 TB of text

logger = logging.getLogger(__name__)


@functools.cache
def place() -> str:
    """Where process numbers are unique: "<boot of the kernel>-<PID namespace>", in short digests.

    Containers may share a host name, and even on one host each counts its processes from 1.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        known = boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        known = os.uname().nodename, ""
    return "-".join(xxhash.xxh32_hexdigest(text.encode()) for text in known)


def memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory, swap included, that this process can have: the host's, or less if one of
    its cgroups (a Slurm job's, a container's) has a limit."""
    swap = re.search(r"^SwapTotal: *(\d+) kB", _text_of(proc / "meminfo"), re.M)
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _text_of(proc / "self/cgroup").splitlines():
        _, kind, path = line.split(":", 2)
        if kind in ("", "memory"):
            own = cgroups / kind / path.lstrip("/")
            file = "memory.limit_in_bytes" if kind else "memory.max"
            limits = [_text_of(folder / file).strip() for folder in (own, *own.parents)]
            found += [int(limit) for limit in limits if limit.isdecimal()]
    return min(found) + (1024 * int(swap[1]) if swap else 0)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def whole_or_absent(path: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Yield a new empty file or folder next to `path`: renamed to it on a clean exit, else removed.

    A folder that was there is replaced as a whole; if it cannot be, it stays and OSError is raised.
    The data is flushed to disk before the rename, and the folder after it, so that not even a power
    loss leaves half a file under the final name. See `new_temporary` for the temporary name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_folder and path.exists() and not path.is_file():  # a device would be replaced
        raise OSError(errno.EISDIR, "No regular file", str(path))
    temporary = new_temporary(path, is_folder=is_folder)
    try:
        yield temporary
        flush_to_disk(temporary)
        if is_folder:
            _replace_folder(temporary, path)
        else:
            os.replace(temporary, path)
        flush_to_disk(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = temporary.stat().st_size if temporary.is_file() else 0
        raise OSError(
            error.errno,
            f"{path}: the disk is full, or the quota used up, at {written:,} bytes of this file, "
            "which is removed again; make room, or choose a folder on another disk, and run the "
            "same command again",
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _replace_folder(new: Path, folder: Path) -> None:
    former = _to_be_removed(folder)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, former)
    try:
        os.rename(new, folder)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.rename(former, folder)
        raise
    name = glob.escape(folder.name.lstrip("."))
    for path in folder.parent.glob(f".{name}.????????{_REMOVED}"):  # also what stayed earlier
        remove_folder(path)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if there is one; what the system does not let go is a warning.

    That may be a file that is held open on NFS, or a mount point. The folder first gets a hidden
    name, so that what stays of it does not look whole.
    """
    try:
        if not folder.name.endswith(_REMOVED):
            hidden = _to_be_removed(folder)
            os.rename(folder, hidden)
            folder = hidden
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        _warn_once(str(folder), error.strerror or str(error))


def _to_be_removed(folder: Path) -> Path:
    """A new hidden name next to `folder`."""
    return folder.with_name(f".{folder.name.lstrip('.')}.{secrets.token_hex(4)}{_REMOVED}")


@functools.cache
def _warn_once(folder: str, reason: str) -> None:
    logger.warning("%s cannot be removed now and stays: %s", folder, reason)


def new_temporary(path: Path, *, is_folder: bool = False) -> Path:
    """Make an empty file or folder next to `path`, of a name that no one can know before.

    Where others may write, too, a link of that name, planted to have another file overwritten, is
    an error (FileExistsError). The name starts with a dot and ends in `.tmp`, so listings can skip
    it and leftovers of killed writers are recognised by their place and process.
    """
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.name}.{place()}.{os.getpid()}.{token}.tmp")
    if is_folder:
        temporary.mkdir()
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        os.close(os.open(temporary, flags, 0o666))
    return temporary


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files that killed writers have left below `folder`.

    Those of this place go if their process is gone, those of other places after an idle hour.
    """
    for path in folder.rglob(".*.tmp"):
        own = re.fullmatch(rf"\..+\.{place()}\.(\d+)\.[0-9a-f]+\.tmp", path.name)
        with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
            is_idle = time.time() - path.stat().st_mtime > ABANDONED_S
            if not Path(f"/proc/{own[1]}").exists() if own else is_idle:
                path.unlink()


def flush_to_disk(path: Path) -> None:
    """fsync one file or folder, if its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy if the file system has none (FAT, BeeGFS, some FUSE mounts)."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def only_process(path: Path) -> Iterator[bool]:
    """Hold a lock on the file `path`; it ends with the process. False if there are no locks here.

    Raises BlockingIOError if another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys, whole or not at all: same value, same bytes."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(orjson.dumps(value, msgspec.to_builtins, options))


def read_json(path: Path, *, follow_links: bool = True) -> Any:
    """The content of a JSON file. Raises ValueError naming a file that is not JSON or too large."""
    try:
        return orjson.loads(read_bounded(path, MOST_JSON_BYTES, follow_links=follow_links))
    except orjson.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); delete it and make it again"
        ) from error


def regular_size(path: Path) -> int:
    """Bytes of a regular file, or of the one that a link leads to.

    Raises FileNotFoundError, and SettingsError for a folder, a device or a pipe: some have no end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise SettingsError(f"{path} is not a regular file; put the file of that name back")
    return found.st_size


def read_bounded(path: Path, most: int, *, follow_links: bool = True) -> bytes:
    """The bytes of a regular file. Raises SettingsError as `check_bounded` does."""
    check_bounded(path, most, follow_links=follow_links)
    return path.read_bytes()


def check_bounded(path: Path, most: int, *, follow_links: bool = True) -> None:
    """Refuse what is no regular file, or has more than `most` bytes. Raises SettingsError.

    With follow_links=False a symbolic link is refused: in a folder of somebody else it may lead to
    a private file, whose content would then be shown or published.
    """
    if not follow_links and path.is_symlink():
        raise SettingsError(f"{path} is a symbolic link; put a copy of the file in its place")
    if (size := regular_size(path)) > most:
        raise SettingsError(
            f"{path} has {size:,} bytes, and {most:,} are the most for a file of its kind; put the "
            "right file in its place"
        )


def checksum(path: Path) -> str:
    """xxh3_128 of a regular file, 32 hexadecimal digits (9 GB/s per core; anyone can forge it)."""
    regular_size(path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
