"""Results of benchmarks in a Markdown file: which, with what, and where."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from data_prep.core.config import SettingsError
from scripts.bench import record
from scripts.bench.record import insert, main, numbers, table

RECORD = {
    "benchmark": "step",
    "device": "cpu",
    "speedup": 2.5,
    "settings": {"rounds": 3},
    "parts": {"heads": {"ms": 7.25}},
    "all": {"ours": [1.0, 2.0]},
    "machine": {"torch": "2.13"},
}


@pytest.mark.parametrize("command", [*record.CPU, *record.GPU])
def test_each_command_names_a_benchmark(command: str) -> None:
    assert find_spec(f"scripts.bench.{command.split()[0]}")


def test_the_numbers_are_those_measured_and_not_the_setup() -> None:
    assert dict(numbers(RECORD)) == {"speedup": 2.5, "parts: heads: ms": 7.25}


def test_every_number_stands_next_to_its_command_and_a_failure_is_shown() -> None:
    lines = table("cpu", {"python -m a": RECORD, "python -m b": None}, 0.5).split("\n")
    assert "| `python -m a` | speedup 2.5<br>parts: heads: ms 7.25 |" in lines
    assert "| `python -m b` | failed |" in lines
    assert "load before 0.5; torch 2.13; device cpu." in lines


def test_new_results_replace_the_old_and_nothing_else_changes() -> None:
    first = insert("# Notes\n", "cpu", "old")
    both = insert(first, "gpu", "of a GPU")
    assert insert(both, "cpu", "new") == both.replace("old", "new")
    assert both.startswith("# Notes\n")
    assert both.endswith("-->\n")


def test_a_lost_marker_is_refused_and_nothing_is_overwritten() -> None:
    text = insert("", "cpu", "old").replace("<!-- end of the cpu figures -->", "")
    with pytest.raises(SettingsError, match="end of the cpu figures"):
        insert(text, "cpu", "new")


def test_a_benchmark_that_fails_loses_only_its_own_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "CPU", ("good", "bad"))
    monkeypatch.setattr(record, "run", lambda command: None if "bad" in command else RECORD)
    path = tmp_path / "figures.md"
    assert main(["cpu", f"into={path}"]) == 1
    text = path.read_text(encoding="utf-8")
    assert "| `python -m scripts.bench.good` | speedup 2.5<br>" in text
    assert "| `python -m scripts.bench.bad` | failed |" in text


def test_the_last_line_that_is_printed_is_kept() -> None:
    command = "python -c 'import json; print(1); print(json.dumps({\"a\": 2}))'"
    assert record.run(command) == {"a": 2}


def test_without_a_gpu_its_benchmarks_are_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_num_gpus", lambda: 0)
    assert main(["gpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
