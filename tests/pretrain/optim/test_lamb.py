"""LAMB against a float64 reference of whole tensors: the paper's, NVIDIA's, and each setting."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import build_engine, gathered
from given_gradients import Arrays, Given, Line, Norm, Table, mean_gradients, relative_errors
from model_samples import small_settings
from ranks_harness import run_ranks
from slow_cases import slow_but
from torch import Tensor, nn

from data_prep.core.config import SettingsError, compose
from data_prep.core.objectives import Pairing
from pretrain.config.checks import check
from pretrain.config.settings import OptimSettings, Precision, Settings, TrustRatio
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed.ranks import Ranks
from pretrain.engine.sharded_state import ShardedState
from pretrain.model.bert import BertForPreTraining
from pretrain.optim.lamb import layer_means
from pretrain.optim.optimizers import build_optimizer, parameter_groups

FP32 = Precision.fp32
STEPS, ROWS = 12, 4  # rows: each rank brings the gradients of ROWS / ranks of them
VARIANTS = ("lamb", "lamb_nvidia")


def optim_of(variant: str) -> OptimSettings:
    return compose("config", Settings, ["+model=tiny", f"optim={variant}"])[0].optim


def rate(step: int) -> float:
    return 2e-2 * (step + 1) / STEPS


def reference(
    weights: Arrays, gradients: list[Arrays], settings: OptimSettings
) -> tuple[Arrays, dict[str, float]]:
    """Weights after all steps, and the ratios of the last: the published formulae, in float64."""
    beta_1, beta_2 = settings.betas
    m, v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    w, ratios = dict(weights), {}
    for step, of_step in enumerate(gradients):
        norm = np.sqrt(sum((g**2).sum() for g in of_step.values()))
        bound = settings.max_grad_norm or np.inf
        for name, gradient in of_step.items():
            g = gradient / max(1.0, norm / bound)
            decay = 0.0 if "norm" in name or name.endswith("bias") else settings.weight_decay
            m[name] = beta_1 * m[name] + (1 - beta_1 if settings.grad_averaging else 1) * g
            v[name] = beta_2 * v[name] + (1 - beta_2) * g**2
            c_1, c_2 = (
                1 - beta ** (step + 1) if settings.bias_correction else 1 for beta in settings.betas
            )
            u = (m[name] / c_1) / (np.sqrt(v[name] / c_2) + settings.eps) + decay * w[name]
            norms = np.linalg.norm(w[name]), np.linalg.norm(u)
            takes = settings.trust_ratio is TrustRatio.all or decay != 0
            ratios[name] = norms[0] / norms[1] if takes and all(norms) else 1.0
            w[name] = w[name] - rate(step) * ratios[name] * u
    return w, ratios


class Bag(nn.Module):
    """Parameters of awkward sizes, whose gradients are given: no model's rounding is in the way."""

    settings = small_settings()  # the engine asks for its dropout

    def __init__(self) -> None:
        super().__init__()
        self.word = Table(211, 64)
        self.tiny = Line(7, 3)
        self.one = Line(1, 1)
        self.wide = Line(3, 500)
        self.norm = Norm(31)
        self.never = Line(5, 5)  # its gradient is 0: update 0, but for the decay
        self.zero = Line(6, 9)  # starts at 0
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator) * 0.02
                is_zero = name.startswith("zero") or name in ("never.bias", "norm.bias")
                drawn = torch.zeros_like(drawn) if is_zero else drawn
                parameter.copy_(drawn + 1 if name == "norm.weight" else drawn)

    def forward(self, given: Any) -> tuple[Tensor, ...]:
        parts = [module(name, given) for name, module in self.named_children()]
        nothing = torch.zeros(())
        return torch.stack(parts).sum(), nothing, nothing, nothing


def initial_weights() -> Arrays:
    return {name: p.detach().double().numpy() for name, p in Bag().named_parameters()}


@functools.cache
def all_gradients() -> list[Arrays]:
    return mean_gradients(initial_weights(), STEPS, ROWS)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "change",
    [
        {}, {"bias_correction": False}, {"grad_averaging": False}, {"trust_ratio": TrustRatio.all},
        {"trust_ratio": TrustRatio.decayed}, {"eps": 0.1},
        {"weight_decay": 0.1, "betas": [0.6, 0.7]},
    ],
)  # fmt: skip
def test_every_setting_gives_the_float64_reference(variant: str, change: dict[str, Any]) -> None:
    settings = replace(optim_of(variant), **change, max_grad_norm=None)  # clipping is the engine's
    bag = Bag()
    optimizer = build_optimizer(parameter_groups(bag, settings.weight_decay), settings)
    for step, gradients in enumerate(all_gradients()):
        for name, parameter in bag.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name]).float()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    expected, _ = reference(initial_weights(), all_gradients(), settings)
    errors = relative_errors({n: p.detach() for n, p in bag.named_parameters()}, expected)
    assert max(errors.values()) < 1e-6, errors
    if change and settings != replace(optim_of(variant), max_grad_norm=None):
        plain, _ = reference(
            initial_weights(), all_gradients(), replace(optim_of(variant), max_grad_norm=None)
        )
        moved = relative_errors({n: torch.from_numpy(w) for n, w in plain.items()}, expected)
        assert max(moved.values()) > 1e-3, "the setting does nothing"


