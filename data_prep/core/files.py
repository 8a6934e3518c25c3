"""Files that are whole or absent, and their checksums."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import xxhash

ABANDONED_S = 3600.0  # without a write; writers write every few seconds


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`: renamed to it on a clean exit, otherwise removed.

    The data is flushed to disk before the rename, and the folder after it, so that not even a power
    loss leaves half a file under the final name. The temporary name starts with a dot and ends in
    `.tmp`, so listings can skip it and leftovers of killed writers are recognised. It contains the
    host and the process, so two writers never share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush_to_disk(temporary)
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


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files that killed writers have left below `folder`.

    Those of this host go if their process is gone, those of other hosts after an idle hour.
    """
    host = re.escape(os.uname().nodename)
    for path in folder.rglob(".*.tmp"):
        own = re.fullmatch(rf"\..+\.{host}\.(\d+)\.tmp", path.name)
        with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
            is_idle = time.time() - path.stat().st_mtime > ABANDONED_S
            if not Path(f"/proc/{own[1]}").exists() if own else is_idle:
                path.unlink()


def flush_to_disk(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys, whole or not at all: same value, same bytes."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(orjson.dumps(value, msgspec.to_builtins, options))


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError naming a file that is not JSON."""
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); delete it and make it again"
        ) from error


def checksum(path: Path) -> str:
    """xxh3_128 of a file, 32 hexadecimal digits (9 GB/s per core; no protection from forgery)."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
