"""After which steps the ranks look for a signal."""

import pytest

from pretrain.distributed.clock import StopCheck


def steps_looked_at(step_s: float, num_steps: int, first: int = 0) -> list[int]:
    """The steps after which the ranks compare, where each takes so many seconds."""
    time = 0.0
    check = StopCheck(first, now=lambda: time)
    found = []
    for step in range(first + 1, first + num_steps + 1):
        time += step_s
        if check.is_due(step):
            found.append(step)
            check.begin(step, check.step_s(step))
    return found


@pytest.mark.parametrize("step_s", [1.1, 30.0, 400.0])
def test_every_step_that_takes_long_is_looked_at(step_s: float) -> None:
    assert steps_looked_at(step_s, 5) == [1, 2, 3, 4, 5]


def test_short_steps_are_looked_at_every_two_seconds() -> None:
    assert steps_looked_at(0.25, 25, first=100) == [101, 109, 117, 125]


def test_a_step_that_was_slow_once_does_not_keep_the_looks_frequent() -> None:
    time = 0.0
    check = StopCheck(0, now=lambda: time)
    time = 60.0  # it compiled
    assert check.is_due(1)
    check.begin(1, check.step_s(1))
    time += 0.01
    assert check.is_due(2), "the pace is not known yet"
    check.begin(2, check.step_s(2))
    assert not any(check.is_due(step) for step in range(3, 200))
