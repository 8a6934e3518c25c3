"""Muon against a float64 reference of whole matrices, and what ranks orthogonalise and send."""

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import build_engine, gathered
from given_gradients import Arrays, Given, Line, Norm, Table, mean_gradients, relative_errors
from model_samples import random_model, small_settings
from numpy.typing import NDArray
from ranks_harness import run_ranks
from slow_cases import slow_but
from torch import Tensor, nn

from data_prep.core.config import SettingsError, compose
from pretrain.config.checks import check
from pretrain.config.settings import (
    OptimizerName,
    OptimSettings,
    Precision,
    Settings,
)
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed.ranks import Ranks
from pretrain.optim import muon
from pretrain.optim.matrices import assign, sent, shapes_of, shards, split
from pretrain.optim.newton_schulz import COEFFICIENTS, orthogonal
from pretrain.optim.optimizers import build_optimizer, parameter_groups

FP32 = Precision.fp32
STEPS, ROWS = 6, 4


@functools.cache
def published() -> OptimSettings:
    return compose("config", Settings, ["+model=tiny", "optim=muon"])[0].optim


def rate(step: int) -> float:
    return 2e-2 * (step + 1) / STEPS


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = Line(15, 33)  # three matrices of 11 x 15
        self.out = Line(40, 13)
        self.norm = Norm(31)


class Bag(nn.Module):
    """Layers of awkward sizes, and parameters outside of them, all with given gradients."""

    settings = small_settings()  # the engine asks for its dropout

    def __init__(self) -> None:
        super().__init__()
        self.word = Table(71, 9)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.layers.append(Line(12, 12))
        self.layers.append(Line(6, 9))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator) * 0.02
                parameter.copy_(drawn + 1 if name.endswith("norm.weight") else drawn)

    def forward(self, given: Any) -> tuple[Tensor, ...]:
        children = [
            (name, module)
            for name, module in self.named_modules()
            if isinstance(module, Line | Norm | Table)
        ]
        nothing = torch.zeros(())
        parts = [module(name, given) for name, module in children]
        return torch.stack(parts).sum(), nothing, nothing, nothing


def initial_weights() -> Arrays:
    return {name: p.detach().double().numpy() for name, p in Bag().named_parameters()}


@functools.cache
def all_gradients() -> list[Arrays]:
    return mean_gradients(initial_weights(), STEPS, ROWS)


def orthogonal_reference(
    matrix: NDArray[np.float64], settings: OptimSettings
) -> NDArray[np.float64]:
    """The polynomial on the singular values, as published."""
    assert settings.newton_schulz_steps is not None
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    a, b, c = COEFFICIENTS
    for _ in range(settings.newton_schulz_steps):
        values = a * values + b * values**3 + c * values**5
    turned = (left * values) @ right
    if settings.equal_rows:
        turned /= np.linalg.norm(turned, axis=1, keepdims=True)
        turned *= np.sqrt(min(turned.shape) / len(turned))
    return turned


def reference(weights: Arrays, gradients: list[Arrays], settings: OptimSettings) -> Arrays:
    """Weights after all steps: the published formulae, in float64."""
    assert settings.momentum is not None
    assert settings.matrix_rate is not None
    mu, (beta_1, beta_2) = settings.momentum, settings.betas
    m, v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    w = dict(weights)
    for step, of_step in enumerate(gradients):
        norm = np.sqrt(sum((g**2).sum() for g in of_step.values()))
        for name, gradient in of_step.items():
            g = gradient / max(1.0, norm / (settings.max_grad_norm or np.inf))
            decay = 0.0 if "norm" in name or name.endswith("bias") else settings.weight_decay
            if name.startswith("layers") and decay:
                m[name] = mu * m[name] + g
                nesterov = g + mu * m[name]
                parts = np.split(nesterov, 3) if "qkv" in name else [nesterov]
                turned = [
                    0.2 * np.sqrt(max(part.shape)) * orthogonal_reference(part, settings)
                    for part in parts
                ]
                matrix_rate = rate(step) * settings.matrix_rate
                w[name] = w[name] - matrix_rate * (np.concatenate(turned) + decay * w[name])
                continue
            m[name] = beta_1 * m[name] + (1 - beta_1) * g
            v[name] = beta_2 * v[name] + (1 - beta_2) * g**2
            c_1, c_2 = (1 - beta ** (step + 1) for beta in settings.betas)
            u = (m[name] / c_1) / (np.sqrt(v[name] / c_2) + settings.eps)
            w[name] = w[name] - rate(step) * (u + decay * w[name])
    return w


