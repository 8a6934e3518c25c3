"""A loss outside the published band, or too long on the plateau, is reported once with causes."""

import contextlib
import math
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep.core.config import compose
from data_prep.core.files import write_json
from pretrain.config.settings import Settings
from pretrain.metrics.monitor import JsonLines, Monitor
from pretrain.metrics.reference_curves import CURVES, RECENT, Expectation, curve_for

BASE = ("+model=base", "+recipe=paper")


def settings_of(*typed: str) -> Settings:
    settings, _ = compose("config", Settings, list(typed))
    return settings


class Watched:
    """A run whose records are made up; a new one in the same folder is its next start."""

    def __init__(self, folder: Path, settings: Settings, frequency_loss: float = 6.9) -> None:
        self.folder = folder
        self._expectation = Expectation(settings, folder, lambda: frequency_loss)

    def see(self, step: int, mlm_loss: float, **more: float) -> dict[str, float]:
        """As many records as are looked at, all of one loss, the last of them at `step`."""
        figures = {
            "train/mlm_loss": mlm_loss, "train/loss": mlm_loss + 0.1, "train/nsp_accuracy": 0.9,
            "optim/learning_rate": 5e-5, "optim/grad_norm": 0.7, "optim/skipped_steps": 0,
            "data/masked_share": 0.15, **more,
        }  # fmt: skip
        return [self.see_one(step - RECENT + 1 + i, figures) for i in range(RECENT)][-1]

    def see_one(self, step: int, figures: dict[str, float]) -> dict[str, float]:
        with contextlib.closing(Monitor([JsonLines(self.folder, 0)])) as monitor:
            return self._expectation.check(step, figures, monitor)

    @property
    def said(self) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_bytes().splitlines()
        return [e for line in lines if (e := orjson.loads(line))["event"] == "expectation"]


@pytest.mark.parametrize("curve", CURVES, ids=["base", "large"])
def test_a_published_curve_is_ascending_in_steps_and_inside_its_own_limits(curve) -> None:
    steps = [step for step, _, _ in curve.points]
    assert steps == sorted(set(steps))
    for step, low, high in curve.points:
        assert low < high
        assert curve.band(step) == (low, high)
        allowed = curve.limits(step)
        assert allowed[0] < low
        assert high < allowed[1]


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        (BASE, 0),
        (("+model=large", "+recipe=nvidia_lamb"), 1),
        (("+model=large", "+recipe=paper"), None),
        ((*BASE, "optim.learning_rate=2e-4"), None),
        (("+model=tiny",), None),
    ],
)
def test_a_curve_belongs_to_its_model_and_recipe(typed: tuple[str, ...], number: int) -> None:
    assert curve_for(settings_of(*typed)) is (None if number is None else CURVES[number])


def test_a_run_inside_the_band_gets_the_band_and_no_warning(tmp_path: Path) -> None:
    early, late = (Watched(tmp_path, settings_of(*BASE)) for _ in range(2))
    assert early.see(2_000, 6.7) == {"band/low": 6.61, "band/high": 6.82}
    assert late.see(30_000, 2.6) == {"band/low": 2.40, "band/high": 2.76}
    assert late.said == []


def test_a_run_above_the_band_is_warned_once_over_all_starts_with_its_own_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(*BASE, f"data.dir={tmp_path}")
    share = {"corpus": {"splits": {"train": {"repeated_tokens_share": 0.42}}}}
    write_json(tmp_path / "audit/128/audit.json", share)
    run = Watched(tmp_path, settings)
    run.see(30_000, 5.5, **{"train/nsp_accuracy": 0.52})
    Watched(tmp_path, settings).see(31_000, 5.5)
    (event,) = run.said
    assert (event["what"], event["step"]) == ("above", 30_000)
    findings = "\n".join(event["findings"])
    for said in ("42.0% of the tokens", "peak 0.0001", "15.0% of the tokens", "norm 0.7", "52.0%"):
        assert said in findings
    assert "look at attention" in findings
    assert caplog.text.count("is above the expected range") == 1


def test_a_loss_that_is_too_good_is_reported_too(tmp_path: Path) -> None:
    run = Watched(tmp_path, settings_of(*BASE))
    run.see(4_000, 3.0)
    assert [event["what"] for event in run.said] == ["below"]


def test_any_model_that_has_only_learnt_frequencies_is_reported(tmp_path: Path) -> None:
    early, learning, run = (
        Watched(tmp_path, settings_of("+model=tiny"), frequency_loss=6.0) for _ in range(3)
    )
    assert early.see(2_000, 6.2) == {}
    learning.see(5_000, 5.5)
    assert run.said == []
    run.see(5_000, 5.95)
    assert [event["what"] for event in run.said] == ["plateau"]
    assert "unknown, there is no" in run.said[0]["findings"][0]


def test_one_bad_record_among_good_ones_is_not_reported(tmp_path: Path) -> None:
    run = Watched(tmp_path, settings_of(*BASE))
    run.see(30_000, 2.6)
    run.see_one(30_001, {"train/mlm_loss": math.inf, "train/loss": math.inf})
    assert run.said == []
