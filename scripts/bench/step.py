"""A training step of our packed model against stock `transformers`, and the step taken apart.

    python -m scripts.bench.step [model=small] [lengths=wikipedia] [sequences=8] [dropout=0.1]
        [device=auto] [precision=auto] [clock=processor] [threads=1] [rounds=3] [parts=1] [engine=1]

A step is forward, backward and fused AdamW. All variants have the same weights, sizes, precision and
sequences, run in turn, and are timed only once their losses are found equal. lengths: wikipedia,
books, or a number of tokens: at 128 neither side is padded. precision: fp32 or bf16 (autocast); auto
is bf16 on CUDA. Only real tokens count. On a CPU time is that of the processor, which other
processes hardly disturb, or clock=wall; on CUDA it is waited for.

The share of the matrix-product peak is the model's arithmetic (pretrain.planning.step_time, real tokens, masked
positions alone in the head) over what plain products of the model's shapes reach in the same rounds:
padding counts as waste. parts=1 times the parts of our step alone; engine=1 the same step under
DeepSpeed with ZeRO 1, on one rank.
"""

from __future__ import annotations

import atexit
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.core.config import compose
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
from scripts.bench.harness import Arguments, arguments, in_turn, report
from scripts.bench.step_parts import matrix_rate, parts, seconds_of_parts

VOCAB_SIZE = 30_522
DEFAULTS: Arguments = {
    "model": "small",
    "lengths": "wikipedia",
    "sequences": 8,
    "dropout": 0.0,
    "device": "auto",
    "precision": "auto",
    "clock": "processor",
    "threads": 1,
    "rounds": 3,
    "parts": 1,
    "engine": 1,
}
PRODUCTS = "matrix products"
Stopwatch = Callable[[Callable[[], None]], float]
UNDER_ENGINE = "ours, under the engine"


def main() -> None:
    given = arguments(sys.argv[1:], DEFAULTS)
    torch.set_num_threads(int(given["threads"]))
    device = device_called(str(given["device"]))
    is_bf16 = is_bf16_called(str(given["precision"]), device)
    seconds = stopwatch(device, str(given["clock"]))
    settings = _settings(str(given["model"]), float(given["dropout"]), is_bf16)
    batch, width = batch_of(str(given["lengths"]), int(given["sequences"]), device)
    found = variants(settings, VOCAB_SIZE, batch, width, is_bf16)
    losses = check_equal_losses(found, is_bf16)

    steps: dict[str, Callable[[], None]] = {name: one.step for name, one in found.items()}
    if int(given["engine"]):
        steps[UNDER_ENGINE] = _step_under_engine(settings, batch)
    sizes = settings.model
    products, flop_of_products = matrix_rate(
        sizes.hidden_size, sizes.intermediate_size, device, is_bf16
    )
    rates: dict[str, Callable[[], float]] = {
        name: _rate(step, batch.num_tokens, seconds) for name, step in steps.items()
    }
    rates[PRODUCTS] = _rate(products, flop_of_products, seconds)
    figures = in_turn(rates, int(given["rounds"]))
    peak = statistics.median(figures.pop(PRODUCTS))

    lengths = Lengths(
        mean=batch.num_tokens / batch.num_sequences,
        mean_square=float(np.mean(np.square(batch.lengths))),
        masked=batch.num_masked / batch.num_sequences,
    )
    flop = flops(sizes, VOCAB_SIZE, lengths) * batch.num_sequences
    medians = {name: statistics.median(values) for name, values in figures.items()}
    shares = {name: rate * flop / batch.num_tokens / peak for name, rate in medians.items()}
    ours = medians.get("ours, compiled", medians["ours"])
    facts: dict[str, Any] = {
        "settings": given,
        "device": _name(device),
        "real_tokens": batch.num_tokens,
        "real_share_of_padded": batch.num_tokens / (width * batch.num_sequences),
        "losses": losses,
        "sequences_per_second": {name: rate / lengths.mean for name, rate in medians.items()},
        "shares_of_matmul_peak": shares,
        "matmul_tflop_s": peak / 1e12,
        "speedup_over_transformers": ours / medians[f"transformers, padded to {width}"],
        "speedup_over_transformers_padded_to_longest": ours
        / medians["transformers, padded to the longest"],
        "share_of_matmul_peak": shares["ours, compiled" if "ours, compiled" in shares else "ours"],
    }
    for name, share in shares.items():
        print(f"{name}: {share:.0%} of the matrix-product peak ({peak / 1e12:.3g} TFLOP/s)")
    if int(given["parts"]):
        step_s = batch.num_tokens / medians["ours"]
        facts["parts"] = _parts(settings, batch, is_bf16, seconds, int(given["rounds"]), step_s)
        if UNDER_ENGINE in medians:
            over = batch.num_tokens / medians[UNDER_ENGINE] - step_s
            facts["parts"]["engine, beyond the plain step"] = _part(over, step_s)
            parameters = sum(p.numel() for p in found["ours"].model.parameters())
            facts["engine_ns_per_parameter"] = 1e9 * over / parameters
        for name, part in facts["parts"].items():
            print(f"{name:32}  {part['ms']:10.2f} ms  {part['share']:6.1%} of the step")
    report("step", "real tokens/s", figures, f"transformers, padded to {width}", facts)


