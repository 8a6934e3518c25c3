"""PNG plots of the audit's metrics, by matplotlib's Agg: no display, no global state."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.examples.pairs import LOSSES

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#a0aec0"

# Meaning of label 1, and the metric of its share
LABELS = (("random next", "random_next_share"), ("swapped", "swapped_share"))

Report = dict[str, Any]


def draw(report: Report) -> dict[str, tuple[str, bytes]]:
    """Title and PNG by file name, of every plot for which the report has the metrics."""
    plots: dict[str, tuple[str, Callable[[Axes, Report], None]]] = {
        "document_tokens.png": ("Tokens per document (train)", _document_tokens),
        "sources.png": ("Sources' shares (train)", _sources),
        "dropped.png": ("Dropped and cut, by reason", _dropped),
    }
    if report["splits"].get("train", {}).get("rows"):
        counts = {
            report["seq_len"]: report["splits"]["train"]["length_counts"],
            **{int(name): counts for name, counts in report["other_length_counts"].items()},
        }
        plots = {
            **{
                f"lengths_{seq_len}.png": (
                    f"Length of the examples at {seq_len} (train)",
                    functools.partial(_lengths, seq_len, counts[seq_len]),
                )
                for seq_len in sorted(counts)
            },
            "labels_and_masks.png": ("Label balance and masks (train)", _labels_and_masks),
            **plots,
        }
    return {name: (title, _png(title, plot, report)) for name, (title, plot) in plots.items()}


def dropped_by_reason(report: Report) -> dict[str, int]:
    """Counts of everything dropped or cut between source and shard, by reason with its unit."""
    corpus = report["corpus"]
    counts = {
        f"{source}: {reason} (documents)": count
        for source, metrics in corpus["sources"].items()
        for reason, count in metrics["dropped"].items()
    }
    counts |= {
        f"{source}: {rule} (lines or texts)": count
        for source, metrics in corpus["sources"].items()
        for rule, count in metrics.get("changed", {}).items()
    }
    counts |= {f"encode: {name.replace('_', ' ')}": n for name, n in corpus["dropped"].items()}
    for split, metrics in report["splits"].items():
        for name in LOSSES:
            counts[f"build {split}: {name.replace('_', ' ')}"] = metrics.get(name, 0)
    return counts


def _png(title: str, plot: Callable[[Axes, Report], None], report: Report) -> bytes:
    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    plot(axes, report)
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _lengths(seq_len: int, length_counts: list[int], axes: Axes, _: Report) -> None:
    counts = np.array(length_counts)
    width = max(1, len(counts) // 64)
    bins = np.add.reduceat(counts, np.arange(0, len(counts), width))
    axes.bar(np.arange(len(bins)) * width, bins, width=width, align="edge", color=BLUE)
    tokens = counts @ np.arange(len(counts))
    mean, real = tokens / max(counts.sum(), 1), tokens / max(counts.sum() * seq_len, 1)
    axes.axvline(mean, color=ORANGE, label=f"mean {mean:.1f}; {real:.1%} of all positions are real")
    axes.set_yscale("log")
    axes.set_xlabel(f"tokens, including special ones ({width} per bar)")
    axes.set_ylabel("examples")
    axes.legend(frameon=False)


def _document_tokens(axes: Axes, report: Report) -> None:
    counts = report["corpus"]["splits"]["train"]["document_tokens_log2_counts"]
    last = max((power for power, count in enumerate(counts) if count), default=0)
    axes.bar(range(last + 1), counts[: last + 1], width=0.95, align="edge", color=BLUE)
    labels = [_short(2**power) for power in range(0, last + 2, 2)]
    axes.set_xticks(range(0, last + 2, 2), labels)
    axes.set_xlabel("tokens per document (each bar up to twice the one before)")
    axes.set_ylabel("documents")


def _short(number: int) -> str:
    """1024 as 1K."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)


def _sources(axes: Axes, report: Report) -> None:
    train = report["corpus"]["splits"]["train"]
    names = list(train["documents_of_source"])
    positions = np.arange(len(names))
    for shift, key, label, colour in (
        (-0.2, "tokens", "of the tokens", BLUE),
        (0.2, "documents", "of the documents", GREY),
    ):
        counts = np.array([train[f"{key}_of_source"][name] for name in names], float)
        bars = axes.barh(positions + shift, counts / max(counts.sum(), 1), 0.38, color=colour)
        bars.set_label(label)
        axes.bar_label(bars, [f" {share:.1%}" for share in counts / max(counts.sum(), 1)])
    _name_bars(axes, names)
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("share")
    axes.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.2))


def _labels_and_masks(axes: Axes, report: Report) -> None:
    train = report["splits"]["train"]
    masking = report["made"]["settings"]["masking"]
    kept = 1 - masking["mask_share"] - masking["random_share"]
    rows = [
        *((name, train[key], 0.5) for name, key in LABELS if key in train),
        ("masked, of all tokens", train["masked_share"], masking["rate"]),
        ("… as [MASK]", train["mask_share"], masking["mask_share"]),
        ("… as a random entry", train["random_share"], masking["random_share"]),
        ("… kept", train["kept_share"], kept),
    ]
    names, found, asked = zip(*rows, strict=True)
    bars = axes.barh(range(len(rows)), found, 0.6, color=BLUE, label="found")
    axes.bar_label(bars, [f"  {share:.2%}" for share in found])
    marks = axes.plot(asked, range(len(rows)), "|", markersize=22, markeredgewidth=2)
    marks[0].set(color=ORANGE, label="aim")
    _name_bars(axes, list(names))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share")
    axes.legend(frameon=False, loc="upper right")


def _dropped(axes: Axes, report: Report) -> None:
    counts = {name: count for name, count in dropped_by_reason(report).items() if count}
    if not counts:
        axes.text(0.5, 0.5, "nothing", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    bars = axes.barh(range(len(counts)), list(counts.values()), 0.6, color=ORANGE)
    axes.bar_label(bars, [f" {count:,}" for count in counts.values()])
    axes.set_xscale("log")
    axes.set_xlim(0.8, 8 * max(counts.values()))
    _name_bars(axes, list(counts))
    axes.set_xlabel("number (logarithmic)")


def _name_bars(axes: Axes, names: list[str]) -> None:
    """Names on the left, the first on top. In names of a corpus a "$" does not start a formula."""
    shown = [name if len(name) <= 44 else name[:43] + "…" for name in names]
    axes.set_yticks(range(len(shown)), shown, parse_math=False)
    axes.invert_yaxis()
