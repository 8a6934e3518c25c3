"""What the traces of a profile add up to: own time by kernel or operator, communication, idleness.

A trace is torch's Chrome trace. On a GPU its kernels and copies are counted, on a CPU operators.
Times are in microseconds, as in the trace.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.core.records import Count, Record, Share, read_record

FOLDER = "profile"
STEP = "ProfilerStep#"  # begins the name of a step in a trace, followed by its number
MOST_NAMES = 20
_SUMMARY = "summary.json"
_LONGEST_NAME = 120  # of a kernel: templates are longer
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_COMMUNICATION = re.compile(r"nccl|gloo:|c10d::|record_param_comms", re.IGNORECASE)

Interval = tuple[float, float]  # start and end
Named = tuple[str, float, float]  # name, start and end


class Top(Record):
    """A kernel or operator, by the time that it took itself."""

    name: str
    calls: Count
    own_ms: float
    share: float  # of the profiled time; of several at once more than 1 in all


class RankProfile(Record):
    """What the trace of one rank adds up to."""

    rank: Count
    steps: Count
    counted: str  # kernels or operators
    ms: float  # from the begin of the first step to the end of the last, and of its kernels
    idle: Share  # of the profiled time, in which nothing counted ran
    communication: Share  # in which collectives ran
    exposed: Share  # in which collectives ran and nothing else
    top: list[Top]


class ProfileSummary(Record):
    """profile/summary.json."""

    first_step: Count
    last_step: Count
    ranks: list[RankProfile]


def read_summary(run_folder: Path) -> ProfileSummary | None:
    """The profile of a run, or None. Raises SettingsError if the file is not as a run writes it."""
    path = run_folder / FOLDER / _SUMMARY
    cure = "profile again, or remove that folder"
    return read_record(path, ProfileSummary, cure, follow_links=False) if path.exists() else None


def summary_path(run_folder: Path) -> Path:
    """The file that `read_summary` reads."""
    return run_folder / FOLDER / _SUMMARY


def trace_path(run_folder: Path, rank: int) -> Path:
    """The trace of a rank, a Chrome trace in gzip."""
    return run_folder / FOLDER / f"rank-{rank:05d}.trace.json.gz"


def memory_path(run_folder: Path, rank: int) -> Path:
    """The memory snapshot of a rank on a GPU: a pickle in torch's own format."""
    return run_folder / FOLDER / f"rank-{rank:05d}.memory.pickle"


def profile_of(events: Iterable[dict[str, Any]], rank: int) -> RankProfile:
    """Add up the events of a trace. Raises ValueError if no step is among them."""
    spans = [event for event in events if event.get("ph") == "X"]
    steps = [
        _interval(event)
        for event in spans
        if event["name"].startswith(STEP) and event.get("cat") == "user_annotation"
    ]
    if not steps:
        raise ValueError(f"the trace of rank {rank} has no step")
    on_device = [event for event in spans if event.get("cat") in _ON_DEVICE]
    counted = on_device or [event for event in spans if _is_operator(event)]
    begin = min(start for start, _ in steps)
    end = max(end for _, end in [*steps, *map(_interval, counted)])
    total = end - begin
    parts = [
        (name, max(start, begin), stop) for name, start, stop in own_parts(counted) if stop > begin
    ]
    is_collective = {name: bool(_COMMUNICATION.search(name)) for name, _, _ in parts}
    collectives = union((a, b) for name, a, b in parts if is_collective[name])
    others = union((a, b) for name, a, b in parts if not is_collective[name])
    busy = union([*collectives, *others])
    return RankProfile(
        rank=rank,
        steps=len(steps),
        counted="kernels" if on_device else "operators",
        ms=total / 1e3,
        idle=_share(total - length(busy), total),
        communication=_share(length(collectives), total),
        exposed=_share(length(minus(collectives, others)), total),
        top=_top(parts, Counter(e["name"] for e in counted if e["ts"] >= begin), total),
    )


def _is_operator(event: dict[str, Any]) -> bool:
    """Whether a CPU computes or communicates in this event. gloo marks its work in its threads."""
    return event.get("cat") == "cpu_op" or event["name"].startswith("gloo:")


def _share(part: float, total: float) -> float:
    return min(1.0, max(0.0, part / total))  # rounding may leave a little more than all


def _top(parts: Iterable[Named], calls: Mapping[str, int], total: float) -> list[Top]:
    own: dict[str, float] = defaultdict(float)
    for name, start, end in parts:
        own[name] += end - start
    longest = sorted(own.items(), key=lambda item: -item[1])[:MOST_NAMES]
    return [
        Top(name[:_LONGEST_NAME], calls[name], time / 1e3, time / total) for name, time in longest
    ]


def own_parts(events: Iterable[dict[str, Any]]) -> Iterator[Named]:
    """The time of each event without that of the events inside it, thread by thread.

    An event is cut where another one begins in it, so it may have several parts.
    """
    threads: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    for of_thread in threads.values():
        of_thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        open_events: list[Named] = []  # each inside the one before; its start moves on
        for event in of_thread:
            start, end = _interval(event)
            yield from _closed(open_events, start)
            if open_events:
                name, begun, until = open_events[-1]
                if begun < start:
                    yield name, begun, start
                open_events[-1] = name, start, until
            open_events.append((event["name"], start, end))
        yield from _closed(open_events, float("inf"))


def _closed(open_events: list[Named], now: float) -> Iterator[Named]:
    """Take the events off that have ended until `now`, and yield their last parts."""
    while open_events and open_events[-1][2] <= now:
        name, begun, end = open_events.pop()
        if begun < end:  # otherwise one that began inside it ended after it
            yield name, begun, end
        if open_events:
            outer, _, until = open_events[-1]
            open_events[-1] = outer, end, until


def _interval(event: dict[str, Any]) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The time that any of the intervals covers, ascending, without overlaps."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def minus(intervals: list[Interval], others: list[Interval]) -> list[Interval]:
    """The time of `intervals` that `others` do not cover; both as `union` returns them."""
    found, position = [], 0
    for start, end in intervals:
        while position < len(others) and others[position][1] <= start:
            position += 1
        at, following = start, position
        while following < len(others) and others[following][0] < end:
            if others[following][0] > at:
                found.append((at, others[following][0]))
            at = max(at, others[following][1])
            following += 1
        if at < end:
            found.append((at, end))
    return found


def length(intervals: Iterable[Interval]) -> float:
    """The time that the intervals cover together, if none overlap."""
    return sum(end - start for start, end in intervals)


def lines(summary: ProfileSummary) -> list[str]:
    """The summary in words, a line per rank."""
    return [
        f"rank {p.rank}: {p.ms / max(1, p.steps):,.1f} ms per step, idle {p.idle:.1%}, "
        f"communication {p.communication:.1%} (exposed {p.exposed:.1%}), "
        f"most in {p.top[0].name if p.top else 'nothing'}"
        for p in summary.ranks
    ]
