"""What only a GPU can show, against the CPU in fp32: `pytest -m gpu` on a machine that has one."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from engine_samples import optim_settings
from model_samples import random_batch, random_model, small_settings
from step_outcomes import assert_near, outcome
from torch import Tensor
from torch.distributed.flight_recorder.components.loader import read_dump

from data_prep.stores.shard_reader import Shards
from pretrain.config.settings import Precision
from pretrain.data.eval_loader import EvalLoader
from pretrain.data.packing import PackedBatch
from pretrain.distributed import flight_recorder
from pretrain.distributed import ranks as ranks_module
from pretrain.engine.snapshot import WEIGHT, Layout, Snapshot
from pretrain.model.attention import Kernel, _efficient, _fault, attention, kernel_of
from pretrain.model.bert import BertForPreTraining
from pretrain.model.compile import compile_fault, compile_parts
from pretrain.optim.optimizers import build_optimizer, parameter_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
GPU, BF16 = torch.device("cuda", 0), torch.bfloat16
LENGTHS = [64, 5, 33, 1, 17, 60, 12, 64]  # 256 tokens
BOUND = 1e-2  # of bf16 against fp32, relative to the largest number


@contextmanager
def no_waiting() -> Iterator[None]:
    """An error where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def gpu_model(dropout: float = 0.0) -> BertForPreTraining:
    """Heads of 8, so that the kernel takes them."""
    settings = small_settings(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return random_model(settings, 90, seed=0).to(GPU)


def random_qkv(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(LENGTHS), 3, 4, 64, generator=generator)


def pinned(batch: PackedBatch) -> PackedBatch:
    return batch._with({name: value.pin_memory() for name, value in batch._tensors().items()})


def with_unused_slots(batch: PackedBatch) -> PackedBatch:
    """Three sequences of length 0 behind the others, as static shapes have them."""
    ends = torch.cat([batch.cu_seqlens, batch.cu_seqlens[-1:].repeat(3)])
    return batch._with({"cu_seqlens": ends, "lengths": [*batch.lengths, 0, 0, 0]})


def test_the_kernel_gives_the_outputs_and_gradients_of_the_cpu() -> None:
    batch = with_unused_slots(random_batch(LENGTHS, 90, 0))
    on_cpu = random_qkv().requires_grad_()
    expected = attention(on_cpu, batch, 0.0)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weight).sum().backward()
    on_gpu = random_qkv().to(GPU, BF16).requires_grad_()
    assert kernel_of(GPU, BF16, on_gpu.shape[-1]) is Kernel.flash
    found = attention(on_gpu, batch.to(GPU), 0.0)
    (found * weight.to(GPU, BF16)).sum().backward()
    for ours, theirs in ((found, expected), (on_gpu.grad, on_cpu.grad)):
        assert (ours.float().cpu() - theirs).abs().max() <= BOUND * theirs.abs().max()


def test_dropout_keeps_the_mean_and_is_the_seeds_alone() -> None:
    batch, p = random_batch(LENGTHS, 90, 0).to(GPU), 0.25
    qkv = random_qkv().to(GPU, BF16)
    qkv[:, 2] = 1  # each output is then the sum of what is left of the probabilities
    torch.manual_seed(0)
    out = attention(qkv, batch, p)
    torch.manual_seed(0)
    assert torch.equal(attention(qkv, batch, p), out)
    assert not torch.equal(attention(qkv, batch, p), out)
    assert abs(out.float().mean().item() - 1) < 0.05
    assert out.float().std().item() > 0.01


def test_dropout_gives_its_gradients_the_mask_of_its_outputs() -> None:
    """The outputs are linear in the values, so that the gradient of their squares gives them twice.

    With the mask of another draw it would be less by the dropout's own share, a quarter.
    """
    batch = random_batch(LENGTHS, 90, 0).to(GPU)
    qkv = random_qkv().to(GPU, BF16).requires_grad_()
    total = attention(qkv, batch, 0.25).float().square().sum()
    total.backward()
    of_values = (qkv.grad[:, 2].float() * qkv.detach()[:, 2].float()).sum()
    assert of_values.item() == pytest.approx(2 * total.item(), rel=0.02)


def test_a_step_in_bf16_autocast_is_the_step_of_the_cpu_in_fp32() -> None:
    batch = random_batch(LENGTHS, 90, 0)
    expected = outcome(gpu_model().cpu(), batch)
    found = outcome(gpu_model(), batch.to(GPU), is_autocast=True)
    assert_near(found, expected, 3 * BOUND)  # through two layers


