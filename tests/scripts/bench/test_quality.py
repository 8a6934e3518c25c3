"""Time to quality: the arithmetic of costs, the trainings, and the whole command in seconds."""

import json
import multiprocessing
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_corpus import cut

from data_prep.core.config import SettingsError
from pretrain.config.load import load
from pretrain.config.phases import phases_of
from scripts.bench import quality
from scripts.bench.parts import child, trials
from scripts.bench.parts.crossing import (
    costs,
    first_crossing,
    is_at_the_edge,
    last_loss_all_reach,
    ratios,
    spread,
)

SMALL = (
    "model.hidden_size=32 model.intermediate_size=64 eval.max_examples=8 "
    "survival.rehearse=false engine.zero_stage=0"
)


@pytest.mark.parametrize(
    ("points", "loss", "cost"),
    [
        ([(100, 6.0), (400, 5.0)], 5.5, 200),  # half-way, on the logarithm of the cost
        ([(100, 6.0), (400, 5.0)], 5.0, 400),
        ([(100, 6.0), (400, 5.0)], 6.5, 100),  # a bound: no shorter run is there
        ([(100, 6.0), (400, 5.0)], 4.9, None),
        ([(100, 6.0), (200, 6.5), (400, 5.0), (800, 5.5)], 5.0, 400),  # the first time
        ([], 5.0, None),
    ],
)
def test_the_cost_of_a_loss_is_that_of_the_first_crossing(points, loss, cost) -> None:
    assert first_crossing(points, loss) == (None if cost is None else pytest.approx(cost))


def test_a_spread_is_a_mean_with_the_sample_deviation() -> None:
    assert vars(spread([1.0, 2.0, 3.0])) == {"mean": 2.0, "deviation": 1.0}
    assert spread([1.5]).text(".2f") == "1.50"
    assert spread([1.0, 3.0]).text(".1f") == "2.0 ± 1.4"


def test_a_loss_that_one_seed_does_not_reach_has_no_cost() -> None:
    assert costs({1: [(100, 5.0)], 2: [(100, 5.2)]}, 5.1) is None
    assert costs({1: [(100, 5.0)], 2: [(300, 5.2)]}, 5.2).mean == 200


def test_ours_are_divided_by_theirs_at_the_last_loss_that_all_reach() -> None:
    curves = {
        "transformers": {1: [(300, 5.5)], 2: [(300, 5.4)]},
        "fast": {1: [(100, 5.5), (200, 5.0)], 2: [(100, 5.5), (200, 5.0)]},
    }
    assert last_loss_all_reach(curves, [5.0, 5.5, 6.0]) == 5.5
    assert ratios(curves, "transformers", 5.5) == {"fast": pytest.approx(1 / 3)}
    assert last_loss_all_reach(curves, [5.0]) is None


def test_a_best_rate_at_the_edge_of_the_grid_is_marked() -> None:
    grid = [1e-3, 2e-3, 4e-3]
    assert [is_at_the_edge(grid, rate) for rate in grid] == [True, False, True]


def test_a_recipe_with_phases_is_stretched_to_a_number_of_tokens(monkeypatch) -> None:
    monkeypatch.setattr(trials, "manifest_of", lambda data, **_: Full(data.seq_len))
    given = ["+model=tiny", "recipe=laptop"]
    tokens = 825 * 64 * 32 + 550 * 16 * 128  # a sixteenth of 13,200 and 8,800 steps
    settings, _ = load([*given, *trials.scaled(load(given, 1)[0], tokens)], 1)
    first, second = (phase.settings.schedule for phase in phases_of(settings))
    assert (first.total_steps, first.stop_step, first.warmup_steps) == (1375, 825, 31)
    assert (second.total_steps, second.start_step, second.stop_step) == (1375, 825, None)
    assert settings.phases[0].positions.name == "tiled"


class Full:
    """A manifest of shards whose examples all have `seq_len` tokens."""

    def __init__(self, seq_len: int) -> None:
        self.splits = {"train": self}
        self.tokens, self.rows = 10 * seq_len, 10


def test_the_techniques_of_the_fast_recipe_are_settings_of_it() -> None:
    for variant in (*trials.VARIANTS.values(), *trials.ABLATION.values()):
        load(["+model=tiny", *variant.overrides], 1)


def test_all_but_demo_have_the_same_batch() -> None:
    for variant in quality._variants(",".join(trials.VARIANTS), True, batch=48):
        batch = load(["+model=small", *variant.overrides], 1)[0].optim.global_batch
        assert batch == (64 if variant.name == "demo" else 48)


def forked(words: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
    """The child without its imports, which take seconds."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(words[3:], env))
    process.start()
    process.join(120)
    return subprocess.CompletedProcess(words, process.exitcode or 0)


def _child(words: list[str], env: dict[str, str]) -> None:
    os.environ.update(env)
    os._exit(child.main(*words))


@pytest.mark.slow
def test_the_command_trains_both_and_continues_without_training_again(
    sample_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    cut(sample_dir, tmp_path / "corpus", [40], [16])
    monkeypatch.setattr(trials, "subprocess", SimpleNamespace(run=forked))
    words: dict[str, Any] = {
        "out": str(tmp_path / "out"), "data": str(tmp_path / "corpus"), "tokens": "1500",
        "rates": "1e-3", "seeds": 1, "variants": "transformers,adamw", "losses": "9,1",
        "settings": SMALL, "cluster": "none", "batch": 4,
    }  # fmt: skip
    quality.main(**words, most=1)
    assert "the same command continues" in capsys.readouterr().out
    quality.main(**words)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["is_whole"], record["last_loss_all_reach"]) == (True, 9.0)
    assert record["tokens_over_transformers"] == {"adamw": pytest.approx(1)}
    assert 0 < record["seconds_over_transformers"]["adamw"] < 100
    assert record["tokens"]["adamw"]["1"] is None
    assert "transformers" in (tmp_path / "out/quality.svg").read_text()
    monkeypatch.setattr(trials.Laboratory, "perform", None)
    quality.main(**words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["losses"] == [9, 1]
    with pytest.raises(SettingsError, match="is of other settings"):
        quality.main(**words | {"settings": f"{SMALL} optim.weight_decay=0"})


def test_a_training_that_fails_names_its_log(sample_dir, tmp_path, monkeypatch) -> None:
    failed = SimpleNamespace(run=lambda words, **_: subprocess.CompletedProcess(words, 2))
    monkeypatch.setattr(trials, "subprocess", failed)
    laboratory = trials.Laboratory(tmp_path, ("+model=tiny", f"data.dir={sample_dir}"))
    trial = trials.Trial(trials.VARIANTS["adamw"], 1e4, 1e-3, 1)
    with pytest.raises(SettingsError, match=r"adamw-10000-0.001-seed1 ended with 2: see .*log"):
        laboratory.perform(trial)


def test_a_training_on_a_cpu_is_timed_by_the_processor(monkeypatch) -> None:
    for module in (child.log_window, child.pretrain_with_transformers):
        monkeypatch.setattr(module, "clock", time.perf_counter)
    monkeypatch.setattr(child, "cuda_is_usable", lambda: False)
    monkeypatch.setattr(child, "pretrain", lambda overrides: len(overrides))
    assert child.main("ours", "1", "a", "b") == 2
    assert child.log_window.clock is time.process_time
    assert child.pretrain_with_transformers.clock is time.process_time


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(SettingsError, match="variants=slow is none of"):
        quality.main(out="x", variants="fast,slow")
