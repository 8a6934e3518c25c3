"""How long a run has trained, over all its starts."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.distributed.ranks import Ranks


class TrainingClock:
    """Seconds since training began, without the time between two starts.

    The steps that a killed start lost count for nothing, and nor does the time they took: a start
    goes on from what stands in its checkpoint. Rank 0's clock holds for all ranks.
    """

    def __init__(self, ranks: Ranks, elapsed_s: float, now: Callable[[], float]) -> None:
        """Start at `elapsed_s`, as saved. `now`: seconds since any moment."""
        self._ranks = ranks
        self._now = now
        self._began = now() - elapsed_s

    def read(self) -> float:
        """Seconds of training, the same on every rank. Collective; waits for the device."""
        is_main = self._ranks.rank == 0
        return self._ranks.sum([self._now() - self._began if is_main else 0.0])[0]
