"""The picture of the benchmark: losses over tokens and over seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from scripts.bench.parts.crossing import Curves, spread
from scripts.bench.parts.trials import REFERENCE

COLOURS = ("#4a5568", "#1f5fa8", "#b45309", "#5b3f99", "#2f855a", "#c53030", "#0e7490", "#a16207")
LABELS = {"tokens": "tokens", "seconds": "seconds of training"}


def draw(curves: Mapping[str, Curves], path: Path) -> None:
    """Draw means over seeds with their deviation, one panel per cost."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (cost, by_variant) in zip(panels, curves.items(), strict=True):
        _plot(axes, by_variant)
        axes.set_xlabel(LABELS[cost])
    panels[0].set_ylabel("held-out MLM loss, nats")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, facecolor="white", metadata={"Date": None})


def _plot(axes: Axes, by_variant: Curves) -> None:
    for colour, (name, by_seed) in zip(COLOURS, by_variant.items(), strict=False):
        lengths = min((len(points) for points in by_seed.values()), default=0)
        points = [[own[n] for own in by_seed.values()] for n in range(lengths)]
        if not points:
            continue
        x = [spread([cost for cost, _ in own]).mean for own in points]
        losses = [spread([loss for _, loss in own]) for own in points]
        y = [own.mean for own in losses]
        by = [own.deviation or 0.0 for own in losses]
        axes.plot(x, y, color=colour, marker="o", markersize=3.5, label=_label(name))
        low = [mean - one for mean, one in zip(y, by, strict=True)]
        high = [mean + one for mean, one in zip(y, by, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e2e8f0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _label(name: str) -> str:
    return "stock transformers" if name == REFERENCE else f"this project, {name}"
