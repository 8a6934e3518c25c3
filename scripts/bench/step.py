"""A training step of our packed model next to stock `transformers`, and its parts.

    python -m scripts.bench.step [model=small] [lengths=wikipedia] [sequences=8] [dropout=0.1]
        [device=auto] [precision=auto] [clock=processor] [threads=1] [rounds=3] [parts=1] [engine=1]

A step is forward, backward and fused AdamW. All variants have the same weights, sizes, precision
and sequences, run in turn, and are timed only after their losses were found equal.

lengths    wikipedia, books, or a number of tokens: at 128 neither side is padded
precision  fp32, bf16 (autocast), or auto: bf16 on CUDA
clock      processor, which other processes hardly disturb, or wall; on CUDA always wall
parts=1    also time the parts of our step alone
engine=1   also time the same step under DeepSpeed with ZeRO 1, on one rank

Only real tokens count. The share of the matrix-product peak is the model's arithmetic
(pretrain.model.flops, real tokens, masked positions alone in the head) over what plain products of
the model's shapes reach in the same rounds: padding counts as waste.
"""

from __future__ import annotations

import atexit
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pretrain.config.arguments import run_command
from pretrain.config.settings import Settings
from pretrain.data.packing import PackedBatch, pack
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed import ranks as ranks_module
from pretrain.engine.engine import Engine
from pretrain.model.flops import Lengths, flops
from scripts.baselines.synthetic_shards import open_synthetic_shards
from scripts.baselines.transformers_step import (
    check_equal_losses,
    optimizer_of,
    packed_model,
    variants,
)
from scripts.bench.harness import (
    Record,
    Stopwatch,
    benchmark,
    choose_device,
    in_turn,
    medians,
    settings_of,
    stopwatch,
    table,
    uses_bf16,
)
from scripts.bench.step_parts import matrix_rate, parts_of, seconds_of_parts

VOCAB_SIZE = 30_522
PRODUCTS = "matrix products"
UNDER_ENGINE = "ours, under the engine"


@benchmark("step")
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
    torch.set_num_threads(threads)
    on = choose_device(device)
    is_bf16, seconds = uses_bf16(precision, on), stopwatch(on, clock)
    settings = settings_of(
        model,
        f"model.hidden_dropout_prob={dropout}",
        f"model.attention_probs_dropout_prob={dropout}",
        f"engine.precision={'bf16_autocast' if is_bf16 else 'fp32'}",
        "engine.zero_stage=1",
    )
    batch, width = batch_of(lengths, sequences, on)
    found = variants(settings, VOCAB_SIZE, batch, width, is_bf16)
    losses = check_equal_losses(found, is_bf16)

    steps: dict[str, Callable[[], object]] = {name: one.step for name, one in found.items()}
    if engine:
        steps[UNDER_ENGINE] = _step_under_engine(settings, batch)
    products, flop_of_products = matrix_rate(settings.model, on, is_bf16)
    rates = {name: _rate(step, batch.num_tokens, seconds) for name, step in steps.items()}
    rates[PRODUCTS] = _rate(products, flop_of_products, seconds)
    measured = in_turn(rates, rounds)
    peak = statistics.median(measured.pop(PRODUCTS))

    rate_of, flop = medians(measured), _flop(settings, batch)
    shares = {name: rate * flop / batch.num_tokens / peak for name, rate in rate_of.items()}
    best = "ours, compiled" if "ours, compiled" in shares else "ours"
    ours, padded = rate_of[best], f"transformers, padded to {width}"
    facts: Record = {
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else "cpu",
        "real_tokens": batch.num_tokens,
        "real_share_of_padded": batch.num_tokens / (width * batch.num_sequences),
        "losses": losses,
        "sequences_per_second": {
            name: rate * batch.num_sequences / batch.num_tokens for name, rate in rate_of.items()
        },
        "shares_of_matmul_peak": shares,
        "matmul_tflop_s": peak / 1e12,
        "speedup_over_transformers": ours / rate_of[padded],
        "speedup_over_transformers_padded_to_longest": ours
        / rate_of["transformers, padded to the longest"],
        "share_of_matmul_peak": shares[best],
    }
    for name, share in shares.items():
        print(f"{name}: {share:.0%} of the matrix-product peak ({peak / 1e12:.3g} TFLOP/s)")
    if parts:
        step_s = batch.num_tokens / rate_of["ours"]
        times = _seconds_of_parts(settings, batch, is_bf16, seconds, rounds)
        times["the rest"] = step_s - sum(times.values())
        if engine:
            over = times["engine, beyond the plain step"] = (
                batch.num_tokens / rate_of[UNDER_ENGINE] - step_s
            )
            parameters = sum(p.numel() for p in found["ours"].model.parameters())
            facts["engine_ns_per_parameter"] = 1e9 * over / parameters
        facts["parts"] = {
            name: {"ms": 1000 * time, "share": time / step_s} for name, time in times.items()
        }
        for name, part in facts["parts"].items():
            print(f"{name:32}  {part['ms']:10.2f} ms  {part['share']:6.1%} of the step")
    return table("step", "real tokens/s", measured, padded) | facts


def batch_of(lengths: str, size: int, device: torch.device) -> tuple[PackedBatch, int]:
    """`size` sequences of these lengths on `device`, and the tokens for which they are prepared."""
    with tempfile.TemporaryDirectory() as folder:
        shards = open_synthetic_shards(Path(folder), lengths, size, VOCAB_SIZE)
        width = shards.manifest.seq_len
        return pack(shards.read(np.arange(size)), width).to(device), width


def _rate(call: Callable[[], object], amount: float, seconds: Stopwatch) -> Callable[[], float]:
    return lambda: amount / seconds(call)


def _flop(settings: Settings, batch: PackedBatch) -> float:
    """The floating-point operations of a step on the batch, forward and backward."""
    lengths = Lengths(
        mean=batch.num_tokens / batch.num_sequences,
        mean_square=float(np.mean(np.square(batch.lengths))),
        masked=batch.num_masked / batch.num_sequences,
    )
    return flops(settings.model, VOCAB_SIZE, lengths) * batch.num_sequences


def _seconds_of_parts(
    settings: Settings, batch: PackedBatch, is_bf16: bool, seconds: Stopwatch, rounds: int
) -> dict[str, float]:
    model = packed_model(settings, VOCAB_SIZE).to(batch.input_ids.device)
    found = parts_of(model, batch, optimizer_of(model, settings), is_bf16)
    return seconds_of_parts(found, seconds, rounds)


def _step_under_engine(settings: Settings, batch: PackedBatch) -> Callable[[], object]:
    ranks = ranks_module.start(timeout_minutes=10)
    atexit.register(ranks.stop)
    engine = Engine(packed_model(settings, VOCAB_SIZE), settings.optim, settings.engine, ranks)
    rate = settings.optim.learning_rate
    whole = GlobalBatch(
        position=0,
        micro_batches=[batch],
        dropout_seeds=[0],
        num_sequences=batch.num_sequences,
        num_masked=batch.num_masked,
        num_tokens=batch.num_tokens,
        squared_lengths=sum(length**2 for length in batch.lengths),
    )
    return lambda: engine.train_step(whole, rate)


if __name__ == "__main__":
    ranks_module.exit_with(partial(run_command, main))
