"""A trace adds up: own times, exposed communication and idle time, on made traces."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.metrics.trace import length, minus, own_parts, profile_of, union

CPU, MAIN, GLOO, STREAM, NCCL_STREAM = "host", 1, 2, 7, 20
intervals = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (min(pair), max(pair))),
    max_size=8,
)


def span(name: str, start: float, end: float, cat: str = "cpu_op", tid: int = MAIN) -> Any:
    return {
        "ph": "X", "name": name, "cat": cat, "pid": CPU, "tid": tid, "ts": start,
        "dur": end - start,
    }  # fmt: skip


def kernel(name: str, start: float, end: float, tid: int = STREAM) -> Any:
    return span(name, start, end, "kernel", tid)


def step(number: int, start: float, end: float) -> Any:
    return span(f"ProfilerStep#{number}", start, end, "user_annotation")


def cells(found: Any) -> set[int]:
    """The unit cells that whole-numbered intervals cover."""
    return {cell for start, end in found for cell in range(int(start), int(end))}


@given(intervals, intervals)
def test_union_and_difference_cover_what_single_cells_say(first, second) -> None:
    ours, theirs = union(first), union(second)
    assert cells(ours) == cells(first)
    assert length(ours) == len(cells(first)), "no time twice"
    assert cells(minus(ours, theirs)) == cells(first) - cells(second)
    assert length(minus(ours, theirs)) == len(cells(first) - cells(second))


def test_the_own_time_of_an_operator_is_without_those_inside_it_on_its_thread() -> None:
    events = [
        span("outer", 0, 10), span("inner", 2, 6), span("innermost", 3, 4), span("second", 7, 8),
        span("other thread", 0, 9, tid=GLOO),
    ]  # fmt: skip
    own: dict[str, float] = {}
    for name, start, end in own_parts(events):
        own[name] = own.get(name, 0) + end - start
    assert own == {"outer": 5, "inner": 3, "innermost": 1, "second": 1, "other thread": 9}


def test_time_is_counted_once_where_an_event_outlasts_the_one_that_it_began_in() -> None:
    parts = [(start, end) for _, start, end in own_parts([span("a", 0, 10), span("b", 8, 15)])]
    assert length(parts) == length(union(parts)) == 15


def test_on_a_gpu_kernels_count_and_nccl_is_exposed_where_no_other_kernel_runs() -> None:
    events = [
        step(10, 0, 50), step(11, 50, 90), span("aten::mm", 0, 90), kernel("gemm", 10, 40),
        kernel("gemm", 60, 70), kernel("ncclDevKernel_ReduceScatter", 30, 55, NCCL_STREAM),
        span("Memcpy HtoD", 5, 8, "gpu_memcpy", 8), kernel("late", 95, 100),
    ]  # fmt: skip
    found = profile_of(events, rank=3)
    assert (found.rank, found.steps, found.counted, found.ms) == (3, 2, "kernels", 0.1)
    assert found.communication == pytest.approx(0.25)
    assert found.exposed == pytest.approx(0.15), "from 40 to 55"
    assert found.idle == pytest.approx(1 - (3 + 45 + 10 + 5) / 100)
    top = [(entry.name, entry.calls, entry.own_ms) for entry in found.top]
    assert top[:2] == [("gemm", 2, 0.04), ("ncclDevKernel_ReduceScatter", 1, 0.025)]


def test_on_a_cpu_operators_count_and_gloo_is_exposed_while_the_main_thread_waits() -> None:
    events = [
        step(1, 0, 100), span("aten::mm", 0, 40), span("c10d::allreduce_", 40, 42),
        span("gloo:all_reduce", 20, 80, "user_annotation", GLOO), span("aten::add", 90, 95),
        span("Optimizer.step", 0, 100, "user_annotation"),
    ]  # fmt: skip
    found = profile_of(events, rank=0)
    assert found.counted == "operators"
    assert found.communication == pytest.approx(0.6)
    assert found.exposed == pytest.approx(0.4), "from 40 to 80"
    assert found.idle == pytest.approx(0.15)


def test_what_ran_before_the_first_step_is_not_counted() -> None:
    found = profile_of([kernel("early", 0, 60), step(5, 50, 100), kernel("k", 70, 80)], rank=0)
    assert found.ms == 0.05
    assert found.idle == pytest.approx(0.6)
    assert [(t.name, t.calls, t.own_ms) for t in found.top] == [("early", 0, 0.01), ("k", 1, 0.01)]


def test_a_trace_without_a_step_is_an_error() -> None:
    with pytest.raises(ValueError, match="the trace of rank 2 has no step"):
        profile_of([kernel("k", 0, 1)], rank=2)
