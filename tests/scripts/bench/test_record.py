"""Results of benchmarks, as JSON and in a Markdown file: which, with what, where, within limits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

from data_prep.core.config import SettingsError
from scripts.bench import record
from scripts.bench.gpu.checks import outcomes_of
from scripts.bench.record import Outcome, Part, insert, main, numbers, table

RECORD = {
    "benchmark": "step",
    "device": "cpu",
    "speedup": 2.5,
    "settings": {"rounds": 3},
    "parts": {"heads": {"ms": 7.25}},
    "all": {"ours": [1.0, 2.0]},
    "machine": {"torch": "2.13"},
}


@pytest.mark.parametrize("part", [*record.CPU, *record.GPU], ids=lambda part: part.words)
def test_each_part_names_a_module(part: Part) -> None:
    assert find_spec(f"scripts.bench.{part.words.split()[0]}")


def test_the_numbers_are_those_measured_and_not_the_setup() -> None:
    assert dict(numbers(RECORD)) == {"speedup": 2.5, "parts: heads: ms": 7.25}


def test_every_number_stands_next_to_its_command_and_a_failure_is_shown() -> None:
    results = {"python -m a": Outcome(RECORD), "python -m b": Outcome(None, "status 1: a | <b>")}
    lines = table("cpu", results, 0.5).split("\n")
    assert "| `python -m a` | speedup 2.5<br>parts: heads: ms 7.25 |" in lines
    assert "| `python -m b` | **failed**: status 1: a &#124; &#60;b&#62; |" in lines
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


PROGRAMS = {
    "good": "print('text'); print('{\"speed\": 3}')",
    "bad": "raise SystemExit('no <memory>')",
    "half": "print('{\"speed\": 4}'); raise SystemExit('failed: test_a')",
    "silent": "print('nothing')",
    "launcher": (
        "import subprocess, sys, time\n"
        "rank = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print('{\"rank\": %d}' % rank.pid, flush=True)\n"
        "try: time.sleep(1000)\n"
        "finally: rank.kill(); rank.wait()"
    ),
    "slow": "import time; print('{\"speed\": 5}', flush=True); time.sleep(1000)",
}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Records these programs as the parts of `gpu`; the outcomes that the JSON then has."""

    def of(*names: str, typed: Sequence[str] = (), limit_s: float = 30.0) -> dict[str, Any]:
        for name in names:
            (tmp_path / name).write_text(PROGRAMS[name])
        monkeypatch.setattr(record, "MODULE", f"python {tmp_path}/")
        monkeypatch.setattr(record, "GPU", [Part(name, limit_s, "small") for name in names])
        monkeypatch.setattr(record, "_num_gpus", lambda: 1)
        monkeypatch.setattr(record, "find_spec", lambda _: None)
        assert main(["gpu", f"json={tmp_path}/kept.json", f"into={tmp_path}/log.md", *typed]) == (
            0 if names == ("good",) else 1
        )
        kept = json.loads((tmp_path / "kept.json").read_text())
        return dict(zip(names, kept["results"], strict=True))

    return of


def test_a_part_that_fails_loses_only_its_own_result_and_the_table_names_the_fault(
    recorded, tmp_path: Path
) -> None:
    found = recorded("bad", "half", "silent", "good")
    assert [outcome["fault"] for outcome in found.values()] == [
        "status 1: no <memory>", "status 1: failed: test_a", "no result: nothing", ""
    ]  # fmt: skip
    assert [found[name]["result"] for name in ("half", "good")] == [{"speed": 4}, {"speed": 3}]
    text = (tmp_path / "log.md").read_text(encoding="utf-8")
    assert "good` | speed 3 |" in text
    assert "half` | **failed**: status 1: failed: test_a<br>speed 4 |" in text


def test_a_part_is_ended_at_its_limit_with_its_ranks_and_keeps_what_it_printed(recorded) -> None:
    (launcher,) = recorded("launcher", limit_s=2.0).values()
    assert launcher["fault"].startswith("stopped after ")
    with pytest.raises(ProcessLookupError):
        os.kill(launcher["result"]["rank"], 0)


def test_parts_that_do_not_fit_the_minutes_are_left_out_and_listed(recorded, tmp_path) -> None:
    found = recorded("slow", "good", typed=["minutes=0.005"])
    assert found["slow"]["fault"].startswith("stopped after ")
    assert found["good"]["fault"] == "left out: the time was over"
    assert "good` | **failed**: left out" in (tmp_path / "log.md").read_text(encoding="utf-8")


def test_what_was_measured_is_kept_before_the_next_part_begins(
    recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, run = tmp_path / "kept.json", record.run
    seen = []

    def spy(command: str, limit_s: float) -> Outcome:
        seen.append(len(json.loads(kept.read_text())["results"]) if kept.exists() else 0)
        return run(command, limit_s)

    monkeypatch.setattr(record, "run", spy)
    recorded("good", "bad")
    assert seen == [0, 1]


def test_a_dry_run_needs_no_gpu_and_adds_the_small_arguments(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(record, "_num_gpus", lambda: 0)
    monkeypatch.setattr(record, "find_spec", lambda _: None)
    monkeypatch.setattr(record, "run", lambda command, limit_s: Outcome(RECORD))
    assert main(["gpu", "dry=true", f"json={tmp_path}/kept.json"]) == 0
    results = json.loads((tmp_path / "kept.json").read_text())["results"]
    commands = [each["command"] for each in results]
    assert len(commands) == len({*record.GPU}) + 1, "scaling, too"
    assert not any("device=cuda" in command.split()[-1] for command in commands)
    assert [*tmp_path.iterdir()] == [tmp_path / "kept.json"], "no table in the log"


def test_fp8_is_a_part_where_torchao_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (None, True):
        monkeypatch.setattr(record, "find_spec", lambda _, installed=installed: installed)
        words = [part.words for part in record._parts("gpu", 1, dry=False)]
        assert any("engine.fp8=true" in each for each in words) is bool(installed)


def test_the_tests_of_a_report_are_counted_by_their_outcome() -> None:
    report = fromstring(
        "<s><testcase name='a'/><testcase name='b'><failure/></testcase>"
        "<testcase name='c'><system-out/><skipped/></testcase></s>"
    )
    assert dict(outcomes_of(report)) == {"a": "passed", "b": "failed", "c": "skipped"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_part_for_a_gpu_works_at_small_sizes(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    status = main(["gpu", "dry=true", f"json={path}"])
    results = json.loads(path.read_text())["results"]
    assert {each["command"]: each["fault"] for each in results if each["fault"]} == {}
    assert status == 0
    assert results[0]["result"]["tests"] >= 18


def test_without_a_gpu_its_benchmarks_are_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_num_gpus", lambda: 0)
    assert main(["gpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
