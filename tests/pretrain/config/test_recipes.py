"""Recipes, published and our own: their numbers, with any model, wherever they are typed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from slow_cases import slow_but

from data_prep.core.config import as_dict, choices
from pretrain.config.load import load
from pretrain.config.settings import Settings

NUMBERS: dict[str, dict[str, Any]] = {
    "paper": {
        "optim.name": "bert_adam", "optim.global_batch": 256, "optim.learning_rate": 1e-4,
        "optim.max_grad_norm": 1.0, "schedule.total_steps": 1_000_000,
        "schedule.warmup_steps": 10_000, "schedule.power": 1.0, "schedule.decay_from_step_0": True,
    },
    "nvidia_lamb": {
        "optim.name": "lamb", "optim.trust_ratio": "decayed", "optim.bias_correction": True,
        "optim.max_grad_norm": 1.0, "optim.global_batch": 65_536, "optim.learning_rate": 6e-3,
        "data.seq_len": 128, "schedule.total_steps": 7_038, "schedule.warmup_fraction": 0.2843,
        "schedule.power": 0.5, "schedule.decay_from_step_0": True, "schedule.count_from_1": True,
    },
    "mlperf": {
        "optim.name": "lamb", "optim.global_batch": 448, "optim.learning_rate": 4.25e-4,
        "optim.betas": [0.9, 0.999], "data.seq_len": 512, "schedule.total_steps": 6_700,
        "schedule.warmup_steps": 0, "schedule.power": 1.0,
    },
    "budget_24h": {
        "optim.name": "adamw", "optim.global_batch": 4_096, "optim.learning_rate": 1e-3,
        "optim.betas": [0.9, 0.98], "optim.max_grad_norm": None, "data.seq_len": 128,
        "data.pairs": "none", "schedule.budget_hours": 24.0, "schedule.warmup_steps": None,
        "schedule.warmup_fraction": 0.06, "schedule.decay_from_step_0": False,
    },
    "roberta_like": {
        "optim.name": "adamw", "optim.global_batch": 8_192, "optim.learning_rate": 4e-4,
        "optim.betas": [0.9, 0.98], "optim.max_grad_norm": None, "data.seq_len": 512,
        "data.masking": "dynamic", "data.pairs": "none", "schedule.total_steps": 500_000,
        "schedule.warmup_steps": 30_000, "schedule.decay_from_step_0": False,
    },
    "base_2k": {
        "optim.name": "adamw", "optim.global_batch": 2_048, "optim.learning_rate": 7e-4,
        "optim.betas": [0.9, 0.98], "optim.max_grad_norm": None, "data.seq_len": 512,
        "data.masking": "dynamic", "data.pairs": "nsp", "schedule.total_steps": 125_000,
        "schedule.warmup_fraction": 0.048, "schedule.decay_from_step_0": False,
    },
    "fast": {
        "optim.name": "muon", "optim.matrix_rate": 2.5, "model.position_init": "sinusoidal",
        "data.masking": "dynamic", "data.mask_rate": 0.3, "data.mask_rate_end": 0.15,
        "model.hidden_dropout_prob": 0.0,
    },
    "demo": {
        "optim.name": "muon", "optim.global_batch": 64, "optim.learning_rate": 2e-3,
        "data.seq_len": 32, "schedule.total_steps": 2_100, "schedule.stop_step": 1_260,
    },
    "laptop": {
        "optim.name": "muon", "optim.global_batch": 64, "optim.learning_rate": 2e-3,
        "optim.betas": [0.9, 0.98], "data.seq_len": 32, "data.masking": "dynamic",
        "schedule.total_steps": 22_000, "schedule.stop_step": 13_200, "schedule.warmup_steps": 500,
    },
}  # fmt: skip


def settings_of(*typed: str) -> Settings:
    return load(typed, world_size=8)[0]


def without_the_model(settings: Settings) -> dict[str, Any]:
    everything = as_dict(settings)
    return {group: everything[group] for group in ("optim", "schedule")}


def test_every_recipe_has_its_numbers_here() -> None:
    assert choices("recipe") == sorted(NUMBERS)


EACH_ONCE = list(zip(itertools.cycle(choices("model")), sorted(NUMBERS), strict=False))


@pytest.mark.parametrize(
    ("model", "recipe"), slow_but(EACH_ONCE, itertools.product(choices("model"), sorted(NUMBERS)))
)
def test_a_recipe_has_its_numbers_with_any_model(recipe: str, model: str) -> None:
    everything = as_dict(settings_of(f"+model={model}", f"+recipe={recipe}"))
    for key, number in NUMBERS[recipe].items():
        group, name = key.split(".")
        assert everything[group][name] == number, key


def test_every_published_recipe_sets_its_dropout_of_attention() -> None:
    for recipe in set(NUMBERS) - {"laptop", "fast", "demo"}:
        assert (
            settings_of("model=tiny", f"recipe={recipe}").model.attention_probs_dropout_prob == 0.1
        )


def test_only_the_recipes_that_have_a_quirk_turn_it_on() -> None:
    schedules = {
        recipe: settings_of("model=base", f"recipe={recipe}").schedule for recipe in NUMBERS
    }
    assert {recipe for recipe, s in schedules.items() if s.count_from_1} == {"nvidia_lamb"}
    assert {recipe for recipe, s in schedules.items() if s.power != 1} == {"nvidia_lamb"}
    from_step_0 = {"paper", "nvidia_lamb", "mlperf", "laptop", "fast", "demo"}
    assert {recipe for recipe, s in schedules.items() if s.decay_from_step_0} == from_step_0


@pytest.mark.parametrize(
    "recipe", slow_but(["budget_24h", "laptop", "nvidia_lamb"], sorted(NUMBERS))
)
def test_a_recipe_holds_over_the_model_s_own_numbers_wherever_it_is_typed(recipe: str) -> None:
    first = settings_of(f"recipe={recipe}", "model=tiny")
    last = settings_of("model=tiny", f"+recipe={recipe}")
    assert without_the_model(first) == without_the_model(last)


def test_the_command_line_overrides_the_recipe() -> None:
    settings = settings_of("optim.global_batch=64", "model=tiny", "optim=adamw", "recipe=paper")
    assert settings.optim.global_batch == 64
    assert settings.optim.bias_correction
