"""The memory rehearsal: leaves no trace, and names what to change if memory is short."""

import copy
import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import MANY_MICRO_STEPS, build_engine, build_model, global_batch, save_state
from hypothesis import example, given
from hypothesis import strategies as st
from ranks_harness import run_ranks
from run_in_fork import TINY, finished_run, pretrain_run
from slow_cases import slow_but

from data_prep.core.config import compose
from data_prep.examples.masking import MaskingRule
from data_prep.stores.shard_records import read_shards_manifest
from pretrain.config.phases import Phase
from pretrain.config.settings import OptimizerName, Precision, Settings, TrustRatio
from pretrain.data.balancing import deal
from pretrain.data.mask_rate import training_rule
from pretrain.data.static_shapes import usual_shapes
from pretrain.distributed.ranks import Ranks
from pretrain.model.bert import BertForPreTraining
from pretrain.training import memory_probe
from pretrain.training.memory_probe import fake_batch, fullest

FP32, AUTOCAST = Precision.fp32, Precision.bf16_autocast
BF16, FP16 = Precision.bf16, Precision.fp16
ADAMW, BERT_ADAM = {"name": OptimizerName.adamw}, {"name": OptimizerName.bert_adam}
LEAST = "of 512 tokens does not fit .*: that is the least for data.seq_len=128"
RECOMPUTED = "engine.activation_checkpointing=true"
LAMB = {"name": OptimizerName.lamb, "trust_ratio": TrustRatio.all}


@functools.cache
def settings_of(*typed: str) -> Settings:
    return compose("config", Settings, ["+model=base", "data.seq_len=128", *typed])[0]


def rule(sample_dir: Path) -> MaskingRule:
    return MaskingRule.from_manifest(
        read_shards_manifest(sample_dir / "len128"), sample_dir / "vocab/vocab.txt"
    )


def test_the_made_up_batch_has_the_size_asked_for_and_full_masks(sample_dir: Path) -> None:
    batch = fake_batch(1000, 128, rule(sample_dir), 4096)
    assert batch.lengths == [128] * 7 + [104]
    assert batch.num_tokens == 1000
    assert batch.num_masked / 1000 == pytest.approx(0.15, abs=0.01)
    assert int(batch.input_ids.max()) < 4096
    assert fake_batch(130, 128, rule(sample_dir), 4096).lengths == [128]


def test_the_made_up_batch_has_the_masks_of_the_largest_mask_rate(sample_dir: Path) -> None:
    typed = (f"data.dir={sample_dir}", "data.mask_rate=0.2", "data.mask_rate_end=0.4")
    largest = training_rule(settings_of(*typed).data, read_shards_manifest(sample_dir / "len128"))
    batch = fake_batch(1000, 128, largest, 4096)
    assert batch.num_masked / 1000 == pytest.approx(0.4, abs=0.01)


@given(
    lengths=st.lists(st.integers(1, 128), min_size=8, max_size=60),
    ranks=st.integers(1, 8), budget=st.integers(256, 4096),
)  # fmt: skip
@example(lengths=[128] * 9, ranks=2, budget=4096)
def test_no_micro_batch_is_fuller_than_the_one_rehearsed(lengths, ranks, budget) -> None:
    settings = copy.deepcopy(settings_of())
    settings.optim.global_batch = len(lengths)
    settings.engine.tokens_per_micro_batch = budget
    dealt = deal(np.array(lengths), ranks, budget)
    assert dealt.most_tokens <= fullest(settings, ranks) <= budget


@pytest.mark.parametrize(
    ("typed", "ranks", "tokens"),
    [
        (["optim.global_batch=8"], 1, 8 * 128),
        (["optim.global_batch=9"], 2, 5 * 128),
        (["optim.global_batch=1000"], 1, 8192),
        (["optim.global_batch=8", "optim.tokens_per_step=8192"], 1, 8192),
    ],
)
def test_a_step_of_fewer_tokens_than_the_budget_is_rehearsed_at_its_own_size(
    typed: list[str], ranks: int, tokens: int
) -> None:
    assert fullest(settings_of(*typed), ranks) == tokens


@pytest.mark.distributed
def test_the_rehearsal_is_announced_with_its_size(sample_dir: Path, tmp_path: Path) -> None:
    typed = [*TINY, "eval.max_examples=8", "schedule.total_steps=1", f"data.dir={sample_dir}"]
    output = finished_run([*typed, "optim.global_batch=2"], tmp_path)
    assert output.index("rehearsing a step: 256 tokens at once") < output.index("step 1/1")


def test_each_size_of_the_rehearsal_is_announced(sample_dir: Path) -> None:
    manifest, done = read_shards_manifest(sample_dir / "len128"), []
    engine: Any = SimpleNamespace(
        ranks=Ranks(0, 1, torch.device("cpu")), rehearse=lambda *_: done.append("rehearsed")
    )
    phase = Phase(1, settings_of(f"data.dir={sample_dir}"))
    shapes = usual_shapes(manifest, 100.0, [512, 1024, 2048])
    memory_probe.rehearse(engine, phase, manifest, shapes, done.append)
    assert done == [0, "rehearsed", 1, "rehearsed", 2, "rehearsed"]


