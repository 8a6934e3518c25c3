"""What it costs to reach a loss, from runs of several lengths."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]  # (cost, held-out loss) of runs, shortest first
# variant: seed: points
Curves = Mapping[str, Mapping[int, Points]]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and their standard deviation; None of one seed."""

    mean: float
    deviation: float | None

    def text(self, form: str) -> str:
        own = format(self.mean, form)
        return own if self.deviation is None else f"{own} ± {self.deviation:{form}}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation. Raises StatisticsError without a value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def first_crossing(points: Points, loss: float) -> float | None:
    """The cost at which the loss is first reached; None if no run reaches it.

    Between the two runs around it, the loss is a line over the cost's logarithm. The first run's
    cost, if that is below the loss already: then it is an upper bound.
    """
    before: tuple[float, float] | None = None
    for cost, reached in points:
        if reached <= loss:
            if before is None or before[1] == reached:
                return cost
            share = (before[1] - loss) / (before[1] - reached)
            return math.exp(math.log(before[0]) * (1 - share) + math.log(cost) * share)
        before = cost, reached
    return None


def costs(by_seed: Mapping[int, Points], loss: float) -> Spread | None:
    """The cost of a loss over the seeds; None unless each of them reaches it."""
    found = [first_crossing(points, loss) for points in by_seed.values()]
    reached = [cost for cost in found if cost is not None]
    return spread(reached) if reached and len(reached) == len(found) else None


def last_loss_all_reach(curves: Curves, losses: Iterable[float]) -> float | None:
    """The lowest loss that every variant reaches with every seed; None if there is none."""
    for loss in sorted(losses):
        if all(costs(by_seed, loss) is not None for by_seed in curves.values()):
            return loss
    return None


def ratios(curves: Curves, reference: str, loss: float) -> dict[str, float]:
    """Each variant's mean cost of a loss, divided by that of the reference."""
    found = {name: costs(by_seed, loss) for name, by_seed in curves.items()}
    base = found[reference]
    assert base is not None, "all reach it"
    return {
        name: cost.mean / base.mean
        for name, cost in found.items()
        if cost is not None and name != reference
    }


def is_at_the_edge(rates: Sequence[float], best: float) -> bool:
    """Whether a larger grid may hold a better rate."""
    return len(rates) > 1 and best in (min(rates), max(rates))
