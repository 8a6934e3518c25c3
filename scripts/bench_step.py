"""A training step of our packed model against `transformers`, padded to 512, on the same sequences.

    python -m scripts.bench_step [model=small] [lengths=wikipedia] [sequences=8] [rounds=3]

A step is forward, backward and fused AdamW, in fp32 on the CPU, without the engine. Both models have
the same sizes and see the same sequences. Only real tokens count, per second of processor time,
which other processes hardly disturb. `GEMM share` is the arithmetic of real tokens (masked
positions alone in the head) over what plain matrix products of the model's shapes reach in the same
rounds: padding counts as waste.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.configuration import compose
from pretrain.batches.packing import PackedBatch, pack
from pretrain.model import BertForPreTraining
from pretrain.optimizers import build_optimizer, parameter_groups
from pretrain.settings import ModelSettings, OptimSettings, Settings
from scripts.benchmark import arguments, in_turn, report
from scripts.synthetic_shards import open_synthetic_shards

VOCAB_SIZE = 30_522
WIDTH = 512
DEFAULTS: dict[str, str | int | float] = {
    "model": "small",
    "lengths": "wikipedia",
    "sequences": 8,
    "dropout": 0.0,
    "threads": 1,
    "rounds": 3,
}


def main() -> None:
    given = arguments(sys.argv[1:], DEFAULTS)
    torch.set_num_threads(int(given["threads"]))
    settings = _settings(str(given["model"]), float(given["dropout"]))
    with tempfile.TemporaryDirectory() as folder:
        size = int(given["sequences"])
        shards = open_synthetic_shards(Path(folder), str(given["lengths"]), size, VOCAB_SIZE)
        batch = pack(shards.read(np.arange(size)), int(shards.manifest["seq_len"]))
    figures = in_turn(
        {
            "transformers, padded": _padded_step(settings, batch),
            "ours, packed": _packed_step(settings, batch),
            "matrix products": lambda: _matrix_rate(settings.model),
        },
        int(given["rounds"]),
    )
    peak = statistics.median(figures.pop("matrix products"))
    flop_per_token = _flop(settings.model, batch) / batch.num_tokens
    shares = {
        name: statistics.median(rates) * flop_per_token / peak for name, rates in figures.items()
    }
    facts = {
        "settings": given,
        "real_tokens": batch.num_tokens,
        "real_share_of_padded": batch.num_tokens / (WIDTH * batch.num_sequences),
        "gemm_share": shares,
        "gemm_gflop_s": peak / 1e9,
    }
    for name, share in shares.items():
        print(f"{name}: GEMM share {share:.0%}")
    report("step", "real tokens/s/core", figures, "transformers, padded", facts)


def _settings(model: str, dropout: float) -> Settings:
    probabilities = [
        f"model.{name}_dropout_prob={dropout}" for name in ("hidden", "attention_probs")
    ]
    settings, _ = compose("config", Settings, [f"+model={model}", *probabilities])
    return settings


def _timed(step: Callable[[], None], num_tokens: int) -> Callable[[], float]:
    def run() -> float:
        started = time.process_time()
        step()
        return num_tokens / (time.process_time() - started)

    return run


def _packed_step(settings: Settings, batch: PackedBatch) -> Callable[[], float]:
    model = BertForPreTraining(settings.model, VOCAB_SIZE, settings.data.pairs)
    model.initialize(torch.Generator().manual_seed(0))
    optimizer = _optimizer(model, settings.optim)

    def step() -> None:
        mlm_loss, pair_loss, _, _ = model(batch)
        (mlm_loss / batch.num_masked + pair_loss / batch.num_sequences).backward()
        optimizer.step()
        optimizer.zero_grad()

    return _timed(step, batch.num_tokens)


def _padded_step(settings: Settings, batch: PackedBatch) -> Callable[[], float]:
    import transformers

    sizes = settings.model
    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        intermediate_size=sizes.intermediate_size,
        hidden_act=sizes.hidden_act,
        hidden_dropout_prob=sizes.hidden_dropout_prob,
        attention_probs_dropout_prob=sizes.attention_probs_dropout_prob,
        max_position_embeddings=sizes.max_position_embeddings,
        attn_implementation="sdpa",
    )
    model = transformers.BertForPreTraining(config).train()
    optimizer = _optimizer(model, settings.optim)
    inputs = _padded(batch)

    def step() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _timed(step, batch.num_tokens)


def _optimizer(model: torch.nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    return build_optimizer(parameter_groups(model, settings.weight_decay), settings)


def _padded(batch: PackedBatch) -> dict[str, Tensor]:
    """The same batch as `transformers` takes it: (N, 512) rows, label -100 outside the masks."""
    labels_T = torch.full_like(batch.input_ids, -100, dtype=torch.long)
    labels_T[batch.masked_positions] = batch.labels
    mask_T = torch.ones_like(batch.input_ids)

    def rows(packed_T: Tensor, fill: int) -> Tensor:
        padded = torch.full((batch.num_sequences, WIDTH), fill)
        for row, sequence in zip(padded, torch.split(packed_T, batch.lengths), strict=True):
            row[: len(sequence)] = sequence
        return padded

    return {
        "input_ids": rows(batch.input_ids, 0),
        "token_type_ids": rows(batch.segment_ids, 0),
        "attention_mask": rows(mask_T, 0),
        "labels": rows(labels_T, -100),
        "next_sentence_label": batch.next_sentence_labels,
    }


def _flop(model: ModelSettings, batch: PackedBatch) -> float:
    """Floating-point operations of forward and backward (twice the forward) on real tokens."""
    hidden, inner, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    dense = 2 * batch.num_tokens * layers * (4 * hidden**2 + 2 * hidden * inner)
    attention = 4 * layers * hidden * sum(length**2 for length in batch.lengths)
    head = 2 * batch.num_masked * (hidden * VOCAB_SIZE + hidden**2)
    return 3.0 * (dense + attention + head)


def _matrix_rate(model: ModelSettings) -> float:
    """FLOP/s of (2048, H) x (H, n) for n = H, 3H and the feed-forward's width."""
    hidden = model.hidden_size
    shapes = [(hidden, width) for width in (hidden, 3 * hidden, model.intermediate_size)]
    x = torch.ones(2048, hidden)
    weights = [torch.ones(shape) for shape in shapes]
    flop = sum(2 * 2048 * k * n for k, n in shapes)
    repeats = max(1, int(2e10 / flop))
    started = time.process_time()
    for _ in range(repeats):
        for weight in weights:
            x @ weight
    return flop * repeats / (time.process_time() - started)


if __name__ == "__main__":
    main()
