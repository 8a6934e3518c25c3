"""The share of the hardware's peak that a phase is planned at, and what it takes to raise it.

A step costs communication and a fixed part whatever the batch. So a rank that has few tokens per
step spends it on those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

GOAL = 0.4  # below it a plan names a cure
_NEARLY = 0.9  # of what any batch reaches, where that is less
_MOST_TOKENS = 2**26  # per rank and step: beyond it a larger batch changes nothing

Share = Callable[[float, int], float]  # of sequences per step and nodes


@dataclass(frozen=True)
class PeakShare:
    """Model FLOP/s over the peak of all ranks, and what would raise it to a goal."""

    now: float
    most: float  # with any batch
    times: int  # the batch that reaches the goal, doubled until it does
    nodes: int | None  # that reach it with this batch, halved until they do; None: not one node

    @property
    def goal(self) -> float:
        """GOAL, or less where no batch reaches that."""
        return GOAL if self.most >= GOAL else _NEARLY * self.most

    @property
    def is_low(self) -> bool:
        """Whether it is below its goal."""
        return self.now < self.goal


def peak_share(
    share: Share, sequences: float, mean_length: float, ranks: int, nodes: int
) -> PeakShare:
    """The share with `sequences` per step on `ranks` ranks of `nodes` nodes, and its cures."""
    now, huge = share(sequences, nodes), max(sequences, _MOST_TOKENS * ranks / mean_length)
    found = PeakShare(now, max(now, share(huge, nodes)), 1, nodes)
    times, fewer = 1, nodes
    while share(times * sequences, nodes) < found.goal and times * sequences < huge:
        times *= 2
    while fewer and share(sequences, fewer) < found.goal:
        fewer //= 2
    return dataclasses.replace(found, times=times, nodes=fewer or None)
