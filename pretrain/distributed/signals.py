"""Signals: a run that is told to end saves first, and ends between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from data_prep.core.command import INTERRUPTED, as_typed

_ONE_PRESS_S = 1.0  # in which a launcher, too, passes on what the terminal has sent


class StopRequest:
    """Whether this process was told to end: by SIGTERM, SIGUSR1 ahead of a time limit, or Ctrl-C.

    The handlers only set a flag, because a collective cannot be left half-way. A signal may reach
    one rank and not another, so the ranks agree before they stop. Ctrl-C (SIGINT) raises
    KeyboardInterrupt where there is nothing to save: outside of `saving`. Imports nothing slow:
    `install` runs before torch is loaded, so that a signal during the start counts, too.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name: str | None = None  # of the first signal
        self.was_interrupted = False  # by Ctrl-C
        # Where the next start continues, for messages; "" on a rank that prints none
        self.next_start: Callable[[], str] = lambda: "the last checkpoint"
        self._is_saving = False
        self._interrupted_at = 0.0

    @classmethod
    def install(cls) -> StopRequest:
        """Handle the signals in this process. Only the main thread may call it."""
        request = cls()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, request._note)
        return request

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """In this context Ctrl-C only asks for a stop, and a second one ends the process."""
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False

    def wait(self, limit_s: float) -> None:
        """Return when a signal has come, or after `limit_s` seconds."""
        end = time.monotonic() + limit_s
        while not self.requested and time.monotonic() < end:
            time.sleep(0.1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.signal_name = self.signal_name or signal.Signals(number).name
        if self.was_interrupted:
            # a second Ctrl-C, or the SIGTERM as which torchrun passes it on
            is_another_press = time.monotonic() - self._interrupted_at > _ONE_PRESS_S
            if number != signal.SIGUSR1 and is_another_press:
                self._print("ended at once; the same command continues from")
                os._exit(INTERRUPTED)
        elif number == signal.SIGINT:
            self.was_interrupted, self._interrupted_at = True, time.monotonic()
            if not self._is_saving:
                raise KeyboardInterrupt
            self._print("saving after this step; Ctrl-C again ends at once, to continue from")

    def _print(self, text: str) -> None:
        """Print by descriptor: the handler may have interrupted another print."""
        if where := self.next_start():
            with contextlib.suppress(OSError):
                os.write(2, as_typed(f"pretrain.run: {text} {where}\n").encode())
