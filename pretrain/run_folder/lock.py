"""One job at a time on a run folder: a second one is refused, with the owner named.

Two things mark a folder as taken: an fcntl lock on `run.lock`, which the kernel drops when its
process dies, and `owner.json`, which names the owner and counts up while it lives.

On a local disk, on NFS 4 and on Lustre mounted with `flock` the lock alone decides. The lock of a
lost node is dropped when the server gives up its client. On Lustre with `localflock` and on some
FUSE mounts a lock is known on its own node only; NFS without lockd and Lustre with `noflock` have
none. There the count decides. Each check opens the file again, which NFS answers from the server.
No clocks are compared: if the count does not change for WATCH_S, the owner is dead. Not covered:
two jobs that start within the same second on such a file system.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from data_prep.core.config import SettingsError
from data_prep.core.files import place, read_json, write_json

LOCK_FILE, OWNER_FILE = "run.lock", "owner.json"
BEAT_S = 5.0
WATCH_S = 4 * BEAT_S
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


class RunLock:
    """Holds `folder` for this process from `__enter__` to `__exit__` or its death."""

    def __init__(self, folder: Path, beat_s: float = BEAT_S, watch_s: float = WATCH_S) -> None:
        self._folder = folder
        self._beat_s, self._watch_s = beat_s, watch_s
        self._owner: dict[str, Any] = {
            "host": os.uname().nodename,
            "place": place(),
            "pid": os.getpid(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "beat": 0,
        }
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._keep_beating, daemon=True, name="run-lock")

    def __enter__(self) -> RunLock:
        """Take the folder. Raises SettingsError, naming the owner, if another job holds it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # fcntl drops a lock when its process closes any descriptor of the file: open only this one
        self._file: IO[bytes] = open(self._folder / LOCK_FILE, "ab", opener=_not_through_a_link)
        try:
            self._take()
        except SettingsError:
            self._file.close()
            raise
        self._beats.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        self._beats.join()
        (self._folder / OWNER_FILE).unlink(missing_ok=True)
        self._file.close()

    def _take(self) -> None:
        is_locked = True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # EAGAIN or EACCES: it is held
                self._refuse(_read_owner(self._folder) or {})
            is_locked = False
        owner = _read_owner(self._folder)
        if owner is not None:
            # under one kernel the lock is certain; from another host it may not be seen
            is_certain = is_locked and _kernel(owner) == _kernel(self._owner)
            if not is_certain and self._counts_up(owner):
                self._refuse(owner)
            logger.warning("%s: its owner is dead and left it locked: %s", self._folder, owner)
        write_json(self._folder / OWNER_FILE, self._owner)

    def _counts_up(self, owner: dict[str, Any]) -> bool:
        """Whether the owner still lives. Returns early if its count or its file changes."""
        end = time.monotonic() + self._watch_s
        while time.monotonic() < end:
            time.sleep(self._beat_s / 5)
            now = _read_owner(self._folder)
            if now is None:
                return False
            if now != owner:
                return True
        return False

    def _refuse(self, owner: dict[str, Any]) -> None:
        job = f", Slurm job {owner['slurm_job']}" if owner.get("slurm_job") else ""
        raise SettingsError(
            f"{self._folder} is in use by process {owner.get('pid', 'unknown')} on host "
            f"{owner.get('host', 'unknown')}{job}, since {owner.get('since', 'unknown')}; "
            "wait until it has ended, end it, or type another run.name"
        )

    def _keep_beating(self) -> None:
        while not self._released.wait(self._beat_s):
            self._owner["beat"] += 1
            try:
                write_json(self._folder / OWNER_FILE, self._owner)
            except OSError as error:  # a full disk: the lock still holds
                logger.warning("%s cannot be written: %s", self._folder / OWNER_FILE, error)


def _kernel(owner: dict[str, Any]) -> str:
    """The boot of the kernel that an owner runs on. A container elsewhere may have its name."""
    return str(owner.get("place", "")).partition("-")[0]


def _not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _read_owner(folder: Path) -> dict[str, Any] | None:
    """The owner of the folder; None if there is none."""
    try:
        owner: dict[str, Any] = read_json(folder / OWNER_FILE)
    except (FileNotFoundError, ValueError):
        return None
    return owner
