"""Checkpoints copied to a URL after each save, and fetched from there: checkpoint.mirror.

The folder step-00001000 at the URL has the files of that checkpoint. Its manifest is sent last and
removed first: a folder without one is no checkpoint. What is fetched is taken only if every byte
has the manifest's checksum. A store that fails neither ends nor slows a run.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.core.config import SettingsError
from data_prep.core.files import remove_folder, whole_or_absent
from data_prep.stores import remote
from pretrain.checkpoint.files import (
    MANIFEST_FILE,
    Keep,
    make_room,
    newest_whole,
    path_of,
    put_in_place,
    read_checkpoint_manifest,
    temporary_of,
)

# Seconds that the end of a run waits for the last copy: after a signal less than the batch scripts'
# warning ahead of the time limit
LONGEST_WAIT_S, LONGEST_FAREWELL_S = 3600.0, 180.0

_STEP = re.compile(r"\Astep-[0-9]{8}/")  # other names are not ours

logger = logging.getLogger(__name__)


class _Job(NamedTuple):
    """A checkpoint to send, and which others stay there."""

    path: Path
    keep: Keep | None  # None: all


class Mirror:
    """Sends the checkpoints of a run, the newest that waits first; on rank 0."""

    def __init__(self, url: str, tell: Callable[[str, dict[str, Any]], None]) -> None:
        """`url`: the folder of the run there. `tell` takes events, in a thread."""
        self.url, self._tell = url, tell
        self._changed = threading.Condition()
        self._waiting: _Job | None = None
        self._sending: _Job | None = None
        self._failures, self._fault = 0, ""
        self._thread: threading.Thread | None = None

    def offer(self, path: Path, keep: Keep | None = None) -> None:
        """Send the checkpoint at `path` in the background, in place of one that still waits."""
        with self._changed:
            self._waiting = _Job(path, keep)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="mirror")
                self._thread.start()
            self._changed.notify_all()

    def is_reading(self, path: Path) -> bool:
        """Whether a checkpoint must stay, because it is sent or waits for it."""
        with self._changed:
            return any(job is not None and job.path == path for job in self._jobs)

    def close(self, limit_s: float) -> str | None:
        """Wait for the last copy, at most `limit_s` seconds; return why it is not there."""
        with self._changed:
            self._changed.wait_for(lambda: not any(self._jobs), limit_s)
            if any(self._jobs):
                return f"the copy of the last checkpoint to {self.url} takes over {limit_s:g} s"
            if self._fault:
                return f"the last checkpoint is not at {self.url} ({self._fault})"
            return None

    @property
    def _jobs(self) -> tuple[_Job | None, _Job | None]:
        return self._waiting, self._sending

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                self._sending, self._waiting = self._waiting, None
                assert self._sending is not None, "it has just been waited for"
                job = self._sending
            try:
                self._send(job)
            except OSError as error:  # of events.jsonl
                logger.warning("%s", error)
            with self._changed:
                self._sending = None
                self._changed.notify_all()

    def _send(self, job: _Job) -> None:
        """Send a checkpoint. What goes wrong is counted, and logged the first time in a row."""
        step, began = int(job.path.name.removeprefix("step-")), time.perf_counter()
        try:
            size = send_checkpoint(job.path, self.url, job.keep)
        except Exception as error:  # noqa: BLE001  no store's error may end a run
            is_first, self._fault = not self._fault, remote.why(error) or type(error).__name__
            self._failures += 1
            if is_first:
                logger.warning(
                    "checkpoint %s is not copied to %s: %s; the next one is tried again",
                    job.path.name, self.url, self._fault,
                )  # fmt: skip
            self._tell(
                "mirror_failed", {"step": step, "reason": self._fault, "failures": self._failures}
            )
            return
        self._fault = ""
        seconds = round(time.perf_counter() - began, 3)
        self._tell("mirrored", {"step": step, "bytes": size, "seconds": seconds})


def send_checkpoint(path: Path, url: str, keep: Keep | None) -> int:
    """Copy a checkpoint to the folder `url` of its run, then remove old and half ones there.

    Nothing is sent if it is there already. Returns the bytes sent. Raises OSError or ValueError.
    """
    raw, names = (path / MANIFEST_FILE).read_bytes(), remote.names_below(url)
    there = _whole(names)
    target, sent = f"{url}/{path.name}", 0
    if path.name not in there or remote.read(f"{target}/{MANIFEST_FILE}") != raw:
        remote.remove(f"{target}/{MANIFEST_FILE}")
        for name, entry in read_checkpoint_manifest(path).files.items():
            remote.send(path / name, f"{target}/{name}")
            sent += entry.bytes
        remote.send(path / MANIFEST_FILE, f"{target}/{MANIFEST_FILE}")
    if keep is None:
        return sent
    cut = {name[: len(path.name)] for name in names if _STEP.match(name)} - {*there}
    older = [name for name in sorted(cut) if name < path.name]
    for name in [*keep.too_old([*there, path.name], path.name), *older]:
        remote.remove(f"{url}/{name}/{MANIFEST_FILE}")
        for file in remote.names_below(f"{url}/{name}"):
            remote.remove(f"{url}/{name}/{file}")
    return sent


def fetch_newest(run_folder: Path, url: str, may_resume: bool = True) -> str | None:
    """Fetch the newest whole checkpoint at `url` if the run's folder has none as new.

    Returns a line about it; None if nothing was fetched. A broken one is passed over with a
    warning. If the store does not answer, a run that has a checkpoint here goes on from that.
    Raises SettingsError if it has none, if all there are broken, and without `may_resume` if there
    is any.
    """
    own = newest_whole(run_folder)
    try:
        newer = [
            name
            for name in reversed(_whole(remote.names_below(url)))
            if (own is None or name > own.name) and not (run_folder / "decayed" / name).exists()
        ]
        if newer and not may_resume:
            raise SettingsError(
                f"run.resume=never, but {url} holds {newer[0]}, which would be overwritten; type "
                "another run.name, or set checkpoint.mirror=null"
            )
        faults = []
        for name in newer:
            path = path_of(run_folder, int(name.removeprefix("step-")))
            try:
                size = fetch_checkpoint(f"{url}/{name}", path)
            except (FileNotFoundError, ValueError) as error:
                faults.append(f"{name}: {remote.why(error)}")
                logger.warning("%s/%s is broken and passed over: %s", url, name, faults[-1])
            else:
                return f"fetched {name} from {url}, {size / 1e6:,.1f} MB"
    except OSError as error:
        text = f"checkpoint.mirror: {url} cannot be read: {remote.why(error)}"
        if own is None:
            raise SettingsError(f"{text}; {remote.CURE}, or set checkpoint.mirror=null") from error
        return f"warning: {text}; the run goes on from {own.name}, which is here"
    if faults and own is None:
        raise SettingsError(
            f"none of the {len(faults)} checkpoints at {url} is whole:\n"
            + "".join(f"  {fault}\n" for fault in faults)
            + "Delete that folder to start at step 0, or type another run.name"
        )
    return None


def fetch_checkpoint(url: str, path: Path) -> int:
    """Copy the checkpoint at `url` to `path`, whole or not at all; return its bytes.

    Raises ValueError or FileNotFoundError if it is not whole; OSError if the store or disk fails.
    """
    temporary, raw = temporary_of(path), remote.read(f"{url}/{MANIFEST_FILE}")
    try:
        make_room(path, 0)
        (temporary / MANIFEST_FILE).write_bytes(raw)
        manifest = read_checkpoint_manifest(temporary)
        size = sum(entry.bytes for entry in manifest.files.values())
        make_room(path, size)  # the folder is empty again
        for name, entry in manifest.files.items():
            remote.fetch(f"{url}/{name}", temporary / name, entry.bytes, entry.checksum)
        with whole_or_absent(temporary / MANIFEST_FILE) as file:
            file.write_bytes(raw)
        put_in_place(temporary, path)
    except BaseException:
        remove_folder(temporary)
        with contextlib.suppress(OSError):  # other checkpoints are there
            path.parent.rmdir()
        raise
    return size


def _whole(names: Iterable[str]) -> list[str]:
    """The checkpoints with a manifest among the files of a run's folder, the oldest first."""
    ends = f"/{MANIFEST_FILE}"
    return [name.removesuffix(ends) for name in names if _STEP.sub("/", name) == ends]
