"""The bounds of a step: the model's bare matrix products, shape by shape, and its attention alone.

    python -m scripts.bench.matmul [model=large] [tokens=16384] [masked=2457] [lengths=wikipedia]
        [device=auto] [precision=auto] [threads=1] [rounds=5]

Each shape is timed forward and for both gradients. Attention runs forward and backward over
sequences of these lengths, `tokens` in all. masked is the number of masked positions (15 %). The
unit is TFLOP/s of useful work.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pretrain.config.settings import ModelSettings
from pretrain.data.packing import PackedBatch
from pretrain.model.attention import attention
from scripts.baselines.synthetic_shards import VOCAB_SIZE, typical_lengths
from scripts.bench.parts import harness
from scripts.bench.parts.harness import Record, Stopwatch
from scripts.bench.step import batch_of

REPEATS = 10  # calls between two readings of the clock
WAYS = ("forward", "gradient of the input", "gradient of the weight")


@harness.benchmark("matmul")
def main(
    model: str = "large",
    lengths: str = "wikipedia",
    tokens: int = 16_384,
    masked: int = 2457,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    rounds: int = 5,
) -> Record:
    """The benchmark."""
    on = harness.choose_device(device)
    dtype = torch.bfloat16 if harness.uses_bf16(precision, on) else torch.float32
    sizes, seconds = harness.settings_of(model).model, harness.stopwatch(on)
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    shapes = {
        "queries, keys, values": (tokens, hidden, 3 * hidden),
        "attention's output": (tokens, hidden, hidden),
        "feed-forward, in": (tokens, hidden, inner),
        "feed-forward, out": (tokens, inner, hidden),
        "head over the vocabulary": (masked, hidden, VOCAB_SIZE),
    }
    variants = {
        f"{name}, {way}": _product(shape, way, on, dtype, seconds)
        for name, shape in shapes.items()
        for way in WAYS
    }
    mean = typical_lengths(lengths, 1024, np.random.default_rng(1)).mean()
    batch, _ = batch_of(lengths, max(1, round(tokens / mean)), on)
    for p in (0.0, 0.1):
        name = f"attention, forward and backward, dropout {p}"
        variants[name] = _attention(sizes, batch, p, dtype, seconds)
    measured = harness.in_turn(variants, rounds)
    found = harness.medians(measured)
    for name, rates in measured.items():
        spread = f"{min(rates):.4g} to {max(rates):.4g}"
        print(f"{name:60}  {found[name]:9.4g} TFLOP/s   ({spread})")
    return {"tflop_s": found, "device": str(on), "sequences": len(batch.lengths)}


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
    left, right = dict(zip(WAYS, ((x, weight.T), (grad, weight), (grad.T, x)), strict=True))[way]

    return _rate(lambda: left @ right, 2.0 * rows * k * n, seconds)


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

    def forward_and_backward() -> None:
        out = attention(qkv, batch, dropout_p)
        torch.autograd.backward(out, torch.ones_like(out))

    flop = 3 * 4.0 * hidden * sum(n**2 for n in batch.lengths)
    return _rate(forward_and_backward, flop, seconds)


def _rate(call: Callable[[], object], flop: float, seconds: Stopwatch) -> Callable[[], float]:
    def repeat() -> None:
        for _ in range(REPEATS):
            call()

    return lambda: REPEATS * flop / 1e12 / seconds(repeat)


if __name__ == "__main__":
    harness.run(main)
