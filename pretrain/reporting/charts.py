"""The charts of a report: which metrics, in which sections."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from data_prep.core.objectives import Pairing
from pretrain.metrics.reference_curves import curve_for
from pretrain.reporting.plots import SECOND, THIRD, Band, Chart, Line
from pretrain.reporting.tables import other_name
from pretrain.run_folder.history import History, moment


def sections(run: History, other: History | None) -> Iterator[tuple[str, list[tuple[Chart, str]]]]:
    """Headings, and below each its charts with their captions."""
    breaks = [stretch.first_step for stretch in run.stretches[1:]]
    pairing = run.settings.data.pairs

    def of_steps(
        title: str, unit: str, names: Sequence[tuple[str, str]], **how: Any
    ) -> list[tuple[Chart, str]]:
        lines = []
        for (name, label), (colour, style, mark) in zip(names, _LOOKS, strict=False):
            x, y = run.series(name)
            lines.append(Line(label, x, y, colour, style, mark))
        if not any(len(line.x) for line in lines):
            return []
        if other is not None:
            name, label = names[-1]
            x, y = other.series(name)
            their = f"{label}, {other_name(run, other)}"
            lines.append(Line(their, x, y, THIRD, ":", width=2.2))
        bands = _bands(run) if names[0][0] == _banded(run) else []
        chart = Chart(title, "step", unit, lines, bands, breaks, **how)
        return [(chart, _last_values(lines, **how))]

    curves = of_steps(
        "MLM loss", "nats a masked token",
        [("train/mlm_loss", "training"), ("eval/mlm_loss", "held-out")],
    ) + of_steps(
        "MLM accuracy", "share of masked tokens",
        [("train/mlm_accuracy", "training"), ("eval/mlm_accuracy", "held-out")], is_share=True,
    )  # fmt: skip
    if pairing is not Pairing.none:
        task = pairing.name
        curves += of_steps(
            f"{task.upper()} loss", "nats a pair",
            [(f"train/{task}_loss", "training"), (f"eval/{task}_loss", "held-out")],
        ) + of_steps(
            f"{task.upper()} accuracy", "share of pairs",
            [(f"train/{task}_accuracy", "training"), (f"eval/{task}_accuracy", "held-out")],
            is_share=True,
        )  # fmt: skip
    if _banded(run) == "train/loss":  # the published curve is that of both losses together
        curves += of_steps(
            "Both losses together", "nats",
            [("train/loss", "training"), ("eval/loss", "held-out")],
        )  # fmt: skip
    yield "Curves", curves
    yield "Downstream", list(_downstream(run))
    yield "Updates", [
        *of_steps("Learning rate", "", [("optim/learning_rate", "learning rate")], from_zero=True),
        *of_steps("Gradient norm", "before clipping", [("optim/grad_norm", "gradient norm")],
                  is_log=True),
        *of_steps("Loss scale", "fp16", [("optim/loss_scale", "loss scale")], is_log=True),
    ]  # fmt: skip
    yield "Speed", list(_over_time(run))
    yield "Use of the hardware", [
        *of_steps("Share of the peak", "model FLOP/s", [("perf/mfu", "of a device's peak")],
                  is_share=True, from_zero=True),
        *of_steps("Model TFLOP/s", "a device", [("perf/model_tflops_per_device", "TFLOP/s")],
                  from_zero=True),
        *of_steps("Memory", "GB, peak so far",
                  [("perf/host_memory_gb", "rank 0's host process"),
                   ("perf/device_memory_gb", "rank 0's device")], from_zero=True),
        *of_steps("Waiting and filling", "share",
                  [("perf/data_wait_share", "of the time waiting for data"),
                   ("perf/budget_fill", "of the token budget filled")],
                  is_share=True, from_zero=True),
    ]  # fmt: skip


_LOOKS = (("#030405", "-", ""), (SECOND, "--", "o"))


def _downstream(run: History) -> Iterator[tuple[Chart, str]]:
    """What checkpoints reached when fine-tuned (scripts.evaluate_checkpoints), a chart a task."""
    for task in dict.fromkeys(line["task"] for line in run.downstream):
        points = [line for line in run.downstream if line["task"] == task]
        steps = [line["step"] for line in points]
        lines = [
            Line(
                name, steps, [line["figures"][name]["mean"] for line in points], colour, style, "o"
            )
            for name, (colour, style, _) in zip(
                points[-1]["figures"], (*_LOOKS, (THIRD, ":", "")), strict=False
            )
        ]
        caption = _last_values(lines) + f"; {points[-1]['seeds']} seed(s)."
        yield Chart(f"Fine-tuned on {task}", "step", "percent", lines), caption


def _over_time(run: History) -> Iterator[tuple[Chart, str]]:
    """Speed and goodput by the clock, with the time between two stretches left empty."""
    if not run.stretches:
        return
    began = run.stretches[0].began
    unit, size = ("hours", 3600.0) if run.wall_s > 2 * 3600 else ("minutes", 60.0)

    def place(when: datetime) -> float:
        return (when - began).total_seconds() / size

    breaks = [place(stretch.began) for stretch in run.stretches[1:]]
    for title, figure, y_label, form, how in (
        ("Tokens a second", "perf/tokens_per_second", "all ranks", "{:,.0f}", {}),
        ("Goodput", "perf/goodput", "share of the wall time", "{:.1%}", {"is_share": True}),
    ):
        times: list[float] = []
        values: list[float] = []
        for stretch in run.stretches:
            for record in run.records:
                when = moment(record)
                if record.get(figure) is not None and stretch.began <= when <= stretch.ended:
                    times.append(place(when))
                    values.append(record[figure])
            times.append(place(stretch.ended))
            values.append(math.nan)  # the line breaks here
        real = [value for value in values if not math.isnan(value)]
        if real:
            line = Line(title.lower(), times, values)
            caption = f"Median {form.format(statistics.median(real))}, at the end {form.format(real[-1])}."
            x_label = f"{unit} since the first step"
            chart = Chart(title, x_label, y_label, [line], (), breaks, from_zero=True, **how)
            yield chart, caption


def _banded(run: History) -> str:
    """The figure that the published band is of."""
    curve = curve_for(run.settings)
    return "train/mlm_loss" if curve is None else curve.metric


def _bands(run: History) -> list[Band]:
    steps, low = run.series("band/low")
    _, high = run.series("band/high")
    return [Band("published runs", steps, low, high)] if steps else []


def _last_values(lines: Sequence[Line], is_share: bool = False, **_: Any) -> str:
    form = "{:.2%}" if is_share else "{:,.4g}"
    return "At the end: " + "; ".join(
        f"{line.label} {form.format(line.y[-1])}" for line in lines if len(line.y)
    )