@pytest.mark.parametrize(
    "change",
    [
        {}, {"momentum": 0.5}, {"matrix_rate": 2.5}, {"weight_decay": 0.3},
        {"newton_schulz_steps": 3}, {"equal_rows": True},
    ],
)  # fmt: skip
def test_every_setting_gives_the_float64_reference(change: dict[str, Any]) -> None:
    plain = replace(published(), max_grad_norm=None)  # clipping is the engine's
    settings = replace(plain, **change)
    bag = Bag()
    groups = parameter_groups(bag, settings.weight_decay, settings.name)
    optimizer = build_optimizer(groups, settings)
    for step, gradients in enumerate(all_gradients()):
        for name, parameter in bag.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name]).float()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    expected = reference(initial_weights(), all_gradients(), settings)
    errors = relative_errors({n: p.detach() for n, p in bag.named_parameters()}, expected)
    assert max(errors.values()) < 1e-5, errors
    if change:
        unchanged = reference(initial_weights(), all_gradients(), plain)
        moved = relative_errors({n: torch.from_numpy(w) for n, w in unchanged.items()}, expected)
        assert max(moved.values()) > 1e-3, "the setting does nothing"


def trained(ranks: Ranks, stage: int, precision: Precision) -> dict[str, Any]:
    """Weights after all steps; what this rank holds, orthogonalises and sends in all steps."""
    engine = build_engine(ranks, stage, precision, Bag(), **vars(published()))
    work: dict[str, Any] = {"orthogonalised": 0, "sent": 0, "held": engine._state.held()}
    plain_orthogonal, plain_send = muon.orthogonal, torch.distributed.all_to_all_single

    def orthogonal_and_count(stack: Tensor, *settings: Any) -> Tensor:
        work["orthogonalised"] += len(stack)
        return plain_orthogonal(stack, *settings)

    def send_and_count(received: Tensor, sent: Tensor, *sizes: Any) -> None:
        work["sent"] += sent.numel()
        plain_send(received, sent, *sizes)

    muon.orthogonal, torch.distributed.all_to_all_single = orthogonal_and_count, send_and_count
    share = ROWS // ranks.world_size
    rows = range(ranks.rank * share, (ranks.rank + 1) * share)
    for step in range(STEPS):
        batch: Any = GlobalBatch(step, [Given(step, rows)], [step], 1, ROWS, 1, 1)
        while not engine.train_step(batch, rate(step)).applied:
            pass  # in fp16 the first scale is too large
    return {"weights": gathered(engine), **work}


@functools.cache
def trained_on(world_size: int, stage: int, precision: Precision) -> list[dict[str, Any]]:
    return run_ranks(trained, world_size, stage=stage, precision=precision)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "world_size", "precision"),
    slow_but(
        [(0, 1, FP32), (0, 2, FP32), (1, 2, FP32), (3, 4, FP32), (1, 2, Precision.bf16)],
        [
            *((stage, n, FP32) for stage in (0, 1, 2, 3) for n in (1, 2, 4)),
            *((stage, 2, Precision.bf16) for stage in (1, 3)),
            *((1, 4, Precision.fp16), (2, 2, Precision.bf16_autocast)),
        ],
    ),
)
def test_sharded_muon_is_muon_of_whole_matrices(stage, world_size, precision) -> None:
    weights = trained_on(world_size, stage, precision)[0]["weights"]
    expected = reference(initial_weights(), all_gradients(), published())
    errors = relative_errors(weights, expected)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "world_size"),
    slow_but([(0, 2), (1, 2), (3, 4)], itertools.product((0, 1, 2, 3), (2, 4))),
)
def test_each_matrix_is_orthogonalised_on_one_rank_and_only_its_parts_are_sent(
    stage: int, world_size: int
) -> None:
    ranks = trained_on(world_size, stage, FP32)
    shapes = {n: w.shape for n, w in initial_weights().items() if n in matrix_names()}
    matrices = [matrix for name, shape in shapes.items() for matrix in split(name, shape)]
    assert len(matrices) == 2 * (3 + 1) + 2
    held = shards({n: int(np.prod(s)) for n, s in shapes.items()}, stage, world_size)
    parts = assign(matrices, held)
    for rank, (planned, of_rank) in enumerate(zip(held, ranks, strict=True)):
        known = {n: of_rank["held"][n] for n in shapes if of_rank["held"][n][1]}
        assert known == {n: place for n, place in planned.items() if place[1]}
        owned = {part.matrix for part in parts if part.owner == rank}
        assert of_rank["orthogonalised"] == STEPS * len(owned)
        assert of_rank["sent"] == STEPS * sent(matrices, parts, world_size)[rank]
    assert sum(of_rank["orthogonalised"] for of_rank in ranks) == STEPS * len(matrices)


