"""A trial of real steps, what ends one, and the file that a run reads."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from ranks_harness import run_ranks
from run_in_fork import TINY

from data_prep.core.config import SettingsError, compose
from data_prep.stores.shard_records import read_shards_manifest
from pretrain import tune
from pretrain.config.load import load
from pretrain.config.settings import Settings
from pretrain.distributed.ranks import Ranks
from pretrain.tuning import trial
from pretrain.tuning.search import Candidate, Outcome

TYPED = [word for word in TINY if not word.startswith("engine.")]


def settings_of(sample_dir: Path, *more: str) -> Settings:
    return compose("config", Settings, [*TINY, f"data.dir={sample_dir}", *more])[0]


def measured(ranks: Ranks, sample_dir: Path) -> Outcome:
    settings = settings_of(sample_dir, "optim.global_batch=64", "monitor.peak_tflops=1")
    return trial._measure(settings, ranks, 2)


@pytest.mark.distributed
def test_a_trial_on_two_ranks_measures_speed_share_and_memory(sample_dir: Path) -> None:
    first, second = run_ranks(measured, 2, sample_dir=sample_dir)
    assert first.tokens_per_second > 0
    assert 0 < first.peak_share < 1
    assert 0.1 < first.memory_gb < 100
    assert not first.fault
    assert math.isfinite(second.tokens_per_second)


@pytest.mark.parametrize(
    ("typed", "expected"), [("optim.global_batch=8", 8), ("optim.global_batch=4096", 40)]
)
def test_a_step_of_many_micro_batches_is_shortened(sample_dir, typed, expected) -> None:
    settings = settings_of(sample_dir, typed)
    manifest = read_shards_manifest(sample_dir / "len128")
    batch = trial.shortened(settings, manifest, ranks=2).global_batch
    assert batch % 2 == 0
    assert batch == pytest.approx(expected, rel=0.2)


def ended(program: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Outcome:
    """The outcome of a trial that is this program, with the result's file as its first word."""
    monkeypatch.setattr(tune, "TRIAL", ("-c", program))
    return tune._trial([], 1, 1, limit_s=60, folder=folder)


def test_a_trial_that_the_system_kills_did_not_fit(monkeypatch, tmp_path: Path) -> None:
    found = ended("import os; os.kill(os.getpid(), 9)", monkeypatch, tmp_path)
    assert found.is_too_large
    assert "was killed" in found.fault


def test_the_last_line_of_a_trial_that_fails_is_its_fault(monkeypatch, tmp_path: Path) -> None:
    found = ended("import sys; print('starts'); sys.exit('no driver')", monkeypatch, tmp_path)
    assert found == Outcome(fault="no driver")


def test_a_trial_that_takes_too_long_is_ended(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tune, "TRIAL", ("-c", "import threading; threading.Event().wait()"))
    found = tune._trial([], 1, 1, limit_s=0.3, folder=tmp_path)
    assert "stopped after" in found.fault


def test_the_outcome_of_a_trial_is_read(monkeypatch, tmp_path: Path) -> None:
    program = (
        "import json, sys; json.dump({'tokens_per_second': 5.0, 'memory_gb': 1.5}, "
        "open(sys.argv[1], 'w'))"
    )
    assert ended(program, monkeypatch, tmp_path) == Outcome(5.0, None, 1.5)


@pytest.fixture
def tuned(sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command, whose trials are as fast as their budget is large, up to 4,096 tokens."""
    monkeypatch.chdir(tmp_path)
    seen: list[list[str]] = []

    def made(words: list[str], *_: Any) -> Outcome:
        seen.append(words)
        budget = next(int(w.split("=")[1]) for w in words if "tokens_per_micro_batch" in w)
        if budget > 4096:
            return Outcome(fault="does not fit the memory", is_too_large=True)
        return Outcome(float(budget), memory_gb=1.0)

    monkeypatch.setattr(tune, "_trial", made)

    def call(*more: str) -> tuple[int, list[list[str]]]:
        batch = "optim.global_batch=128"
        return tune.main([*TYPED, f"data.dir={sample_dir}", batch, *more]), seen

    return call


def test_the_fastest_is_printed_and_written_to_a_file_that_a_run_takes(
    tuned, sample_dir: Path, capsys
) -> None:
    status, _ = tuned("ranks=1")
    assert status == 0
    out = capsys.readouterr().out
    assert "fastest  engine.tokens_per_micro_batch=4096 engine.compile=false" in out
    assert "@tuned.yaml" in out
    settings, _ = load([*TYPED, f"data.dir={sample_dir}", "@tuned.yaml"], world_size=1)
    assert settings.engine.tokens_per_micro_batch == 4096
    over, _ = load([*TYPED, "@tuned.yaml", "engine.tokens_per_micro_batch=512"], world_size=1)
    assert over.engine.tokens_per_micro_batch == 512, "the last word of a setting counts"


def test_what_was_typed_is_not_varied(tuned) -> None:
    status, seen = tuned("engine.tokens_per_micro_batch=1024", "ranks=1")
    assert status == 0
    assert len(seen) == 1


def test_where_nothing_works_the_command_fails_and_writes_no_file(tuned, capsys) -> None:
    status, _ = tuned("engine.tokens_per_micro_batch=8192", "ranks=1")
    assert status == 1
    assert "nothing that was tried works" in capsys.readouterr().err
    assert not Path("tuned.yaml").exists()


def test_what_the_total_time_leaves_out_is_listed(tuned, capsys) -> None:
    status, seen = tuned("ranks=1", "total_minutes=1e-9")
    assert (status, seen) == (1, [])
    assert "2,048  false    false          not tried: 1e-09 minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "typed", ["steps=0", "ranks=0", "steps=x", "limit_minutes=0", "total_minutes=0"]
)
def test_wrong_arguments_are_refused(typed: str, capsys) -> None:
    assert tune.main(["+model=tiny", typed]) == 2
    assert re.match(r"pretrain\.tune: .*take", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("typed", "bound"),
    [("steps=0", "1 or more"), ("ranks=0", "1 or more"), ("limit_minutes=0", "more than 0"),
     ("total_minutes=-1", "more than 0")],
)  # fmt: skip
def test_of_the_arguments_only_the_wrong_one_is_named(typed: str, bound: str, capsys) -> None:
    assert tune.main(["+model=tiny", typed]) == 2
    assert capsys.readouterr().err == f"pretrain.tune: {typed}; it takes {bound}\n"


def test_a_file_of_settings_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("engine: [")
    for path in (tmp_path / "broken.yaml", tmp_path / "missing.yaml"):
        with pytest.raises(SettingsError, match=f"@{path}"):
            load(["+model=tiny", f"@{path}"], world_size=1)


def test_the_settings_of_a_candidate_are_typed_as_they_are_written() -> None:
    candidate = Candidate(8192, True, False)
    assert candidate.settings == {
        "engine": {
            "tokens_per_micro_batch": 8192, "compile": True, "activation_checkpointing": False,
        }
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_tunes_a_tiny_model_on_a_cpu(sample_dir, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["+model=tiny", f"data.dir={sample_dir}", "engine.tokens_per_micro_batch=2048"]
    assert tune.main([*typed, "steps=1", "ranks=1"]) == 0
    assert "<- fastest" in capsys.readouterr().out
