"""Runs killed again and again, at moments drawn by a seeded generator, end as if nothing had been.

The corpus has 53 examples and a global batch 6 of them: an epoch ends in the middle of a batch.
"""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import Kill
from run_in_fork import TINY, pretrain_run
from several_buckets import use_several_buckets
from small_corpus import cut

from data_prep.core.files import checksum, read_json
from pretrain.checkpoint.files import find_fault
from pretrain.engine.deepspeed_setup import get_accelerator
from pretrain.run_folder.jsonl import readable_lines

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]

NUM_EXAMPLES, GLOBAL_BATCH = 53, 6
RUN = (
    *TINY, f"optim.global_batch={GLOBAL_BATCH}", "engine.timeout_minutes=1", "eval.every_steps=5",
    "checkpoint.every_steps=3",
    "model.attention_probs_dropout_prob=0.1",  # dropout has to be the same, too
)  # fmt: skip
ACTIVITIES = ("reading a batch", "the training step", "summing metrics", "an evaluation")
TOUCHES = 20  # of the files of one checkpoint, about: from its folder to its name
WHOM = ((0, 1), (0,), (1,))


@pytest.fixture(scope="module")
def data(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut(sample_dir, tmp_path_factory.mktemp("cut") / "data", [31, 0, 22], [9, 2])


def drawn(rng: np.random.Generator, steps: Sequence[int]) -> list[Kill]:
    """A kill at or soon after each of these steps: every second while a checkpoint is saved."""
    kills = []
    for number, step in enumerate(steps):
        victims = WHOM[rng.integers(len(WHOM))]
        if number % 2:
            touch = int(rng.integers(1, TOUCHES + 1))
            kills.append(Kill(step, touch=touch, victims=victims))
        else:
            activity = ACTIVITIES[rng.integers(len(ACTIVITIES))]
            later_ms = float(rng.choice([0.0, rng.uniform(0, 30)]))
            witness = int(rng.integers(2))
            kills.append(Kill(step, activity, later_ms, witness=witness, victims=victims))
    return kills


def train(arguments: Sequence[str], folder: Path, kills: Sequence[Kill]) -> int:
    """Start the run, once for each kill and then once more, always by the same command.

    Returns how many of the kills in the files of a checkpoint left it unfinished.
    """
    folder.mkdir()
    unfinished = 0
    for kill in [*kills, None]:

        def hook(rank: int, kill: Kill | None = kill) -> None:
            get_accelerator().is_fp16_supported = lambda: True  # as if there were a GPU
            use_several_buckets(elements=5_000)
            if kill is not None:
                kill(rank)

        statuses, output = pretrain_run(arguments, folder, ranks=2, hook=hook)
        if kill is None:
            assert statuses == [0, 0], output
        else:
            assert all(statuses[rank] == -signal.SIGKILL for rank in kill.victims), (kill, output)
            assert 0 not in statuses, (kill, output)
            left_over = any((folder / "runs/x/checkpoints").glob(".step-*"))
            unfinished += kill.touch > 0 and left_over
    return unfinished


def figures(folder: Path) -> list[dict[str, Any]]:
    """All that metrics.jsonl holds, line by line, but for the clock and the speed."""
    lines = readable_lines(folder / "runs/x/metrics.jsonl")
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")}
        for line in lines
    ]


def assert_same(killed: Path, straight: Path, last_step: int) -> None:
    """Weights, moments, counters and every figure of every record, bit for bit."""
    assert figures(killed) == figures(straight)
    last = f"runs/x/checkpoints/step-{last_step:08d}"
    assert find_fault(killed / last) is None
    files = [read_json(folder / last / "manifest.json")["files"] for folder in (killed, straight)]
    assert len(files[0]) == 4
    assert files[0] == files[1]
    exported = "runs/x/export/model.safetensors"
    assert checksum(killed / exported) == checksum(straight / exported)


def test_a_run_killed_twenty_times_is_the_run_that_never_was(data: Path, tmp_path: Path) -> None:
    last_step = 30  # 3.4 epochs
    arguments = [*RUN, f"data.dir={data}", f"schedule.total_steps={last_step}"]
    rng = np.random.default_rng(20)
    kills = [
        Kill(1, "the training step", victims=(1,)),  # before there is a checkpoint
        *drawn(rng, sorted(rng.integers(2, last_step - 3, 15).tolist())),
        Kill(NUM_EXAMPLES // GLOBAL_BATCH, "the training step", later_ms=5.0),  # an epoch's border
        Kill(last_step // 2, "loading a checkpoint", victims=(0,)),  # of a start after a kill
        Kill(last_step, "an evaluation", victims=(0,)),
        Kill(last_step, "export", touch=3, victims=(0,)),  # all is trained, and not yet handed over
    ]
    kills.sort(key=lambda kill: kill.step)
    assert len(kills) == 20
    epochs = [kill.step * GLOBAL_BATCH // NUM_EXAMPLES for kill in kills]
    assert all(epochs.count(epoch) >= 2 for epoch in range(4))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(arguments, straight, [])
    assert train(arguments, killed, kills) >= 4, "killed while they saved"
    assert_same(killed, straight, last_step)
    steps = [line["step"] for line in figures(killed) if "train/loss" in line]
    assert steps == list(range(1, last_step + 1))


@pytest.mark.parametrize(
    ("stage", "precision", "masking"),
    [
        (0, "fp32", "dynamic"), (0, "bf16_autocast", "static"), (1, "fp16", "dynamic"),
        (2, "fp32", "static"), (2, "bf16", "dynamic"), (3, "bf16_autocast", "dynamic"),
        (3, "fp16", "static"),
    ],
)  # fmt: skip
def test_every_stage_and_precision_survives_three_kills(
    data: Path, tmp_path: Path, stage: int, precision: str, masking: str
) -> None:
    last_step = 15
    arguments = [
        *RUN, f"data.dir={data}", f"schedule.total_steps={last_step}", f"data.masking={masking}",
        f"engine={precision}", f"engine.zero_stage={stage}",
        "monitor.every_steps=2",  # so that checkpoints fall between two records
    ]  # fmt: skip
    rng = np.random.default_rng([stage, len(precision)])
    kills = drawn(rng, sorted(rng.integers(1, last_step - 3, 3).tolist()))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(arguments, straight, [])
    train(arguments, killed, kills)
    assert_same(killed, straight, last_step)
