"""The step's benchmarks on a handful of tokens: what is compared is equal, or is not timed."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.stores.shard_reader import Shards
from pretrain.config.arguments import run_command
from scripts.baselines.synthetic_shards import typical_lengths, write_synthetic_shards
from scripts.baselines.transformers_step import Variant, check_equal_losses
from scripts.bench import curves as bench_curves
from scripts.bench import step
from scripts.bench.record import numbers
from scripts.bench.step import batch_of

ONES = [np.full(4, 40), np.array([5, 33, 60, 12])]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++ with g++")


@pytest.fixture
def small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "VOCAB_SIZE", 500)


def test_the_usage_shows_the_defaults() -> None:
    shown = dict(re.findall(r"\[(\w+)=(\S+)\]", step.__doc__ or ""))
    defaults = {name: str(p.default) for name, p in inspect.signature(step.main).parameters.items()}
    assert shown.items() <= defaults.items()


def test_the_keys_that_are_promised_are_in_the_last_line(
    small_vocabulary: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "model=tiny lengths=32 sequences=2 rounds=1 engine=0 device=cpu dropout=0.1"
    assert run_command(step.main, words.split()) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["benchmark"], record["settings"]["clock"]) == ("step", "processor")
    kept = dict(numbers(record))
    for key in (
        "speedup_over_transformers",
        "speedup_over_transformers_padded_to_longest",
        "share_of_matmul_peak",
        "parts: attention: ms",
        "parts: optimizer: share",
    ):
        assert kept[key] > 0


def test_variants_with_another_loss_are_not_timed() -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = {
        name: Variant(model, optimizer, lambda value=value: torch.tensor(value))
        for name, value in (("one", 2.0), ("other", 2.0001))
    }
    with pytest.raises(SystemExit, match=r"other has the loss 2\.0001 and one 2"):
        check_equal_losses(found, is_bf16=False)
    assert check_equal_losses(found, is_bf16=True) == pytest.approx({"one": 2.0, "other": 2.0001})


def test_at_a_fixed_length_neither_side_is_padded(small_vocabulary: None) -> None:
    batch, width = batch_of("128", 3, torch.device("cpu"))
    assert width == 128
    assert batch.lengths == [128] * 3


def test_a_handful_of_lengths_has_the_mean_of_the_distribution() -> None:
    for count in (4, 8, 64):
        mean = typical_lengths("wikipedia", count, np.random.default_rng(0)).mean()
        assert abs(mean - 256) < 6


@pytest.mark.parametrize(
    "is_compiled", [False, pytest.param(True, marks=[pytest.mark.slow, needs_compiler])]
)
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_all_trainings_have_the_same_losses(is_compiled: bool, tmp_path: Path) -> None:
    write_synthetic_shards(tmp_path, {"train": ONES}, seq_len=64, vocab_size=300, seed=1)
    shards = Shards.open(tmp_path, "train")
    curves = bench_curves.train(
        shards, "tiny", steps=3, sequences=3, learning_rate=1e-3, seed=1, is_compiled=is_compiled
    )
    assert list(curves.ours) == ["packed", "compiled"][: 1 + is_compiled]
    for name, losses in curves.ours.items():
        assert len(set(losses)) == 3
        assert max(curves.differences(name)) < 1e-5
    bench_curves.draw(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
