"""The parts of our training step, each run alone, forward and backward.

A part runs on inputs of the step's own shapes. The rest of the step is the sums between sublayers,
the accumulation of gradients, and a cache that a part alone finds warm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.settings import ModelSettings
from pretrain.data.packing import PackedBatch
from pretrain.model.attention import attention
from pretrain.model.bert import BertForPreTraining, Layer
from scripts.bench.parts.harness import in_turn, medians

Part = Callable[[], None]


def parts_of(
    model: BertForPreTraining, batch: PackedBatch, optimizer: torch.optim.Optimizer, is_bf16: bool
) -> dict[str, tuple[Part, int]]:
    """Parts by name, each with the number of times that a step runs it."""
    settings, device = model.settings, batch.input_ids.device
    layer = model.layers[0]
    assert isinstance(layer, Layer)
    hidden, depth = settings.hidden_size, settings.num_hidden_layers
    dtype = torch.bfloat16 if is_bf16 else torch.float32  # of the outputs of linear layers
    tokens = batch.input_ids.numel()

    def random(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=device, dtype=of).requires_grad_()

    x = random(tokens, hidden)
    inner = random(tokens, settings.intermediate_size, of=dtype)
    heads = settings.num_attention_heads
    qkv = random(tokens, 3, heads, hidden // heads, of=dtype)

    def alone(forward: Callable[[], Tensor | tuple[Tensor, ...]]) -> Part:
        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
                out = forward()
            outs = out if isinstance(out, tuple) else (out,)
            torch.autograd.backward(outs, [torch.ones_like(one) for one in outs])

        return run

    def linears() -> tuple[Tensor, ...]:
        between = (layer.qkv, layer.attention_out, layer.feed_forward_in)
        return (*(linear(x) for linear in between), layer.feed_forward_out(inner))

    def loss_heads() -> Tensor:
        logits = model.mlm_head(x[batch.masked_positions])
        loss, _ = model.token_sums(logits, batch.labels)
        pooled = torch.tanh(model.pooler(x[batch.cls_positions]))
        pair_logits = model.pair_head(pooled).float()
        return loss + F.cross_entropy(pair_logits, batch.next_sentence_labels, reduction="sum")

    def update() -> None:
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

    p = settings.attention_probs_dropout_prob
    found = {
        "embeddings": (alone(lambda: model.embeddings(batch)), 1),
        "linear layers": (alone(linears), depth),
        "attention": (alone(lambda: attention(qkv, batch, p)), depth),
        "GELU": (alone(lambda: F.gelu(inner, approximate=layer.gelu_form)), depth),
        "LayerNorm": (alone(lambda: layer.attention_norm(x)), 2 * depth),
        "heads": (alone(loss_heads), 1),
        "optimizer": (update, 1),
    }
    if settings.hidden_dropout_prob > 0:
        found["dropout"] = (alone(lambda: layer.dropout(x)), 2 * depth)
    return found


def seconds_of_parts(
    found: dict[str, tuple[Part, int]], seconds: Callable[[Part], float], rounds: int
) -> dict[str, float]:
    """Seconds per step of each part: the median over the rounds."""

    def timed(part: Part, times: int) -> Callable[[], float]:
        return lambda: times * seconds(part)

    return medians(in_turn({name: timed(*part) for name, part in found.items()}, rounds))


def matrix_rate(
    model: ModelSettings, device: torch.device, is_bf16: bool
) -> tuple[Callable[[], None], float]:
    """A function that runs matrix products of the model's shapes, and their FLOP.

    The products are (rows, H) x (H, n) for n = H, 3H and the feed-forward's width, repeated for
    long enough to be timed.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    rows, least = (16_384, 2e13) if device.type == "cuda" else (2048, 2e10)
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    x = torch.randn(rows, hidden, device=device, dtype=dtype)
    widths = (hidden, 3 * hidden, inner)
    weights = [torch.randn(n, hidden, device=device, dtype=dtype) for n in widths]
    flop = 2.0 * rows * hidden * sum(widths)
    repeats = max(1, int(least / flop))

    def run() -> None:
        with torch.no_grad():
            for _ in range(repeats):
                for weight in weights:
                    nn.functional.linear(x, weight)

    return run, flop * repeats
