"""A training step of our packed model next to stock `transformers`, and its parts.

    python -m scripts.bench.step [model=small] [lengths=wikipedia] [sequences=8] [dropout=0.0]
        [device=auto] [precision=auto] [clock=processor] [threads=1] [rounds=3] [parts=1] [engine=1]

A step is forward, backward and fused AdamW. All variants have the same weights, sizes, precision
and sequences, run in turn, and are timed only after their losses were found equal.

lengths    wikipedia, books, or a number of tokens: at 128 neither side is padded
precision  fp32, bf16 (autocast), or auto: bf16 on CUDA
clock      processor, which other processes hardly disturb, or wall; on CUDA always wall
parts=1    also time the parts of our step alone
engine=1   also time the same step under DeepSpeed with ZeRO 1, on one rank; on CUDA both are
           compiled

Only real tokens count. The share of the matrix-product peak is the model's arithmetic
(pretrain.model.flops, real tokens, masked positions alone in the head) over what plain products of
the model's shapes reach in the same rounds: padding counts as waste.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pretrain.config.settings import Compile, Settings
from pretrain.data.packing import PackedBatch, pack
from pretrain.model.flops import Lengths, flops
from scripts.baselines.synthetic_shards import VOCAB_SIZE, global_batch, open_synthetic_shards
from scripts.baselines.transformers_step import (
    check_equal_losses,
    optimizer_of,
    packed_model,
    variants,
)
from scripts.bench.parts import harness
from scripts.bench.parts.harness import Record
from scripts.bench.parts.step_parts import matrix_rate, parts_of, seconds_of_parts

PRODUCTS = "matrix products"
UNDER_ENGINE = "ours, under the engine"


@harness.benchmark("step")
def main(
    model: str = "small",
    lengths: str = "wikipedia",
    sequences: int = 8,
    dropout: float = 0.0,
    device: str = "auto",
    precision: str = "auto",
    clock: str = "processor",
    threads: int = 1,
    rounds: int = 3,
    parts: int = 1,
    engine: int = 1,
) -> Record:
    """The benchmark."""
    on = harness.choose_device(device)
    is_bf16, seconds = harness.uses_bf16(precision, on), harness.stopwatch(on, clock)
    settings = harness.settings_of(
        model,
        f"model.hidden_dropout_prob={dropout}",
        f"model.attention_probs_dropout_prob={dropout}",
        f"engine.precision={'bf16_autocast' if is_bf16 else 'fp32'}",
        "engine.zero_stage=1",
    )
    batch, width = batch_of(lengths, sequences, on)
    found = variants(settings, VOCAB_SIZE, batch, width, is_bf16)
    losses = check_equal_losses(found, is_bf16)

    def tokens_per_second(step: Callable[[], object]) -> Callable[[], float]:
        return lambda: batch.num_tokens / seconds(step)

    rates = {name: tokens_per_second(one.step) for name, one in found.items()}
    products, flop_of_products = matrix_rate(settings.model, on, is_bf16)
    plain, compile = plain_side(found)
    with harness.joined_ranks() as ranks:
        if engine:
            trained = harness.engine_of(settings, ranks, compile=compile)
            whole = global_batch(batch)
            step = partial(trained.train_step, whole, settings.optim.learning_rate)
            rates[UNDER_ENGINE] = tokens_per_second(step)
        rates[PRODUCTS] = lambda: flop_of_products / seconds(products)
        measured = harness.in_turn(rates, rounds)
    median = harness.medians(measured)
    del measured[PRODUCTS]
    facts = _facts(settings, batch, width, median) | {"losses": losses}
    facts["device"] = torch.cuda.get_device_name(on) if on.type == "cuda" else "cpu"
    if parts:
        optimized = packed_model(settings, VOCAB_SIZE).to(on)
        alone = parts_of(optimized, batch, optimizer_of(optimized, settings), is_bf16)
        step_s = batch.num_tokens / median["ours"]
        times = seconds_of_parts(alone, seconds, rounds)
        times["the rest"] = step_s - sum(times.values())
        if engine:
            over = batch.num_tokens / median[UNDER_ENGINE] - batch.num_tokens / median[plain]
            times["engine, beyond the plain step"] = over
            parameters = sum(p.numel() for p in optimized.parameters())
            facts["engine_ns_per_parameter"] = 1e9 * over / parameters
        facts["parts"] = {
            name: {"ms": 1000 * time, "share": time / step_s} for name, time in times.items()
        }
        for name, part in facts["parts"].items():
            print(f"{name:32}  {part['ms']:10.2f} ms  {part['share']:6.1%} of the step")
    return (
        harness.table("step", "real tokens/s", measured, f"transformers, padded to {width}") | facts
    )


def plain_side(found: Mapping[str, object]) -> tuple[str, Compile]:
    """The variant that the engine is compared with, and what it sets engine.compile to."""
    compiled = "ours, compiled"
    return (compiled, Compile.true) if compiled in found else ("ours", Compile.false)


def _facts(settings: Settings, batch: PackedBatch, width: int, median: dict[str, float]) -> Record:
    """What the rates amount to: shares of the peak, which are printed, and speedups."""
    count, peak = batch.num_sequences, median[PRODUCTS]
    rates = {name: rate / batch.num_tokens for name, rate in median.items() if name != PRODUCTS}
    lengths = Lengths(
        mean=batch.num_tokens / count,
        mean_square=float(np.mean(np.square(batch.lengths))),
        masked=batch.num_masked / count,
    )
    flop = flops(settings.model, VOCAB_SIZE, lengths) * count
    shares = {name: rate * flop / peak for name, rate in rates.items()}
    for name, share in shares.items():
        print(f"{name}: {share:.0%} of the matrix-product peak ({peak / 1e12:.3g} TFLOP/s)")
    best, _ = plain_side(shares)
    to_width, to_longest = (f"transformers, padded to {to}" for to in (width, "the longest"))
    return {
        "real_tokens": batch.num_tokens,
        "real_share_of_padded": batch.num_tokens / (width * count),
        "sequences_per_second": {name: rate * count for name, rate in rates.items()},
        "shares_of_matmul_peak": shares,
        "matmul_tflop_s": peak / 1e12,
        "speedup_over_transformers": rates[best] / rates[to_width],
        "speedup_over_transformers_padded_to_longest": rates[best] / rates[to_longest],
        "share_of_matmul_peak": shares[best],
    }


def batch_of(lengths: str, size: int, device: torch.device) -> tuple[PackedBatch, int]:
    """`size` sequences of these lengths on `device`, and the tokens for which they are prepared."""
    with tempfile.TemporaryDirectory() as folder:
        shards = open_synthetic_shards(Path(folder), lengths, size, VOCAB_SIZE)
        width = shards.manifest.seq_len
        return pack(shards.read(np.arange(size)), width).to(device), width


if __name__ == "__main__":
    harness.run(main)
