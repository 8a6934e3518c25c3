"""Saves while training continues: rank 0 copies the state, and a thread writes the copy.

Training pauses only for the copy. One checkpoint is written at a time. All ranks learn the result
together, at a record of metrics or at the next save. No lock is needed: the thread reads the copy
and writes one record, which rank 0 reads after the thread has ended.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from pretrain.checkpoint.files import (
    Keep,
    make_room,
    path_of,
    temporary_of,
    write_checkpoint,
)
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.progress import CheckpointState, Progress
from pretrain.config.settings import CheckpointSettings, OnFailure

if TYPE_CHECKING:
    from pretrain.distributed.ranks import Ranks
    from pretrain.engine.engine import Engine
    from pretrain.engine.snapshot import Snapshot

# How long rank 0 waits, after an exception, for the checkpoint that is being written. Launchers
# give a rank as long between SIGTERM and SIGKILL.
LONGEST_FAREWELL_S = 30.0

logger = logging.getLogger(__name__)


class NotSavedError(RuntimeError):
    """A checkpoint could not be written. Raised on every rank; earlier ones still exist."""


@dataclasses.dataclass
class _Write:
    """A checkpoint that is being written. Other ranks than 0 only know its path."""

    step: int
    path: Path
    failure: str | None = None
    bytes: int = 0
    seconds_blocked: float = 0.0  # for which training paused
    seconds_written: float = 0.0
    thread: threading.Thread | None = None

    def run(self, write: Callable[[], int]) -> None:
        """Write and keep the result. A failed write is removed: it may hold the last free bytes."""
        started = time.perf_counter()
        try:
            self.bytes = write()
        except Exception as error:  # noqa: BLE001  whatever it is, all ranks learn of it
            self.failure = f"{type(error).__name__}: {error}"
            shutil.rmtree(temporary_of(self.path), ignore_errors=True)
        self.seconds_written = time.perf_counter() - started


class Saver:
    """Saves the checkpoints of one engine. Every rank calls the same methods, in one order."""

    def __init__(
        self,
        run_folder: Path,
        engine: Engine,
        ranks: Ranks,
        settings: CheckpointSettings,
        identity: dict[str, Any],
        tell: Callable[..., None],
        kept_step: int | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """Allocate memory for a copy of the state. Raises RuntimeError if rank 0 has too little.

        `identity` is written into each checkpoint; `tell` is `Monitor.event`; the checkpoint of
        `kept_step` is not removed. `mirror` gets each checkpoint once it is written.
        """
        self._run_folder, self._engine, self._ranks = run_folder, engine, ranks
        self._settings, self._identity, self._tell = settings, identity, tell
        self._keep = Keep(settings.keep, settings.keep_every, kept_step)
        self._mirror = mirror
        self._snapshot = engine.new_snapshot()
        self._write: _Write | None = None

    def save(self, progress: Progress, is_last: bool = False) -> None:
        """Begin to write the checkpoint of `progress`; if it is the last one, wait for it.

        Waits for the one before. Raises NotSavedError on every rank if one could not be written
        and it was the last, or checkpoint.on_failure is stop.
        """
        self.settle()
        started = time.perf_counter()
        write = _Write(progress.step, path_of(self._run_folder, progress.step))
        if self._ranks.rank == 0:
            try:
                make_room(write.path, self._engine.state_bytes)
            except OSError as error:
                write.failure = str(error)
        self._write = write
        is_refused = self._ranks.any(write.failure is not None)
        if not is_refused:
            self._engine.take(self._snapshot)
            fields = msgspec.structs.asdict(progress)
            self._start(write, CheckpointState(**fields, identity=self._identity))
        write.seconds_blocked = time.perf_counter() - started
        if is_refused or is_last:
            self.settle(is_last)

    @property
    def has_ended(self) -> bool:
        """Whether a write has ended: False on all ranks but 0, and if nothing is being written."""
        thread = self._write.thread if self._write else None
        return thread is not None and not thread.is_alive()

    def settle(self, is_last: bool = False) -> None:
        """Wait for the checkpoint that is being written, if there is one, and log the result.

        Raises NotSavedError as `save` does.
        """
        write, self._write = self._write, None
        if write is None:
            return
        started = time.perf_counter()
        if write.thread is not None:
            write.thread.join()
        write.seconds_blocked += time.perf_counter() - started
        write.failure = self._ranks.broadcast(write.failure)
        facts = {
            name: round(value, 3)
            for name, value in vars(write).items()
            if name in ("step", "seconds_blocked", "seconds_written", "bytes")
        }
        if write.failure is None:
            self._tell("checkpoint", **facts)
            return
        message = (
            f"checkpoint {write.path} could not be written ({write.failure}); make room or repair "
            "the disk and start again: the run continues from the previous checkpoint"
        )
        self._tell("checkpoint_failed", **facts, reason=message)
        if is_last or self._settings.on_failure is OnFailure.stop:
            raise NotSavedError(message)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """After an exception, wait a while for the checkpoint being written. Not collective."""
        if self._write is None or self._write.thread is None:
            return
        self._write.thread.join(LONGEST_FAREWELL_S)
        failure = self._write.failure if self.has_ended else "it takes too long"
        if failure is not None:
            logger.error("checkpoint %s was not written: %s", self._write.path, failure)

    def _start(self, write: _Write, state: CheckpointState) -> None:
        """Start the thread that writes the copy, on rank 0. It keeps no process alive."""
        if self._snapshot is None:
            return
        what = functools.partial(self._write_and_offer, write.path, state, self._snapshot)
        write.thread = threading.Thread(
            target=write.run, args=(what,), daemon=True, name="checkpoint"
        )
        write.thread.start()

    def _write_and_offer(self, path: Path, state: CheckpointState, snapshot: Snapshot) -> int:
        if self._mirror is None:
            return write_checkpoint(path, state, snapshot, self._keep)
        size = write_checkpoint(path, state, snapshot, self._keep, self._mirror.is_reading)
        self._mirror.offer(path, self._keep)
        return size
