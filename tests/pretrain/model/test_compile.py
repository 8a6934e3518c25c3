"""Compiled layers: the same numbers as plain ones, under every stage that may have them."""

import dataclasses
import itertools
import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_reference import on_the_cpu
from engine_samples import (
    MANY_MICRO_STEPS,
    VOCAB_SIZE,
    build_engine,
    build_model,
    gathered,
    global_batch,
    save_state,
)
from model_samples import random_batch, random_model, small_settings
from ranks_harness import run_ranks
from step_outcomes import assert_near, outcome

from data_prep.core.config import SettingsError
from pretrain.checkpoint.identity import identity
from pretrain.config.load import load
from pretrain.config.phases import phases_of
from pretrain.config.settings import Compile, Device, EngineSettings, Precision
from pretrain.data.corpus import manifest_of
from pretrain.data.open_loaders import open_loaders
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.rendezvous import rank_info
from pretrain.engine.engine import Engine
from pretrain.model import compile as compiling
from pretrain.model import cpu_dropout as dropout_module
from pretrain.model.bert import BertForPreTraining
from pretrain.model.compile import compile_fault, compile_parts, wants_compile
from pretrain.training import preflight
from pretrain.training.memory_probe import rehearse

FP32, AUTOCAST, BF16 = Precision.fp32, Precision.bf16_autocast, Precision.bf16
CAPTURED = "aot_eager"  # graphs are captured, and run as torch would have run them

# torch's compiler looks at what it warns of
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++ with g++")


def count_graphs_from_here() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def trained(
    ranks: Ranks, stage: int, precision: Precision, backend: str | None, dropout: float = 0.0,
    activation_checkpointing: bool = False,
) -> tuple[list[list[float]], list[float], int]:  # fmt: skip
    """Losses of three steps, of an evaluation, and the number of graphs. `backend` None: none."""
    compiling.BACKEND = backend or ""
    dropout_module._MOST_THREADS = 0  # torch's draws, which compiled code has, in plain code too
    count_graphs_from_here()
    engine = build_engine(
        ranks, stage, precision, build_model(dropout=dropout),
        activation_checkpointing=activation_checkpointing,
        compile=Compile.false if backend is None else Compile.true,
    )  # fmt: skip
    losses = []
    for step in range(3):
        batch = global_batch(0, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        batch.dropout_seeds[:] = [seed + step for seed in batch.dropout_seeds]
        losses.append(engine.train_step(batch, 3e-3).sums[:2].tolist())
    held_out = engine.evaluate_step(global_batch(1).micro_batches[0])[:2].tolist()
    return losses, held_out, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "precision", "world_size", "checkpointing"),
    [
        (1, FP32, 1, True),
        *(
            pytest.param(stage, precision, world_size, checkpointing, marks=pytest.mark.slow)
            for precision, stages in ((FP32, (0, 1, 2)), (AUTOCAST, (0, 1, 2)), (BF16, (1, 2)))
            for stage in stages
            for world_size in (1, 2)
            for checkpointing in (False, True)
        ),
    ],
)
def test_captured_as_graphs_training_is_the_same_dropout_included(
    stage: int, precision: Precision, world_size: int, checkpointing: bool
) -> None:
    arguments = {"stage": stage, "precision": precision, "dropout": 0.2}
    arguments["activation_checkpointing"] = checkpointing
    plain = run_ranks(trained, world_size, backend=None, **arguments)
    compiled = run_ranks(trained, world_size, backend=CAPTURED, **arguments)
    bound = 1e-5 if precision is FP32 else 1e-2
    for (losses, held_out, none), (same_losses, same_held_out, graphs) in zip(
        plain, compiled, strict=True
    ):
        torch.testing.assert_close(same_losses, losses, rtol=bound, atol=0)
        torch.testing.assert_close(same_held_out, held_out, rtol=bound, atol=0)
        assert none == 0
        assert graphs > 0


def resumed(ranks: Ranks, precision: Precision, folder: Path) -> tuple[Any, Any]:
    """Losses and weights of four steps with dropout, straight and from a checkpoint after two."""

    def made(first: int, end: int, continued: bool = False) -> tuple[list[float], Any, Engine]:
        model = build_model(dropout=0.2)
        engine = build_engine(ranks, 1, precision, model, compile=Compile.true)
        if continued:
            engine.load(folder)
        losses = []
        for step in range(first, end):
            batch = global_batch(0)  # one shape
            batch.dropout_seeds[:] = [100 + step]
            losses.append(engine.train_step(batch, 3e-3).sums[0].item())
        return losses, gathered(engine), engine

    straight, weights, _ = made(0, 4)
    before, _, engine = made(0, 2)
    save_state(engine, folder)
    torch._dynamo.reset()  # as in another process
    after, same_weights, _ = made(2, 4, continued=True)
    return (straight, weights), (before + after, same_weights)


