"""Every file of a run folder, harmed at random, is read or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import harmed_bytes, harmed_json, refusals
from made_history import MadeRun, killed_and_stopped
from slow_cases import slow_but

from data_prep.core.files import write_json
from pretrain.config.load import settings_of
from pretrain.config.phases import phases_of
from pretrain.reporting.page import page
from pretrain.run_folder.history import History
from pretrain.run_folder.line_types import events_of, guesses_of, metrics_of
from pretrain.runs import main as list_runs


def harmed_lines(rng, data: bytes) -> bytes:
    """A JSON-lines file with one line harmed as JSON."""
    lines = data.splitlines(keepends=True)
    number = int(rng.integers(len(lines)))
    lines[number] = harmed_json(rng, lines[number]) + b"\n"
    return b"".join(lines)


HARMS = {
    "config.yaml": harmed_bytes,
    "environment.json": harmed_json,
    "metrics.jsonl": harmed_lines,
    "events.jsonl": harmed_lines,
    "guesses.jsonl": harmed_lines,
}
READERS = {
    "config.yaml": lambda path: phases_of(settings_of(path.parent)),
    "metrics.jsonl": metrics_of,
    "events.jsonl": events_of,
    "guesses.jsonl": guesses_of,
}


def made(folder: Path) -> Path:
    run: MadeRun = killed_and_stopped(folder / "runs" / "x")
    run.guesses(100, {"a [MASK].": [["b", 0.5]]})
    write_json(run.folder / "environment.json", {"torch": "2.13.0", "ranks": 2})
    return run.folder


@pytest.mark.parametrize("name", slow_but(["config.yaml", "metrics.jsonl"], HARMS))
def test_a_run_with_a_few_harms_is_shown_or_refused(tmp_path: Path, name: str) -> None:
    run = made(tmp_path)
    refusals(run / name, HARMS[name], lambda: page(History.read(run)), tries=8)


@pytest.mark.parametrize("name", HARMS)
def test_one_harmed_run_does_not_keep_the_others_from_being_listed(
    tmp_path: Path, name: str
) -> None:
    run = made(tmp_path)

    def read() -> None:
        assert list_runs([f"dir={tmp_path / 'runs'}"]) == 0

    assert refusals(run / name, HARMS[name], read, tries=20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_harmed_files_of_a_run_are_read_or_refused(tmp_path: Path, name: str) -> None:
    read: Callable[[Path], object] = READERS[name]
    run = made(tmp_path)
    refusals(run / name, HARMS[name], lambda: read(run / name), tries=10_000, seed=1)
