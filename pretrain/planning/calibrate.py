"""Measures this machine as a cluster, in about a second: what conf/cluster/local.yaml leaves open.

Times the parts of a layer at the model's own sizes: its four products, the work between them, and
the attention of one sequence. A plan thus knows how fast small matrices are here.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pretrain.config.settings import ClusterSettings, ModelSettings
from pretrain.model.fp8 import CAPABILITY
from pretrain.planning.step_time import LAYER_BYTES

SECONDS = 0.06  # least duration of a measurement
ROWS = 1024  # tokens of the measured micro-batch
SEQUENCE = 128  # tokens of the sequence for attention
HEAD_ROWS = 0.15  # share of tokens that are masked
MOST_HIDDEN = 2048  # beyond it a product's rate no longer grows, only its memory
MOST_ENTRIES = 2**26  # of the tied matrix


def measure(cluster: ClusterSettings, model: ModelSettings, vocab_size: int) -> ClusterSettings:
    """`cluster` with the rates of one rank of this machine, for this model or a part of it."""
    if model.hidden_size > MOST_HIDDEN:
        model = dataclasses.replace(
            model, hidden_size=MOST_HIDDEN, num_attention_heads=MOST_HIDDEN // 64
        )
    wide = min(model.intermediate_size, 4 * MOST_HIDDEN)
    model = dataclasses.replace(model, intermediate_size=wide)
    vocab_size = min(vocab_size, MOST_ENTRIES // model.hidden_size)
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    has_bf16 = has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    kinds = {"fp32": torch.float32}
    if has_gpu:
        kinds["half"] = torch.bfloat16 if has_bf16 else torch.float16
    rates = {kind: _product_rate(model, vocab_size, device, dtype) for kind, dtype in kinds.items()}
    if has_gpu and torch.cuda.get_device_capability() >= CAPABILITY:
        rates["fp8"] = 2 * rates["half"]  # as in data sheets
    work_s = _seconds(_layer_work(model, device), device)
    score_flops = 12 * model.hidden_size * SEQUENCE**2
    sequence_s = _seconds(_attention(model, device), device) - score_flops / rates["fp32"]
    one_call = torch.ones(8, device=device)
    if has_gpu:
        name, memory = (
            torch.cuda.get_device_name(0),
            torch.cuda.get_device_properties(0).total_memory,
        )
    else:
        name = f"CPU, {torch.get_num_threads()} thread(s)"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return dataclasses.replace(
        cluster,
        gpu=name,
        is_cpu=not has_gpu,
        has_bf16=has_bf16,
        memory_gib=memory / 2**30,
        peak_tflops={kind: rate / 1e12 for kind, rate in rates.items()},
        bandwidth_gb_s=LAYER_BYTES["fp32"] * model.hidden_size * ROWS / work_s / 1e9,
        call_us=1e6 * _seconds(lambda: one_call.add(1), device),
        sequence_us=1e6 * max(0.0, sequence_s),
    )


def _product_rate(
    model: ModelSettings, vocab_size: int, device: torch.device, dtype: torch.dtype
) -> float:
    """FLOP/s of the matrix products of all layers, and of the head at masked positions."""
    hidden, inner, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    head_rows = int(HEAD_ROWS * ROWS)
    shapes = [
        (layers, ROWS, hidden, 3 * hidden), (layers, ROWS, hidden, hidden),
        (layers, ROWS, hidden, inner), (layers, ROWS, inner, hidden),
        (1, head_rows, hidden, hidden), (1, head_rows, hidden, vocab_size),
    ]  # fmt: skip
    seconds = flops = 0.0
    for times, rows, width, out in shapes:
        x = torch.ones(rows, width, device=device, dtype=dtype)
        w = torch.ones(out, width, device=device, dtype=dtype)
        seconds += times * _seconds(lambda x=x, w=w: F.linear(x, w), device)  # type: ignore[misc]
        flops += times * 2 * rows * width * out
    return flops / seconds


def _layer_work(model: ModelSettings, device: torch.device) -> Callable[[], object]:
    """A layer's work between its matrix products, forward and backward."""
    hidden, p = model.hidden_size, model.hidden_dropout_prob
    x = torch.ones(ROWS, hidden, device=device, requires_grad=True)
    wide = torch.ones(ROWS, model.intermediate_size, device=device, requires_grad=True)
    scale = torch.ones(hidden, device=device, requires_grad=True)
    biases = torch.ones(model.intermediate_size, device=device, requires_grad=True)

    def work() -> object:
        y = x
        for _ in range(2):
            y = F.layer_norm(y + F.dropout(y, p), (hidden,), scale, scale)
        # as in a layer: the parts are joined, and each bias has a gradient
        joined = torch.cat([y.view(8, -1, hidden)[part] for part in range(8)]) + scale
        narrow = (F.gelu(wide + biases)).sum()
        return torch.autograd.grad(joined.sum() + narrow, [x, wide, scale, biases])

    return work


def _attention(model: ModelSettings, device: torch.device) -> Callable[[], object]:
    """The attention of one sequence in one layer, forward and backward, as in the model."""
    from pretrain.model.attention import one_sequence

    heads = model.num_attention_heads
    shape = (SEQUENCE, 3, heads, model.hidden_size // heads)
    qkv = torch.ones(shape, device=device, requires_grad=True)
    ones = torch.ones((SEQUENCE, heads, shape[-1]), device=device)

    def attend() -> object:
        out = one_sequence(qkv, model.attention_probs_dropout_prob)
        return torch.autograd.grad(out, qkv, ones)

    return attend


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the best of a few rounds, because other programs only slow it down."""

    def round_s(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / calls

    once = round_s(1)
    calls = max(1, int(SECONDS / 3 / max(once, 1e-7)))
    return min(round_s(min(calls, 1000)) for _ in range(3))