def state_of(
    ranks: Ranks, folder: Path, stage: int, precision: Precision, rehearse: bool,
    activation_checkpointing: bool = False, **optim: Any,
) -> Any:  # fmt: skip
    """Files, generator and DeepSpeed's counters before the first step; files after two steps."""
    engine = build_engine(ranks, stage, precision, build_model(dropout=0.3), **optim)
    if rehearse:
        engine.rehearse(global_batch(7).micro_batches * 2, activation_checkpointing)
    names = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
    counters = [getattr(engine._engine, name) for name in names]
    counters.append(engine._model.activation_checkpointing)
    first = saved(engine, folder), torch.get_rng_state().tolist(), counters
    for position in range(2):
        batch = global_batch(position, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        engine.train_step(batch, 1e-3)
    return first, saved(engine, folder)


def saved(engine: Any, folder: Path) -> dict[str, bytes]:
    save_state(engine, folder)
    engine.ranks.barrier()
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    engine.ranks.barrier()  # no rank replaces a file that another one is about to read
    return files


CASES: list[tuple[int, Precision, dict[str, Any]]] = [
    *((stage, FP32, ADAMW) for stage in (0, 1, 2, 3)),
    *((stage, FP32, LAMB) for stage in (0, 1, 2, 3)),
    (1, FP32, BERT_ADAM),
    (0, AUTOCAST, ADAMW),
    *((stage, precision, ADAMW) for stage in (1, 2, 3) for precision in (BF16, FP16)),
    *((stage, FP32, {"activation_checkpointing": True}) for stage in (1, 3)),
]
FAST = [(1, FP16, ADAMW), (3, FP32, LAMB)]


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "precision", "optim"), slow_but(FAST, CASES))
def test_a_rehearsal_leaves_weights_optimizer_generators_and_counters_untouched(
    tmp_path: Path, stage: int, precision: Precision, optim: dict[str, Any]
) -> None:
    arguments = {"folder": tmp_path, "stage": stage, "precision": precision, **optim}
    with_it = run_ranks(state_of, 2, rehearse=True, **arguments)
    without = run_ranks(state_of, 2, rehearse=False, **arguments)
    assert with_it == without


def out_of_memory_above(limit: int, of_rank: int = 0) -> Any:
    """A hook: a forward pass of more tokens than that has no memory on one rank, as on a GPU."""

    def hook(rank: int) -> None:
        memory_probe.PARTS["cpu"] = memory_probe.PARTS["cuda"]
        forward = BertForPreTraining.forward

        def with_little_memory(self: BertForPreTraining, batch: Any) -> Any:
            if rank == of_rank and batch.num_tokens > limit:
                raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
            return forward(self, batch)

        BertForPreTraining.forward = with_little_memory

    return hook


ARGUMENTS = (
    *TINY, "eval.max_examples=8", "schedule.total_steps=2", "engine.timeout_minutes=2",
    "engine.tokens_per_micro_batch=2048", "optim.global_batch=32",
)  # fmt: skip


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("limit", "ranks", "more", "cure"),
    [
        (1600, 1, [], "of 2048 tokens .*: set engine.tokens_per_micro_batch=1536, which fits"),
        (500, 2, [], f"{LEAST}; set engine.activation_checkpointing=true; it changes no result"),
        pytest.param(
            *(500, 2, [RECOMPUTED], f"{LEAST}; set engine.zero_stage=2"), marks=pytest.mark.slow
        ),
        (500, 1, [RECOMPUTED], f"{LEAST}; set a smaller data.seq_len"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step_with_what_does(
    sample_dir: Path, tmp_path: Path, limit: int, ranks: int, more: list[str], cure: str
) -> None:
    arguments = [*ARGUMENTS, f"data.dir={sample_dir}", *more]
    hook = out_of_memory_above(limit)
    statuses, output = pretrain_run(arguments, tmp_path, ranks=ranks, hook=hook)
    assert statuses[0] == 1
    assert re.search(f"RuntimeError: a micro-batch {cure}", output), output
    assert not (tmp_path / "runs/x/metrics.jsonl").exists()


def test_a_smaller_budget_is_not_said_to_leave_rounding_and_masks_of_dropout_alone() -> None:
    phase = SimpleNamespace(settings=settings_of(), number=1)
    engine = SimpleNamespace(ranks=Ranks(0, 1, torch.device("cpu")))
    line = memory_probe._cure(phase, engine, 2048, "1536, which fits", "")  # type: ignore[arg-type]
    assert "=1536, which fits; it changes only rounding and the masks of dropout." in line


@pytest.mark.distributed
def test_a_later_phase_that_does_not_fit_is_seen_before_the_first(sample_dir, tmp_path) -> None:
    second = (
        "{changes: {engine: {tokens_per_micro_batch: 2048}}, moments: kept, optimizer_step: kept, "
        "loss_scaler: kept}"
    )
    small = "engine.tokens_per_micro_batch=1024"
    arguments = [*ARGUMENTS, small, f"phases=[{second}]", f"data.dir={sample_dir}"]
    statuses, output = pretrain_run(arguments, tmp_path, hook=out_of_memory_above(1600))
    assert statuses == [1]
    assert "phase 2: a micro-batch of 2048 tokens does not fit" in output
    assert not (tmp_path / "runs/x/metrics.jsonl").exists()


@pytest.mark.distributed
def test_the_size_named_as_fitting_trains(sample_dir: Path, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "engine.tokens_per_micro_batch=1536", f"data.dir={sample_dir}"]
    finished_run(arguments, tmp_path, hook=out_of_memory_above(1600))
