"""The arithmetic of a run, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from data_prep.configuration import compose
from pretrain.plan import plan
from pretrain.settings import Settings


def test_a_plan_counts_steps_sequences_tokens_and_epochs() -> None:
    overrides = ["+model=base", "schedule.total_steps=1000", "engine.tokens_per_micro_batch=2000"]
    settings = compose("config", Settings, overrides)[0]
    manifest = {"splits": {"train": {"rows": 64_000, "tokens": 6_400_000}}}
    found = plan(settings, manifest, parameters=110_000_000, world_size=4)
    assert found.sequences == 256_000
    assert found.tokens == 25_600_000
    assert found.epochs == pytest.approx(4.0)
    assert found.micro_steps == 4  # 256 x 100 tokens on 4 ranks are 6,400 each
