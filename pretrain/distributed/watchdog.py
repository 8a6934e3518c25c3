"""A watchdog in every rank: a run that hangs ends on all of them, and each says where it stood.

The loop calls `reach` before each thing it does, on every rank the same things in the same order. A
thread writes how far this rank has come into a small file in the run's folder, which all share; a
collective that one rank does not enter holds all others, and the files tell which one that is. A
rank that comes no further for the limit writes all its threads' stacks into its log and ends itself,
so that the launcher ends the job and Slurm can start it again.

Where the interpreter itself is stuck, no Python thread runs; then faulthandler's own thread, written in
C, does the same a little later. A process that is stopped (SIGSTOP, a dead node) ends by its launcher.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import orjson

FOLDER = "heartbeats"
_TOLD = "told"  # in that folder, once a rank has said on the terminal who waits for whom
MOST_BETWEEN_BEATS_S = 5.0
SILENT_BEATS = 3  # so many missed mean that a rank is stopped or dead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activity:
    """How far a rank has come: `number` counts what it has begun."""

    number: int
    text: str


@dataclass(frozen=True)
class Beat:
    """A rank's last sign of life."""

    number: int
    place: Activity
    is_leaving: bool  # it ends by itself: it beats no more, but was no cause
    process: str  # its number and host


def forget(run_folder: Path) -> None:
    """Remove what an earlier start left. On rank 0, before any rank watches."""
    shutil.rmtree(run_folder / FOLDER, ignore_errors=True)


class Watchdog:
    """Watches this process from `__enter__` to `__exit__`. One rank alone waits for nobody: no limit."""

    def __init__(
        self,
        run_folder: Path,
        log: Path,
        rank: int,
        world_size: int,
        limit_s: float,
        tell: Callable[[str], None],
    ) -> None:
        """A rank that stays `limit_s` at one place is ended, its stacks written into `log`.

        `tell` shows a line to whoever watches the job, from any rank.
        """
        self._folder = run_folder / FOLDER
        self._log, self._tell = log, tell
        self._rank, self._world_size = rank, world_size
        self._limit_s = limit_s if world_size > 1 else threading.TIMEOUT_MAX
        self._beat_s = min(MOST_BETWEEN_BEATS_S, limit_s / 60)
        self._number, self._is_leaving = 0, False
        self._process = f"process {os.getpid()} on {os.uname().nodename}"
        self._place, self._since = Activity(0, "the start"), time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def reach(self, what: str, step: int | None = None) -> None:
        """This rank now begins `what`, after `step` updates: a remark that costs nothing."""
        after = "" if step is None else f" after step {step}"
        self._place = Activity(self._place.number + 1, what + after)
        self._since = time.monotonic()

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = self._log.open("a")
        faulthandler.enable(self._file)  # stacks of a crash in C, too
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """In order, or by an exception: its stack, and where a peer may be its cause, who that is."""
        self._is_leaving = True
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if isinstance(error, Exception):
            if self._rank == 0:  # the others' error output is their log
                traceback.print_exception(error, file=self._file)
            if self._world_size > 1:
                self._report("an error ends this rank", if_waiting=True)
        faulthandler.disable()
        self._file.close()
        if error is None:
            self._path(self._rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(self._beat_s):
            stands_s = time.monotonic() - self._since
            if stands_s > self._limit_s:
                self._report(f"no headway for {stands_s:.0f} s, this rank ends")
                faulthandler.dump_traceback(self._file, all_threads=True)
                os._exit(1)
            self._beat()
            # armed anew at each beat: it fires only where this thread cannot run
            backstop_s = min(self._limit_s + 10 * self._beat_s, threading.TIMEOUT_MAX)
            faulthandler.dump_traceback_later(backstop_s, exit=True, file=self._file)

    def _report(self, why: str, if_waiting: bool = False) -> None:
        """Say who waits for whom, in the log and, the first of all ranks, on the terminal.

        With `if_waiting` only where one does: not where the same error ends all ranks.
        """
        self._is_leaving = True
        self._beat()
        beats, silent = self._listen()
        places = {rank: beat.place for rank, beat in beats.items() if rank not in silent}
        if if_waiting and not silent and len({place.number for place in places.values()}) == 1:
            return
        line = f"{why}; {_who_waits_for_whom(places, {r: beats.get(r) for r in silent})}"
        if self._is_first_to_tell():
            logger.critical("%s", line)
            if self._rank > 0:  # rank 0's log is on the terminal already
                self._tell(line)
        else:
            logger.info("%s", line)

    def _is_first_to_tell(self) -> bool:
        """Whether no other rank has told yet.

        The first is the one to believe: with its end srun wakes a stopped rank (SIGCONT), to end it
        as well, and whoever listens later hears that one again.
        """
        try:
            (self._folder / _TOLD).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError as error:  # better twice than never
            logger.warning("%s cannot be written: %s", self._folder / _TOLD, error)
        return True

    def _listen(self) -> tuple[dict[int, Beat], list[int]]:
        """The last beats, and the ranks that give none for a while: by their count, not by clocks."""
        first = self._read_all()
        end = time.monotonic() + (SILENT_BEATS + 1) * self._beat_s
        while True:
            beats = self._read_all()
            silent = [
                rank
                for rank in range(self._world_size)
                if rank not in beats
                or (not beats[rank].is_leaving and beats[rank] == first.get(rank))
            ]
            if not silent or time.monotonic() > end:
                return beats, silent
            time.sleep(self._beat_s / 5)

    def _beat(self) -> None:
        """Say how far this rank is. A disk that does not take it is no reason to end."""
        self._number += 1
        beat = Beat(self._number, self._place, self._is_leaving, self._process)
        path = self._path(self._rank)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(orjson.dumps(beat))
            os.replace(temporary, path)
        except OSError as error:
            logger.warning("%s cannot be written: %s", path, error)

    def _read_all(self) -> dict[int, Beat]:
        beats = {}
        for rank in range(self._world_size):
            with contextlib.suppress(OSError, orjson.JSONDecodeError):  # none yet, or gone
                beat = orjson.loads(self._path(rank).read_bytes())
                beats[rank] = Beat(**{**beat, "place": Activity(**beat["place"])})
        return beats

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"


def _who_waits_for_whom(places: dict[int, Activity], silent: dict[int, Beat | None]) -> str:
    """One line from where the ranks that can be heard are, and what was last heard of the others."""
    furthest = max(places.values(), key=lambda place: place.number)
    behind = [rank for rank in places if places[rank].number < furthest.number]
    waiting = [rank for rank in places if rank not in behind]
    reasons = [
        f"rank {rank}, which gives no sign of life (stopped, dead or cut off"
        + (f"; last heard of in {beat.place.text}: {beat.process})" if beat else ")")
        for rank, beat in silent.items()
    ] + [f"rank {rank}, which is still in {places[rank].text}" for rank in behind]
    return f"{ranks_in_words(waiting)} in {furthest.text}" + (
        f": waiting for {'; '.join(reasons)}" if reasons else ", and no rank is behind"
    )


def ranks_in_words(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 0, 1, 2 and 509 more`."""
    shown = ", ".join(map(str, ranks[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"
