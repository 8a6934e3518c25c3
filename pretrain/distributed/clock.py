"""Training time over all starts of a run."""

from __future__ import annotations

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
