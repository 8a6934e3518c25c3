"""What a sample's costs become for the whole input: more text, parts, cores and nodes."""

import dataclasses
from typing import Any

import pytest

from data_prep.core.job import load
from data_prep.planning.forecast import (
    JOB_START,
    AuditCost,
    Cost,
    Forecast,
    Line,
    Sample,
    Stage,
    forecast,
)

COST = Cost(seconds=Line(1.0, 1e-6), peak_bytes=Line(1e8, 10.0), rest=2.0, files=5.0, bytes=0.5)
SAMPLE = Sample(
    source_bytes=40e6,
    source_tasks=4,
    input_bytes=4e6,
    characters=4_000_000,
    kept=1.0,
    documents=400,
    tokens=1_000_000,
    seconds=10.0,
    collect=COST,
    filter=None,
    vocab=Line(1.0, 1e-6),
    encode=COST,
    build={128: COST},
    audit={128: AuditCost(Line(2.0, 1e-3), 0.01)},
)


def planned(*overrides: str) -> Forecast:
    return forecast(load(["data_dir=d", "num_workers=2", *overrides]), SAMPLE)


def stage(name: str, *overrides: str) -> Stage:
    return next(stage for stage in planned(*overrides).stages if stage.name == name)


def test_a_line_tells_what_a_task_costs_from_what_its_text_costs() -> None:
    line = Line.through([(1, 3.0), (1, 3.0), (5, 11.0)])
    assert (line.constant, line.slope) == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 1.0), (2, 3.0)], (0.0, 1.4)),
        ([(1, 3.0), (2, 1.0)], (2.0, 0.0)),
        ([(2, 4.0)], (4.0, 0.0)),
    ],
)
def test_a_line_falls_nowhere_and_is_nowhere_negative(points: Any, expected: Any) -> None:
    line = Line.through(points)
    assert (line.constant, line.slope) == pytest.approx(expected)


def test_the_whole_source_is_forecast_on_all_cores() -> None:
    found = stage("collect")
    assert found.tasks == 4
    assert found.seconds == pytest.approx(JOB_START + 2 + 2 * (1 + 10))
    assert found.peak_bytes == pytest.approx(2 * (1e8 + 1e8))
    assert (found.files, found.bytes) == pytest.approx((20, 20e6))


def test_what_filters_drop_is_not_read_by_the_jobs_after_them() -> None:
    sample = dataclasses.replace(SAMPLE, filter=COST, kept=0.25)
    settings = load(["data_dir=d", "num_workers=2"])
    found = {stage.name: stage for stage in forecast(settings, sample).stages}
    assert list(found)[:2] == ["collect", "filter"]
    assert found["filter"].bytes == pytest.approx(20e6)
    assert found["encode"].bytes == pytest.approx(found["filter"].bytes / 4)
    assert "filter" not in [stage.name for stage in planned().stages]


def test_nodes_share_the_tasks_and_bytes_scale_the_input() -> None:
    assert stage("collect", "plan.nodes=2").seconds == pytest.approx(JOB_START + 2 + 11)
    assert stage("collect", "plan.nodes=200").seconds == pytest.approx(JOB_START + 2 + 11)
    assert stage("collect", "plan.nodes=2").tasks == 4
    large = planned("plan.bytes=1e12")
    assert large.characters == pytest.approx(1e12)
    assert large.stages[0].tasks == 100_000


def test_the_vocabulary_is_trained_on_a_sample_of_a_large_corpus() -> None:
    assert stage("vocab", "plan.bytes=1e12").seconds == pytest.approx(JOB_START + 1 + 1_000)


def test_every_pass_has_its_own_shards() -> None:
    assert (stage("build 128").tasks, stage("build 128", "copies=3").tasks) == (4, 12)
    assert stage("build 128", "copies=3").bytes == pytest.approx(15e6)


def test_an_audit_takes_longer_until_there_are_as_many_examples_as_it_looks_at() -> None:
    assert stage("audit 128", "plan.bytes=4e5").seconds == pytest.approx(JOB_START + 3, abs=0.01)
    most = JOB_START + 2 + 10
    assert stage("audit 128").seconds == pytest.approx(most, abs=0.2)
    assert stage("audit 128", "copies=3").seconds == pytest.approx(most, abs=0.5)


def test_copies_are_not_looked_for_with_keep() -> None:
    assert "dedup" in [stage.name for stage in planned().stages]
    assert "dedup" not in [stage.name for stage in planned("duplicates=keep").stages]


def test_a_larger_sample_of_the_same_costs_gives_the_same_forecast() -> None:
    twice = dataclasses.replace(
        SAMPLE, input_bytes=8e6, characters=8_000_000, documents=800, tokens=2_000_000
    )
    assert forecast(load(["data_dir=d"]), twice) == forecast(load(["data_dir=d"]), SAMPLE)
