"""Signals: a run that is told to end saves first, and ends between two steps."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StopRequest:
    """Whether this process received SIGTERM, or SIGUSR1 ahead of a time limit.

    The handlers only set a flag, because a collective cannot be left half-way. A signal may reach
    one rank and not another, so the ranks agree before they stop. Imports nothing slow: `install`
    runs before torch is loaded, so that a signal during the start counts, too.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name: str | None = None  # of the first signal

    @classmethod
    def install(cls) -> StopRequest:
        """Handle both signals in this process. Only the main thread may call it."""
        request = cls()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, request._note)
        return request

    def wait(self, limit_s: float) -> None:
        """Return when a signal has come, or after `limit_s` seconds."""
        end = time.monotonic() + limit_s
        while not self.requested and time.monotonic() < end:
            time.sleep(0.1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.signal_name = self.signal_name or signal.Signals(number).name
