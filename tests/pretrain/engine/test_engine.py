"""The engine on the CPU: precisions, updates that are skipped, dropout, evaluation, silence."""

import copy
import dataclasses
import math
import os
import signal
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from engine_samples import (
    MANY_MICRO_STEPS,
    build_engine,
    build_model,
    gathered,
    global_batch,
    optim_settings,
    save_state,
)
from ranks_harness import run_ranks
from slow_cases import slow_but

from data_prep.core.config import SettingsError
from pretrain.config.settings import Compile, Device, EngineSettings, Precision
from pretrain.distributed.ranks import Ranks
from pretrain.engine import engine as engine_module
from pretrain.engine.deepspeed_setup import resolve_precision
from pretrain.engine.engine import Engine
from pretrain.engine.sharding import Sharding
from pretrain.model.bert import BertForPreTraining

FP32, AUTOCAST = Precision.fp32, Precision.bf16_autocast
# fp16 runs here because the tests make DeepSpeed allow it
BF16, FP16 = Precision.bf16, Precision.fp16
RATE = 1e-3


def step(engine: Engine, position: int, rate: float = RATE) -> Any:
    ranks = engine.ranks
    batch = global_batch(position, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
    result = engine.train_step(batch, rate)
    return dataclasses.replace(result, grad_norm=float(result.grad_norm))


@pytest.mark.parametrize(
    ("asked", "device", "has_bf16", "precision"),
    [
        (Precision.auto, "cpu", True, Precision.fp32),
        (Precision.auto, "cuda", True, Precision.bf16_autocast),
        (Precision.auto, "cuda", False, Precision.fp32),
        (Precision.bf16, "cpu", False, Precision.bf16),
        (Precision.fp32, "cuda", True, Precision.fp32),
    ],
)
def test_auto_is_bf16_autocast_on_a_gpu_that_has_it_and_otherwise_fp32(
    asked, device, has_bf16, precision, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    settings = EngineSettings(1, asked, 512, False, Compile.auto, 1.0, Device.auto)
    assert resolve_precision(settings, torch.device(device)) is precision


@pytest.mark.parametrize("asked", [Precision.bf16, Precision.bf16_autocast])
def test_bfloat16_is_refused_on_a_gpu_without_it(asked: Precision, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    settings = EngineSettings(1, asked, 512, False, Compile.auto, 1.0, Device.auto)
    message = rf"{asked.value} needs .*, and Tesla T4 \(compute capability 7\.5\) .* engine=fp16"
    with pytest.raises(SettingsError, match=message):
        resolve_precision(settings, torch.device("cuda"))


def test_the_model_is_told_what_the_engine_is_set_to(monkeypatch) -> None:
    def start(model: BertForPreTraining, *_: Any) -> None:
        raise RuntimeError(f"{model.activation_checkpointing}, {model.trim_last_layer}")

    monkeypatch.setattr(engine_module, "start_deepspeed", start)
    alone = Sharding(range(1), num_copies=1, within=None, across=None)
    monkeypatch.setattr(engine_module, "sharding_of", lambda *_: alone)
    ranks = Ranks(0, 1, torch.device("cpu"))
    for recomputes, trims in product((False, True), repeat=2):
        own = EngineSettings(
            1, Precision.fp32, 512, recomputes, Compile.false, 1.0, Device.cpu, trims
        )
        with pytest.raises(RuntimeError, match=f"{recomputes}, {trims}"):
            Engine(build_model(), optim_settings(), own, ranks)


def test_fp16_without_a_gpu_is_refused_with_the_cure() -> None:
    settings = EngineSettings(1, Precision.fp16, 512, False, Compile.auto, 1.0, Device.auto)
    ranks = Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(SettingsError, match=r"fp16 needs a GPU; set engine\.precision=fp32"):
        Engine(build_model(), optim_settings(), settings, ranks)


class Poisonable(BertForPreTraining):
    """Its MLM loss can be made NaN or infinite on one rank, with its gradient or without."""

    factor, shift = 1.0, 0.0

    def forward(self, batch: Any) -> Any:
        mlm_loss, *rest = super().forward(batch)
        return (mlm_loss * self.factor + self.shift, *rest)


def with_a_bad_batch(
    ranks: Ranks, folder: Path, stage: int, precision: Precision, bad: float | None,
    what: str = "factor",
) -> Any:  # fmt: skip
    """State files before and after a bad batch and after a good one; the bad one's result."""
    model = build_model(kind=Poisonable)
    engine = build_engine(ranks, stage, precision, model)
    while not step(engine, 0).applied:  # in fp16 the first scale may be too large
        pass
    before, result = saved(engine, folder), None
    scale = engine.loss_scale
    if bad is not None:
        good = getattr(model, what)
        setattr(model, what, bad if ranks.rank == 1 else good)
        result = step(engine, 1, rate=7.0)
        setattr(model, what, good)
    after = saved(engine, folder)
    assert step(engine, 2).applied
    return before, after, saved(engine, folder), result, scale


def saved(engine: Engine, folder: Path) -> dict[str, bytes]:
    save_state(engine, folder)
    engine.ranks.barrier()
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    engine.ranks.barrier()  # no rank replaces a file that another one is about to read
    return files


CASES: list[tuple[int, Precision, float, str]] = [
    *((stage, FP32, math.nan, "factor") for stage in (0, 1, 2, 3)),
    *((stage, BF16, math.nan, "factor") for stage in (1, 2, 3)),
    (0, AUTOCAST, math.nan, "factor"),
    (0, FP32, math.inf, "factor"),
    (1, BF16, math.inf, "factor"),
    *((stage, FP32, math.inf, "shift") for stage in (0, 1, 2, 3)),  # with a finite gradient
]
FAST = [
    *((0, AUTOCAST, math.nan, "factor"), (1, BF16, math.inf, "factor")),
    *((2, FP32, math.inf, "shift"), (3, FP32, math.nan, "factor")),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "precision", "bad", "what"), slow_but(FAST, CASES))
def test_a_loss_or_gradient_that_is_not_finite_on_one_rank_changes_nothing(
    stage, precision, bad, what, tmp_path
) -> None:
    arguments = {"folder": tmp_path, "stage": stage, "precision": precision, "what": what}
    (before, after, last, result, _), (*_, other_result, _) = run_ranks(
        with_a_bad_batch, 2, bad=bad, **arguments
    )
    assert not result.applied
    assert not other_result.applied
    assert what == "shift" or result.grad_norm == math.inf
    assert before == after, "weights, moments and optimizer step"
    if precision is FP32:
        *_, last_without_it, _, _ = run_ranks(with_a_bad_batch, 2, bad=None, **arguments)[0]
        assert last == last_without_it, "the next update is the one it would have been"


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 3])
def test_an_overflow_in_fp16_only_halves_the_loss_scale(stage: int, tmp_path: Path) -> None:
    results = run_ranks(
        with_a_bad_batch, 2, folder=tmp_path, stage=stage, precision=FP16, bad=math.inf
    )
    before, after, _, result, scale = results[0]
    assert not result.applied
    assert result.loss_scale == scale / 2
    assert {name for name in before if before[name] != after[name]} == {"engine.json"}
    small_before, small_after = (orjson.loads(files["engine.json"]) for files in (before, after))
    assert small_before["optimizer_step"] == small_after["optimizer_step"]


