"""Layers that run again in the backward pass: the same numbers from less memory."""

from typing import Any

import pytest
import torch
from engine_samples import (
    MANY_MICRO_STEPS,
    VOCAB_SIZE,
    build_engine,
    build_model,
    gathered,
    global_batch,
)
from model_samples import random_batch, random_model, small_settings
from ranks_harness import run_ranks

from pretrain.config.settings import Precision
from pretrain.distributed.ranks import Ranks
from pretrain.model.bert import BertForPreTraining

FP32, AUTOCAST, BF16 = Precision.fp32, Precision.bf16_autocast, Precision.bf16


def trained(
    ranks: Ranks, stage: int, precision: Precision, activation_checkpointing: bool
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Sums of losses and norms of three steps with dropout, and the weights after them."""
    model = build_model(dropout=0.3)
    engine = build_engine(
        ranks, stage, precision, model, activation_checkpointing=activation_checkpointing
    )
    figures = []
    for position in range(3):
        batch = global_batch(position, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        result = engine.train_step(batch, 1e-3)
        figures.append((result.sums.tolist(), float(result.grad_norm)))
    return figures, gathered(engine)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "precision", "world_size"),
    [
        (1, FP32, 2),
        (3, FP32, 1),
        *(
            pytest.param(stage, precision, world_size, marks=pytest.mark.slow)
            for precision, stages in (
                (FP32, (0, 1, 2, 3)),
                (AUTOCAST, (0, 1, 2, 3)),
                (BF16, (1, 2, 3)),
            )
            for stage in stages
            for world_size in (1, 2)
        ),
    ],
)
def test_losses_gradients_and_weights_are_the_same_bit_for_bit(
    stage: int, precision: Precision, world_size: int
) -> None:
    arguments = {"stage": stage, "precision": precision}
    plain = run_ranks(trained, world_size, activation_checkpointing=False, **arguments)
    again = run_ranks(trained, world_size, activation_checkpointing=True, **arguments)
    assert [figures for figures, _ in again] == [figures for figures, _ in plain]
    (_, weights), (_, plain_weights) = again[0], plain[0]
    assert weights.keys() == plain_weights.keys()
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)


def layer_calls(ranks: Ranks, activation_checkpointing: bool) -> tuple[int, int]:
    """How often layers run in a training step of one micro-batch, and in an evaluation."""
    model = build_model()
    engine = build_engine(ranks, 1, model=model, activation_checkpointing=activation_checkpointing)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for layer in model.layers:
        layer.register_forward_pre_hook(count)  # the second run ends early: no hook behind it
    engine.train_step(global_batch(0), 1e-3)
    in_training = calls
    engine.evaluate_step(global_batch(0).micro_batches[0])
    return in_training, calls - in_training


@pytest.mark.distributed
def test_a_layer_runs_twice_in_training_and_once_in_an_evaluation() -> None:
    assert run_ranks(layer_calls, 1, activation_checkpointing=False) == [(2, 2)]
    assert run_ranks(layer_calls, 1, activation_checkpointing=True) == [(4, 2)]


def kept_bytes(model: BertForPreTraining, activation_checkpointing: bool) -> int:
    """What a forward pass keeps for the backward pass, parameters apart, each storage once.

    The inputs of recomputed layers, which are kept by other means than the rest, are added.
    """
    model.activation_checkpointing = activation_checkpointing
    batch = random_batch([64] * 8, VOCAB_SIZE, seed=0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, *_ = model(batch)
    loss.backward()
    inputs = 4 * batch.num_tokens * model.settings.hidden_size * model.settings.num_hidden_layers
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return saved + (inputs if activation_checkpointing else 0)


def test_activations_of_a_deep_model_take_a_sixth_of_the_memory() -> None:
    settings = small_settings(
        num_hidden_layers=12, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )
    model = random_model(settings, VOCAB_SIZE, seed=0)
    plain, recomputed = kept_bytes(model, False), kept_bytes(model, True)
    assert recomputed < plain / 6
