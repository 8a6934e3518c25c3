"""One page about a run that needs nothing else: no network, no script, no wandb.

    python -m pretrain.report run=runs/x [other=runs/y] [target=FILE]

It may be written while the run is in progress. Text from data, settings and names is escaped by the
template engine; charts are SVG inside the page.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_prep.core.config import SettingsError, as_dict
from data_prep.core.files import whole_or_absent
from data_prep.core.objectives import Pairing
from pretrain.config.arguments import asks_for_help, named_words
from pretrain.metrics.reference_curves import curve_for
from pretrain.planning.plan_vs_actual import Compared, compare
from pretrain.reporting.plots import SECOND, THIRD, Band, Chart, Line, draw
from pretrain.run_folder.history import History, State, moment

ARGUMENTS = {"run": "FOLDER", "other": "FOLDER", "target": "FILE"}
TEMPLATE = "report.html"
MOST_EVENTS = 200  # shown; the file has all
QUIET_EVENTS = ("checkpoint", "lost")  # too many to be listed, or said in the table of starts
RESULTS = (
    ("eval/mlm_loss", "held-out MLM loss", "{:.4f}"),
    ("eval/mlm_perplexity", "held-out MLM perplexity", "{:,.2f}"),
    ("eval/mlm_accuracy", "held-out MLM accuracy", "{:.2%}"),
    ("eval/nsp_loss", "held-out NSP loss", "{:.4f}"),
    ("eval/nsp_accuracy", "held-out NSP accuracy", "{:.2%}"),
    ("eval/sop_loss", "held-out SOP loss", "{:.4f}"),
    ("eval/sop_accuracy", "held-out SOP accuracy", "{:.2%}"),
    ("train/mlm_loss", "training MLM loss", "{:.4f}"),
    ("train/nsp_loss", "training NSP loss", "{:.4f}"),
    ("train/sop_loss", "training SOP loss", "{:.4f}"),
    ("perf/tokens_per_second", "tokens a second", "{:,.0f}"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a report: 0, or 2 with a message where the arguments are wrong."""
    typed = sys.argv[1:] if argv is None else argv
    if asks_for_help(typed):
        sys.stdout.write(__doc__ or "")
        return 0
    try:
        words = named_words(typed, ARGUMENTS, needed=["run"])
        run = History.read(Path(words["run"]))
        other = History.read(Path(words["other"])) if "other" in words else None
        target = Path(words.get("target", f"{words['run']}/report.html"))
        with whole_or_absent(target) as temporary:
            temporary.write_text(page(run, other), encoding="utf-8")
    except SettingsError as error:
        sys.stderr.write(f"pretrain.report: {error}\n")
        return 2
    sys.stdout.write(f"report  {target}\n")
    return 0


