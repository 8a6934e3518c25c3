"""Time that all ranks share: training time over all starts, and when to look for a signal."""

from __future__ import annotations

import time
from collections.abc import Callable

from pretrain.distributed.ranks import Ranks


class TrainingClock:
    """Seconds since training began, without the time between two starts.

    A start continues from the seconds in its checkpoint, so the time of lost steps does not count.
    All ranks use rank 0's clock.
    """

    def __init__(self, ranks: Ranks, elapsed_s: float, now: Callable[[], float]) -> None:
        """Start at `elapsed_s`. `now`: seconds since any moment."""
        self._ranks = ranks
        self._now = now
        self._began = now() - elapsed_s

    def read(self) -> float:
        """Seconds of training, the same on every rank. Collective; waits for the device."""
        is_main = self._ranks.rank == 0
        return self._ranks.sum([self._now() - self._began if is_main else 0.0])[0]


class StopCheck:
    """After which steps the ranks compare whether one of them was told to stop.

    About every CHECK_S seconds, so after each step that takes longer: a job that is warned of its
    time limit has minutes to save. The pace is rank 0's, so that all ranks compare after the same
    steps.
    """

    CHECK_S = 2.0

    def __init__(self, step: int, now: Callable[[], float] = time.monotonic) -> None:
        """After `step` updates. `now`: seconds since any moment."""
        self._now = now
        self.begin(step, step_s=self.CHECK_S)

    def begin(self, step: int, step_s: float) -> None:
        """The ranks have compared after `step` updates, of late `step_s` seconds each."""
        self._step, self._since = step, self._now()
        self._next = step + max(1, int(self.CHECK_S / max(step_s, 1e-9)))

    def is_due(self, step: int) -> bool:
        """Whether the ranks compare after `step` updates: the same answer on every rank."""
        return step >= self._next

    def step_s(self, step: int) -> float:
        """Seconds per update since they last compared, `step` updates being made now."""
        return (self._now() - self._since) / max(1, step - self._step)
