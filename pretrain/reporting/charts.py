"""The charts of a report: which metrics, in which sections."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.core.objectives import Pairing
from pretrain.metrics.names import METRICS
from pretrain.metrics.reference_curves import curve_for
from pretrain.reporting.plots import FIRST, SECOND, THIRD, Band, Chart, Line
from pretrain.reporting.tables import other_name
from pretrain.run_folder.history import History, moment


@dataclass(frozen=True)
class _Spec:
    """A chart over steps; `unit` is that of the first metric if None."""

    title: str
    lines: dict[str, str]  # metric: label
    unit: str | None = None
    how: dict[str, Any] = field(default_factory=dict)  # of Chart


_ZERO, _LOG, _SHARE = {"from_zero": True}, {"is_log": True}, {"is_share": True}
_UPDATES = (
    _Spec("Learning rate", {"optim/learning_rate": "learning rate"}, "", _ZERO),
    _Spec("Gradient norm", {"optim/grad_norm": "gradient norm"}, "before clipping", _LOG),
    _Spec("Loss scale", {"optim/loss_scale": "loss scale"}, "fp16", _LOG),
)
_HARDWARE = (
    _Spec("Share of the peak", {"perf/mfu": "of a device's peak"}, "model FLOP/s",
          _SHARE | _ZERO),
    _Spec("Model TFLOP/s", {"perf/model_tflops_per_device": "TFLOP/s"}, "per device", _ZERO),
    _Spec("Memory", {"perf/host_memory_gb": "rank 0's host process",
                     "perf/device_memory_gb": "rank 0's device"}, "GB, peak so far", _ZERO),
    _Spec("Waiting and filling", {"perf/data_wait_share": "of the time waiting for data",
                                  "perf/budget_fill": "of the token budget filled"},
          "share", _SHARE | _ZERO),
)  # fmt: skip
_LOOKS = ((FIRST, "-", ""), (SECOND, "--", "o"), (THIRD, ":", ""))


def loss_chart(run: History) -> Chart | None:
    """Training and held-out MLM loss over steps; None if the run has recorded none."""
    drawn = _over_steps(run, None, _Spec("MLM loss", _both("mlm_loss")))
    return None if drawn is None else drawn[0]


def sections(run: History, other: History | None) -> Iterator[tuple[str, list[tuple[Chart, str]]]]:
    """Headings, each with its charts and their captions."""

    def drawn(specs: Sequence[_Spec]) -> list[tuple[Chart, str]]:
        charts = (_over_steps(run, other, spec) for spec in specs)
        return [chart for chart in charts if chart is not None]

    yield "Curves", drawn(_curves(run))
    yield "Downstream", list(_downstream(run))
    yield "Updates", drawn(_UPDATES)
    yield "Speed", list(_over_time(run))
    yield "Use of the hardware", drawn(_HARDWARE)


def _curves(run: History) -> list[_Spec]:
    pairing, tasks = run.settings.data.pairs, ["mlm"]
    if pairing is not Pairing.none:
        tasks.append(pairing.name)
    specs = [
        _Spec(f"{task.upper()} {kind}", _both(f"{task}_{kind}"), how=how)
        for task in tasks
        for kind, how in (("loss", {}), ("accuracy", _SHARE))
    ]
    if _banded(run) == "train/loss":  # the published curve is of the sum
        specs.append(_Spec("Sum of both losses", _both("loss")))
    return specs


def _both(metric: str) -> dict[str, str]:
    return {f"train/{metric}": "training", f"eval/{metric}": "held-out"}


def _over_steps(run: History, other: History | None, spec: _Spec) -> tuple[Chart, str] | None:
    """The chart with its caption; None if the run has none of its metrics."""
    lines = [
        Line(label, *run.series(name), *look)
        for (name, label), look in zip(spec.lines.items(), _LOOKS, strict=False)
    ]
    if not any(len(line.x) for line in lines):
        return None
    first, (last, label) = next(iter(spec.lines)), list(spec.lines.items())[-1]
    if other is not None:
        theirs = f"{label}, {other_name(run, other)}"
        lines.append(Line(theirs, *other.series(last), THIRD, ":", width=2.2))
    unit = METRICS[first].unit if spec.unit is None else spec.unit
    bands = _bands(run) if first == _banded(run) else []
    breaks = [stretch.first_step for stretch in run.stretches[1:]]
    chart = Chart(spec.title, "step", unit, lines, bands, breaks, **spec.how)
    return chart, _last_values(lines, chart.is_share)


def _downstream(run: History) -> Iterator[tuple[Chart, str]]:
    """Results of fine-tuned checkpoints (scripts.evaluate_checkpoints), a chart per task."""
    for task in dict.fromkeys(line["task"] for line in run.downstream):
        points = [line for line in run.downstream if line["task"] == task]
        steps = [line["step"] for line in points]
        lines = []
        for name, (colour, style, _) in zip(points[-1]["figures"], _LOOKS, strict=False):
            means = [line["figures"][name]["mean"] for line in points]
            lines.append(Line(name, steps, means, colour, style, "o"))
        caption = _last_values(lines) + f"; {points[-1]['seeds']} seed(s)."
        yield Chart(f"Fine-tuned on {task}", "step", "percent", lines), caption


def _over_time(run: History) -> Iterator[tuple[Chart, str]]:
    """Speed and goodput over time; the time between two stretches is empty."""
    if not run.stretches:
        return
    began = run.stretches[0].began
    unit, size = ("hours", 3600.0) if run.wall_s > 2 * 3600 else ("minutes", 60.0)
    breaks = [(stretch.began - began).total_seconds() / size for stretch in run.stretches[1:]]
    for title, metric, y_label, form, how in (
        ("Tokens per second", "perf/tokens_per_second", "all ranks", "{:,.0f}", {}),
        ("Goodput", "perf/goodput", "share of the wall time", "{:.1%}", _SHARE),
    ):
        points = []
        for stretch in run.stretches:
            points += [
                (moment(record), record[metric])
                for record in run.records
                if record.get(metric) is not None
                and stretch.began <= moment(record) <= stretch.ended
            ]
            points.append((stretch.ended, math.nan))  # the line breaks here
        times = [(when - began).total_seconds() / size for when, _ in points]
        values = [value for _, value in points]
        real = [value for value in values if not math.isnan(value)]
        if real:
            median, last = form.format(statistics.median(real)), form.format(real[-1])
            x_label, line = f"{unit} since the first step", Line(title.lower(), times, values)
            chart = Chart(title, x_label, y_label, [line], (), breaks, from_zero=True, **how)
            yield chart, f"Median {median}, at the end {last}."


def _banded(run: History) -> str:
    """The metric that the published band is of."""
    curve = curve_for(run.settings)
    return "train/mlm_loss" if curve is None else curve.metric


def _bands(run: History) -> list[Band]:
    steps, low = run.series("band/low")
    _, high = run.series("band/high")
    return [Band("published runs", steps, low, high)] if steps else []


def _last_values(lines: Sequence[Line], is_share: bool = False) -> str:
    form = "{:.2%}" if is_share else "{:,.4g}"
    return "At the end: " + "; ".join(
        f"{line.label} {form.format(line.y[-1])}" for line in lines if len(line.y)
    )
