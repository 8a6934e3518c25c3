"""The memory model, against what autograd keeps and what an engine holds."""

import dataclasses
import functools

import pytest
import torch
from made_manifests import token_rule

from data_prep.core.config import compose
from data_prep.core.objectives import Pairing
from pretrain.config.settings import ClusterSettings, Precision, Settings
from pretrain.model.bert import BertForPreTraining
from pretrain.model.flops import parameters
from pretrain.planning.memory import (
    GIB,
    activation_bytes,
    largest_budget,
    logit_bytes,
    memory,
    states,
)
from pretrain.training.memory_probe import fake_batch

TOKENS, VOCAB = 1024, 1024
RULE = token_rule(VOCAB)


@functools.cache
def engine_settings(*typed: str) -> Settings:
    return compose("config", Settings, ["+model=large", *typed])[0]


def kept_bytes(model: BertForPreTraining, seq_len: int, autocast: bool) -> int:
    """Bytes that autograd keeps for the backward pass, each tensor once, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        _held = model(fake_batch(TOKENS, seq_len, RULE, VOCAB))
    return sum(kept.values())


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16_autocast, Precision.bf16])
@pytest.mark.parametrize(
    ("layers", "seq_len", "dropout", "score_dropout"),
    [(2, 128, 0.1, 0.0), (4, 64, 0.0, 0.0), (3, 128, 0.1, 0.1)],
)
def test_activations_are_what_autograd_keeps(
    precision, layers, seq_len, dropout, score_dropout
) -> None:
    settings = dataclasses.replace(
        engine_settings("model=tiny").model, num_hidden_layers=layers,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=score_dropout,
    )  # fmt: skip
    model = BertForPreTraining(settings, VOCAB, Pairing.nsp)
    if precision is Precision.bf16:
        model = model.to(torch.bfloat16)
    is_autocast = precision is Precision.bf16_autocast
    kept = kept_bytes(model.train(), seq_len, is_autocast)
    predicted = activation_bytes(
        settings, precision, TOKENS, seq_len, is_cpu=True, recomputes=False
    )
    predicted += 4 * VOCAB * 0.16 * TOKENS  # of the logits, log-softmax alone is kept
    predicted += 2 * model.num_parameters if is_autocast else 0
    assert predicted == pytest.approx(kept, rel=0.10)


def cluster_of(name: str) -> ClusterSettings:
    return engine_settings(f"cluster={name}").cluster


@pytest.mark.parametrize(("stage", "bytes_a_parameter"), [(0, 16), (1, 8), (2, 4), (3, 0)])
def test_each_stage_shards_what_it_is_defined_to(stage: int, bytes_a_parameter: float) -> None:
    """Rajbhandari et al. 2019 (ZeRO): 16 bytes of fp32 states, and the rest on many ranks."""
    engine = dataclasses.replace(
        engine_settings().engine, zero_stage=stage, precision=Precision.fp32
    )
    weights, gradients, optimizer, _ = states(1_000_000, engine, 10**9)
    assert (weights + gradients + optimizer) / 1e6 == pytest.approx(bytes_a_parameter, abs=0.01)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_largest_budget_fits_and_one_sequence_more_does_not(stage, recomputes) -> None:
    settings, cluster = engine_settings(), cluster_of("rtx4090")
    engine = dataclasses.replace(
        settings.engine, zero_stage=stage, precision=Precision.bf16_autocast
    )
    model = settings.model
    count = parameters(model, 30_522, Pairing.nsp)

    def total(tokens: int) -> float:
        return memory(
            model, 30_522, count, engine, 512, cluster, 8, recomputes, tokens
        ).total / GIB  # fmt: skip

    most = largest_budget(model, 30_522, count, engine, 512, cluster, 8, recomputes)
    assert most % 512 == 0
    assert total(most) <= cluster.memory_gib < total(most + 512)


def test_memory_grows_with_tokens_and_shrinks_with_ranks_and_recomputation() -> None:
    settings, cluster = engine_settings("engine=bf16"), cluster_of("dgx_a100")
    model, engine = settings.model, settings.engine

    def total(tokens: int = 8192, ranks: int = 8, recomputes: bool = False) -> float:
        return memory(
            model, 30_522, 336_000_000, engine, 128, cluster, ranks, recomputes, tokens
        ).total  # fmt: skip

    assert total(tokens=16_384) > total() > total(ranks=64)
    assert total(recomputes=True) < 0.7 * total()


def test_the_parts_are_named_and_add_up() -> None:
    settings, cluster = engine_settings("engine=bf16"), cluster_of("dgx_a100")
    found = memory(settings.model, 30_522, 1000, settings.engine, 128, cluster, 1, False)
    assert found.total == pytest.approx(sum(dataclasses.asdict(found).values()))
    assert found.logits == logit_bytes(30_522, Precision.bf16, 8192)


def test_shards_within_a_node_take_the_memory_of_a_run_on_one_node() -> None:
    settings = engine_settings("engine=bf16", "engine.shard=node", "cluster=dgx_a100")
    of = [
        memory(
            settings.model, VOCAB, 10**9, settings.engine, 128, settings.cluster, ranks, False,
            TOKENS,
        )
        for ranks in (4, 8, 128)
    ]  # fmt: skip
    assert of[0].optimizer > of[1].optimizer
    assert of[1] == of[2]