def matrix_names() -> set[str]:
    return {name for name, w in initial_weights().items() if "layers" in name and w.ndim == 2}


def test_work_is_balanced_and_a_rank_that_holds_a_matrix_orthogonalises_it() -> None:
    shapes = shapes_of(compose("config", Settings, ["+model=base"])[0].model)
    matrices = [matrix for name, shape in shapes.items() for matrix in split(name, shape)]
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    for stage, ranks in ((0, 8), (1, 4), (1, 8), (3, 8)):
        parts = assign(matrices, shards(sizes, stage, ranks))
        work = [0] * ranks
        for index, owner in {part.matrix: part.owner for part in parts}.items():
            work[owner] += matrices[index].flops(5)
        assert max(work) < 1.1 * sum(work) / ranks, (stage, ranks)
        if (stage, ranks) == (1, 4):  # three layers each
            assert sent(matrices, parts, ranks) == [0] * ranks


def test_the_shapes_that_plans_assume_are_those_of_the_model() -> None:
    settings = small_settings()
    model = random_model(settings, 50, seed=0)
    matrices, *_ = parameter_groups(model, 0.01, OptimizerName.muon)
    named = dict(zip(matrices["names"], matrices["params"], strict=True))
    assert {name: tuple(p.shape) for name, p in named.items()} == shapes_of(settings)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_on_one_rank_it_is_torch_s_muon_within_bfloat16(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    ours, theirs = (nn.Parameter(weight.clone()) for _ in range(2))
    groups = [{"label": muon.MATRICES, "names": ["layers.0.out"], "params": [ours]}]
    torchs = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", weight_decay=0.01)
    optimizer = build_optimizer([{**groups[0], "weight_decay": 0.01}], published())
    for seed in range(3):
        for each, parameter in ((optimizer, ours), (torchs, theirs)):
            each.param_groups[0]["lr"] = 0.1
            parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            each.step()
    moved = (theirs - weight).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_orthogonal_leaves_a_matrix_of_zeros_and_does_not_see_the_scale() -> None:
    stack = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    stack[1] = 0
    once = orthogonal(stack, 5)
    assert torch.equal(once[1], torch.zeros(8, 20))
    tiny = orthogonal(stack * 2.0**-60, 5)
    torch.testing.assert_close(tiny, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "cure"),
    [
        (
            ["optim=muon", "optim.momentum=null"],
            r"optim\.momentum must have a value with optim=muon",
        ),
        (
            ["optim.matrix_rate=2"],
            r"has optim\.matrix_rate; set optim=muon, or optim\.matrix_rate=null",
        ),
        (["optim.equal_rows=true"], r"set optim=muon, or optim\.equal_rows=false"),
        (
            ["optim.matrix_rate=2", "optim.equal_rows=true"],
            r"optim\.matrix_rate=null optim\.equal_rows=false",
        ),
        (["optim=muon", "optim.newton_schulz_steps=0"], "from 1 to 99"),
        (["optim=muon", "optim.trust_ratio=all"], "are not muon's; .*or optim=lamb"),
        (["optim=muon", "optim.bias_correction=false"], "is not muon's; set optim=bert_adam or"),
    ],
)
def test_settings_that_contradict_muon_are_refused(overrides: list[str], cure: str) -> None:
    settings = compose("config", Settings, ["+model=tiny", *overrides])[0]
    with pytest.raises(SettingsError, match=cure):
        check(settings, world_size=1)