def stopwatch(device: torch.device, clock: str) -> Stopwatch:
    """Seconds of a call: of the processor or of the wall; on CUDA of the wall, with all it began.

    Raises SystemExit on another clock.
    """
    clocks = {"processor": time.process_time, "wall": time.perf_counter}
    if clock not in clocks:
        raise SystemExit(f"clock={clock} is not known; there are processor and wall")
    now = time.perf_counter if device.type == "cuda" else clocks[clock]

    def seconds(call: Callable[[], None]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = now()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return now() - started

    return seconds


def _rate(call: Callable[[], None], amount: float, seconds: Stopwatch) -> Callable[[], float]:
    return lambda: amount / seconds(call)


def _parts(
    settings: Settings,
    batch: PackedBatch,
    is_bf16: bool,
    seconds: Stopwatch,
    rounds: int,
    step_s: float,
) -> dict[str, dict[str, float]]:
    model = packed_model(settings, VOCAB_SIZE).to(batch.input_ids.device)
    found = parts(model, batch, optimizer_of(model, settings), is_bf16)
    times = seconds_of_parts(found, seconds, rounds)
    rest = step_s - sum(times.values())
    return {name: _part(one, step_s) for name, one in (times | {"the rest": rest}).items()}


def _part(seconds: float, step_s: float) -> dict[str, float]:
    return {"ms": 1000 * seconds, "share": seconds / step_s}


def _step_under_engine(settings: Settings, batch: PackedBatch) -> Callable[[], None]:
    ranks = ranks_module.start(timeout_minutes=10)
    atexit.register(ranks.stop)
    engine = Engine(packed_model(settings, VOCAB_SIZE), settings.optim, settings.engine, ranks)
    whole = GlobalBatch(
        position=0,
        micro_batches=[batch],
        dropout_seeds=[0],
        num_sequences=batch.num_sequences,
        num_masked=batch.num_masked,
        num_tokens=batch.num_tokens,
        squared_lengths=sum(length**2 for length in batch.lengths),
    )

    def step() -> None:
        engine.train_step(whole, settings.optim.learning_rate)

    return step


def _settings(model: str, dropout: float, is_bf16: bool) -> Settings:
    overrides = [f"model.{name}_dropout_prob={dropout}" for name in ("hidden", "attention_probs")]
    overrides += [
        f"engine.precision={'bf16_autocast' if is_bf16 else 'fp32'}",
        "engine.zero_stage=1",
    ]
    settings, _ = compose("config", Settings, [f"+model={model}", *overrides])
    return settings


def batch_of(lengths: str, size: int, device: torch.device) -> tuple[PackedBatch, int]:
    """`size` sequences of these lengths on `device`, and the tokens for which they are prepared."""
    with tempfile.TemporaryDirectory() as folder:
        shards = open_synthetic_shards(Path(folder), lengths, size, VOCAB_SIZE)
        width = int(shards.manifest["seq_len"])
        return pack(shards.read(np.arange(size)), width).to(device), width


def device_called(name: str) -> torch.device:
    """cpu, cuda, or auto for what there is. Raises SystemExit on a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("device=cuda: this machine has no GPU that torch can use")
    return torch.device(name)


def is_bf16_called(precision: str, device: torch.device) -> bool:
    """fp32, bf16, or auto: bf16 on CUDA. Raises SystemExit on another word."""
    if precision not in ("auto", "fp32", "bf16"):
        raise SystemExit(f"precision={precision} is not known; there are auto, fp32 and bf16")
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    ranks_module.exit_with(main)
