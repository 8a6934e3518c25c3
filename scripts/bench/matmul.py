"""What bounds a step: the model's bare matrix products, shape by shape, and its attention alone.

    python -m scripts.bench.matmul [model=large] [tokens=16384] [masked=2457] [lengths=wikipedia]
        [device=auto] [precision=auto] [threads=1] [rounds=5]

Each shape forward and for both gradients; attention forward and backward over sequences of these
lengths, `tokens` in all. TFLOP/s of useful work.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch

from data_prep.core.config import compose
from pretrain.config.settings import ModelSettings, Settings
from pretrain.data.packing import PackedBatch
from pretrain.model.attention import attention
from scripts.baselines.synthetic_shards import typical_lengths
from scripts.bench.harness import Arguments, arguments, in_turn, machine
from scripts.bench.step import (
    VOCAB_SIZE,
    Stopwatch,
    batch_of,
    device_called,
    is_bf16_called,
    stopwatch,
)

DEFAULTS: Arguments = {
    "model": "large",
    "lengths": "wikipedia",
    "tokens": 16_384,
    "masked": 2457,  # 15 %
    "device": "auto",
    "precision": "auto",
    "threads": 1,
    "rounds": 5,
}
REPEATS = 10  # of a product between two looks at the clock


def main() -> None:
    given = arguments(sys.argv[1:], DEFAULTS)
    torch.set_num_threads(int(given["threads"]))
    device = device_called(str(given["device"]))
    dtype = torch.bfloat16 if is_bf16_called(str(given["precision"]), device) else torch.float32
    settings, _ = compose("config", Settings, [f"+model={given['model']}"])
    model, tokens, masked = settings.model, int(given["tokens"]), int(given["masked"])
    seconds = stopwatch(device, "processor")
    hidden, inner = model.hidden_size, model.intermediate_size
    shapes = {
        "queries, keys, values": (tokens, hidden, 3 * hidden),
        "attention's output": (tokens, hidden, hidden),
        "feed-forward, in": (tokens, hidden, inner),
        "feed-forward, out": (tokens, inner, hidden),
        "head over the vocabulary": (masked, hidden, VOCAB_SIZE),
    }
    variants = {
        f"{name}, {way}": _product(shape, way, device, dtype, seconds)
        for name, shape in shapes.items()
        for way in ("forward", "gradient of the input", "gradient of the weight")
    }
    mean = typical_lengths(str(given["lengths"]), 1024, np.random.default_rng(1)).mean()
    count = max(1, round(tokens / mean))
    batch, _ = batch_of(str(given["lengths"]), count, device)
    for p in (0.0, 0.1):
        name = f"attention, forward and backward, dropout {p}"
        variants[name] = _attention(model, batch, p, dtype, seconds)
    rates = in_turn(variants, int(given["rounds"]))
    medians = {name: statistics.median(values) / 1e12 for name, values in rates.items()}
    for name, rate in medians.items():
        spread = f"{min(rates[name]) / 1e12:.4g} to {max(rates[name]) / 1e12:.4g}"
        print(f"{name:60}  {rate:9.4g} TFLOP/s   ({spread})")
    facts = {"device": str(device), "settings": given, "sequences": len(batch.lengths)}
    print(json.dumps({"benchmark": "matmul", "tflop_s": medians, **facts, "machine": machine()}))


def _product(
    shape: tuple[int, int, int],
    way: str,
    device: torch.device,
    dtype: torch.dtype,
    seconds: Stopwatch,
) -> Callable[[], float]:
    rows, k, n = shape
    x, weight, grad = (
        torch.randn(*size, device=device, dtype=dtype) for size in ((rows, k), (n, k), (rows, n))
    )
    pairs = {
        "forward": (x, weight.T),
        "gradient of the input": (grad, weight),
        "gradient of the weight": (grad.T, x),
    }
    left, right = pairs[way]

    def run() -> None:
        for _ in range(REPEATS):
            left @ right

    return lambda: REPEATS * 2.0 * rows * k * n / seconds(run)


def _attention(
    model: ModelSettings,
    batch: PackedBatch,
    dropout_p: float,
    dtype: torch.dtype,
    seconds: Stopwatch,
) -> Callable[[], float]:
    heads, hidden = model.num_attention_heads, model.hidden_size
    shape = (sum(batch.lengths), 3, heads, hidden // heads)
    qkv = torch.randn(*shape, device=batch.cu_seqlens.device, dtype=dtype).requires_grad_()

    def run() -> None:
        for _ in range(REPEATS):
            out = attention(qkv, batch, dropout_p)
            torch.autograd.backward(out, torch.ones_like(out))

    flop = 3 * 4.0 * hidden * sum(n**2 for n in batch.lengths)
    return lambda: REPEATS * flop / seconds(run)


if __name__ == "__main__":
    main()
