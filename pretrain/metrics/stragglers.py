"""Which rank is slower than the others, and how their GPUs are, from one record to the next."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pretrain.distributed.own_time import OwnTime
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.rendezvous import host_name
from pretrain.metrics.gpu_health import GpuHealth, Health
from pretrain.metrics.monitor import Monitor

SLOWER = 0.15  # than the median, by which a rank is a straggler
FOR_S = 30.0  # that it must be so slow, without a faster record, to be named


@dataclass(frozen=True)
class RankState:
    """What every rank tells at a record."""

    own_s: float  # of its own forward and backward passes, per step
    health: Health
    retries: int  # of the allocator, which had to free its cache

    def numbers(self) -> list[float]:
        """As float64, which holds them exactly."""
        h = self.health
        return [self.own_s, h.clock_mhz, h.reasons, h.ecc_errors, h.xid, self.retries]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> RankState:
        """The state that `numbers` returned."""
        own_s, clock, reasons, ecc, xid, retries = numbers
        return cls(own_s, Health(int(clock), int(reasons), int(ecc), int(xid)), int(retries))


class RankWatch:
    """Compares the ranks at every record. Every rank calls the methods."""

    def __init__(
        self, ranks: Ranks, monitor: Monitor, now: Callable[[], float] = time.time
    ) -> None:
        """Collective. `now`: Unix time in seconds."""
        self._ranks, self._monitor, self._now = ranks, monitor, now
        self._gpu = GpuHealth(ranks.device)
        host = host_name()
        self._hosts = ranks.gather(host) if ranks.world_size > 1 else [host]
        self._since = now()  # of this record
        self._slow_since: dict[int, float] = {}
        self._named: set[int] = set()
        self._errors: dict[int, tuple[int, int]] = {}  # ECC errors and Xid that are known

    def metrics(self, own_time: OwnTime, step: int) -> dict[str, float]:
        """The metrics of a record, and events about what is wrong with a rank. Collective.

        After a wait for the device, so that `own_time` is known.
        """
        states = self._gather(own_time.take())
        since, self._since = self._since, self._now()
        if self._ranks.rank == 0:
            self._name_stragglers(states, since, step)
            self._name_errors(states, step)
        return _metrics(states, self._ranks.device.type == "cuda")

    def _gather(self, own_s: float) -> list[RankState]:
        """Every rank's state, by rank."""
        device, world_size = self._ranks.device, self._ranks.world_size
        is_cuda = device.type == "cuda"
        retries = torch.cuda.memory_stats(device).get("num_alloc_retries", 0) if is_cuda else 0
        own = RankState(own_s, self._gpu.read(), retries).numbers()
        if world_size == 1:
            return [RankState.of(own)]
        table = torch.zeros(world_size, len(own), dtype=torch.float64)
        table[self._ranks.rank] = torch.tensor(own, dtype=torch.float64)
        summed = torch.tensor(self._ranks.sum(table.flatten().tolist())).view(table.shape)
        return [RankState.of(numbers) for numbers in summed.tolist()]

    def _name_stragglers(self, states: Sequence[RankState], since: float, step: int) -> None:
        median = _median(states)
        for rank, state in enumerate(states):
            if median == 0 or state.own_s <= (1 + SLOWER) * median:
                self._slow_since.pop(rank, None)
                self._named.discard(rank)
                continue
            began = self._slow_since.setdefault(rank, since)
            if self._now() - began < FOR_S or rank in self._named:
                continue
            self._named.add(rank)
            facts = {
                "slower": round(state.own_s / median - 1, 3),
                "since": datetime.datetime.fromtimestamp(began, datetime.UTC).isoformat(
                    timespec="seconds"
                ),
                "clock_mhz": state.health.clock_mhz,
                "throttled": state.health.why_throttled(),
            }
            self._event("straggler", step, rank, facts)

    def _name_errors(self, states: Sequence[RankState], step: int) -> None:
        for rank, state in enumerate(states):
            now = state.health.ecc_errors, state.health.xid
            known = self._errors.setdefault(rank, (now[0], 0))  # errors of before this start
            if now == known:
                continue
            self._errors[rank] = now
            self._event("gpu_error", step, rank, {"ecc_errors": now[0], "xid": now[1]})

    def _event(self, kind: str, step: int, rank: int, facts: dict[str, Any]) -> None:
        """An event about a rank, without the facts that are not known."""
        known = {name: value for name, value in facts.items() if value}
        self._monitor.event(kind, step=step, rank=rank, host=self._hosts[rank], **known)


def _median(states: Sequence[RankState]) -> float:
    """The own time of the rank in the middle; of two, the faster one's."""
    return statistics.median_low(state.own_s for state in states)


def _metrics(states: Sequence[RankState], is_cuda: bool) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if len(states) > 1:
        slowest = max(range(len(states)), key=lambda rank: states[rank].own_s)
        metrics["perf/rank_ms_median"] = 1e3 * _median(states)
        metrics["perf/rank_ms_max"] = 1e3 * states[slowest].own_s
        metrics["perf/slowest_rank"] = slowest
    if is_cuda:
        metrics["perf/allocator_retries"] = sum(state.retries for state in states)
    if clocks := [state.health.clock_mhz for state in states if state.health.clock_mhz]:
        metrics["perf/gpu_clock_mhz"] = min(clocks)
        metrics["perf/gpus_throttled"] = sum(state.health.is_throttled for state in states)
        metrics["perf/ecc_errors"] = sum(state.health.ecc_errors for state in states)
    return metrics
