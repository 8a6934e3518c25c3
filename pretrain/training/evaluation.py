"""Held-out metrics: sums over all ranks, divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.core.objectives import Pairing
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import ShardsManifest, read_token_counts
from pretrain.config.settings import Settings
from pretrain.data.corpus import folder_of
from pretrain.data.eval_loader import EvalLoader, HeldOutBatch, held_out_ids
from pretrain.data.packing import PackedBatch
from pretrain.run_folder.jsonl import readable_lines

if TYPE_CHECKING:
    from pretrain.distributed.ranks import Ranks
    from pretrain.engine.engine import Engine


def means(
    sums: Iterable[float], num_masked: float, num_sequences: float, prefix: str, pairing: Pairing
) -> dict[str, float]:
    """Metrics of a set of examples from its sums, under names that start with `prefix`.

    `sums`: MLM loss, pair loss, right MLM guesses, right pair guesses. Losses are in nats, means
    over masked positions and over sequences; `loss` is their sum (Devlin et al. 2018, A.2). Metrics
    of pairs have the name of their task, nsp or sop; without pairs there are none.
    """
    mlm_loss, pair_loss, mlm_correct, pair_correct = sums
    mlm, pair = mlm_loss / max(1.0, num_masked), pair_loss / max(1.0, num_sequences)
    metrics = {
        f"{prefix}/loss": mlm + pair,
        f"{prefix}/mlm_loss": mlm,
        f"{prefix}/mlm_accuracy": mlm_correct / max(1.0, num_masked),
    }
    if pairing is not Pairing.none:
        metrics[f"{prefix}/{pairing.name}_loss"] = pair
        metrics[f"{prefix}/{pairing.name}_accuracy"] = pair_correct / max(1.0, num_sequences)
    return metrics


def evaluate(
    engine: Engine, held_out: EvalLoader, ranks: Ranks, pairing: Pairing
) -> dict[str, float]:
    """Losses and accuracies over the held-out examples, the same on every rank.

    Collective. Dropout is off; the masks are those of the shards, the same at every evaluation.
    """
    sums = sums_of(engine.evaluate_step, held_out, len(held_out.sources), ranks.device)
    totals = np.reshape(ranks.sum(sums.flatten().tolist()), sums.shape)
    return metrics_of(totals, held_out, pairing)


def sums_of(
    step: Callable[[PackedBatch], Tensor],
    batches: Iterable[HeldOutBatch],
    num_sources: int,
    device: torch.device,
) -> NDArray[np.float64]:
    """(sources, 4) the sums that `means` takes, over the batches that count.

    `step` gives one batch's, (4,).
    """
    sums = torch.zeros(num_sources, 4, dtype=torch.float64, device=device)
    for item in batches:
        part = step(item.batch)
        if item.is_counted:
            sums[item.source] += part
    found: NDArray[np.float64] = sums.cpu().numpy()
    return found


def metrics_of(
    sums: NDArray[np.float64], held_out: EvalLoader, pairing: Pairing
) -> dict[str, float]:
    """The metrics of an evaluation from the (sources, 4) sums over all of its examples.

    Of several sources, those of each follow: "eval/mlm_loss/<source>".
    """
    totals = sums.sum(axis=0).tolist()
    metrics = means(totals, held_out.num_masked, held_out.num_sequences, "eval", pairing)
    # below 1e100, as readers of metrics.jsonl expect; of nan it is nan
    metrics["eval/mlm_perplexity"] = math.exp(min(metrics["eval/mlm_loss"], 230.0))
    if len(held_out.sources) > 1:
        for own, source in zip(sums.tolist(), held_out.sources, strict=True):
            found = means(own, source.num_masked, source.num_sequences, "eval", pairing)
            del found["eval/loss"]
            metrics |= {f"{name}/{source.name}": value for name, value in found.items()}
    return metrics


def frequency_loss(
    train_counts_V: NDArray[np.int64], held_out_counts_V: NDArray[np.int64]
) -> float:
    """MLM loss in nats of guessing every masked token by its frequency in training.

    Both arguments count the original ids at masked positions, (V,). One is added to each training
    count, so that the loss is finite for a token that training never masked.
    """
    smoothed_V = train_counts_V + 1.0
    log_probabilities_V = np.log(smoothed_V / smoothed_V.sum())
    total = held_out_counts_V.sum()
    return float(-(held_out_counts_V * log_probabilities_V).sum() / max(1, total))


def frequency_baseline(settings: Settings, manifest: ShardsManifest) -> float:
    """MLM loss in nats of guessing by token frequency, on the evaluated held-out examples."""
    folder = folder_of(settings.data)
    held_out = Shards.open(folder, "heldout")
    ids = held_out_ids(held_out.num_examples, settings.eval.max_examples)
    targets = held_out.read(ids).targets
    counts = np.bincount(targets, minlength=manifest.vocab_size)
    return frequency_loss(read_token_counts(folder, manifest.vocab_size), counts)


def last_evaluation(metrics: Path, up_to_step: float = math.inf) -> dict[str, Any]:
    """The line of metrics.jsonl with the last held-out evaluation up to a step; {} if there is
    none."""
    lines = [line for line in readable_lines(metrics) if "eval/mlm_loss" in line]
    return next((line for line in reversed(lines) if line["step"] <= up_to_step), {})