def trained(
    ranks: Ranks, stage: int, precision: Precision
) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    """Weights and ratios after all steps, of both variants."""
    outcomes = []
    for variant in VARIANTS:
        engine = build_engine(ranks, stage, precision, Bag(), **vars(optim_of(variant)))
        share = ROWS // ranks.world_size
        rows = range(ranks.rank * share, (ranks.rank + 1) * share)
        for step in range(STEPS):
            batch: Any = GlobalBatch(step, [Given(step, rows)], [step], 1, ROWS, 1, 1)
            while not engine.train_step(batch, rate(step)).applied:
                pass  # in fp16 the first scale is too large
        outcomes.append((gathered(engine), engine.trust_ratios()))
    return outcomes


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "world_size", "precision"),
    slow_but(
        [(2, 2, Precision.bf16), (3, 2, FP32)],
        [
            *((stage, n, FP32) for stage in (0, 1, 2, 3) for n in (1, 2, 4)),
            *((stage, 2, Precision.bf16) for stage in (1, 2, 3)),
            *((stage, 4, Precision.fp16) for stage in (1, 3)),
            (2, 2, Precision.bf16_autocast),
        ],
    ),
)
def test_sharded_lamb_is_lamb_of_whole_tensors(stage, world_size, precision) -> None:
    results = run_ranks(trained, world_size, stage=stage, precision=precision)
    for variant, of_ranks in zip(VARIANTS, zip(*results, strict=True), strict=True):
        settings = optim_of(variant)
        expected, ratios = reference(initial_weights(), all_gradients(), settings)
        errors = relative_errors(of_ranks[0][0], expected)
        assert max(errors.values()) < 1e-6, (variant, errors)
        for _, got in of_ranks:  # the same on every rank
            taken = {n: r for n, r in ratios.items() if n in got}
            assert got == pytest.approx(taken, rel=1e-5)
            assert len(got) == (len(ratios) if variant == "lamb" else 6), "decayed matrices alone"


def lose_a_piece(ranks: Ranks) -> str:
    """What the engine says of a DeepSpeed that gives a rank less than its part."""
    whole = ShardedState._piece

    def short(self: ShardedState, key: str, name: str) -> tuple[int, Tensor]:
        start, piece = whole(self, key, name)
        return start, piece[:-1] if name == "embeddings.word.weight" else piece

    ShardedState._piece = short
    try:
        build_engine(ranks, 1, **vars(optim_of("lamb")))
    except RuntimeError as error:
        return str(error)
    return "nothing"


@pytest.mark.distributed
def test_a_mapping_that_does_not_cover_a_parameter_is_refused() -> None:
    for said in run_ranks(lose_a_piece, 2):
        assert "elements of embeddings.word.weight, and the update needs each once" in said


def test_metrics_are_means_of_the_embeddings_each_layer_and_the_heads() -> None:
    with torch.device("meta"):
        settings = compose("config", Settings, ["+model=tiny"])[0].model
        names = [n for n, _ in BertForPreTraining(settings, 100, Pairing.nsp).named_parameters()]
    ratios = {name: float(place) for place, name in enumerate(names)}
    figures = layer_means(ratios)
    assert list(figures) == [
        "optim/trust_ratio/embeddings",
        "optim/trust_ratio/heads",
        "optim/trust_ratio/layer_00",
        "optim/trust_ratio/layer_01",
    ]
    of_layer_1 = [ratio for name, ratio in ratios.items() if name.startswith("layers.1.")]
    assert figures["optim/trust_ratio/layer_01"] == sum(of_layer_1) / len(of_layer_1)
    assert layer_means({}) == {}


@pytest.mark.parametrize(
    ("overrides", "cure"),
    [
        (["optim=lamb", "optim.trust_ratio=none"], "set optim=adamw"),
        (["optim=lamb_nvidia", "optim.weight_decay=0"], r"set optim\.trust_ratio=all"),
        (["optim=adamw", "optim.trust_ratio=all"], "set .*, or optim=lamb$"),
        (
            ["optim=adamw", "optim.bias_correction=false"],
            "=false is not adamw's; set optim=bert_adam or",
        ),
        (["optim.max_grad_norm=0"], "null for no clipping"),
    ],
)
def test_parts_that_contradict_the_optimizer_s_name_are_refused(overrides, cure) -> None:
    settings = compose("config", Settings, ["+model=tiny", *overrides])[0]
    with pytest.raises(SettingsError, match=cure):
        check(settings, world_size=1)


def test_the_norm_of_a_tensor_as_large_as_a_word_embedding_is_exact() -> None:
    settings = replace(optim_of("lamb"), weight_decay=0.0, max_grad_norm=None)
    weight = nn.Parameter(torch.randn(8_000_000, generator=torch.Generator().manual_seed(0)))
    norm = weight.detach().double().norm().item()
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)  # so every element of the update is 1 / (1 + eps)
    optimizer = build_optimizer([{"params": [weight], "weight_decay": 0.0}], settings)
    optimizer.param_groups[0]["lr"] = 100.0
    optimizer.step()
    ratio = (before - weight.detach())[:10].double() / 100.0
    assert ratio.tolist() == pytest.approx([norm / weight.numel() ** 0.5] * 10, rel=1e-6)
