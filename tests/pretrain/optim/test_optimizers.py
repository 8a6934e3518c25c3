"""Parameter groups to the unit, and BertAdam against google-research/bert in float64."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import optim_settings
from model_samples import random_batch, random_model, small_settings
from numpy.typing import NDArray

from data_prep.core.config import compose
from data_prep.core.objectives import Pairing
from pretrain.config.settings import (
    OptimizerName,
    OptimSettings,
    Settings,
    TrustRatio,
)
from pretrain.model.bert import BertForPreTraining
from pretrain.optim.adam import BertAdam
from pretrain.optim.optimizers import build_optimizer, parameter_groups

ADAMS = [OptimizerName.adamw, OptimizerName.bert_adam]


@pytest.mark.parametrize(
    ("size", "multiple", "decay", "no_decay"),
    [
        ("base", 1, 109_951_488, 154_940),
        ("large", 1, 335_869_952, 356_156),
        ("base", 8, 109_956_096, 154_946),
        ("large", 8, 335_876_096, 356_162),
    ],
)
def test_group_sizes_are_the_published_ones_to_the_unit(size, multiple, decay, no_decay) -> None:
    overrides = [f"+model={size}", f"model.pad_vocab_size_multiple_of={multiple}"]
    with torch.device("meta"):
        settings = compose("config", Settings, overrides)[0].model
        model = BertForPreTraining(settings, 30_522, Pairing.nsp)
    groups = parameter_groups(model, 0.01)
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [decay, no_decay]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


def test_without_pairs_the_groups_are_smaller_by_pooler_and_head() -> None:
    sizes = {}
    for pairing in Pairing:
        model = random_model(small_settings(), 50, 0, pairing)
        groups = parameter_groups(model, 0.01)
        sizes[pairing] = [sum(p.numel() for p in group["params"]) for group in groups]
        assert sum(sizes[pairing]) == model.num_parameters
    decay, no_decay = sizes[Pairing.nsp]
    assert sizes[Pairing.sop] == [decay, no_decay]
    assert sizes[Pairing.none] == [decay - 32 * 32 - 32 * 2, no_decay - 32 - 2]


def test_biases_and_layer_norms_do_not_decay_and_all_others_do() -> None:
    model = random_model(small_settings(), 50, seed=0)
    decay, no_decay = ({id(p) for p in group["params"]} for group in parameter_groups(model, 0.01))
    for name, parameter in model.named_parameters():
        is_excluded = "norm" in name or name.endswith("bias")
        assert (id(parameter) in no_decay) == is_excluded, name
        assert (id(parameter) in decay) == (not is_excluded), name
    assert len(decay) + len(no_decay) == len(list(model.parameters()))


def google_adam(
    w: NDArray[np.float64], gradients: list[NDArray[np.float64]], rates: list[float], decay: float
) -> NDArray[np.float64]:
    """AdamWeightDecayOptimizer.apply_gradients, line by line, in float64."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        m = 0.9 * m + (1.0 - 0.9) * gradient
        v = 0.999 * v + (1.0 - 0.999) * np.square(gradient)
        update = m / (np.sqrt(v) + 1e-6)
        update = update + decay * w
        w = w - rate * update
    return w