@needs_compiler
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("precision", [FP32, AUTOCAST, BF16])
def test_a_compiled_run_goes_on_from_its_checkpoint_bit_for_bit_with_dropout(
    precision: Precision, tmp_path: Path
) -> None:
    (outcomes,) = run_ranks(resumed, 1, timeout_s=280, precision=precision, folder=tmp_path)
    (straight, weights), (pieced, same_weights) = outcomes
    assert pieced == straight
    assert len(set(straight)) == 4
    assert all(torch.equal(same_weights[name], weights[name]) for name in weights)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [(FP32, 1e-5), (AUTOCAST, 3e-2)])
def test_compiled_code_gives_the_losses_and_gradients_of_plain_code(precision, bound) -> None:
    model = random_model(small_settings(), 90, seed=0)
    batch = random_batch([5, 9, 30, 1, 17], 90, 0)
    plain = outcome(model, batch, is_autocast=precision is AUTOCAST)
    torch._dynamo.reset()
    compile_parts(model, precision, torch.device("cpu"))
    compiled = outcome(model, batch, is_autocast=precision is AUTOCAST)
    assert_near(compiled, plain, bound)
    assert not torch.equal(compiled[1][0], plain[1][0]), "it is another code"


def too_many_shapes(ranks: Ranks) -> list[int]:
    """Graphs after each of some batches, every one of another shape, where two are allowed."""
    compiling.BACKEND, compiling.MOST_SHAPES = CAPTURED, 2
    count_graphs_from_here()
    model = build_model()
    compile_parts(model, Precision.bf16, torch.device("cuda"))
    graphs = []
    with on_the_cpu():
        for length in (5, 6, 7):
            try:
                model(random_batch([length], VOCAB_SIZE - 1, 0))
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                graphs.append(-1)
            else:
                graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return graphs


@pytest.mark.distributed
def test_more_shapes_than_are_allowed_for_are_an_error_and_not_slowness() -> None:
    (graphs,) = run_ranks(too_many_shapes, 1)
    assert graphs[-1] == -1
    assert graphs[0] < graphs[1]


def graphs_of_a_rehearsed_run(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Graphs after the rehearsal, and after all batches of a run, of training and evaluation."""
    compiling.BACKEND = CAPTURED
    count_graphs_from_here()
    typed = ["+model=tiny", f"data.dir={folder}", "optim.global_batch=30", "run.name=x"]
    typed += ["engine.tokens_per_micro_batch=2100", "model.num_hidden_layers=1"]
    settings, _ = load(typed, 1)
    (phase,), manifest = phases_of(settings), manifest_of(settings.data)
    engine_settings = dataclasses.replace(settings.engine, compile=Compile.true, precision=FP32)
    train, held_out = open_loaders(settings, 1, manifest, rank=0, world_size=1, static=True)
    shapes, counts = train.shapes, torch._dynamo.utils.counters["stats"]
    assert shapes is not None
    model = BertForPreTraining(settings.model, manifest.vocab_size, settings.data.pairs)
    with on_the_cpu(), train:
        engine = Engine(model, settings.optim, engine_settings, ranks)
        rehearse(engine, phase, manifest, shapes)
        first = next(iter(held_out)).batch
        engine.evaluate_step(first)
        rehearsed = counts["unique_graphs"]
        batches = itertools.islice(train.batches(0), 40)
        used = set()
        for batch in batches:
            engine.train_step(batch, 1e-4)
            used |= {len(micro.input_ids) for micro in batch.micro_batches}
        for item in held_out:
            engine.evaluate_step(item.batch)
    return {
        "graphs": (rehearsed, counts["unique_graphs"]),
        "sizes": {shape.tokens for shape in shapes.usual},
        "slots": {shape.masked for shape in shapes.usual},
        "used": used,
    }


@pytest.mark.slow
@pytest.mark.distributed
def test_after_the_rehearsal_no_batch_compiles_anything(sample_dir: Path) -> None:
    (found,) = run_ranks(graphs_of_a_rehearsed_run, 1, timeout_s=200, folder=sample_dir)
    rehearsed, in_the_end = found["graphs"]
    of_layers, of_losses = (len(found[name]) + 1 for name in ("sizes", "slots"))  # 1: evaluation
    assert rehearsed == in_the_end == of_layers + of_losses
    assert 1 < len(found["used"])
    assert found["used"] <= found["sizes"]


def graphs_of_masked_logits(ranks: Ranks) -> tuple[int, int]:
    """Graphs before and after logits are asked for of a batch of a shape of its own."""
    compiling.BACKEND = CAPTURED
    count_graphs_from_here()
    engine = build_engine(ranks, 1, compile=Compile.true)
    counts = torch._dynamo.utils.counters["stats"]
    engine.evaluate_step(random_batch([5, 6], VOCAB_SIZE - 1, 0))
    before = counts["unique_graphs"]
    assert engine.masked_logits(random_batch([7], VOCAB_SIZE - 1, 0)).shape == (1, VOCAB_SIZE - 1)
    return before, counts["unique_graphs"]


@pytest.mark.distributed
def test_nothing_is_compiled_for_the_sentences_that_the_model_fills_in() -> None:
    ((before, after),) = run_ranks(graphs_of_masked_logits, 1)
    assert before == after > 0


def settings_with(compile: Compile, stage: int = 1) -> EngineSettings:
    return EngineSettings(stage, FP32, 512, False, compile, 1.0, Device.auto)


@pytest.mark.parametrize(
    ("device", "stage", "expected"),
    [("cpu", 1, False), ("cuda", 1, True), ("cuda", 3, False)],
)
def test_auto_compiles_on_a_gpu_but_for_stage_3(device, stage, expected) -> None:
    settings = settings_with(Compile.auto, stage)
    assert wants_compile(settings, torch.device(device)) is expected


def fault_without(ranks: Ranks, what: str) -> str:
    """What a try to compile ends with on a machine without a compiler, Python's headers or none."""
    torch._dynamo.reset()
    if what == "compiler":
        os.environ["PATH"] = ""
        os.environ.pop("CXX", None)
    if what == "headers":
        get_path = sysconfig.get_path
        sysconfig.get_path = lambda name, *more, **named: (
            "/nowhere" if "include" in name else get_path(name, *more, **named)
        )
    return compile_fault(torch.device("cpu"))


@needs_compiler
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("compiler", r"FileNotFoundError: .* 'g\+\+'|.*No working C\+\+ compiler.*"),
        pytest.param("headers", r"Python.h: No such file or directory", marks=pytest.mark.slow),
        pytest.param("nothing", "", marks=pytest.mark.slow),
    ],
)
def test_a_machine_that_cannot_compile_is_found_by_a_try(what: str, fault: str) -> None:
    (found,) = run_ranks(fault_without, 1, timeout_s=200, what=what)
    assert re.fullmatch(fault, found), found


