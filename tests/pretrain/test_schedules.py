"""The learning rate against the closed form of google-research/bert, optimization.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.schedules import learning_rate
from pretrain.settings import ScheduleSettings

PAPER = ScheduleSettings(
    total_steps=1_000_000, warmup_steps=10_000, warmup_fraction=0.5, decay_from_step_0=True
)


def google(step: int, warmup: int, total: int, peak: float) -> float:
    """polynomial_decay to 0 with power 1, overwritten by the warm-up while it lasts."""
    decayed = (peak - 0.0) * (1 - min(step, total) / total) + 0.0
    is_warmup = 1.0 if step < warmup else 0.0
    warm = peak * (step / warmup) if warmup else 0.0
    return (1.0 - is_warmup) * decayed + is_warmup * warm


@st.composite
def schedules(draw: st.DrawFn, decay_from_step_0: bool) -> ScheduleSettings:
    total = draw(st.integers(1, 10_000))
    warmup = draw(st.integers(0, total - 1))
    return ScheduleSettings(total, warmup, 0.0, decay_from_step_0)


@given(schedules(decay_from_step_0=True), st.integers(0, 12_000))
def test_decay_from_step_0_is_the_formula_of_google(schedule: ScheduleSettings, step: int) -> None:
    expected = google(step, schedule.warmup, schedule.total_steps, 1e-4)
    assert learning_rate(step, schedule, 1e-4) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (1, 1e-8),
        (9_999, 9.999e-5),
        (10_000, 9.9e-5),  # the drop by one percent where the warm-up ends
        (500_000, 5e-5),
        (999_999, 1e-10),
        (1_000_000, 0.0),
    ],
)
def test_the_paper_s_rates(step: int, rate: float) -> None:
    assert learning_rate(step, PAPER, 1e-4) == pytest.approx(rate, rel=1e-9)


@given(schedules(decay_from_step_0=False))
def test_without_it_the_curve_peaks_once_at_the_end_of_the_warm_up_and_has_no_jump(
    schedule: ScheduleSettings,
) -> None:
    warmup, total = schedule.warmup, schedule.total_steps
    assert learning_rate(warmup, schedule, 3.0) == pytest.approx(3.0)
    assert learning_rate(total, schedule, 3.0) == 0.0
    steepest = 3.0 * max(1 / max(1, warmup), 1 / (total - warmup))
    for step in range(max(0, warmup - 3), min(total, warmup + 3)):
        change = learning_rate(step + 1, schedule, 3.0) - learning_rate(step, schedule, 3.0)
        assert abs(change) <= steepest * (1 + 1e-9)


def test_the_warm_up_may_be_given_as_a_fraction() -> None:
    schedule = ScheduleSettings(1_000, None, 0.1, False)
    assert learning_rate(50, schedule, 1.0) == pytest.approx(0.5)
    assert learning_rate(100, schedule, 1.0) == pytest.approx(1.0)


def test_a_negative_number_of_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="finished updates is -1"):
        learning_rate(-1, PAPER, 1e-4)
