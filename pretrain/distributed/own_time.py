"""How long a rank's own work takes, without waiting for the others.

Ranks that step together take the same time, whichever of them is slow. So each measures its forward
and backward passes alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class OwnTime:
    """Measures what runs in this context: on a GPU by events of the device, without a wait."""

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`clock`: seconds since any moment, on a CPU."""
        self._is_cuda, self._clock = device.type == "cuda", clock
        self._began, self._seconds, self._times = 0.0, 0.0, 0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._first: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        if self._is_cuda:
            self._first = _mark()
        else:
            self._began = self._clock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._times += 1
        if self._first is not None:
            self._events.append((self._first, _mark()))
        else:
            self._seconds += self._clock() - self._began

    def take(self) -> float:
        """Mean seconds per context since the last call; 0 without any.

        On a GPU only where the device is known to have come past them, or the host waits.
        """
        self._seconds += sum(first.elapsed_time(last) for first, last in self._events) / 1e3
        mean = self._seconds / max(1, self._times)
        self._seconds, self._times = 0.0, 0
        self._events.clear()
        return mean


def _mark() -> torch.cuda.Event:
    import torch

    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
