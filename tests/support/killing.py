"""Signals at a given moment, to one rank of a run or to all of them at once.

A moment is a training step, an activity that a rank begins (Watchdog.begin) and so many
milliseconds after it, or the n-th time that the process touches an unfinished checkpoint.
"""

import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.engine import Engine

PIDS = "pids"  # in the current folder: how a rank finds the others
UNFINISHED = re.compile(r"/\.step-(\d+)\.")
EXPORT = re.compile(r"/\.?export")


def at_step(
    call: int | None, number: int = signal.SIGKILL, of_rank: int | None = 0
) -> Callable[[int], None]:
    """A hook: the rank (None: each) gets the signal when it comes to its n-th training step."""

    def hook(rank: int) -> None:
        train_step, calls = Engine.train_step, itertools.count(1)

        def signalled(self: Engine, *args: Any) -> Any:
            if next(calls) == call and of_rank in (None, rank):
                os.kill(os.getpid(), number)
            return train_step(self, *args)

        Engine.train_step = signalled

    return hook


@dataclass(frozen=True)
class Kill:
    """Which ranks of a start end, and when. As a hook it is called in each of its ranks."""

    step: int  # the first such moment after so many updates, or later
    activity: str = ""  # as passed to `begin`; "": the moment is in the files of a checkpoint
    later_ms: float = 0.0  # after the beginning of the activity, from another thread
    # the n-th touch of an unfinished checkpoint's files; of the export's with an activity
    touch: int = 0
    witness: int = 0  # the rank that comes to the moment
    victims: tuple[int, ...] = (0, 1)

    def __call__(self, rank: int) -> None:
        Path(PIDS).mkdir(exist_ok=True)
        (Path(PIDS) / str(rank)).write_text(str(os.getpid()))
        if rank != self.witness:
            return
        if self.touch:
            self._watch_files()
        else:
            self._watch_activities()

    def _watch_activities(self) -> None:
        begin = Watchdog.begin

        def beginning(watchdog: Watchdog, activity: str, step: int | None = None) -> None:
            begin(watchdog, activity, step)
            if activity == self.activity and (step is None or step >= self.step):
                if not self.later_ms:
                    self._strike()
                threading.Timer(self.later_ms / 1000, self._strike).start()

        Watchdog.begin = beginning

    def _watch_files(self) -> None:
        touches = 0

        def audit(event: str, arguments: Any) -> None:
            nonlocal touches
            if not event.startswith(("open", "os.")):
                return
            for argument in arguments:
                if isinstance(argument, str | bytes | os.PathLike) and self._concerns(
                    os.fsdecode(argument)
                ):
                    touches += 1
                    if touches == self.touch:
                        self._strike()

        sys.addaudithook(audit)

    def _concerns(self, path: str) -> bool:
        if self.activity:
            return bool(EXPORT.search(path))
        unfinished = UNFINISHED.search(path)
        return unfinished is not None and int(unfinished[1]) >= self.step

    def _strike(self) -> None:
        pids = {rank: int((Path(PIDS) / str(rank)).read_text()) for rank in self.victims}
        for rank in sorted(pids, key=self.witness.__eq__):  # itself last
            os.kill(pids[rank], signal.SIGKILL)
