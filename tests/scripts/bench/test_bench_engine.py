"""The benchmarks compare an engine and a plain step that are both compiled, or both not."""

import numpy as np
import pytest
import torch

from pretrain.config.settings import Compile, Precision
from pretrain.model import compile as compiling
from scripts.baselines.synthetic_shards import synthetic_batch
from scripts.bench import engine, step
from scripts.bench.parts import harness


@pytest.mark.parametrize("compile", [Compile.true, Compile.false, Compile.auto])
def test_the_plain_loop_is_compiled_where_the_engine_is(
    compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[Precision, torch.device]] = []
    monkeypatch.setattr(engine, "compile_parts", lambda model, *how: compiled.append(how))
    settings, cpu = harness.settings_of("tiny", "engine.precision=fp32"), torch.device("cpu")
    settings.engine.compile = compile
    engine._plain_step(settings, synthetic_batch(np.array([8]), 1), cpu)
    assert compiled == [(Precision.fp32, cpu)] * compiling.wants_compile(settings.engine, cpu)
    assert len(compiled) == (compile is Compile.true)


def test_the_step_under_the_engine_is_compared_with_the_step_of_its_kind() -> None:
    on_a_cpu: dict[str, None] = {"transformers": None, "ours": None}
    assert step.plain_side(on_a_cpu) == ("ours", Compile.false)
    assert step.plain_side({**on_a_cpu, "ours, compiled": None}) == ("ours, compiled", Compile.true)
