"""Settings that cannot work are refused, each with its cure."""

from __future__ import annotations

import re

import pytest

from data_prep.core.config import SettingsError, compose
from pretrain.config.checks import check
from pretrain.config.settings import Settings


def settings_of(*overrides: str) -> Settings:
    return compose("config", Settings, ["+model=tiny", *overrides])[0]


def test_the_defaults_of_every_model_pass() -> None:
    for model in ("tiny", "small", "base", "large"):
        check(settings_of(f"+model={model}"), world_size=8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_attention_heads=3", "set model.num_attention_heads=(2|4)"),
        ("data.seq_len=1024", "longer than model.max_position_embeddings=512"),
        ("model.hidden_act=relu", "it takes gelu or gelu_new"),
        ("model.hidden_dropout_prob=1.0", r"outside \[0, 1\)"),
        ("model.type_vocab_size=1", "data.pairs=nsp needs 2 or more"),
        ("data.pairs=rtd", "data.pairs"),
        ("engine.tokens_per_micro_batch=100", "set engine.tokens_per_micro_batch=128 or more"),
        ("optim.global_batch=1", "set optim.global_batch=2 or more"),
        ("optim.tokens_per_step=40000", "set optim.tokens_per_step=32768, or null"),
        ("optim.learning_rate=0", "must be above 0"),
        ("optim.betas=[0.9]", "it takes two numbers"),
        ("schedule.total_steps=0", "schedule.total_steps=0; it must be 1 or more"),
        ("schedule.warmup_steps=5000", "set schedule.warmup_steps=90"),
        ("eval.max_examples=0", "or null for all"),
        ("run.name=a/b", "must be the name of one folder"),
        ("run.seed=-1", "it takes 0 to 4294967295"),
        ("engine.zero_stage=4", "it takes 0, 1, 2 or 3"),
    ],
)
def test_an_impossible_value_is_refused_with_its_cure(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check(settings_of(override), world_size=2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_weights_without_zero_are_refused(precision: str) -> None:
    with pytest.raises(SettingsError, match=r"set engine\.zero_stage=1"):
        check(settings_of("engine=zero0", f"engine.precision={precision}"), world_size=1)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings_of("run.seed=-1", "optim.eps=0", "monitor.every_steps=0"), world_size=1)
    assert len(str(caught.value).splitlines()) == 3


def test_the_warm_up_is_a_share_of_the_steps_unless_it_is_given() -> None:
    assert settings_of("schedule.total_steps=50").schedule.warmup == 5
    assert settings_of("schedule.warmup_steps=7").schedule.warmup == 7


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("schedule.budget_hours=0", "null for schedule.total_steps"),
        ("schedule.budget_hours=1 schedule.warmup_steps=3", "set schedule.warmup_steps=null"),
        ("schedule.budget_hours=1 schedule.warmup_fraction=1.0", r"outside \[0, 1\)"),
        ("schedule.power=-1", "0 (constant) or more"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(override: str, cure: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings_of(*override.split()), world_size=1)
    assert re.search(cure if "\\" in cure else re.escape(cure), str(caught.value))