def page(run: History, other: History | None = None) -> str:
    """The whole page about `run`, set beside `other`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    shown = [event for event in run.events if event["event"] not in QUIET_EVENTS]
    return environment.get_template(TEMPLATE).render(
        name=run.name,
        other=None if other is None else _other_name(run, other),
        state=run.state.value,
        lead=_lead(run),
        notices=_notices(run),
        result_head=_result_head(run, other),
        results=list(_results(run, other)),
        facts=list(_facts(run)),
        sections=[
            (heading, [(chart.title, Markup(draw(chart)), caption) for chart, caption in charts])
            for heading, charts in _sections(run, other)
            if charts
        ],
        guesses_head=_guesses_head(run),
        guesses=list(_guesses(run)),
        planned=[[row.name, *row.cells] for row in _planned(run)],
        starts=list(_starts(run)),
        events_line=_events_line(run, len(shown)),
        events=[_event_row(event) for event in shown[-MOST_EVENTS:]],
        differences=None if other is None else list(_differences(run, other)),
        environment=list(_environment(run.environment)),
        settings=sorted(_flat(as_dict(run.settings)).items()),
    )


def _lead(run: History) -> str:
    """What was trained on what, how far, how long: two sentences."""
    settings, model = run.settings, run.settings.model
    pairing = settings.data.pairs
    task = "MLM alone" if pairing is Pairing.none else f"MLM and {pairing.name.upper()}"
    lengths = dict.fromkeys(phase.settings.data.seq_len for phase in run.phases)
    total = run.total_steps
    steps = f"{run.step:,} steps" if total is None else f"{run.step:,} of {total:,} steps"
    starts = len(run.stretches)
    return (
        f"BERT of {model.num_hidden_layers} layers of {model.hidden_size}, {task}, on "
        f"{settings.data.dir} at {' and then '.join(map(str, lengths))} tokens, "
        f"{settings.optim.step_size} an update. {steps} in {_span(run.running_s)}"
        + (f", {starts} starts." if starts > 1 else ".")
    )


def _notices(run: History) -> Iterator[str]:
    """What a reader must know before believing the rest."""
    if run.state is State.died:
        yield (
            f"The run ended without its last step and without a signal after step {run.step:,}. "
            f"{run.folder / 'logs'} says why; the same command continues it."
        )
    if run.state is State.empty:
        yield "The run has not come to its first step."
    for event in run.events:
        if event["event"] == "expectation":
            yield " ".join([event["text"], "; ".join(event["findings"])])


def _result_head(run: History, other: History | None) -> list[str]:
    return (
        ["", run.name] if other is None else ["", run.name, _other_name(run, other), "difference"]
    )


def _results(run: History, other: History | None) -> Iterator[list[str]]:
    for name, label, form in RESULTS:
        value = run.last(name)
        if value is None:
            continue
        row = [label, form.format(value)]
        if other is not None:
            theirs = other.last(name)
            row += ["–", "–"] if theirs is None else [
                form.format(theirs), form.replace(":", ":+z", 1).format(value - theirs)
            ]  # fmt: skip
        yield row


def _facts(run: History) -> Iterator[tuple[str, str]]:
    stretches = run.stretches
    if stretches:
        yield "first step", f"{stretches[0].began:%Y-%m-%d %H:%M} UTC"
        yield "last sign of life", f"{stretches[-1].ended:%Y-%m-%d %H:%M} UTC"
        yield "training", f"{_span(run.running_s)} in {len(stretches)} stretch(es)"
        yield "wall time", _span(run.wall_s)
    if (goodput := run.last("perf/goodput")) is not None:
        yield "goodput", f"{goodput:.1%} of the wall time in steps that count"
    lost = sum(stretch.lost_steps for stretch in stretches)
    yield "steps made twice", f"{lost:,}"
    for kind, label in (
        ("skipped_step", "updates left out"),
        ("overflow", "overflows of fp16"),
        ("spike", "spikes of the loss"),
        ("checkpoint_failed", "checkpoints that failed"),
    ):
        if count := sum(event["event"] == kind for event in run.events):
            yield label, f"{count:,}"
    yield "ranks", ", ".join(str(n) for n in dict.fromkeys(s.ranks for s in stretches)) or "–"


def _sections(run: History, other: History | None) -> Iterator[tuple[str, list[tuple[Chart, str]]]]:
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
            their = f"{label}, {_other_name(run, other)}"
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


def _guesses_head(run: History) -> list[str]:
    return ["", *(f"after {line['step']:,} steps" for line in _three(run.guesses))]


def _guesses(run: History) -> Iterator[list[str]]:
    """Each sentence, and what stood first for its [MASK] early, half-way and last."""
    lines = _three(run.guesses)
    for sentence in lines[-1]["guesses"] if lines else ():
        yield [
            sentence,
            *(
                ", ".join(
                    f"{word} {share:.0%}" for word, share in line["guesses"].get(sentence, [])
                )
                for line in lines
            ),
        ]


def _three(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first, the middle and the last."""
    places = sorted({0, len(lines) // 2, len(lines) - 1}) if lines else []
    return [lines[place] for place in places]


def _planned(run: History) -> list[Compared]:
    """The plan and what came; nothing where the data are not there any more."""
    try:
        return compare(run.folder, run.settings)
    except (OSError, SettingsError):
        return []


def _banded(run: History) -> str:
    """The figure that the published band is of."""
    curve = curve_for(run.settings)
    return "train/mlm_loss" if curve is None else curve.figure


def _bands(run: History) -> list[Band]:
    steps, low = run.series("band/low")
    _, high = run.series("band/high")
    return [Band("published runs", steps, low, high)] if steps else []


def _last_values(lines: Sequence[Line], is_share: bool = False, **_: Any) -> str:
    form = "{:.2%}" if is_share else "{:,.4g}"
    return "At the end: " + "; ".join(
        f"{line.label} {form.format(line.y[-1])}" for line in lines if len(line.y)
    )


def _starts(run: History) -> Iterator[list[str]]:
    for number, s in enumerate(run.stretches, start=1):
        yield [
            str(number), f"{s.began:%Y-%m-%d %H:%M:%S}", s.kind, str(s.ranks), f"{s.first_step:,}",
            f"{s.last_step:,}", f"{s.lost_steps:,}", _span((s.ended - s.began).total_seconds()), s.end,
        ]  # fmt: skip


def _events_line(run: History, num_shown: int) -> str:
    saved = [event for event in run.events if event["event"] == "checkpoint"]
    line = f"{len(saved):,} checkpoint(s) written"
    if saved:
        line += f", the last at step {saved[-1]['step']:,}"
    if num_shown > MOST_EVENTS:
        line += f"; the last {MOST_EVENTS} of {num_shown:,} other events"
    return line + f". All of them: {run.folder / 'events.jsonl'}"


def _event_row(event: dict[str, Any]) -> list[str]:
    details = {k: v for k, v in event.items() if k not in ("time", "event", "step")}
    text = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in details.items())
    step = event.get("step", event.get("after"))
    return [
        f"{moment(event):%Y-%m-%d %H:%M:%S}",
        event["event"].replace("_", " "),
        "" if step is None else f"{step:,}",
        text,
    ]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(str, value[:4]))}, ... ({len(value):,})"
    return str(value)


def _differences(run: History, other: History) -> Iterator[tuple[str, str, str]]:
    """Settings and versions that are not the same. Names of runs and where they lie are not shown."""
    ours = {**_flat(as_dict(run.settings)), **dict(_environment(run.environment))}
    theirs = {**_flat(as_dict(other.settings)), **dict(_environment(other.environment))}
    for name in sorted({*ours, *theirs} - {"run.name", "run.dir"}):
        if ours.get(name) != theirs.get(name):
            yield name, ours.get(name, "–"), theirs.get(name, "–")


def _environment(environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    flat = _flat(environment)
    for name, value in flat.items():
        yield name.removeprefix("packages.").replace("_", " "), value


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{group.name: text} of nested dictionaries."""
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = "null" if value is None else str(value)
    return flat


def _other_name(run: History, other: History) -> str:
    return other.name if other.name != run.name else str(other.folder)


def _span(seconds: float) -> str:
    """3:02:10, or 2 days, 3:02:10."""
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    sys.exit(main())
