"""The report's charts as SVG: drawn by matplotlib, in the page's own colours and font.

Lines are drawn in placeholder colours, which become CSS variables of the page, so that one picture
fits light mode, dark mode and paper. Strokes and marks differ too, for readers without colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FormatStrFormatter,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

MOST_POINTS = 800  # per line; if there are more, means are drawn

# Placeholder: CSS variable of the page, and its value there in light mode
COLOURS = {
    "#010203": ("--ink", "#1a202c"),
    "#020304": ("--faint", "#a0aec0"),
    "#030405": ("--first", "#1f5fa8"),
    "#040506": ("--second", "#b45309"),
    "#050607": ("--third", "#5b3f99"),
    "#060708": ("--band", "#dbe7f3"),
}
INK, FAINT, FIRST, SECOND, THIRD, BAND = COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, in the page's font
    "text.parse_math": False,  # a name with $ is no formula
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
}


@dataclass(frozen=True)
class Line:
    """One line of a chart, or single points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = FIRST
    style: str = "-"  # matplotlib's; "" draws marks alone
    mark: str = ""
    width: float = 1.6


@dataclass(frozen=True)
class Band:
    """The range of published runs."""

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """The content of one picture."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    breaks: Sequence[float] = ()  # restarts, as vertical lines
    is_share: bool = False
    from_zero: bool = False
    is_log: bool = False


def draw(chart: Chart) -> str:
    """The chart as an <svg> element of the page."""
    return _for_the_page(_svg(chart, {"transparent": True}), chart.title)


def picture(chart: Chart) -> str:
    """The chart as an SVG document of its own: black on white, with its title."""
    svg = _svg(chart, {"facecolor": "white"}, chart.title)
    for placeholder, (_, colour) in COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return svg


def _svg(chart: Chart, background: dict[str, Any], title: str = "") -> str:
    """matplotlib's document, in placeholder colours."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(7.2, 3.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _plot(axes, chart)
        figure.suptitle(title, fontsize=11)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **background)
    return buffer.getvalue()


def _plot(axes: Axes, chart: Chart) -> None:
    drawn = [line for line in chart.lines if len(line.x)]
    for band in chart.bands:
        axes.fill_between(band.x, band.low, band.high, color=BAND, linewidth=0, label=band.label)
        for edge in (band.low, band.high):  # visible on paper, too
            axes.plot(band.x, edge, color=FAINT, linewidth=0.8)
    for number, position in enumerate(chart.breaks):
        label = "restart" if number == 0 else None
        axes.axvline(position, color=FAINT, linewidth=1, linestyle=(0, (2, 3)), label=label)
    for line in drawn:
        x, y = _thinned(np.asarray(line.x, float), np.asarray(line.y, float))
        axes.plot(
            x,
            y,
            line.style,
            color=line.colour,
            linewidth=line.width,
            marker=line.mark or None,
            markersize=4,
            markevery=max(1, len(x) // 25),
            label=line.label,
        )
        alone = _alone(y)  # no line leads there
        axes.plot(x[alone], y[alone], "o", color=line.colour, markersize=4)
    if chart.bands and drawn:  # the view is the run's own
        first, last = min(min(line.x) for line in drawn), max(max(line.x) for line in drawn)
        room = 0.02 * (last - first) or 0.5
        axes.set_xlim(first - room, last + room)
    if chart.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        values = [value for line in drawn for value in line.y]
        is_narrow = max(values) < 10 * min(values)  # otherwise labels would overlap
        axes.yaxis.set_minor_formatter(FormatStrFormatter("%g") if is_narrow else NullFormatter())
    elif chart.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    else:
        largest = max((max(line.y) for line in drawn), default=0)
        axes.yaxis.set_major_formatter(
            EngFormatter(sep="") if largest >= 1e4 else FormatStrFormatter("%g")
        )
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=chart.x_label == "step"))
    if chart.x_label == "step":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    labels = axes.get_legend_handles_labels()[1]
    ncols = 4 if sum(map(len, labels)) < 60 else 2  # a wide legend would squeeze the picture
    axes.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols, fontsize=9, borderpad=0
    )


def _alone(y: np.ndarray) -> np.ndarray:
    """Of each value, whether it is there and neither of its neighbours is."""
    there = np.pad(~np.isnan(y), 1)
    return np.asarray(there[1:-1] & ~there[:-2] & ~there[2:])


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS points: means of neighbours, and the last point unchanged."""
    if len(x) <= MOST_POINTS or np.isnan(y).any():
        return x, y
    size = -(-len(x) // MOST_POINTS)
    starts = np.arange(0, len(x), size)
    counts = np.diff([*starts, len(x)])
    return np.append(np.add.reduceat(x, starts) / counts, x[-1]), np.append(
        np.add.reduceat(y, starts) / counts, y[-1]
    )


def _for_the_page(svg: str, title: str) -> str:
    """matplotlib's document as an element without prolog and size, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for placeholder, (variable, _) in COLOURS.items():
        svg = svg.replace(placeholder, f"var({variable})")
    # a prefix makes ids unique in the page
    name = re.sub(r"\W+", "-", title).strip("-").lower()
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return svg