def drawn(seed: int, *shape: int) -> NDArray[np.float64]:
    """Normal draws that fp32 holds exactly, so that both sides start from the same numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(float)


@pytest.mark.parametrize("scale", [1.0, 1e-5])  # at 1e-5 eps is no smaller than sqrt(v)
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_bert_adam_equals_google_s_code_in_float64(decay: float, scale: float) -> None:
    weights = drawn(0, 7, 11)
    gradients = [g.astype(np.float32).astype(float) for g in drawn(1, 12, 7, 11) * scale]
    rates = [1e-2 * step / 6 for step in range(12)]
    parameter = torch.nn.Parameter(torch.from_numpy(weights).float())
    groups = [{"params": [parameter], "weight_decay": decay}]
    optimizer = build_optimizer(groups, named(OptimizerName.bert_adam))
    assert isinstance(optimizer, BertAdam)
    for gradient, rate in zip(gradients, rates, strict=True):
        parameter.grad = torch.from_numpy(gradient).float()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    expected = google_adam(weights, gradients, rates, decay)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-6)
    moved = np.abs(expected - weights).max()
    assert moved > 0.1, "the test compares nothing"
    state = optimizer.state[parameter]
    assert set(state) == {"exp_avg", "exp_avg_sq", "step"}
    assert state["step"].item() == 12


def named(name: OptimizerName) -> OptimSettings:
    """Without bias correction; all take a trust ratio, which is LAMB's alone, and Muon's values."""
    own = {"learning_rate": 1e-2, "bias_correction": False, "trust_ratio": TrustRatio.all}
    muon = {"momentum": 0.9, "matrix_rate": 1.0, "newton_schulz_steps": 5}
    return optim_settings(name=name, **own, **muon)


def trained(optimizer: torch.optim.Optimizer, gradients: list[dict[Any, torch.Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in step.items():
            parameter.grad = gradient.clone()  # LAMB uses it up
        optimizer.step()


@pytest.mark.parametrize("name", ADAMS)
def test_flat_shards_of_the_tensors_move_as_the_tensors_do(name: OptimizerName) -> None:
    whole = [torch.nn.Parameter(torch.from_numpy(drawn(i, 6, 5)).float()) for i in range(2)]
    flat = torch.cat([p.detach().flatten() for p in whole])
    shards = [torch.nn.Parameter(piece.clone()) for piece in flat.split(17)]
    gradients = torch.from_numpy(drawn(9, 5, 60)).float()
    by_tensor = [
        {p: g.view(6, 5) for p, g in zip(whole, step.split(30), strict=True)} for step in gradients
    ]
    by_shard = [dict(zip(shards, step.split(17), strict=True)) for step in gradients]
    for params, steps in ((whole, by_tensor), (shards, by_shard)):
        optimizer = build_optimizer([{"params": params, "weight_decay": 0.01}], named(name))
        trained(optimizer, steps)
    together = torch.cat([p.detach().flatten() for p in whole])
    # not to the last bit: the kernel rounds the odd elements at a tensor's end otherwise
    apart = torch.cat([p.detach() for p in shards])
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-7)
    assert (together - flat).abs().min() > 1e-3


@pytest.mark.parametrize("name", [*ADAMS, OptimizerName.lamb])
def test_a_saved_and_loaded_optimizer_continues_bit_for_bit(name: OptimizerName) -> None:
    gradients = [torch.from_numpy(g).float() for g in drawn(5, 8, 10)]

    def run(break_after: int) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.from_numpy(drawn(4, 10)).float())
        optimizer = build_optimizer([{"params": [parameter], "weight_decay": 0.01}], named(name))
        trained(optimizer, [{parameter: g} for g in gradients[:break_after]])
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer = build_optimizer([{"params": [parameter], "weight_decay": 0.01}], named(name))
        optimizer.load_state_dict(saved)
        trained(optimizer, [{parameter: g} for g in gradients[break_after:]])
        return parameter.detach()

    assert torch.equal(run(break_after=8), run(break_after=3))


@pytest.mark.parametrize("pairing", list(Pairing))
@pytest.mark.parametrize("name", sorted({*OptimizerName} - {OptimizerName.plugin}, key=str))
def test_one_step_moves_every_parameter_the_pooler_included(name, pairing) -> None:
    model = random_model(small_settings(), 50, 0, pairing)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = build_optimizer(parameter_groups(model, 0.01, name), named(name))
    mlm_loss, nsp_loss, _, _ = model(random_batch([64, 40, 64], 50, seed=0))
    (mlm_loss + nsp_loss).backward()
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[key]), key


def test_adamw_is_torch_s_fused_one_with_the_settings_given() -> None:
    groups = parameter_groups(random_model(small_settings(), 50, seed=0), 0.01)
    optimizer = build_optimizer(groups, named(OptimizerName.adamw))
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (0.01, 0.0), strict=True):
        assert group["fused"]
        assert (group["lr"], group["betas"], group["eps"]) == (1e-2, (0.9, 0.999), 1e-6)
        assert group["weight_decay"] == decay
