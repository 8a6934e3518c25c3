"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from data_prep.core.config import SettingsError, as_dict
from pretrain.metrics.names import METRICS
from pretrain.metrics.trace import ProfileSummary
from pretrain.planning.plan_vs_actual import Compared, compare
from pretrain.run_folder.history import History, moment
from pretrain.run_folder.line_types import changes_text

MOST_EVENTS = 200  # in the table; events.jsonl has all


def result_head(run: History, other: History | None) -> list[str]:
    return ["", run.name] if other is None else ["", run.name, other_name(run, other), "difference"]


def results(run: History, other: History | None) -> Iterator[list[str]]:
    for name, metric in METRICS.items():
        value = run.last(name)
        if value is None or not metric.label:
            continue
        form = metric.form
        row = [metric.label, form.format(value)]
        if other is not None:
            theirs = other.last(name)
            row += ["–", "–"] if theirs is None else [
                form.format(theirs), form.replace(":", ":+z", 1).format(value - theirs)
            ]  # fmt: skip
        yield row


def facts(run: History) -> Iterator[tuple[str, str]]:
    stretches = run.stretches
    if stretches:
        yield "first step", f"{stretches[0].began:%Y-%m-%d %H:%M} UTC"
        yield "last heartbeat", f"{stretches[-1].ended:%Y-%m-%d %H:%M} UTC"
        yield "training", f"{span(run.running_s)} in {len(stretches)} stretch(es)"
        yield "wall time", span(run.wall_s)
    if (goodput := run.last("perf/goodput")) is not None:
        yield "goodput", f"{goodput:.1%} of the wall time in steps that count"
    lost = sum(stretch.lost_steps for stretch in stretches)
    yield "repeated steps", f"{lost:,}"
    for kind, label in (
        ("skipped_step", "skipped updates"),
        ("overflow", "fp16 overflows"),
        ("spike", "loss spikes"),
        ("checkpoint_failed", "failed checkpoints"),
        ("mirror_failed", "failed copies of checkpoints"),
    ):
        if count := sum(event["event"] == kind for event in run.events):
            yield label, f"{count:,}"
    yield "ranks", ", ".join(str(n) for n in dict.fromkeys(s.ranks for s in stretches)) or "–"


def guesses_head(run: History) -> list[str]:
    return ["", *(f"after {line['step']:,} steps" for line in _three(run.guesses))]


def guesses(run: History) -> Iterator[list[str]]:
    """Each sentence with the guesses for its [MASK] early, half-way and at the end."""
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
    positions = sorted({0, len(lines) // 2, len(lines) - 1}) if lines else []
    return [lines[position] for position in positions]


def planned(run: History) -> list[Compared]:
    """The plan and the actual values; empty if the data are gone."""
    try:
        return compare(run.folder, run.settings)
    except (OSError, SettingsError):
        return []


PROFILE_HEAD = ["rank", "ms per step", "idle", "communication", "exposed communication"]


def profile_rows(profile: ProfileSummary) -> Iterator[list[str]]:
    """Each rank of a profile; shares are of the profiled time."""
    for rank in profile.ranks:
        shares = [f"{share:.1%}" for share in (rank.idle, rank.communication, rank.exposed)]
        yield [str(rank.rank), f"{rank.ms / max(1, rank.steps):,.1f}", *shares]


def profile_top(profile: ProfileSummary) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the kernels or operators that took most time, on the first rank."""
    first = profile.ranks[0]
    rows = [
        [top.name, f"{top.calls:,}", f"{top.own_ms:,.2f}", f"{top.share:.1%}"] for top in first.top
    ]
    return [f"{first.counted} of rank {first.rank}", "calls", "own time, ms", "share"], rows


def start_rows(run: History) -> Iterator[list[str]]:
    for number, s in enumerate(run.stretches, start=1):
        yield [
            str(number), f"{s.began:%Y-%m-%d %H:%M:%S}", s.kind, str(s.ranks), f"{s.first_step:,}",
            f"{s.last_step:,}", f"{s.lost_steps:,}", span((s.ended - s.began).total_seconds()),
            s.end,
        ]  # fmt: skip


def events_line(run: History, num_shown: int) -> str:
    saved = [event for event in run.events if event["event"] == "checkpoint"]
    line = f"{len(saved):,} checkpoint(s) written"
    if saved:
        line += f", the last at step {saved[-1]['step']:,}"
    if num_shown > MOST_EVENTS:
        line += f"; the last {MOST_EVENTS} of {num_shown:,} other events"
    return line + f". All of them: {run.folder / 'events.jsonl'}"


def event_row(event: dict[str, Any]) -> list[str]:
    details = {k: v for k, v in event.items() if k not in ("time", "event", "step")}
    text = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in details.items())
    if event["event"] == "extended":
        text = changes_text(event)
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


def differences(run: History, other: History) -> Iterator[tuple[str, str, str]]:
    """Settings and versions that differ, without the names and folders of the runs."""
    ours = {**flat_settings(as_dict(run.settings)), **dict(environment_rows(run.environment))}
    theirs = {**flat_settings(as_dict(other.settings)), **dict(environment_rows(other.environment))}
    for name in sorted({*ours, *theirs} - {"run.name", "run.dir"}):
        if ours.get(name) != theirs.get(name):
            yield name, ours.get(name, "–"), theirs.get(name, "–")


def environment_rows(environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    flat = flat_settings(environment)
    for name, value in flat.items():
        yield name.removeprefix("packages.").replace("_", " "), value


def flat_settings(nested: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{group.name: text} of nested dictionaries."""
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = "null" if value is None else str(value)
    return flat


def other_name(run: History, other: History) -> str:
    return other.name if other.name != run.name else str(other.folder)


def span(seconds: float) -> str:
    """3:02:10, or 2 days, 3:02:10."""
    return str(timedelta(seconds=round(seconds)))
