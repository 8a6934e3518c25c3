"""A rank that stays slower than the others is named; GPU errors and metrics of all ranks."""

import datetime
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks_harness import run_ranks

from pretrain.distributed.ranks import Ranks
from pretrain.metrics import stragglers
from pretrain.metrics.gpu_health import Health
from pretrain.metrics.monitor import Monitor, Sink
from pretrain.metrics.stragglers import RankState, RankWatch

EPOCH = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC).timestamp()
HOSTS = ["n01", "n01", "n02", "n02"]


class Events(Sink):
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        self.seen.append((kind, facts))


class Fixed:
    """An OwnTime with a given answer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def take(self) -> float:
        return self.seconds


class Watched:
    """A watch of four ranks on rank 0, with a clock of its own and given states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.events, self.step = EPOCH, Events(), 0
        monkeypatch.setattr(Ranks, "gather", lambda *_: HOSTS)
        ranks = Ranks(0, len(HOSTS), torch.device("cpu"))
        self.watch = RankWatch(ranks, Monitor([self.events]), lambda: self.clock)
        self.states: list[RankState] = []
        monkeypatch.setattr(self.watch, "_gather", lambda _: self.states)

    def record(self, *own: float, after: float, health: Any = None) -> dict[str, float]:
        """A record `after` seconds; `health` by rank."""
        self.clock += after
        self.step += 10
        self.states = [
            RankState(seconds, (health or {}).get(rank, Health()), retries=0)
            for rank, seconds in enumerate(own)
        ]
        return self.watch.metrics(Fixed(0), self.step)  # type: ignore[arg-type]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_rank_is_named_within_a_minute_with_its_host_and_since_when(watched: Watched) -> None:
    hot = {2: Health(clock_mhz=1200, reasons=0x44)}
    watched.record(1, 1, 1, 1, after=20)
    for _ in range(3):
        watched.record(1, 1, 1.3, 1.02, after=15, health=hot)
    assert watched.events.seen == [
        (
            "straggler",
            {
                "step": 30, "rank": 2, "host": "n02", "slower": 0.3,
                "since": "2030-01-01T00:00:20+00:00", "clock_mhz": 1200,
                "throttled": "power cap, temperature (hardware)",
            },
        )
    ]  # fmt: skip


def test_one_slow_record_among_faster_ones_names_nobody(watched: Watched) -> None:
    for number in range(10):
        watched.record(1, 1, 1, 1.5 if number % 2 else 1, after=20)
    assert not watched.events.seen


def test_ranks_of_nearly_the_same_speed_are_no_stragglers(watched: Watched) -> None:
    for _ in range(5):
        watched.record(1, 1.05, 1.1, 1.14, after=30)
    assert not watched.events.seen


def test_a_straggler_is_named_again_after_it_had_recovered(watched: Watched) -> None:
    for own in (2, 2, 2, 1, 2, 2):
        watched.record(own, 1, 1, 1, after=20)
    assert [facts["step"] for _, facts in watched.events.seen] == [20, 60]


def test_of_two_ranks_the_slower_one_is_the_straggler(watched: Watched) -> None:
    watched.record(1, 1.2, after=40)
    assert [facts["rank"] for _, facts in watched.events.seen] == [1]


def test_ranks_that_measured_nothing_are_equal(watched: Watched) -> None:
    watched.record(0, 0, 0, 1, after=60)
    assert not watched.events.seen


def test_errors_of_a_gpu_are_named_once_and_older_ones_not_at_all(watched: Watched) -> None:
    for ecc, xid in ((5, 0), (5, 0), (6, 0), (6, 63), (6, 63)):
        health = {3: Health(clock_mhz=1980, ecc_errors=ecc, xid=xid)}
        watched.record(1, 1, 1, 1, after=10, health=health)
    assert watched.events.seen == [
        ("gpu_error", {"step": 30, "rank": 3, "host": "n02", "ecc_errors": 6}),
        ("gpu_error", {"step": 40, "rank": 3, "host": "n02", "ecc_errors": 6, "xid": 63}),
    ]


def test_a_record_has_the_median_the_slowest_rank_and_the_lowest_clock(watched: Watched) -> None:
    health = {
        0: Health(clock_mhz=1980, reasons=0x04), 1: Health(clock_mhz=1410, reasons=0x20),
    }  # fmt: skip
    assert watched.record(0.1, 0.25, 0.2, 0.1, after=10, health=health) == {
        "perf/rank_ms_median": 100.0, "perf/rank_ms_max": 250.0, "perf/slowest_rank": 1,
        "perf/gpu_clock_mhz": 1410, "perf/gpus_throttled": 1, "perf/ecc_errors": 0,
    }  # fmt: skip


def slower_by_rank(ranks: Ranks) -> dict[str, float]:
    watch = RankWatch(ranks, Monitor([]))
    return watch.metrics(Fixed(1.0 + ranks.rank), 10)  # type: ignore[arg-type]


@pytest.mark.distributed
def test_all_ranks_get_the_metrics_of_all() -> None:
    expected = {"perf/rank_ms_median": 1e3, "perf/rank_ms_max": 2e3, "perf/slowest_rank": 1}
    assert run_ranks(slower_by_rank, 2) == [expected] * 2


def test_a_single_rank_on_a_cpu_has_no_such_metrics() -> None:
    watch = RankWatch(Ranks(0, 1, torch.device("cpu")), Monitor([]))
    assert watch.metrics(Fixed(1.0), 10) == {}  # type: ignore[arg-type]


def test_on_a_gpu_a_record_has_how_often_the_allocator_had_to_try_again(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _: {"num_alloc_retries": 3})
    monkeypatch.setattr(stragglers, "GpuHealth", lambda _: SimpleNamespace(read=Health))
    watch = RankWatch(Ranks(0, 1, torch.device("cuda")), Monitor([]))
    found = watch.metrics(Fixed(1.0), 10)  # type: ignore[arg-type]
    assert found == {"perf/allocator_retries": 3}


def test_states_pass_through_float64_unchanged() -> None:
    state = RankState(0.125, Health(1980, 0xEC, 2**40, 119), retries=7)
    assert RankState.of(torch.tensor(state.numbers(), dtype=torch.float64).tolist()) == state


def test_a_clock_that_was_gathered_is_whole_mhz() -> None:
    numbers = [float(number) for number in RankState(0.125, Health(1200), retries=0).numbers()]
    assert str(RankState.of(numbers).health.clock_mhz) == "1200"
