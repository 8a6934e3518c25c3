"""The report page, rendered from its template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_prep.core.config import as_dict
from data_prep.core.objectives import Pairing
from pretrain.metrics.trace import read_summary
from pretrain.reporting.charts import sections
from pretrain.reporting.plots import draw
from pretrain.reporting.tables import (
    MOST_EVENTS,
    PROFILE_HEAD,
    differences,
    environment_rows,
    event_row,
    events_line,
    facts,
    flat_settings,
    guesses,
    guesses_head,
    other_name,
    planned,
    profile_rows,
    profile_top,
    result_head,
    results,
    span,
    start_rows,
)
from pretrain.run_folder.history import History, State

TEMPLATE = "report.html"

QUIET_EVENTS = ("checkpoint", "lost")  # too many to list, or in the table of starts


def page(run: History, other: History | None = None) -> str:
    """The page about `run`, compared with `other` if there is one."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    profile = read_summary(run.folder)
    if profile is not None and not profile.ranks:  # none could be written
        profile = None
    shown = [event for event in run.events if event["event"] not in QUIET_EVENTS]
    return environment.get_template(TEMPLATE).render(
        name=run.name,
        other=None if other is None else other_name(run, other),
        state=run.state.value,
        lead=_lead(run),
        notices=_notices(run),
        result_head=result_head(run, other),
        results=list(results(run, other)),
        facts=list(facts(run)),
        sections=[
            (heading, [(chart.title, Markup(draw(chart)), caption) for chart, caption in charts])
            for heading, charts in sections(run, other)
            if charts
        ],
        guesses_head=guesses_head(run),
        guesses=list(guesses(run)),
        planned=[[row.name, *row.cells] for row in planned(run)],
        profile=profile,
        profile_head=PROFILE_HEAD,
        profile_rows=[] if profile is None else list(profile_rows(profile)),
        profile_top=None if profile is None else profile_top(profile),
        starts=list(start_rows(run)),
        events_line=events_line(run, len(shown)),
        events=[event_row(event) for event in shown[-MOST_EVENTS:]],
        differences=None if other is None else list(differences(run, other)),
        environment=list(environment_rows(run.environment)),
        settings=sorted(flat_settings(as_dict(run.settings)).items()),
    )


def _lead(run: History) -> str:
    """What was trained on what, how far and how long, in two sentences."""
    settings, model = run.settings, run.settings.model
    pairing = settings.data.pairs
    task = "MLM alone" if pairing is Pairing.none else f"MLM and {pairing.name.upper()}"
    lengths = dict.fromkeys(phase.settings.data.seq_len for phase in run.phases)
    total = run.total_steps
    steps = f"{run.step:,} steps" if total is None else f"{run.step:,} of {total:,} steps"
    starts = len(run.stretches)
    return (
        f"BERT with {model.num_hidden_layers} layers of size {model.hidden_size}, {task}, on "
        f"{settings.data.dir} at {' and then '.join(map(str, lengths))} tokens, "
        f"{settings.optim.step_size} per update. {steps} in {span(run.running_s)}"
        + (f", {starts} starts." if starts > 1 else ".")
    )


def _notices(run: History) -> Iterator[str]:
    """What a reader must know first."""
    if run.state is State.died:
        yield (
            f"The run died after step {run.step:,}: no last step, no signal. The reason is in "
            f"{run.folder / 'logs'}; the same command continues the run."
        )
    if run.state is State.diverged:
        yield [event["text"] for event in run.events if event["event"] == "diverged"][-1]
    if run.state is State.empty:
        yield "The run has not reached its first step."
    for event in run.events:
        if event["event"] == "expectation":
            yield " ".join([event["text"], "; ".join(event["findings"])])
