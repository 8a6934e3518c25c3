"""A watchdog in every rank: a run that hangs ends on all ranks, and the logs show where each was.

The loop calls `begin` before each activity, on every rank in the same order. A thread writes how
far this rank is into a file of its node, in the run folder. A collective that one rank does not
enter holds all others, and the heartbeats show which rank that is. A rank without progress for the
limit makes all ranks dump their last collectives, writes the stacks of all its threads, also the
native ones, into its log and ends itself. The launcher then ends the job, and Slurm can start it
again.

If the interpreter itself is stuck, no Python thread runs; then faulthandler's own thread, written
in C, does the same a little later. A process that is stopped (SIGSTOP, a dead node) is ended by its
launcher.
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
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

import orjson

from pretrain.distributed import flight_recorder
from pretrain.distributed.native_stacks import write_native_stacks

FOLDER = "heartbeats"
_REPORTED = "told"  # in that folder, once a rank has printed who waits for whom
_DUMP = "dump"  # once a rank has made no progress for too long: all dump their collectives
MOST_BETWEEN_BEATS_S = 5.0  # or more, so that all ranks together write few files
_MOST_BEATS_PER_S = 20
SILENT_BEATS = 3  # a rank that misses so many is stopped or dead
_NATIVE_STACKS_S = 30.0  # at most; launchers give the others as long to end
_LINE_BYTES = 4096  # a page, so that ranks do not share one
_LONGEST_TEXT = 100  # of a heartbeat that is longer than its line; JSON has up to 6 bytes a letter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activity:
    """What a rank is doing; `number` counts its activities."""

    number: int
    text: str


@dataclass(frozen=True)
class Heartbeat:
    """What a rank's line of its node's heartbeat file holds."""

    rank: int
    number: int
    place: Activity
    is_leaving: bool  # the rank ends by itself: it sends no more heartbeats, but is no cause
    process: str  # its number and host
    collective: str = ""  # that it is in, once it has dumped its collectives


def beat_seconds(limit_s: float, world_size: int) -> float:
    """Seconds between two heartbeats: many of them in the limit, few per second of all ranks."""
    return min(max(MOST_BETWEEN_BEATS_S, world_size / _MOST_BEATS_PER_S), limit_s / 60)


def remove_heartbeats(run_folder: Path) -> None:
    """Remove the files of an earlier start. On rank 0, before any rank starts its watchdog."""
    shutil.rmtree(run_folder / FOLDER, ignore_errors=True)


class Watchdog:
    """Watches this process from `__enter__` to `__exit__`. A single rank has no limit."""

    def __init__(
        self,
        run_folder: Path,
        log: Path,
        rank: int,
        world_size: int,
        limit_s: float,
        print_to_terminal: Callable[[str], None],
        local_rank: int = 0,
    ) -> None:
        """End a rank that stays `limit_s` in one activity, and write its stacks into `log`.

        `print_to_terminal` prints a line for whoever watches the job, from any rank. `local_rank`:
        its number on its node.
        """
        self._run_folder, self._folder = run_folder, run_folder / FOLDER
        self._log, self._print_to_terminal = log, print_to_terminal
        self._rank, self._world_size = rank, world_size
        # first rank of the node: two ranks never have a line of one file in common, even if ranks
        # are dealt to the nodes in turn
        self._beats = self._folder / f"node-{rank - local_rank:05d}.jsonl"
        self._line = local_rank
        self._limit_s = limit_s if world_size > 1 else threading.TIMEOUT_MAX
        self._beat_s = beat_seconds(limit_s, world_size)
        self._number, self._is_leaving, self._collective = 0, False, ""
        self._process = f"process {os.getpid()} on {os.uname().nodename}"
        self._activity, self._since = Activity(0, "the start"), time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def begin(self, activity: str, step: int | None = None) -> None:
        """Note that this rank begins `activity`, after `step` updates. Costs nothing."""
        after = "" if step is None else f" after step {step}"
        self._activity = Activity(self._activity.number + 1, activity + after)
        self._since = time.monotonic()

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), self._beats.open("xb"):
            pass
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
        """Stop watching; on an exception, log its stack, and the ranks that may be its cause."""
        self._is_leaving = True
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if isinstance(error, Exception):
            if self._rank == 0:  # the others' stderr is their log
                traceback.print_exception(error, file=self._file)
            if self._world_size > 1:
                self._report("this rank ends with an error", only_if_waiting=True)
        faulthandler.disable()
        self._file.close()
        if error is None:
            self._beat()
            if all(beat.is_leaving for beat in _beats_in(self._beats)):  # the node's last rank
                self._beats.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(self._beat_s):
            idle_s = time.monotonic() - self._since
            if idle_s > self._limit_s:
                with contextlib.suppress(OSError):
                    (self._folder / _DUMP).touch()
                self._dump_if_asked()
                self._report(f"no progress for {idle_s:.0f} s, this rank ends")
                faulthandler.dump_traceback(self._file, all_threads=True)
                write_native_stacks(self._file, min(_NATIVE_STACKS_S, self._limit_s / 10))
                os._exit(1)
            self._dump_if_asked()
            self._beat()
            # set again at each heartbeat: it fires only if this thread cannot run
            backstop_s = min(self._limit_s + 10 * self._beat_s, threading.TIMEOUT_MAX)
            faulthandler.dump_traceback_later(backstop_s, exit=True, file=self._file)

    def _report(self, why: str, only_if_waiting: bool = False) -> None:
        """Log who waits for whom; the first of all ranks also prints it on the terminal.

        `only_if_waiting`: not if the same error ends all ranks.
        """
        self._is_leaving = True
        self._beat()
        beats, silent = self._listen()
        activities = {rank: beat.place for rank, beat in beats.items() if rank not in silent}
        numbers = {activity.number for activity in activities.values()}
        if only_if_waiting and not silent and len(numbers) == 1:
            return
        line = f"{why}; {_who_waits_for_whom(activities, {r: beats.get(r) for r in silent})}"
        if dumped := {rank: beat.collective for rank, beat in beats.items() if beat.collective}:
            where = self._run_folder / flight_recorder.FOLDER
            line += f"; on the device {_by_collective(dumped)} (torchfrtrace {where})"
        if self._is_first_to_report():
            logger.critical("%s", line)
            if self._rank > 0:  # rank 0's log is on the terminal already
                self._print_to_terminal(line)
        else:
            logger.info("%s", line)

    def _dump_if_asked(self) -> None:
        """Dump this rank's collectives, once, if a rank makes no progress."""
        if self._collective or not (self._folder / _DUMP).exists():
            return
        try:
            self._collective = flight_recorder.dump_collectives(self._run_folder, self._rank)
        except (OSError, RuntimeError, ValueError, AttributeError, LookupError) as error:
            self._collective = "in an unknown collective"  # another torch; the run ends anyway
            logger.warning("the collectives cannot be dumped: %s", error)

    def _is_first_to_report(self) -> bool:
        """Whether no other rank has reported yet.

        The first report is the reliable one: when that rank ends, srun wakes a stopped rank
        (SIGCONT) to end it as well, and later reports then find its heartbeat.
        """
        try:
            (self._folder / _REPORTED).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError as error:  # better twice than never
            logger.warning("%s cannot be written: %s", self._folder / _REPORTED, error)
        return True

    def _listen(self) -> tuple[dict[int, Heartbeat], list[int]]:
        """The last heartbeats, and the ranks whose count does not move. No clocks are compared."""
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
            is_dumping = (self._folder / _DUMP).exists() and not all(
                beat.collective or beat.is_leaving for beat in beats.values()
            )
            if not (silent or is_dumping) or time.monotonic() > end:
                return beats, silent
            time.sleep(self._beat_s / 5)

    def _beat(self) -> None:
        """Write this rank's line into its node's file, in place. A full disk does not end the run.

        No file is made or renamed: a thousand ranks would keep the file system's server busy.
        """
        self._number += 1
        beat = Heartbeat(
            self._rank,
            self._number,
            self._activity,
            self._is_leaving,
            self._process,
            self._collective,
        )
        try:
            with self._beats.open("r+b", buffering=0) as file:  # closing it sends it to a server
                file.seek(self._line * _LINE_BYTES)
                file.write(_line_of(beat))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._beats, error)

    def _read_all(self) -> dict[int, Heartbeat]:
        files = sorted(self._folder.glob("node-*.jsonl"))
        return {beat.rank: beat for file in files for beat in _beats_in(file)}


