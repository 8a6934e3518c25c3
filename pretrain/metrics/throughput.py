"""How well a run uses its hardware and time: model FLOP, share of the peak, memory, goodput."""

from __future__ import annotations

import datetime
import re
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pretrain.config.settings import ModelSettings, Precision, Settings
from pretrain.model.flops import Lengths, flops
from pretrain.run_folder.jsonl import readable_lines

if TYPE_CHECKING:
    from pretrain.data.train_loader import GlobalBatch
    from pretrain.distributed.ranks import Ranks

# Dense matrix products of 16-bit numbers with fp32 sums, TFLOP/s, from the vendors' data sheets.
# The first pattern found in the device's name counts.
PEAK_TFLOPS = {
    r"B200": 2250.0,
    r"H100 PCIe": 756.0,
    r"H100 NVL": 835.0,
    r"H[12]00|GH200": 989.0,
    r"A100": 312.0,
    r"A30\b": 165.0,
    r"A10\b|A10G": 125.0,
    r"A6000": 155.0,
    r"L40S": 362.0,
    r"L4\b": 121.0,
    r"RTX 4090": 165.0,
    r"RTX 3090": 71.0,
    r"V100": 125.0,
    r"T4\b": 65.0,
}


def peak_tflops(setting: float | None, device: torch.device, precision: Precision) -> float | None:
    """One device's peak, which perf/mfu is a share of; None if unknown.

    `setting` is monitor.peak_tflops; without it, the table above for the 16-bit precisions.
    """
    if setting is not None or device.type != "cuda" or precision is Precision.fp32:
        return setting
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(device_name: str) -> float | None:
    """The peak of a device by the name that its driver gives it, or None."""
    found = (peak for pattern, peak in PEAK_TFLOPS.items() if re.search(pattern, device_name))
    return next(found, None)


@dataclass
class Work:
    """Training between two records: the work of all ranks, and where the time went."""

    sequences: int = 0
    tokens: int = 0
    squared_lengths: int = 0  # sum of the squares of the sequences' lengths in tokens
    masked: int = 0  # positions with an MLM label
    slots: int = 0  # tokens that the micro-batches had room for
    waited_s: float = 0.0  # for data, on this rank
    checkpoint_s: float = 0.0  # training paused for a checkpoint

    def add(self, batch: GlobalBatch, slots: int) -> None:
        """Add a global batch, in micro-batches with room for `slots` tokens on all ranks."""
        self.sequences += batch.num_sequences
        self.tokens += batch.num_tokens
        self.squared_lengths += batch.squared_lengths
        self.masked += batch.num_masked
        self.slots += slots


def model_flop(model: ModelSettings, vocab_rows: int, work: Work, trims: bool = False) -> float:
    """FLOP of forward and backward pass, on real tokens alone. `trims` as in `flops`."""
    n = work.sequences
    lengths = Lengths(work.tokens / n, work.squared_lengths / n, work.masked / n)
    return n * flops(model, vocab_rows, lengths, trims=trims)


class Meter:
    """Turns the work between two records into metrics under perf/ and data/."""

    def __init__(
        self, settings: Settings, vocab_rows: int, ranks: Ranks, goodput: Goodput | None
    ) -> None:
        """`vocab_rows`: of the word embedding, padding included. `goodput`: rank 0's."""
        self._settings, self._vocab_rows = settings, vocab_rows
        self._ranks, self._goodput = ranks, goodput
        precision = settings.engine.precision
        self._peak = peak_tflops(settings.monitor.peak_tflops, ranks.device, precision)

    def metrics(self, work: Work, seconds: float, waited_s: float) -> dict[str, float]:
        """Metrics on rank 0, otherwise {}. `waited_s`: waiting for data, mean of all ranks."""
        if self._goodput is None:
            return {}
        trims = self._settings.engine.trim_last_layer
        flop = model_flop(self._settings.model, self._vocab_rows, work, trims)
        tflops = flop / seconds / self._ranks.world_size / 1e12
        metrics = {
            "perf/tokens_per_second": work.tokens / seconds,
            "perf/sequences_per_second": work.sequences / seconds,
            "perf/model_tflops_per_device": tflops,
            "perf/training_seconds": seconds,
            "perf/data_wait_share": waited_s / seconds,
            "perf/goodput": self._goodput.after(seconds, time.time()),
            **memory_metrics(self._ranks.device),
            "data/tokens_per_sequence": work.tokens / work.sequences,
            "data/masked_share": work.masked / work.tokens,
            "perf/budget_fill": work.tokens / work.slots,
        }
        if self._peak is not None:
            metrics["perf/mfu"] = tflops / self._peak
        if work.checkpoint_s:
            metrics["perf/checkpoint_seconds"] = work.checkpoint_s
        return metrics


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Peak memory of this process so far, in GB: host, and GPU by torch's allocator."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics = {"perf/host_memory_gb": kib * 1024 / 1e9}
    if device.type == "cuda":
        metrics["perf/device_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return metrics


class Goodput:
    """Share of the wall time since a run's first start that went into steps that count.

    Read from metrics.jsonl and events.jsonl, so it covers all starts: steps that a killed start
    made after its checkpoint are no longer there. Evaluations, checkpoints, startup and the time
    between two starts are wall time without a step.
    """

    def __init__(self, counted_s: float, began: float) -> None:
        """`counted_s`: seconds of steps that count so far. `began`: Unix time of first start."""
        self._counted_s = counted_s
        self._began = began

    @classmethod
    def read(cls, run_folder: Path) -> Goodput:
        """The goodput of the run in a folder; a new run begins now."""
        records = readable_lines(run_folder / "metrics.jsonl")
        events = readable_lines(run_folder / "events.jsonl")
        return cls(
            sum(record.get("perf/training_seconds", 0.0) for record in records),
            min((_moment(line) for line in (*events[:1], *records[:1])), default=time.time()),
        )

    def after(self, seconds: float, now: float) -> float:
        """The share after `seconds` more of recorded training. `now`: Unix time."""
        self._counted_s += seconds
        return self._counted_s / max(self._counted_s, now - self._began)


def _moment(line: Mapping[str, Any]) -> float:
    return datetime.datetime.fromisoformat(line["time"]).timestamp()
