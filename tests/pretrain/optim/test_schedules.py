"""The learning rate against the published formulae of each curve."""

from typing import Any

import pytest
from google_schedule import google
from hypothesis import given
from hypothesis import strategies as st

from data_prep.core.config import compose
from pretrain.config.settings import DecayShape, ScheduleSettings, Settings
from pretrain.optim.schedules import is_over, learning_rate


def schedule_of(name: str = "linear", **changes: Any) -> ScheduleSettings:
    """conf/schedule/<name>.yaml with some values changed."""
    typed = [f"schedule.{key}={'null' if v is None else v}" for key, v in changes.items()]
    return compose("config", Settings, ["+model=base", f"schedule={name}", *typed])[0].schedule


PAPER = schedule_of()


@st.composite
def schedules(draw: st.DrawFn, decay_from_step_0: bool) -> ScheduleSettings:
    total = draw(st.integers(1, 10_000))
    warmup = draw(st.integers(0, total - 1))
    return ScheduleSettings(total, None, warmup, 0.0, 1.0, decay_from_step_0, False, 0, None)


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
    schedule = schedule_of(total_steps=1_000, warmup_fraction=0.1, decay_from_step_0=False)
    assert learning_rate(50, schedule, 1.0) == pytest.approx(0.5)
    assert learning_rate(100, schedule, 1.0) == pytest.approx(1.0)


def test_a_negative_number_of_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="finished updates is -1"):
        learning_rate(-1, PAPER, 1e-4)


def nvidia(update: int, warmup: float, total: int, peak: float) -> float:
    """PolyWarmUpScheduler.get_lr, degree 0.5, with last_epoch = the update's number from 1."""
    progress = update / total
    if progress < warmup:
        return peak * progress / warmup
    return peak * float((1.0 - progress) ** 0.5)


@pytest.mark.parametrize(("warmup", "total"), [(0.2843, 7_038), (0.128, 1_563)])
def test_nvidia_s_curve_is_its_formula_at_every_update(warmup: float, total: int) -> None:
    schedule = schedule_of("poly_nvidia", total_steps=total, warmup_fraction=warmup)
    for step in range(total):
        expected = nvidia(step + 1, warmup, total, 6e-3)
        assert learning_rate(step, schedule, 6e-3) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("peak", "warmup", "total", "after"),
    [(6e-3, 0.2843, 7_038, 5.08e-3), (4e-3, 0.128, 1_563, 3.74e-3)],
)
def test_nvidia_s_rate_drops_where_the_warm_up_ends_as_published(
    peak: float, warmup: float, total: int, after: float
) -> None:
    schedule = schedule_of("poly_nvidia", total_steps=total, warmup_fraction=warmup)
    rates = [learning_rate(step, schedule, peak) for step in range(total)]
    assert max(rates) == pytest.approx(peak, rel=5e-3)
    assert rates[rates.index(max(rates)) + 1] == pytest.approx(after, rel=2e-3)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_decay_is_the_power_of_what_is_left(power: float) -> None:
    schedule = schedule_of(total_steps=100, warmup_steps=20, power=power, decay_from_step_0=False)
    for step in range(20, 101):
        expected = 3.0 * ((100 - step) / 80) ** power
        assert learning_rate(step, schedule, 3.0) == pytest.approx(expected, rel=1e-12)


def test_a_constant_rate_stays_at_its_peak() -> None:
    schedule = schedule_of("constant", total_steps=50, warmup_steps=5)
    rates = [learning_rate(step, schedule, 2.0) for step in range(50)]
    assert rates == [0.0, 0.4, 0.8, 1.2, 1.6, *[2.0] * 45]


def test_wsd_rises_stays_and_decays_over_its_last_fifth_by_one_minus_the_root() -> None:
    schedule = schedule_of("wsd", total_steps=100, warmup_steps=10)
    rates = [learning_rate(step, schedule, 2.0) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(10)])
    assert rates[10:81] == [2.0] * 71
    expected = [2 * (1 - ((step - 80) / 20) ** 0.5) for step in range(81, 101)]
    assert rates[81:] == pytest.approx(expected, abs=1e-15)
    assert schedule.undecayed_steps == 80


@pytest.mark.parametrize("shape", ["power", "one_minus_sqrt"])
@given(st.integers(2, 3_000), st.integers(1, 999), st.booleans())
def test_a_longer_end_changes_no_rate_before_the_decay(shape, total, thousandths, from_1) -> None:
    fraction, decay = thousandths / 1000, DecayShape[shape]
    short, long = (
        ScheduleSettings(end, None, 0, 0.0, 1.0, False, from_1, 0, None, fraction, decay)
        for end in (total, 2 * total)
    )
    undecayed = short.undecayed_steps
    assert undecayed is not None
    rates = [learning_rate(step, short, 3.0) for step in range(total)]
    assert rates[:undecayed] == [learning_rate(step, long, 3.0) for step in range(undecayed)]
    assert rates[undecayed + 1 :] == sorted(rates[undecayed + 1 :], reverse=True)
    assert all(rate < 3.0 for rate in rates[undecayed + 1 :])


def academic_budget(hours: float, total: float, warmup_proportion: float) -> float:
    """TimeScheduler with LinearCurve, as a factor of the peak."""
    total_warmup = total * warmup_proportion
    if hours < total_warmup:
        return hours / total_warmup
    return max(0.0, total - hours) / max(1.0, total - total_warmup)


@given(st.floats(0, 30), st.integers(0, 10_000))
def test_with_a_budget_the_rate_is_a_line_in_time_whatever_the_steps(hours, step) -> None:
    schedule = ScheduleSettings(1, 24.0, None, 0.06, 1.0, False, False, 0, None)
    expected = 1e-3 * academic_budget(hours, 24.0, 0.06)
    rate = learning_rate(step, schedule, 1e-3, elapsed_s=hours * 3600)
    assert rate == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert is_over(step, schedule, hours * 3600) == (hours >= 24)


def test_without_a_budget_the_steps_end_a_run_whatever_the_time() -> None:
    schedule = schedule_of(total_steps=10)
    assert [is_over(step, schedule, elapsed_s=1e9) for step in (9, 10)] == [False, True]