def test_compiled_layers_give_the_numbers_of_plain_ones() -> None:
    batch, model = random_batch(LENGTHS, 90, 0).to(GPU), gpu_model()
    plain = outcome(model, batch, is_autocast=True)
    compile_parts(model, Precision.bf16_autocast, GPU)
    assert_near(outcome(model, batch, is_autocast=True), plain, BOUND)


def test_compiled_dropout_is_the_seeds_alone() -> None:
    batch, model = random_batch(LENGTHS, 90, 0).to(GPU), gpu_model(dropout=0.2)
    compile_parts(model, Precision.bf16_autocast, GPU)
    losses = [outcome(model, batch, seed, is_autocast=True)[0] for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_a_static_shape_is_compiled_once_whatever_its_sequences() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = gpu_model(dropout=0.2)
    compile_parts(model, Precision.bf16_autocast, GPU)
    for seed, lengths in enumerate((LENGTHS, LENGTHS[::-1], [32] * 8)):
        batch = random_batch(lengths, 90, seed, masked=[1] * 8)
        outcome(model, batch.to(GPU), is_autocast=True)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2, "a layer and the loss"
    assert not counters["graph_break"]


@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_host_waits_for_nothing_in_a_step(is_compiled: bool) -> None:
    batch, model = pinned(random_batch(LENGTHS, 90, 0)), gpu_model(dropout=0.2)
    if is_compiled:
        compile_parts(model, Precision.bf16_autocast, GPU)
    optimizer = build_optimizer(parameter_groups(model, 0.01), optim_settings())
    for _ in range(2):  # what is made and compiled at first use
        outcome(model, batch.to(GPU), is_autocast=True)
        optimizer.step()
    with no_waiting():
        outcome(model, batch.to(GPU), is_autocast=True)
        optimizer.step()


def test_batches_lie_in_pinned_memory_and_are_copied_whole_without_waiting(sample_dir) -> None:
    shards = Shards.open(sample_dir / "len128", "heldout")
    loader = EvalLoader(
        shards,
        rank=0,
        world_size=1,
        token_budget=1_024,
        max_examples=20,
        static=True,
        pinned=True,
    )
    batch = next(iter(loader)).batch
    with no_waiting():
        copied = batch.to(GPU)
    for name, value in batch._tensors().items():
        assert value.is_pinned(), name
        assert torch.equal(copied._tensors()[name].cpu(), value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_the_memory_efficient_kernel_gives_what_one_call_a_sequence_does(dtype) -> None:
    assert _fault(_efficient, GPU, dtype, 64) == ""


def test_fp32_goes_by_the_memory_efficient_kernel_to_the_numbers_of_the_cpu() -> None:
    batch = with_unused_slots(random_batch(LENGTHS, 90, 0))
    assert kernel_of(GPU, torch.float32, random_qkv().shape[-1]) is Kernel.efficient
    assert_near(outcome(gpu_model(), batch.to(GPU)), outcome(gpu_model().cpu(), batch), 1e-4)


def test_this_machine_compiles_a_kernel() -> None:
    assert compile_fault(GPU) == ""


def test_a_snapshot_is_copied_to_page_locked_memory_that_is_given_back() -> None:
    layout = Layout("adamw", {"matrix": [300, 7], "bias": [7]}, {"matrix": "", "bias": ""})
    snapshot = Snapshot.allocate(layout, GPU)
    matrix = snapshot.tensors[WEIGHT]["matrix"]
    assert matrix.is_pinned()
    values = torch.randn(300, 7, device=GPU)
    with no_waiting():
        matrix.copy_(values, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(matrix, values.cpu())
    del snapshot
    gc.collect()
    assert not matrix.is_pinned()


def test_the_collectives_of_nccl_are_dumped_and_described(tmp_path: Path) -> None:
    ranks = ranks_module.start(1.0, "cuda")
    try:
        ranks.barrier()
        torch.cuda.synchronize()
        now = flight_recorder.dump_collectives(tmp_path, 0)
        assert re.match("in (no collective, the last was )?all_reduce 1 of", now), now
        assert read_dump("rank_", str(tmp_path / "collectives/rank_00000"))["entries"]
    finally:
        ranks.stop()


def test_a_run_compiles_by_itself_and_logs_it(sample_dir: Path, tmp_path: Path) -> None:
    typed = ["+model=tiny", f"data.dir={sample_dir}", f"run.dir={tmp_path}", "run.name=gpu"]
    typed += ["schedule.total_steps=20", "eval.every_steps=20", "checkpoint.every_steps=10"]
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.run", *typed],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "compile: 'true'" in (tmp_path / "gpu" / "config.yaml").read_text()