def resolved(ranks: Ranks, typed: Compile, faults: dict[int, str]) -> Any:
    """What two ranks agree on, as on GPUs of which some cannot compile."""
    preflight.wants_compile = lambda *_: True
    preflight.compile_fault = lambda _: faults.get(ranks.rank, "")
    infos = ranks.gather(rank_info(ranks.rank, ranks.device))
    try:
        return preflight.resolve_compile(ranks, infos, settings_with(typed))
    except SettingsError as error:
        return str(error)


@pytest.mark.distributed
def test_if_one_rank_cannot_compile_auto_is_plain_code_on_all_with_the_reason() -> None:
    faults = {1: "Python.h: No such file or directory"}
    outcomes = run_ranks(resolved, 2, typed=Compile.auto, faults=faults)
    for compile, warning in outcomes:
        assert compile is Compile.false
        assert re.match(
            r"the layers are not compiled: rank 1 on \S+ cannot compile: Python.h: No such file",
            warning,
        )
        assert "\n" not in warning
    assert run_ranks(resolved, 2, typed=Compile.auto, faults={}) == [(Compile.true, None)] * 2


@pytest.mark.distributed
def test_compilation_that_is_asked_for_and_cannot_be_is_refused_on_all_with_the_cure() -> None:
    refused = run_ranks(resolved, 2, typed=Compile.true, faults={0: "no g++"})
    assert refused == [refused[0]] * 2
    assert re.match(r"engine.compile=true, and rank 0 on \S+ cannot compile: no g\+\+", refused[0])
    assert refused[0].endswith("or set engine.compile=false")


@pytest.mark.parametrize("typed", ["auto", "true", "false"])
def test_the_setting_is_typed_as_it_is_named(typed: str) -> None:
    settings, _ = load(["+model=tiny", f"engine.compile={typed}"], 1)
    assert settings.engine.compile is Compile[typed]


def test_compiling_under_stage_3_is_refused_with_the_cure() -> None:
    with pytest.raises(SettingsError, match=r"set engine\.zero_stage=2 or engine\.compile=false"):
        load(["+model=tiny", "engine=zero3", "engine.compile=true"], 1)
    settings, _ = load(["+model=tiny", "engine=zero3"], 1)
    assert not wants_compile(settings.engine, torch.device("cuda"))


@pytest.mark.parametrize(
    "name",
    [f"engine.{n}" for n in ("compile", "compile_cache", "activation_checkpointing")]
    + ["engine.trim_last_layer"],
)
def test_it_is_no_part_of_a_runs_identity(sample_dir: Path, name: str) -> None:
    def of(value: str) -> dict[str, Any]:
        arguments = ["+model=tiny", f"data.dir={sample_dir}", f"{name}={value}"]
        settings, _ = load(arguments, 1)
        return identity(settings, [manifest_of(settings.data)])

    assert of("true") == of("false"), "it may change when a run continues"
