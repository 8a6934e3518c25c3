"""docs/run-folder.md names every file, metric and event that runs write."""

import dataclasses
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from killing import at_step
from run_in_fork import TINY, finished_run, pretrain_run

from pretrain.engine.engine import Engine
from pretrain.metrics import names

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "run-folder.md").read_text(encoding="utf-8")
# First cells of the tables: `train/loss`, ...
NAMES = {
    name
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for name in re.findall(r"`([^`]+)`", line.split("|")[1])
}
GROUPS = "(?:train|eval|optim|data|perf|band)"
METRICS = {name for name in NAMES if re.match(f"{GROUPS}/", name)}
SOURCES = "".join(
    path.read_text()
    for path in sorted((PROJECT / "pretrain").rglob("*.py"))
    if path.name != "names.py"  # the table of metrics, which names all
)

SMALL = (
    *TINY, "schedule.total_steps=6", "eval.every_steps=3", "eval.max_examples=8",
    "checkpoint.every_steps=2",
)  # fmt: skip


def skip_the_first_batch(rank: int) -> None:
    train_step = Engine.train_step

    def skipped(self: Engine, batch: Any, rate: float) -> Any:
        result = train_step(self, batch, rate)
        return dataclasses.replace(result, applied=False) if batch.position == 0 else result

    Engine.train_step = skipped


@pytest.fixture(scope="module")
def runs(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A killed and continued run with LAMB, and one by the clock that skips its first batch."""
    lamb, clock = tmp_path_factory.mktemp("lamb"), tmp_path_factory.mktemp("clock")
    small = [*SMALL, f"data.dir={sample_dir}"]
    options = [*small, "optim=lamb", "monitor.batch_checksums=true", "monitor.peak_tflops=1"]
    assert pretrain_run(options, lamb, hook=at_step(5))[0] == [-signal.SIGKILL]
    by_clock = [*small, "schedule.budget_hours=0.0001", "profile.steps=[1,1]"]
    for where, arguments, hook in ((lamb, options, None), (clock, by_clock, skip_the_first_batch)):
        finished_run(arguments, where, hook=hook)
    return [where / "runs" / "x" for where in (lamb, clock)]


def general(name: str) -> str:
    """As the page writes it: layer 0 and step 1,000 stand for all."""
    return re.sub(r"\d{8}", "00001000", re.sub(r"layer_\d\d", "layer_00", name))


def lines_of(runs: list[Path], file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for run in runs for line in (run / file).read_text().splitlines()]


def test_every_metric_that_runs_record_is_on_the_page(runs: list[Path]) -> None:
    recorded = {general(name) for line in lines_of(runs, "metrics.jsonl") for name in line}
    assert {"train/loss", "eval/loss", "perf/goodput", "perf/training_hours"} <= recorded
    assert recorded - METRICS == {"step", "time"}


def test_the_units_on_the_page_are_those_of_the_table_of_metrics() -> None:
    cells = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `")]
    units = {re.findall(r"`([^`]+)`", name)[0]: unit.strip() for name, unit in cells}
    expected = {name: metric.unit for name, metric in names.METRICS.items()}
    assert {name: units[name] for name in sorted(METRICS)} == expected


def test_every_metric_that_the_code_names_is_on_the_page() -> None:
    named = set(re.findall(rf'"({GROUPS}/\w+)"', SOURCES))
    assert {"train/mlm_loss", "optim/loss_scale", "perf/mfu", "band/low"} <= named
    assert named - METRICS == {"eval/guesses"}  # never in metrics.jsonl


def test_every_metric_on_the_page_occurs_in_the_code() -> None:
    assert [n for n in sorted(METRICS) if n not in SOURCES and _last(n) not in SOURCES] == []


def _last(name: str) -> str:
    """The name without its group, as the code writes it: nsp and sop share a line."""
    return re.sub("/(nsp|sop)_", "/{pairing.name}_", f"/{name.rpartition('/')[2]}")


def test_every_event_of_a_run_is_on_the_page_with_its_fields(runs: list[Path]) -> None:
    events = lines_of(runs, "events.jsonl")
    assert {"lost", "resumed", "skipped_step", "finished"} <= {event["event"] for event in events}
    for event in events:
        row = _row(event["event"])
        fields = set(event) - {"time", "event"}
        assert fields - set(re.findall(r"`([^`]+)`", row)) == set(), event["event"]


def _row(event: str) -> str:
    return next(line for line in PAGE.splitlines() if line.startswith(f"| `{event}` |"))


def test_every_kind_of_event_that_the_code_names_is_on_the_page() -> None:
    calls = re.findall(r'(?:event|tell)\(\s*"(\w+)"', SOURCES)
    early = re.findall(r'append_event\([\w.]+, "(\w+)"', SOURCES)  # before there is a monitor
    [starts] = re.findall(r"^BEGINNINGS = \((.*)\)", SOURCES, re.M)
    named = {*calls, *early, *re.findall(r'"(\w+)"', starts)}
    assert {"preflight", "spike", "checkpoint_failed", "started", "rewound"} <= named
    assert named - NAMES == set()


def test_every_file_of_a_run_folder_is_on_the_page(runs: list[Path]) -> None:
    files = [path.relative_to(run) for run in runs for path in run.rglob("*") if path.is_file()]
    folders = [name for name in NAMES if name.endswith("/")]
    known = NAMES | {f"{folder}{file}" for folder in folders for file in NAMES}
    assert {general(str(file)) for file in files} - known == set()
