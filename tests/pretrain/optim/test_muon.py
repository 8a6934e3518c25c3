"""Muon against a float64 reference of whole matrices, and what ranks orthogonalise and send."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import build_engine, gathered
from given_gradients import Arrays, Given, Line, Norm, Table, given_row, relative_errors
from numpy.typing import NDArray
from ranks_harness import run_ranks
from torch import Tensor, nn

from data_prep.core.config import compose
from pretrain.config.settings import NewtonSchulz, OptimSettings, Precision, Settings
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed.ranks import Ranks
from pretrain.optim.newton_schulz import coefficients
from pretrain.optim.optimizers import build_optimizer, parameter_groups

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
    shapes = {name: w.shape for name, w in initial_weights().items()}
    return [
        {
            n: sum(given_row(step, row, n, s) for row in range(ROWS)) / ROWS
            for n, s in shapes.items()
        }
        for step in range(STEPS)
    ]


def orthogonal_reference(
    matrix: NDArray[np.float64], settings: OptimSettings
) -> NDArray[np.float64]:
    """The polynomials on the singular values, as published."""
    assert settings.newton_schulz is not None
    assert settings.newton_schulz_steps is not None
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    if settings.newton_schulz is NewtonSchulz.polar_express:
        values = values / 1.01
    for a, b, c in coefficients(settings.newton_schulz, settings.newton_schulz_steps):
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


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
        {"newton_schulz": NewtonSchulz.polar_express}, {"newton_schulz_steps": 3},
        {"newton_schulz": NewtonSchulz.polar_express, "newton_schulz_steps": 9},
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


def trained(ranks: Ranks, stage: int, precision: Precision) -> dict[str, Tensor]:
    """Weights after all steps."""
    engine = build_engine(ranks, stage, precision, Bag(), **vars(published()))
    share = ROWS // ranks.world_size
    rows = range(ranks.rank * share, (ranks.rank + 1) * share)
    for step in range(STEPS):
        batch: Any = GlobalBatch(step, [Given(step, rows)], [step], 1, ROWS, 1, 1)
        while not engine.train_step(batch, rate(step)).applied:
            pass  # in fp16 the first scale is too large
    return gathered(engine)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "world_size", "precision"),
    [
        *((stage, n, Precision.fp32) for stage in (0, 1, 2, 3) for n in (1, 2, 4)),
        (1, 2, Precision.bf16), (3, 2, Precision.bf16), (1, 4, Precision.fp16),
        (2, 2, Precision.bf16_autocast),
    ],
)  # fmt: skip
def test_sharded_muon_is_muon_of_whole_matrices(stage, world_size, precision) -> None:
    weights = run_ranks(trained, world_size, stage=stage, precision=precision)[0]
    expected = reference(initial_weights(), all_gradients(), published())
    errors = relative_errors(weights, expected)
    assert max(errors.values()) < 1e-5, errors
