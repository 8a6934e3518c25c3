"""Matrix products of the layers in FP8: what is replaced, what is refused, what it costs."""

import os
import statistics
import sys
from pathlib import Path

import pytest
import torch
from engine_samples import MANY_MICRO_STEPS, global_batch, optim_settings
from model_samples import random_batch, random_model, small_settings
from ranks_harness import run_ranks
from torch import nn

from data_prep.core.config import SettingsError, compose
from data_prep.core.objectives import Pairing
from pretrain.config.checks import check
from pretrain.config.settings import Compile, Device, EngineSettings, Precision, Settings
from pretrain.distributed.ranks import Ranks
from pretrain.engine.engine import Engine
from pretrain.model.bert import BertForPreTraining
from pretrain.model.fp8 import use_fp8

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TORCHAO = Path(os.environ.get("TORCHAO_FOLDER", "none"))


def needs_torchao(test):
    """Mark a test of torchao, whose mere presence changes what `transformers` imports."""
    reason = "for FP8: pip install --no-deps --target FOLDER torchao, TORCHAO_FOLDER=FOLDER"
    is_missing = not (TORCHAO / "torchao").is_dir()
    return pytest.mark.slow(pytest.mark.skipif(is_missing, reason=reason)(test))


def in_fp8(model: BertForPreTraining) -> None:
    """In a rank alone: it has modules of its own."""
    sys.path.append(str(TORCHAO))
    use_fp8(model, CPU)


def replaced(ranks: Ranks) -> set[str]:
    model = random_model(small_settings(), 90, seed=0)
    before = dict(model.named_parameters())
    in_fp8(model)
    after = dict(model.named_parameters())
    assert [*after] == [*before]
    assert all(after[name] is before[name] for name in before)
    found = {name for name, m in model.named_modules() if type(m).__name__ == "Float8Linear"}
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in found)
    return found


@needs_torchao
def test_the_layers_linear_modules_are_replaced_and_no_parameter() -> None:
    names = ("qkv", "attention_out", "feed_forward_in", "feed_forward_out")
    expected = {f"layers.{layer}.{name}" for layer in (0, 1) for name in names}
    assert run_ranks(replaced, 1) == [expected]


def losses_before_and_after(ranks: Ranks) -> tuple[float, float]:
    model, batch = random_model(small_settings(), 90, seed=0), random_batch([5, 9, 30, 1], 90, 0)
    plain = model(batch)[0].item()
    in_fp8(model)
    loss = model(batch)[0]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    return plain, loss.item()


@needs_torchao
def test_products_are_rounded_to_8_bits() -> None:
    ((plain, found),) = run_ranks(losses_before_and_after, 1)
    assert found != plain
    assert found == pytest.approx(plain, rel=0.03)


def test_a_gpu_without_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(SettingsError, match=r"capability 8\.9 .* has 8\.0; or set engine\.fp8=f"):
        use_fp8(random_model(small_settings(), 90, seed=0), GPU)


def test_sizes_that_the_products_do_not_take_are_refused() -> None:
    model = random_model(small_settings(intermediate_size=40), 90, seed=0)
    with pytest.raises(SettingsError, match=r"model\.intermediate_size is 40; change it, or set"):
        use_fp8(model, CPU)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(SettingsError, match=r"pip install torchao, the extra `fp8`, or set"):
        use_fp8(random_model(small_settings(), 90, seed=0), CPU)


@pytest.mark.parametrize(
    ("typed", "cure"),
    [
        (["engine=fp32"], "set engine.precision=bf16"),
        (["engine=bf16", "engine.zero_stage=3"], "set engine.zero_stage=1"),
        (["engine=bf16_autocast", "engine.zero_stage=0"], "set engine.zero_stage=1"),
    ],
)
def test_fp8_without_copies_of_the_weights_in_bfloat16_is_refused(typed, cure) -> None:
    settings, _ = compose("config", Settings, ["+model=base", *typed, "engine.fp8=true"])
    with pytest.raises(SettingsError, match=cure):
        check(settings, 1)


def losses(ranks: Ranks, fp8: bool) -> list[float]:
    """Of 40 updates on the same four batches, which can be learnt by heart."""
    if fp8:
        sys.path.append(str(TORCHAO))
    settings = small_settings(hidden_size=48, initializer_range=0.2)
    model = BertForPreTraining(settings, 89, Pairing.nsp)
    model.initialize(torch.Generator().manual_seed(0))
    engine = EngineSettings(
        1, Precision.bf16, MANY_MICRO_STEPS, False, Compile.false, 1.0, Device.cpu, fp8=fp8
    )
    trained, found = Engine(model, optim_settings(), engine, ranks), []
    for step in range(40):
        batch = global_batch(step % 4)
        sums = trained.train_step(batch, 5e-3 * min(1, (step + 1) / 10)).sums.tolist()
        found.append(sums[0] / batch.num_masked + sums[1] / batch.num_sequences)
    return found


@needs_torchao
@pytest.mark.distributed
def test_losses_in_fp8_stay_near_those_in_bf16() -> None:
    (plain,), (found,) = (run_ranks(losses, 1, timeout_s=240, fp8=fp8) for fp8 in (False, True))
    assert plain[-1] < 0.75 * plain[0], "there is something to learn"
    differences = [abs(ours - theirs) for ours, theirs in zip(found, plain, strict=True)]
    assert 1e-4 < statistics.mean(differences) < 0.1
