"""A run that lasts so many hours: the rate follows rank 0's clock, across restarts."""

import functools
import itertools
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import at_step
from ranks_harness import run_ranks
from run_in_fork import TINY, finished_run, pretrain_run
from test_anomalies import poison

import pretrain.training.phase
from data_prep.core.files import checksum, read_json
from pretrain.distributed.clock import TrainingClock
from pretrain.distributed.ranks import Ranks
from pretrain.run_folder.jsonl import readable_lines

pytestmark = pytest.mark.distributed

STEP_S = 300.0  # of the injected clock: an hour is twelve steps
ONE_HOUR = (
    *TINY, "optim=lamb_nvidia", "schedule.budget_hours=1", "schedule.warmup_fraction=0.25",
    "schedule.decay_from_step_0=false", "eval.every_steps=6", "eval.max_examples=40",
    "checkpoint.every_steps=4",
)  # fmt: skip


def read_clock(ranks: Ranks, elapsed_s: float) -> float:
    times = itertools.count(1_000 * (1 + ranks.rank), 7 * (1 + ranks.rank))
    clock = TrainingClock(ranks, elapsed_s, lambda: float(next(times)))
    clock.read()
    return clock.read()


def test_every_rank_reads_rank_0_s_clock_from_where_the_last_start_ended() -> None:
    assert run_ranks(read_clock, 3, elapsed_s=100.0) == [114.0] * 3


def clocked(kill_at_call: int | None = None) -> Callable[[int], None]:
    """A hook: rank 0's clock shows 300 s more at each look, rank 1's ten times as much."""

    def hook(rank: int) -> None:
        times = itertools.count(0.0, STEP_S * (1 + 9 * rank))
        train: Any = functools.partial(pretrain.training.phase.train, now=lambda: next(times))
        pretrain.training.phase.train = train
        at_step(kill_at_call, of_rank=None)(rank)

    return hook


@pytest.mark.slow
def test_the_rate_follows_the_clock_across_a_kill_to_the_same_weights(sample_dir, tmp_path) -> None:
    arguments = [*ONE_HOUR, f"data.dir={sample_dir}"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir(), killed.mkdir()
    assert "1.0 hours of training" in finished_run(arguments, straight, 2, clocked())
    statuses, output = pretrain_run(arguments, killed, ranks=2, hook=clocked(kill_at_call=7))
    assert -signal.SIGKILL in statuses, output
    finished_run(arguments, killed, 2, clocked())

    for folder in (straight, killed):
        lines = readable_lines(folder / "runs/x/metrics.jsonl")
        training = [m for m in lines if "train/loss" in m]
        assert [m["step"] for m in training] == list(range(1, 13))
        hours = [step / 12 for step in range(12)]
        expected = [1.5e-3 * (h / 0.25 if h < 0.25 else (1 - h) / 0.75) for h in hours]
        assert [m["optim/learning_rate"] for m in training] == pytest.approx(expected)
        assert [m["perf/training_hours"] for m in training] == pytest.approx(
            [(step + 1) / 12 for step in range(12)]
        )
        for name in ("embeddings", "layer_00", "layer_01", "heads"):
            assert all(m[f"optim/trust_ratio/{name}"] > 0 for m in training), name
    last = "runs/x/checkpoints/step-00000012"
    assert read_json(killed / last / "state.json")["elapsed_s"] == 3600
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert checksum(killed / last / name) == checksum(straight / last / name)


def test_a_budget_ends_with_an_update_and_its_checkpoint_where_the_last_batch_is_skipped(
    sample_dir: Path, tmp_path: Path
) -> None:
    def hook(rank: int) -> None:
        clocked()(rank)
        poison(math.nan, [11])(rank)  # the twelfth

    finished_run([*ONE_HOUR, f"data.dir={sample_dir}"], tmp_path, hook=hook)
    state = read_json(tmp_path / "runs/x/checkpoints/step-00000012/state.json")
    assert (state["position"], state["elapsed_s"]) == (104, 3600)
