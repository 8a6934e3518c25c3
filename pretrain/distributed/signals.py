"""Signals: a run that is told to end saves first, and ends between two steps."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StopRequest:
    """Whether this process was told to end: by SIGTERM, or by SIGUSR1 ahead of a time limit.

    The handlers set a flag and nothing else, for a collective cannot be left half-way. A signal may
    reach one rank and not another: ranks agree by `Ranks.any(stop.requested)`. Imports nothing that
    is slow, so that `install` can run before torch is loaded: a signal during the start counts, too.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name: str | None = None  # of the first signal that came

    @classmethod
    def install(cls) -> StopRequest:
        """Take over both signals in this process. Only the main thread may call it."""
        request = cls()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, request._note)
        return request

    def wait(self, limit_s: float) -> None:
        """Return when a signal has come, or after so many seconds."""
        end = time.monotonic() + limit_s
        while not self.requested and time.monotonic() < end:
            time.sleep(0.1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.signal_name = self.signal_name or signal.Signals(number).name
