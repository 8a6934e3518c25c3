"""What a plan adds for Muon, against torch's count of operations and the optimizer's own state."""

import dataclasses

import pytest
import torch
from model_samples import random_model, small_settings
from torch.utils.flop_counter import FlopCounterMode

from data_prep.core.config import compose
from pretrain.config.settings import OptimizerName, Precision, Settings
from pretrain.optim.matrices import Matrix, matrix_elements
from pretrain.optim.newton_schulz import orthogonal
from pretrain.optim.optimizers import parameter_groups
from pretrain.planning.memory import states
from pretrain.planning.muon import with_muon, work
from pretrain.planning.step_time import Step

NOTHING = Step(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_the_operations_of_an_orthogonalisation_are_those_that_torch_counts(
    shape: tuple[int, int],
) -> None:
    with FlopCounterMode(display=False) as counted:
        orthogonal(torch.ones(3, *shape), 4)
    assert counted.get_total_flops() == 3 * Matrix("", 0, *shape).flops(4)


def test_memory_lacks_the_second_moments_of_the_matrices() -> None:
    settings = small_settings()
    groups = parameter_groups(random_model(settings, 50, seed=0), 0.01, OptimizerName.muon)
    elements = sum(p.numel() for p in groups[0]["params"])
    assert matrix_elements(settings, OptimizerName.muon) == elements
    assert matrix_elements(settings, OptimizerName.adamw) == 0
    engine = compose("config", Settings, ["+model=tiny"])[0].engine
    for stage, ranks in ((0, 1), (1, 4)):
        known = dataclasses.replace(engine, zero_stage=stage, precision=Precision.fp32)
        more, less = (states(10**6, known, ranks, count)[2] for count in (0, elements))
        assert more - less == 4 * elements / ranks


def test_products_and_sent_bytes_become_seconds_of_the_hardware() -> None:
    settings = compose("config", Settings, ["+model=large", "optim=muon", "cluster=dgx_h100"])[0]
    model, optim, cluster = settings.model, settings.optim, settings.cluster
    engine = dataclasses.replace(settings.engine, zero_stage=3, precision=Precision.bf16)
    added = with_muon(NOTHING, model, optim, engine, cluster, 8)
    flops, elements = work(model, 3, 5, 8)
    rate = 1e12 * cluster.peak_tflops["half"] * cluster.gemm_share["half"]
    assert added.update == pytest.approx(flops / rate)
    assert added.communication == pytest.approx(2 * elements / (1e9 * cluster.link_gb_s))
    fp32 = dataclasses.replace(engine, precision=Precision.fp32)
    assert with_muon(NOTHING, model, optim, fp32, cluster, 8).update > 2 * added.update
    assert with_muon(NOTHING, model, optim, engine, cluster, 1).communication == 0
    adamw = dataclasses.replace(optim, name=OptimizerName.adamw)
    assert with_muon(NOTHING, model, adamw, engine, cluster, 8) == NOTHING