def weights_after_start(ranks: Ranks, stage: int, precision: Precision) -> bool:
    model = build_model()
    initial = copy.deepcopy(dict(model.named_parameters()))
    weights = gathered(build_engine(ranks, stage, precision, model))
    if ranks.rank > 0:
        return weights == {}
    same = [torch.equal(weights[name], initial[name]) for name in initial]
    return weights.keys() == initial.keys() and all(same)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("precision", "stage"),
    slow_but([(FP32, 1), (BF16, 2), (FP16, 3)], product((FP32, BF16, FP16), (1, 2, 3))),
)
def test_masters_start_as_the_weights_given_with_all_their_bits(stage, precision) -> None:
    assert run_ranks(weights_after_start, 3, stage=stage, precision=precision) == [True] * 3


def forward_sums(ranks: Ranks, seed: int) -> list[float]:
    engine = build_engine(ranks, 0, model=build_model(dropout=0.5))
    batch = dataclasses.replace(global_batch(0), dropout_seeds=[seed + ranks.rank])
    sums: list[float] = engine.train_step(batch, 0.0).sums.tolist()
    return sums


@pytest.mark.distributed
def test_dropout_follows_the_seeds_of_the_batch() -> None:
    first, second = run_ranks(forward_sums, 2, seed=5)
    assert first != second, "the same tokens under other seeds"
    assert run_ranks(forward_sums, 2, seed=5) == [first, second], "again under the same"
    assert run_ranks(forward_sums, 1, seed=6) == [second], "whatever the rank"


def losses_with_evaluation(ranks: Ranks, stage: int, evaluate: bool) -> Any:
    engine = build_engine(ranks, stage, model=build_model(dropout=0.3))
    losses, figures = [], []
    for position in range(3):
        if evaluate:
            figures.append(engine.evaluate_step(global_batch(99).micro_batches[0]).tolist())
        losses.append(step(engine, position).sums.tolist())
    return losses, figures, gathered(engine)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", slow_but([0, 3], range(4)))
def test_evaluation_is_without_dropout_and_leaves_training_as_it_is(stage: int) -> None:
    losses, figures, _ = run_ranks(losses_with_evaluation, 2, stage=stage, evaluate=True)[0]
    with torch.no_grad():
        model = build_model().eval()
        expected = [value.item() for value in model(global_batch(99).micro_batches[0])]
    assert figures[0] == pytest.approx(expected, rel=1e-5)
    assert figures[1] != figures[0]
    plain_losses, *_ = run_ranks(losses_with_evaluation, 2, stage=stage, evaluate=False)[0]
    assert losses == plain_losses


def output_of_a_run(ranks: Ranks, folder: Path, stage: int) -> str:
    """What two steps write to stdout and stderr, libraries in C++ included."""
    path = folder / str(ranks.rank)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    engine = build_engine(ranks, stage, Precision.bf16)
    step(engine, 0)
    save_state(engine, folder)
    sys.stdout.flush()
    return path.read_text()


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_is_silent(stage: int, tmp_path: Path) -> None:
    assert run_ranks(output_of_a_run, 2, folder=tmp_path, stage=stage) == ["", ""]


def wait_for_a_rank_that_hangs(ranks: Ranks) -> None:
    engine = build_engine(ranks, 1, timeout_minutes=3 / 60)
    step(engine, 0)
    ranks.barrier()
    started = time.monotonic()
    if ranks.rank == 1:
        signal.pause()
    try:
        step(engine, 1)
    except RuntimeError as error:
        raise RuntimeError(f"after {time.monotonic() - started:.0f} s: {error}") from None


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_hangs_is_noticed_within_the_time_out() -> None:
    with pytest.raises(RuntimeError, match=r"after \d s: .*[Tt]imed out"):
        run_ranks(wait_for_a_rank_that_hangs, 2, timeout_s=30)