def _line_of(beat: Heartbeat) -> bytes:
    """A heartbeat as a line of JSON, with spaces to its full length."""
    line = orjson.dumps(beat)
    if len(line) >= _LINE_BYTES:
        place = Activity(beat.place.number, beat.place.text[:_LONGEST_TEXT])
        texts = {name: getattr(beat, name)[:_LONGEST_TEXT] for name in ("process", "collective")}
        line = orjson.dumps(replace(beat, place=place, **texts))
    return line.ljust(_LINE_BYTES - 1) + b"\n"


def _beats_in(path: Path) -> list[Heartbeat]:
    """The heartbeats of a node's ranks; a line that is being written is left out."""
    found = []
    with contextlib.suppress(OSError):  # removed
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(orjson.JSONDecodeError):
                beat = orjson.loads(line.lstrip(b"\0"))  # of ranks that have not begun
                found.append(Heartbeat(**{**beat, "place": Activity(**beat["place"])}))
    return found


def _who_waits_for_whom(
    activities: dict[int, Activity], silent: dict[int, Heartbeat | None]
) -> str:
    """One line from what the live ranks are doing and the last heartbeats of the silent ones."""
    furthest = max(activities.values(), key=lambda activity: activity.number)
    behind = [rank for rank in activities if activities[rank].number < furthest.number]
    waiting = [rank for rank in activities if rank not in behind]
    reasons = [
        f"rank {rank}, which sends no heartbeat (stopped, dead or disconnected"
        + (f"; last heartbeat in {beat.place.text}: {beat.process})" if beat else ")")
        for rank, beat in silent.items()
    ] + [f"rank {rank}, which is still in {activities[rank].text}" for rank in behind]
    return f"{format_ranks(waiting)} in {furthest.text}" + (
        f": waiting for {'; '.join(reasons)}" if reasons else ", and no rank is behind"
    )


def _by_collective(collectives: dict[int, str]) -> str:
    """Which ranks are in which collective, on one line."""
    ranks: dict[str, list[int]] = {}
    for rank, collective in collectives.items():
        ranks.setdefault(collective, []).append(rank)
    return "; ".join(f"{format_ranks(same)} {text}" for text, same in ranks.items())


def format_ranks(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 0, 1, 2 and 509 more`."""
    shown = ", ".join(map(str, ranks[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"
