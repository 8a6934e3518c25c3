"""The path that a GPU takes, without a GPU: its numbers, its graph, and the rules of the device."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_reference import on_the_cpu
from model_samples import random_batch, random_model, small_settings
from step_outcomes import assert_near, outcome
from torch import Tensor

from pretrain.config.settings import Precision
from pretrain.model import attention, compile
from pretrain.model.attention import Kernel
from pretrain.model.compile import compile_parts
from pretrain.planning.step_time import (
    CAST_BYTES,
    COMPILED_AUTOCAST_BYTES,
    COMPILED_LAYER_BYTES,
    FP8_LAYER_BYTES,
    FP8_WEIGHT_BYTES,
)

LENGTHS, OTHER_LENGTHS = [5, 9, 30, 1, 17], [20, 1, 1, 33, 7]  # as many tokens
GPU = torch.device("cuda")
TRITON = Path(os.environ.get("TRITON_FOLDER", "none")) / "triton"
TORCHAO = Path(os.environ.get("TORCHAO_FOLDER", "none")) / "torchao"


ONE_CALL = [Kernel.flash, Kernel.efficient]


@pytest.mark.parametrize("kernel", ONE_CALL)
def test_the_calls_of_a_gpu_give_the_numbers_of_one_call_a_sequence(kernel: Kernel) -> None:
    model, batch = random_model(small_settings(), 90, seed=0), random_batch(LENGTHS, 90, 0)
    plain = outcome(model, batch)
    with on_the_cpu(kernel):
        assert_near(outcome(model, batch), plain, 1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler asks
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kernel", ONE_CALL)
def test_compiled_it_is_one_graph_for_all_layers_and_all_batches_of_a_shape(
    kernel: Kernel, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_to_plain_code(*_: object) -> Kernel:
        assert not torch.compiler.is_compiling(), "compiled code asks for the kernel"
        return kernel

    monkeypatch.setattr(compile, "BACKEND", "aot_eager")
    model = random_model(
        small_settings(num_hidden_layers=3, attention_probs_dropout_prob=dropout), 90, seed=0
    )
    batches = [random_batch(n, 90, 0, masked=[1] * 5) for n in (LENGTHS, OTHER_LENGTHS)]
    with on_the_cpu(kernel):
        plain = [outcome(model, batch) for batch in batches]
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compile_parts(model, Precision.bf16, GPU)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "kernel_of", answer_to_plain_code)
            for batch, expected in zip(batches, plain, strict=True):
                assert_near(outcome(model, batch), expected, 1e-5)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2, "a layer and the loss"
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, 64, (8, 0), Kernel.flash),
        ("cuda", torch.float16, 256, (9, 0), Kernel.flash),
        ("cuda", torch.float16, 64, (7, 5), Kernel.efficient),  # a T4
        ("cuda", torch.float32, 64, (9, 0), Kernel.efficient),
        ("cuda", torch.bfloat16, 264, (9, 0), Kernel.efficient),
        ("cuda", torch.bfloat16, 64, (7, 5), Kernel.by_sequence),
        ("cuda", torch.bfloat16, 60, (9, 0), Kernel.by_sequence),
        ("cuda", torch.float64, 64, (9, 0), Kernel.by_sequence),
        ("cpu", torch.bfloat16, 64, (9, 0), Kernel.by_sequence),
    ],
)
def test_the_kernel_depends_on_type_head_size_and_gpu(
    device, dtype, head_dim, capability, expected, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "_fault", lambda *_: "")
    attention.kernel_of.cache_clear()
    assert attention.kernel_of(torch.device(device), dtype, head_dim) is expected
    attention.kernel_of.cache_clear()


def test_an_operator_that_fails_or_is_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(change: Callable[[Tensor], Tensor] = lambda out: out) -> str:
        def run(*given: Any) -> Tensor:
            return change(attention._efficient(*given))

        return attention._fault(run, torch.device("cpu"), torch.float32, 32)

    assert "_efficient_attention_forward" in trial(), "a CPU has no such kernel"
    with on_the_cpu(Kernel.efficient):
        assert trial() == ""
        assert "off by" in trial(lambda out: out + 1e-2)
        assert "off by" in trial(lambda out: out.detach() + 0 * out), "its gradient"


def test_a_gpu_whose_operator_fails_goes_by_sequence_and_says_why(monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(attention, "_fault", lambda *_: "no kernel image")
    attention.kernel_of.cache_clear()
    assert attention.kernel_of(GPU, torch.float16, 64) is Kernel.by_sequence
    attention.kernel_of.cache_clear()
    assert "one call per sequence, which is slower: no kernel image" in caplog.text


def test_autocast_decides_the_type_that_the_kernel_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        attention, "kernel_of", lambda *asks: asked.append(asks) or Kernel.by_sequence
    )
    model, batch = random_model(small_settings(), 90, seed=0), random_batch(LENGTHS, 90, 0)
    model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
    head_dim = model.settings.hidden_size // model.settings.num_attention_heads
    cpu = torch.device("cpu")
    assert asked == [(cpu, torch.float32, head_dim), (cpu, torch.bfloat16, head_dim)]


@pytest.mark.parametrize("kernel", ONE_CALL)
def test_its_dropout_zeroes_probabilities_and_their_gradients_alike(kernel: Kernel) -> None:
    lengths = [24, 8]
    batch = random_batch(lengths, 90, 0)
    qkv = torch.randn(32, 3, 2, 32, generator=torch.Generator().manual_seed(1))
    for start, n in ((0, 24), (24, 8)):
        qkv[start : start + n, 2] = torch.eye(n, 32).unsqueeze(1)  # so the output shows them
    qkv.requires_grad_()
    with on_the_cpu(kernel):
        torch.manual_seed(0)
        out = attention.attention(qkv, batch, 0.25).view(32, 2, 32)
        torch.manual_seed(0)
        again = attention.attention(qkv, batch, 0.25).view(32, 2, 32)
        other = attention.attention(qkv, batch, 0.25).view(32, 2, 32)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        (found,) = torch.autograd.grad((out * weight).sum(), qkv)
    assert torch.equal(out, again)
    assert not torch.equal(out, other)
    expected = torch.zeros_like(qkv)
    for part in (slice(0, 24), slice(24, 32)):
        block = qkv[part].detach().requires_grad_()
        q, k, v = (x.transpose(0, 1) for x in block.unbind(1))
        n = q.shape[1]
        kept = (out[part].detach().transpose(0, 1)[..., :n] != 0) / 0.75
        plain = ((q @ k.transpose(1, 2) * 32**-0.5).softmax(-1) * kept) @ v
        torch.testing.assert_close(plain.transpose(0, 1), out[part], rtol=1e-5, atol=1e-6)
        (expected[part],) = torch.autograd.grad((plain.transpose(0, 1) * weight[part]).sum(), block)
        assert 0.15 < (kept == 0).float().mean() < 0.35
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@functools.cache
def pretended(what: str) -> dict[str, Any]:
    """The output of `pretend_cuda.py`, in a process of its own."""
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(TRITON.parent), str(TORCHAO.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(root / "tests" / "support" / "pretend_cuda.py"), what],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


can_pretend = pytest.mark.skipif(
    shutil.which("g++") is None or torch.cuda.is_available(),
    reason="the stub that pretends a GPU needs g++ and a machine without one",
)


@pytest.mark.slow
@can_pretend
def test_a_step_of_bert_large_keeps_the_rules_of_a_gpu_in_bf16() -> None:
    """In bf16 with attention dropout and AdamW, and in bf16_autocast without and Muon."""
    steps = pretended("rules")["steps"]
    assert len(steps) == 2
    for step in steps:
        assert step["attention_calls"] == 48, "one per layer and direction, whatever the sequences"
        assert step["types_of_products"] == ["torch.bfloat16"]
        assert step["gradients_on_cuda"]


@pytest.mark.slow
@can_pretend
def test_each_of_these_rules_refuses_what_it_names() -> None:
    found = pretended("rules")
    assert found["accepted"]
    assert len(found["refused"]) == 7
    assert all(found["refused"].values()), found["refused"]


has_triton = pytest.mark.skipif(
    not TRITON.exists(),
    reason="for kernels: pip install --no-deps --target FOLDER triton (1 GB), TRITON_FOLDER=FOLDER",
)


@can_pretend
@pytest.mark.slow
@has_triton
def test_the_compiled_parts_build_for_an_h100() -> None:
    found = pretended("kernels")
    layer, loss = found["layer"], found["loss"]
    assert (layer["forward"]["products"], layer["backward"]["products"]) == (4, 8)
    assert len(layer["forward"]["cubins"]) <= 3, "GELU, and twice dropout, sum and LayerNorm in one"
    launched = {
        kind: sum(part[name]["launches"] for name in ("forward", "backward"))
        for kind, part in found.items()
    }
    assert launched["copies"] <= 22 < launched["autocast"], "as docs/performance.md says"
    assert launched["layer"] <= 20
    assert layer["forward"]["attention"]
    assert layer["backward"]["attention"]
    assert len(loss["forward"]["cubins"]) <= 2
    assert len(loss["backward"]["cubins"]) == 1
    passes = [part[name] for part in found.values() for name in ("forward", "backward")]
    assert all(size > 0 for pass_ in passes for size in pass_["cubins"])


@can_pretend
@pytest.mark.slow
@has_triton
def test_the_plan_knows_the_bytes_that_a_compiled_layer_moves_on_an_h100() -> None:
    """In bf16, and in autocast without its casts of weights, which the plan counts as such."""
    found, units = pretended("kernels"), 8_192 * 1_024

    def counted(part: str) -> float:
        return sum(found[part][name]["bytes"] for name in ("forward", "backward"))

    assert counted("layer") / units == pytest.approx(COMPILED_LAYER_BYTES, rel=0.02)
    casts = CAST_BYTES * found["autocast"]["parameters"]
    more = (counted("autocast") - casts - counted("layer")) / units
    assert more == pytest.approx(COMPILED_AUTOCAST_BYTES, rel=0.05)
    assert counted("copies") == pytest.approx(counted("autocast") - casts, rel=0.01)


@can_pretend
@pytest.mark.slow
@has_triton
@pytest.mark.skipif(not TORCHAO.exists(), reason="for FP8: TORCHAO_FOLDER, as in test_fp8.py")
def test_the_plan_knows_the_bytes_of_a_layer_in_fp8_on_an_h100() -> None:
    """From two numbers of tokens: what each costs, and what weights cost whatever the tokens."""
    found, units = pretended("kernels"), 8_192 * 1_024
    once, twice, plain = (
        sum(found[part][name]["bytes"] for name in ("forward", "backward"))
        for part in ("fp8", "fp8, twice the tokens", "layer")
    )
    assert (twice - once - plain) / units == pytest.approx(FP8_LAYER_BYTES, rel=0.03)
    of_weights = 2 * once - twice
    assert of_weights / found["fp8"]["parameters"] == pytest.approx(FP8_WEIGHT_BYTES, rel=0.1)
    assert found["fp8"]["forward"]["products"] + found["fp8"]["backward"]["products"] == 12
