"""The metrics in metrics.jsonl: their units, and how the terminal and the report show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What is known about one metric; docs/run-folder.md says what it measures."""

    unit: str
    label: str = ""  # in tables
    form: str = "{:.4f}"  # of a value in tables
    console: str = ""  # the value with its name, on the terminal; empty: not shown there


METRICS = {
    "eval/loss": Metric("nats"),
    "eval/mlm_loss": Metric(
        "nats per masked token", "held-out MLM loss", console="held-out MLM {:.3f}"
    ),
    "eval/mlm_perplexity": Metric("1", "held-out MLM perplexity", "{:,.2f}"),
    "eval/mlm_accuracy": Metric(
        "share of masked tokens", "held-out MLM accuracy", "{:.2%}", "({:.1%})"
    ),
    "eval/nsp_loss": Metric("nats per sequence", "held-out NSP loss", console="NSP {:.3f}"),
    "eval/nsp_accuracy": Metric("share of pairs", "held-out NSP accuracy", "{:.2%}", "({:.1%})"),
    "eval/sop_loss": Metric("nats per sequence", "held-out SOP loss", console="SOP {:.3f}"),
    "eval/sop_accuracy": Metric("share of pairs", "held-out SOP accuracy", "{:.2%}", "({:.1%})"),
    "eval/mlm_loss/<source>": Metric("nats per masked token", "held-out MLM loss"),
    "eval/mlm_accuracy/<source>": Metric("share of masked tokens"),
    "eval/nsp_loss/<source>": Metric("nats per sequence"),
    "eval/nsp_accuracy/<source>": Metric("share of pairs"),
    "eval/sop_loss/<source>": Metric("nats per sequence"),
    "eval/sop_accuracy/<source>": Metric("share of pairs"),
    "train/loss": Metric("nats"),
    "train/mlm_loss": Metric("nats per masked token", "training MLM loss", console="MLM {:.3f}"),
    "train/mlm_accuracy": Metric("share of masked tokens", console="({:.1%})"),
    "train/nsp_loss": Metric("nats per sequence", "training NSP loss", console="NSP {:.3f}"),
    "train/nsp_accuracy": Metric("share of pairs", console="({:.1%})"),
    "train/sop_loss": Metric("nats per sequence", "training SOP loss", console="SOP {:.3f}"),
    "train/sop_accuracy": Metric("share of pairs", console="({:.1%})"),
    "perf/tokens_per_second": Metric(
        "tokens per second", "tokens per second", "{:,.0f}", "{:,.0f} tokens/s"
    ),
    "perf/sequences_per_second": Metric("sequences per second"),
    "perf/model_tflops_per_device": Metric("10^12 FLOP per second"),
    "perf/mfu": Metric("share"),
    "perf/training_seconds": Metric("seconds"),
    "perf/data_wait_share": Metric("share"),
    "perf/budget_fill": Metric("share"),
    "perf/goodput": Metric("share"),
    "perf/checkpoint_seconds": Metric("seconds"),
    "perf/host_memory_gb": Metric("GB (10^9 bytes)"),
    "perf/device_memory_gb": Metric("GB (10^9 bytes)"),
    "perf/rank_ms_median": Metric("milliseconds"),
    "perf/rank_ms_max": Metric("milliseconds"),
    "perf/slowest_rank": Metric("rank"),
    "perf/allocator_retries": Metric("retries"),
    "perf/gpu_clock_mhz": Metric("MHz"),
    "perf/gpus_throttled": Metric("GPUs"),
    "perf/ecc_errors": Metric("errors"),
    "perf/training_hours": Metric("hours", console="{:.2f} h"),
    "optim/learning_rate": Metric("1"),
    "optim/grad_norm": Metric("1"),
    "optim/skipped_steps": Metric("batches"),
    "optim/loss_scale": Metric("1"),
    "optim/trust_ratio/embeddings": Metric("1"),
    "optim/trust_ratio/layer_00": Metric("1"),  # and so on for each layer
    "optim/trust_ratio/heads": Metric("1"),
    "data/sequences": Metric("sequences"),
    "data/tokens": Metric("tokens"),
    "data/tokens_per_sequence": Metric("tokens"),
    "data/masked_share": Metric("share"),
    "data/shapes": Metric("shapes"),
    "data/source/<source>/share": Metric("share of examples"),
    "data/source/<source>/epoch": Metric("passes over the source"),
    "data/batch": Metric("checksum"),
    "band/low": Metric("nats"),
    "band/high": Metric("nats"),
}

AXES = ("data/sequences", "data/tokens")  # besides the step, for the charts of trackers


def held_out(metrics: Mapping[str, float]) -> dict[str, float]:
    """Held-out metrics by label, losses with their unit: "MLM loss (nats per masked token)".

    Those of one source have its name: "MLM loss of books (nats per masked token)".
    """
    found = {}
    for name, metric in METRICS.items():
        if not metric.label or not name.startswith("eval/"):
            continue
        unit = f" ({metric.unit})" if metric.unit.startswith("nats") else ""
        stem = name.removesuffix("<source>")
        for key in metrics:
            if key == name or (stem != name and key.startswith(stem)):
                source = "" if key == name else f" of {key.removeprefix(stem)}"
                found[f"{metric.label.removeprefix('held-out ')}{source}{unit}"] = metrics[key]
    return found
